//! Feature-normalised knowledge distillation (Xu et al., ECCV 2020, equations 10 to 12), and its self form: the norm of a
//! feature takes the place of the temperature, sample by sample.
//!
//! ```text
//! ρ_n  = min(‖f_n‖, τ)   "clip", the authors' code       ρ_n = τ   "paper", equation 10
//! z^fn = W·(ρ_n·f_n / sqrt(Σ_d f_nd² + 1e-10)) + b
//! term = H(softmax(z_t^fn), z_s^fn)
//! ```
//!
//! and the whole loss is `CE(z_s, y) + λ²·mean(term)` with the plain logits `z_s`, λ² = 9. There is no factor T². Student and
//! teacher divide by their own norms; a teacher says `z^fn` and neither weights nor norms. The gradient flows through
//! the student's norm, but not through a radius that is clipped. Of a feature of length 0 the clipped form has neither
//! value nor gradient. In the self form the teacher is the network's own generation before.

use candle_core::{D, Result, Tensor};

use super::checks::{ParamsError, positive};
use super::hypersphere::classify;
use crate::methods::primitives::{cross_entropy_rows, length, log_softmax, widen};

/// Added to the squared length that features are divided by, as in the authors' code.
const SQUARED_LENGTH_SHIFT: f64 = 1e-10;

/// Which length features are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Longer ones are cut to τ, shorter ones stay: the authors' code.
    #[default]
    Clip,
    /// All get τ: the paper.
    Paper,
}

/// Hyper-parameters of feature-normalised distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KdFnParams {
    /// τ, a length of features.
    pub tau: f64,
    /// What τ is.
    pub form: Form,
}

impl Default for KdFnParams {
    fn default() -> Self {
        Self { tau: 2.0, form: Form::Clip }
    }
}

impl KdFnParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A length that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("tau", self.tau)
    }
}

/// `z^fn` `[B, C]` in the dtype of losses, which teachers publish and students compare: features `[B, D]`, the
/// classifier's weight `[C, D]` and bias `[C]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn logits(
    features: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &KdFnParams,
) -> Result<Tensor> {
    let features = widen(features)?;
    let root = (features.sqr()?.sum_keepdim(D::Minus1)? + SQUARED_LENGTH_SHIFT)?.sqrt()?;
    let scale = match params.form {
        Form::Paper => (root.recip()? * params.tau)?,
        Form::Clip => {
            let length = length(&features)?;
            let kept = length.le(params.tau)?.to_dtype(length.dtype())?;
            let clipped = kept.affine(-params.tau, params.tau)?;
            (((length * kept)? + clipped)? / root)?
        }
    };
    classify(&features.broadcast_mul(&scale)?, weight, bias)
}

/// `H(softmax(z_t^fn), z_s^fn)` of each sample, `[B]`; both `[B, C]` as [`logits`] makes them, the teacher a constant.
///
/// # Errors
/// If the shapes differ.
pub fn rows(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    cross_entropy_rows(&log_softmax(&teacher.detach())?.exp()?, student)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    const PAPER: KdFnParams = KdFnParams { tau: 2.0, form: Form::Paper };

    fn loss(f: &Tensor, w: &Tensor, params: &KdFnParams) -> Result<Tensor> {
        let teacher = logits(&feature_of(1)?, &classifier()?, None, params)?;
        let ce = cross_entropy(&f.matmul(&w.t()?)?, &labels(&LABELS)?)?;
        ce + (mean(&rows(&logits(f, w, None, params)?, &teacher)?)? * 9.0)?
    }

    #[test]
    fn has_the_printed_values_and_the_slopes_of_its_values() {
        let (f, w) = (feature_of(0).unwrap(), classifier().unwrap());
        for (params, expected) in [(KdFnParams::default(), 7.494604347222), (PAPER, 7.340806944656)] {
            close(value(&loss(&f, &w, &params).unwrap()), expected, 1e-12);
            check_gradient(&f, |f| loss(f, &w, &params));
            check_gradient(&w, |w| loss(&f, w, &params));
        }
        let (v, leaf) = variables(&[f]).unwrap();
        let clip = loss(&leaf[0], &w, &KdFnParams::default()).unwrap();
        close(frobenius(&gradient(&clip, &v[0])), 0.597175041972, 1e-11);
    }

    #[test]
    fn only_long_features_are_cut() {
        let f = Tensor::new(&[[0.3, 0.4], [6.0, 8.0]], &Device::Cpu).unwrap();
        let eye = Tensor::eye(2, DType::F64, &Device::Cpu).unwrap();
        let bias = Tensor::new(&[1.0, -1.0], &Device::Cpu).unwrap();
        let of = |form| entries(&logits(&f, &eye, Some(&bias), &KdFnParams { tau: 2.0, form }).unwrap());
        assert!(largest_difference(&of(Form::Clip), &[1.3, -0.6, 2.2, 0.6]) < 1e-9);
        assert!(largest_difference(&of(Form::Paper), &[2.2, 0.6, 2.2, 0.6]) < 1e-9);
    }

    #[test]
    fn stays_finite_for_features_of_any_length() {
        for (dtype, scale) in [(DType::F32, 0.0), (DType::F64, 0.0), (DType::F32, 1e4), (DType::F64, 1e-14)] {
            for params in [KdFnParams::default(), PAPER] {
                let f = (feature_of(0).unwrap() * scale).unwrap().to_dtype(dtype).unwrap();
                let f = Var::from_tensor(&f).unwrap();
                let w = classifier().unwrap().to_dtype(dtype).unwrap();
                let z = logits(f.as_tensor(), &w, None, &params).unwrap();
                let term = mean(&rows(&z, &logits_of(0).unwrap()).unwrap()).unwrap();
                assert!(value(&term).is_finite());
                let slopes = gradient(&term, &f);
                assert!(slopes.iter().all(|g| g.is_finite()), "{dtype:?} {scale} {params:?}");
                let silent = params.form == Form::Clip && scale == 0.0;
                assert_eq!(slopes.iter().all(|g| *g == 0.0), silent, "{dtype:?} {scale} {params:?}");
            }
        }
    }

    #[test]
    fn stays_finite_for_any_logits() {
        check_finite(|s, t, _| rows(s, t));
    }

    #[test]
    fn refuses_no_length() {
        assert!(KdFnParams::default().check(2).is_ok());
        for tau in [0.0, -2.0, f64::NAN] {
            assert!(KdFnParams { tau, ..PAPER }.check(10).is_err());
        }
    }
}
