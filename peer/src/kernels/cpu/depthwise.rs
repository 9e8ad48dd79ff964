//! Convolution in which each channel sees only itself, along whole rows: the sixteen lanes are neighbouring
//! pixels, since there are no channels to sum over.
#![expect(unsafe_code, reason = "promises that memory is written before it is read")]

use std::mem::MaybeUninit;

use super::conv::{ImageMap, WeightSums};
use super::geometry::{ConvShape, Frame, classes};
use super::lanes::{LANES, Lanes};

/// Whether a convolution is of this kind; its groups are then single channels.
pub(super) fn suits(group: &ConvShape, groups: usize) -> bool {
    groups > 1 && group.ci == 1 && group.co == 1
}

/// One channel with its border of zeros, split by remainders modulo the stride as [`Frame`] says. Rows of
/// windows lie `pitch` apart, so that a whole map of windows is one long row with a few more at the seams.
struct Plane {
    frame: Frame,
    /// Floats, with a margin that the last vector of the last tap may read.
    len: usize,
}

impl Plane {
    fn new(frame: Frame, windows: Windows, taps: &[usize]) -> Self {
        let far_tap = taps.iter().copied().max().unwrap_or(0);
        let len = (frame.plane() / LANES).max(windows.padded() + far_tap);
        Self { frame, len }
    }

    /// Copies the pixels `[h][w]` of a channel; the border stays as it is.
    #[inline(always)]
    fn fill(&self, pixels: &[f32], w: usize, to: &mut [f32]) {
        let f = &self.frame;
        for (y, from) in pixels.chunks_exact(w).enumerate() {
            let (ry, row) = ((y + f.top) % f.stride, (y + f.top) / f.stride);
            if ry >= f.remainders.0 || row >= f.rows {
                continue;
            }
            for rx in 0..f.remainders.1 {
                let to = &mut to[((ry * f.remainders.1 + rx) * f.rows + row) * f.cols..][..f.cols];
                let first = (rx + f.stride - f.left % f.stride) % f.stride;
                let col = (first + f.left) / f.stride;
                if f.stride == 1 {
                    let width = w.min(f.cols - col);
                    to[col..][..width].copy_from_slice(&from[..width]);
                } else if first < w && col < f.cols {
                    let from = from[first..].iter().step_by(f.stride);
                    to[col..].iter_mut().zip(from).for_each(|(to, &from)| *to = from);
                }
            }
        }
    }
}

/// Windows along y and x, and the pixels between two rows of them.
#[derive(Clone, Copy)]
struct Windows {
    rows: usize,
    cols: usize,
    pitch: usize,
}

impl Windows {
    /// Their number as one long row, in whole vectors.
    fn padded(self) -> usize {
        ((self.rows - 1) * self.pitch + self.cols).next_multiple_of(LANES)
    }
}

/// Some windows with their taps, as pixels of a plane.
struct Part {
    windows: Windows,
    /// First window in the plane, and the taps from there.
    origin: usize,
    offsets: Vec<usize>,
    /// The same taps as `(ky, kx)`.
    taps: Vec<(usize, usize)>,
    /// First result and the step to the next, along y and x.
    first: (usize, usize),
    step: usize,
}

/// From input to output, or from the output's gradient to the input's.
pub(super) struct Map {
    plane: Plane,
    parts: Vec<Part>,
    channels: usize,
    /// Sizes of the images that go in and come out.
    from: (usize, usize),
    to: (usize, usize),
    /// Whether every pixel that comes out belongs to some part.
    covers: bool,
    /// `[part][channel][tap]`.
    w: Vec<Vec<f32>>,
}

impl Map {
    /// `w` is `[channels][kh][kw]`, `s` the shape of one channel.
    pub(super) fn forward(s: &ConvShape, channels: usize, w: &[f32]) -> Self {
        let frame = Frame::of_input(s);
        let (to, part) = ((s.out_h(), s.out_w()), input_part(s, &frame));
        let plane = Plane::new(frame, part.windows, &part.offsets);
        Self { plane, parts: vec![part], channels, from: (s.h, s.w), to, covers: true, w: vec![w.to_vec()] }
    }

