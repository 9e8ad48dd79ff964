//! Convolution of an image as a product of matrices: the windows of the image are the columns of one, the weights are the
//! rows of the other (Chellapilla, Puri and Simard 2006, section 3.2). Images are independent, and the gradient by the
//! weights is summed over them in their order, so that the number of threads changes nothing but the time.

use std::ops::Range;

use candle_core::{CpuStorage, Result, Tensor};
use rayon::prelude::*;

use super::super::ConvGeometry;
use super::super::cpu::geometry::ConvShape;
use super::super::ops::link::link;
use super::super::ops::with_values;
use super::tensor;

/// Images whose contributions to the gradient by the weights are added up before they are added to those of others.
const TOGETHER: usize = 4;

/// See [`super::super::conv2d`]; the shapes are checked.
pub(in super::super) fn conv2d(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Result<Tensor> {
    let (batch, _, h, width) = x.dims4()?;
    let (co, ci, kh, kw) = w.dims4()?;
    let (stride, padding) = (g.stride, g.padding);
    let group = ConvShape { batch, ci, h, w: width, co: co / g.groups, kh, kw, stride, padding };
    let conv = Conv { group, groups: g.groups, x: x.detach().contiguous()?, w: w.detach().contiguous()? };
    let y = (CpuStorage::F64(conv.forward()?), (batch, co, group.out_h(), group.out_w()).into());
    // The images of the first layer need no gradient.
    let (by_x, by_w) = (x.track_op(), w.track_op());
    link("cohort-conv2d-f64", &[x, w], y, move |_, dy| {
        let dx = by_x.then(|| conv.backward_data(dy)).transpose()?;
        let dw = by_w.then(|| conv.backward_weights(dy)).transpose()?;
        Ok([dx, dw, None])
    })
}

/// A convolution with its arguments, outside the graph.
struct Conv {
    /// What each group computes; its channels are those of one group.
    group: ConvShape,
    groups: usize,
    x: Tensor,
    w: Tensor,
}

impl Conv {
    /// Rows of the matrix of windows, and its columns.
    fn windows(&self) -> (usize, usize) {
        let ConvShape { ci, kh, kw, .. } = self.group;
        (ci * kh * kw, self.group.out_h() * self.group.out_w())
    }

    /// The weights of each group as a matrix.
    fn matrices(&self) -> Result<Vec<Tensor>> {
        let w = self.w.reshape((self.groups, self.group.co, self.windows().0))?;
        (0..self.groups).map(|group| w.get(group)).collect()
    }

    /// `[B, Co, Ho, Wo]`.
    fn forward(&self) -> Result<Vec<f64>> {
        let (s, matrices) = (&self.group, self.matrices()?);
        with_values(&self.x, |x: &[f64]| {
            let unit = |i: usize| {
                let image = part(x, i, s.ci * s.h * s.w);
                matrices[i % self.groups].matmul(&self.columns(image)?)
            };
            self.units(unit)
        })
    }

    /// The gradient by `x` from that by the output: what the columns get is added where they came from.
    fn backward_data(&self, dy: &Tensor) -> Result<Tensor> {
        let (s, (_, pixels)) = (&self.group, self.windows());
        let matrices: Result<Vec<Tensor>> = self.matrices()?.iter().map(Tensor::t).collect();
        let matrices = matrices?;
        let dx = with_values(dy, |dy: &[f64]| {
            let unit = |i: usize| {
                let dy = tensor(part(dy, i, s.co * pixels).to_vec(), (s.co, pixels))?;
                with_values(&matrices[i % self.groups].matmul(&dy)?, |columns| self.image(columns))
            };
            self.units(unit)
        })?;
        tensor(dx, self.x.shape())
    }

    /// The gradient by `w` from that by the output.
    fn backward_weights(&self, dy: &Tensor) -> Result<Tensor> {
        let (s, (_, pixels)) = (&self.group, self.windows());
        let sums = with_values(&self.x, |x: &[f64]| {
            with_values(dy, |dy: &[f64]| {
                let unit = |i: usize| {
                    let dy = tensor(part(dy, i, s.co * pixels).to_vec(), (s.co, pixels))?;
                    dy.matmul(&self.columns(part(x, i, s.ci * s.h * s.w))?.t()?)
                };
                let sum = |first: usize, group: usize| {
                    let images = first + 1..(first + TOGETHER).min(s.batch);
                    let unit = |image: usize| unit(image * self.groups + group);
                    images.map(unit).try_fold(unit(first)?, |sum, unit| sum.add(&unit?))
                };
                let of_group = |group: usize| {
                    let parts = (0..s.batch).into_par_iter().step_by(TOGETHER).map(|first| sum(first, group));
                    Tensor::stack(&parts.collect::<Result<Vec<Tensor>>>()?, 0)?.sum(0)
                };
                (0..self.groups).map(of_group).collect::<Result<Vec<Tensor>>>()
            })
        })?;
        Tensor::cat(&sums, 0)?.reshape(self.w.shape())
    }

    /// What all groups of all images give, one after the other.
    fn units(&self, unit: impl Fn(usize) -> Result<Tensor> + Sync + Send) -> Result<Vec<f64>> {
        let units: Result<Vec<Tensor>> =
            (0..self.group.batch * self.groups).into_par_iter().map(unit).collect();
        let mut all = Vec::new();
        for unit in units? {
            with_values(&unit, |values| {
                all.extend_from_slice(values);
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// The windows of an image as columns, zeros where they reach beyond its border.
    fn columns(&self, image: &[f64]) -> Result<Tensor> {
        let (rows, pixels) = self.windows();
        let mut columns = vec![0.0; rows * pixels];
        self.runs(|run, at| {
            let from = image[at..].iter().step_by(self.group.stride);
            columns[run].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        });
        tensor(columns, (rows, pixels))
    }

    /// The image in which each pixel is the sum of what stands for it in the columns.
    fn image(&self, columns: &[f64]) -> Result<Tensor> {
        let ConvShape { ci, h, w, stride, .. } = self.group;
        let mut image = vec![0.0; ci * h * w];
        self.runs(|run, at| {
            let to = image[at..].iter_mut().step_by(stride);
            to.zip(&columns[run]).for_each(|(to, from)| *to += *from);
        });
        tensor(image, ci * h * w)
    }

    /// Every run of values in the matrix of windows whose pixels lie in one line of the image, and where the first of
    /// these is; the following ones are `stride` pixels apart.
    fn runs(&self, mut run: impl FnMut(Range<usize>, usize)) {
        let ConvShape { ci, h, w, kh, kw, stride, padding, .. } = self.group;
        let (out_h, out_w) = (self.group.out_h(), self.group.out_w());
        // Windows whose tap falls into a line of pixels of this length.
        let inside = |tap: usize, size: usize, windows: usize| {
            let first = padding.saturating_sub(tap).div_ceil(stride);
            let end = (size + padding).saturating_sub(tap).div_ceil(stride).min(windows);
            first.min(end)..end
        };
        for row in 0..ci * kh * kw {
            let (channel, ky, kx) = (row / (kh * kw), row / kw % kh, row % kw);
            let along_x = inside(kx, w, out_w);
            for y in inside(ky, h, out_h).filter(|_| !along_x.is_empty()) {
                let line = (row * out_h + y) * out_w;
                let at =
                    (channel * h + y * stride + ky - padding) * w + along_x.start * stride + kx - padding;
                run(line + along_x.start..line + along_x.end, at);
            }
        }
    }
}

/// The values of one of several equal parts.
fn part(values: &[f64], index: usize, len: usize) -> &[f64] {
    &values[index * len..][..len]
}
