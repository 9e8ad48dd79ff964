//! Convolution 3x3 of stride 1 and padding 1 with 16 products for each 4 outputs instead of 36: the minimal
//! filtering algorithm F(2x2, 3x3) of Lavin and Gray 2016, section 4.1. Each of the 16 products is a matrix
//! product over channels, for which the micro kernels of the direct form serve with a single tap.
#![expect(unsafe_code, reason = "promises that memory is written before it is read")]

use std::mem::MaybeUninit;

use super::conv::{ImageMap, WeightSums};
use super::geometry::{ConvShape, Frame};
use super::lanes::{LANES, Lanes};
use super::lines::Lines;
use super::micro::{Correlation, WeightGradient};
use super::pack::{blocks_to_image, for_each_weight, image_to_frame, weights_len};

/// Products per tile of 2x2 outputs.
const PRODUCTS: usize = 16;

/// Whether this form is used. Its rounding differs from the direct form's, so only the shape may decide.
pub(super) fn suits(s: &ConvShape) -> bool {
    (s.kh, s.kw, s.stride, s.padding) == (3, 3, 1, 1) && s.ci >= 16 && s.co >= 16 && s.h >= 4 && s.w >= 4
}

/// Floats between the weights of two products. One vector more than they need, as in [`Strip::step`].
fn product_step(outputs: usize, channels: usize) -> usize {
    weights_len(outputs, channels, 1) + LANES
}

/// How an image is cut into tiles of 2x2 outputs, and the tiles into strips that stay in the cache.
#[derive(Clone, Copy)]
struct Tiling {
    h: usize,
    w: usize,
    /// Tiles along y and x; the last ones may reach over the edge.
    rows: usize,
    cols: usize,
    /// Rows of tiles in a strip.
    strip: usize,
}

impl Tiling {
    fn new(s: &ConvShape) -> Self {
        /// Bytes of transformed tiles, input and output together: a quarter of a second-level cache of today.
        const STRIP_BYTES: usize = 256 << 10;
        let (rows, cols) = (s.h.div_ceil(2), s.w.div_ceil(2));
        let blocks = s.ci.div_ceil(LANES) + s.co.div_ceil(LANES);
        let tile_bytes = PRODUCTS * blocks * LANES * size_of::<f32>();
        let strip = (STRIP_BYTES / tile_bytes / cols).clamp(1, rows);
        Self { h: s.h, w: s.w, rows, cols, strip }
    }

    /// The frame whose windows of 4x4 belong to the tiles.
    fn input_frame(&self, channels: usize) -> Frame {
        Frame::plain(channels, 1, 1, 2 * self.rows + 2, 2 * self.cols + 2)
    }

    /// The frame of whole tiles.
    fn output_frame(&self, channels: usize) -> Frame {
        Frame::plain(channels, 0, 0, 2 * self.rows, 2 * self.cols)
    }

    /// Floats of the transformed tiles of a strip.
    fn transformed(&self, channels: usize) -> usize {
        let full = Strip { first: 0, rows: self.strip, cols: self.cols };
        PRODUCTS * full.step(channels.div_ceil(LANES))
    }

    /// First rows of the strips and their tiles.
    fn strips(self) -> impl Iterator<Item = Strip> {
        (0..self.rows).step_by(self.strip).map(move |first| Strip {
            first,
            rows: self.strip.min(self.rows - first),
            cols: self.cols,
        })
    }
}

/// A few rows of tiles.
#[derive(Clone, Copy)]
struct Strip {
    first: usize,
    rows: usize,
    cols: usize,
}

impl Strip {
    fn tiles(self) -> usize {
        self.rows * self.cols
    }

    /// Floats between two products. One vector more than they need: at a distance of a power of two all
    /// sixteen would fall into the same few lines of the first-level cache.
    fn step(self, blocks: usize) -> usize {
        (blocks * self.tiles() + 1) * LANES
    }
}

/// Memory of one thread.
pub(super) struct Scratch {
    frame: Lines,
    out: Lines,
    transformed: Lines,
    products: Lines,
}

