//! Against PyTorch's numbers, closed forms, and what must be refused.

use candle_core::{DType, Device, Tensor};

use super::{Gradients, OptimError, Sgd, SgdConfig, clip_global_norm, global_norm};
use crate::models::{Init, Params, StateError};

/// Four steps of `torch.optim.SGD` in float64: momentum 0.9, weight decay 5e-4, lr = 0.05 (1 + cos(pi t / 12)).
struct Course {
    nesterov: bool,
    start: [f64; 3],
    gradients: [[f64; 3]; 4],
    expected: [[f64; 3]; 4],
}

#[rustfmt::skip]
const COURSES: [Course; 2] = [
    Course {
        nesterov: true,
        start: [0.7212466597557068, 1.5285828113555908, 0.6460229754447937],
        gradients: [[-0.3190953731536865, 1.1598163843154907, 1.14324152469635], [-0.6073428392410278, 0.5814002752304077, -1.2596653699874878], [1.5889248847961426, 1.236041784286499, 0.5598738193511963], [0.519345760345459, -0.7952869534492493, 0.10000785440206528]],
        expected: [[0.7818062622222305, 1.3080724829685688, 0.4287457135698199], [0.9205400579359048, 1.10696087194451, 0.5729138978229147], [0.706334981176131, 0.7648196739627051, 0.49101331844365714], [0.5677827714246344, 0.7070257355515863, 0.4503530970299085]],
    },
    Course {
        nesterov: false,
        start: [-0.32845890522003174, -1.8356207609176636, 0.5415105819702148],
        gradients: [[0.2771843373775482, 0.546377420425415, 1.535547137260437], [-1.363973617553711, -0.3292883038520813, -2.0723114013671875], [-0.7476547360420227, -0.09249083697795868, -2.2570924758911133], [0.42327216267585754, 0.25382623076438904, -0.6083241105079651]],
        expected: [[-0.3561609160125256, -1.8901667219221592, 0.38792879271507263], [-0.2465769076133555, -1.9059609957472297, 0.4557415692623499], [-0.08319441619781325, -1.9107350741559561, 0.7242400278043845], [0.01520192752437811, -1.936249700338686, 0.9972016235287203]],
    },
];

const CONFIG: SgdConfig = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, clip_norm: 0.0 };

/// A registry with one vector `w`.
fn one(dtype: DType, values: &[f64]) -> Params {
    let mut params = Params::new(7, "a", dtype, &Device::Cpu).unwrap();
    let var = params.root().trainable("w", &[values.len()], Init::Zeros).unwrap();
    var.set(&vector(dtype, values)).unwrap();
    params
}

fn vector(dtype: DType, values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn gradient(dtype: DType, values: &[f64]) -> Gradients {
    Gradients::from([("w".to_owned(), vector(dtype, values))])
}

fn values(params: &Params) -> Vec<f64> {
    params.trainable()["w"].to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    let worst = found.iter().zip(expected).fold(0f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(found.len() == expected.len() && worst <= tolerance, "{found:?} instead of {expected:?}");
}

#[test]
fn steps_are_those_of_pytorch() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6)] {
        for course in &COURSES {
            let params = one(dtype, &course.start);
            let mut sgd = Sgd::new(&params, SgdConfig { nesterov: course.nesterov, ..CONFIG }).unwrap();
            for (t, (g, expected)) in course.gradients.iter().zip(&course.expected).enumerate() {
                let lr = 0.05 * (1.0 + (std::f64::consts::PI * t as f64 / 12.0).cos());
                sgd.step(&params, gradient(dtype, g), lr).unwrap();
                assert_close(&values(&params), expected, tolerance);
            }
        }
    }
}

/// Closed form of two steps of lr 0.1 from 1: without a gradient only weight decay acts, and momentum afterwards.
#[test]
fn a_parameter_without_a_gradient_takes_part() {
    let params = one(DType::F64, &[1.0]);
    let config = SgdConfig { momentum: 0.5, nesterov: false, weight_decay: 0.2, clip_norm: 0.0 };
    let mut sgd = Sgd::new(&params, config).unwrap();
    sgd.step(&params, Gradients::new(), 0.1).unwrap();
    assert_close(&values(&params), &[0.98], 1e-15);
    sgd.step(&params, Gradients::new(), 0.1).unwrap();
    // d = 0.2 * 0.98, v = 0.5 * 0.2 + d.
    assert_close(&values(&params), &[0.98 - 0.1 * (0.1 + 0.196)], 1e-15);
}

