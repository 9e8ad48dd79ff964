//! log-softmax, unit vectors, softened divergence, contrastive term.

use super::*;
use crate::methods::primitives::{Positives, contrastive, log_softmax, soft_kl, soften, unit};

#[test]
fn log_softmax_of_extreme_logits_is_exact_and_its_gradient_finite() {
    for dtype in [DType::F32, DType::F64] {
        let z = Tensor::new(&[[1e4, -1e4, 0.0], [5.0, 5.0, -1e4]], &Device::Cpu).unwrap();
        let z = Var::from_tensor(&z.to_dtype(dtype).unwrap()).unwrap();
        let ls = log_softmax(z.as_tensor()).unwrap();
        let half = -(2f64.ln());
        let expected = [0.0, -2e4, -1e4, half, half, -10005.0 + half];
        for (got, expected) in entries(&ls).iter().zip(expected) {
            close(*got, expected, 1e-6);
        }
        // d Σ ls / dz = 1 - C · softmax.
        let got = gradient(&ls.sum_all().unwrap(), &z);
        assert!(largest_difference(&got, &[-2.0, 1.0, 1.0, -0.5, -0.5, 1.0]) < 1e-6, "{got:?}");
    }
}

#[test]
fn log_softmax_has_its_gradient_where_the_maximum_is_tied() {
    let z = Tensor::new(&[[1.0, 1.0, 0.5], [2.0, -1.0, 2.0]], &Device::Cpu).unwrap();
    let weight = Tensor::new(&[[0.3, -1.0, 2.0], [0.1, 0.2, 0.7]], &Device::Cpu).unwrap();
    check_gradient(&z, |z| (log_softmax(z)? * &weight)?.sum_all());
}

#[test]
fn losses_are_computed_in_double_precision_and_return_gradients_in_the_dtype_of_their_argument() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let z = Var::from_tensor(&logits_of(0).unwrap().to_dtype(dtype).unwrap()).unwrap();
        let ls = log_softmax(z.as_tensor()).unwrap();
        assert_eq!(ls.dtype(), DType::F64);
        let store = ls.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(store.get(z.as_tensor()).unwrap().dtype(), dtype);
        let length = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        assert_eq!(unit(z.as_tensor()).unwrap().dtype(), length);
    }
    let integers = labels(&LABELS).unwrap().reshape((2, 3)).unwrap();
    assert!(log_softmax(&integers).is_err());
}

#[test]
fn unit_rows_have_length_one_and_the_right_gradient() {
    let x = logits_of(1).unwrap();
    for row in unit(&x).unwrap().to_vec2::<f64>().unwrap() {
        close(frobenius(&row), 1.0, 1e-14);
    }
    let weight = logits_of(2).unwrap();
    check_gradient(&x, |x| (unit(x)? * &weight)?.sum_all());
}

#[test]
fn a_zero_row_has_a_zero_direction_and_a_finite_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::zeros((2, 3), dtype, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let u = unit(x.as_tensor()).unwrap();
        assert_eq!(entries(&u), [0.0; 6]);
        // Below the bound the row is divided by a constant 1e-12.
        let slope = gradient(&u.sum_all().unwrap(), &x);
        assert!(slope.iter().all(|g| (g / 1e12 - 1.0).abs() < 1e-6), "{slope:?}");
    }
}

#[test]
fn soft_kl_has_the_printed_values() {
    let (student, teacher) = (logits_of(0).unwrap(), logits_of(1).unwrap());
    let expected = [(1.0, 0.401589898272), (3.0, 0.864576519993), (4.0, 0.926988015495)];
    for (t, expected) in expected {
        close(value(&soft_kl(&student, &teacher, t).unwrap()), expected, 1e-12);
    }
}

