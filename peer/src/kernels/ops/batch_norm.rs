//! Batch normalisation with residual and rectifier as one candle operation.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::super::cpu::batch_norm::{self as kernel, Affine, Correction, Planes};
use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise::relu_backward;
use super::super::{Activation, Moments};
use super::{tensor, values, with_values};

/// See [`super::super::batch_norm_train`]; the shapes are checked.
pub(in super::super) fn train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    act: Activation,
) -> Result<(Tensor, Moments)> {
    let state = Arc::new(OnceLock::new());
    let op = Normalise { eps, act, state: Arc::clone(&state), of_batch: true };
    let y = op.apply(x, gamma, beta, residual)?;
    let Some(Statistics { mean, var }) = state.get() else {
        candle_core::bail!("batch normalisation ran without statistics")
    };
    let moments = Moments {
        mean: tensor(to_f32(mean), mean.len())?,
        var: tensor(to_f32(var), var.len())?,
        count: planes(x.dims())?.count(),
    };
    Ok((y, moments))
}

/// Normalisation with statistics from outside, which are constants here; the shapes are checked.
pub(in super::super) fn eval(
    x: &Tensor,
    (gamma, beta): (&Tensor, &Tensor),
    (mean, var): (&Tensor, &Tensor),
    eps: f64,
    residual: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    let to_f64 =
        |t: &Tensor| Ok::<_, candle_core::Error>(t.to_vec1::<f32>()?.into_iter().map(f64::from).collect());
    let state = Arc::new(OnceLock::from(Statistics { mean: to_f64(mean)?, var: to_f64(var)? }));
    Normalise { eps, act, state, of_batch: false }.apply(x, gamma, beta, residual)
}

/// Mean and biased variance per channel.
#[derive(Debug)]
struct Statistics {
    mean: Vec<f64>,
    var: Vec<f64>,
}

/// One forward pass and what its backward pass needs: arguments are `x`, gamma over beta as `[2, C]`, and the
/// residual.
struct Normalise {
    eps: f64,
    act: Activation,
    /// Filled by the forward pass when the statistics are those of the batch.
    state: Arc<OnceLock<Statistics>>,
    of_batch: bool,
}

impl Normalise {
    fn apply(self, x: &Tensor, gamma: &Tensor, beta: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let scale_shift = Tensor::stack(&[gamma, beta], 0)?;
        match residual {
            Some(r) => x.contiguous()?.apply_op3(&scale_shift, &r.contiguous()?, self),
            None => x.contiguous()?.apply_op2(&scale_shift, self),
        }
    }

    fn forward(
        &self,
        shape: &Shape,
        x: &[f32],
        scale_shift: &[f32],
        r: Option<&[f32]>,
    ) -> Result<CpuStorage> {
        let (isa, p) = (Isa::current(), planes(shape.dims())?);
        let statistics = self.state.get_or_init(|| {
            let (mean, var) = kernel::moments(isa, p, x);
            Statistics { mean, var }
        });
        let of_channel = self.affine(statistics, scale_shift);
        let y = kernel::apply(isa, p, x, &of_channel, r, self.act == Activation::Relu);
        Ok(CpuStorage::F32(y))
    }

    fn affine(&self, statistics: &Statistics, scale_shift: &[f32]) -> Vec<Affine> {
        let (gamma, beta) = scale_shift.split_at(statistics.mean.len());
        let of_channel = |c: usize| Affine {
            centre: statistics.mean[c] as f32,
            scale: (f64::from(gamma[c]) * self.inverse_deviation(statistics, c)) as f32,
            shift: beta[c],
        };
        (0..gamma.len()).map(of_channel).collect()
    }

    fn inverse_deviation(&self, statistics: &Statistics, channel: usize) -> f64 {
        1.0 / (statistics.var[channel] + self.eps).sqrt()
    }

