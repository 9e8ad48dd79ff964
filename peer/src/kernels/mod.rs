//! The small door to arithmetic: safe functions that choose the fast CPU kernel or candle's own by device.

pub mod threads;
mod maps;
mod gates;
mod stock;
mod ops;
mod wide;
mod cpu;
#[cfg(test)]
mod tests;

pub use gates::{Gate, GateTape};
pub use maps::Maps;

use candle_core::{DType, Result, Shape, Tensor, Var};

use maps::Held;

/// How the window of a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Pixels between two windows, the same in both directions; at least 1.
    pub stride: usize,
    /// Zeros added on each of the four sides.
    pub padding: usize,
    /// Channel groups that do not see each other; 1 is the ordinary convolution.
    pub groups: usize,
}

/// How the window of a pooling moves over its input, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Side of the window.
    pub kernel: usize,
    /// Pixels between two windows; at least 1.
    pub stride: usize,
    /// Pixels added on each of the four sides, smaller than any value; at most half of the window.
    pub padding: usize,
}

/// What follows a normalisation in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// `max(x, 0)`, with slope 0 at 0 as in PyTorch.
    Relu,
}

/// Statistics of one batch, outside the graph of derivatives, from which running statistics are made.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean per channel, `[C]`.
    pub mean: Tensor,
    /// Biased variance per channel, `[C]`.
    pub var: Tensor,
    /// Values per channel; the unbiased variance is `var * count / (count - 1)`.
    pub count: usize,
}

/// The constants of one update by stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Share of the velocity that survives a step.
    pub momentum: f64,
    /// Coefficient of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// Whether the step looks ahead along the new velocity.
    pub nesterov: bool,
}

/// Cross-correlation without bias: `x` `[B, Ci, H, W]`, `w` `[Co, Ci/groups, kh, kw]` to `[B, Co, Ho, Wo]`
/// with `Ho = (H + 2 padding - kh) / stride + 1`.
///
/// # Errors
/// When the shapes do not fit each other or the window is larger than the padded input.
pub fn conv2d(x: &Maps, w: &Tensor, geometry: ConvGeometry) -> Result<Maps> {
    check_conv(x.shape(), w, geometry)?;
    match &x.0 {
        Held::Flow(x) => ops::conv::conv2d(x, w, geometry).map(Maps::from),
        Held::Tensor(x) if wide::accepts(x) => wide::conv::conv2d(x, w, geometry).map(Maps::stock),
        Held::Tensor(x) => stock::conv2d(x, w, geometry).map(Maps::stock),
    }
}

/// Batch normalisation with the statistics of the batch itself: `act(gamma (x - mean) / sqrt(var + eps) +
/// beta + residual)` (Ioffe and Szegedy 2015, algorithm 1), `x` `[B, C, ...]`, `gamma` and `beta` `[C]`,
/// `residual` shaped as `x`.
///
/// # Errors
/// When a channel has a single value, whose variance says nothing, or when shapes do not fit.
pub fn batch_norm_train(
    x: &Maps,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Maps>,
    act: Activation,
) -> Result<(Maps, Moments)> {
    let count = check_batch_norm(x.shape(), &[gamma, beta], residual)?;
    if count < 2 {
        candle_core::bail!(
            "batch normalisation of a batch of shape {:?}: one value per channel has no variance; \
             use more images per batch or the running statistics",
            x.dims()
        )
    }
    match &x.0 {
        Held::Flow(x) => {
            let residual = residual.map(Maps::flow).transpose()?;
            let (y, moments) = ops::batch_norm::train(x, gamma, beta, eps, residual.as_ref(), act)?;
            Ok((y.into(), moments))
        }
        Held::Tensor(x) => {
            let residual = residual.map(Maps::to_tensor).transpose()?;
            let (normalised, moments) = match wide::accepts(x) {
                true => wide::batch_norm::train(x, gamma, beta, eps)?,
                false => stock::batch_norm_train(x, gamma, beta, eps)?,
            };
            let y = stock::finish(normalised, residual.as_ref(), act)?;
            Ok((Maps::stock(y), moments))
        }
    }
}

/// Batch normalisation with statistics gathered during training, each `[C]` and constant for the gradient;
/// shapes as in [`batch_norm_train`].
///
/// # Errors
/// When shapes do not fit.
#[expect(clippy::too_many_arguments, reason = "the formula has that many terms")]
pub fn batch_norm_eval(
    x: &Maps,
    gamma: &Tensor,
    beta: &Tensor,
    running_mean: &Tensor,
    running_var: &Tensor,
    eps: f64,
    residual: Option<&Maps>,
    act: Activation,
) -> Result<Maps> {
    check_batch_norm(x.shape(), &[gamma, beta, running_mean, running_var], residual)?;
    match &x.0 {
        Held::Flow(x) => {
            let residual = residual.map(Maps::flow).transpose()?;
            let running = (running_mean, running_var);
            ops::batch_norm::eval(x, (gamma, beta), running, eps, residual.as_ref(), act).map(Maps::from)
        }
        Held::Tensor(x) => {
            let residual = residual.map(Maps::to_tensor).transpose()?;
            stock::batch_norm_eval(x, gamma, beta, running_mean, running_var, eps, residual.as_ref(), act)
                .map(Maps::stock)
        }
    }
}