/// From input to output, or from the output's gradient to the input's: the same with the weights turned
/// round.
pub(super) struct Map {
    tiling: Tiling,
    from: usize,
    to: usize,
    /// Transformed weights, `[product]` of what [`Correlation`] takes.
    u: Lines,
}

impl Map {
    /// `w` is `[Co][Ci][3][3]`.
    pub(super) fn forward(s: &ConvShape, w: &[f32]) -> Self {
        Self::new(s, s.ci, s.co, |o, i| std::array::from_fn(|k| w[(o * s.ci + i) * 9 + k]))
    }

    /// `w` is `[Co][Ci][3][3]`.
    pub(super) fn backward(s: &ConvShape, w: &[f32]) -> Self {
        Self::new(s, s.co, s.ci, |i, o| std::array::from_fn(|k| w[(o * s.ci + i) * 9 + 8 - k]))
    }

    fn new(s: &ConvShape, from: usize, to: usize, window: impl Fn(usize, usize) -> [f32; 9]) -> Self {
        let step = product_step(to, from);
        let mut u = Lines::zeros(PRODUCTS * step);
        for_each_weight(to, from, 1, |place, output, channel, _| {
            for (product, value) in weights_forward(window(output, channel)).into_iter().enumerate() {
                u[product * step + place] = value;
            }
        });
        Self { tiling: Tiling::new(s), from, to, u }
    }
}

// SAFETY: `blocks_to_image` writes every value.
unsafe impl ImageMap for Map {
    type Scratch = Scratch;

    fn scratch(&self) -> Scratch {
        let t = &self.tiling;
        Scratch {
            frame: Lines::zeros(t.input_frame(self.from).len()),
            out: Lines::zeros(t.output_frame(self.to).len()),
            transformed: Lines::zeros(t.transformed(self.from)),
            products: Lines::zeros(t.transformed(self.to)),
        }
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, scratch: &mut Scratch, from: &[f32], to: &mut [MaybeUninit<f32>]) {
        let t = self.tiling;
        let (frame, out) = (t.input_frame(self.from), t.output_frame(self.to));
        image_to_frame::<V>(from, (t.h, t.w), &frame, &mut scratch.frame);
        let blocks = (self.from.div_ceil(LANES), self.to.div_ceil(LANES));
        for strip in t.strips() {
            transform_windows::<V>(&scratch.frame, &frame, strip, &mut scratch.transformed);
            let plane = strip.tiles() * LANES;
            for product in 0..PRODUCTS {
                Correlation {
                    x: &scratch.transformed[product * strip.step(blocks.0)..],
                    x_plane: plane,
                    x_row: plane,
                    channels: self.from,
                    taps: &[0],
                    w: &self.u[product * (self.u.len() / PRODUCTS)..],
                    out_blocks: blocks.1,
                    count: (1, strip.tiles()),
                    out: &mut scratch.products[product * strip.step(blocks.1)..],
                    out_plane: plane,
                    out_row: plane,
                    out_pixel: LANES,
                }
                .run::<V>();
            }
            outputs_of_products::<V>(&scratch.products, &out, strip, &mut scratch.out);
        }
        blocks_to_image::<V>(&scratch.out, (out.plane(), out.row()), (t.h, t.w), to);
    }
}

/// The gradient by the weights.
pub(super) struct Weights {
    tiling: Tiling,
    ci: usize,
    co: usize,
}

impl Weights {
    pub(super) fn new(s: &ConvShape) -> Self {
        Self { tiling: Tiling::new(s), ci: s.ci, co: s.co }
    }
}

impl WeightSums for Weights {
    type Scratch = Scratch;

    fn scratch(&self) -> Scratch {
        let t = &self.tiling;
        Scratch {
            frame: Lines::zeros(t.input_frame(self.ci).len()),
            out: Lines::zeros(t.output_frame(self.co).len()),
            transformed: Lines::zeros(t.transformed(self.ci)),
            products: Lines::zeros(t.transformed(self.co)),
        }
    }

    fn sums_len(&self) -> usize {
        PRODUCTS * product_step(self.co, self.ci)
    }

