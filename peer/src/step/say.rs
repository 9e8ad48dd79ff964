//! Act 3: what the network made of the batch is published; followers receive it from here on.

use candle_core::{DType, Result};
use cohort_proto::contribution::{Position, Tensor};
use cohort_proto::id::Digest;
use cohort_proto::schema::{self, TensorSpec};

use super::forward::Forward;
use super::{Company, Interruption};
use crate::learner::Learner;
use crate::methods::{LOGITS, embedding_name};

/// Publishes logits and embeddings, as far as the method says them. Returns the digest of what was said.
///
/// # Errors
/// If a value is not finite, the log is full, or the device fails.
pub fn say(
    learner: &Learner,
    company: &mut dyn Company,
    at: Position,
    batch_hash: u64,
    forward: &Forward,
) -> std::result::Result<Option<Digest>, Interruption> {
    let mut tensors = Vec::new();
    if learner.method.says_logits() {
        tensors.push(to_wire(LOGITS, &forward.logits)?);
    }
    for (stage, embedding) in forward.embeddings.iter().enumerate() {
        tensors.push(to_wire(&embedding_name(stage), embedding)?);
    }
    company.say(at, batch_hash, tensors)
}

/// A tensor's own bits, little-endian; f32 and f64 travel as they are.
///
/// # Errors
/// If the device fails.
pub fn to_wire(name: &str, tensor: &candle_core::Tensor) -> Result<Tensor> {
    let flat = tensor.flatten_all()?;
    let (dtype, data): (_, Vec<u8>) = match tensor.dtype() {
        DType::F64 => {
            (schema::DType::F64, flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect())
        }
        _ => {
            let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            (schema::DType::F32, values.into_iter().flat_map(f32::to_le_bytes).collect())
        }
    };
    let spec = TensorSpec { name: name.to_owned(), dtype, shape: tensor.dims().to_vec() };
    Ok(Tensor { spec, data: data.into() })
}
