//! How parameters start.

use candle_core::{DType, Device};

use super::{TINY, params, values};
use crate::models::{Init, Params, build};

#[test]
fn a_draw_depends_on_seed_peer_and_name_alone() {
    let draw = |seed, peer, name: &str, crowd: bool| {
        let mut params = Params::new(seed, peer, DType::F32, &Device::Cpu).unwrap();
        if crowd {
            build("resnet8", TINY, 5, &mut params).unwrap();
        }
        let tensor = params.scope("x").trainable(name, &[4, 3, 3, 3], Init::KaimingNormalFanOut).unwrap();
        values(&tensor)
    };
    let first = draw(7, "a", "w", false);
    assert_eq!(first, draw(7, "a", "w", true));
    assert_ne!(first, draw(8, "a", "w", false));
    assert_ne!(first, draw(7, "b", "w", false));
    assert_ne!(first, draw(7, "a", "v", false));
}

#[test]
fn f64_and_f32_start_from_the_same_numbers() {
    let draw = |dtype| {
        let tensor = params(dtype).root().trainable("w", &[2, 3, 3, 3], Init::KaimingNormalFanOut).unwrap();
        values(&tensor)
    };
    let rounded: Vec<f64> = draw(DType::F64).into_iter().map(|value| f64::from(value as f32)).collect();
    assert_eq!(rounded, draw(DType::F32));
}

/// Moments of the distributions: 64 * 32 * 9 draws, bounds of five standard errors.
#[test]
fn draws_have_the_moments_of_their_distribution() {
    let (out, inputs) = (64, 32);
    let conv =
        params(DType::F64).root().trainable("w", &[out, inputs, 3, 3], Init::KaimingNormalFanOut).unwrap();
    let conv = values(&conv);
    let (n, variance) = (conv.len() as f64, 2.0 / (out * 9) as f64);
    let moment = |power| conv.iter().map(|value| value.powi(power)).sum::<f64>() / n;
    assert!(moment(1).abs() < 5.0 * (variance / n).sqrt());
    assert!((moment(2) / variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    assert!((moment(4) / (3.0 * variance * variance) - 1.0).abs() < 5.0 * (96.0 / 9.0 / n).sqrt());

    let linear =
        params(DType::F64).root().trainable("w", &[100, 64], Init::TorchLinear { fan_in: 64 }).unwrap();
    let linear = values(&linear);
    let largest = linear.iter().fold(0f64, |max, value| max.max(value.abs()));
    assert!(largest < 0.125 && largest > 0.12, "{largest}");
    let variance = linear.iter().map(|value| value * value).sum::<f64>() / 6400.0;
    assert!((variance / (0.125 * 0.125 / 3.0) - 1.0).abs() < 0.06, "{variance}");
}

#[test]
fn layers_start_as_the_official_networks_do() {
    let mut wide = params(DType::F32);
    build("wrn_10_1", TINY, 5, &mut wide).unwrap();
    assert!(values(&wide.trainable()["fc.bias"]).iter().all(|value| *value == 0.0));
    assert!(values(&wide.trainable()["bn1.weight"]).iter().all(|value| *value == 1.0));
    let mut residual = params(DType::F32);
    build("resnet8", TINY, 5, &mut residual).unwrap();
    assert!(values(&residual.trainable()["fc.bias"]).iter().any(|value| *value != 0.0));
    assert!(values(&residual.buffers()["bn1.running_var"]).iter().all(|value| *value == 1.0));
    assert_eq!(residual.buffers()["bn1.num_batches_tracked"].dtype(), DType::I64);
}

#[test]
fn other_element_types_are_refused() {
    assert!(Params::new(7, "a", DType::BF16, &Device::Cpu).is_err());
}
