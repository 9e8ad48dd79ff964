//! The aggregator of layer-wise mutual contrastive learning: the logits of all stages weighted, sample by sample.

use candle_core::{D, Result, Tensor};

use super::layers::Linear;
use super::params::Scope;
use super::pass::Pass;
use crate::kernels;

/// Two linear layers, `{prefix}.0.*` and `{prefix}.2.*`, with a ReLU in between, that read the features of all stages and
/// give each stage a weight (Yang et al. 2023, and `models/aggregator.py` of winycg/L-MCL).
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

    /// `a = sum over stages k of pi[:, k] z_k` with `pi = softmax(W2 relu(W1 [f_0 .. f_S-1] + b1) + b2)`: features
    /// `[B, d]` and logits `[B, C]` of every stage to `[B, C]`.
    ///
    /// # Errors
    /// If there are not as many features and logits as stages, shapes do not fit, or the device fails.
    pub fn forward(&self, features: &[Tensor], logits: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let hidden = kernels::relu(&self.first.forward(&Tensor::cat(features, 1)?, pass)?)?;
        let scores = self.second.forward(&hidden, pass)?;
        let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
        if weights.dim(1)? != logits.len() {
            candle_core::bail!("{} stage weights for the logits of {} stages", weights.dim(1)?, logits.len());
        }
        let weighted = logits.iter().enumerate().map(|(k, z)| weights.narrow(1, k, 1)?.broadcast_mul(z));
        let weighted = weighted.collect::<Result<Vec<_>>>()?;
        let (first, rest) = weighted.split_first().ok_or_else(|| candle_core::Error::msg("no stages"))?;
        rest.iter().try_fold(first.clone(), |sum, term| sum + term)
    }
}
