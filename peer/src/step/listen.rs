//! Act 4: waiting for what the sources say about the same batch. This is the barrier of a step: there is no other.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use cohort_proto::contribution::{self, Contribution, Position};
use cohort_proto::id::{Digest, PeerName};
use cohort_proto::schema::DType;

use super::{Company, Interruption};
use crate::methods::{AGGREGATED, FN_LOGITS, Heard, LOGITS, MAP, SCORE, embedding_name, matching_name};

/// What the sources said.
#[derive(Debug)]
pub struct Listened {
    /// The digest of each contribution, by source.
    pub consumed: Vec<(PeerName, Digest)>,
    /// The contributions as the losses take them, by ascending index.
    pub heard: Vec<Heard>,
}

impl Listened {
    /// The digest of each contribution of a round, by source.
    pub fn digests(said: &[(usize, Arc<Contribution>)]) -> Vec<(PeerName, Digest)> {
        said.iter().map(|(_, c)| (c.header().source.clone(), c.digest())).collect()
    }
}

/// Waits for all sources and turns what they said into constants.
///
/// # Errors
/// If the run stops meanwhile, a source is on another batch, or the device fails.
pub fn listen(
    company: &mut dyn Company,
    at: Position,
    batch_hash: u64,
    device: &Device,
) -> std::result::Result<Listened, Interruption> {
    let said = company.listen(at, batch_hash)?;
    let consumed = Listened::digests(&said);
    let heard = said
        .iter()
        .map(|(index, contribution)| heard(*index, contribution, device))
        .collect::<Result<_>>()?;
    Ok(Listened { consumed, heard })
}

/// A contribution as the losses take it.
///
/// # Errors
/// If a tensor has a name that no method says, or comes out of the order of its stage; or the device fails.
pub fn heard(index: usize, contribution: &Contribution, device: &Device) -> Result<Heard> {
    let mut heard = Heard::nothing(index);
    for tensor in contribution.tensors() {
        let name = tensor.spec.name.as_str();
        let values = from_wire(tensor, device)?;
        if name == LOGITS {
            heard.logits = Some(values);
        } else if name == FN_LOGITS {
            heard.fn_logits = Some(values);
        } else if name == SCORE {
            heard.score = Some(values);
        } else if name == MAP {
            heard.map = Some(values);
        } else if name == AGGREGATED {
            heard.aggregated = Some(values);
        } else if name == embedding_name(heard.embeddings.len()) {
            heard.embeddings.push(values);
        } else if name == matching_name(heard.matching.len()) {
            heard.matching.push(values);
        } else {
            candle_core::bail!(
                "network {index} said `{name}` after {} embeddings and {} matching features, which no method does",
                heard.embeddings.len(),
                heard.matching.len()
            );
        }
    }
    Ok(heard)
}

/// A tensor that travelled, as a constant on a device.
///
/// # Errors
/// If the device fails.
pub fn from_wire(tensor: &contribution::Tensor, device: &Device) -> Result<Tensor> {
    let shape = tensor.spec.shape.as_slice();
    match tensor.spec.dtype {
        DType::F32 => {
            let values: Vec<f32> = tensor.data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            Tensor::from_vec(values, shape, device)
        }
        DType::F64 => {
            let values: Vec<f64> = tensor.data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
            Tensor::from_vec(values, shape, device)
        }
    }
}
