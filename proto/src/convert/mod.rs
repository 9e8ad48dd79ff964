//! Between the wire and the domain: wire → domain checks everything and names the field that is wrong; domain → wire
//! cannot fail. Nothing else reads generated types.

mod tensor;
mod exchange;
mod control;

pub use exchange::{contribution_for, open_contribution};

use crate::id::{Digest, PeerName};
use crate::limits::SENTENCE_CHARS_MAX;

/// A message that does not follow the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct WireError {
    /// The field, as the schema spells it.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl WireError {
    fn new(field: &'static str, problem: impl ToString) -> Self {
        Self { field, problem: problem.to_string() }
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, "is missing"))
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| WireError::new(field, format!("has {} bytes instead of 32", bytes.len())))?;
    Ok(Digest(bytes))
}

fn peer_name(field: &'static str, name: String) -> Result<PeerName, WireError> {
    PeerName::new(name).map_err(|error| WireError::new(field, error))
}

fn at_most(field: &'static str, count: usize, limit: usize) -> Result<(), WireError> {
    if count <= limit {
        Ok(())
    } else {
        Err(WireError::new(field, format!("has {count} entries; at most {limit} are allowed")))
    }
}

/// A sentence is for people: one that is too long is cut, not refused.
fn sentence(text: String) -> String {
    if text.len() <= SENTENCE_CHARS_MAX { text } else { text.chars().take(SENTENCE_CHARS_MAX).collect() }
}
