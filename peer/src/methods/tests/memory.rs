//! The memory bank: what is remembered, and gradients of the terms against finite differences. Values are in the golden
//! vectors, and both are compared with a plain form in the joint trainer of the tests.

use super::*;
use crate::methods::memory::{Bank, Draws, Form, MemoryParams, Recall, Remembered, inner, share};
use crate::methods::{MclParams, Method, Own};

const SAMPLES: usize = 40;

fn bank(network: usize) -> Bank {
    let mut at = network as f64;
    let next = || {
        at += 0.618;
        at.fract()
    };
    Bank::new(SAMPLES, WIDTH, next).unwrap()
}

/// Two positives and nine negatives for each of six anchors; two anchors are the same sample.
fn draws() -> Draws {
    let keys = [3u32, 9, 3, 11, 12, 13].map(|x| (0..12).map(|at| (x + 5 * at) % 40).collect());
    Draws::new(keys.to_vec(), 2).unwrap()
}

#[test]
fn a_batch_is_remembered_at_unit_length_and_its_last_row_wins() {
    let mut bank = bank(0);
    let before = bank.clone();
    let v = embedding_of(0).unwrap();
    let indices = [3, 9, 3, 11, 12, 13];
    bank.remember(&bank.blended(&indices, &v, 0.25).unwrap());
    let rows = |bank: &Bank| bank.to_tensor().unwrap().to_vec2::<f32>().unwrap();
    let (new, old) = (rows(&bank), rows(&before));
    let expected = |n: usize, x: usize| {
        let v = entries(&v.get(n).unwrap());
        let raw: Vec<f64> = v.iter().zip(&old[x]).map(|(v, m)| 0.75 * v + 0.25 * f64::from(*m)).collect();
        raw.iter().map(|r| r / frobenius(&raw)).collect::<Vec<f64>>()
    };
    for (n, x) in [(2, 3), (1, 9), (5, 13)] {
        let got: Vec<f64> = new[x].iter().map(|g| f64::from(*g)).collect();
        assert!(largest_difference(&got, &expected(n, x)) < 1e-7, "row {x}");
    }
    assert!((0..SAMPLES).filter(|x| !indices.contains(&(*x as u32))).all(|x| new[x] == old[x]));
    assert!(bank.blended(&[0, 1, 2, 3, 4, SAMPLES as u32], &v, 0.5).is_err());
    assert!(bank.blended(&[0], &v, 0.5).is_err());
}

#[test]
fn a_bank_is_bounded_and_restored() {
    let bound = (3.0 / WIDTH as f64).sqrt() as f32;
    let values = bank(1).to_tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values.iter().all(|x| x.abs() <= bound) && values.iter().any(|x| x.abs() > 0.8 * bound));
    assert_eq!(Bank::from_tensor(&bank(1).to_tensor().unwrap()).unwrap(), bank(1));
    assert!(Bank::new(usize::MAX, 2, || 0.0).is_err() && Bank::new(1 << 30, 128, || 0.0).is_err());
    assert!(Bank::new(0, 128, || 0.0).is_err());
}

#[test]
fn draws_of_unequal_length_or_without_positives_are_refused() {
    assert!(Draws::new(vec![vec![0, 1, 2], vec![0, 1]], 1).is_err());
    assert!(Draws::new(vec![vec![0, 1, 2]], 0).is_err() && Draws::new(vec![vec![0, 1]], 2).is_err());
    assert!(Draws::new(Vec::new(), 1).is_err());
}

#[test]
fn the_share_has_the_gradient_of_its_values() {
    let banks = [bank(0), bank(1), bank(2)];
    let (v, draws) = (all(3, embedding_of).unwrap(), draws());
    let stages = |bug| Form::Stages { multiplicity: 2.0, one_to_one: false, bug };
    for form in [Form::Networks, stages(false), stages(true)] {
        let params = MemoryParams { lam: 0.7, form, ..MemoryParams::default() };
        check_gradient(&v[1], |moved| {
            let moved = [moved.clone()];
            let own = Remembered { bank: &banks[1], stages: &moved };
            let others = [0, 2].map(|j| Remembered { bank: &banks[j], stages: &v[j..] });
            let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
            for (_, weight, value) in share(own, &others, &draws, &params, None)? {
                total = (total + (value * weight)?)?;
            }
            Ok(total)
        });
    }
}

#[test]
fn a_method_with_banks_needs_them_and_no_other_takes_them() {
    let recall = |own| Recall { own, others: Vec::new(), draws: draws() };
    let (z, v, y) = (logits_of(0).unwrap(), [embedding_of(0).unwrap()], labels(&LABELS).unwrap());
    let own = Own::new(&z, &v);
    let held = bank(0);
    let recalled = recall(&held);
    let with = |method: &Method, recall| method.loss(0, 1, own, &[], &y, recall);
    let plain = Method::Mcl(MclParams::default());
    let params = crate::methods::memory::BankParams { positives: 2, negatives: 9, momentum: 0.5, bug: false };
    let remembering = Method::Mcl(MclParams { bank: Some(params), ..MclParams::default() });
    assert!(with(&plain, Some(&recalled)).is_err() && remembering.loss(0, 1, own, &[], &y, None).is_err());
    let terms = with(&remembering, Some(&recalled)).unwrap();
    let named: Vec<_> = terms.named.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(named[..2], ["ce", "vcl"]);
    assert!(value(&terms.named[1].1) > 1.0);
}

/// The inner objective by the own stages and by λ, against finite differences; its value and its gradient by the own
/// stages are those of the shares where λ and the targets are the same.
#[test]
fn the_inner_objective_has_the_gradient_of_its_values() {
    let banks = [bank(0), bank(1), bank(2)];
    let (v, draws) = (all(5, embedding_of).unwrap(), draws());
    // Two stages of the own network, one and two of the others.
    let (own, others) = (&v[..2], [&v[2..3], &v[3..5]]);
    let angles: Vec<f64> = (0..6 * draws.batch()).map(|at| 0.5 + 0.2 * (at as f64).sin()).collect();
    let lambda = Tensor::from_vec(angles, (6, draws.batch()), &Device::Cpu).unwrap();
    let targets = (&v[1..3], [vec![v[0].clone()], vec![v[4].clone(), v[0].clone()]]);
    for bug in [false, true] {
        let form = Form::Stages { multiplicity: 2.0, one_to_one: false, bug };
        let params = MemoryParams { lam: 0.7, form, ..MemoryParams::default() };
        let value = |own: &[Tensor], lambda: &Tensor| {
            let network = |at: usize, stages| Remembered { bank: &banks[at], stages };
            let others = [network(1, others[0]), network(2, others[1])];
            inner(network(0, own), &others, (targets.0, &targets.1), &draws, &params, lambda)
        };
        check_gradient(&v[0], |moved| value(&[moved.clone(), own[1].clone()], &lambda));
        check_gradient(&v[1], |moved| value(&[own[0].clone(), moved.clone()], &lambda));
        check_gradient(&lambda, |moved| value(own, moved));
        let network = |at: usize, stages| Remembered { bank: &banks[at], stages };
        let all = [network(1, others[0]), network(2, others[1])];
        let few = inner(network(0, own), &all, (&v[..1], &targets.1), &draws, &params, &lambda);
        assert!(few.unwrap_err().to_string().contains("another cohort"));
        let short = lambda.narrow(0, 0, 5).unwrap();
        let error = share(network(0, own), &all, &draws, &params, Some(&short)).unwrap_err().to_string();
        assert!(error.contains("6 pairs of stages"), "{error}");
    }
}
