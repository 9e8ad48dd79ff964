//! The targets against printed reference values (float64, an independent implementation), conditions of optimality, and
//! cases worked out by hand.

use super::*;
use crate::methods::cross_entropy::cross_entropy;
use crate::methods::terms::mean;
use crate::methods::tests::*;

fn y() -> Tensor {
    labels(&LABELS).unwrap()
}

fn loss(z: &[Tensor], made_by: Target, weights: Option<&[f64]>) -> Result<Tensor> {
    let goal = target(z, &y(), made_by, weights)?;
    cross_entropy(&z[0], &y())? + mean(&rows(&z[0], &goal, &KdclParams::default())?)?
}

#[test]
fn minlogit_and_naive_have_the_printed_values() {
    let z = all(3, logits_of).unwrap();
    close(value(&loss(&z, Target::MinLogit, None).unwrap()), 4.510284742321, 1e-12);
    close(value(&loss(&z, Target::Naive, None).unwrap()), 4.381026003485, 1e-12);
}

#[test]
fn the_linear_target_of_two_networks_has_the_printed_values() {
    let z = all(2, logits_of).unwrap();
    close(value(&loss(&z, Target::Linear, None).unwrap()), 3.703335514538, 1e-12);
    let values: Vec<Vec<Vec<f64>>> = z.iter().map(|z| z.to_vec2().unwrap()).collect();
    let alpha = (0..BATCH).map(|n| linear::weights(&[&values[0][n], &values[1][n]], LABELS[n] as usize)[0]);
    assert_eq!(alpha.collect::<Vec<f64>>(), [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn general_weights_have_the_printed_values() {
    let z = all(3, logits_of).unwrap();
    let weights = general::weights(&general::error_products(&z, &y()).unwrap()).unwrap();
    let expected = [1.021991918236, -0.981622777585, 0.959630859349];
    assert!(largest_difference(&weights, &expected) < 1e-11, "{weights:?}");
    // The combination is that of the logits, and each network's own error matters.
    let goal = target(&z, &y(), Target::General, Some(&weights)).unwrap();
    let entry = |t: &Tensor| entries(t)[7];
    let by_hand: f64 = z.iter().zip(&weights).map(|(z, w)| entry(z) * w).sum();
    close(entry(&goal), by_hand, 1e-14);
}

#[test]
fn the_target_is_a_constant_and_the_slope_that_of_the_value() {
    for made_by in [Target::MinLogit, Target::Naive, Target::Linear, Target::Mean] {
        let (v, z) = variables(&all(3, logits_of).unwrap()).unwrap();
        let got = loss(&z, made_by, None).unwrap();
        let frozen = target(&z, &y(), made_by, None).unwrap().detach();
        let params = KdclParams::default();
        let of = |own: &Tensor| cross_entropy(own, &y())? + mean(&rows(own, &frozen, &params)?)?;
        let expected = gradient(&of(&z[0]).unwrap(), &v[0]);
        assert!(largest_difference(&gradient(&got, &v[0]), &expected) < 1e-15, "{made_by:?}");
        assert!(gradient(&got, &v[1]).iter().all(|g| *g == 0.0), "{made_by:?}");
        check_gradient(&z[0].detach(), of);
    }
}

#[test]
fn minlogit_is_the_least_above_the_label() {
    let z =
        [&[[1.0, 4.0, 0.0]], &[[2.0, 3.0, 5.0]]].map(|z| Tensor::new(z, &candle_core::Device::Cpu).unwrap());
    let goal = target(&z, &labels(&[1]).unwrap(), Target::MinLogit, None).unwrap();
    assert_eq!(entries(&goal), [-3.0, 0.0, -4.0]);
    let mean = target(&z, &labels(&[1]).unwrap(), Target::Mean, None).unwrap();
    assert_eq!(entries(&mean), [1.5, 3.5, 2.5]);
}

#[test]
fn of_equally_good_networks_the_first_is_followed() {
    let z = [&[[1.0, 4.0]], &[[11.0, 14.0]]].map(|z| Tensor::new(z, &candle_core::Device::Cpu).unwrap());
    let goal = target(&z, &labels(&[1]).unwrap(), Target::Naive, None).unwrap();
    assert_eq!(entries(&goal), [1.0, 4.0]);
}

/// Cross-entropy of a combination.
fn ce(rows: &[&[f64]], weights: &[f64], class: usize) -> f64 {
    let z: Vec<f64> = (0..rows[0].len()).map(|k| linear::weighted(rows, weights, k)).collect();
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + z.iter().map(|x| (x - top).exp()).sum::<f64>().ln() - z[class]
}

#[test]
fn no_other_convex_combination_is_better_than_the_linear_one() {
    let mut inner = 0;
    for sample in 0..40 {
        let networks = 2 + sample % 4;
        let scale = [0.3, 2.0, 20.0][sample % 3];
        let entry = |i: usize, k: usize| scale * (0.7 * (sample * 31 + i * 7 + k * k * 3) as f64).sin();
        let rows: Vec<Vec<f64>> = (0..networks).map(|i| (0..6).map(|k| entry(i, k)).collect()).collect();
        let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
        let weights = linear::weights(&rows, 2);
        close(weights.iter().sum(), 1.0, 1e-12);
        assert!(weights.iter().all(|w| *w >= 0.0), "{weights:?}");
        inner += usize::from(weights.iter().filter(|w| **w > 0.0).count() > 1);
        let least = ce(&rows, &weights, 2);
        for trial in 0..200 {
            let raw: Vec<f64> = (0..networks).map(|i| ((trial * 13 + i * 29) % 17) as f64 + 0.01).collect();
            let total: f64 = raw.iter().sum();
            let other: Vec<f64> = raw.iter().map(|w| w / total).collect();
            for step in [1.0, 1e-2, 1e-4] {
                let moved: Vec<f64> = weights.iter().zip(&other).map(|(w, o)| w + step * (o - w)).collect();
                assert!(ce(&rows, &moved, 2) >= least - 1e-12 * scale.max(1.0), "sample {sample}");
            }
        }
    }
    assert!(inner > 10, "only {inner} combinations of more than one network");
}

#[test]
fn inside_the_simplex_the_slopes_are_equal() {
    // Symmetric networks: each rules out one of the wrong classes, and the best is to hear both alike.
    let rows: [&[f64]; 2] = [&[2.0, 0.0, 3.0], &[2.0, 3.0, 0.0]];
    let weights = linear::weights(&rows, 0);
    close(weights[0], 0.5, 1e-7);
    close(ce(&rows, &weights, 0), ce(&rows, &[0.5, 0.5], 0), 1e-14);
}

#[test]
fn networks_that_err_alike_share_their_weight() {
    let z = all(2, logits_of).unwrap();
    let twice = [z[0].clone(), z[0].clone(), z[1].clone()];
    let weights = general::weights(&general::error_products(&twice, &y()).unwrap()).unwrap();
    let pair = general::weights(&general::error_products(&z, &y()).unwrap()).unwrap();
    close(weights[0], weights[1], 1e-6);
    close(weights[0] + weights[1], pair[0], 1e-5);
    assert_eq!(general::weights(&[vec![0.0; 2], vec![0.0; 2]]).unwrap(), [0.5, 0.5]);
    assert_eq!(general::weights(&[vec![0.3]]).unwrap(), [1.0]);
    assert!(general::weights(&[vec![f64::NAN]]).is_err());
    assert!(general::weights(&[vec![1.0, 2.0]]).is_err() && general::weights(&[]).is_err());
}

#[test]
fn stays_finite() {
    for made_by in [Target::MinLogit, Target::Naive, Target::Linear, Target::Mean, Target::General] {
        let params = KdclParams { target: made_by, ..KdclParams::default() };
        check_finite(|s, t, y| {
            let networks = [s.clone(), t.clone(), ((s + t)? * 0.5)?];
            let weights = general::weights(&general::error_products(&networks, y)?)?;
            let weights = (made_by == Target::General).then_some(weights.as_slice());
            rows(s, &target(&networks, y, params.target, weights)?, &params)
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let z = all(2, logits_of).unwrap();
    assert!(target(&[], &y(), Target::Mean, None).is_err());
    assert!(target(&z, &y(), Target::General, None).is_err());
    assert!(target(&z, &y(), Target::General, Some(&[1.0])).is_err());
    let narrow = [z[0].clone(), z[1].narrow(1, 0, 4).unwrap()];
    assert!(target(&narrow, &y(), Target::MinLogit, None).is_err());
    let wrong = labels(&[0, 0, 1, 1, 2, 5]).unwrap();
    assert!(target(&z, &wrong, Target::Linear, None).is_err());
    assert!(KdclParams { t: 0.0, ..KdclParams::default() }.check(10).is_err());
    assert!(KdclParams::default().check(2).is_ok());
}
