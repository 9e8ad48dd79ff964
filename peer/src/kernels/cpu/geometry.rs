//! Sizes of a convolution and where its taps fall in a padded image of channel blocks.

use super::lanes::LANES;

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct ConvShape {
    pub(in crate::kernels) batch: usize,
    pub(in crate::kernels) ci: usize,
    pub(in crate::kernels) h: usize,
    pub(in crate::kernels) w: usize,
    pub(in crate::kernels) co: usize,
    pub(in crate::kernels) kh: usize,
    pub(in crate::kernels) kw: usize,
    pub(in crate::kernels) stride: usize,
    pub(in crate::kernels) padding: usize,
}

impl ConvShape {
    pub(in crate::kernels) fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.kh) / self.stride + 1
    }

    pub(in crate::kernels) fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.kw) / self.stride + 1
    }

    /// Values of the weights.
    pub(super) fn weights(&self) -> usize {
        self.co * self.ci * self.kh * self.kw
    }

    /// Values of one image that goes in.
    pub(in crate::kernels) fn image_in(&self) -> usize {
        self.ci * self.h * self.w
    }

    /// Values of one image that comes out.
    pub(super) fn image_out(&self) -> usize {
        self.co * self.out_h() * self.out_w()
    }
}

/// An image of channel blocks with a border of zeros, split by the remainders of its coordinates modulo the
/// stride: `[block][remainder of y][remainder of x][rows][cols][lane]`. Windows then move by one pixel
/// whatever the stride.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) channels: usize,
    pub(super) stride: usize,
    pub(super) top: usize,
    pub(super) left: usize,
    /// Remainders that some tap needs.
    pub(super) remainders: (usize, usize),
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Frame {
    /// The frame of the input, in which the window of every output pixel lies.
    pub(super) fn of_input(s: &ConvShape) -> Self {
        Self {
            channels: s.ci,
            stride: s.stride,
            top: s.padding,
            left: s.padding,
            remainders: (s.stride.min(s.kh), s.stride.min(s.kw)),
            rows: s.out_h() + (s.kh - 1) / s.stride,
            cols: s.out_w() + (s.kw - 1) / s.stride,
        }
    }

    /// The frame of the output's gradient, in which every output pixel that an input pixel feeds lies.
    pub(super) fn of_output_gradient(s: &ConvShape) -> Self {
        let (top, left) = ((s.kh - 1) / s.stride, (s.kw - 1) / s.stride);
        Self {
            channels: s.co,
            stride: 1,
            top,
            left,
            remainders: (1, 1),
            rows: top + s.out_h().max((s.h - 1 + s.padding) / s.stride + 1),
            cols: left + s.out_w().max((s.w - 1 + s.padding) / s.stride + 1),
        }
    }

    /// A frame of stride 1 with a border on the upper left.
    pub(super) fn plain(channels: usize, top: usize, left: usize, rows: usize, cols: usize) -> Self {
        Self { channels, stride: 1, top, left, remainders: (1, 1), rows, cols }
    }

    /// Floats between two rows of windows.
    pub(super) fn row(&self) -> usize {
        self.cols * LANES
    }

    /// Floats between two blocks of channels.
    pub(super) fn plane(&self) -> usize {
        self.remainders.0 * self.remainders.1 * self.rows * self.row()
    }

    /// Floats of the whole frame.
    pub(super) fn len(&self) -> usize {
        self.channels.div_ceil(LANES) * self.plane()
    }

    /// Where the tap at `(ky, kx)` lies from the window's origin, in floats.
    pub(super) fn tap(&self, ky: usize, kx: usize) -> usize {
        let (ry, rx) = (ky % self.stride, kx % self.stride);
        let row = (ry * self.remainders.1 + rx) * self.rows + ky / self.stride;
        row * self.row() + kx / self.stride * LANES
    }
}

/// The input pixels whose coordinates leave one remainder modulo the stride: they are fed by the same taps,
/// so that their gradient is an ordinary correlation of stride 1.
#[derive(Clone, Debug)]
pub(super) struct Class {
    /// Taps `(ky, kx)` of the forward window.
    pub(super) taps: Vec<(usize, usize)>,
    /// Where each tap lies in the frame of the output's gradient, in floats from the window's origin.
    pub(super) offsets: Vec<usize>,
    /// Origin of the first window in that frame, in floats.
    pub(super) origin: usize,
    /// First input pixel.
    pub(super) first: (usize, usize),
    /// Input pixels of the class along y and x.
    pub(super) count: (usize, usize),
}

/// All classes of input pixels that some output pixel feeds on.
pub(super) fn classes(s: &ConvShape, frame: &Frame) -> Vec<Class> {
    let mut all = Vec::new();
    for ry in 0..s.stride.min(s.kh) {
        for rx in 0..s.stride.min(s.kw) {
            let first = |r: usize| (r + s.stride - s.padding % s.stride) % s.stride;
            let (y, x) = (first(ry), first(rx));
            if y >= s.h || x >= s.w {
                continue;
            }
            let taps: Vec<(usize, usize)> = (ry..s.kh)
                .step_by(s.stride)
                .flat_map(|ky| (rx..s.kw).step_by(s.stride).map(move |kx| (ky, kx)))
                .collect();
            let offset = |&(ky, kx): &(usize, usize)| {
                (frame.top - ky / s.stride) * frame.row() + (frame.left - kx / s.stride) * LANES
            };
            let (out_y, out_x) = ((y + s.padding - ry) / s.stride, (x + s.padding - rx) / s.stride);
            all.push(Class {
                offsets: taps.iter().map(offset).collect(),
                taps,
                origin: out_y * frame.row() + out_x * LANES,
                first: (y, x),
                count: ((s.h - 1 - y) / s.stride + 1, (s.w - 1 - x) / s.stride + 1),
            });
        }
    }
    all
}
