//! Feature-map-level online adversarial distillation (Chung et al., ICML 2020): networks learn to make feature maps that a
//! discriminator cannot tell from those of another network. A baseline for comparison.
//!
//! With `D_i` the discriminator of network i, which looks at maps behind a transfer layer, and j the teacher of i:
//!
//! ```text
//! L_Di     = mean (1 - D_i(sg F_j))² + mean D_i(sg F_i)²     the other's maps pass as real, the own as made up
//! L_Gi     = mean (1 - D_i(F_i))²                            D_i constant
//! L_logit  = CE(z_i, y) + KL_T(z_i ‖ z_j)                    super::kd at T = 3
//! ```
//!
//! The terms take what a discriminator said, numbers between 0 and 1. Whoever asks it passes constant maps for `L_Di`, maps
//! with their graph for `L_Gi`, and applies each gradient to one side only: that of `L_Gi` to the network, not to `D_i`.

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, positive};
use super::kd::{self, KdParams};
use crate::methods::primitives::widen;

/// Hyper-parameters of adversarial distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AfdParams {
    /// Temperature of the logits' term.
    pub t: f64,
}

impl Default for AfdParams {
    fn default() -> Self {
        Self { t: 3.0 }
    }
}

impl AfdParams {
    /// Whether the terms can be used, with any number of classes.
    ///
    /// # Errors
    /// A temperature that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)
    }
}

/// The teacher of network `me` among `cohort`: its cyclic predecessor; none for a lone network.
pub fn teacher_of(me: usize, cohort: usize) -> Option<usize> {
    (cohort > 1 && me < cohort).then(|| (me + cohort - 1) % cohort)
}

/// `L_Di` of each sample, `[B]`: what the discriminator says of the other's and of the own maps, `[B]` or `[B, 1]` each.
///
/// # Errors
/// Not one number for each sample, or different numbers of samples.
pub fn discriminator_rows(of_other: &Tensor, of_own: &Tensor) -> Result<Tensor> {
    let (real, made_up) = (one_each(of_other)?, one_each(of_own)?);
    if real.dims() != made_up.dims() {
        let (a, b) = (real.dims(), made_up.dims());
        candle_core::bail!("a discriminator said {a:?} of the other's maps and {b:?} of the own");
    }
    real.affine(-1.0, 1.0)?.sqr()? + made_up.sqr()?
}

/// `L_Gi` of each sample, `[B]`: what the discriminator says of the own maps, `[B]` or `[B, 1]`.
///
/// # Errors
/// Not one number for each sample.
pub fn generator_rows(of_own: &Tensor) -> Result<Tensor> {
    one_each(of_own)?.affine(-1.0, 1.0)?.sqr()
}

/// The divergence in `L_logit` of each sample, `[B]`; both `[B, C]`, the teacher a constant.
///
/// # Errors
/// If the shapes differ.
pub fn logit_rows(student: &Tensor, teacher: &Tensor, params: &AfdParams) -> Result<Tensor> {
    kd::rows(student, teacher, &KdParams { t: params.t })
}

fn one_each(said: &Tensor) -> Result<Tensor> {
    let samples = said.dims().first().copied().unwrap_or(0);
    if said.elem_count() != samples {
        candle_core::bail!("a discriminator says one number of each sample, not {:?}", said.dims());
    }
    widen(said)?.flatten_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    fn said(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn has_the_values_worked_out_by_hand_and_their_slopes() {
        let (other, own) = (said(&[0.9, 0.5]), said(&[0.2, 1.0]));
        let d = |a: &Tensor, b: &Tensor| discriminator_rows(a, b);
        assert!(largest_difference(&entries(&d(&other, &own).unwrap()), &[0.05, 1.25]) < 1e-15);
        assert!(largest_difference(&entries(&generator_rows(&own).unwrap()), &[0.64, 0.0]) < 1e-15);
        check_gradient(&other, |other| mean(&d(other, &own)?));
        check_gradient(&own, |own| mean(&d(&other, own)?));
        check_gradient(&own, |own| mean(&generator_rows(own)?));
        let kl =
            mean(&logit_rows(&logits_of(0).unwrap(), &logits_of(1).unwrap(), &AfdParams::default()).unwrap());
        close(value(&kl.unwrap()), 0.864576519993, 1e-12);
    }

    #[test]
    fn who_says_nothing_or_too_much_is_refused() {
        let flat = Tensor::new(&[0.5f32, 0.5], &Device::Cpu).unwrap();
        assert_eq!(discriminator_rows(&flat, &said(&[0.1, 0.2])).unwrap().dtype(), DType::F64);
        assert!(discriminator_rows(&flat, &said(&[0.1])).is_err());
        assert!(generator_rows(&logits_of(0).unwrap()).is_err());
        assert!(AfdParams { t: 0.0 }.check(10).is_err() && AfdParams::default().check(2).is_ok());
    }

    #[test]
    fn teachers_go_round() {
        assert_eq!([0, 1].map(|me| teacher_of(me, 2)), [Some(1), Some(0)]);
        assert_eq!([0, 1, 2].map(|me| teacher_of(me, 3)), [Some(2), Some(0), Some(1)]);
        assert_eq!((teacher_of(0, 1), teacher_of(3, 3)), (None, None));
    }
}
