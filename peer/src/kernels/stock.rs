//! Every operation of the door in candle's own ops: the path of other devices and other dtypes, and the slow
//! reference of the fast one.

use candle_core::{D, DType, Device, Result, Tensor, Var};

use super::cpu::pool::cell;
use super::{Activation, ConvGeometry, Moments, PoolGeometry, Sgd};

/// See [`super::conv2d`].
pub(super) fn conv2d(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Result<Tensor> {
    let (_, _, h, width) = x.dims4()?;
    let (_, _, kh, kw) = w.dims4()?;
    let used = |size: usize, k: usize| (size + 2 * g.padding - k) / g.stride * g.stride + k;
    let (used_h, used_w) = (used(h, kh), used(width, kw));
    // candle's backward pass takes the rows that no window reaches for the columns too, and subtracts the
    // padding from a size that may be smaller when the border is wide. There the zeros are written out and
    // what no window reaches is cut off.
    if used_h.min(used_w) < 2 * g.padding || h + used_w != width + used_h {
        let p = g.padding;
        let padded = x.pad_with_zeros(2, p, p)?.pad_with_zeros(3, p, p)?;
        return padded
            .narrow(2, 0, used_h)?
            .narrow(3, 0, used_w)?
            .contiguous()?
            .conv2d(w, 0, g.stride, 1, g.groups);
    }
    x.conv2d(w, g.padding, g.stride, 1, g.groups)
}

/// See [`super::batch_norm_train`]; what follows is left to [`finish`].
pub(super) fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<(Tensor, Moments)> {
    let flat_bcs = flatten_pixels(x)?;
    let (b, c, s) = flat_bcs.dims3()?;
    let count = b * s;
    let mean = (flat_bcs.sum_keepdim((0, 2))? / count as f64)?;
    let centred = flat_bcs.broadcast_sub(&mean)?;
    let var = (centred.sqr()?.sum_keepdim((0, 2))? / count as f64)?;
    let scale = (&var + eps)?.sqrt()?.recip()?.broadcast_mul(&gamma.reshape((1, c, 1))?)?;
    let y = centred.broadcast_mul(&scale)?.broadcast_add(&beta.reshape((1, c, 1))?)?.reshape(x.shape())?;
    let moments = Moments { mean: mean.detach().flatten_all()?, var: var.detach().flatten_all()?, count };
    Ok((y, moments))
}

/// See [`super::batch_norm_eval`].
#[expect(clippy::too_many_arguments, reason = "the formula has that many terms")]
pub(super) fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    running_mean: &Tensor,
    running_var: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    let scale = (running_var.detach() + eps)?.sqrt()?.recip()?.mul(gamma)?;
    let shift = beta.sub(&running_mean.detach().mul(&scale)?)?;
    let flat_bcs = flatten_pixels(x)?;
    let c = flat_bcs.dim(1)?;
    let y = flat_bcs
        .broadcast_mul(&scale.reshape((1, c, 1))?)?
        .broadcast_add(&shift.reshape((1, c, 1))?)?
        .reshape(x.shape())?;
    finish(y, residual, act)
}

/// See [`super::relu`].
pub(super) fn relu(x: &Tensor) -> Result<Tensor> {
    // `le`, not `gt`: NaN then takes the branch that keeps it.
    x.le(0.0)?.where_cond(&x.zeros_like()?, x)
}

/// See [`super::global_avg_pool`].
pub(super) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.mean((2, 3))
}

/// See [`super::Gate::apply`].
pub(super) fn gate(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    y.le(0.0)?.where_cond(&x.zeros_like()?, x)
}