    /// Gradients by `x`, by gamma over beta, and by the residual.
    fn backward(
        &self,
        x: &Tensor,
        scale_shift: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let isa = Isa::current();
        let rectified = self.act == Activation::Relu;
        let wants_residual = residual.is_some_and(Tensor::track_op);
        if !(rectified && wants_residual) {
            let (dx, dp) = self.gradients(isa, x, scale_shift, rectified.then_some(y), dy)?;
            return Ok([dx, Some(dp), wants_residual.then(|| dy.clone())]);
        }
        // The residual's gradient is needed as a tensor anyway, so the mask is applied once.
        let g = with_values(y, |y| with_values(dy, |dy| Ok(relu_backward(isa, y, dy))))?;
        let g = tensor(g, y.shape())?;
        let (dx, dp) = self.gradients(isa, x, scale_shift, None, &g)?;
        Ok([dx, Some(dp), Some(g)])
    }

    fn gradients(
        &self,
        isa: Isa,
        x: &Tensor,
        scale_shift: &Tensor,
        mask: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let Some(statistics) = self.state.get() else {
            candle_core::bail!("backward pass of a batch normalisation that never ran forward")
        };
        let p = planes(x.dims())?;
        let affine = with_values(scale_shift, |s| Ok(self.affine(statistics, s)))?;
        let with_mask = |f: &mut dyn FnMut(Option<&[f32]>) -> Vec<f32>| match mask {
            Some(y) => with_values(y, |y| Ok(f(Some(y)))),
            None => Ok(f(None)),
        };
        with_values(x, |xs| {
            with_values(dy, |dy| {
                let mut sums = Vec::new();
                with_mask(&mut |y| {
                    sums = kernel::gradient_sums(isa, p, xs, dy, y, &affine);
                    Vec::new()
                })?;
                let of_gamma =
                    (0..p.channels).map(|c| (sums[c].1 * self.inverse_deviation(statistics, c)) as f32);
                let dp = of_gamma.chain(sums.iter().map(|s| s.0 as f32)).collect();
                let dp = tensor(dp, (2, p.channels))?;
                if !x.track_op() {
                    return Ok((None, dp));
                }
                let with_correction = |c: usize| (affine[c], self.correction(statistics, p, c, sums[c]));
                let of_channel: Vec<_> = (0..p.channels).map(with_correction).collect();
                let dx = with_mask(&mut |y| kernel::gradient(isa, p, xs, dy, y, &of_channel))?;
                Ok((Some(tensor(dx, x.shape())?), dp))
            })
        })
    }

    /// What the dependence of the batch's statistics on `x` takes away from the gradient.
    fn correction(&self, statistics: &Statistics, p: Planes, channel: usize, sums: (f64, f64)) -> Correction {
        if !self.of_batch {
            return Correction { mean: 0.0, slope: 0.0 };
        }
        let count = p.count() as f64;
        let inverse_variance = self.inverse_deviation(statistics, channel).powi(2);
        Correction { mean: (sums.0 / count) as f32, slope: (sums.1 * inverse_variance / count) as f32 }
    }
}

impl CustomOp2 for Normalise {
    fn name(&self) -> &'static str {
        "cohort-batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        p: &CpuStorage,
        lp: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(lx.shape(), values(x, lx)?, values(p, lp)?, None)?;
        Ok((y, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dp, _] = self.backward(x, p, None, y, dy)?;
        Ok((dx, dp))
    }
}

impl CustomOp3 for Normalise {
    fn name(&self) -> &'static str {
        "cohort-batch-norm-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        p: &CpuStorage,
        lp: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(lx.shape(), values(x, lx)?, values(p, lp)?, Some(values(r, lr)?))?;
        Ok((y, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        r: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dp, dr] = self.backward(x, p, Some(r), y, dy)?;
        Ok((dx, dp, dr))
    }
}

fn planes(dims: &[usize]) -> Result<Planes> {
    match *dims {
        [batch, channels, ref pixels @ ..] => Ok(Planes { batch, channels, pixels: pixels.iter().product() }),
        _ => candle_core::bail!("batch normalisation needs [B, C, ...], got shape {dims:?}"),
    }
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}
