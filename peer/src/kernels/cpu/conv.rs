//! Convolution of a batch, forward and backward: images are independent, and the gradient by the weights is
//! summed over fixed parts of the batch in order.
#![expect(unsafe_code, reason = "memory that is written before it is read")]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::geometry::ConvShape;
use super::isa::{Isa, Kernel, dispatch};
use super::lanes::Lanes;
use super::lines::Lines;
use super::parallel::{build_overwritten, partial_sums};
use super::{depthwise, direct, winograd};

/// A map of one image to another.
///
/// # Safety
/// [`ImageMap::image`] writes every value of `to`.
pub(super) unsafe trait ImageMap: Sync {
    type Scratch: Send;
    /// Memory for one thread, reused from image to image.
    fn scratch(&self) -> Self::Scratch;
    /// Writes every value of `to`.
    fn image<V: Lanes>(&self, scratch: &mut Self::Scratch, from: &[f32], to: &mut [MaybeUninit<f32>]);
}

/// A sum over images of something shaped like the weights.
pub(super) trait WeightSums: Sync {
    type Scratch: Send;
    /// Memory for one thread, reused from image to image.
    fn scratch(&self) -> Self::Scratch;
    /// Floats of the sums, in a layout of its own.
    fn sums_len(&self) -> usize;
    /// Adds what one image contributes.
    fn image<V: Lanes>(&self, scratch: &mut Self::Scratch, x: &[f32], dy: &[f32], sums: &mut [f32]);
    /// From the sums to `[Co][Ci][kh][kw]`.
    fn finish(&self, sums: &[f32], dw: &mut [f32]);
}

/// A convolution whose groups of channels do not see each other.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Grouped {
    /// What each group computes; its channels are those of one group.
    pub(in crate::kernels) group: ConvShape,
    pub(in crate::kernels) groups: usize,
}

/// `x` `[B][Ci][H][W]`, `w` `[Co][Ci/groups][kh][kw]` to `[B][Co][Ho][Wo]`.
pub(in crate::kernels) fn forward(isa: Isa, conv: Grouped, x: &[f32], w: &[f32]) -> Vec<f32> {
    let Grouped { group: s, groups } = conv;
    let (from, to) = (s.image_in(), s.image_out());
    if depthwise::suits(&s, groups) {
        let map = depthwise::Map::forward(&s, groups, w);
        return map_batch(isa, s.batch, &[map], x, (groups * from, groups * to));
    }
    let (units, weights) = (s.batch * groups, w.chunks_exact(s.weights()));
    if winograd::suits(&s) {
        let maps: Vec<_> = weights.map(|w| winograd::Map::forward(&s, w)).collect();
        return map_batch(isa, units, &maps, x, (from, to));
    }
    let maps: Vec<_> = weights.map(|w| direct::Forward::new(s, w)).collect();
    map_batch(isa, units, &maps, x, (from, to))
}

/// The gradient by `x` from that by the output.
pub(in crate::kernels) fn backward_data(isa: Isa, conv: Grouped, w: &[f32], dy: &[f32]) -> Vec<f32> {
    let Grouped { group: s, groups } = conv;
    let (from, to) = (s.image_out(), s.image_in());
    if depthwise::suits(&s, groups) {
        let map = depthwise::Map::backward(&s, groups, w);
        return map_batch(isa, s.batch, &[map], dy, (groups * from, groups * to));
    }
    let (units, weights) = (s.batch * groups, w.chunks_exact(s.weights()));
    if winograd::suits(&s) {
        let maps: Vec<_> = weights.map(|w| winograd::Map::backward(&s, w)).collect();
        return map_batch(isa, units, &maps, dy, (from, to));
    }
    let maps: Vec<_> = weights.map(|w| direct::BackwardData::new(s, w)).collect();
    map_batch(isa, units, &maps, dy, (from, to))
}