#[test]
fn soft_kl_teaches_the_student_only() {
    let (v, z) = variables(&all(2, logits_of).unwrap()).unwrap();
    let t = 3.0;
    let loss = soft_kl(&z[0], &z[1], t).unwrap();
    assert_eq!(frobenius(&gradient(&loss, &v[1])), 0.0);
    // Closed form: T/B · (softmax(s/T) - softmax(t/T)).
    let softmax = |z| entries(&soften(z, t).unwrap().exp().unwrap());
    let expected = softmax(&z[0]).into_iter().zip(softmax(&z[1])).map(|(s, p)| t / BATCH as f64 * (s - p));
    let difference = largest_difference(&gradient(&loss, &v[0]), &expected.collect::<Vec<_>>());
    assert!(difference < 1e-15, "{difference:e}");
}

/// In f32 the two logarithms would agree in all but their last digits.
#[test]
fn soft_kl_of_near_equals_keeps_its_digits_in_single_precision() {
    let student = logits_of(0).unwrap().to_dtype(DType::F32).unwrap();
    let teacher = (&student
        + filled(BATCH, CLASSES, |n, c| 1e-3 * (n * c).cos()).unwrap().to_dtype(DType::F32))
    .unwrap();
    let double = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let expected = value(&soft_kl(&double(&student), &double(&teacher), 4.0).unwrap());
    let got = value(&soft_kl(&student, &teacher, 4.0).unwrap());
    assert!(expected < 1e-6 && (got / expected - 1.0).abs() < 1e-5, "{got} instead of {expected}");
}

#[test]
fn soft_kl_refuses_to_broadcast() {
    let teacher = logits_of(1).unwrap().narrow(0, 0, 1).unwrap();
    assert!(soft_kl(&logits_of(0).unwrap(), &teacher, 1.0).is_err());
}

#[test]
fn contrastive_term_follows_its_definition() {
    let scores = filled(BATCH, BATCH, |n, m| 4.0 * (n * 1.7 + m * m * 0.9).sin()).unwrap();
    let y = [0, 0, 1, 0, 1, 2];
    let rows = scores.to_vec2::<f64>().unwrap();
    let (mut sum, mut valid) = (0.0, 0.0);
    for n in 0..BATCH {
        let others: Vec<usize> = (0..BATCH).filter(|m| *m != n).collect();
        let log_sum = others.iter().map(|m| rows[n][*m].exp()).sum::<f64>().ln();
        let same: Vec<usize> = others.into_iter().filter(|m| y[*m] == y[n]).collect();
        if !same.is_empty() {
            sum -= same.iter().map(|m| rows[n][*m] - log_sum).sum::<f64>() / same.len() as f64;
            valid += 1.0;
        }
    }
    assert_eq!(valid, 5.0);
    let positives = Positives::new(&labels(&y).unwrap(), &scores).unwrap();
    close(value(&contrastive(&scores, &positives).unwrap()), sum / valid, 1e-14);
    check_gradient(&scores, |s| contrastive(s, &positives));
}

#[test]
fn contrastive_term_without_positives_is_zero_with_zero_gradient() {
    for (y, size) in [(vec![0, 1, 2], 3), (vec![4], 1)] {
        for dtype in [DType::F32, DType::F64] {
            let scores = filled(size, size, |n, m| 5.0 * (n - m)).unwrap().to_dtype(dtype).unwrap();
            let scores = Var::from_tensor(&scores).unwrap();
            let positives = Positives::new(&labels(&y).unwrap(), scores.as_tensor()).unwrap();
            let loss = contrastive(scores.as_tensor(), &positives).unwrap();
            assert_eq!(value(&loss), 0.0);
            assert_eq!(gradient(&loss, &scores), vec![0.0; size * size]);
        }
    }
}

#[test]
fn positives_take_every_integer_dtype() {
    let scores = filled(BATCH, BATCH, |n, m| (n + 2.0 * m).cos()).unwrap();
    let y = labels(&LABELS).unwrap();
    let reference = value(&contrastive(&scores, &Positives::new(&y, &scores).unwrap()).unwrap());
    for dtype in [DType::U8, DType::U32, DType::I32] {
        let positives = Positives::new(&y.to_dtype(dtype).unwrap(), &scores).unwrap();
        assert_eq!(value(&contrastive(&scores, &positives).unwrap()), reference);
    }
}
