//! Pooling: closed forms with ties and borders, slopes, and agreement on every instruction set.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::super::PoolGeometry;
use super::agreement::{TOLERANCE, check};
use super::tensors::{adaptive_avg_pool2d, global_avg_pool, max_pool2d};
use super::{check_gradients, tensor};

fn pool(kernel: usize, stride: usize, padding: usize) -> PoolGeometry {
    PoolGeometry { kernel, stride, padding }
}

/// By hand: of equal values the first in reading order receives the gradient, and the border none.
#[test]
fn the_first_maximum_receives_the_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::new(&[[[[1.0, 1.0, -3.0], [1.0, 0.0, -3.0], [-2.0, -2.0, f64::NAN]]]], &Device::Cpu);
        let x = Var::from_tensor(&x.unwrap().to_dtype(dtype).unwrap()).unwrap();
        let y = max_pool2d(x.as_tensor(), pool(2, 2, 1)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let flat =
            |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let found = flat(&y);
        assert_eq!(found[..3], [1.0, 1.0, 1.0]);
        assert!(found[3].is_nan());
        assert_eq!(flat(grads.get(&x).unwrap()), [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let y = max_pool2d(x.as_tensor(), pool(2, 1, 0)).unwrap();
        let grads = y.narrow(2, 0, 1).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(flat(grads.get(&x).unwrap())[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn pooling_agrees_with_f64_and_with_slopes() {
    for (x, geometry) in [
        ([1, 1, 1, 1], pool(1, 1, 0)),
        ([2, 3, 8, 8], pool(2, 2, 0)),
        ([2, 17, 9, 7], pool(3, 2, 1)),
        ([1, 2, 5, 6], pool(3, 1, 1)),
        ([1, 2, 1, 2], pool(2, 5, 1)),
        ([2, 2, 11, 4], pool(4, 3, 2)),
    ] {
        check("max pooling", &|a| max_pool2d(&a[0], geometry), &[&x], TOLERANCE);
        for out in [(1, 1), (2, 3), (7, 7), (x[2], x[3]), (12, 1)] {
            check("adaptive pooling", &|a| adaptive_avg_pool2d(&a[0], out), &[&x], TOLERANCE);
        }
    }
    check_gradients(|a| max_pool2d(&a[0], pool(3, 2, 1)), &[&[1, 2, 5, 4]]);
    check_gradients(|a| adaptive_avg_pool2d(&a[0], (2, 3)), &[&[1, 2, 5, 4]]);
}

/// Seven pixels in three cells: 0..3, 2..5 and 4..7, as PyTorch cuts them.
#[test]
fn adaptive_cells_may_overlap() {
    let x = Tensor::arange(0f32, 7.0, &Device::Cpu).unwrap().reshape((1, 1, 1, 7)).unwrap();
    let y = adaptive_avg_pool2d(&x, (1, 3)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(y, [1.0, 3.0, 5.0]);
    let whole = adaptive_avg_pool2d(&x, (1, 1)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(whole, global_avg_pool(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
}

#[test]
fn impossible_pooling_is_refused_in_words() {
    let x = tensor(&[1, 1, 2, 2], 1, DType::F32);
    let refused = |g| max_pool2d(&x, g).map(|_| ()).unwrap_err().to_string();
    assert!(refused(pool(3, 1, 0)).contains("3x3 does not fit 2x2"));
    assert!(refused(pool(2, 1, 2)).contains("half of the kernel"));
    assert!(refused(pool(2, 0, 0)).contains("at least 1"));
    let e = adaptive_avg_pool2d(&x, (0, 1)).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("nothing to average"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pooling_agrees_with_f64(
        x in [1usize..4, 1usize..20, 1usize..12, 1usize..12],
        kernel in 1usize..6,
        stride in 1usize..5,
        padding in 0usize..3,
        out in [1usize..9, 1usize..9],
    ) {
        prop_assume!(padding <= kernel / 2 && x[2].min(x[3]) + 2 * padding >= kernel);
        check("max pooling", &|a| max_pool2d(&a[0], pool(kernel, stride, padding)), &[&x], TOLERANCE);
        check("adaptive pooling", &|a| adaptive_avg_pool2d(&a[0], (out[0], out[1])), &[&x], TOLERANCE);
    }
}
