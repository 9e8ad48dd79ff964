//! Batch normalisation with residual and rectifier in the same pass, forward and backward
//! (Ioffe and Szegedy 2015, algorithm 1). `[B][C][pixels]` throughout.
#![expect(unsafe_code, reason = "promises that memory is written before it is read")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::isa::{Isa, Kernel, dispatch};
use super::lanes::{LANES, Lanes};
use super::parallel::build_overwritten;
use super::pointwise::sum_of;

/// Sizes of the normalised tensor.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Planes {
    pub(in crate::kernels) batch: usize,
    pub(in crate::kernels) channels: usize,
    pub(in crate::kernels) pixels: usize,
}

impl Planes {
    /// Values per channel.
    pub(in crate::kernels) fn count(self) -> usize {
        self.batch * self.pixels
    }

    /// The pixels of one channel of one image, of which there are `batch` times `channels`.
    pub(in crate::kernels) fn plane<T>(self, values: &[T], plane: usize) -> &[T] {
        &values[plane * self.pixels..][..self.pixels]
    }
}

/// Mean and biased variance per channel: each plane's own while it is in the cache, combined in order in f64
/// (Chan, Golub and LeVeque 1983, equation 2.1).
pub(in crate::kernels) fn moments(isa: Isa, p: Planes, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    struct OfPlane<'a>(&'a [f32]);
    impl Kernel for OfPlane<'_> {
        type Output = (f64, f64);
        #[inline(always)]
        fn run<V: Lanes>(self) -> (f64, f64) {
            let mean = (sum_of::<V>(self.0) / self.0.len() as f64) as f32;
            let (vectors, rest) = self.0.as_chunks::<LANES>();
            let (centre, mut sum, mut squares) = (V::splat(mean), V::splat(0.0), V::splat(0.0));
            for v in vectors {
                let d = V::load(v).sub(centre);
                sum = sum.add(d);
                squares = squares.plus_product(d, d);
            }
            let (mut sum, mut squares) = (f64::from(sum.sum()), f64::from(squares.sum()));
            for v in rest {
                let d = f64::from(v - mean);
                sum += d;
                squares += d * d;
            }
            // What rounding left of the mean goes into it here, exact enough even for channels far from zero.
            let shift = sum / self.0.len() as f64;
            (f64::from(mean) + shift, squares - sum * shift)
        }
    }
    let parts = per_plane(p, |plane| dispatch(isa, OfPlane(p.plane(x, plane))));
    let mut mean = vec![0.0; p.channels];
    let mut var = vec![0.0; p.channels];
    for c in 0..p.channels {
        let of_channel = || parts.iter().skip(c).step_by(p.channels);
        mean[c] = of_channel().map(|&(mean, _)| mean).sum::<f64>() / p.batch as f64;
        let between = of_channel().map(|&(m, _)| (m - mean[c]).powi(2)).sum::<f64>() * p.pixels as f64;
        var[c] = (of_channel().map(|&(_, squares)| squares).sum::<f64>() + between) / p.count() as f64;
    }
    (mean, var)
}

/// What normalisation does to a channel: `(x - centre) scale + shift`.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Affine {
    pub(in crate::kernels) centre: f32,
    pub(in crate::kernels) scale: f32,
    pub(in crate::kernels) shift: f32,
}

/// `act((x - centre) scale + shift + residual)`.
pub(in crate::kernels) fn apply(
    isa: Isa,
    p: Planes,
    x: &[f32],
    of_channel: &[Affine],
    residual: Option<&[f32]>,
    rectify: bool,
) -> Vec<f32> {
    struct OnePlane<'a>(&'a [f32], Affine, Option<&'a [f32]>, bool, &'a mut [MaybeUninit<f32>]);
    impl Kernel for OnePlane<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            let Self(x, a, residual, rectify, y) = self;
            let bent = |v: f32| if rectify && v <= 0.0 { 0.0 } else { v };
            match residual {
                Some(r) => {
                    for ((y, &x), &r) in y.iter_mut().zip(x).zip(r) {
                        y.write(bent((x - a.centre) * a.scale + a.shift + r));
                    }
                }
                None => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        y.write(bent((x - a.centre) * a.scale + a.shift));
                    }
                }
            }
        }
    }
    let write = |(): &mut (), plane: usize, y: &mut [MaybeUninit<f32>]| {
        let residual = residual.map(|r| p.plane(r, plane));
        dispatch(isa, OnePlane(p.plane(x, plane), of_channel[plane % p.channels], residual, rectify, y));
    };
    // SAFETY: `x` and the residual have as many values as there are in a plane, so that all are written.
    unsafe { build_overwritten((x.len(), p.pixels), p.channels, || (), write) }
}