/// The sum of two branches of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Maps, b: &Maps) -> Result<Maps> {
    if a.shape() != b.shape() {
        candle_core::bail!("the sum of maps of shapes {:?} and {:?}", a.dims(), b.dims())
    }
    match &a.0 {
        Held::Flow(a) => ops::pointwise::add(a, &b.flow()?).map(Maps::from),
        Held::Tensor(a) => a.add(&b.to_tensor()?).map(Maps::stock),
    }
}

/// `max(x, 0)` with slope 0 at 0 as in PyTorch (candle's own has slope 1 there); NaN stays NaN.
///
/// # Errors
/// Those of the device.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if ops::accepts(&[x]) {
        return ops::pointwise::relu(x);
    }
    stock::relu(x)
}

/// Mean over each channel's pixels: `[B, C, H, W]` to `[B, C]`.
///
/// # Errors
/// When `x` is not of rank 4 or has no pixels.
pub fn global_avg_pool(x: &Maps) -> Result<Tensor> {
    let (_, _, h, w) = x.shape().dims4()?;
    if h * w == 0 {
        candle_core::bail!("global average pooling of a tensor without pixels, shape {:?}", x.dims())
    }
    match &x.0 {
        Held::Flow(x) => ops::pool::global_avg_pool(x),
        Held::Tensor(x) => stock::global_avg_pool(x),
    }
}

/// The largest value of each window: `x` `[B, C, H, W]` to `[B, C, Ho, Wo]` with `Ho = (H + 2 padding - kernel) /
/// stride + 1`. The gradient goes to the first of equal values in reading order, as in PyTorch; NaN is above
/// everything.
///
/// # Errors
/// When the window is larger than the padded input or could lie in the padding alone.
pub fn max_pool2d(x: &Maps, geometry: PoolGeometry) -> Result<Maps> {
    let (_, _, h, w) = x.shape().dims4()?;
    let PoolGeometry { kernel, stride, padding } = geometry;
    if kernel == 0 || stride == 0 || padding > kernel / 2 {
        candle_core::bail!(
            "pooling with {geometry:?}: kernel and stride are at least 1, padding at most half of the kernel"
        )
    }
    if h.min(w) + 2 * padding < kernel {
        candle_core::bail!("pooling window {kernel}x{kernel} does not fit {h}x{w} with padding {padding}")
    }
    match &x.0 {
        Held::Flow(x) => ops::pool::max_pool2d(x, geometry).map(Maps::from),
        Held::Tensor(x) => stock::max_pool2d(x, geometry).map(Maps::stock),
    }
}

/// Means over a grid of `out` cells of nearly equal size: `x` `[B, C, H, W]` to `[B, C, out.0, out.1]`. Cell `i` of
/// `n` covers the pixels from `floor(i H / n)` up to `ceil((i + 1) H / n)`, as in PyTorch.
///
/// # Errors
/// When `x` is not of rank 4 or has no pixels, or the grid has no cells.
pub fn adaptive_avg_pool2d(x: &Maps, out: (usize, usize)) -> Result<Maps> {
    let (_, _, h, w) = x.shape().dims4()?;
    if h * w * out.0 * out.1 == 0 {
        candle_core::bail!("average pooling of shape {:?} to a grid of {out:?}: nothing to average", x.dims())
    }
    match &x.0 {
        Held::Flow(x) => ops::pool::adaptive_avg_pool2d(x, out).map(Maps::from),
        Held::Tensor(x) => stock::adaptive_avg_pool2d(x, out).map(Maps::stock),
    }
}

/// Mean over the batch of the cross-entropy of the softmax of `logits` `[B, C]` with `labels` `[B]` of any integer
/// dtype on any device. Computed in f64, which the scalar result has too (f32 on Metal).
///
/// # Errors
/// A label outside `0..C`, or shapes that do not fit.
pub fn softmax_cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let count = labels.dims1()?;
    if count != batch || batch == 0 || !logits.dtype().is_float() {
        candle_core::bail!(
            "cross-entropy of logits of shape {:?} and {:?} with {count} labels",
            logits.dims(),
            logits.dtype()
        )
    }
    let labels = class_indices(labels, classes)?;
    if ops::accepts(&[logits]) {
        return ops::loss::softmax_cross_entropy(logits, labels);
    }
    stock::softmax_cross_entropy(logits, &labels)
}

