//! L-MCL against printed reference values (float64, an independent PyTorch implementation that was checked against the
//! authors' code), against the sum over all networks, against finite differences, and the fast rows against candle's.

use candle_core::{DType, Device, Var};

use super::rows::{Embeddings, Rows, Scores, Setting, Wanted};
use super::*;
use crate::methods::primitives::{Positives, soft_kl, unit};
use crate::methods::tests::*;

/// `v_ik = unit(cos(0.9(i+1) + 0.4k + 1.1n + 1.7d) + 0.1d)`.
fn embedding(i: usize, k: usize) -> Tensor {
    let angle = 0.9 * (i + 1) as f64 + 0.4 * k as f64;
    unit(&filled(BATCH, WIDTH, |n, d| (angle + 1.1 * n + 1.7 * d).cos() + 0.1 * d).unwrap()).unwrap()
}

/// `u_ik = unit(sin(0.3(i+1) + 0.8k + 0.6n + 1.9d))`.
fn feature(i: usize, k: usize) -> Tensor {
    let angle = 0.3 * (i + 1) as f64 + 0.8 * k as f64;
    unit(&filled(BATCH, WIDTH, |n, d| (angle + 0.6 * n + 1.9 * d).sin()).unwrap()).unwrap()
}

fn stages(i: usize, count: usize, of: impl Fn(usize, usize) -> Tensor) -> Vec<Tensor> {
    (0..count).map(|k| of(i, k)).collect()
}

fn heard(index: usize, count: usize) -> Heard {
    Heard {
        embeddings: stages(index, count, embedding),
        matching: stages(index, count, feature),
        aggregated: Some(logits_of(index).unwrap()),
        ..Heard::nothing(index)
    }
}

fn sum(terms: &[Weighted]) -> Tensor {
    let weighted = terms.iter().map(|(_, weight, value)| (value * *weight).unwrap());
    weighted.reduce(|a, b| (a + b).unwrap()).unwrap()
}

fn params(matching: Matching, double: bool) -> LMclParams {
    LMclParams { matching, double, ..LMclParams::default() }
}

/// The numbers of stages of three networks.
const STAGES: [usize; 3] = [3, 2, 4];

#[test]
fn three_networks_of_two_stages_have_the_printed_values() {
    let v: Vec<_> = (0..3).map(|i| stages(i, 2, embedding)).collect();
    let u: Vec<_> = (0..3).map(|i| stages(i, 2, feature)).collect();
    let cohort: Vec<Stages<'_>> = v.iter().zip(&u).map(|(v, u)| (v.as_slice(), u.as_slice())).collect();
    let terms = contrast_joint(&cohort, &labels(&LABELS).unwrap(), &LMclParams::default()).unwrap();
    let printed = [47.160947001319, 7.837014604305, 244.828456589297, 1036.185627219065];
    for ((name, _, got), printed) in terms.iter().zip(printed) {
        println!("{name}");
        close(value(got), printed, 1e-12);
    }
    let lambda =
        [0.591080535844, 0.643023144405, 0.651568033091, 0.614186288394, 0.560197603585, 0.577075079941];
    let got = entries(&weight(&u[0][0], &u[1][1]).unwrap());
    assert!(largest_difference(&got, &lambda) < 1e-12, "{got:?}");
}

#[test]
fn each_share_has_its_part_of_the_joint_gradient() {
    // One sample has no partner in its class.
    let y = labels(&[0, 0, 1, 1, 2, 0]).unwrap();
    for matching in [Matching::Learned, Matching::Uniform, Matching::OneToOne] {
        for double in [true, false] {
            let params = params(matching, double);
            let (v, embeddings): (Vec<_>, Vec<_>) =
                (0..3).map(|i| variables(&stages(i, STAGES[i], embedding)).unwrap()).unzip();
            let features: Vec<_> = (0..3).map(|i| stages(i, STAGES[i], feature)).collect();
            let cohort: Vec<Stages<'_>> =
                embeddings.iter().zip(&features).map(|(v, u)| (v.as_slice(), u.as_slice())).collect();
            let joint = sum(&contrast_joint(&cohort, &y, &params).unwrap());
            for me in 0..3 {
                let others: Vec<Heard> = (0..3).filter(|j| *j != me).map(|j| heard(j, STAGES[j])).collect();
                let own = Cohort::around(me, &embeddings[me], &features[me], &others, &params).unwrap();
                let lambda = own.weights().unwrap().detach();
                let share = sum(&own.terms(&lambda, Sides::Own, None, &y).unwrap());
                for (k, v) in v[me].iter().enumerate() {
                    let (share, joint) = (gradient(&share, v), gradient(&joint, v));
                    let apart = largest_difference(&share, &joint);
                    assert!(apart <= 1e-12 * frobenius(&joint), "{matching:?}, {me}.{k}: {apart:e}");
                }
            }
        }
    }
}

