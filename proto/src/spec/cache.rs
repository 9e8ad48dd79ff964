//! `cache = true` of a teacher: what it said of a training sample is kept, and said again when the sample comes back.

use super::{Augment, Role, RunSpec, SpecError};
use crate::limits::CACHE_BYTES_MAX;
use crate::schema::SchemaError;

impl RunSpec {
    /// Bytes that a peer says of one training sample.
    ///
    /// # Errors
    /// As [`RunSpec::contribution_schema`].
    pub fn sample_bytes(&self, index: usize) -> Result<u64, SchemaError> {
        let schema = self.contribution_schema(index)?;
        Ok((schema.byte_len() / self.data.batch.max(1)) as u64)
    }

    /// Whether so many training samples fit into the cache of a peer, if it has one.
    ///
    /// # Errors
    /// They do not.
    pub fn check_cache(&self, index: usize, samples: usize) -> Result<(), SpecError> {
        let Some(peer) = self.peers.get(index).filter(|peer| peer.cache) else { return Ok(()) };
        let section = format!("[[peer]] {}", peer.name);
        let each = self.sample_bytes(index);
        let each =
            each.map_err(|error| SpecError::value(&section, "cache", format!("is true, but {error}")))?;
        let bytes = each.saturating_mul(samples as u64);
        if bytes > CACHE_BYTES_MAX {
            let problem = format!(
                "is true: what {} says of {samples} samples, {each} bytes each, takes {} MB, more than {} MB; leave it out, \
                 or lower train_limit",
                peer.name,
                bytes >> 20,
                CACHE_BYTES_MAX >> 20
            );
            return Err(SpecError::value(&section, "cache", problem));
        }
        Ok(())
    }

    /// Whoever keeps what it said must say the same every time.
    pub(super) fn check_caches(&self) -> Result<(), SpecError> {
        for peer in self.peers.iter().filter(|peer| peer.cache) {
            let refused = |problem: &str| {
                Err(SpecError::value(&format!("[[peer]] {}", peer.name), "cache", problem.to_owned()))
            };
            if peer.role != Role::Teacher {
                return refused(
                    "is true, but a student says something else of a sample every time; write role = \"teacher\", or leave \
                     it out",
                );
            }
            if self.data.augment != Augment::None {
                return refused(
                    "is true, but augmented images are never the same again; write augment = \"none\" in [data], or leave it \
                     out",
                );
            }
        }
        Ok(())
    }
}
