//! Act 5: the peer's share of the cohort's loss. The others' tensors are constants in it.

use candle_core::Result;

use super::forward::Forward;
use super::load::Input;
use crate::learner::Learner;
use crate::methods::{Heard, Terms};

/// Local terms, and every term of a pair that contains this peer's own tensors.
///
/// # Errors
/// If what was heard does not fit, or the device fails.
pub fn loss(learner: &Learner, forward: &Forward, heard: &[Heard], input: &Input) -> Result<Terms> {
    let (me, cohort, own) = (learner.index, heard.len() + 1, forward.outputs.own());
    let recall = match &learner.memory {
        Some(memory) => Some(memory.recall(me, heard, input.step, &input.indices)?),
        None => None,
    };
    learner.method.loss_with(me, cohort, own, heard, &input.labels, recall.as_ref())
}
