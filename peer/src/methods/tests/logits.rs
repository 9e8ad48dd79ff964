//! Cross-entropy, Deep Mutual Learning, ensemble distillation.

use super::*;
use crate::methods::cross_entropy::cross_entropy;
use crate::methods::logit_kd::{self, Students};
use crate::methods::primitives::soft_kl;
use crate::methods::{DmlParams, Reduce, Target, dml};

#[test]
fn cross_entropy_has_the_printed_value_for_every_integer_dtype() {
    let y = labels(&LABELS).unwrap();
    for dtype in [DType::I64, DType::I32, DType::U32, DType::U8] {
        let loss = cross_entropy(&logits_of(0).unwrap(), &y.to_dtype(dtype).unwrap()).unwrap();
        close(value(&loss), 3.303619295820, 1e-12);
    }
    check_gradient(&logits_of(0).unwrap(), |z| cross_entropy(z, &y));
}

#[test]
fn cross_entropy_refuses_labels_that_are_no_class() {
    for wrong in [CLASSES as i64, -1] {
        let y = labels(&[0, 0, 1, 1, 2, wrong]).unwrap();
        assert!(cross_entropy(&logits_of(0).unwrap(), &y).is_err(), "{wrong}");
    }
    assert!(cross_entropy(&logits_of(0).unwrap(), &labels(&[0, 1]).unwrap()).is_err());
}

#[test]
fn mutual_learning_has_the_printed_values() {
    let z = all(3, logits_of).unwrap();
    let ce = value(&cross_entropy(&z[0], &labels(&LABELS).unwrap()).unwrap());
    for (reduce, expected) in [(Reduce::Mean, 4.373829795386), (Reduce::Sum, 5.444040294951)] {
        let params = DmlParams { reduce, ..DmlParams::default() };
        close(ce + value(&dml::mimicry(0, &z, &params).unwrap()), expected, 1e-12);
    }
}

#[test]
fn a_lone_network_has_nobody_to_mimic() {
    let z = all(1, logits_of).unwrap();
    for target in [Target::Each, Target::Ensemble] {
        let params = DmlParams { target, ..DmlParams::default() };
        assert_eq!(value(&dml::mimicry(0, &z, &params).unwrap()), 0.0);
    }
    assert!(dml::mimicry(1, &z, &DmlParams::default()).is_err());
}

#[test]
fn ensemble_target_is_the_mean_of_the_softened_distributions() {
    let z = all(3, logits_of).unwrap();
    let params = DmlParams { t: 2.0, target: Target::Ensemble, ..DmlParams::default() };
    let softmax = |z: &Tensor| candle_nn::ops::softmax(&(z / 2.0).unwrap(), 1).unwrap();
    let mean = ((softmax(&z[0]) + softmax(&z[2])).unwrap() / 2.0).unwrap();
    // Logits whose softmax at temperature 2 is that mean.
    let teacher = (mean.log().unwrap() * 2.0).unwrap();
    let expected = value(&soft_kl(&z[1], &teacher, 2.0).unwrap());
    close(value(&dml::mimicry(1, &z, &params).unwrap()), expected, 1e-13);
    check_gradient(&z[1], |own| dml::mimicry(1, &[z[0].clone(), own.clone(), z[2].clone()], &params));
}

#[test]
fn ensemble_of_two_is_the_other_network() {
    let z = all(2, logits_of).unwrap();
    let ensemble = DmlParams { target: Target::Ensemble, ..DmlParams::default() };
    let each = value(&dml::mimicry(0, &z, &DmlParams::default()).unwrap());
    close(value(&dml::mimicry(0, &z, &ensemble).unwrap()), each, 1e-14);
}

#[test]
fn logit_distillation_has_the_printed_value() {
    let z = all(3, logits_of).unwrap();
    close(value(&logit_kd::ensemble_kl(2, &z, 3.0).unwrap()), 0.779922887492, 1e-12);
}

#[test]
fn the_ensemble_is_a_constant_although_the_student_is_in_it() {
    let (v, z) = variables(&all(3, logits_of).unwrap()).unwrap();
    let constant = (((&z[0] + &z[1]).unwrap() + &z[2]).unwrap() / 3.0).unwrap().detach();
    let expected = gradient(&soft_kl(&z[2], &constant, 3.0).unwrap(), &v[2]);
    let loss = logit_kd::ensemble_kl(2, &z, 3.0).unwrap();
    assert!(largest_difference(&gradient(&loss, &v[2]), &expected) < 1e-15);
    assert_eq!(frobenius(&gradient(&loss, &v[0])), 0.0);
}

#[test]
fn the_official_rule_teaches_both_of_two_and_else_only_the_last() {
    let learners = |students: Students, m| (0..m).map(|me| students.include(me, m)).collect::<Vec<_>>();
    assert_eq!(learners(Students::Last, 1), [false]);
    assert_eq!(learners(Students::Last, 2), [true, true]);
    assert_eq!(learners(Students::Last, 3), [false, false, true]);
    assert_eq!(learners(Students::Last, 4), [false, false, false, true]);
    assert_eq!(learners(Students::All, 3), [true; 3]);
    assert_eq!(learners(Students::All, 1), [false]);
    assert_eq!(learners(Students::Off, 3), [false; 3]);
}

#[test]
fn extreme_logits_stay_finite_in_single_precision() {
    let sign = |i: usize| filled(BATCH, CLASSES, |n, c| 1e4 * ((1 + i) as f64 * 1.3 + n + 2.3 * c).sin());
    let z = all(3, |i| sign(i)?.to_dtype(DType::F32)).unwrap();
    let (v, z) = variables(&z).unwrap();
    let y = labels(&LABELS).unwrap();
    for target in [Target::Each, Target::Ensemble] {
        let params = DmlParams { target, ..DmlParams::default() };
        let kd = logit_kd::joint(&z, Students::All, 3.0).unwrap();
        let loss = (dml::joint(&z, &y, &params).unwrap() + kd).unwrap();
        assert!(value(&loss).is_finite() && value(&loss) > 0.0);
        for v in &v {
            let gradient = gradient(&loss, v);
            assert!(gradient.iter().all(|g| g.is_finite()) && frobenius(&gradient) > 0.0);
        }
    }
}
