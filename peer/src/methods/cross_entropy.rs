//! Cross-entropy of logits with integer labels.

use candle_core::{Result, Tensor};

use crate::kernels;

/// Mean over the batch of `-ls(z)[n, y_n]` in the dtype of losses; scalar.
///
/// `logits` `[B, C]`, `labels` `[B]` of any integer dtype on any device.
///
/// # Errors
/// A label outside `0..C`, or shapes that do not fit.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    kernels::softmax_cross_entropy(logits, labels)
}
