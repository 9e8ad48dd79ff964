//! Decoupled knowledge distillation (Zhao et al., CVPR 2022, equations 7 and 8): what a teacher says of the target class
//! and what it says of the others are weighed apart.
//!
//! With target class t at temperature T, `b = (p_t, 1 - p_t)` and `p̂` the softmax over the other C-1 classes:
//!
//! ```text
//! TCKD = Σ_2 b^T·ln(b^T / b^S)      NCKD = Σ_{c≠t} p̂^T·ln(p̂^T / p̂^S)
//! term = warm_up·T²·(α·TCKD + β·NCKD)
//! ```
//!
//! and the whole loss is `CE + mean(term)`. `KL_T / T² = TCKD + (1 - p_t^T)·NCKD` is KD: there a certain teacher silences
//! what it knows of the other classes. All logarithms are taken from a log-softmax: `ln(1 - p_t)` is a
//! log-sum-exp over the others. The authors' code takes the logarithm of a sum of probabilities, which is NaN for confident
//! logits in single precision. With two classes NCKD is 0.

use candle_core::{D, Result, Tensor};

use super::checks::{ParamsError, positive, weight};
use crate::methods::primitives::{LEFT_OUT, check_same_shape, divergence, one_hot, soften};

/// Hyper-parameters of decoupled distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DkdParams {
    /// Weight of the target class against the rest (TCKD).
    pub alpha: f64,
    /// Weight of the other classes among themselves (NCKD).
    pub beta: f64,
    /// Temperature.
    pub t: f64,
}

impl Default for DkdParams {
    fn default() -> Self {
        Self { alpha: 1.0, beta: 8.0, t: 4.0 }
    }
}

impl DkdParams {
    /// Whether the term can be used with that many classes.
    ///
    /// # Errors
    /// Fewer than three classes, a temperature that is not greater than 0, a negative weight.
    pub fn check(&self, classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)?;
        weight("alpha", self.alpha)?;
        weight("beta", self.beta)?;
        if classes < 3 { Err(ParamsError::NothingToDecouple { classes }) } else { Ok(()) }
    }
}

/// The two parts of each sample, `[B]`, without weights and without T².
#[derive(Debug, Clone)]
pub struct Parts {
    /// The target class against the rest.
    pub tckd: Tensor,
    /// The other classes among themselves.
    pub nckd: Tensor,
}

/// `min(epoch / epochs, 1)`: the factor of the published warm-up, where the first epoch is 1. No warm-up with 0 `epochs`.
pub fn warm_up(epoch: u64, epochs: u64) -> f64 {
    if epoch >= epochs { 1.0 } else { epoch as f64 / epochs as f64 }
}

/// The term of each sample, `[B]`: logits `[B, C]`, labels `[B]`, the factor [`warm_up`] or 1. The teacher is a constant.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn rows(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    params: &DkdParams,
    warm_up: f64,
) -> Result<Tensor> {
    let Parts { tckd, nckd } = parts(student, teacher, labels, params.t)?;
    let factor = warm_up * params.t * params.t;
    (tckd * (factor * params.alpha))? + (nckd * (factor * params.beta))?
}

/// TCKD and NCKD of each sample; arguments as for [`rows`].
///
/// # Errors
/// As [`rows`].
pub fn parts(student: &Tensor, teacher: &Tensor, labels: &Tensor, temperature: f64) -> Result<Parts> {
    check_same_shape(student, teacher)?;
    let target = one_hot(labels, student)?;
    let student = Decoupled::new(student, &target, temperature)?;
    let teacher = Decoupled::new(&teacher.detach().to_device(student.own.device())?, &target, temperature)?;
    let own = divergence_of(&student.own, &teacher.own)?;
    let rest = divergence_of(&student.rest, &teacher.rest)?;
    Ok(Parts { tckd: (own + rest)?, nckd: divergence(&student.among, &teacher.among)? })
}

/// Logarithms of a softened distribution, taken apart at the target class.
struct Decoupled {
    /// `ln p_t` `[B]`.
    own: Tensor,
    /// `ln(1 - p_t)` `[B]`.
    rest: Tensor,
    /// `ln p̂` `[B, C]`; at the target so low that its exponential is 0.
    among: Tensor,
}

