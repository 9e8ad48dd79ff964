//! One trip of a batch through a network, and what it leaves to be written afterwards.

use candle_core::{Result, Tensor, Var};

use super::layers::Running;
use crate::kernels::Moments;

/// Whether batch norm uses the batch or the running statistics, and the updates of the latter that are still to be
/// made. Dropping a pass without [`Pass::commit`] leaves the network as it was, so an abandoned step has no trace.
#[derive(Debug)]
pub struct Pass {
    training: bool,
    updates: Vec<(Running, Moments)>,
}

impl Pass {
    /// Batch statistics, with a graph for the backward pass.
    pub fn train() -> Self {
        Self { training: true, updates: Vec::new() }
    }

    /// Running statistics, no graph: the outputs have no gradients.
    pub fn eval() -> Self {
        Self { training: false, updates: Vec::new() }
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Writes the running statistics, in the order in which the layers were visited, and counts one batch each.
    ///
    /// # Errors
    /// If a layer saw a single value per channel, whose variance is unknown, or the device fails.
    pub fn commit(self) -> Result<()> {
        self.updates.iter().try_for_each(|(running, moments)| running.update(moments))
    }

    /// The variable as this pass uses it: part of the graph in training, a constant in evaluation.
    pub(super) fn read(&self, var: &Var) -> Tensor {
        if self.training { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }

    pub(super) fn record(&mut self, running: Running, moments: Moments) {
        self.updates.push((running, moments));
    }
}