/// The norm is taken over all tensors together and before weight decay: (3, 4) and 12 make 13.
#[test]
fn clipping_follows_the_closed_form() {
    let make = || {
        Gradients::from([
            ("a".into(), vector(DType::F64, &[3.0, 4.0])),
            ("b".into(), vector(DType::F64, &[12.0])),
        ])
    };
    assert_close(&[global_norm(&make()).unwrap()], &[13.0], 1e-12);
    for (limit, factor) in [(0.0, 1.0), (20.0, 1.0), (1.3, 1.3 / (13.0 + 1e-6))] {
        let mut gradients = make();
        assert_close(&[clip_global_norm(&mut gradients, limit).unwrap()], &[13.0], 1e-12);
        assert_close(&gradients["a"].to_vec1::<f64>().unwrap(), &[3.0 * factor, 4.0 * factor], 1e-12);
        assert_close(&gradients["b"].to_vec1::<f64>().unwrap(), &[12.0 * factor], 1e-12);
    }
    let params = one(DType::F64, &[10.0, 0.0]);
    let config = SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.1, clip_norm: 1.0 };
    let norm =
        Sgd::new(&params, config).unwrap().step(&params, gradient(DType::F64, &[3.0, 4.0]), 1.0).unwrap();
    assert_eq!(norm, Some(5.0));
    let factor = 1.0 / (5.0 + 1e-6);
    assert_close(&values(&params), &[10.0 - 3.0 * factor - 1.0, -4.0 * factor], 1e-12);
}

#[test]
fn a_restored_optimiser_goes_on_bit_for_bit() {
    let gradients = COURSES[0].gradients;
    let run = |restore: bool| {
        let mut params = one(DType::F32, &COURSES[0].start);
        let mut sgd = Sgd::new(&params, CONFIG).unwrap();
        for (t, g) in gradients.iter().enumerate() {
            if restore && t == 2 {
                let (weights, state) = (params.state_dict().unwrap(), sgd.state_dict().unwrap());
                assert_eq!(state.keys().collect::<Vec<_>>(), ["w.momentum_buffer"]);
                params = one(DType::F32, &[0.0; 3]);
                params.load(&weights, crate::models::Strictness::Strict).unwrap();
                sgd = Sgd::new(&params, CONFIG).unwrap();
                sgd.load(&state).unwrap();
            }
            sgd.step(&params, gradient(DType::F32, g), 0.1).unwrap();
        }
        params.trainable()["w"].to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn reset_forgets_the_velocity() {
    let params = one(DType::F64, &[1.0]);
    let mut sgd = Sgd::new(&params, CONFIG).unwrap();
    sgd.step(&params, gradient(DType::F64, &[2.0]), 0.1).unwrap();
    assert!(sgd.state_dict().unwrap()["w.momentum_buffer"].to_vec1::<f64>().unwrap()[0] > 1.0);
    sgd.reset().unwrap();
    assert_eq!(sgd.state_dict().unwrap()["w.momentum_buffer"].to_vec1::<f64>().unwrap(), [0.0]);
}

#[test]
fn foreign_state_and_gradients_are_refused() {
    let params = one(DType::F64, &[1.0, 2.0]);
    let mut sgd = Sgd::new(&params, CONFIG).unwrap();
    let mut state = sgd.state_dict().unwrap();
    state.insert("v.momentum_buffer".into(), vector(DType::F64, &[0.0]));
    let refused = sgd.load(&state).unwrap_err();
    assert!(
        matches!(&refused, StateError::Mismatch(_)) && refused.to_string().contains("v.momentum_buffer"),
        "{refused}"
    );

    let unknown = Gradients::from([("v".to_owned(), vector(DType::F64, &[1.0]))]);
    assert!(sgd.step(&params, unknown, 0.1).unwrap_err().to_string().contains("`v`"));
    assert!(sgd.step(&params, gradient(DType::F64, &[1.0, 2.0, 3.0]), 0.1).is_err());
    let mut grown = one(DType::F64, &[1.0, 2.0]);
    grown.root().trainable("z", &[1], Init::Zeros).unwrap();
    assert!(sgd.step(&grown, Gradients::new(), 0.1).unwrap_err().to_string().contains("`z`"));
    assert_eq!(values(&params), [1.0, 2.0]);
    assert_eq!(values(&grown), [1.0, 2.0]);
}

#[test]
fn impossible_settings_are_refused() {
    let refused = |config: SgdConfig| config.check().unwrap_err();
    for momentum in [-0.1, 1.0, f64::NAN] {
        assert!(matches!(
            refused(SgdConfig { momentum, ..CONFIG }),
            OptimError::OutOfRange { name: "momentum", .. }
        ));
    }
    for value in [-1.0, f64::NAN, f64::INFINITY] {
        let decay = refused(SgdConfig { weight_decay: value, ..CONFIG });
        assert!(decay.to_string().starts_with("weight_decay = "), "{decay}");
        let clip = refused(SgdConfig { clip_norm: value, ..CONFIG });
        assert!(clip.to_string().starts_with("clip_norm = "), "{clip}");
    }
    assert_eq!(refused(SgdConfig { momentum: 0.0, ..CONFIG }), OptimError::NesterovWithoutMomentum);
    assert!(CONFIG.check().is_ok());
    assert!(Sgd::new(&one(DType::F32, &[1.0]), SgdConfig { momentum: 2.0, ..CONFIG }).is_err());
}
