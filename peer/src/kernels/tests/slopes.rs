//! The fast backward passes in f32 against differences of the fast forward passes themselves, on every instruction set.
//!
//! The output is projected on random numbers and summed in f64, so that only the kernel rounds. Each argument moves both
//! ways along a few random directions, in which every one of its values takes part; the displacement is what is left of
//! it after rounding to f32. What a difference should be is then `sum_i g_i d_i`, whose size for a random direction is
//! the root of `sum_i (g_i d_i)^2`: errors are relative to that. One wrong value among n is seen as 1/sqrt(n) of it,
//! 1e-2 for the largest arguments here, a thousand times the tolerance.

use candle_core::{DType, Result, Tensor, Var};

use super::super::{Activation, ConvGeometry, Gate, Maps, PoolGeometry, linear, relu, softmax_cross_entropy};
use super::agreement::sets;
use super::tensor;
use super::tensors::{
    adaptive_avg_pool2d, add, batch_norm_eval, batch_norm_train, conv2d, global_avg_pool, max_pool2d,
};

const F32: DType = DType::F32;

/// How far the arguments move, in units of their own size, and how far the difference may be from the slope.
#[derive(Clone, Copy)]
struct Scheme {
    step: f64,
    tolerance: f64,
}

/// Linear in each argument: a difference is exact at any displacement. One as large as the argument leaves the rounding
/// of f32 alone: 6e-8 for each of the results and partial sums, which have random signs; Winograd's sums and differences
/// multiply it by a few.
const LINEAR: Scheme = Scheme { step: 1.0, tolerance: 5e-6 };

/// Linear as long as the arguments keep their order or their signs, which they do up to this displacement. The results
/// are arguments themselves, so that only the gradient is rounded.
const PIECEWISE: Scheme = Scheme { step: 1.0 / 256.0, tolerance: 1e-6 };

/// Smooth: central differences are off by `step^2 / 6` third derivatives, 1e-5 of the slope, and by the rounding of f32
/// over the displacement, 6e-8 / 8e-3 = 8e-6; the two are nearly balanced.
const SMOOTH: Scheme = Scheme { step: 1.0 / 128.0, tolerance: 2e-4 };

/// Computed in f64 from logits in f32: left are truncation, `step^2 / 6`, and the rounding of the gradient itself.
const WIDE: Scheme = Scheme { step: 1.0 / 1024.0, tolerance: 1e-6 };

