//! The data plane's messages.

use std::collections::BTreeSet;

use super::{WireError, at_most, digest, peer_name};
use crate::contribution::{Contribution, ContributionError, Header, Part, Position};
use crate::control::Follow;
use crate::id::{RunId, ViewId};
use crate::limits::{TENSORS_MAX, WANTED_MAX};
use crate::schema::Schema;
use crate::wire;

/// A contribution that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The message does not follow the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Its tensors are not what was agreed.
    #[error(transparent)]
    Contribution(#[from] ContributionError),
}

/// Checks a contribution that arrived, against the schema that its source agreed to and what was asked for of it.
pub fn open_contribution(
    wire: wire::Contribution,
    schema: &Schema,
    wanted: &BTreeSet<String>,
) -> Result<Contribution, OpenError> {
    at_most("tensors", wire.tensors.len(), TENSORS_MAX)?;
    let header = Header {
        run: RunId(wire.run),
        view: ViewId(wire.view),
        position: Position { step: wire.step, round: wire.round },
        source: peer_name("source", wire.source)?,
        batch_hash: wire.batch_hash,
    };
    let claimed = digest("digest", &wire.digest)?;
    let parts: Result<Vec<Part>, WireError> = wire.tensors.into_iter().map(TryInto::try_into).collect();
    Ok(Contribution::open(header, parts?, claimed, schema, wanted)?)
}

/// A contribution on its way to one who asked for the tensors with certain names.
pub fn contribution_for(contribution: &Contribution, wanted: impl Fn(&str) -> bool) -> wire::Contribution {
    let header = contribution.header();
    wire::Contribution {
        run: header.run.0,
        view: header.view.0,
        step: header.position.step,
        round: header.position.round,
        source: header.source.to_string(),
        batch_hash: header.batch_hash,
        tensors: contribution.parts_for(wanted).map(Into::into).collect(),
        digest: contribution.digest().0.to_vec(),
    }
}

impl TryFrom<wire::FollowRequest> for Follow {
    type Error = WireError;

    fn try_from(wire: wire::FollowRequest) -> Result<Self, WireError> {
        at_most("wanted", wire.wanted.len(), WANTED_MAX)?;
        Ok(Self {
            protocol_version: wire.protocol_version,
            run: RunId(wire.run),
            follower: peer_name("follower", wire.follower)?,
            source: peer_name("source", wire.source)?,
            from: Position { step: wire.from_step, round: wire.from_round },
            wanted: wire.wanted.into_iter().collect(),
        })
    }
}

impl From<&Follow> for wire::FollowRequest {
    fn from(follow: &Follow) -> Self {
        Self {
            protocol_version: follow.protocol_version,
            run: follow.run.0,
            follower: follow.follower.to_string(),
            source: follow.source.to_string(),
            from_step: follow.from.step,
            from_round: follow.from.round,
            wanted: follow.wanted.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contribution::Tensor;
    use crate::id::PeerName;
    use crate::schema::{DType, TensorSpec};
    use proptest::prelude::*;
    use prost::Message;

    fn sample(values: &[f32], step: u64) -> (Contribution, Schema) {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let spec = TensorSpec { name: "logits".into(), dtype: DType::F32, shape: vec![values.len(), 1] };
        let schema = Schema::new(vec![spec.clone()]).unwrap();
        let source = PeerName::new("a").unwrap();
        let header =
            Header { run: RunId(7), view: ViewId(2), position: Position::of(step), source, batch_hash: 11 };
        let tensors = vec![Tensor { spec, data: data.into() }];
        (Contribution::seal(header, tensors, &schema).unwrap(), schema)
    }

    fn all() -> BTreeSet<String> {
        ["logits".to_owned()].into()
    }

    fn whole(contribution: &Contribution) -> wire::Contribution {
        contribution_for(contribution, |_| true)
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(values in prop::collection::vec(-1e6f32..1e6, 0..50), step in 0u64..1 << 40) {
            let (contribution, schema) = sample(&values, step);
            let bytes = whole(&contribution).encode_to_vec();
            let decoded = wire::Contribution::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(open_contribution(decoded, &schema, &all()), Ok(contribution));
        }

        /// A flipped bit is noticed, by the decoder, the schema or the digest, and never panics.
        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..10_000, bit in 0u32..8, omitted: bool) {
            let (contribution, schema) = sample(&[1.0, 2.0, 3.0], 5);
            let wanted = if omitted { BTreeSet::new() } else { all() };
            let mut bytes = contribution_for(&contribution, |_| !omitted).encode_to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(decoded) = wire::Contribution::decode(bytes.as_slice()) {
                let opened = open_contribution(decoded, &schema, &wanted);
                prop_assert!(opened.is_err(), "byte {} bit {} was accepted", at, bit);
            }
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let (contribution, schema) = sample(&[1.0], 0);
        let mut message = whole(&contribution);
        message.tensors[0].spec = None;
        let error = open_contribution(message, &schema, &all()).unwrap_err();
        assert_eq!(error.to_string(), "field spec: is missing");
    }

    #[test]
    fn what_nobody_asked_for_travels_as_its_digest() {
        let (contribution, schema) = sample(&[1.0; 4000], 0);
        let message = contribution_for(&contribution, |_| false);
        assert!(message.encoded_len() < 200, "{} bytes", message.encoded_len());
        let opened = open_contribution(message.clone(), &schema, &BTreeSet::new()).unwrap();
        assert_eq!((opened.digest(), opened.byte_len()), (contribution.digest(), 0));
        let error = open_contribution(message.clone(), &schema, &all()).unwrap_err();
        assert_eq!(error.to_string(), "tensor logits was asked for, but only its digest came");
        let both = |data: &'static [u8], digest: usize| {
            let mut message = message.clone();
            message.tensors[0].data = data.into();
            message.tensors[0].digest.truncate(digest);
            open_contribution(message, &schema, &BTreeSet::new()).unwrap_err().to_string()
        };
        assert_eq!(both(b"data", 32), "field tensor: has both data and their digest");
        assert!(both(b"", 31).starts_with("field tensor digest"), "{}", both(b"", 31));
    }
}