/// The gradient by `w` from that by the output.
pub(in crate::kernels) fn backward_weights(isa: Isa, conv: Grouped, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let Grouped { group: s, groups } = conv;
    let mut dw = vec![0.0; groups * s.weights()];
    if depthwise::suits(&s, groups) {
        let all = ConvShape { ci: groups, co: groups, ..s };
        sum_batch(isa, s.batch, &depthwise::Weights::new(&s, groups), Images::of(&all, 1, 0, x, dy), &mut dw);
        return dw;
    }
    for (g, dw) in dw.chunks_exact_mut(s.weights()).enumerate() {
        let images = Images::of(&s, groups, g, x, dy);
        match winograd::suits(&s) {
            true => sum_batch(isa, s.batch, &winograd::Weights::new(&s), images, dw),
            false => sum_batch(isa, s.batch, &direct::BackwardWeights::new(s), images, dw),
        }
    }
    dw
}

/// Maps `units` images, or as many groups of images, by the maps in turn.
fn map_batch<M: ImageMap>(
    isa: Isa,
    units: usize,
    maps: &[M],
    x: &[f32],
    (from, to): (usize, usize),
) -> Vec<f32> {
    struct OneImage<'a, M: ImageMap>(&'a M, &'a mut M::Scratch, &'a [f32], &'a mut [MaybeUninit<f32>]);
    impl<M: ImageMap> Kernel for OneImage<'_, M> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            self.0.image::<V>(self.1, self.2, self.3);
        }
    }
    // The maps of all groups are of one shape, so that one map's memory serves them all.
    let state = || maps[0].scratch();
    let write = |scratch: &mut M::Scratch, n: usize, out: &mut [MaybeUninit<f32>]| {
        dispatch(isa, OneImage(&maps[n % maps.len()], scratch, &x[n * from..][..from], out));
    };
    // SAFETY: a unit is the image of one map, which writes it whole.
    unsafe { build_overwritten((units * to, to), 1, state, write) }
}

/// One group of the images that go in, and of the gradients of those that come out.
#[derive(Clone, Copy)]
struct Images<'a> {
    x: Every<'a>,
    dy: Every<'a>,
}

/// `len` values from `first` on and then every `step` values.
#[derive(Clone, Copy)]
struct Every<'a> {
    values: &'a [f32],
    first: usize,
    len: usize,
    step: usize,
}

impl<'a> Every<'a> {
    fn image(self, n: usize) -> &'a [f32] {
        &self.values[self.first + n * self.step..][..self.len]
    }
}

impl<'a> Images<'a> {
    fn of(s: &ConvShape, groups: usize, g: usize, x: &'a [f32], dy: &'a [f32]) -> Self {
        let every = |values, len| Every { values, first: g * len, len, step: groups * len };
        Self { x: every(x, s.image_in()), dy: every(dy, s.image_out()) }
    }
}

/// Parts of the batch with sums of their own: as many as threads could use, but not more than 64 MiB of sums.
fn parts(sums_len: usize) -> usize {
    const PARTS_MAX: usize = 16;
    const SUMS_MAX: usize = 16 << 20;
    (SUMS_MAX / sums_len.max(1)).clamp(1, PARTS_MAX)
}

fn sum_batch<M: WeightSums>(isa: Isa, batch: usize, map: &M, images: Images<'_>, dw: &mut [f32]) {
    struct OneImage<'a, M: WeightSums>(&'a M, &'a mut M::Scratch, &'a [f32], &'a [f32], &'a mut [f32]);
    impl<M: WeightSums> Kernel for OneImage<'_, M> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            self.0.image::<V>(self.1, self.2, self.3, self.4);
        }
    }
    let sums = partial_sums(
        batch,
        parts(map.sums_len()),
        || map.scratch(),
        |scratch, part| {
            let mut sums = Lines::zeros(map.sums_len());
            for n in part {
                dispatch(isa, OneImage(map, scratch, images.x.image(n), images.dy.image(n), &mut sums));
            }
            sums
        },
    );
    /// Sums that a thread adds up at a time.
    const CHUNK: usize = 1 << 13;
    let mut total = Lines::zeros(map.sums_len());
    total.par_chunks_mut(CHUNK).enumerate().for_each(|(i, total)| {
        for part in &sums {
            total.iter_mut().zip(&part[i * CHUNK..]).for_each(|(t, p)| *t += p);
        }
    });
    map.finish(&total, dw);
}