    #[inline(always)]
    fn image<V: Lanes>(&self, scratch: &mut Scratch, x: &[f32], dy: &[f32], sums: &mut [f32]) {
        let t = self.tiling;
        let (frame, out) = (t.input_frame(self.ci), t.output_frame(self.co));
        image_to_frame::<V>(x, (t.h, t.w), &frame, &mut scratch.frame);
        image_to_frame::<V>(dy, (t.h, t.w), &out, &mut scratch.out);
        let blocks = (self.ci.div_ceil(LANES), self.co.div_ceil(LANES));
        let sums_of_product = self.sums_len() / PRODUCTS;
        for strip in t.strips() {
            transform_windows::<V>(&scratch.frame, &frame, strip, &mut scratch.transformed);
            products_of_gradients::<V>(&scratch.out, &out, strip, &mut scratch.products);
            let plane = strip.tiles() * LANES;
            for (product, sums) in sums.chunks_exact_mut(sums_of_product).enumerate() {
                WeightGradient {
                    x: &scratch.transformed[product * strip.step(blocks.0)..],
                    x_plane: plane,
                    x_row: plane,
                    channels: self.ci,
                    taps: &[0],
                    dy: &scratch.products[product * strip.step(blocks.1)..],
                    dy_plane: plane,
                    dy_row: plane,
                    out_blocks: blocks.1,
                    count: (1, strip.tiles()),
                    sums,
                }
                .run::<V>();
            }
        }
    }

    fn finish(&self, sums: &[f32], dw: &mut [f32]) {
        let step = product_step(self.co, self.ci);
        for_each_weight(self.co, self.ci, 1, |place, o, i, _| {
            let window = weights_backward(std::array::from_fn(|product| sums[product * step + place]));
            dw[(o * self.ci + i) * 9..][..9].copy_from_slice(&window);
        });
    }
}

/// `B^T d B` of every window of 4x4 pixels, to `[product][block][tile][lane]`.
#[inline(always)]
fn transform_windows<V: Lanes>(from: &[f32], frame: &Frame, strip: Strip, to: &mut [f32]) {
    let step = strip.step(frame.channels.div_ceil(LANES));
    for (block, plane) in from.chunks_exact(frame.plane()).enumerate() {
        for tile in 0..strip.tiles() {
            let (y, x) = (2 * (strip.first + tile / strip.cols), 2 * (tile % strip.cols));
            let row = |r: usize| -> [V; 4] { pixels(&plane[(y + r) * frame.row() + x * LANES..]) };
            let halfway = columns([row(0), row(1), row(2), row(3)], window_1d);
            let place = (block * strip.tiles() + tile) * LANES;
            for (r, values) in halfway.into_iter().enumerate() {
                for (c, value) in window_1d(values).into_iter().enumerate() {
                    put(value, &mut to[(4 * r + c) * step + place..]);
                }
            }
        }
    }
}

/// `A^T m A` of every tile's products, to its 2x2 pixels.
#[inline(always)]
fn outputs_of_products<V: Lanes>(from: &[f32], frame: &Frame, strip: Strip, to: &mut [f32]) {
    let step = strip.step(frame.channels.div_ceil(LANES));
    for (block, plane) in to.chunks_exact_mut(frame.plane()).enumerate() {
        for tile in 0..strip.tiles() {
            let place = (block * strip.tiles() + tile) * LANES;
            // Loops, since `array::from_fn` need not be inlined and would then run on the least set.
            let mut products = [[V::splat(0.0); 4]; 4];
            for (r, row) in products.iter_mut().enumerate() {
                for (c, value) in row.iter_mut().enumerate() {
                    *value = get(&from[(4 * r + c) * step + place..]);
                }
            }
            let halfway = columns(products, output_1d);
            let (y, x) = (2 * (strip.first + tile / strip.cols), 2 * (tile % strip.cols));
            for (r, values) in halfway.into_iter().enumerate() {
                for (c, value) in output_1d(values).into_iter().enumerate() {
                    put(value, &mut plane[(y + r) * frame.row() + (x + c) * LANES..]);
                }
            }
        }
    }
}

