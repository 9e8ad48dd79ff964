//! Pooling over windows of a plane: the largest value, or the mean over a grid of any size.

use std::ops::Range;

use super::parallel::build;

/// Planes that a thread takes at a time.
const TOGETHER: usize = 16;

/// Sizes of a pooling by maximum, the same along y and x but for the image.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct MaxPool {
    pub(in crate::kernels) h: usize,
    pub(in crate::kernels) w: usize,
    pub(in crate::kernels) kernel: usize,
    pub(in crate::kernels) stride: usize,
    pub(in crate::kernels) padding: usize,
}

impl MaxPool {
    pub(in crate::kernels) fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.kernel) / self.stride + 1
    }

    pub(in crate::kernels) fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// What a window covers of an axis of `size` pixels: what lies outside is smaller than any value.
    fn window(&self, i: usize, size: usize) -> Range<usize> {
        let from = i * self.stride;
        from.saturating_sub(self.padding)..(from + self.kernel).saturating_sub(self.padding).min(size)
    }

    /// Index of the first maximum in each window of a plane, in order; NaN is above everything.
    fn for_each_first_maximum(&self, x: &[f32], mut visit: impl FnMut(usize, usize)) {
        let out_w = self.out_w();
        for oy in 0..self.out_h() {
            let rows = self.window(oy, self.h);
            for ox in 0..out_w {
                let columns = self.window(ox, self.w);
                let mut first = rows.start * self.w + columns.start;
                for y in rows.clone() {
                    for at in y * self.w + columns.start..y * self.w + columns.end {
                        if x[at] > x[first] || (x[at].is_nan() && !x[first].is_nan()) {
                            first = at;
                        }
                    }
                }
                visit(oy * out_w + ox, first);
            }
        }
    }
}

/// Planes `[h][w]` to planes of windows. Each window covers at least one pixel.
pub(in crate::kernels) fn max(p: MaxPool, x: &[f32]) -> Vec<f32> {
    let (from, to) = (p.h * p.w, p.out_h() * p.out_w());
    build(
        (x.len() / from * to, to),
        TOGETHER,
        || (),
        |(), plane, y| {
            let x = &x[plane * from..][..from];
            p.for_each_first_maximum(x, |window, first| y[window] = x[first]);
        },
    )
}

/// The gradient of [`max`]: each window's goes to its first maximum.
pub(in crate::kernels) fn max_backward(p: MaxPool, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (from, to) = (p.h * p.w, p.out_h() * p.out_w());
    build(
        (x.len(), from),
        TOGETHER,
        || (),
        |(), plane, dx| {
            let dy = &dy[plane * to..][..to];
            p.for_each_first_maximum(&x[plane * from..][..from], |window, first| dx[first] += dy[window]);
        },
    )
}

/// A grid of `out` cells over planes of `size` pixels, each pair along y and x.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Grid {
    pub(in crate::kernels) size: (usize, usize),
    pub(in crate::kernels) out: (usize, usize),
}

impl Grid {
    /// Visits the cells: `visit(index of the cell, rows, columns)`.
    fn for_each_cell(&self, mut visit: impl FnMut(usize, Range<usize>, Range<usize>)) {
        for oy in 0..self.out.0 {
            for ox in 0..self.out.1 {
                let rows = cell(oy, self.size.0, self.out.0);
                visit(oy * self.out.1 + ox, rows, cell(ox, self.size.1, self.out.1));
            }
        }
    }
}

/// The pixels of cell `i` of `cells` along an axis of `size` pixels: from `floor(i size / cells)` up to
/// `ceil((i + 1) size / cells)`, so that cells may share pixels.
pub(in crate::kernels) fn cell(i: usize, size: usize, cells: usize) -> Range<usize> {
    i * size / cells..((i + 1) * size).div_ceil(cells)
}

/// The mean over each cell.
pub(in crate::kernels) fn grid_means(g: Grid, x: &[f32]) -> Vec<f32> {
    let (from, to) = (g.size.0 * g.size.1, g.out.0 * g.out.1);
    build(
        (x.len() / from * to, to),
        TOGETHER,
        || (),
        |(), plane, y| {
            let x = &x[plane * from..][..from];
            g.for_each_cell(|cell, rows, columns| {
                let area = rows.len() * columns.len();
                let row = |y: usize| &x[y * g.size.1..][columns.clone()];
                let sum: f64 = rows.flat_map(row).map(|&v| f64::from(v)).sum();
                y[cell] = (sum / area as f64) as f32;
            });
        },
    )
}

/// The gradient of [`grid_means`].
pub(in crate::kernels) fn grid_means_backward(g: Grid, dy: &[f32]) -> Vec<f32> {
    let (from, to) = (g.size.0 * g.size.1, g.out.0 * g.out.1);
    build(
        (dy.len() / to * from, from),
        TOGETHER,
        || (),
        |(), plane, dx| {
            g.for_each_cell(|cell, rows, columns| {
                let share = dy[plane * to + cell] / (rows.len() * columns.len()) as f32;
                for y in rows {
                    dx[y * g.size.1..][columns.clone()].iter_mut().for_each(|dx| *dx += share);
                }
            });
        },
    )
}