/// Per channel the sums of `g` and of `g (x - centre)`.
pub(in crate::kernels) fn gradient_sums(
    isa: Isa,
    p: Planes,
    x: &[f32],
    g: &[f32],
    mask: Option<&[f32]>,
    of_channel: &[Affine],
) -> Vec<(f64, f64)> {
    struct OfPlane<'a>(&'a [f32], &'a [f32], Option<&'a [f32]>, f32);
    impl Kernel for OfPlane<'_> {
        type Output = (f64, f64);
        #[inline(always)]
        fn run<V: Lanes>(self) -> (f64, f64) {
            match self.2 {
                Some(y) => {
                    plane_sums::<V>(self.0, self.1, |g, at| g.zero_where_not_positive(vector(y, at)), self.3)
                }
                None => plane_sums::<V>(self.0, self.1, |g, _| g, self.3),
            }
        }
    }
    let parts = per_plane(p, |plane| {
        let mask = mask.map(|y| p.plane(y, plane));
        let centre = of_channel[plane % p.channels].centre;
        dispatch(isa, OfPlane(p.plane(x, plane), p.plane(g, plane), mask, centre))
    });
    let mut sums = vec![(0.0, 0.0); p.channels];
    for image in parts.chunks(p.channels.max(1)) {
        for (sum, part) in sums.iter_mut().zip(image) {
            *sum = (sum.0 + part.0, sum.1 + part.1);
        }
    }
    sums
}

/// Sums of `masked(g)` and of `masked(g) (x - centre)` over a plane.
#[inline(always)]
fn plane_sums<V: Lanes>(x: &[f32], g: &[f32], masked: impl Fn(V, usize) -> V, centre: f32) -> (f64, f64) {
    let mut sums = (V::splat(0.0), V::splat(0.0));
    for at in (0..x.len()).step_by(LANES) {
        let g = masked(vector(g, at), at);
        sums.0 = sums.0.add(g);
        // Past the end of the plane both factors are finite and `g` is zero.
        sums.1 = sums.1.plus_product(g, vector::<V>(x, at).sub(V::splat(centre)));
    }
    (f64::from(sums.0.sum()), f64::from(sums.1.sum()))
}

/// Sixteen values of a plane, zeros past its end.
#[inline(always)]
fn vector<V: Lanes>(plane: &[f32], at: usize) -> V {
    let rest = &plane[at..];
    match rest.first_chunk::<LANES>() {
        Some(whole) => V::load(whole),
        None => {
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            V::load(&padded)
        }
    }
}

/// The gradient by `x` is `scale (g - mean - (x - centre) slope)`; with running statistics both terms are
/// zero.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Correction {
    pub(in crate::kernels) mean: f32,
    pub(in crate::kernels) slope: f32,
}

/// The gradient by `x`.
pub(in crate::kernels) fn gradient(
    isa: Isa,
    p: Planes,
    x: &[f32],
    g: &[f32],
    mask: Option<&[f32]>,
    of_channel: &[(Affine, Correction)],
) -> Vec<f32> {
    struct OnePlane<'a>(
        &'a [f32],
        &'a [f32],
        Option<&'a [f32]>,
        (Affine, Correction),
        &'a mut [MaybeUninit<f32>],
    );
    impl Kernel for OnePlane<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            let Self(x, g, mask, (a, k), dx) = self;
            let slope = |x: f32, g: f32| a.scale * (g - k.mean - (x - a.centre) * k.slope);
            match mask {
                Some(y) => {
                    for (((dx, &x), &g), &y) in dx.iter_mut().zip(x).zip(g).zip(y) {
                        dx.write(slope(x, if y <= 0.0 { 0.0 } else { g }));
                    }
                }
                None => {
                    for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                        dx.write(slope(x, g));
                    }
                }
            }
        }
    }
    let write = |(): &mut (), plane: usize, dx: &mut [MaybeUninit<f32>]| {
        let mask = mask.map(|y| p.plane(y, plane));
        let of_channel = of_channel[plane % p.channels];
        dispatch(isa, OnePlane(p.plane(x, plane), p.plane(g, plane), mask, of_channel, dx));
    };
    // SAFETY: `x`, `g` and the mask have as many values as there are in a plane, so that all are written.
    unsafe { build_overwritten((x.len(), p.pixels), p.channels, || (), write) }
}

/// One result per plane, in order.
pub(in crate::kernels) fn per_plane<T: Send>(
    p: Planes,
    of_plane: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    (0..p.batch * p.channels).into_par_iter().with_min_len(p.channels).map(of_plane).collect()
}