/// `A dy A^T` of every tile's 2x2 gradients, to `[product][block][tile][lane]`.
#[inline(always)]
fn products_of_gradients<V: Lanes>(from: &[f32], frame: &Frame, strip: Strip, to: &mut [f32]) {
    let step = strip.step(frame.channels.div_ceil(LANES));
    for (block, plane) in from.chunks_exact(frame.plane()).enumerate() {
        for tile in 0..strip.tiles() {
            let (y, x) = (2 * (strip.first + tile / strip.cols), 2 * (tile % strip.cols));
            let row = |r: usize| -> [V; 2] { pixels(&plane[(y + r) * frame.row() + x * LANES..]) };
            let halfway = columns([row(0), row(1)], gradient_1d);
            let place = (block * strip.tiles() + tile) * LANES;
            for (r, values) in halfway.into_iter().enumerate() {
                for (c, value) in gradient_1d(values).into_iter().enumerate() {
                    put(value, &mut to[(4 * r + c) * step + place..]);
                }
            }
        }
    }
}

/// One row of `B^T`.
#[inline(always)]
fn window_1d<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 4] {
    [a.sub(c), b.add(c), c.sub(b), b.sub(d)]
}

/// One row of `A^T`.
#[inline(always)]
fn output_1d<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 2] {
    [a.add(b).add(c), b.sub(c).sub(d)]
}

/// One row of `A`.
#[inline(always)]
fn gradient_1d<V: Lanes>([a, b]: [V; 2]) -> [V; 4] {
    [a, a.add(b), a.sub(b), V::splat(0.0).sub(b)]
}

/// `G w G^T` of a window of 3x3.
fn weights_forward(w: [f32; 9]) -> [f32; PRODUCTS] {
    let expand = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    let columns: [[f32; 4]; 3] = std::array::from_fn(|c| expand([w[c], w[3 + c], w[6 + c]]));
    let rows: [[f32; 4]; 4] = std::array::from_fn(|r| expand([columns[0][r], columns[1][r], columns[2][r]]));
    std::array::from_fn(|k| rows[k / 4][k % 4])
}

/// `G^T s G` of the sums of 16 products.
fn weights_backward(s: [f32; PRODUCTS]) -> [f32; 9] {
    let reduce = |[a, b, c, d]: [f32; 4]| [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
    let columns: [[f32; 3]; 4] = std::array::from_fn(|c| reduce([s[c], s[4 + c], s[8 + c], s[12 + c]]));
    let rows: [[f32; 3]; 3] =
        std::array::from_fn(|r| reduce([columns[0][r], columns[1][r], columns[2][r], columns[3][r]]));
    std::array::from_fn(|k| rows[k / 3][k % 3])
}

/// Applies a map to each column.
#[inline(always)]
fn columns<V: Lanes, const N: usize, const M: usize>(
    rows: [[V; N]; N],
    map: impl Fn([V; N]) -> [V; M],
) -> [[V; N]; M] {
    let mut out = [[V::splat(0.0); N]; M];
    for c in 0..N {
        let mut column = [V::splat(0.0); N];
        for r in 0..N {
            column[r] = rows[r][c];
        }
        for (out, value) in out.iter_mut().zip(map(column)) {
            out[c] = value;
        }
    }
    out
}

/// Consecutive pixels of a row.
#[inline(always)]
fn pixels<V: Lanes, const N: usize>(from: &[f32]) -> [V; N] {
    let (vectors, _) = from[..N * LANES].as_chunks::<LANES>();
    let mut all = [V::splat(0.0); N];
    for (value, vector) in all.iter_mut().zip(vectors) {
        *value = V::load(vector);
    }
    all
}

#[inline(always)]
fn get<V: Lanes>(from: &[f32]) -> V {
    let (vectors, _) = from[..LANES].as_chunks::<LANES>();
    V::load(&vectors[0])
}

#[inline(always)]
fn put<V: Lanes>(value: V, to: &mut [f32]) {
    let (vectors, _) = to[..LANES].as_chunks_mut::<LANES>();
    value.store(&mut vectors[0]);
}
