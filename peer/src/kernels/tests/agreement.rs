//! Every fast kernel on every instruction set of this machine against candle's own ops in f64, and against
//! itself on other numbers of threads.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::super::cpu::isa::Isa;
use super::super::{Activation, ConvGeometry, Maps, Moments, PoolGeometry, linear, relu, stock};
use super::tensor;
use super::tensors::{
    adaptive_avg_pool2d, add, batch_norm_eval, batch_norm_train, conv2d, global_avg_pool, max_pool2d,
};

/// The instruction sets of this machine.
pub(super) fn sets() -> Vec<Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::best()).collect()
}

/// Result and gradients of `sum(f(args) * probe)` as flat vectors.
pub(super) fn evaluate(
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    shapes: &[&[usize]],
    dtype: DType,
) -> Vec<Vec<f64>> {
    let args: Vec<Var> = (0..shapes.len())
        .map(|i| tensor(shapes[i], i as u64 + 7, DType::F32).to_dtype(dtype).unwrap())
        .map(|t| Var::from_tensor(&t).unwrap())
        .collect();
    let tensors: Vec<Tensor> = args.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let probe = tensor(y.dims(), 99, DType::F32).to_dtype(y.dtype()).unwrap();
    let grads = (&y * &probe).unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    std::iter::once(flat(&y)).chain(args.iter().map(|a| flat(grads.get(a).unwrap()))).collect()
}

/// Compares f32 on every set with f64, relative to the largest value of each result.
pub(super) fn check(
    name: &str,
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    shapes: &[&[usize]],
    tolerance: f64,
) {
    let exact = evaluate(f, shapes, DType::F64);
    for isa in sets() {
        let fast = isa.scoped(|| evaluate(f, shapes, DType::F32));
        for (i, (fast, exact)) in fast.iter().zip(&exact).enumerate() {
            let scale = exact.iter().fold(1e-2, |m: f64, v| m.max(v.abs()));
            let error = fast.iter().zip(exact).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            assert!(
                error <= tolerance * scale && fast.iter().all(|v| v.is_finite()),
                "{name} {shapes:?} on {isa:?}, result {i}: error {error:e} of {scale:e}"
            );
        }
    }
}

pub(super) const TOLERANCE: f64 = 3e-6;

/// Batch, channels in, height, width, channels out, window, stride, padding.
type Case = ([usize; 4], usize, [usize; 2], usize, usize);

const CONVOLUTIONS: [Case; 22] = [
    ([1, 1, 1, 1], 1, [1, 1], 1, 0),
    ([1, 1, 1, 1], 1, [3, 3], 1, 1),
    ([2, 3, 9, 7], 16, [3, 3], 1, 1),
    ([2, 3, 32, 32], 5, [3, 3], 1, 1),
    ([3, 16, 8, 8], 16, [3, 3], 1, 1),
    ([3, 16, 7, 5], 32, [3, 3], 1, 1),
    ([2, 17, 6, 6], 33, [3, 3], 1, 1),
    ([1, 32, 4, 4], 50, [3, 3], 1, 1),
    ([2, 20, 12, 10], 20, [3, 3], 1, 1),
    ([2, 5, 11, 9], 7, [5, 5], 1, 2),
    ([2, 3, 17, 16], 8, [7, 7], 2, 3),
    ([2, 16, 8, 8], 32, [3, 3], 2, 1),
    ([2, 16, 9, 9], 32, [1, 1], 2, 0),
    ([1, 33, 5, 6], 18, [1, 1], 1, 0),
    ([2, 4, 3, 3], 4, [3, 3], 1, 0),
    ([2, 4, 2, 3], 4, [1, 1], 5, 0),
    ([1, 2, 3, 3], 2, [2, 2], 4, 1),
    ([1, 2, 5, 4], 3, [1, 1], 3, 2),
    ([2, 3, 6, 11], 4, [1, 5], 2, 2),
    ([1, 18, 2, 2], 17, [3, 3], 3, 1),
    ([1, 1, 1, 1], 1, [3, 3], 3, 2),
    ([2, 16, 30, 31], 17, [3, 3], 1, 1),
];

fn geometry(stride: usize, padding: usize) -> ConvGeometry {
    ConvGeometry { stride, padding, groups: 1 }
}

#[test]
fn convolutions_agree_with_f64() {
    for (x, co, [kh, kw], stride, padding) in CONVOLUTIONS {
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], geometry(stride, padding));
        check("convolution", &conv, &[&x, &[co, x[1], kh, kw]], TOLERANCE);
    }
}

