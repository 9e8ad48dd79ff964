//! Act 6: the gradient of the share, which is exactly this peer's part of the gradient of the joint loss.

use candle_core::Result;

use crate::learner::Learner;
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
