//! The hypergradient across peers against double backward through the unrolled steps in one process and f64
//! (PyTorch; `tests/pytorch/hypergradient.py` writes the reference).

use candle_core::DType;

use super::company::together;
use super::network::{Case, Small, case};
use crate::meta::Settings;
use crate::meta::adjoint::Descent;
use crate::meta::update::{R_F32, R_F64};

const CASES: [&str; 3] = ["two_plain", "two_norm", "three_norm"];

pub(super) fn settings(case: &Case, r: f64) -> Settings {
    let descent = Descent { lr: case.lr, momentum: 0.9, weight_decay: 5e-4 };
    Settings { inner_steps: 2, descent, r, compat_a1: false, statistics: true }
}

/// Relative Euclidean error over the hypergradients of all peers.
pub(super) fn error(peers: &[Small], reference: &[Vec<f64>]) -> f64 {
    let pairs = peers.iter().zip(reference).flat_map(|(peer, exact)| {
        assert_eq!(peer.hypergradient.len(), exact.len());
        peer.hypergradient.iter().zip(exact)
    });
    let (gap, size) = pairs.fold((0.0, 0.0), |(gap, size), (x, y)| (gap + (x - y) * (x - y), size + y * y));
    (gap / size).sqrt()
}

/// Error of one meta-update of a case, after the networks were prepared.
fn measured(name: &str, dtype: DType, r: f64, prepare: impl Fn(&mut Small)) -> f64 {
    let mut case = case(name, dtype);
    let settings = settings(&case, r);
    case.networks.iter_mut().for_each(prepare);
    for (outcome, made) in together(&mut case.networks, &settings, None) {
        outcome.unwrap();
        assert_eq!(made.len(), 3 * 2 + 3, "exchanges of two inner steps");
    }
    error(&case.networks, &case.exact)
}

#[test]
fn in_f64_it_is_exact_to_nine_digits() {
    for name in CASES {
        let error = measured(name, DType::F64, R_F64, |_| {});
        assert!(error <= 5e-9, "{name}: {error:e}");
    }
}

#[test]
fn in_f32_it_is_exact_to_three_digits() {
    for name in CASES {
        let error = measured(name, DType::F32, R_F32, |_| {});
        assert!(error <= 2e-3, "{name}: {error:e}");
    }
}

#[test]
fn the_error_falls_with_the_square_of_the_displacement() {
    for name in CASES {
        let ratio = measured(name, DType::F64, 1e-2, |_| {}) / measured(name, DType::F64, 1e-3, |_| {});
        assert!((95.0..=105.0).contains(&ratio), "{name}: {ratio}");
    }
}

#[test]
fn gates_and_targets_must_be_frozen() {
    for name in ["two_norm", "three_norm"] {
        let gates = measured(name, DType::F64, 1e-3, |peer| peer.gates_frozen = false);
        let targets = measured(name, DType::F64, R_F64, |peer| peer.targets_frozen = false);
        assert!(gates > 1e-2 && targets > 1e-2, "{name}: {gates:e}, {targets:e}");
    }
}

#[test]
fn the_release_is_reproduced_on_request() {
    for name in CASES {
        let mut case = case(name, DType::F64);
        let settings = Settings { compat_a1: true, ..settings(&case, R_F64) };
        together(&mut case.networks, &settings, None);
        let (compat, exact) = (error(&case.networks, &case.compat), error(&case.networks, &case.exact));
        assert!(compat <= 5e-9 && exact > 1e-2, "{name}: {compat:e}, {exact:e}");
    }
}