    /// `w` is `[channels][kh][kw]`, `s` the shape of one channel.
    pub(super) fn backward(s: &ConvShape, channels: usize, w: &[f32]) -> Self {
        let frame = Frame::of_output_gradient(s);
        let part = |class: super::geometry::Class| Part {
            windows: Windows { rows: class.count.0, cols: class.count.1, pitch: frame.cols },
            origin: class.origin / LANES,
            offsets: class.offsets.iter().map(|o| o / LANES).collect(),
            taps: class.taps,
            first: class.first,
            step: s.stride,
        };
        let parts: Vec<Part> = classes(s, &frame).into_iter().map(part).collect();
        let of_part = |part: &Part| {
            let of_channel = |c: usize| part.taps.iter().map(move |&(y, x)| w[(c * s.kh + y) * s.kw + x]);
            (0..channels).flat_map(of_channel).collect()
        };
        let w = parts.iter().map(of_part).collect();
        let reach = |p: &Part| Plane::new(frame, p.windows, &p.offsets).len + p.origin;
        let len = parts.iter().map(reach).max().unwrap_or(0).max(frame.plane() / LANES);
        let plane = Plane { frame, len };
        let covers = parts.iter().map(|p| p.windows.rows * p.windows.cols).sum::<usize>() == s.h * s.w;
        Self { plane, parts, channels, from: (s.out_h(), s.out_w()), to: (s.h, s.w), covers, w }
    }
}

// SAFETY: the parts cover the image, or it is zeroed first.
unsafe impl ImageMap for Map {
    type Scratch = (Vec<f32>, Vec<f32>);

    fn scratch(&self) -> Self::Scratch {
        let longest = self.parts.iter().map(|p| p.windows.padded()).max().unwrap_or(0);
        (vec![0.0; self.plane.len], vec![0.0; longest])
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, (plane, row): &mut Self::Scratch, from: &[f32], to: &mut [MaybeUninit<f32>]) {
        let sizes = (self.from.0 * self.from.1, self.to.0 * self.to.1);
        for c in 0..self.channels {
            self.plane.fill(&from[c * sizes.0..][..sizes.0], self.from.1, plane);
            let to = &mut to[c * sizes.1..][..sizes.1];
            if !self.covers {
                to.fill(MaybeUninit::new(0.0));
            }
            for (part, w) in self.parts.iter().zip(&self.w) {
                let taps = part.offsets.len();
                let row = &mut row[..part.windows.padded()];
                correlate::<V>(&plane[part.origin..], &part.offsets, &w[c * taps..][..taps], row);
                scatter(row, part, to, self.to.1);
            }
        }
    }
}

/// The gradient by the weights.
pub(super) struct Weights {
    plane: Plane,
    part: Part,
    channels: usize,
    image: (usize, usize),
}

impl Weights {
    /// `s` is the shape of one channel.
    pub(super) fn new(s: &ConvShape, channels: usize) -> Self {
        let frame = Frame::of_input(s);
        let part = input_part(s, &frame);
        Self { plane: Plane::new(frame, part.windows, &part.offsets), part, channels, image: (s.h, s.w) }
    }
}

impl WeightSums for Weights {
    type Scratch = (Vec<f32>, Vec<f32>);

    fn scratch(&self) -> Self::Scratch {
        (vec![0.0; self.plane.len], vec![0.0; self.part.windows.padded()])
    }

    fn sums_len(&self) -> usize {
        self.channels * self.part.offsets.len() * LANES
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, (plane, row): &mut Self::Scratch, x: &[f32], dy: &[f32], sums: &mut [f32]) {
        let Windows { rows, cols, pitch } = self.part.windows;
        let of_channel = self.part.offsets.len() * LANES;
        let sizes = (self.image.0 * self.image.1, rows * cols);
        for (c, sums) in sums.chunks_exact_mut(of_channel).enumerate() {
            self.plane.fill(&x[c * sizes.0..][..sizes.0], self.image.1, plane);
            // At the seams between two rows of windows stay zeros.
            for (y, dy) in dy[c * sizes.1..][..sizes.1].chunks_exact(cols).enumerate() {
                row[y * pitch..][..cols].copy_from_slice(dy);
            }
            gather_products::<V>(plane, &self.part.offsets, row, sums);
        }
    }

    fn finish(&self, sums: &[f32], dw: &mut [f32]) {
        for (dw, lanes) in dw.iter_mut().zip(sums.chunks_exact(LANES)) {
            *dw = lanes.iter().map(|&v| f64::from(v)).sum::<f64>() as f32;
        }
    }
}

