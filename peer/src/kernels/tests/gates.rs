//! Recorded rectifiers: what replay does at another point, and what it is for.

use candle_core::{DType, Result, Tensor};

use super::super::*;
use super::agreement::{TOLERANCE, check};
use super::{check_gradients, tensor};

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_gate_is_a_constant_mask() {
    for dtype in [DType::F32, DType::F64] {
        let (x, other) = (tensor(&[2, 3, 4, 5], 1, dtype), tensor(&[2, 3, 4, 5], 2, dtype));
        let mut tape = GateTape::recording();
        assert_eq!(flat(&tape.relu(&x).unwrap()), flat(&relu(&x).unwrap()));
        let masked: Vec<f64> =
            flat(&x).iter().zip(flat(&other)).map(|(&gate, v)| if gate > 0.0 { v } else { 0.0 }).collect();
        assert_eq!(flat(&tape.replaying().relu(&other).unwrap()), masked);
        assert_eq!(flat(&tape.replaying().relu(&x).unwrap()), flat(&relu(&x).unwrap()));
    }
}

#[test]
fn replayed_rectifiers_agree_with_f64_and_with_slopes() {
    let replay = |a: &[Tensor]| {
        let gate = Gate::of_tensor(&relu(&tensor(&[3, 5, 7, 3], 50, a[0].dtype()))?);
        gate.apply(&a[0])
    };
    let replay_maps = |a: &[Tensor]| {
        let y = relu(&tensor(&[3, 5, 7, 3], 50, a[0].dtype()))?;
        let gate = Gate::of_maps(&Maps::from_tensor(&y)?);
        gate.apply_to_maps(&Maps::from_tensor(&a[0])?)?.to_tensor()
    };
    check("gate", &replay, &[&[3, 5, 7, 3]], TOLERANCE);
    check("gate of maps", &replay_maps, &[&[3, 5, 7, 3]], TOLERANCE);
    check_gradients(replay, &[&[3, 5, 7, 3]]);
    check_gradients(replay_maps, &[&[3, 5, 7, 3]]);
}

/// A network of both kinds of rectifier.
fn network(tape: &mut GateTape, x: &Tensor) -> Result<Tensor> {
    let [w, c] = [&[4, 4, 3, 3][..], &[4]].map(|shape| tensor(shape, 5, x.dtype()));
    let geometry = ConvGeometry { stride: 1, padding: 1, groups: 1 };
    let x = Maps::from_tensor(x)?;
    let y = tape.batch_norm_train(&x, &c, &c, 1e-5, None, Activation::None)?.0;
    let y = tape.batch_norm_train(&conv2d(&y, &w, geometry)?, &c, &c, 1e-5, Some(&x), Activation::Relu)?.0;
    tape.relu(&conv2d(&y, &w, geometry)?.to_tensor()?)
}

#[test]
fn a_tape_serves_whole_networks() {
    let shape = [2, 4, 6, 6];
    for dtype in [DType::F32, DType::F64] {
        let x = tensor(&shape, 1, dtype);
        let mut tape = GateTape::recording();
        let y = network(&mut tape, &x).unwrap();
        assert_eq!((tape.len(), tape.is_empty()), (2, false));
        assert_eq!(flat(&network(&mut tape.replaying(), &x).unwrap()), flat(&y));
        let other = (&x * -1.0).unwrap();
        let replayed = flat(&network(&mut tape.replaying(), &other).unwrap());
        assert!(replayed.iter().any(|&v| v < 0.0), "the gates are those of the recording");
    }
}

#[test]
fn a_tape_that_does_not_fit_is_refused_in_words() {
    let x = tensor(&[2, 3], 1, DType::F32);
    let mut tape = GateTape::recording();
    tape.relu(&x).unwrap();
    let mut replay = tape.replaying();
    let e = replay.relu(&tensor(&[3, 2], 1, DType::F32)).unwrap_err();
    assert!(e.to_string().contains("does not fit"), "{e}");
    let e = replay.relu(&x).unwrap_err();
    assert!(e.to_string().contains("more rectifiers than the 1"), "{e}");
}

#[test]
fn a_replay_that_stops_early_is_refused_in_words() {
    let x = tensor(&[2, 3], 1, DType::F32);
    let mut tape = GateTape::recording();
    for _ in 0..2 {
        tape.relu(&x).unwrap();
        tape.check_complete().unwrap();
    }
    let mut replay = tape.replaying();
    for met in 0..2 {
        let e = replay.check_complete().unwrap_err();
        assert!(e.to_string().contains(&format!("{met}, than the 2")), "{e}");
        replay.relu(&x).unwrap();
    }
    replay.check_complete().unwrap();
}