/// Compares `f`'s gradients by all `args` with its slopes.
fn check_slopes(name: &str, f: &dyn Fn(&[Tensor]) -> Result<Tensor>, args: &[Tensor], scheme: Scheme) {
    for isa in sets() {
        isa.scoped(|| {
            let vars: Vec<Var> = args.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
            let y = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
            // With a mean, so that what a gradient loses by the mean of a batch weighs as much as the rest.
            let probe = wide(&(tensor(y.dims(), 99, F32) + 0.5).unwrap());
            let projected = |y: &Tensor| (y.to_dtype(DType::F64)? * &probe)?.sum_all();
            let gradients = projected(&y).unwrap().backward().unwrap();
            let at = |i: usize, moved: &Tensor| {
                let args: Vec<Tensor> =
                    (0..args.len()).map(|j| if j == i { moved } else { &args[j] }.clone()).collect();
                projected(&f(&args).unwrap()).unwrap().to_scalar::<f64>().unwrap()
            };
            for (i, arg) in args.iter().enumerate() {
                let gradient = wide(gradients.get(&vars[i]).unwrap());
                for direction in 0..3 {
                    let [ahead, behind] = moved(arg, scheme.step, 1000 + direction);
                    let (difference, displacement) =
                        (at(i, &ahead) - at(i, &behind), (wide(&ahead) - wide(&behind)).unwrap());
                    let products =
                        (&gradient * displacement).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    let expected: f64 = products.iter().sum();
                    let size = products.iter().map(|p| p * p).sum::<f64>().sqrt();
                    let error = (difference - expected).abs();
                    assert!(
                        error <= scheme.tolerance * size && size > 0.0,
                        "{name} on {isa:?}, argument {i} {:?}, direction {direction}: {difference:e} against \
                         {expected:e}, off by {:e}",
                        arg.dims(),
                        error / size
                    );
                }
            }
        });
    }
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// The argument moved both ways along a random direction.
fn moved(arg: &Tensor, step: f64, seed: u64) -> [Tensor; 2] {
    let by = (tensor(arg.dims(), seed, F32) * step).unwrap();
    [(arg + &by).unwrap(), (arg - &by).unwrap()]
}

/// Arguments without any order, one of each shape.
fn arguments(shapes: &[&[usize]]) -> Vec<Tensor> {
    shapes.iter().zip(7..).map(|(shape, seed)| tensor(shape, seed, F32)).collect()
}

/// Numbers of either sign and of sizes from 3/4 to 1.
fn away_from_zero(shape: &[usize], seed: u64) -> Tensor {
    let size = ((tensor(shape, seed, F32).abs().unwrap() * 0.25).unwrap() + 0.75).unwrap();
    let sign = (tensor(shape, seed + 100, F32).ge(0.0).unwrap().to_dtype(F32).unwrap() * 2.0).unwrap();
    ((sign - 1.0).unwrap() * size).unwrap()
}

fn check_convolutions(cases: &[([usize; 4], [usize; 4], ConvGeometry)]) {
    for (x, w, geometry) in cases {
        let conv = |a: &[Tensor]| conv2d(&a[0], &a[1], *geometry);
        check_slopes(&format!("convolution {x:?} {w:?} {geometry:?}"), &conv, &arguments(&[x, w]), LINEAR);
    }
}

fn geometry(stride: usize, padding: usize, groups: usize) -> ConvGeometry {
    ConvGeometry { stride, padding, groups }
}

/// 3x3 of stride 1 with many channels; the last has several images in each part of the batch.
#[test]
fn winograd() {
    check_convolutions(&[
        ([2, 16, 8, 8], [16, 16, 3, 3], geometry(1, 1, 1)),
        ([2, 20, 9, 7], [33, 20, 3, 3], geometry(1, 1, 1)),
        ([35, 16, 4, 5], [16, 16, 3, 3], geometry(1, 1, 1)),
    ]);
}

#[test]
fn convolutions_of_3x3() {
    check_convolutions(&[
        ([2, 3, 9, 8], [16, 3, 3, 3], geometry(1, 1, 1)),
        ([2, 16, 8, 9], [32, 16, 3, 3], geometry(2, 1, 1)),
        ([35, 5, 4, 3], [7, 5, 3, 3], geometry(2, 1, 1)),
    ]);
}

#[test]
fn convolutions_of_1x1() {
    check_convolutions(&[
        ([2, 33, 5, 6], [18, 33, 1, 1], geometry(1, 0, 1)),
        ([2, 16, 9, 8], [32, 16, 1, 1], geometry(2, 0, 1)),
    ]);
}

#[test]
fn convolutions_of_large_windows() {
    check_convolutions(&[
        ([2, 5, 9, 8], [18, 5, 5, 5], geometry(1, 2, 1)),
        ([2, 17, 8, 9], [4, 17, 5, 5], geometry(2, 2, 1)),
        ([2, 3, 17, 16], [8, 3, 7, 7], geometry(2, 3, 1)),
        ([1, 4, 7, 8], [4, 4, 7, 7], geometry(1, 3, 1)),
    ]);
}

#[test]
fn grouped_convolutions() {
    check_convolutions(&[
        ([2, 32, 6, 5], [32, 16, 3, 3], geometry(1, 1, 2)),
        ([2, 15, 6, 5], [9, 5, 3, 3], geometry(2, 1, 3)),
        ([2, 12, 4, 4], [30, 4, 1, 1], geometry(1, 0, 3)),
    ]);
}

#[test]
fn depthwise_convolutions() {
    check_convolutions(&[
        ([2, 18, 8, 9], [18, 1, 3, 3], geometry(1, 1, 18)),
        ([3, 5, 9, 8], [5, 1, 3, 3], geometry(2, 1, 5)),
        ([2, 4, 11, 9], [4, 1, 5, 5], geometry(1, 2, 4)),
        ([35, 3, 4, 4], [3, 1, 5, 5], geometry(2, 2, 3)),
    ]);
}

const NORMALISED: [[usize; 4]; 3] = [[6, 5, 4, 5], [3, 20, 7, 7], [40, 3, 1, 1]];

#[test]
fn normalisation_by_the_batch() {
    for x in NORMALISED {
        let norm = |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-3, None, Activation::None)?.0);
        check_slopes("normalisation", &norm, &arguments(&[&x, &[x[1]], &[x[1]]]), SMOOTH);
        let summed =
            |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-3, Some(&a[3]), Activation::None)?.0);
        check_slopes("with residual", &summed, &arguments(&[&x, &[x[1]], &[x[1]], &x]), SMOOTH);
    }
}

/// Arguments of a normalisation whose results stay away from the kink of the rectifier behind it: normalised values
/// keep the sizes of those that come in, shifts are small, and residuals add little.
fn arguments_of_rectified(x: [usize; 4]) -> Vec<Tensor> {
    let small = |shape: &[usize], seed| (tensor(shape, seed, F32) * 0.125).unwrap();
    vec![away_from_zero(&x, 7), away_from_zero(&[x[1]], 8), small(&[x[1]], 9), small(&x, 10)]
}

/// No unit may open or shut between the two ends of a displacement.
fn check_rectified(name: &str, f: &dyn Fn(&[Tensor]) -> Result<Tensor>, args: &[Tensor]) {
    let open = |args: &[Tensor]| -> Vec<bool> {
        let y = f(args).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        y.iter().map(|&y| y > 0.0).collect()
    };
    let at_rest = open(args);
    let share = at_rest.iter().filter(|&&open| open).count() as f64 / at_rest.len() as f64;
    assert!((0.3..0.7).contains(&share), "{name}: a share of {share} is open");
    for i in 0..args.len() {
        let mut args = args.to_vec();
        for moved in moved(&args[i], SMOOTH.step, 1000) {
            args[i] = moved;
            assert!(open(&args) == at_rest, "{name}: argument {i} crosses a kink");
        }
    }
    check_slopes(name, f, args, SMOOTH);
}