/// All windows over the input.
fn input_part(s: &ConvShape, frame: &Frame) -> Part {
    let taps: Vec<(usize, usize)> = (0..s.kh).flat_map(|y| (0..s.kw).map(move |x| (y, x))).collect();
    Part {
        windows: Windows { rows: s.out_h(), cols: s.out_w(), pitch: frame.cols },
        origin: 0,
        offsets: taps.iter().map(|&(y, x)| frame.tap(y, x) / LANES).collect(),
        taps,
        first: (0, 0),
        step: 1,
    }
}

/// `out[i] = sum over taps of w[t] x[i + taps[t]]`.
#[inline(always)]
fn correlate<V: Lanes>(x: &[f32], taps: &[usize], w: &[f32], out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        at += match out.len() - at {
            left if left >= 4 * LANES => correlate_vectors::<V, 4>(x, taps, w, at, out),
            left if left >= 2 * LANES => correlate_vectors::<V, 2>(x, taps, w, at, out),
            _ => correlate_vectors::<V, 1>(x, taps, w, at, out),
        };
    }
}

/// `N` vectors from `at` on. Returns their length.
#[inline(always)]
fn correlate_vectors<V: Lanes, const N: usize>(
    x: &[f32],
    taps: &[usize],
    w: &[f32],
    at: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [V::splat(0.0); N];
    for (&tap, &w) in taps.iter().zip(w) {
        let w = V::splat(w);
        let (vectors, _) = x[tap + at..][..N * LANES].as_chunks::<LANES>();
        for (sum, x) in sums.iter_mut().zip(vectors) {
            *sum = sum.plus_product(w, V::load(x));
        }
    }
    let (vectors, _) = out[at..][..N * LANES].as_chunks_mut::<LANES>();
    for (sum, out) in sums.into_iter().zip(vectors) {
        sum.store(out);
    }
    N * LANES
}

/// `sums[t] += x[i + taps[t]] dy[i]`, lane by lane.
#[inline(always)]
fn gather_products<V: Lanes>(x: &[f32], taps: &[usize], dy: &[f32], sums: &mut [f32]) {
    let mut first = 0;
    while first < taps.len() {
        let (taps, sums) = (&taps[first..], &mut sums[first * LANES..]);
        first += match taps.len() {
            left if V::WIDE && left >= 9 => gather_taps::<V, 9>(x, taps, dy, sums),
            left if left >= 5 => gather_taps::<V, 5>(x, taps, dy, sums),
            left if left >= 3 => gather_taps::<V, 3>(x, taps, dy, sums),
            _ => gather_taps::<V, 1>(x, taps, dy, sums),
        };
    }
}

/// The first `N` taps. Returns `N`.
#[inline(always)]
fn gather_taps<V: Lanes, const N: usize>(x: &[f32], taps: &[usize], dy: &[f32], sums: &mut [f32]) -> usize {
    let (vectors, _) = dy.as_chunks::<LANES>();
    let (totals, _) = sums[..N * LANES].as_chunks_mut::<LANES>();
    let mut of_image = [V::splat(0.0); N];
    for (i, dy) in vectors.iter().enumerate() {
        let dy = V::load(dy);
        for (sum, &tap) in of_image.iter_mut().zip(&taps[..N]) {
            let (x, _) = x[tap + i * LANES..][..LANES].as_chunks::<LANES>();
            *sum = sum.plus_product(V::load(&x[0]), dy);
        }
    }
    for (sum, total) in of_image.into_iter().zip(totals) {
        V::load(total).add(sum).store(total);
    }
    N
}

/// From one long row of windows to the pixels of an image of width `w`.
#[inline(always)]
fn scatter(row: &[f32], part: &Part, to: &mut [MaybeUninit<f32>], w: usize) {
    let Windows { rows, cols, pitch } = part.windows;
    for y in 0..rows {
        let from = &row[y * pitch..][..cols];
        let to = &mut to[(part.first.0 + y * part.step) * w + part.first.1..];
        if part.step == 1 {
            to[..cols].write_copy_of_slice(from);
        } else {
            to.iter_mut().step_by(part.step).zip(from).for_each(|(to, &from)| _ = to.write(from));
        }
    }
}
