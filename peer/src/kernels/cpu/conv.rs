//! Convolution of a batch, forward and backward: images are independent, and the gradient by the weights is
//! summed over fixed parts of the batch in order.

use super::direct;
use super::geometry::ConvShape;
use super::isa::{Isa, Kernel, dispatch};
use super::lanes::Lanes;
use super::parallel::{build, partial_sums};
use super::winograd;

/// A map of one image to another.
pub(super) trait ImageMap: Sync {
    type Scratch;
    /// Memory for one thread, reused from image to image.
    fn scratch(&self) -> Self::Scratch;
    /// Writes every value of `to`.
    fn image<V: Lanes>(&self, scratch: &mut Self::Scratch, from: &[f32], to: &mut [f32]);
}

/// A sum over images of something shaped like the weights.
pub(super) trait WeightSums: Sync {
    type Scratch;
    /// Memory for one thread, reused from image to image.
    fn scratch(&self) -> Self::Scratch;
    /// Floats of the sums, in a layout of its own.
    fn sums_len(&self) -> usize;
    /// Adds what one image contributes.
    fn image<V: Lanes>(&self, scratch: &mut Self::Scratch, x: &[f32], dy: &[f32], sums: &mut [f32]);
    /// From the sums to `[Co][Ci][kh][kw]`.
    fn finish(&self, sums: &[f32], dw: &mut [f32]);
}

/// `x` `[B][Ci][H][W]`, `w` `[Co][Ci][kh][kw]` to `[B][Co][Ho][Wo]`.
pub(in crate::kernels) fn forward(isa: Isa, s: ConvShape, x: &[f32], w: &[f32]) -> Vec<f32> {
    let sizes = (s.image_in(), s.image_out());
    match winograd::suits(&s) {
        true => map_batch(isa, s.batch, &winograd::Map::forward(&s, w), x, sizes),
        false => map_batch(isa, s.batch, &direct::Forward::new(s, w), x, sizes),
    }
}

/// The gradient by `x` from that by the output.
pub(in crate::kernels) fn backward_data(isa: Isa, s: ConvShape, w: &[f32], dy: &[f32]) -> Vec<f32> {
    let sizes = (s.image_out(), s.image_in());
    match winograd::suits(&s) {
        true => map_batch(isa, s.batch, &winograd::Map::backward(&s, w), dy, sizes),
        false => map_batch(isa, s.batch, &direct::BackwardData::new(s, w), dy, sizes),
    }
}

/// The gradient by `w` from that by the output.
pub(in crate::kernels) fn backward_weights(isa: Isa, s: ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    match winograd::suits(&s) {
        true => sum_batch(isa, s, &winograd::Weights::new(&s), x, dy),
        false => sum_batch(isa, s, &direct::BackwardWeights::new(s), x, dy),
    }
}

fn map_batch<M: ImageMap>(
    isa: Isa,
    batch: usize,
    map: &M,
    x: &[f32],
    (from, to): (usize, usize),
) -> Vec<f32> {
    struct OneImage<'a, M: ImageMap>(&'a M, &'a mut M::Scratch, &'a [f32], &'a mut [f32]);
    impl<M: ImageMap> Kernel for OneImage<'_, M> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            self.0.image::<V>(self.1, self.2, self.3);
        }
    }
    build(
        (batch * to, to),
        1,
        || map.scratch(),
        |scratch, n, out| dispatch(isa, OneImage(map, scratch, &x[n * from..][..from], out)),
    )
}

/// Parts of the batch with sums of their own: as many as threads could use, but not more than 64 MiB of sums.
fn parts(sums_len: usize) -> usize {
    const PARTS_MAX: usize = 16;
    const SUMS_MAX: usize = 16 << 20;
    (SUMS_MAX / sums_len.max(1)).clamp(1, PARTS_MAX)
}

fn sum_batch<M: WeightSums>(isa: Isa, s: ConvShape, map: &M, x: &[f32], dy: &[f32]) -> Vec<f32> {
    struct OneImage<'a, M: WeightSums>(&'a M, &'a mut M::Scratch, &'a [f32], &'a [f32], &'a mut [f32]);
    impl<M: WeightSums> Kernel for OneImage<'_, M> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            self.0.image::<V>(self.1, self.2, self.3, self.4);
        }
    }
    let (len_x, len_dy) = (s.image_in(), s.image_out());
    let mut sums = partial_sums(
        s.batch,
        parts(map.sums_len()),
        || map.scratch(),
        |scratch, images| {
            let mut sums = vec![0.0; map.sums_len()];
            for n in images {
                let (x, dy) = (&x[n * len_x..][..len_x], &dy[n * len_dy..][..len_dy]);
                dispatch(isa, OneImage(map, scratch, x, dy, &mut sums));
            }
            sums
        },
    )
    .into_iter();
    let mut total = sums.next().unwrap_or_else(|| vec![0.0; map.sums_len()]);
    for part in sums {
        total.iter_mut().zip(&part).for_each(|(t, p)| *t += p);
    }
    let mut dw = vec![0.0; s.co * s.ci * s.kh * s.kw];
    map.finish(&total, &mut dw);
    dw
}