impl Decoupled {
    fn new(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Self> {
        let ls = soften(logits, temperature)?;
        let own = (&ls * target)?.sum(D::Minus1)?;
        let others = (ls + (target * LEFT_OUT)?)?;
        // The maximum is a constant as in a log-softmax, and for the same reasons.
        let top = others.max_keepdim(D::Minus1)?.detach();
        let shifted = others.broadcast_sub(&top)?;
        let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let among = shifted.broadcast_sub(&log_sum)?;
        Ok(Self { own, rest: (log_sum + top)?.squeeze(D::Minus1)?, among })
    }
}

/// `p^T·ln(p^T / p^S)` of single probabilities by their logarithms.
fn divergence_of(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    teacher.exp()? * (teacher - student)?
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::{kd, mean};
    use crate::methods::tests::*;

    #[test]
    fn has_the_printed_values_and_the_slope_of_its_value() {
        let (s, t, y) = (logits_of(0).unwrap(), logits_of(1).unwrap(), labels(&LABELS).unwrap());
        let parts = parts(&s, &t, &y, 4.0).unwrap();
        close(16.0 * value(&mean(&parts.tckd).unwrap()), 0.170545013613, 1e-12);
        close(16.0 * value(&mean(&parts.nckd).unwrap()), 0.975565287773, 1e-12);
        let (v, z) = variables(std::slice::from_ref(&s)).unwrap();
        let params = DkdParams::default();
        let term = mean(&rows(&z[0], &t, &y, &params, 1.0).unwrap()).unwrap();
        close(value(&term), 7.975067315797, 1e-12);
        close(frobenius(&gradient(&term, &v[0])), 2.377424286926, 1e-11);
        check_gradient(&s, |s| mean(&rows(s, &t, &y, &params, 0.35)?));
        let ce = value(&cross_entropy(&s, &y).unwrap());
        let half = mean(&rows(&s, &t, &y, &params, 0.5).unwrap()).unwrap();
        close(ce + 2.0 * value(&half), ce + 7.975067315797, 1e-12);
    }

    #[test]
    fn weighed_as_in_kd_the_parts_are_kd() {
        let (s, t, y) = (logits_of(2).unwrap(), logits_of(1).unwrap(), labels(&LABELS).unwrap());
        let parts = parts(&s, &t, &y, 2.0).unwrap();
        let target = one_hot(&y, &t).unwrap();
        let p = (soften(&t, 2.0).unwrap().exp().unwrap() * target).unwrap().sum(1).unwrap();
        let rest = p.affine(-1.0, 1.0).unwrap();
        let sum = ((parts.tckd + (rest * parts.nckd).unwrap()).unwrap() * 4.0).unwrap();
        let expected = kd::rows(&s, &t, &kd::KdParams { t: 2.0 }).unwrap();
        assert!(largest_difference(&entries(&sum), &entries(&expected)) < 1e-14);
    }

    #[test]
    fn among_two_classes_nothing_is_left_to_decouple() {
        let narrow = |i| logits_of(i).unwrap().narrow(1, 0, 2).unwrap();
        let y = labels(&[0, 1, 0, 1, 0, 1]).unwrap();
        let parts = parts(&narrow(0), &narrow(1), &y, 4.0).unwrap();
        assert_eq!(entries(&parts.nckd), [0.0; BATCH]);
        let kl = kd::rows(&narrow(0), &narrow(1), &kd::KdParams { t: 4.0 }).unwrap();
        assert!(largest_difference(&entries(&(parts.tckd * 16.0).unwrap()), &entries(&kl)) < 1e-14);
        assert_eq!(DkdParams::default().check(2), Err(ParamsError::NothingToDecouple { classes: 2 }));
    }

    #[test]
    fn a_certain_teacher_still_tells_the_other_classes_apart() {
        // Where the probability of all other classes is 0 to the last bit, they keep their order.
        let t = Tensor::new(&[[1000.0, 2.0, 1.0]], &Device::Cpu).unwrap();
        let s = Tensor::new(&[[1000.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        let y = labels(&[0]).unwrap();
        let nckd = value(&mean(&parts(&s, &t, &y, 1.0).unwrap().nckd).unwrap());
        let p = 1.0 / (1.0 + (-1f64).exp());
        close(nckd, p * (2.0 * p).ln() + (1.0 - p) * (2.0 * (1.0 - p)).ln(), 1e-9);
    }

    #[test]
    fn stays_finite() {
        for t in [1.0, 4.0] {
            let params = DkdParams { t, ..DkdParams::default() };
            check_finite(|s, teacher, y| rows(s, teacher, y, &params, 1.0));
        }
        let one = Tensor::new(&[[3f32]], &Device::Cpu).unwrap();
        let lone = rows(&one, &one, &labels(&[0]).unwrap(), &DkdParams::default(), 1.0).unwrap();
        assert_eq!((lone.dtype(), entries(&lone)), (DType::F64, vec![0.0]));
    }

    #[test]
    fn the_first_epoch_of_a_warm_up_is_not_without_effect() {
        let factors = [warm_up(1, 20), warm_up(3, 20), warm_up(20, 20), warm_up(21, 20), warm_up(1, 0)];
        assert_eq!(factors, [0.05, 0.15, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        let params = DkdParams::default();
        assert!(params.check(3).is_ok());
        assert!(DkdParams { t: 0.0, ..params }.check(10).is_err());
        assert!(DkdParams { alpha: -1.0, ..params }.check(10).is_err());
        assert!(DkdParams { beta: -1.0, ..params }.check(10).is_err());
        assert!(DkdParams { beta: f64::INFINITY, ..params }.check(10).is_err());
    }
}
