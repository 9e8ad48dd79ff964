//! The optimiser, step for step as PyTorch's.
//!
//! It takes gradients by name and updates the variables of a [`Params`](crate::models::Params) in place. Learning rates
//! come from outside, one for each step.

pub mod adam;
pub mod sgd;

pub use adam::{Adam, AdamConfig};
pub use sgd::{Sgd, SgdConfig};

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

/// Gradients by the name of their parameter; a parameter that is absent has the gradient 0.
pub type Gradients = BTreeMap<String, Tensor>;

/// Keeps PyTorch's quotient in `clip_grad_norm_` finite at a gradient of 0.
const CLIP_EPS: f64 = 1e-6;

/// Why an optimiser was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptimError {
    /// A hyper-parameter lies outside its range.
    #[error("{name} = {value}: it must be {range}")]
    OutOfRange {
        /// The key in the run file.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// What is possible.
        range: &'static str,
    },
    /// The look-ahead is along a velocity, so there must be one.
    #[error("nesterov = true needs a momentum above 0")]
    NesterovWithoutMomentum,
}

/// The Euclidean norm of all gradients taken together, summed in f64 in the order of names.
///
/// # Errors
/// If the device fails.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    let square =
        |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    let total = gradients.values().map(square).sum::<Result<f64>>()?;
    Ok(total.sqrt())
}

/// Scales all gradients by `min(1, limit / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_` does, and returns the norm
/// they had. A limit of 0 leaves them alone.
///
/// # Errors
/// If the device fails.
pub fn clip_global_norm(gradients: &mut Gradients, limit: f64) -> Result<f64> {
    let norm = global_norm(gradients)?;
    let factor = limit / (norm + CLIP_EPS);
    if limit > 0.0 && factor < 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = gradient.affine(factor, 0.0)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests;
