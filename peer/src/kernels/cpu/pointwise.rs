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
    relu_backward(isa, x, x)
}

/// The gradient by a rectifier's input: `dy` where the input, or what became of it, is positive or NaN, else 0.
pub(in crate::kernels) fn relu_backward(isa: Isa, y: &[f32], dy: &[f32]) -> Vec<f32> {
    of_pairs(isa, y, dy, |y, dy| if y <= 0.0 { 0.0 } else { dy })
}

/// `a + b`.
pub(in crate::kernels) fn sum(isa: Isa, a: &[f32], b: &[f32]) -> Vec<f32> {
    of_pairs(isa, a, b, |a, b| a + b)
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

/// `f(a, b)` of the values at each place of two slices of one length.
fn of_pairs(isa: Isa, a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    struct Pairs<'a, F>(&'a [f32], &'a [f32], &'a F, &'a mut [MaybeUninit<f32>]);
    impl<F: Fn(f32, f32) -> f32> Kernel for Pairs<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            let Self(a, b, f, to) = self;
            for (to, (&a, &b)) in to.iter_mut().zip(a.iter().zip(b)) {
                to.write(f(a, b));
            }
        }
    }
    assert_eq!(a.len(), b.len(), "every value has its partner");
    let write = |(): &mut (), i: usize, to: &mut [MaybeUninit<f32>]| {
        let chunk = i * CHUNK..i * CHUNK + to.len();
        dispatch(isa, Pairs(&a[chunk.clone()], &b[chunk], &f, to));
    };
    // SAFETY: `a` and `b` have as many values as there are in a chunk, so that all are written.
    unsafe { build_overwritten((a.len(), CHUNK), 1, || (), write) }
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