/// See [`super::max_pool2d`].
pub(super) fn max_pool2d(x: &Tensor, g: PoolGeometry) -> Result<Tensor> {
    let padded = pad_with_minus_infinity(&pad_with_minus_infinity(x, 2, g.padding)?, 3, g.padding)?;
    // The pixels that lie at one place of every window.
    let of_tap = |ky: usize, kx: usize| {
        let line = |dim: usize, k: usize| {
            let windows = (padded.dim(dim)? - g.kernel) / g.stride + 1;
            Tensor::from_iter((0..windows).map(|i| (i * g.stride + k) as u32), x.device())
        };
        padded.index_select(&line(2, ky)?, 2)?.index_select(&line(3, kx)?, 3)
    };
    let mut largest = of_tap(0, 0)?;
    for tap in 1..g.kernel * g.kernel {
        let next = of_tap(tap / g.kernel, tap % g.kernel)?;
        // Only what is strictly larger replaces what came first; NaN, which equals nothing, stays.
        let stays = next.le(&largest)?.maximum(&largest.ne(&largest)?)?;
        largest = stays.where_cond(&largest, &next)?;
    }
    Ok(largest)
}

/// See [`super::adaptive_avg_pool2d`].
pub(super) fn adaptive_avg_pool2d(x: &Tensor, (out_h, out_w): (usize, usize)) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let by_rows = cell_means(h, out_h, x)?.broadcast_matmul(&x.reshape((b * c, h, w))?)?;
    by_rows.broadcast_matmul(&cell_means(w, out_w, x)?.t()?)?.reshape((b, c, out_h, out_w))
}

/// The matrix `[cells, size]` that takes the mean over each cell of an axis.
fn cell_means(size: usize, cells: usize, like: &Tensor) -> Result<Tensor> {
    let mut weights = vec![0.0; cells * size];
    for (i, row) in weights.chunks_exact_mut(size).enumerate() {
        let members = cell(i, size, cells);
        let share = 1.0 / members.len() as f64;
        row[members].fill(share);
    }
    Tensor::from_vec(weights, (cells, size), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

/// See [`super::softmax_cross_entropy`].
pub(super) fn softmax_cross_entropy(logits: &Tensor, labels: &[usize]) -> Result<Tensor> {
    let wide = if logits.device().is_metal() { DType::F32 } else { DType::F64 };
    let rows = Tensor::from_iter(labels.iter().map(|&l| l as i64), logits.device())?;
    let z = logits.to_dtype(wide)?;
    // The row maximum cancels in the exact derivative, and candle would send a gradient to every tied one.
    let shifted = z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let picked = shifted.gather(&rows.reshape((labels.len(), 1))?, 1)?;
    (log_sum - picked)?.sum_all()? / labels.len() as f64
}

/// See [`super::linear`].
pub(super) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&w.t()?)?;
    match b {
        Some(b) => y.broadcast_add(b),
        None => Ok(y),
    }
}

/// See [`super::sgd_step`].
pub(super) fn sgd_step(param: &Var, velocity: &Var, grad: Option<&Tensor>, sgd: Sgd) -> Result<()> {
    let p = param.as_detached_tensor();
    let decay = (&p * sgd.weight_decay)?;
    let d = match grad {
        Some(g) => g.detach().add(&decay)?,
        None => decay,
    };
    let v = (velocity.as_detached_tensor() * sgd.momentum)?.add(&d)?;
    let step = if sgd.nesterov { d.add(&(&v * sgd.momentum)?)? } else { v.clone() };
    param.set(&p.sub(&(step * sgd.lr)?)?)?;
    velocity.set(&v)
}

/// What follows a normalisation.
pub(super) fn finish(y: Tensor, residual: Option<&Tensor>, act: Activation) -> Result<Tensor> {
    let y = match residual {
        Some(r) => y.add(r)?,
        None => y,
    };
    match act {
        Activation::None => Ok(y),
        Activation::Relu => relu(&y),
    }
}

fn pad_with_minus_infinity(x: &Tensor, dim: usize, width: usize) -> Result<Tensor> {
    if width == 0 {
        return Ok(x.clone());
    }
    let mut shape = x.dims().to_vec();
    shape[dim] = width;
    let border = Tensor::full(f64::NEG_INFINITY, shape, x.device())?.to_dtype(x.dtype())?;
    Tensor::cat(&[&border, x, &border], dim)
}

fn flatten_pixels(x: &Tensor) -> Result<Tensor> {
    let pixels: usize = x.dims()[2..].iter().product();
    x.reshape((x.dim(0)?, x.dim(1)?, pixels))
}