/// Batch, channels, height, width; channels out; groups; window; stride; padding.
type GroupedCase = ([usize; 4], usize, usize, [usize; 2], usize, usize);

const GROUPED: [GroupedCase; 16] = [
    ([2, 16, 8, 8], 16, 16, [3, 3], 1, 1),
    ([2, 5, 32, 32], 5, 5, [3, 3], 1, 1),
    ([1, 20, 7, 5], 20, 20, [3, 3], 2, 1),
    ([3, 3, 8, 8], 3, 3, [3, 3], 2, 1),
    ([2, 4, 11, 9], 4, 4, [5, 5], 1, 2),
    ([2, 4, 12, 9], 4, 4, [5, 5], 2, 2),
    ([2, 4, 6, 7], 4, 4, [1, 1], 1, 0),
    ([2, 3, 1, 1], 3, 3, [3, 3], 1, 1),
    ([2, 3, 1, 1], 3, 3, [1, 1], 3, 0),
    ([1, 2, 2, 3], 2, 2, [1, 1], 5, 2),
    ([2, 3, 4, 17], 3, 3, [4, 2], 3, 0),
    ([1, 2, 5, 5], 2, 2, [5, 5], 1, 0),
    ([2, 4, 8, 8], 8, 4, [3, 3], 1, 1),
    ([3, 32, 8, 8], 64, 2, [3, 3], 1, 1),
    ([2, 15, 6, 5], 9, 3, [3, 3], 2, 1),
    ([2, 12, 4, 4], 30, 3, [1, 1], 1, 0),
];

#[test]
fn grouped_convolutions_agree_with_f64() {
    for (x, co, groups, [kh, kw], stride, padding) in GROUPED {
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], ConvGeometry { stride, padding, groups });
        check("grouped convolution", &conv, &[&x, &[co, x[1] / groups, kh, kw]], TOLERANCE);
    }
}

#[test]
fn normalisations_agree_with_f64() {
    for x in [[2, 1, 1, 1], [1, 3, 5, 5], [3, 16, 8, 8], [5, 7, 3, 2], [2, 20, 16, 16], [70, 2, 1, 3]] {
        let c = [x[1]];
        for act in [Activation::None, Activation::Relu] {
            let train = |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-3, a.get(3), act)?.0);
            let eval = |a: &[Tensor]| {
                let (mean, var) = (tensor(&c, 1, a[0].dtype()), (tensor(&c, 2, a[0].dtype()).abs()? + 0.1)?);
                batch_norm_eval(&a[0], &a[1], &a[2], &mean, &var, 1e-3, a.get(3), act)
            };
            for shapes in [&[&x[..], &c, &c][..], &[&x, &c, &c, &x]] {
                check("batch norm of training", &train, shapes, 2e-5);
                check("batch norm of evaluation", &eval, shapes, TOLERANCE);
            }
        }
    }
}

#[test]
fn moments_far_from_zero_agree_with_f64() {
    let x = (tensor(&[4, 3, 6, 7], 5, DType::F32) + 1000.0).unwrap();
    let one = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    let moments = |dtype: DType| {
        let (x, one) = (x.to_dtype(dtype).unwrap(), one.to_dtype(dtype).unwrap());
        let m = batch_norm_train(&x, &one, &one, 1e-5, None, Activation::None).unwrap().1;
        assert_eq!(m.count, 168);
        Tensor::cat(&[m.mean, m.var], 0).unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
    };
    let exact = moments(DType::F64);
    for isa in sets() {
        for (a, b) in isa.scoped(|| moments(DType::F32)).iter().zip(&exact) {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} against {b} on {isa:?}");
        }
    }
}

#[test]
fn pointwise_kernels_agree_with_f64() {
    for x in [[1, 1, 1, 1], [3, 5, 7, 3], [2, 33, 32, 32]] {
        check("relu", &|a| relu(&a[0]), &[&x], TOLERANCE);
        check("global average pooling", &|a| global_avg_pool(&a[0]), &[&x], TOLERANCE);
        check("sum", &|a| add(&a[0], &a[1]), &[&x, &x], TOLERANCE);
    }
    check("linear", &|a| linear(&a[0], &a[1], a.get(2)), &[&[3, 70], &[11, 70], &[11]], TOLERANCE);
}

