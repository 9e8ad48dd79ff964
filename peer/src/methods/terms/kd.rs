//! Knowledge distillation (Hinton et al., 2015, section 2): the softened answers of a teacher.
//!
//! `KL_T(z_s ‖ z_t) = T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))` for each sample. Hinton's T² keeps the gradient's size when T
//! changes. A student's whole loss is `w_ce·CE + w_kd·mean(term)`, published with 0.1, 0.9 and T = 4. The same term makes
//!
//! * deep mutual learning (Zhang et al., CVPR 2018): from each of the others at T = 1, with weight 1/(M-1);
//! * born-again networks (Furlanello et al., ICML 2018): from the generation before at T = 1, with weights 1-α and α;
//! * tolerant students (Yang et al., AAAI 2019, equation 2): likewise, from a teacher trained with [`super::tsd`].

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, positive};
use crate::methods::primitives::soft_kl_each;

/// Hyper-parameters of knowledge distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KdParams {
    /// Temperature.
    pub t: f64,
}

impl Default for KdParams {
    fn default() -> Self {
        Self { t: 4.0 }
    }
}

impl KdParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A temperature that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)
    }
}

/// `KL_T(z_s ‖ z_t)` of each sample, `[B]`; both `[B, C]`, the teacher a constant.
///
/// # Errors
/// If the shapes differ.
pub fn rows(student: &Tensor, teacher: &Tensor, params: &KdParams) -> Result<Tensor> {
    soft_kl_each(student, teacher, params.t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;
    use crate::methods::{DmlParams, dml};

    fn term(student: &Tensor, teacher: &Tensor, t: f64) -> Result<Tensor> {
        mean(&rows(student, teacher, &KdParams { t })?)
    }

    #[test]
    fn has_the_printed_values_and_the_slope_of_its_value() {
        let (s, t) = (logits_of(0).unwrap(), logits_of(1).unwrap());
        for (temperature, expected) in [(1.0, 0.401589898272), (3.0, 0.864576519993), (4.0, 0.926988015495)] {
            close(value(&term(&s, &t, temperature).unwrap()), expected, 1e-12);
            check_gradient(&s, |s| term(s, &t, temperature));
        }
        let ce = value(&cross_entropy(&s, &labels(&LABELS).unwrap()).unwrap());
        close(0.1 * ce + 0.9 * value(&term(&s, &t, 4.0).unwrap()), 1.164651143528, 1e-12);
        // Born-again with λ = 0.6: the tolerant student.
        close(0.6 * ce + 0.4 * value(&term(&s, &t, 1.0).unwrap()), 2.142807536801, 1e-12);
    }

    #[test]
    fn between_two_it_is_mutual_learning() {
        let z = all(2, logits_of).unwrap();
        let mutual = dml::mimicry(1, &z, &DmlParams::default()).unwrap();
        close(value(&term(&z[1], &z[0], 1.0).unwrap()), value(&mutual), 1e-14);
    }

    #[test]
    fn the_teacher_gets_no_gradient() {
        let (v, z) = variables(&all(2, logits_of).unwrap()).unwrap();
        assert_eq!(gradient(&term(&z[0], &z[1], 4.0).unwrap(), &v[1]), vec![0.0; BATCH * CLASSES]);
    }

    #[test]
    fn stays_finite() {
        for t in [0.05, 1.0, 4.0] {
            check_finite(|s, t_logits, _| rows(s, t_logits, &KdParams { t }));
        }
    }

    #[test]
    fn refuses_no_temperature_and_other_classes() {
        assert!(KdParams::default().check(2).is_ok());
        for t in [0.0, -4.0, f64::NAN, f64::INFINITY] {
            assert!(KdParams { t }.check(10).is_err());
        }
        let narrow = logits_of(0).unwrap().narrow(1, 0, 4).unwrap();
        assert!(term(&logits_of(0).unwrap(), &narrow, 1.0).is_err());
    }
}
