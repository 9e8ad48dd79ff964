//! Act 7: the only act that changes the network: weights by the optimiser, running statistics by the pass.

use candle_core::Result;

use crate::learner::Learner;
use crate::models::Pass;
use crate::optim::Gradients;

/// One optimiser step at a learning rate, and the batch's share of the running statistics.
///
/// # Errors
/// If the device fails.
pub fn update(learner: &mut Learner, pass: Pass, gradients: Gradients, lr: f64) -> Result<()> {
    learner.optimizer.step(&learner.model.params, gradients, lr)?;
    pass.commit()
}