#[test]
fn operands_and_gradients_may_be_strided() {
    let conv = |a: &[Tensor]| {
        let y = conv2d(&a[0].transpose(2, 3)?, &a[1].transpose(0, 1)?, geometry(1, 1))?;
        let bn = batch_norm_train(&y.transpose(0, 1)?, &a[2], &a[2], 1e-3, None, Activation::None)?.0;
        global_avg_pool(&relu(&bn.narrow(3, 1, 4)?)?)?.mean(1)
    };
    check("strided operands", &conv, &[&[3, 4, 6, 5], &[4, 8, 3, 3], &[3]], 1e-5);
}

/// Maps that several operations read receive the sum of what these send back, whoever holds the parts: here a branch
/// shares its gradient with the one beside it, and one operation reads the same maps twice.
#[test]
fn gradients_of_branches_add_up() {
    let branches = |a: &[Tensor]| {
        let x = Maps::from_tensor(&a[0])?;
        let both = super::super::add(&x, &x)?;
        let deep = super::super::conv2d(&both, &a[1], geometry(1, 1))?;
        let wide = super::super::add(&super::super::add(&both, &deep)?, &x)?;
        wide.to_tensor()? + (both.to_tensor()?.sqr()? + x.to_tensor()?)?
    };
    check("branches", &branches, &[&[2, 3, 5, 4], &[3, 3, 3, 3]], TOLERANCE);
}

/// As candle's own graphs, and with the same bits.
#[test]
fn a_graph_can_be_walked_twice() {
    let x = Var::from_tensor(&tensor(&[2, 3, 8, 8], 1, DType::F32)).unwrap();
    let w = Var::from_tensor(&tensor(&[4, 3, 3, 3], 2, DType::F32)).unwrap();
    let loss =
        conv2d(x.as_tensor(), w.as_tensor(), geometry(1, 1)).unwrap().sqr().unwrap().sum_all().unwrap();
    let walk = || {
        let grads = loss.backward().unwrap();
        [&x, &w].map(|v| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    assert!(walk() == walk());
}

#[test]
fn detached_maps_send_nothing_back() {
    let x = Var::from_tensor(&tensor(&[2, 3, 8, 8], 1, DType::F32)).unwrap();
    let maps = Maps::from_tensor(x.as_tensor()).unwrap();
    let y = super::super::add(&maps, &maps.detach()).unwrap().to_tensor().unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 1.0);
}

#[test]
fn an_input_without_gradient_gets_none() {
    let x = tensor(&[2, 3, 8, 8], 1, DType::F32);
    let w = Var::from_tensor(&tensor(&[4, 3, 3, 3], 2, DType::F32)).unwrap();
    let grads = conv2d(&x, w.as_tensor(), geometry(1, 1)).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_none() && grads.get(&w).is_some());
}

/// A small network through every kernel, with enough images that the parts of a batch are uneven.
fn network(a: &[Tensor]) -> Result<Tensor> {
    let y = conv2d(&a[0], &a[1], geometry(1, 1))?;
    let y = batch_norm_train(&y, &a[2], &a[2], 1e-5, None, Activation::Relu)?.0;
    let z = conv2d(&y, &a[3], geometry(1, 1))?;
    let z = batch_norm_train(&z, &a[2], &a[2], 1e-5, Some(&y), Activation::Relu)?.0;
    let z = relu(&conv2d(&z, &a[4], geometry(2, 0))?)?;
    let z = conv2d(&z, &a[6], ConvGeometry { stride: 1, padding: 1, groups: 35 })?;
    let z = conv2d(&z, &a[7], ConvGeometry { stride: 1, padding: 0, groups: 5 })?;
    let z = max_pool2d(&z, PoolGeometry { kernel: 3, stride: 1, padding: 1 })?;
    let z = adaptive_avg_pool2d(&z, (3, 2))?;
    linear(&global_avg_pool(&z)?, &a[5], None)
}

