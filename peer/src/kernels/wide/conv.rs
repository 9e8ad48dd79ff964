//! Convolution of an image as a product of matrices: the windows of the image are the columns of one, the weights are the
//! rows of the other (Chellapilla, Puri and Simard 2006, section 3.2). Images are independent, and the gradient by the
//! weights is summed over them in their order, so that the number of threads changes nothing but the time.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::super::ConvGeometry;
use super::super::cpu::conv::Grouped;
use super::super::cpu::geometry::ConvShape;
use super::super::ops::link::link;
use super::super::ops::{tensor, with_values};

/// Images whose contributions to the gradient by the weights are added up before they are added to those of others.
const TOGETHER: usize = 4;

/// See [`super::super::conv2d`]; the shapes are checked.
pub(in super::super) fn conv2d(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Result<Tensor> {
    let (batch, _, h, width) = x.dims4()?;
    let (co, ci, kh, kw) = w.dims4()?;
    let (stride, padding) = (g.stride, g.padding);
    let group = ConvShape { batch, ci, h, w: width, co: co / g.groups, kh, kw, stride, padding };
    let shape = Grouped { group, groups: g.groups };
    let conv = Conv { shape, x: x.detach().contiguous()?, w: w.detach().contiguous()? };
    let y = (CpuStorage::F64(conv.forward()?), (batch, co, group.out_h(), group.out_w()).into());
    // The images of the first layer need no gradient.
    let (by_x, by_w) = (x.track_op(), w.track_op());
    link("cohort-conv2d-f64", &[x, w], y, move |_, dy| {
        let dx = by_x.then(|| conv.backward_data(dy)).transpose()?;
        let dw = by_w.then(|| conv.backward_weights(dy)).transpose()?;
        Ok([dx, dw, None])
    })
}

/// A convolution with its arguments, outside the graph. A unit is one group of channels of one image.
struct Conv {
    shape: Grouped,
    x: Tensor,
    w: Tensor,
}

impl Conv {
    /// Rows of the matrix of windows, and its columns.
    fn windows(&self) -> (usize, usize) {
        let s = &self.shape.group;
        (s.ci * s.kh * s.kw, s.out_h() * s.out_w())
    }

    /// The weights of each group as a matrix.
    fn matrices(&self) -> Result<Tensor> {
        self.w.reshape((self.shape.groups, self.shape.group.co, self.windows().0))
    }

    /// The output's gradient of each unit as a matrix.
    fn gradients(&self, dy: &Tensor) -> Result<Tensor> {
        let Grouped { group, groups } = self.shape;
        dy.contiguous()?.reshape((group.batch * groups, group.co, self.windows().1))
    }

    /// `[B, Co, Ho, Wo]`.
    fn forward(&self) -> Result<Vec<f64>> {
        let matrices = self.matrices()?;
        self.units(|unit| matrices.get(unit % self.shape.groups)?.matmul(&self.columns(unit)?))
    }

    /// The gradient by `x` from that by the output: what the columns get is added where they came from.
    fn backward_data(&self, dy: &Tensor) -> Result<Tensor> {
        let (matrices, dy) = (self.matrices()?.transpose(1, 2)?, self.gradients(dy)?);
        let dx = self.units(|unit| {
            let columns = matrices.get(unit % self.shape.groups)?.matmul(&dy.get(unit)?)?;
            with_values(&columns, |columns| self.image(columns))
        })?;
        tensor(dx, self.x.shape())
    }

    /// The gradient by `w` from that by the output. No more sums are held at a time than threads make.
    fn backward_weights(&self, dy: &Tensor) -> Result<Tensor> {
        let (Grouped { group, groups }, dy) = (self.shape, self.gradients(dy)?);
        let of_image = |image: usize, g: usize| {
            let unit = image * groups + g;
            dy.get(unit)?.matmul(&self.columns(unit)?.t()?)
        };
        let of_images = |first: usize, g: usize| {
            let mut others = first + 1..(first + TOGETHER).min(group.batch);
            others.try_fold(of_image(first, g)?, |sum, image| sum.add(&of_image(image, g)?))
        };
        let firsts: Vec<usize> = (0..group.batch).step_by(TOGETHER).collect();
        let of_group = |g: usize| {
            let mut sum = Tensor::zeros((group.co, self.windows().0), DType::F64, &Device::Cpu)?;
            for firsts in firsts.chunks(rayon::current_num_threads()) {
                let parts = firsts.par_iter().map(|first| of_images(*first, g));
                for part in parts.collect::<Result<Vec<Tensor>>>()? {
                    sum = sum.add(&part)?;
                }
            }
            Ok(sum)
        };
        let sums: Result<Vec<Tensor>> = (0..groups).map(of_group).collect();
        Tensor::cat(&sums?, 0)?.reshape(self.w.shape())
    }

    /// What all units give, one after the other.
    fn units(&self, of_unit: impl Fn(usize) -> Result<Tensor> + Sync + Send) -> Result<Vec<f64>> {
        let units = (0..self.shape.group.batch * self.shape.groups).into_par_iter().map(of_unit);
        let mut all = Vec::new();
        for unit in units.collect::<Result<Vec<Tensor>>>()? {
            with_values(&unit, |values| {
                all.extend_from_slice(values);
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// The windows of a unit as columns, zeros where they reach beyond its border.
    fn columns(&self, unit: usize) -> Result<Tensor> {
        let ((rows, pixels), size) = (self.windows(), self.shape.group.image_in());
        let mut columns = vec![0.0; rows * pixels];
        with_values(&self.x, |x: &[f64]| {
            let image = &x[unit * size..][..size];
            self.runs(|run, at| {
                let from = image[at..].iter().step_by(self.shape.group.stride);
                columns[run].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            });
            Ok(())
        })?;
        tensor(columns, (rows, pixels))
    }

    /// The image in which each pixel is the sum of what stands for it in the columns.
    fn image(&self, columns: &[f64]) -> Result<Tensor> {
        let s = &self.shape.group;
        let mut image = vec![0.0; s.image_in()];
        self.runs(|run, at| {
            let to = image[at..].iter_mut().step_by(s.stride);
            to.zip(&columns[run]).for_each(|(to, from)| *to += *from);
        });
        tensor(image, s.image_in())
    }

    /// Every run of values in the matrix of windows whose pixels lie in one line of the image, and where the first of
    /// these is; the following ones are `stride` pixels apart.
    fn runs(&self, mut run: impl FnMut(Range<usize>, usize)) {
        let ConvShape { ci, h, w, kh, kw, stride, padding, .. } = self.shape.group;
        let (out_h, out_w) = (self.shape.group.out_h(), self.shape.group.out_w());
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