/// What is learned from: without the terms within the other networks, which λ weighs too, it is another gradient.
#[test]
fn each_inner_objective_has_its_part_of_the_joint_gradient() {
    let (y, params) = (labels(&LABELS).unwrap(), LMclParams::default());
    let (v, embeddings): (Vec<_>, Vec<_>) =
        (0..3).map(|i| variables(&stages(i, STAGES[i], embedding)).unwrap()).unzip();
    let (u, features): (Vec<_>, Vec<_>) =
        (0..3).map(|i| variables(&stages(i, STAGES[i], feature)).unwrap()).unzip();
    let cohort: Vec<Stages<'_>> =
        embeddings.iter().zip(&features).map(|(v, u)| (v.as_slice(), u.as_slice())).collect();
    let joint = sum(&inner_joint(&cohort, &y, &params).unwrap());
    for me in 0..3 {
        let others: Vec<Heard> = (0..3).filter(|j| *j != me).map(|j| heard(j, STAGES[j])).collect();
        let targets = Targets::of(&embeddings[me], &others);
        let own = inner(me, &embeddings[me], &features[me], &others, &targets, &y, &params).unwrap();
        for of in v[me].iter().chain(&u[me]) {
            let (own, joint) = (gradient(&own, of), gradient(&joint, of));
            assert!(largest_difference(&own, &joint) <= 1e-12 * frobenius(&joint));
        }
        let around = Cohort::around(me, &embeddings[me], &features[me], &others, &params).unwrap();
        let lambda = around.weights().unwrap();
        let half = sum(&around.terms(&lambda, Sides::Own, None, &y).unwrap());
        let (half, joint) = (gradient(&half, &u[me][0]), gradient(&joint, &u[me][0]));
        assert!(largest_difference(&half, &joint) > 1e-6 * frobenius(&joint));
    }
}

/// With frozen targets the objective is smooth, and its gradient that of its values; also away from where they froze.
#[test]
fn the_inner_objective_has_the_gradient_of_its_values() {
    let (y, params) = (labels(&[0, 0, 1, 1, 2, 0]).unwrap(), LMclParams::default());
    let others = [heard(1, 3), heard(2, 1)];
    let (v, u) = (stages(0, 2, embedding), stages(0, 2, feature));
    let elsewhere: Vec<Tensor> = v.iter().map(|v| (v * 1.05).unwrap()).collect();
    let targets = Targets::of(&elsewhere, &others);
    check_gradient(&v[1], |moved| {
        inner(0, &[v[0].clone(), moved.clone()], &u, &others, &targets, &y, &params)
    });
    check_gradient(&u[0], |moved| {
        inner(0, &v, &[moved.clone(), u[1].clone()], &others, &targets, &y, &params)
    });
}

#[test]
fn degenerate_batches_are_finite() {
    let one = |t: Tensor| t.narrow(0, 0, 1).unwrap().contiguous().unwrap();
    let (vars, v) = variables(&[one(embedding(0, 0))]).unwrap();
    let other = Heard {
        embeddings: vec![one(embedding(1, 0))],
        matching: vec![one(feature(1, 0))],
        ..Heard::nothing(1)
    };
    let targets = Targets::of(&v, std::slice::from_ref(&other));
    let (u, y) = ([one(feature(0, 0))], labels(&[1]).unwrap());
    let loss = inner(0, &v, &u, &[other], &targets, &y, &LMclParams::default()).unwrap();
    assert_eq!((value(&loss), gradient(&loss, &vars[0])), (0.0, vec![0.0; WIDTH]));

    let (vars, v) = variables(&stages(0, 2, embedding)).unwrap();
    for y in [[0, 1, 2, 3, 4, 5], [1; BATCH]] {
        let others = [heard(1, 3)];
        let targets = Targets::of(&v, &others);
        let y = labels(&y).unwrap();
        let loss =
            inner(0, &v, &stages(0, 2, feature), &others, &targets, &y, &LMclParams::default()).unwrap();
        assert!(value(&loss).is_finite() && gradient(&loss, &vars[0]).iter().all(|g| g.is_finite()));
    }
}

/// Every kind of term over learning and constant embeddings, on a batch with an orphan.
fn mixed() -> (Wanted, Setting) {
    let at = |anchors, contrasts| Scores { anchors, contrasts };
    let wanted = Wanted {
        contrast: vec![at(0, 0), at(0, 2), at(2, 0), at(3, 3), at(1, 0)],
        divergence: vec![
            (at(0, 0), at(2, 2)),
            (at(0, 0), at(3, 3)),
            (at(3, 3), at(1, 1)),
            (at(1, 2), at(2, 1)),
            (at(2, 1), at(1, 2)),
            (at(0, 1), at(1, 0)),
        ],
    };
    let positives = Positives::new(&labels(&[0, 0, 1, 1, 2, 0]).unwrap(), &embedding(0, 0)).unwrap();
    (wanted, Setting { positives, tau: 0.1, kd_t: 3.0 })
}