#[test]
fn bits_do_not_depend_on_threads() {
    let shapes: [&[usize]; 8] = [
        &[83, 3, 10, 10],
        &[20, 3, 3, 3],
        &[20],
        &[20, 20, 3, 3],
        &[35, 20, 1, 1],
        &[10, 35],
        &[35, 1, 3, 3],
        &[35, 7, 1, 1],
    ];
    for isa in sets() {
        let of_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| isa.scoped(|| evaluate(&network, &shapes, DType::F32)))
        };
        let one = of_threads(1);
        for threads in [1, 2, 3] {
            assert!(of_threads(threads) == one, "{threads} threads on {isa:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_convolution_agrees_with_f64(
        x in [1usize..4, 1usize..40, 1usize..12, 1usize..12],
        co in 1usize..40,
        window in [1usize..6, 1usize..6],
        stride in 1usize..4,
        padding in 0usize..4,
    ) {
        let [kh, kw] = window;
        prop_assume!(x[2] + 2 * padding >= kh && x[3] + 2 * padding >= kw);
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], geometry(stride, padding));
        check("convolution", &conv, &[&x, &[co, x[1], kh, kw]], TOLERANCE);
    }

    #[test]
    fn any_grouped_convolution_agrees_with_f64(
        x in [1usize..3, 1usize..4, 1usize..14, 1usize..20],
        groups in 2usize..5,
        co in 1usize..4,
        window in [1usize..6, 1usize..6],
        stride in 1usize..4,
        padding in 0usize..4,
    ) {
        let [kh, kw] = window;
        prop_assume!(x[2] + 2 * padding >= kh && x[3] + 2 * padding >= kw);
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], ConvGeometry { stride, padding, groups });
        for (ci, co) in [(1, 1), (x[1], co)] {
            let x = [x[0], ci * groups, x[2], x[3]];
            check("grouped convolution", &conv, &[&x, &[co * groups, ci, kh, kw]], TOLERANCE);
        }
    }

    /// The shapes that go through Winograd's form.
    #[test]
    fn any_3x3_convolution_of_many_channels_agrees_with_f64(
        x in [1usize..3, 16usize..40, 4usize..14, 4usize..14],
        co in 16usize..40,
    ) {
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], geometry(1, 1));
        check("convolution", &conv, &[&x, &[co, x[1], 3, 3]], TOLERANCE);
    }
}

/// The path of f64 in main memory against candle's own ops, result and gradients.
#[test]
fn wide_operations_agree_with_candle() {
    let check = |name: &str,
                 wide: &dyn Fn(&[Tensor]) -> Result<Tensor>,
                 candle: &dyn Fn(&[Tensor]) -> Result<Tensor>,
                 shapes: &[&[usize]]| {
        let (wide, candle) = (evaluate(wide, shapes, DType::F64), evaluate(candle, shapes, DType::F64));
        for (i, (wide, candle)) in wide.iter().zip(&candle).enumerate() {
            let scale = candle.iter().fold(1e-2, |m: f64, v| m.max(v.abs()));
            let error = wide.iter().zip(candle).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            assert!(error <= 1e-13 * scale, "{name} {shapes:?}, result {i}: error {error:e} of {scale:e}");
        }
    };
    let ungrouped = CONVOLUTIONS.map(|(x, co, window, stride, padding)| (x, co, 1, window, stride, padding));
    for (x, co, groups, [kh, kw], stride, padding) in ungrouped.into_iter().chain(GROUPED) {
        let geometry = ConvGeometry { stride, padding, groups };
        let wide = |a: &[Tensor]| conv2d(&a[0], &a[1], geometry);
        let candle = |a: &[Tensor]| stock::conv2d(&a[0], &a[1], geometry);
        check("convolution", &wide, &candle, &[&x, &[co, x[1] / groups, kh, kw]]);
    }
    for x in [&[2, 1, 1, 1][..], &[3, 16, 8, 8], &[5, 7, 3, 2], &[70, 2, 1, 3], &[6, 5]] {
        let wide = |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-3, None, Activation::None)?.0);
        let candle = |a: &[Tensor]| Ok(stock::batch_norm_train(&a[0], &a[1], &a[2], 1e-3)?.0);
        check("batch norm", &wide, &candle, &[x, &[x[1]], &[x[1]]]);
        let moments = |of: &dyn Fn(&Tensor) -> Moments| {
            let moments = of(&tensor(x, 5, DType::F64));
            (Tensor::cat(&[moments.mean, moments.var], 0).unwrap().to_vec1::<f64>().unwrap(), moments.count)
        };
        let [one, zero] = [1.0, 0.0].map(|v| Tensor::full(v, x[1], &Device::Cpu).unwrap());
        let (wide, count) =
            moments(&|x| batch_norm_train(x, &one, &zero, 1e-3, None, Activation::None).unwrap().1);
        let (candle, of_candle) = moments(&|x| stock::batch_norm_train(x, &one, &zero, 1e-3).unwrap().1);
        assert_eq!(count, of_candle);
        assert!(
            wide.iter().zip(&candle).all(|(a, b)| (a - b).abs() <= 1e-14),
            "{x:?}: {wide:?} against {candle:?}"
        );
    }
}
