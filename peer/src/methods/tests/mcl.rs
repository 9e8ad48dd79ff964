//! The four contrastive terms.

use super::*;
use crate::methods::MclParams;
use crate::methods::mcl::Scores;
use crate::methods::primitives::{Positives, contrastive};

fn joint_terms(v: &[Tensor], y: &[i64]) -> [f64; 4] {
    let scores = Scores::joint(v, &labels(y).unwrap(), &MclParams::default()).unwrap();
    let terms = [scores.vcl(), scores.soft_vcl(), scores.icl(), scores.soft_icl()];
    terms.map(|term| value(&term.unwrap()))
}

fn weighted(scores: &Scores, params: &MclParams) -> Result<Tensor> {
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (_, weight, term) in scores.terms(params)? {
        total = (total + (term * weight)?)?;
    }
    Ok(total)
}

#[test]
fn three_networks_have_the_printed_values() {
    let got = joint_terms(&all(3, embedding_of).unwrap(), &LABELS);
    let expected = [4.381690716664, 1.509697966810, 46.280027788629, 202.653405051187];
    for (got, expected) in got.into_iter().zip(expected) {
        close(got, expected, 1e-12);
    }
}

#[test]
fn anchors_without_a_partner_are_skipped() {
    let [vcl, _, icl, _] = joint_terms(&all(2, embedding_of).unwrap(), &[0, 0, 1, 1, 2, 3]);
    close(vcl, 2.410755074740, 1e-12);
    close(icl, 12.892788727030, 1e-12);
}

#[test]
fn one_class_has_the_printed_values() {
    let [vcl, _, icl, _] = joint_terms(&all(2, embedding_of).unwrap(), &[1; BATCH]);
    close(vcl, 15.130466290940, 1e-12);
    close(icl, 20.811406211115, 1e-12);
}

#[test]
fn a_batch_of_one_is_worth_nothing() {
    let one = |i| embedding_of(i)?.narrow(0, 0, 1)?.contiguous();
    let (v, tensors) = variables(&all(3, one).unwrap()).unwrap();
    let scores = Scores::joint(&tensors, &labels(&[1]).unwrap(), &MclParams::default()).unwrap();
    let loss = weighted(&scores, &MclParams::default()).unwrap();
    assert_eq!(value(&loss), 0.0);
    assert_eq!(gradient(&loss, &v[0]), [0.0; WIDTH]);
}

#[test]
fn the_share_has_the_printed_gradient() {
    let params = MclParams::default();
    let (vars, v) = variables(&all(3, embedding_of).unwrap()).unwrap();
    let scores = Scores::share(0, &v, &labels(&LABELS).unwrap(), &params).unwrap();
    let got = gradient(&weighted(&scores, &params).unwrap(), &vars[0]);
    close(frobenius(&got), 63.875713267986, 1e-12);
    let row = [11.979957676476, -13.384921341661, -8.614993266296, 15.436545377725];
    assert!(largest_difference(&got[..WIDTH], &row) < 2e-12, "{got:?}");
}

#[test]
fn single_precision_agrees_with_double_at_a_sharp_temperature() {
    // τ = 0.005 makes scores of ±200, whose exponentials overflow in single precision.
    let params = MclParams { tau: 0.005, ..MclParams::default() };
    let y = labels(&LABELS).unwrap();
    let at = |dtype: DType| {
        let v = all(3, |i| embedding_of(i)?.to_dtype(DType::F32)?.to_dtype(dtype)).unwrap();
        let (vars, v) = variables(&v).unwrap();
        let scores = Scores::share(1, &v, &y, &params).unwrap();
        scores
            .terms(&params)
            .unwrap()
            .into_iter()
            .map(|(_, _, t)| (value(&t), gradient(&t, &vars[1])))
            .collect::<Vec<_>>()
    };
    for ((low, low_gradient), (high, high_gradient)) in at(DType::F32).into_iter().zip(at(DType::F64)) {
        close(low, high, 1e-5);
        let scale = high_gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
        let difference = largest_difference(&low_gradient, &high_gradient);
        assert!(difference <= 1e-4 * scale, "{difference:e} of {scale:e}");
    }
}

#[test]
fn terms_without_weight_are_not_computed() {
    let params = MclParams { gamma: 0.0, beta: 0.0, ..MclParams::default() };
    let v = all(2, embedding_of).unwrap();
    let scores = Scores::joint(&v, &labels(&LABELS).unwrap(), &params).unwrap();
    let names: Vec<_> = scores.terms(&params).unwrap().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["vcl", "soft_icl"]);
}

/// A share of ICL with only the own anchors, the natural mistake, misses much of the gradient. A comparison with the
/// joint gradient can tell.
#[test]
fn the_anchors_of_the_others_matter() {
    let (y, params) = (labels(&LABELS).unwrap(), MclParams::default());
    let (vars, v) = variables(&all(2, embedding_of).unwrap()).unwrap();
    let whole = gradient(&Scores::share(0, &v, &y, &params).unwrap().icl().unwrap(), &vars[0]);
    let joint = gradient(&Scores::joint(&v, &y, &params).unwrap().icl().unwrap(), &vars[0]);
    assert!(largest_difference(&whole, &joint) <= 1e-12 * frobenius(&joint));

    let own_anchors = (v[0].matmul(&v[1].detach().t().unwrap()).unwrap() / params.tau).unwrap();
    let positives = Positives::new(&y, &v[0]).unwrap();
    let half = gradient(&contrastive(&own_anchors, &positives).unwrap(), &vars[0]);
    assert!(largest_difference(&half, &joint) > 0.1 * frobenius(&joint));
}