#[test]
fn fast_rows_are_those_of_candle() {
    let (wanted, setting) = mixed();
    let compute = |rows: fn(&Embeddings, &Wanted, &Setting) -> candle_core::Result<Rows>| {
        let (vars, mut all) = variables(&stages(0, 2, embedding)).unwrap();
        all.extend(stages(1, 2, embedding));
        let rows = rows(&Embeddings { all, learning: 2 }, &wanted, &setting).unwrap();
        let rows = Tensor::cat(&[rows.contrast.unwrap(), rows.divergence.unwrap()], 0).unwrap();
        let weights = filled(rows.dim(0).unwrap(), BATCH, |r, n| 0.3 + (r + 2.0 * n).sin()).unwrap();
        let loss = (&rows * weights).unwrap().sum_all().unwrap();
        (entries(&rows), gradient(&loss, &vars[0]), gradient(&loss, &vars[1]))
    };
    let (fast, slow) = (compute(fused::rows), compute(stock::rows));
    assert!(largest_difference(&fast.0, &slow.0) < 1e-13);
    assert!(largest_difference(&fast.1, &slow.1) < 1e-12);
    assert!(largest_difference(&fast.2, &slow.2) < 1e-12);
    assert!(frobenius(&slow.1) > 1.0 && frobenius(&slow.2) > 1.0);
}

#[test]
fn logits_are_distilled_from_everybody_s_aggregation() {
    let (own, other) = (logits_of(0).unwrap(), heard(1, 2));
    let stage_logits = [logits_of(3).unwrap(), own.clone()];
    let a = logits_of(4).unwrap();
    let stages_own = stages(0, 2, embedding);
    let features = stages(0, 2, feature);
    let said = Own {
        stage_logits: &stage_logits,
        matching: &features,
        aggregated: Some(&a),
        ..Own::new(&own, &stages_own)
    };
    let y = labels(&LABELS).unwrap();
    let terms = share(0, said, std::slice::from_ref(&other), &y, &LMclParams::default()).unwrap();
    let names: Vec<_> = terms.iter().map(|(name, ..)| *name).collect();
    let expected = ["ce", "ce_aggregated", "kl_aggregated", "vcl", "soft_vcl", "icl", "soft_icl"];
    assert_eq!(names, expected);
    let ce = |z: &Tensor| value(&crate::methods::cross_entropy::cross_entropy(z, &y).unwrap());
    close(value(&terms[0].2), ce(&stage_logits[0]) + ce(&own), 1e-14);
    close(value(&terms[1].2), ce(&a), 1e-14);
    let kl = |t: &Tensor| value(&soft_kl(&own, t, 3.0).unwrap());
    close(value(&terms[2].2), kl(&a) + kl(other.aggregated.as_ref().unwrap()), 1e-13);

    let alone = share(0, said, &[], &y, &LMclParams::default()).unwrap();
    assert_eq!(alone.len(), 3);
    close(value(&alone[2].2), kl(&a), 1e-13);
    let quiet = LMclParams { kd: false, alpha: 0.0, gamma: 0.0, ..LMclParams::default() };
    let terms = share(0, said, &[other], &y, &quiet).unwrap();
    assert_eq!(
        terms.iter().map(|(name, ..)| *name).collect::<Vec<_>>(),
        ["ce", "ce_aggregated", "icl", "soft_icl"]
    );
}

#[test]
fn aggregation_mixes_the_stages_sample_by_sample() {
    let z = [logits_of(0).unwrap(), logits_of(1).unwrap()];
    let scores = filled(BATCH, 2, |n, k| if k == 0.0 { n } else { 0.0 }).unwrap();
    let a = entries(&aggregate(&mixture(&scores).unwrap(), &z).unwrap());
    let (first, second) = (entries(&z[0]), entries(&z[1]));
    for (at, a) in a.iter().enumerate() {
        let share = 1.0 / (1.0 + (-((at / CLASSES) as f64)).exp());
        close(*a, share * first[at] + (1.0 - share) * second[at], 1e-14);
    }
    assert!(aggregate(&mixture(&scores).unwrap(), &z[..1]).is_err());
}

