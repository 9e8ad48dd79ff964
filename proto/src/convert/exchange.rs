//! The data plane's messages.

use super::{WireError, at_most, digest, peer_name};
use crate::contribution::{Contribution, ContributionError, Header, Position, Tensor};
use crate::control::Follow;
use crate::id::{RunId, ViewId};
use crate::limits::TENSORS_MAX;
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

/// Checks a contribution that arrived, against the schema that its source agreed to.
pub fn open_contribution(wire: wire::Contribution, schema: &Schema) -> Result<Contribution, OpenError> {
    at_most("tensors", wire.tensors.len(), TENSORS_MAX)?;
    let header = Header {
        run: RunId(wire.run),
        view: ViewId(wire.view),
        position: Position { step: wire.step, round: wire.round },
        source: peer_name("source", wire.source)?,
        batch_hash: wire.batch_hash,
    };
    let claimed = digest("digest", &wire.digest)?;
    let tensors: Result<Vec<Tensor>, WireError> = wire.tensors.into_iter().map(TryInto::try_into).collect();
    Ok(Contribution::open(header, tensors?, claimed, schema)?)
}

impl From<&Contribution> for wire::Contribution {
    fn from(contribution: &Contribution) -> Self {
        let header = contribution.header();
        Self {
            run: header.run.0,
            view: header.view.0,
            step: header.position.step,
            round: header.position.round,
            source: header.source.to_string(),
            batch_hash: header.batch_hash,
            tensors: contribution.tensors().iter().map(Into::into).collect(),
            digest: contribution.digest().0.to_vec(),
        }
    }
}

impl TryFrom<wire::FollowRequest> for Follow {
    type Error = WireError;

    fn try_from(wire: wire::FollowRequest) -> Result<Self, WireError> {
        Ok(Self {
            protocol_version: wire.protocol_version,
            run: RunId(wire.run),
            follower: peer_name("follower", wire.follower)?,
            source: peer_name("source", wire.source)?,
            from: Position { step: wire.from_step, round: wire.from_round },
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    proptest! {
        #[test]
        fn what_is_sent_arrives(values in prop::collection::vec(-1e6f32..1e6, 0..50), step in 0u64..1 << 40) {
            let (contribution, schema) = sample(&values, step);
            let bytes = wire::Contribution::from(&contribution).encode_to_vec();
            let decoded = wire::Contribution::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(open_contribution(decoded, &schema), Ok(contribution));
        }

        /// A flipped bit is noticed, by the decoder, the schema or the digest, and never panics.
        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..10_000, bit in 0u32..8) {
            let (contribution, schema) = sample(&[1.0, 2.0, 3.0], 5);
            let mut bytes = wire::Contribution::from(&contribution).encode_to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(decoded) = wire::Contribution::decode(bytes.as_slice()) {
                let opened = open_contribution(decoded, &schema);
                prop_assert!(opened.is_err(), "byte {} bit {} was accepted", at, bit);
            }
        }
    }

    #[test]
    fn a_missing_field_is_named() {
        let (contribution, schema) = sample(&[1.0], 0);
        let mut message = wire::Contribution::from(&contribution);
        message.tensors[0].spec = None;
        let error = open_contribution(message, &schema).unwrap_err();
        assert_eq!(error.to_string(), "field spec: is missing");
    }
}