/// The classes that `labels` `[B]` of any integer dtype name, on any device.
///
/// # Errors
/// A label outside `0..classes`.
pub fn class_indices(labels: &Tensor, classes: usize) -> Result<Vec<usize>> {
    let class = |&label: &i64| match usize::try_from(label) {
        Ok(class) if class < classes => Ok(class),
        _ => candle_core::bail!("label {label} is none of the {classes} classes"),
    };
    labels.to_dtype(DType::I64)?.to_vec1()?.iter().map(class).collect()
}

/// `x w^T + b`: `x` `[B, I]`, `w` `[O, I]`, `b` `[O]` to `[B, O]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    stock::linear(x, w, b)
}

/// One update in place, in the words of PyTorch's `torch.optim.SGD`:
/// `d = grad + weight_decay param; v <- momentum v + d; param <- param - lr (nesterov ? d + momentum v : v)`.
///
/// `velocity` begins as zeros and is shaped as `param`; no `grad` counts as a zero gradient.
///
/// # Errors
/// When the shapes differ, or one tensor lies in another's memory.
pub fn sgd_step(param: &Var, velocity: &Var, grad: Option<&Tensor>, sgd: Sgd) -> Result<()> {
    for (name, tensor) in [("velocity", Some(velocity.as_tensor())), ("gradient", grad)] {
        if let Some(tensor) = tensor.filter(|t| t.shape() != param.shape()) {
            candle_core::bail!(
                "update of a parameter of shape {:?}: its {name} has shape {:?}",
                param.dims(),
                tensor.dims()
            )
        }
    }
    let operands = [Some(param.as_tensor()), Some(velocity.as_tensor()), grad];
    for (i, a) in operands.iter().flatten().enumerate() {
        if operands.iter().flatten().skip(i + 1).any(|b| share_memory(a, b)) {
            candle_core::bail!("update of a parameter whose gradient or velocity lies in its own memory")
        }
    }
    if let Some(grad) = grad.filter(|grad| ops::accepts(&[param.as_tensor(), velocity.as_tensor(), grad])) {
        return ops::update::sgd_step(param, velocity, grad, sgd);
    }
    stock::sgd_step(param, velocity, grad, sgd)
}

fn share_memory(a: &Tensor, b: &Tensor) -> bool {
    let ((a, _), (b, _)) = (a.storage_and_layout(), b.storage_and_layout());
    std::ptr::eq(&raw const *a, &raw const *b)
}

fn check_conv(x: &Shape, w: &Tensor, g: ConvGeometry) -> Result<()> {
    let (batch, ci, h, width) = x.dims4()?;
    let (co, ci_of_group, kh, kw) = w.dims4()?;
    if g.stride == 0 || g.groups == 0 {
        candle_core::bail!("convolution with {g:?}: stride and groups are at least 1")
    }
    if ci_of_group * g.groups != ci || !co.is_multiple_of(g.groups) {
        candle_core::bail!(
            "convolution of {ci} channels in {} groups does not fit weights of shape {:?}",
            g.groups,
            w.dims()
        )
    }
    /// Values of a padded batch or of a result, far beyond any memory; below it no index overflows.
    const VALUES_MAX: usize = 1 << 40;
    let padded = |side: usize| g.padding.checked_mul(2)?.checked_add(side);
    let values = |channels: usize| -> Option<usize> {
        batch.max(1).checked_mul(channels)?.checked_mul(padded(h)?)?.checked_mul(padded(width)?)
    };
    if co == 0 || values(ci.max(co).next_multiple_of(16)).is_none_or(|values| values > VALUES_MAX) {
        candle_core::bail!(
            "convolution of {:?} to {co} channels with {g:?}: nothing to compute, or more than fits any memory",
            x.dims()
        )
    }
    if kh == 0 || kw == 0 || h + 2 * g.padding < kh || width + 2 * g.padding < kw {
        candle_core::bail!(
            "convolution window {kh}x{kw} does not fit an input of {h}x{width} with padding {}",
            g.padding
        )
    }
    Ok(())
}

/// Checks the shapes of a normalisation and returns the number of values per channel.
fn check_batch_norm(x: &Shape, per_channel: &[&Tensor], residual: Option<&Maps>) -> Result<usize> {
    let [_, channels, ..] = *x.dims() else {
        candle_core::bail!("batch normalisation needs [B, C, ...], got shape {:?}", x.dims())
    };
    if let Some(t) = per_channel.iter().find(|t| t.dims() != [channels]) {
        candle_core::bail!("batch normalisation of {channels} channels: a parameter has shape {:?}", t.dims())
    }
    if let Some(r) = residual.filter(|r| r.shape() != x) {
        candle_core::bail!(
            "batch normalisation of shape {:?}: the residual has shape {:?}",
            x.dims(),
            r.dims()
        )
    }
    Ok(x.elem_count() / channels.max(1))
}
