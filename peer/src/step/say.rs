//! Act 3: what the network made of the batch is published; followers receive it from here on.

use candle_core::{DType, Result};
use cohort_proto::contribution::{Position, Tensor};
use cohort_proto::control::TensorDigest;
use cohort_proto::id::Digest;
use cohort_proto::schema::{self, TensorSpec};

use super::forward::Forward;
use super::{Company, Interruption};
use crate::learner::{Learner, Outputs};
use crate::methods::{AGGREGATED, FN_LOGITS, LOGITS, MAP, SCORE, embedding_name, matching_name};

/// What was said.
#[derive(Debug, Default)]
pub struct Said {
    /// The digest of the contribution, if there is one.
    pub digest: Option<Digest>,
    /// Those of its tensors.
    pub tensors: Vec<TensorDigest>,
}

/// Publishes what the method says.
///
/// # Errors
/// If a value is not finite, the log is full, or the device fails.
pub fn say(
    learner: &Learner,
    company: &mut dyn Company,
    at: Position,
    batch_hash: u64,
    forward: &Forward,
) -> std::result::Result<Said, Interruption> {
    publish(company, at, batch_hash, words(learner, &forward.outputs)?)
}

/// Publishes words as they are.
///
/// # Errors
/// If a value is not finite, or the log is full.
pub fn publish(
    company: &mut dyn Company,
    at: Position,
    batch_hash: u64,
    words: Vec<Tensor>,
) -> std::result::Result<Said, Interruption> {
    let tensors = words.iter().map(|word| TensorDigest::of(&word.spec.name, &word.data)).collect();
    Ok(Said { digest: company.say(at, batch_hash, words)?, tensors })
}

/// What somebody learns from, in the order of the schema: logits, those of normalised features, scores, maps, aggregated logits,
/// the embeddings and then the matching features by stage.
///
/// # Errors
/// If the device fails.
pub fn words(learner: &Learner, outputs: &Outputs) -> Result<Vec<Tensor>> {
    let mut words = Vec::new();
    let mut word = |name: &str, tensor: Option<&candle_core::Tensor>, by_method: bool| -> Result<()> {
        if let Some(tensor) = tensor.filter(|_| learner.node.says(name, by_method)) {
            words.push(to_wire(name, tensor)?);
        }
        Ok(())
    };
    word(LOGITS, Some(&outputs.logits), learner.method.says_logits())?;
    word(FN_LOGITS, outputs.fn_logits.as_ref(), false)?;
    word(SCORE, outputs.score.as_ref(), false)?;
    word(MAP, outputs.map.as_ref(), false)?;
    word(AGGREGATED, outputs.aggregated.as_ref(), learner.method.says_aggregated())?;
    let of_stages = of_stages(&outputs.embeddings, &outputs.matching)?.into_iter();
    words.extend(of_stages.filter(|word| learner.node.says(&word.spec.name, true)));
    Ok(words)
}

/// The embeddings and then the matching features, each by stage.
///
/// # Errors
/// If the device fails.
pub fn of_stages(
    embeddings: &[candle_core::Tensor],
    matching: &[candle_core::Tensor],
) -> Result<Vec<Tensor>> {
    let embeddings = embeddings.iter().enumerate().map(|(stage, v)| to_wire(&embedding_name(stage), v));
    let matching = matching.iter().enumerate().map(|(stage, u)| to_wire(&matching_name(stage), u));
    embeddings.chain(matching).collect()
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
