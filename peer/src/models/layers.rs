//! The layers that all families share: convolution, batch norm, linear. They own variables and call kernels.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::params::{Init, Scope};
use super::pass::Pass;
use crate::kernels::{self, Activation, ConvGeometry, Maps, Moments};

/// Added to the variance of batch norm; PyTorch's default.
pub const BATCH_NORM_EPS: f64 = 1e-5;
/// Weight of the newest batch in the running statistics; PyTorch's default.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// A convolution without bias.
#[derive(Debug)]
pub struct Conv2d {
    weight: Var,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// Registers `weight` `[outputs, inputs, kernel, kernel]`. A kernel of odd size keeps the map's size at stride 1.
    ///
    /// # Errors
    /// If the name is taken or the device fails.
    pub fn new(
        mut scope: Scope<'_>,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<Self> {
        let weight =
            scope.trainable("weight", &[outputs, inputs, kernel, kernel], Init::KaimingNormalFanOut)?;
        Ok(Self { weight, stride, padding: kernel / 2 })
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`, rounded up.
    ///
    /// # Errors
    /// If the channels do not fit or the device fails.
    pub fn forward(&self, x: &Maps, pass: &Pass) -> Result<Maps> {
        let geometry = ConvGeometry { stride: self.stride, padding: self.padding, groups: 1 };
        kernels::conv2d(x, &pass.read(&self.weight), geometry)
    }
}

/// Batch normalisation over `[B, H, W]` per channel (Ioffe and Szegedy 2015), fused with what follows it.
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Var,
    bias: Var,
    running: Running,
}

impl BatchNorm2d {
    /// Registers `weight`, `bias` and the buffers for `channels` channels.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        let running = Running {
            mean: scope.buffer("running_mean", &[channels], Init::Zeros)?,
            var: scope.buffer("running_var", &[channels], Init::Ones)?,
            count: scope.counter()?,
        };
        let weight = scope.trainable("weight", &[channels], Init::Ones)?;
        let bias = scope.trainable("bias", &[channels], Init::Zeros)?;
        Ok(Self { weight, bias, running })
    }

    /// `activation(normalised(x) + residual)`, all `[B, channels, H, W]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn forward(
        &self,
        x: &Maps,
        residual: Option<&Maps>,
        activation: Activation,
        pass: &mut Pass,
    ) -> Result<Maps> {
        let (weight, bias) = (pass.read(&self.weight), pass.read(&self.bias));
        if pass.is_training() {
            return pass.batch_norm(x, (&weight, &bias), residual, activation, &self.running);
        }
        let (mean, var) = (pass.read(&self.running.mean), pass.read(&self.running.var));
        kernels::batch_norm_eval(x, &weight, &bias, &mean, &var, BATCH_NORM_EPS, residual, activation)
    }
}

/// The buffers of a batch-norm layer. Clones share the numbers.
#[derive(Debug, Clone)]
pub(super) struct Running {
    mean: Var,
    var: Var,
    count: Var,
}

impl Running {
    /// `running <- (1 - m) running + m batch` with the unbiased variance of the batch, as PyTorch keeps it.
    pub(super) fn update(&self, batch: &Moments) -> Result<()> {
        if batch.count < 2 {
            candle_core::bail!("batch norm saw one value per channel: use a larger batch or image");
        }
        let unbiased = batch.count as f64 / (batch.count - 1) as f64;
        let blend = |running: &Var, batch: &Tensor, factor: f64| {
            let kept = running.as_detached_tensor().affine(1.0 - BATCH_NORM_MOMENTUM, 0.0)?;
            let new = (kept + batch.to_dtype(running.dtype())?.affine(BATCH_NORM_MOMENTUM * factor, 0.0)?)?;
            running.set(&new)
        };
        blend(&self.mean, &batch.mean, 1.0)?;
        blend(&self.var, &batch.var, unbiased)?;
        let batches = self.count.to_scalar::<i64>()? + 1;
        self.count.set(&Tensor::new(batches, &Device::Cpu)?.to_dtype(DType::I64)?)
    }
}

/// `x Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Var,
    bias: Var,
}

impl Linear {
    /// Registers `weight` `[outputs, inputs]` and `bias` `[outputs]`, both started as PyTorch starts a linear layer.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(scope: Scope<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Self::with_bias(scope, inputs, outputs, Init::TorchLinear { fan_in: inputs })
    }

    /// As [`Linear::new`], with another start for the bias.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn with_bias(mut scope: Scope<'_>, inputs: usize, outputs: usize, bias: Init) -> Result<Self> {
        let weight = scope.trainable("weight", &[outputs, inputs], Init::TorchLinear { fan_in: inputs })?;
        Ok(Self { weight, bias: scope.trainable("bias", &[outputs], bias)? })
    }

    /// `[outputs, inputs]`.
    pub fn weight(&self) -> &Var {
        &self.weight
    }

    /// `[outputs]`.
    pub fn bias(&self) -> &Var {
        &self.bias
    }

    /// `[B, inputs]` to `[B, outputs]`.
    ///
    /// # Errors
    /// If the width does not fit or the device fails.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        kernels::linear(x, &pass.read(&self.weight), Some(&pass.read(&self.bias)))
    }
}
