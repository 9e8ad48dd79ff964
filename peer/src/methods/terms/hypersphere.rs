//! Hypersphere embedding (Ranjan et al., "L2-constrained Softmax Loss", 2017; Wang et al., "NormFace", 2017): the
//! classifier sees the direction of a feature alone.
//!
//! `z^he = W·(ρ·f/‖f‖) + b` and the term is `CE(z^he, y)`. With the norm held constant the gradient of logits `W·f` is
//! `(ρ/‖f‖)·(softmax(z^he) - onehot)/B` (Xu et al., ECCV 2020, equation 14). A feature of length 0 has no direction:
//! its logits are the bias, and its gradient is finite.
//!
//! The default radius is ours: an answer of probability p among C classes needs at least `ln(p(C-2)/(1-p))`, 6.8 for
//! p = 0.9 and C = 100.

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, positive};
use crate::methods::cross_entropy;
use crate::methods::primitives::{unit, widen};

/// Hyper-parameters of hypersphere embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HypersphereParams {
    /// ρ, the length that every feature is given.
    pub rho: f64,
}

impl Default for HypersphereParams {
    fn default() -> Self {
        Self { rho: 16.0 }
    }
}

impl HypersphereParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A radius that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("rho", self.rho)
    }
}

/// `z^he` `[B, C]` in the dtype of losses: features `[B, D]`, the classifier's weight `[C, D]` and bias `[C]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn logits(
    features: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &HypersphereParams,
) -> Result<Tensor> {
    classify(&(unit(&widen(features)?)? * params.rho)?, weight, bias)
}

/// `CE(z^he, y)` of each sample, `[B]`; `logits` `[B, C]` as [`logits`] makes them, labels `[B]`.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn rows(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    cross_entropy::rows(logits, labels)
}

/// `W·f + b` `[B, C]` in the dtype of losses: features `[B, D]`, weight `[C, D]`, bias `[C]`.
pub(super) fn classify(features: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let logits = widen(features)?.matmul(&widen(weight)?.t()?)?;
    match bias {
        Some(bias) => logits.broadcast_add(&widen(bias)?),
        None => Ok(logits),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    fn loss(f: &Tensor, w: &Tensor) -> Result<Tensor> {
        let z = logits(f, w, None, &HypersphereParams::default())?;
        mean(&rows(&z, &labels(&LABELS)?)?)
    }

    #[test]
    fn has_the_printed_value_and_the_slopes_of_its_value() {
        let (f, w) = (feature_of(0).unwrap(), classifier().unwrap());
        close(value(&loss(&f, &w).unwrap()), 16.119140292598, 1e-12);
        check_gradient(&f, |f| loss(f, &w));
        check_gradient(&w, |w| loss(&f, w));
    }

    #[test]
    fn the_length_of_a_feature_does_not_matter() {
        let (f, w) = (feature_of(0).unwrap(), classifier().unwrap());
        let bias = Tensor::new(&[0.1, -0.2, 0.3, 0.0, 1.0], &Device::Cpu).unwrap();
        let of = |f: &Tensor| logits(f, &w, Some(&bias), &HypersphereParams { rho: 3.0 }).unwrap();
        for scale in [1e4, 1e-6, 1e-11] {
            let difference = largest_difference(&entries(&of(&(&f * scale).unwrap())), &entries(&of(&f)));
            assert!(difference < 1e-9, "{scale}: {difference}");
        }
        let zero = of(&f.zeros_like().unwrap());
        assert_eq!(entries(&zero.get(0).unwrap()), entries(&bias));
    }

    #[test]
    fn stays_finite_for_features_of_any_length() {
        for (dtype, scale) in [(DType::F32, 0.0), (DType::F64, 0.0), (DType::F32, 1e4), (DType::F64, 1e-14)] {
            let f = (feature_of(0).unwrap() * scale).unwrap().to_dtype(dtype).unwrap();
            let f = Var::from_tensor(&f).unwrap();
            let w = classifier().unwrap().to_dtype(dtype).unwrap();
            let loss = loss(f.as_tensor(), &w).unwrap();
            assert!(value(&loss).is_finite());
            assert!(gradient(&loss, &f).iter().all(|g| g.is_finite()), "{dtype:?} {scale}");
        }
    }

    #[test]
    fn refuses_a_sphere_without_extent() {
        assert!(HypersphereParams::default().check(10).is_ok());
        for rho in [0.0, -1.0, f64::NAN] {
            assert!(HypersphereParams { rho }.check(10).is_err());
        }
    }
}
