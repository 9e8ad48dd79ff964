//! Cross-entropy of logits with integer labels.

use candle_core::{Result, Tensor};

use super::primitives::{cross_entropy_rows, one_hot};
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

/// `-ls(z)[n, y_n]` of each sample, `[B]`: their mean is [`cross_entropy`], which is faster.
///
/// # Errors
/// As [`cross_entropy`].
pub fn rows(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    cross_entropy_rows(&one_hot(labels, logits)?, logits)
}
