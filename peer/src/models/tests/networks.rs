//! Shapes, counts, gradients and refusals.

use candle_core::{DType, Device, Tensor};

use super::{TINY, images, network, params, values};
use crate::kernels::Maps;
use crate::models::layers::{BatchNorm2d, Conv2d};
use crate::models::projection::Projection;
use crate::models::registry::check_name;
use crate::models::{ImageShape, ModelError, Pass, build, known};

/// Made by `testdata/generate.py --counts` with PyTorch: 3x32x32 images, 100 classes.
const COUNTS: &[(&str, usize)] = &[
    ("resnet8", 83892),
    ("resnet14", 181108),
    ("resnet20", 278324),
    ("resnet32", 472756),
    ("resnet44", 667188),
    ("resnet56", 861620),
    ("resnet110", 1736564),
    ("resnet8x4", 1233540),
    ("resnet32x4", 7433860),
    ("resnet6", 22964),
    ("resnet10", 4949412),
    ("resnet18", 11220132),
    ("wrn_10_1", 83700),
    ("wrn_16_1", 180916),
    ("wrn_16_2", 703284),
    ("wrn_28_4", 5872180),
    ("wrn_40_1", 569780),
    ("wrn_40_2", 2255156),
];

#[test]
fn parameter_counts_are_those_of_pytorch() {
    let names: Vec<_> = COUNTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known());
    let colour = ImageShape { channels: 3, height: 32, width: 32 };
    for (name, count) in COUNTS {
        let (params, _) = network(name, colour, 100, DType::F32);
        assert_eq!(params.trainable_count(), *count, "{name}");
    }
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    for arch in ["resnet8", "wrn_10_1", "wrn_16_2"] {
        let (mut params, network) = network(arch, TINY, 5, DType::F32);
        let head = Projection::new(params.scope("embed.0"), network.feature_width(), 6).unwrap();
        let mut pass = Pass::train();
        let output = network.forward(&images(TINY, 4, DType::F32), &mut pass).unwrap();
        let embedding = head.forward(&output.feature, &mut pass).unwrap();
        // A loss with a slope at every output: sums alone would cancel in batch norm.
        let loss =
            output.logits.exp().unwrap().mean_all().unwrap() + embedding.sqr().unwrap().mean_all().unwrap();
        let gradients = params.gradients(&loss.unwrap().backward().unwrap());
        for name in params.trainable().keys() {
            let gradient =
                values(gradients.get(name).unwrap_or_else(|| panic!("{arch}: no gradient for {name}")));
            assert!(gradient.iter().all(|value| value.is_finite()), "{arch}: {name}");
            assert!(gradient.iter().any(|value| *value != 0.0), "{arch}: gradient of {name} is 0");
        }
    }
}

#[test]
fn outputs_have_the_promised_shapes() {
    let image = ImageShape { channels: 2, height: 11, width: 11 };
    for (arch, widths) in
        [("resnet8", [16, 32, 64]), ("resnet8x4", [64, 128, 256]), ("wrn_16_2", [32, 64, 128])]
    {
        let (_, network) = network(arch, image, 7, DType::F32);
        for mut pass in [Pass::train(), Pass::eval()] {
            let output = network.forward(&images(image, 3, DType::F32), &mut pass).unwrap();
            assert_eq!(output.logits.dims(), [3, 7]);
            assert_eq!(output.feature.dims(), [3, network.feature_width()]);
            let maps: Vec<_> = output.stages.iter().map(|map| map.dims().to_vec()).collect();
            let expected = [(0, 11), (1, 6), (2, 3)].map(|(k, side)| vec![3, widths[k], side, side]);
            assert_eq!(maps, expected, "{arch}");
            assert_eq!(network.stage_widths(), widths);
        }
        assert_eq!((network.classes(), network.image()), (7, image));
    }
}

#[test]
fn evaluation_records_no_graph() {
    let (params, network) = network("resnet8", TINY, 5, DType::F32);
    let output = network.forward(&images(TINY, 2, DType::F32), &mut Pass::eval()).unwrap();
    let store = output.logits.sum_all().unwrap().backward().unwrap();
    assert!(params.gradients(&store).is_empty());
}

#[test]
fn only_a_committed_pass_changes_the_running_statistics() {
    let (params, network) = network("wrn_10_1", TINY, 5, DType::F64);
    let before = params.state_dict().unwrap();
    let x = images(TINY, 4, DType::F64);
    let mut abandoned = Pass::train();
    network.forward(&x, &mut abandoned).unwrap();
    drop(abandoned);
    for (name, tensor) in &params.state_dict().unwrap() {
        assert_eq!(values(tensor), values(&before[name]), "{name}");
    }
    let mut pass = Pass::train();
    network.forward(&x, &mut pass).unwrap();
    pass.commit().unwrap();
    for (name, var) in params.buffers() {
        assert_ne!(values(var), values(&before[name]), "{name}");
    }
    assert_eq!(params.buffers()["bn1.num_batches_tracked"].to_scalar::<i64>().unwrap(), 1);
}

