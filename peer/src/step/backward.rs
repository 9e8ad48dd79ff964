//! Act 6: the gradient of the share, which is exactly this peer's part of the gradient of the joint loss.

use candle_core::Result;

use crate::learner::{Contest, Learner, Moves};
use crate::methods::Terms;
use crate::optim::Gradients;

/// Gradients by parameter name; a parameter that the loss does not reach is absent.
///
/// # Errors
/// If the device fails.
pub fn backward(learner: &Learner, loss: &Terms) -> Result<Gradients> {
    let store = loss.total.backward()?;
    Ok(learner.model.params.gradients(&store))
}

/// The gradients of a contest with the adversary, if there is one.
///
/// # Errors
/// If the device fails.
pub fn moves(learner: &Learner, contest: Option<Contest>) -> Result<Option<Moves>> {
    match (&learner.adversary, contest) {
        (Some(adversary), Some(contest)) => adversary.moves(&learner.model, contest).map(Some),
        _ => Ok(None),
    }
}
