//! Convolution as its definition says, for every geometry.
#![expect(unsafe_code, reason = "promises that memory is written before it is read")]

use std::mem::MaybeUninit;

use super::conv::{ImageMap, WeightSums};
use super::geometry::{Class, ConvShape, Frame, classes};
use super::lanes::{LANES, Lanes};
use super::lines::Lines;
use super::micro::{Correlation, WeightGradient};
use super::pack::{blocks_to_image, for_each_weight, image_to_frame, weights_len};

/// A frame and the blocks that come out, both reused from image to image.
pub(super) struct Scratch {
    frame: Lines,
    out: Lines,
}

/// From input to output.
pub(super) struct Forward {
    shape: ConvShape,
    frame: Frame,
    taps: Vec<usize>,
    w: Lines,
}

impl Forward {
    /// `w` is `[Co][Ci][kh][kw]`.
    pub(super) fn new(shape: ConvShape, w: &[f32]) -> Self {
        let frame = Frame::of_input(&shape);
        let taps = all_taps(&shape);
        let mut packed = Lines::zeros(weights_len(shape.co, shape.ci, taps.len()));
        for_each_weight(shape.co, shape.ci, taps.len(), |place, o, i, t| {
            packed[place] = w[(o * shape.ci + i) * taps.len() + t];
        });
        let taps = taps.iter().map(|&(ky, kx)| frame.tap(ky, kx)).collect();
        Self { shape, frame, taps, w: packed }
    }
}

// SAFETY: `blocks_to_image` writes every value.
unsafe impl ImageMap for Forward {
    type Scratch = Scratch;

    fn scratch(&self) -> Scratch {
        let pixels = self.shape.out_h() * self.shape.out_w();
        let blocks = self.shape.co.div_ceil(LANES);
        Scratch { frame: Lines::zeros(self.frame.len()), out: Lines::zeros(blocks * pixels * LANES) }
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, scratch: &mut Scratch, from: &[f32], to: &mut [MaybeUninit<f32>]) {
        let s = &self.shape;
        let (h, w) = (s.out_h(), s.out_w());
        image_to_frame::<V>(from, (s.h, s.w), &self.frame, &mut scratch.frame);
        let (plane, row) = (h * w * LANES, w * LANES);
        Correlation {
            x: &scratch.frame,
            x_plane: self.frame.plane(),
            x_row: self.frame.row(),
            channels: s.ci,
            taps: &self.taps,
            w: &self.w,
            out_blocks: s.co.div_ceil(LANES),
            count: (h, w),
            out: &mut scratch.out,
            out_plane: plane,
            out_row: row,
            out_pixel: LANES,
        }
        .run::<V>();
        blocks_to_image::<V>(&scratch.out, (plane, row), (h, w), to);
    }
}

/// From the output's gradient to the input's.
pub(super) struct BackwardData {
    shape: ConvShape,
    frame: Frame,
    /// Each class of input pixels with its weights.
    classes: Vec<(Class, Lines)>,
}

impl BackwardData {
    /// `w` is `[Co][Ci][kh][kw]`.
    pub(super) fn new(shape: ConvShape, w: &[f32]) -> Self {
        let frame = Frame::of_output_gradient(&shape);
        let pack = |class: Class| {
            let taps = &class.taps;
            let mut packed = Lines::zeros(weights_len(shape.ci, shape.co, taps.len()));
            for_each_weight(shape.ci, shape.co, taps.len(), |place, i, o, t| {
                let (ky, kx) = taps[t];
                packed[place] = w[((o * shape.ci + i) * shape.kh + ky) * shape.kw + kx];
            });
            (class, packed)
        };
        Self { shape, frame, classes: classes(&shape, &frame).into_iter().map(pack).collect() }
    }
}

// SAFETY: `blocks_to_image` writes every value.
unsafe impl ImageMap for BackwardData {
    type Scratch = Scratch;

    fn scratch(&self) -> Scratch {
        let blocks = self.shape.ci.div_ceil(LANES);
        // Pixels that no output feeds on belong to no class and stay zero.
        let out = Lines::zeros(blocks * self.shape.h * self.shape.w * LANES);
        Scratch { frame: Lines::zeros(self.frame.len()), out }
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, scratch: &mut Scratch, from: &[f32], to: &mut [MaybeUninit<f32>]) {
        let s = &self.shape;
        image_to_frame::<V>(from, (s.out_h(), s.out_w()), &self.frame, &mut scratch.frame);
        let (plane, row) = (s.h * s.w * LANES, s.w * LANES);
        for (class, w) in &self.classes {
            Correlation {
                x: &scratch.frame[class.origin..],
                x_plane: self.frame.plane(),
                x_row: self.frame.row(),
                channels: s.co,
                taps: &class.offsets,
                w,
                out_blocks: s.ci.div_ceil(LANES),
                count: class.count,
                out: &mut scratch.out[class.first.0 * row + class.first.1 * LANES..],
                out_plane: plane,
                out_row: row * s.stride,
                out_pixel: LANES * s.stride,
            }
            .run::<V>();
        }
        blocks_to_image::<V>(&scratch.out, (plane, row), (s.h, s.w), to);
    }
}

/// The gradient by the weights.
pub(super) struct BackwardWeights {
    shape: ConvShape,
    x_frame: Frame,
    dy_frame: Frame,
    taps: Vec<usize>,
}

impl BackwardWeights {
    pub(super) fn new(shape: ConvShape) -> Self {
        let x_frame = Frame::of_input(&shape);
        let dy_frame = Frame::plain(shape.co, 0, 0, shape.out_h(), shape.out_w());
        let taps = all_taps(&shape).iter().map(|&(ky, kx)| x_frame.tap(ky, kx)).collect();
        Self { shape, x_frame, dy_frame, taps }
    }
}

impl WeightSums for BackwardWeights {
    type Scratch = (Lines, Lines);

    fn scratch(&self) -> Self::Scratch {
        (Lines::zeros(self.x_frame.len()), Lines::zeros(self.dy_frame.len()))
    }

    fn sums_len(&self) -> usize {
        weights_len(self.shape.co, self.shape.ci, self.taps.len())
    }

    #[inline(always)]
    fn image<V: Lanes>(
        &self,
        (x_frame, dy_frame): &mut Self::Scratch,
        x: &[f32],
        dy: &[f32],
        sums: &mut [f32],
    ) {
        let s = &self.shape;
        image_to_frame::<V>(x, (s.h, s.w), &self.x_frame, x_frame);
        image_to_frame::<V>(dy, (s.out_h(), s.out_w()), &self.dy_frame, dy_frame);
        WeightGradient {
            x: x_frame,
            x_plane: self.x_frame.plane(),
            x_row: self.x_frame.row(),
            channels: s.ci,
            taps: &self.taps,
            dy: dy_frame,
            dy_plane: self.dy_frame.plane(),
            dy_row: self.dy_frame.row(),
            out_blocks: s.co.div_ceil(LANES),
            count: (s.out_h(), s.out_w()),
            sums,
        }
        .run::<V>();
    }

    fn finish(&self, sums: &[f32], dw: &mut [f32]) {
        let taps = self.taps.len();
        for_each_weight(self.shape.co, self.shape.ci, taps, |place, o, i, t| {
            dw[(o * self.shape.ci + i) * taps + t] = sums[place];
        });
    }
}

fn all_taps(s: &ConvShape) -> Vec<(usize, usize)> {
    (0..s.kh).flat_map(|ky| (0..s.kw).map(move |kx| (ky, kx))).collect()
}
