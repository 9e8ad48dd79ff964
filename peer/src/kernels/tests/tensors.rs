//! The door's operations on feature maps as functions of tensors, gradients included.

use candle_core::{Result, Tensor};

use super::super::{self as door, Activation, ConvGeometry, Maps, Moments, PoolGeometry};

pub(super) fn conv2d(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Result<Tensor> {
    door::conv2d(&Maps::from_tensor(x)?, w, g)?.to_tensor()
}

pub(super) fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    act: Activation,
) -> Result<(Tensor, Moments)> {
    let residual = residual.map(Maps::from_tensor).transpose()?;
    let x = Maps::from_tensor(x)?;
    let (y, moments) = door::batch_norm_train(&x, gamma, beta, eps, residual.as_ref(), act)?;
    Ok((y.to_tensor()?, moments))
}

#[expect(clippy::too_many_arguments, reason = "those of the door")]
pub(super) fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    act: Activation,
) -> Result<Tensor> {
    let residual = residual.map(Maps::from_tensor).transpose()?;
    let x = Maps::from_tensor(x)?;
    door::batch_norm_eval(&x, gamma, beta, mean, var, eps, residual.as_ref(), act)?.to_tensor()
}

pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    door::add(&Maps::from_tensor(a)?, &Maps::from_tensor(b)?)?.to_tensor()
}

pub(super) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    door::global_avg_pool(&Maps::from_tensor(x)?)
}

pub(super) fn max_pool2d(x: &Tensor, g: PoolGeometry) -> Result<Tensor> {
    door::max_pool2d(&Maps::from_tensor(x)?, g)?.to_tensor()
}

pub(super) fn adaptive_avg_pool2d(x: &Tensor, out: (usize, usize)) -> Result<Tensor> {
    door::adaptive_avg_pool2d(&Maps::from_tensor(x)?, out)?.to_tensor()
}
