//! Self-distillation with progressive refinement of targets (Kim et al., ICCV 2021, equations 5 and 6): a network learns
//! from what it said of the same sample the last time.
//!
//! ```text
//! α_e = α_T·(e+1)/E                       e = 0..E-1
//! q_n = (1 - α_e)·onehot_n + α_e·past_n
//! term = H(q, z)
//! ```
//!
//! It takes the place of cross-entropy, at temperature 1. What was said is kept in [`super::past`].

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, share};
use crate::methods::primitives::{cross_entropy_rows, one_hot, widen};

/// Hyper-parameters of progressive self-distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PsKdParams {
    /// α_T: the share of the past in the last epoch's targets, 0 to 1. The authors' code has 0.8.
    pub alpha: f64,
}

impl Default for PsKdParams {
    fn default() -> Self {
        Self { alpha: 0.8 }
    }
}

impl PsKdParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A share outside 0..=1.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        share("alpha", self.alpha)
    }

    /// α_e of epoch `epoch`, counted from 0, of `epochs`; never above α_T.
    pub fn alpha_at(&self, epoch: u64, epochs: u64) -> f64 {
        if epoch.saturating_add(1) >= epochs {
            return self.alpha;
        }
        self.alpha * (epoch + 1) as f64 / epochs as f64
    }
}

/// `H(q, z)` of each sample, `[B]`: logits `[B, C]`, the rows `[B, C]` of the past that belong to the batch (a constant),
/// labels `[B]`, α_e.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn rows(logits: &Tensor, past: &Tensor, labels: &Tensor, alpha: f64) -> Result<Tensor> {
    if past.dims() != logits.dims() {
        candle_core::bail!("the past is {:?}, the logits are {:?}", past.dims(), logits.dims());
    }
    let onehot = one_hot(labels, logits)?;
    let past = widen(&past.to_device(logits.device())?)?.detach();
    cross_entropy_rows(&((onehot * (1.0 - alpha))? + (past * alpha)?)?, logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::primitives::log_softmax;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    #[test]
    fn has_the_printed_value_and_the_slope_of_its_value() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        let past = log_softmax(&logits_of(1).unwrap()).unwrap().exp().unwrap();
        let alpha = PsKdParams::default().alpha_at(10, 300);
        let loss = |z: &Tensor| mean(&rows(z, &past, &y, alpha)?);
        close(value(&loss(&z).unwrap()), 3.243762882006, 1e-12);
        check_gradient(&z, loss);
    }

    #[test]
    fn without_a_past_it_is_cross_entropy() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        let ce = value(&cross_entropy(&z, &y).unwrap());
        let never = one_hot(&y, &z).unwrap();
        for alpha in [0.0, 0.8] {
            close(value(&mean(&rows(&z, &never, &y, alpha).unwrap()).unwrap()), ce, 1e-14);
        }
    }

    #[test]
    fn the_share_of_the_past_grows_to_its_last_value() {
        let params = PsKdParams { alpha: 0.5 };
        let shares = [0, 1, 3, 4, u64::MAX].map(|epoch| params.alpha_at(epoch, 4));
        assert_eq!(shares, [0.125, 0.25, 0.5, 0.5, 0.5]);
        assert_eq!(params.alpha_at(0, 0), 0.5);
    }

    #[test]
    fn stays_finite() {
        check_finite(|z, past, y| rows(z, &log_softmax(past)?.exp()?, y, 0.8));
    }

    #[test]
    fn refuses_more_than_all_of_the_past() {
        assert!(PsKdParams::default().check(10).is_ok());
        for alpha in [-0.1, 1.2, f64::NAN] {
            assert!(PsKdParams { alpha }.check(10).is_err());
        }
        let y = labels(&LABELS).unwrap();
        let narrow = logits_of(1).unwrap().narrow(1, 0, 4).unwrap();
        assert!(rows(&logits_of(0).unwrap(), &narrow, &y, 0.5).is_err());
    }
}
