//! The gate of a gated ensemble: how much a network would count in it, sample by sample.

use candle_core::{Result, Tensor};

use super::layers::{BatchNorm2d, Linear};
use super::params::Scope;
use super::pass::Pass;
use crate::kernels::{Activation, Maps};

/// A linear layer to one number, `{prefix}.0.*`, batch norm, `{prefix}.1.*`, and a rectifier: the gate of Zhu et al.
/// (NeurIPS 2018, section 3.1, and `models/cifar/resnet.py` of Lan1991Xu/ONE_NeurIPS2018) with one output instead of one
/// for each branch, since each network has its own feature.
#[derive(Debug)]
pub struct EnsembleGate {
    linear: Linear,
    norm: BatchNorm2d,
}

impl EnsembleGate {
    /// A gate on features of width `d`.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(mut scope: Scope<'_>, d: usize) -> Result<Self> {
        let linear = Linear::new(scope.child(0), d, 1)?;
        Ok(Self { linear, norm: BatchNorm2d::new(scope.child(1), 1)? })
    }

    /// The score `relu(BN(w f + b))` of each sample, `[B, d]` to `[B, 1]`, 0 or greater. The softmax over the networks'
    /// scores weighs their logits.
    ///
    /// # Errors
    /// If the width does not fit, a training batch has one sample, or the device fails.
    pub fn forward(&self, feature: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let score = self.linear.forward(feature, pass)?;
        let batch = score.dim(0)?;
        let maps = Maps::from_tensor(&score.reshape((batch, 1, 1, 1))?)?;
        self.norm.forward(&maps, None, Activation::Relu, pass)?.to_tensor()?.reshape((batch, 1))
    }
}
