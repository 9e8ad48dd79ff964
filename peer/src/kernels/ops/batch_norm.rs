//! Batch normalisation with residual and rectifier as one operation on feature maps.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::cpu::batch_norm::{self as kernel, Affine, Correction, Planes};
use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise::relu_backward;
use super::super::{Activation, Moments};
use super::flow::{Flow, Gradient};
use super::link::Gradients;
use super::{tensor, with_values};

/// See [`super::super::batch_norm_train`]; the shapes are checked.
pub(in super::super) fn train(
    x: &Flow,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Flow>,
    act: Activation,
) -> Result<(Flow, Moments)> {
    let planes = planes(x.dims())?;
    let (mean, var) = kernel::moments(Isa::current(), planes, x.values());
    let moments = Moments {
        mean: tensor(to_f32(&mean), mean.len())?,
        var: tensor(to_f32(&var), var.len())?,
        count: planes.count(),
    };
    let statistics = Statistics { mean, var, of_batch: true };
    Ok((normalise(x, (gamma, beta), statistics, eps, residual, act)?, moments))
}

/// Normalisation with statistics from outside, which are constants here; the shapes are checked.
pub(in super::super) fn eval(
    x: &Flow,
    affine: (&Tensor, &Tensor),
    (mean, var): (&Tensor, &Tensor),
    eps: f64,
    residual: Option<&Flow>,
    act: Activation,
) -> Result<Flow> {
    let to_f64 = |t: &Tensor| with_values(t, |v: &[f32]| Ok(v.iter().map(|&v| f64::from(v)).collect()));
    let statistics = Statistics { mean: to_f64(mean)?, var: to_f64(var)?, of_batch: false };
    normalise(x, affine, statistics, eps, residual, act)
}

/// Mean and biased variance per channel.
struct Statistics {
    mean: Vec<f64>,
    var: Vec<f64>,
    /// Whether they are those of the maps themselves, so that their gradient passes through them too.
    of_batch: bool,
}

/// What the backward pass needs besides the result.
struct Normalised {
    x: Flow,
    residual: Option<Flow>,
    act: Activation,
    planes: Planes,
    affine: Vec<Affine>,
    /// `1 / sqrt(var + eps)` per channel.
    inverse_deviation: Vec<f64>,
    of_batch: bool,
}

fn normalise(
    x: &Flow,
    (gamma, beta): (&Tensor, &Tensor),
    Statistics { mean, var, of_batch }: Statistics,
    eps: f64,
    residual: Option<&Flow>,
    act: Activation,
) -> Result<Flow> {
    let planes = planes(x.dims())?;
    let inverse_deviation: Vec<f64> = var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
    let scale_shift = Tensor::stack(&[gamma, beta], 0)?;
    let affine: Vec<Affine> = with_values(&scale_shift, |values| {
        let (gamma, beta) = values.split_at(mean.len());
        let of_channel = |c: usize| Affine {
            centre: mean[c] as f32,
            scale: (f64::from(gamma[c]) * inverse_deviation[c]) as f32,
            shift: beta[c],
        };
        Ok((0..mean.len()).map(of_channel).collect())
    })?;
    let rectify = act == Activation::Relu;
    let y = kernel::apply(Isa::current(), planes, x.values(), &affine, residual.map(Flow::values), rectify);
    let back = Normalised {
        x: x.clone(),
        residual: residual.cloned(),
        act,
        planes,
        affine,
        inverse_deviation,
        of_batch,
    };
    let shape = x.shape().clone();
    let backward = move |y: &[f32], dy: Gradient| back.backward(y, dy);
    match residual {
        Some(r) => {
            let args = [x.token(), &scale_shift, r.token()];
            Flow::new("cohort-batch-norm-residual", &args, shape, y, backward)
        }
        None => Flow::new("cohort-batch-norm", &[x.token(), &scale_shift], shape, y, backward),
    }
}

impl Normalised {
    /// Gradients by `x`, by gamma over beta, and by the residual.
    fn backward(&self, y: &[f32], dy: Gradient) -> Result<Gradients> {
        let isa = Isa::current();
        let rectified = self.act == Activation::Relu;
        let Some(residual) = self.residual.as_ref().filter(|r| r.wants_gradient()) else {
            let (dx, dp) = self.gradients(isa, rectified.then_some(y), &dy)?;
            return Ok([dx, Some(dp), None]);
        };
        // The residual's gradient is that of the sum, so the mask is applied once.
        let g = if rectified { Arc::new(relu_backward(isa, y, &dy)) } else { dy };
        let (dx, dp) = self.gradients(isa, None, &g)?;
        Ok([dx, Some(dp), residual.send(g)?])
    }

    fn gradients(&self, isa: Isa, mask: Option<&[f32]>, dy: &[f32]) -> Result<(Option<Tensor>, Tensor)> {
        let (p, x) = (self.planes, self.x.values());
        let sums = kernel::gradient_sums(isa, p, x, dy, mask, &self.affine);
        let of_gamma = sums.iter().zip(&self.inverse_deviation).map(|(s, inverse)| (s.1 * inverse) as f32);
        let dp = tensor(of_gamma.chain(sums.iter().map(|s| s.0 as f32)).collect(), (2, p.channels))?;
        if !self.x.wants_gradient() {
            return Ok((None, dp));
        }
        let of_channel: Vec<_> =
            self.affine.iter().enumerate().map(|(c, &a)| (a, self.correction(c, sums[c]))).collect();
        let dx = kernel::gradient(isa, p, x, dy, mask, &of_channel);
        Ok((self.x.send(Arc::new(dx))?, dp))
    }

    /// What the dependence of the batch's statistics on `x` takes away from the gradient.
    fn correction(&self, channel: usize, sums: (f64, f64)) -> Correction {
        if !self.of_batch {
            return Correction { mean: 0.0, slope: 0.0 };
        }
        let count = self.planes.count() as f64;
        let inverse_variance = self.inverse_deviation[channel].powi(2);
        Correction { mean: (sums.0 / count) as f32, slope: (sums.1 * inverse_variance / count) as f32 }
    }
}

pub(in super::super) fn planes(dims: &[usize]) -> Result<Planes> {
    match *dims {
        [batch, channels, ref pixels @ ..] => Ok(Planes { batch, channels, pixels: pixels.iter().product() }),
        _ => candle_core::bail!("batch normalisation needs [B, C, ...], got shape {dims:?}"),
    }
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}