#[test]
fn mean_weights_are_those_of_the_pairs() {
    let (own, others) = (stages(0, 3, feature), [heard(1, 2), heard(4, 1)]);
    let all = matching_weights(&own, &others).unwrap();
    let places: Vec<_> = all.iter().map(|w| (w.source, w.stage, w.source_stage)).collect();
    assert_eq!(places[..3], [(1, 0, 0), (1, 0, 1), (1, 1, 0)]);
    assert_eq!((all.len(), places[6]), (9, (4, 0, 0)));
    let lambda = entries(&weight(&own[1], &others[0].matching[0]).unwrap());
    close(all[2].mean, lambda.iter().sum::<f64>() / BATCH as f64, 1e-14);
    assert!(
        matching_weights(&[], &others).unwrap().is_empty() && matching_weights(&own, &[]).unwrap().is_empty()
    );
}

#[test]
fn stages_at_equal_places_are_counted_from_the_last() {
    let pairs = |own, other| {
        let all = matching::pairs(own, other, Matching::OneToOne).into_iter();
        all.map(|pair| (pair.own, pair.other)).collect::<Vec<_>>()
    };
    assert_eq!(pairs(0..3, 3..5), [(1, 3), (2, 4)]);
    assert_eq!(pairs(0..1, 1..5), [(0, 4)]);
    assert_eq!(pairs(0..2, 2..4), [(0, 2), (1, 3)]);
}

/// Arguments that no network makes, but that somebody may say or give.
#[test]
fn extreme_arguments_have_finite_losses_and_gradients() {
    let all_finite = |of: &[f64]| of.iter().all(|x| x.is_finite());
    let signs =
        |size: f64| filled(BATCH, CLASSES, |n, c| if (n + c) % 2.0 == 0.0 { size } else { -size }).unwrap();
    let (y, params) = (labels(&[0, 0, 1, 1, 2, 0]).unwrap(), LMclParams::default());
    for (logits, length) in [(1e4, 1.0), (1e30, 0.0), (1e4, 1e4), (1e30, 1e30)] {
        let long = |said: Vec<Tensor>| said.iter().map(|x| (x * length).unwrap()).collect::<Vec<_>>();
        let other = Heard {
            embeddings: long(stages(1, 3, embedding)),
            matching: long(stages(1, 3, feature)),
            aggregated: Some(signs(-logits)),
            ..Heard::nothing(1)
        };
        let others = [other];
        let (z, v_u) =
            (Var::from_tensor(&signs(1e4)).unwrap(), [stages(0, 2, embedding), stages(0, 2, feature)]);
        let (vars, said) = variables(&v_u.concat()).unwrap();
        let (v, u) = said.split_at(2);
        let stage_logits = [logits_of(3).unwrap(), z.as_tensor().clone()];
        let own = Own {
            stage_logits: &stage_logits,
            matching: u,
            aggregated: Some(z.as_tensor()),
            ..Own::new(z.as_tensor(), v)
        };
        let share = sum(&share(0, own, &others, &y, &params).unwrap());
        let inner = inner(0, v, u, &others, &Targets::of(v, &others), &y, &params).unwrap();
        for (name, loss) in [("share", share), ("inner", inner)] {
            assert!(value(&loss).is_finite(), "{name}, logits {logits:e}, rows of {length:e}");
            for var in vars.iter().chain([&z]) {
                assert!(all_finite(&gradient(&loss, var)), "{name}, logits {logits:e}, rows of {length:e}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let y = labels(&LABELS).unwrap();
    let (v, u) = (stages(0, 2, embedding), stages(0, 2, feature));
    let say = |others: &[Heard], v: &[Tensor], u: &[Tensor]| {
        let targets = Targets::of(v, others);
        inner(0, v, u, others, &targets, &y, &LMclParams::default()).unwrap_err().to_string()
    };
    let mute = Heard { matching: vec![], ..heard(1, 2) };
    assert!(say(&[mute], &v, &u).contains("network 1"));
    assert!(say(&[heard(1, 2)], &v, &u[..1]).contains("the own network"));
    let narrow = Heard {
        embeddings: vec![embedding(1, 0).narrow(1, 0, 2).unwrap()],
        matching: vec![feature(1, 0)],
        ..Heard::nothing(1)
    };
    assert!(say(&[narrow], &v, &u).contains("embed.0 of network 1"));
    let targets = Targets::of(&v, &[]);
    let others = [heard(1, 2)];
    let error = inner(0, &v, &u, &others, &targets, &y, &LMclParams::default()).unwrap_err();
    assert!(error.to_string().contains("another cohort"));
    let z = Var::from_tensor(&Tensor::zeros((BATCH, CLASSES), DType::F64, &Device::Cpu).unwrap()).unwrap();
    let own = Own::new(z.as_tensor(), &v);
    assert!(
        share(0, own, &others, &y, &LMclParams::default()).unwrap_err().to_string().contains("aggregated")
    );
}
