//! One trip of a batch through a network, and what it leaves to be written afterwards.

use candle_core::{Result, Tensor, Var};

use super::layers::{BATCH_NORM_EPS, Running};
use crate::kernels::{self, Activation, GateTape, Maps, Moments};

/// Whether batch norm uses the batch or the running statistics, and the updates of the latter that are still to be
/// made. Dropping a pass without [`Pass::commit`] leaves the network as it was, so an abandoned step has no trace.
///
/// A training pass may also record which units its rectifiers let through, or replay what another one recorded: with
/// the pattern fixed a network is smooth in its parameters, as finite differences of its gradients need it.
#[derive(Debug)]
pub struct Pass {
    training: bool,
    gates: Option<GateTape>,
    updates: Vec<(Running, Moments)>,
}

impl Pass {
    /// Batch statistics, with a graph for the backward pass.
    pub fn train() -> Self {
        Self { training: true, gates: None, updates: Vec::new() }
    }

    /// A training pass that records every rectifier it meets, for [`Pass::take_gates`].
    pub fn recording() -> Self {
        Self { gates: Some(GateTape::recording()), ..Self::train() }
    }

    /// A training pass whose rectifiers let through what they did in the pass that recorded `gates`: of the same
    /// network and heads, on a batch of the same shape, at any parameters.
    pub fn replaying(gates: &GateTape) -> Self {
        Self { gates: Some(gates.replaying()), ..Self::train() }
    }

    /// Running statistics, no graph: the outputs have no gradients.
    pub fn eval() -> Self {
        Self { training: false, ..Self::train() }
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Hands over what was recorded; nothing if this is not a [`Pass::recording`].
    pub fn take_gates(&mut self) -> Option<GateTape> {
        self.gates.take()
    }

    /// That a replaying pass, which is over, met as many rectifiers as the recorded one.
    ///
    /// # Errors
    /// If it met fewer.
    pub fn check_gates(&self) -> Result<()> {
        self.gates.as_ref().map_or(Ok(()), GateTape::check_complete)
    }

    /// Writes the running statistics, in the order in which the layers were visited, and counts one batch each.
    ///
    /// # Errors
    /// If a layer saw a single value per channel, whose variance is unknown, or the device fails.
    pub fn commit(self) -> Result<()> {
        self.updates.iter().try_for_each(|(running, moments)| running.update(moments))
    }

    /// The variable as this pass uses it: part of the graph in training, a constant in evaluation.
    pub fn read(&self, var: &Var) -> Tensor {
        if self.training { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }

    /// `max(x, 0)`, by the gates of this pass.
    pub(super) fn relu(&mut self, x: &Tensor) -> Result<Tensor> {
        match &mut self.gates {
            Some(gates) => gates.relu(x),
            None => kernels::relu(x),
        }
    }

    /// Batch norm by the batch, its rectifier by the gates of this pass. The update of `running` is kept.
    pub(super) fn batch_norm(
        &mut self,
        x: &Maps,
        (weight, bias): (&Tensor, &Tensor),
        residual: Option<&Maps>,
        activation: Activation,
        running: &Running,
    ) -> Result<Maps> {
        let (y, moments) = match &mut self.gates {
            Some(gates) => gates.batch_norm_train(x, weight, bias, BATCH_NORM_EPS, residual, activation),
            None => kernels::batch_norm_train(x, weight, bias, BATCH_NORM_EPS, residual, activation),
        }?;
        self.updates.push((running.clone(), moments));
        Ok(y)
    }
}
