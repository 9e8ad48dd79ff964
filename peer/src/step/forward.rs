//! Act 2: the network sees the batch.

use candle_core::Result;
use cohort_proto::spec::Role;

use super::load::Input;
use crate::learner::{Learner, Outputs};
use crate::models::Pass;

/// What the network makes of the batch.
#[derive(Debug)]
pub struct Forward {
    /// Logits and whatever the method contrasts, with their graph.
    pub outputs: Outputs,
    /// What the network of the generation before makes of it, if anything is learned from that.
    pub before: Option<Outputs>,
    /// The running statistics that are still to be written.
    pub pass: Pass,
}

/// Runs the network and what its method adds, a student's in training mode; a teacher's with its running statistics and
/// without a graph.
///
/// # Errors
/// If shapes do not fit or the device fails.
pub fn forward(learner: &Learner, input: &Input) -> Result<Forward> {
    let mut pass = match learner.role {
        Role::Student => Pass::train(),
        Role::Teacher => Pass::eval(),
    };
    let outputs = learner.model.forward(&input.images, &mut pass)?;
    let before = learner.look_back(&input.images)?;
    Ok(Forward { outputs, before, pass })
}
