//! The loss and the update: closed forms, bits of the reference, and agreement on every instruction set.

use candle_core::{DType, Device, Tensor, Var};

use super::super::*;
use super::agreement::{TOLERANCE, check, sets};
use super::{check_gradients, tensor, values};

#[test]
fn sgd_follows_the_recurrence() {
    for (nesterov, momentum, weight_decay) in [(true, 0.9, 0.1), (false, 0.9, 0.1), (false, 0.0, 0.0)] {
        for dtype in [DType::F32, DType::F64] {
            let sgd = Sgd { lr: 0.5, momentum, weight_decay, nesterov };
            let param = Var::from_tensor(&tensor(&[3, 5], 1, dtype)).unwrap();
            let velocity = Var::zeros((3, 5), dtype, &Device::Cpu).unwrap();
            let (mut p, mut v) = (values(&[3, 5], 1), vec![0.0; 15]);
            for step in 0..4 {
                let grad = (step != 2).then(|| tensor(&[3, 5], 10 + step, dtype));
                sgd_step(&param, &velocity, grad.as_ref(), sgd).unwrap();
                let g = if step == 2 { vec![0.0; 15] } else { values(&[3, 5], 10 + step) };
                for i in 0..15 {
                    let d = g[i] + weight_decay * p[i];
                    v[i] = momentum * v[i] + d;
                    p[i] -= 0.5 * if nesterov { d + momentum * v[i] } else { v[i] };
                }
            }
            let got = param.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-14 };
            assert!(got.iter().zip(&p).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} against {p:?}");
        }
    }
}

/// Every operation is rounded by itself on both paths.
#[test]
fn fused_sgd_has_the_bits_of_the_reference() {
    for nesterov in [true, false] {
        let sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov };
        let updated = |step: fn(&Var, &Var, Option<&Tensor>, Sgd) -> Result<()>| {
            let shape = [3, 7, 1000];
            let param = Var::from_tensor(&tensor(&shape, 1, DType::F32)).unwrap();
            let velocity = Var::from_tensor(&tensor(&shape, 2, DType::F32)).unwrap();
            step(&param, &velocity, Some(&tensor(&shape, 3, DType::F32)), sgd).unwrap();
            [param, velocity].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        for isa in sets() {
            assert!(isa.scoped(|| updated(sgd_step)) == updated(stock::sgd_step), "{isa:?}");
        }
    }
}

#[test]
fn sgd_takes_a_strided_gradient() {
    let grad = tensor(&[5, 3], 3, DType::F32).t().unwrap();
    let sgd = Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0, nesterov: false };
    let zeros = || Var::zeros((3, 5), DType::F32, &Device::Cpu).unwrap();
    let (param, velocity) = (zeros(), zeros());
    sgd_step(&param, &velocity, Some(&grad), sgd).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&param), flat(&grad.neg().unwrap()));
}

/// It would wait for itself.
#[test]
fn an_update_from_its_own_memory_is_refused_in_words() {
    let (param, velocity) =
        (Var::zeros(3, DType::F32, &Device::Cpu).unwrap(), Var::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let sgd = Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0, nesterov: false };
    let e = sgd_step(&param, &velocity, Some(&param.as_detached_tensor()), sgd).unwrap_err();
    assert!(e.to_string().contains("its own memory"), "{e}");
    assert!(sgd_step(&param, &param, None, sgd).is_err());
}

fn labels(rows: usize, classes: usize) -> Tensor {
    Tensor::from_iter((0..rows).map(|i| (i * i + 1) as u32 % classes as u32), &Device::Cpu).unwrap()
}

#[test]
fn cross_entropy_agrees_with_f64_and_with_slopes() {
    for (rows, classes) in [(1, 1), (3, 2), (37, 10), (70, 1000)] {
        let labels = labels(rows, classes);
        check("cross-entropy", &|a| softmax_cross_entropy(&a[0], &labels), &[&[rows, classes]], TOLERANCE);
    }
    let labels = labels(4, 3);
    check_gradients(|a| softmax_cross_entropy(&a[0], &labels), &[&[4, 3]]);
}

/// log(1 + e^-d) of two classes at a distance d, and no overflow far from zero.
#[test]
fn cross_entropy_is_that_of_two_classes() {
    let loss = |z: &[[f32; 2]]| {
        let z = Tensor::new(z.as_flattened(), &Device::Cpu).unwrap().reshape((z.len(), 2)).unwrap();
        softmax_cross_entropy(&z, &Tensor::zeros(z.dim(0).unwrap(), DType::I64, &Device::Cpu).unwrap())
            .unwrap()
    };
    assert_eq!(loss(&[[0.0, 0.0]]).to_scalar::<f64>().unwrap(), 2f64.ln());
    let two = loss(&[[3e4, 3e4 - 2.0], [-1e30, 1e30]]).to_scalar::<f64>().unwrap();
    let (near, far) = ((-2f64).exp().ln_1p(), 2.0 * f64::from(1e30f32));
    assert!((two - (near + far) / 2.0).abs() <= 1e-15 * far, "{two}");
    assert!(loss(&[[f32::NAN, 0.0]]).to_scalar::<f64>().unwrap().is_nan());
}

#[test]
fn labels_that_are_no_class_are_refused_in_words() {
    let z = tensor(&[2, 3], 1, DType::F32);
    let refused = |labels: &[i64]| {
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        softmax_cross_entropy(&z, &labels).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&[0, 3]).contains("label 3"));
    assert!(refused(&[-1, 0]).contains("label -1"));
    assert!(refused(&[0]).contains("with 1 labels"));
}