#[test]
fn rectified_normalisation() {
    for x in NORMALISED {
        let norm =
            |a: &[Tensor]| Ok(batch_norm_train(&a[0], &a[1], &a[2], 1e-3, a.get(3), Activation::Relu)?.0);
        let args = arguments_of_rectified(x);
        check_rectified("rectified normalisation", &norm, &args[..3]);
        check_rectified("with residual", &norm, &args);
    }
}

#[test]
fn normalisation_by_running_statistics() {
    for x in NORMALISED {
        let (mean, var) = (tensor(&[x[1]], 1, F32), (tensor(&[x[1]], 2, F32).abs().unwrap() + 0.5).unwrap());
        let mean = (mean * 0.125).unwrap();
        let norm = |act| {
            let (mean, var) = (&mean, &var);
            move |a: &[Tensor]| batch_norm_eval(&a[0], &a[1], &a[2], mean, var, 1e-3, a.get(3), act)
        };
        let args = arguments(&[&x, &[x[1]], &[x[1]], &x]);
        check_slopes("normalisation in evaluation", &norm(Activation::None), &args, LINEAR);
        let args = arguments_of_rectified(x);
        check_rectified("rectified in evaluation", &norm(Activation::Relu), &args);
    }
}

#[test]
fn rectifiers_and_gates() {
    for x in [[1, 1, 1, 1], [3, 5, 7, 3], [2, 33, 9, 16]] {
        check_slopes("relu", &|a| relu(&a[0]), &[(away_from_zero(&x, 4).abs()).unwrap()], PIECEWISE);
        let gate = tensor(&x, 50, F32).abs().unwrap();
        let gate = if x == [1; 4] { gate } else { relu(&tensor(&x, 50, F32)).unwrap() };
        let of_tensor = |a: &[Tensor]| Gate::of_tensor(&gate).apply(&a[0]);
        let of_maps = |a: &[Tensor]| {
            let gate = Gate::of_maps(&Maps::from_tensor(&gate)?);
            gate.apply_to_maps(&Maps::from_tensor(&a[0])?)?.to_tensor()
        };
        check_slopes("gate", &of_tensor, &arguments(&[&x]), LINEAR);
        check_slopes("gate of maps", &of_maps, &arguments(&[&x]), LINEAR);
    }
    check_slopes("relu", &|a| relu(&a[0]), &[away_from_zero(&[3, 5, 7, 3], 4)], PIECEWISE);
}

/// Every value has its own place in the order, further from the next than both move.
#[test]
fn pooling_by_maximum() {
    for (x, kernel, stride, padding) in
        [([2, 3, 5, 4], 2, 2, 0), ([1, 17, 3, 2], 3, 2, 1), ([1, 2, 6, 8], 3, 1, 1), ([1, 2, 7, 4], 4, 3, 2)]
    {
        let count: usize = x.iter().product();
        let spacing = 8.0 * PIECEWISE.step;
        assert!(!count.is_multiple_of(37), "steps of a prime visit every place once");
        let values: Vec<f32> = (0..count).map(|i| (i * 37 % count) as f32 * spacing as f32).collect();
        let values = Tensor::from_vec(values, &x, &candle_core::Device::Cpu).unwrap();
        let pool = |a: &[Tensor]| max_pool2d(&a[0], PoolGeometry { kernel, stride, padding });
        check_slopes("pooling by maximum", &pool, &[values], PIECEWISE);
    }
}

#[test]
fn pooling_by_mean_and_sums_of_branches() {
    for x in [[1, 1, 1, 1], [2, 17, 9, 7], [3, 2, 8, 8]] {
        for out in [(1, 1), (2, 3), (7, 7), (12, 1)] {
            let pool = |a: &[Tensor]| adaptive_avg_pool2d(&a[0], out);
            check_slopes("adaptive pooling", &pool, &arguments(&[&x]), LINEAR);
        }
        check_slopes("global pooling", &|a| global_avg_pool(&a[0]), &arguments(&[&x]), LINEAR);
        check_slopes("sum", &|a| add(&a[0], &a[1]), &arguments(&[&x, &x]), LINEAR);
    }
}

#[test]
fn linear_layers() {
    let args = arguments(&[&[37, 70], &[11, 70], &[11]]);
    check_slopes("linear", &|a| linear(&a[0], &a[1], a.get(2)), &args, LINEAR);
    check_slopes("linear without bias", &|a| linear(&a[0], &a[1], None), &args[..2], LINEAR);
}

#[test]
fn cross_entropy() {
    for (rows, classes) in [(1, 2), (37, 10), (70, 100)] {
        let labels = Tensor::from_iter(
            (0..rows as u32).map(|i| (i * i + 1) % classes as u32),
            &candle_core::Device::Cpu,
        );
        let labels = labels.unwrap();
        let logits = (tensor(&[rows, classes], 7, F32) * 4.0).unwrap();
        check_slopes("cross-entropy", &|a| softmax_cross_entropy(&a[0], &labels), &[logits], WIDE);
    }
}
