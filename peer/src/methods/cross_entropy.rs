//! Cross-entropy of logits with integer labels.

use candle_core::{DType, Result, Tensor};

use super::primitives::log_softmax;

/// Mean over the batch of `-ls(z)[n, y_n]`; scalar.
///
/// `logits` `[B, C]`, `labels` `[B]` of any integer dtype on any device.
///
/// # Errors
/// A label outside `0..C`, or shapes that do not fit.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (batch, _) = logits.dims2()?;
    let labels = labels.to_dtype(DType::I64)?.to_device(logits.device())?.reshape((batch, 1))?;
    let picked = log_softmax(logits)?.gather(&labels, 1)?;
    picked.sum_all()? * (-1.0 / batch.max(1) as f64)
}
