//! Label smoothing (Szegedy et al., CVPR 2016, section 7): a part of the label is spread evenly over all classes.
//!
//! `q = (1 - ε)·onehot(y) + ε/C` over all C classes, the true one included, and the term is `H(q, z)`. It takes the
//! place of cross-entropy.

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, share};
use crate::methods::primitives::{cross_entropy_rows, one_hot};

/// Hyper-parameters of label smoothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelSmoothingParams {
    /// What is taken from the label, 0 to 1.
    pub eps: f64,
}

impl Default for LabelSmoothingParams {
    fn default() -> Self {
        Self { eps: 0.1 }
    }
}

impl LabelSmoothingParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A share outside 0..=1.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        share("eps", self.eps)
    }
}

/// `H(q, z)` of each sample, `[B]`: logits `[B, C]`, labels `[B]` of any integer dtype.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn rows(logits: &Tensor, labels: &Tensor, params: &LabelSmoothingParams) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let target = one_hot(labels, logits)?.affine(1.0 - params.eps, params.eps / classes.max(1) as f64)?;
    cross_entropy_rows(&target, logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    #[test]
    fn has_the_printed_value_and_the_slope_of_its_value() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        let loss = |z: &Tensor| mean(&rows(z, &y, &LabelSmoothingParams { eps: 0.2 })?);
        close(value(&loss(&z).unwrap()), 3.246211708231, 1e-12);
        check_gradient(&z, loss);
    }

    #[test]
    fn without_smoothing_it_is_cross_entropy() {
        let (z, y) = (logits_of(1).unwrap(), labels(&LABELS).unwrap());
        let got = mean(&rows(&z, &y, &LabelSmoothingParams { eps: 0.0 }).unwrap()).unwrap();
        close(value(&got), value(&cross_entropy(&z, &y).unwrap()), 1e-14);
    }

    #[test]
    fn stays_finite() {
        check_finite(|z, _, y| rows(z, y, &LabelSmoothingParams::default()));
    }

    #[test]
    fn refuses_what_is_no_share() {
        assert!(LabelSmoothingParams::default().check(10).is_ok());
        for eps in [-0.1, 1.1, f64::NAN] {
            assert!(LabelSmoothingParams { eps }.check(10).is_err());
        }
        let y = labels(&[0, 0, 1, 1, 2, CLASSES as i64]).unwrap();
        assert!(rows(&logits_of(0).unwrap(), &y, &LabelSmoothingParams::default()).is_err());
    }
}
