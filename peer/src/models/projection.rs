//! The projection head that turns a feature into an embedding: linear, ReLU, linear.

use candle_core::{Result, Tensor};

use super::layers::Linear;
use super::params::Scope;
use super::pass::Pass;

/// The two-layer head of mutual contrastive learning (Yang et al. 2022). Its tensors are `{prefix}.0.*` and
/// `{prefix}.2.*`, the ReLU being number 1 in between.
#[derive(Debug)]
pub struct Projection {
    first: Linear,
    second: Linear,
}

impl Projection {
    /// A head from features of width `d` to embeddings of width `e`, with `e` hidden units.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(mut scope: Scope<'_>, d: usize, e: usize) -> Result<Self> {
        let first = Linear::new(scope.child(0), d, e)?;
        Ok(Self { first, second: Linear::new(scope.child(2), e, e)? })
    }

    /// `[B, d]` to `[B, e]`, not normalised.
    ///
    /// # Errors
    /// If the width does not fit or the device fails.
    pub fn forward(&self, feature: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let hidden = self.first.forward(feature, pass)?;
        let hidden = pass.relu(&hidden)?;
        self.second.forward(&hidden, pass)
    }
}
