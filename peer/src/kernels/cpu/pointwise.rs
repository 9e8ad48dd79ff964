//! Rectifier and global average pooling.
#![expect(unsafe_code, reason = "promises that memory is written before it is read")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::isa::{Isa, Kernel, dispatch};
use super::lanes::{LANES, Lanes};
use super::parallel::{build, build_overwritten};

/// Values that one call of a kernel handles.
const CHUNK: usize = 1 << 14;

/// `max(x, 0)`; NaN stays.
pub(in crate::kernels) fn relu(isa: Isa, x: &[f32]) -> Vec<f32> {
    struct Relu<'a>(&'a [f32], &'a mut [MaybeUninit<f32>]);
    impl Kernel for Relu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            for (y, &x) in self.1.iter_mut().zip(self.0) {
                y.write(if x <= 0.0 { 0.0 } else { x });
            }
        }
    }
    by_chunks(x.len(), |at, y| dispatch(isa, Relu(&x[at..][..y.len()], y)))
}

/// The gradient by a rectifier's input, `dy` where the output is not zero.
pub(in crate::kernels) fn relu_backward(isa: Isa, y: &[f32], dy: &[f32]) -> Vec<f32> {
    struct Backward<'a>(&'a [f32], &'a [f32], &'a mut [MaybeUninit<f32>]);
    impl Kernel for Backward<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            for (dx, (&y, &dy)) in self.2.iter_mut().zip(self.0.iter().zip(self.1)) {
                dx.write(if y <= 0.0 { 0.0 } else { dy });
            }
        }
    }
    by_chunks(y.len(), |at, dx| dispatch(isa, Backward(&y[at..][..dx.len()], &dy[at..][..dx.len()], dx)))
}

/// `a + b`.
pub(in crate::kernels) fn sum(isa: Isa, a: &[f32], b: &[f32]) -> Vec<f32> {
    struct SumOf<'a>(&'a [f32], &'a [f32], &'a mut [MaybeUninit<f32>]);
    impl Kernel for SumOf<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            for (sum, (a, b)) in self.2.iter_mut().zip(self.0.iter().zip(self.1)) {
                sum.write(a + b);
            }
        }
    }
    by_chunks(a.len(), |at, sum| dispatch(isa, SumOf(&a[at..][..sum.len()], &b[at..][..sum.len()], sum)))
}

/// Adds `b` to `a`.
pub(in crate::kernels) fn add_to(isa: Isa, a: &mut [f32], b: &[f32]) {
    struct AddTo<'a>(&'a mut [f32], &'a [f32]);
    impl Kernel for AddTo<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            self.0.iter_mut().zip(self.1).for_each(|(a, b)| *a += b);
        }
    }
    a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).for_each(|(a, b)| dispatch(isa, AddTo(a, b)));
}

/// Fills a vector in fixed chunks: `write(index of the first value, chunk)` writes every value of its chunk.
fn by_chunks(len: usize, write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync) -> Vec<f32> {
    // SAFETY: the callers above take as many arguments as there are values in the chunk.
    unsafe { build_overwritten((len, CHUNK), 1, || (), |(), i, chunk| write(i * CHUNK, chunk)) }
}

/// The mean of each of `planes` planes of `pixels` values.
pub(in crate::kernels) fn plane_means(isa: Isa, x: &[f32], pixels: usize) -> Vec<f32> {
    let planes = x.len() / pixels.max(1);
    build(
        (planes, 1),
        64,
        || (),
        |(), i, mean| {
            mean[0] = (dispatch(isa, Sum(&x[i * pixels..][..pixels])) / pixels as f64) as f32;
        },
    )
}

/// The gradient of [`plane_means`]: each plane filled with its share.
pub(in crate::kernels) fn plane_means_backward(dy: &[f32], pixels: usize) -> Vec<f32> {
    build(
        (dy.len() * pixels, pixels),
        64,
        || (),
        |(), i, plane| plane.fill((f64::from(dy[i]) / pixels as f64) as f32),
    )
}

/// Sum of a plane, in 16 lanes.
pub(super) struct Sum<'a>(pub(super) &'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<V: Lanes>(self) -> f64 {
        sum_of::<V>(self.0)
    }
}

/// Sum of a plane: 16 lanes in f32, then one number.
#[inline(always)]
pub(super) fn sum_of<V: Lanes>(values: &[f32]) -> f64 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let mut sum = V::splat(0.0);
    for v in vectors {
        sum = sum.add(V::load(v));
    }
    f64::from(sum.sum()) + rest.iter().map(|&v| f64::from(v)).sum::<f64>()
}
