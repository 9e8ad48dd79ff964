//! The door against closed forms and finite differences in f64.

mod tensors;
mod agreement;
mod slopes;
mod pooling;
mod gates;
mod training;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{Activation, ConvGeometry, linear, relu};
use tensors::{batch_norm_eval, batch_norm_train, conv2d, global_avg_pool};

/// Values in [-1, 1) that look random and are the same everywhere.
pub(super) fn values(shape: &[usize], seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0xD1B5_4A32_D192_ED03);
    (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub(super) fn tensor(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    Tensor::from_vec(values(shape, seed), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Compares the gradients of `sum(f(args) * probe)` with central differences in f64.
pub(super) fn check_gradients(f: impl Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]) {
    let args: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| Var::from_tensor(&tensor(shape, i as u64 + 1, DType::F64)).unwrap())
        .collect();
    let tensors: Vec<Tensor> = args.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let probe = tensor(y.dims(), 99, DType::F64);
    let grads = (&y * &probe).unwrap().sum_all().unwrap().backward().unwrap();
    let h = 1e-6;
    for (i, arg) in args.iter().enumerate() {
        let grad = grads.get(arg).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (j, expected) in grad.iter().enumerate() {
            let at = |delta: f64| {
                let mut moved = tensors.clone();
                let mut flat = tensors[i].flatten_all().unwrap().to_vec1::<f64>().unwrap();
                flat[j] += delta;
                moved[i] = Tensor::from_vec(flat, tensors[i].shape(), &Device::Cpu).unwrap();
                let y = (f(&moved).unwrap() * &probe).unwrap();
                y.sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - expected).abs() < 1e-6, "argument {i} element {j}: {slope} against {expected}");
        }
    }
}

#[test]
fn gradients_of_convolutions_are_slopes() {
    for (stride, padding, groups, x, w) in [
        (1, 1, 1, [2, 3, 4, 5], [4, 3, 3, 3]),
        (2, 1, 1, [2, 2, 5, 5], [3, 2, 3, 3]),
        (2, 0, 1, [1, 2, 4, 4], [3, 2, 1, 1]),
        (3, 2, 1, [1, 2, 1, 2], [2, 2, 1, 1]),
        (1, 1, 2, [2, 4, 3, 3], [6, 2, 3, 3]),
        (2, 1, 3, [2, 3, 4, 3], [3, 1, 3, 3]),
    ] {
        let geometry = ConvGeometry { stride, padding, groups };
        check_gradients(|a| conv2d(&a[0], &a[1], geometry), &[&x, &w]);
    }
}

#[test]
fn gradients_of_normalisations_are_slopes() {
    for act in [Activation::None, Activation::Relu] {
        let bn = |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-5, a.get(3), act)?.0);
        check_gradients(bn, &[&[3, 2, 2, 3], &[2], &[2]]);
        check_gradients(bn, &[&[3, 2, 2, 3], &[2], &[2], &[3, 2, 2, 3]]);
        check_gradients(bn, &[&[4, 3], &[3], &[3]]);
        let var = tensor(&[2], 50, DType::F64).abs().unwrap();
        let mean = tensor(&[2], 51, DType::F64);
        let eval = |a: &[Tensor]| batch_norm_eval(&a[0], &a[1], &a[2], &mean, &var, 1e-3, a.get(3), act);
        check_gradients(eval, &[&[3, 2, 2, 3], &[2], &[2], &[3, 2, 2, 3]]);
    }
}

#[test]
fn gradients_of_pooling_relu_and_linear_are_slopes() {
    check_gradients(|a| global_avg_pool(&a[0]), &[&[2, 3, 2, 4]]);
    check_gradients(|a| relu(&a[0]), &[&[2, 3, 2, 4]]);
    check_gradients(|a| linear(&a[0], &a[1], a.get(2)), &[&[3, 4], &[5, 4], &[5]]);
    check_gradients(|a| linear(&a[0], &a[1], None), &[&[3, 4], &[5, 4]]);
}

#[test]
fn relu_has_slope_zero_at_zero_and_keeps_nan() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::new(&[-1.0, 0.0, 2.0, f64::NAN, f64::NEG_INFINITY], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let y = relu(x.as_tensor()).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let slope = grads.get(&x).unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(slope[..3], [0.0, 0.0, 1.0]);
        let y = y.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!((y[0], y[1], y[2], y[4]), (0.0, 0.0, 2.0, 0.0));
        assert!(y[3].is_nan());
    }
}

#[test]
fn moments_are_those_of_the_batch() {
    for dtype in [DType::F32, DType::F64] {
        let x =
            Tensor::new(&[[[[1.0, 2.0]], [[0.0, 4.0]]], [[[3.0, 6.0]], [[0.0, 0.0]]]], &Device::Cpu).unwrap();
        let x = x.to_dtype(dtype).unwrap();
        let gamma = Tensor::ones(2, dtype, &Device::Cpu).unwrap();
        let beta = gamma.zeros_like().unwrap();
        let (y, moments) = batch_norm_train(&x, &gamma, &beta, 0.0, None, Activation::None).unwrap();
        assert_eq!(moments.count, 4);
        assert_eq!(moments.mean.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), [3.0, 1.0]);
        assert_eq!(moments.var.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), [3.5, 3.0]);
        let y = y.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!((y[5] - 3.0 / 3.5f64.sqrt()).abs() < 1e-6, "{y:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let geometry = ConvGeometry { stride: 1, padding: 0, groups: 1 };
    let x = tensor(&[1, 3, 2, 2], 1, DType::F32);
    let refused = |w: &[usize], g: ConvGeometry| {
        conv2d(&x, &tensor(w, 2, DType::F32), g).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&[4, 2, 1, 1], geometry).contains("does not fit weights"));
    assert!(refused(&[4, 3, 3, 3], geometry).contains("window 3x3"));
    assert!(refused(&[4, 3, 1, 1], ConvGeometry { stride: 0, ..geometry }).contains("at least 1"));

    let one = tensor(&[1, 3, 1, 1], 1, DType::F32);
    let c = tensor(&[3], 2, DType::F32);
    let e = batch_norm_train(&one, &c, &c, 1e-5, None, Activation::None).unwrap_err();
    assert!(e.to_string().contains("no variance"), "{e}");
    let e = batch_norm_train(&x, &c, &tensor(&[2], 3, DType::F32), 1e-5, None, Activation::None).unwrap_err();
    assert!(e.to_string().contains("3 channels"), "{e}");
}

/// Products of such sizes would wrap around, and checks made of them pass.
#[test]
fn absurd_sizes_are_refused_in_words() {
    let (x, w) = (tensor(&[1, 1, 4, 4], 1, DType::F32), tensor(&[1, 1, 3, 3], 2, DType::F32));
    for padding in [1 << 30, 1 << 62, 1 << 63, usize::MAX] {
        let e = conv2d(&x, &w, ConvGeometry { stride: 1, padding, groups: 1 }).unwrap_err();
        assert!(e.to_string().contains("any memory"), "{e}");
    }
    let none = Tensor::zeros((0, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let e = conv2d(&x, &none, ConvGeometry { stride: 1, padding: 1, groups: 1 }).unwrap_err();
    assert!(e.to_string().contains("nothing to compute"), "{e}");
}
