//! The aggregator of layer-wise mutual contrastive learning: how much each stage counts, sample by sample.

use candle_core::{Result, Tensor};

use super::layers::Linear;
use super::params::Scope;
use super::pass::Pass;
use crate::kernels;

/// Two linear layers, `{prefix}.0.*` and `{prefix}.2.*`, with a ReLU in between, that read the features of all stages and
/// score each stage (Yang et al. 2023, and `models/aggregator.py` of winycg/L-MCL).
///
/// Its ReLU follows no recorded gates: no bilevel objective contains the aggregator.
#[derive(Debug)]
pub struct Aggregator {
    first: Linear,
    second: Linear,
}

impl Aggregator {
    /// An aggregator of `stages` features of width `d`.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(mut scope: Scope<'_>, stages: usize, d: usize) -> Result<Self> {
        let first = Linear::new(scope.child(0), stages * d, d)?;
        Ok(Self { first, second: Linear::new(scope.child(2), d, stages)? })
    }

    /// Scores `W2 relu(W1 [f_0, .., f_S-1] + b1) + b2` of the stages, `[B, S]`, from the features `[B, d]` of every
    /// stage. Their softmax weighs the stages' logits.
    ///
    /// # Errors
    /// If there are not as many features as stages, shapes do not fit, or the device fails.
    pub fn forward(&self, features: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let hidden = kernels::relu(&self.first.forward(&Tensor::cat(features, 1)?, pass)?)?;
        self.second.forward(&hidden, pass)
    }
}