/// Closed form: after one batch `0.9 * 0 + 0.1 mean` and `0.9 * 1 + 0.1 n / (n - 1) var`; one layer visited twice in a
/// pass is updated twice, in order.
#[test]
fn running_statistics_follow_the_closed_form() {
    let mut params = params(DType::F64);
    let bn = BatchNorm2d::new(params.scope("bn"), 1).unwrap();
    let batch = |numbers: [f64; 4]| Tensor::from_slice(&numbers, (1, 1, 2, 2), &Device::Cpu).unwrap();
    let mut pass = Pass::train();
    for numbers in [[1., 2., 3., 6.], [0., 0., 4., 4.]] {
        bn.forward(
            &Maps::from_tensor(&batch(numbers)).unwrap(),
            None,
            crate::kernels::Activation::None,
            &mut pass,
        )
        .unwrap();
    }
    pass.commit().unwrap();
    // Means 3 and 2; unbiased variances 14/3 and 16/3.
    let mean = 0.9 * (0.1 * 3.0) + 0.1 * 2.0;
    let var = 0.9 * (0.9 + 0.1 * 14.0 / 3.0) + 0.1 * 16.0 / 3.0;
    assert!((values(&params.buffers()["bn.running_mean"])[0] - mean).abs() < 1e-12);
    assert!((values(&params.buffers()["bn.running_var"])[0] - var).abs() < 1e-12);
    assert_eq!(params.buffers()["bn.num_batches_tracked"].to_scalar::<i64>().unwrap(), 2);
}

#[test]
fn one_value_per_channel_has_no_variance() {
    let mut params = params(DType::F32);
    let bn = BatchNorm2d::new(params.scope("bn"), 3).unwrap();
    let mut pass = Pass::train();
    let x = Tensor::ones((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let refused = bn
        .forward(&Maps::from_tensor(&x).unwrap(), None, crate::kernels::Activation::None, &mut pass)
        .and_then(|_| pass.commit());
    assert!(refused.is_err());
}

/// Closed form by hand: W2 relu(W1 f + b1) + b2.
#[test]
fn projection_is_linear_relu_linear() {
    let mut params = params(DType::F64);
    let head = Projection::new(params.scope("embed.0"), 2, 2).unwrap();
    let set = |name: &str, numbers: &[f64], shape: &[usize]| {
        let tensor = Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap();
        params.trainable()[name].set(&tensor).unwrap();
    };
    set("embed.0.0.weight", &[1., 2., -1., 0.], &[2, 2]);
    set("embed.0.0.bias", &[0.5, 0.5], &[2]);
    set("embed.0.2.weight", &[1., 1., 2., -1.], &[2, 2]);
    set("embed.0.2.bias", &[0., 1.], &[2]);
    let feature = Tensor::new(&[[1f64, 1.], [-1., 0.]], &Device::Cpu).unwrap();
    let embedding = head.forward(&feature, &mut Pass::train()).unwrap();
    // Hidden: [3.5, 0] and [0, 1.5].
    assert_eq!(values(&embedding), [3.5, 8.0, 1.5, -0.5]);
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    for (name, expected) in [("resnet9", "resnet8"), ("WRN-16-2", "wrn_16_2"), ("resnet32x3", "resnet32x4")] {
        let Err(ModelError::UnknownArchitecture { nearest, .. }) = check_name(name) else {
            panic!("{name} was accepted");
        };
        assert_eq!(nearest, expected, "{name}");
    }
    let words = check_name("vit").unwrap_err().to_string();
    assert!(words.contains("`vit`") && words.contains("resnet110"), "{words}");
}

#[test]
fn impossible_networks_are_refused() {
    for (channels, height, width) in [(1, 7, 7), (3, 32, 31), (0, 32, 32)] {
        let image = ImageShape { channels, height, width };
        let refused = build("resnet8", image, 10, &mut params(DType::F32)).err().unwrap();
        assert!(matches!(refused, ModelError::Image { .. }), "{refused}");
    }
    let refused = build("resnet8", TINY, 1, &mut params(DType::F32)).err().unwrap();
    assert!(matches!(refused, ModelError::Classes { classes: 1 }), "{refused}");
}

#[test]
fn a_batch_of_another_shape_is_refused() {
    let (_, network) = network("resnet8", TINY, 5, DType::F32);
    let other = ImageShape { channels: 3, ..TINY };
    let refused = network.forward(&images(other, 2, DType::F32), &mut Pass::eval()).unwrap_err().to_string();
    assert!(refused.contains("1x8x8") && refused.contains("3x8x8"), "{refused}");
}

#[test]
fn a_name_cannot_be_taken_twice() {
    let mut params = params(DType::F32);
    Conv2d::new(params.scope("conv1"), 1, 2, 3, 1).unwrap();
    let refused = Conv2d::new(params.scope("conv1"), 1, 2, 3, 1).unwrap_err().to_string();
    assert!(refused.contains("conv1.weight"), "{refused}");
}
