//! Act 7: the only act that changes the network: weights by the optimiser, running statistics by the pass, memory banks
//! and the past by what was said.

use candle_core::Result;

use super::load::Input;
use crate::learner::{Learner, Memory, Moves, Outputs};
use crate::methods::Heard;
use crate::models::Pass;
use crate::optim::Gradients;

/// What a batch changes.
#[derive(Debug)]
pub struct Change {
    /// The running statistics that are still to be written.
    pub pass: Pass,
    /// The gradient of the share by parameter name.
    pub gradients: Gradients,
    /// The learning rate.
    pub lr: f64,
    /// What the network and its adversary learn of each other.
    pub moves: Option<Moves>,
}

/// One optimiser step at a learning rate, and the batch's share of the running statistics.
///
/// # Errors
/// If the device fails.
pub fn update(learner: &mut Learner, pass: Pass, gradients: Gradients, lr: f64) -> Result<()> {
    learner.optimizer.step(&learner.model.params, gradients, lr)?;
    pass.commit()
}

/// As [`update`], then what the network and its adversary learn of each other, and then the memory banks of all networks,
/// if the method has them, and the own past remember what was said of the batch. The weights
/// of an epoch hold from its first step on.
/// What can go wrong with them does so before anything has changed.
///
/// # Errors
/// If the device fails, or an embedding is missing.
pub fn update_and_remember(
    learner: &mut Learner,
    change: Change,
    outputs: &Outputs,
    heard: &[Heard],
    input: &Input,
) -> Result<()> {
    let me = learner.index;
    let blend = |memory: &Memory| memory.blend((me, &outputs.embeddings), heard, &input.indices);
    let remembrance = learner.memory.as_ref().map(blend).transpose()?;
    let said = learner.past.as_ref().map(|past| past.said(&input.indices, &outputs.logits)).transpose()?;
    let Change { pass, gradients, lr, moves } = change;
    update(learner, pass, gradients, lr)?;
    if let (Some(adversary), Some(moves)) = (&mut learner.adversary, moves) {
        adversary.step(&learner.model, moves)?;
    }
    if let (Some(past), Some(said)) = (&mut learner.past, said) {
        past.remember(&said);
    }
    learner.weights.clone_from(&input.weights);
    if let (Some(memory), Some(remembrance)) = (&mut learner.memory, remembrance) {
        memory.remember(&remembrance);
    }
    Ok(())
}
