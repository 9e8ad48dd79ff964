//! Batch normalisation with the statistics of the batch (Ioffe and Szegedy 2015, algorithm 1) and its gradient in closed
//! form. Each channel of each image is summed by itself, and these sums in the order of images.

use candle_core::{CpuStorage, Result, Tensor};
use rayon::prelude::*;

use super::super::Moments;
use super::super::cpu::batch_norm::{Planes, per_plane};
use super::super::ops::batch_norm::planes;
use super::super::ops::link::{Gradients, link};
use super::super::ops::{tensor, with_values};

/// See [`super::super::batch_norm_train`], without what follows it; the shapes are checked.
pub(in super::super) fn train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<(Tensor, Moments)> {
    let planes = planes(x.dims())?;
    let x_values = x.detach().contiguous()?;
    let (mean, var) = with_values(&x_values, |x: &[f64]| Ok(planes.moments(x)))?;
    let deviation: Vec<f64> = var.iter().map(|var| (var + eps).sqrt()).collect();
    let normalised = Normalised { planes, x: x_values, gamma: gamma.detach(), mean, deviation };
    let y = (CpuStorage::F64(normalised.values(beta)?), x.shape().clone());
    let mean = tensor(normalised.mean.clone(), planes.channels)?;
    let moments = Moments { mean, var: tensor(var, planes.channels)?, count: planes.count() };
    let y = link("cohort-batch-norm-f64", &[x, gamma, beta], y, move |_, dy| normalised.backward(dy))?;
    Ok((y, moments))
}

impl Planes {
    /// Per channel, the sum over its planes of what `of_plane` makes of each, given its number and its channel.
    fn sums<const N: usize>(
        self,
        of_plane: impl Fn(usize, usize) -> [f64; N] + Sync + Send,
    ) -> Vec<[f64; N]> {
        let of_planes = per_plane(self, |plane| of_plane(plane, plane % self.channels));
        let mut sums = vec![[0.0; N]; self.channels];
        for parts in of_planes.chunks_exact(self.channels) {
            for (sum, part) in sums.iter_mut().flatten().zip(parts.iter().flatten()) {
                *sum += part;
            }
        }
        sums
    }

    /// New maps, plane by plane: `write(plane, channel, values)`.
    fn maps(self, write: impl Fn(usize, usize, &mut [f64]) + Sync) -> Vec<f64> {
        let mut values = vec![0.0; self.channels * self.count()];
        let planes = values.par_chunks_mut(self.pixels).enumerate();
        planes.for_each(|(plane, values)| write(plane, plane % self.channels, values));
        values
    }

    /// Mean and biased variance per channel.
    fn moments(self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let of_count = |sums: Vec<[f64; 1]>| sums.iter().map(|[sum]| sum / self.count() as f64).collect();
        let mean: Vec<f64> = of_count(self.sums(|plane, _| [self.plane(x, plane).iter().sum()]));
        let squares = |plane, channel: usize| {
            [self.plane(x, plane).iter().map(|x| (x - mean[channel]) * (x - mean[channel])).sum()]
        };
        let var = of_count(self.sums(squares));
        (mean, var)
    }
}

/// What the backward pass needs besides the result's gradient.
struct Normalised {
    planes: Planes,
    x: Tensor,
    gamma: Tensor,
    mean: Vec<f64>,
    /// `sqrt(var + eps)` per channel.
    deviation: Vec<f64>,
}

impl Normalised {
    /// `gamma (x - mean) / deviation + beta`.
    fn values(&self, beta: &Tensor) -> Result<Vec<f64>> {
        let (p, beta) = (self.planes, beta.to_vec1::<f64>()?);
        let scale = self.scale()?;
        with_values(&self.x, |x: &[f64]| {
            Ok(p.maps(|plane, c, y| {
                for (y, x) in y.iter_mut().zip(p.plane(x, plane)) {
                    *y = (x - self.mean[c]) * scale[c] + beta[c];
                }
            }))
        })
    }

    /// `gamma / deviation` per channel.
    fn scale(&self) -> Result<Vec<f64>> {
        let gamma = self.gamma.to_vec1::<f64>()?;
        Ok(gamma.iter().zip(&self.deviation).map(|(gamma, deviation)| gamma / deviation).collect())
    }

    /// Gradients by `x`, gamma and beta. With `z = (x - mean) / deviation` that by `x` is
    /// `gamma / deviation (dy - mean(dy) - z mean(z dy))`, means over a channel.
    fn backward(&self, dy: &Tensor) -> Result<Gradients> {
        let (p, scale) = (self.planes, self.scale()?);
        let z = |x: f64, c: usize| (x - self.mean[c]) / self.deviation[c];
        let (sums, dx) = with_values(&self.x, |x: &[f64]| {
            with_values(dy, |dy: &[f64]| {
                let sums = p.sums(|plane, c| {
                    let pairs = || p.plane(x, plane).iter().zip(p.plane(dy, plane));
                    [pairs().map(|(_, dy)| dy).sum(), pairs().map(|(x, dy)| z(*x, c) * dy).sum()]
                });
                let count = p.count() as f64;
                let dx = p.maps(|plane, c, dx| {
                    let [of_dy, of_z_dy] = sums[c].map(|sum| sum / count);
                    let pairs = p.plane(x, plane).iter().zip(p.plane(dy, plane));
                    for (dx, (x, dy)) in dx.iter_mut().zip(pairs) {
                        *dx = scale[c] * (dy - of_dy - z(*x, c) * of_z_dy);
                    }
                });
                Ok((sums, dx))
            })
        })?;
        let (of_beta, of_gamma) = sums.iter().map(|[dy, z_dy]| (dy, z_dy)).unzip();
        let of_channels = |values: Vec<f64>| tensor(values, p.channels).map(Some);
        Ok([Some(tensor(dx, self.x.shape())?), of_channels(of_gamma)?, of_channels(of_beta)?])
    }
}
