//! Act 2: the network sees the batch.

use candle_core::{Result, Tensor};

use super::load::Input;
use crate::learner::Learner;
use crate::methods::primitives::unit;
use crate::models::{Pass, Projection};

/// What the network makes of the batch, with its graph.
#[derive(Debug)]
pub struct Forward {
    /// [B, classes].
    pub logits: Tensor,
    /// Unit rows [B, feat_dim]; one entry if the method contrasts embeddings, else none.
    pub embeddings: Vec<Tensor>,
    /// The running statistics that are still to be written.
    pub pass: Pass,
}

/// Runs network and projection head in training mode.
///
/// # Errors
/// If shapes do not fit or the device fails.
pub fn forward(learner: &Learner, input: &Input) -> Result<Forward> {
    let mut pass = Pass::train();
    let output = learner.network.forward(&input.images, &mut pass)?;
    let embed = |head: &Projection| unit(&head.forward(&output.feature, &mut pass)?);
    let embeddings = learner.head.iter().map(embed).collect::<Result<Vec<_>>>()?;
    Ok(Forward { logits: output.logits, embeddings, pass })
}
