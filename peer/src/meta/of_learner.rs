//! The real network as one peer's part of the bilevel problem: as it trains, or in f64 beside it.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

use super::problem::{Bilevel, Gradient, Words};
use crate::error::PeerError;
use crate::kernels::GateTape;
use crate::kernels::threads::compute;
use crate::learner::{Learner, Model, Outputs, Remembrance};
use crate::methods::cross_entropy::cross_entropy;
use crate::methods::lmcl::{self, LMclParams, Targets};
use crate::methods::primitives::zero;
use crate::methods::{Heard, Method};
use crate::models::Pass;
use crate::optim::Gradients;
use crate::step::load::Input;

/// A learner and the batch of a meta-update. In a precision that is not the learner's own its twin goes the path.
pub struct OfLearner<'a> {
    learner: &'a mut Learner,
    precision: DType,
    method: LMclParams,
    images: Tensor,
    labels: Tensor,
    /// The samples of the batch, and the number of its step.
    batch: (Vec<u32>, u64),
    /// What the banks were told along the path, and what they held in its place.
    remembered: Vec<(Remembrance, Remembrance)>,
}

/// What the network made of the batch at some θ.
pub struct Passed {
    outputs: Outputs,
    pass: Pass,
}

/// What a point of the path leaves behind.
pub struct Left {
    pass: Pass,
    remembrance: Option<Remembrance>,
}

impl<'a> OfLearner<'a> {
    /// Of a batch, computing in `precision` (f32 or f64).
    ///
    /// # Errors
    /// If the method learns no matching, or the device fails.
    pub fn new(
        learner: &'a mut Learner,
        input: &Input,
        precision: DType,
    ) -> std::result::Result<Self, PeerError> {
        let Method::LMcl(method) = learner.method.clone() else {
            return Err(PeerError::Internal("a meta-update of a method without one".into()));
        };
        if learner.model.params.dtype() != precision {
            learner.refresh_twin(precision)?;
        }
        let (images, labels) = (input.images.to_dtype(precision)?, input.labels.clone());
        let batch = (input.indices.clone(), input.step);
        Ok(Self { learner, precision, method, images, labels, batch, remembered: Vec::new() })
    }

    fn model(&self) -> &Model {
        self.learner.in_precision(self.precision)
    }

    fn forward(&self, mut pass: Pass) -> Result<Passed> {
        let outputs = compute(|| self.model().forward(&self.images, &mut pass))?;
        Ok(Passed { outputs, pass })
    }
}

impl Bilevel for OfLearner<'_> {
    type Forward = Passed;
    type Targets = Targets;
    type Statistics = Left;

    fn theta(&self) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for (_, var) in self.model().theta() {
            append(&mut all, var.as_tensor())?;
        }
        Ok(all)
    }

    fn phi_count(&self) -> usize {
        self.model().phi().map(|(_, var)| var.elem_count()).sum()
    }

    fn set_theta(&mut self, theta: &[f64]) -> Result<()> {
        let mut rest = theta;
        self.model().theta().try_for_each(|(_, var)| var.set(&like(var, &mut rest)?))
    }

    fn record(&self) -> Result<(Passed, GateTape)> {
        let mut passed = self.forward(Pass::recording())?;
        let gates = passed.pass.take_gates().unwrap_or_default();
        Ok((passed, gates))
    }

    fn replay(&self, gates: &GateTape) -> Result<Passed> {
        self.forward(Pass::replaying(gates))
    }

    fn words(&self, forward: &Passed) -> Words {
        let Outputs { embeddings, matching, .. } = &forward.outputs;
        Words { embeddings: embeddings.clone(), matching: matching.clone() }
    }

    fn targets(&self, forward: &Passed, heard: &[(usize, Words)]) -> Result<Targets> {
        Ok(Targets::of(&forward.outputs.embeddings, &as_heard(heard)))
    }

    fn inner_gradient(
        &self,
        forward: &Passed,
        heard: &[(usize, Words)],
        targets: &Targets,
    ) -> Result<Gradient> {
        let heard = as_heard(heard);
        let position = heard.iter().filter(|other| other.index < self.learner.index).count();
        let Outputs { embeddings, matching, .. } = &forward.outputs;
        let (memory, method) = (&self.learner.memory, &self.method);
        compute(|| {
            let loss = match memory {
                Some(memory) => {
                    let recall = memory.recall(self.learner.index, &heard, self.batch.1, &self.batch.0)?;
                    lmcl::inner_of_memory(position, (embeddings, matching), &heard, targets, method, &recall)?
                }
                None => lmcl::inner(position, embeddings, matching, &heard, targets, &self.labels, method)?,
            };
            let store = loss.backward()?;
            Ok(Gradient {
                theta: flat(&store, self.model().theta().map(|(_, var)| var))?,
                phi: flat(&store, self.model().phi().map(|(_, var)| var))?,
            })
        })
    }

    fn remember(&mut self, forward: &Passed, heard: &[(usize, Words)]) -> Result<()> {
        let Learner { memory: Some(memory), index, .. } = &mut *self.learner else { return Ok(()) };
        let own = (*index, &forward.outputs.embeddings[..]);
        let new = memory.blend(own, &as_heard(heard), &self.batch.0)?;
        let old = memory.held(&self.batch.0);
        memory.remember(&new);
        self.remembered.push((new, old));
        Ok(())
    }

    fn forget(&mut self) {
        if let (Some((_, old)), Some(memory)) = (self.remembered.pop(), &mut self.learner.memory) {
            memory.remember(&old);
        }
    }

    fn outer_gradient(&self, forward: &Passed) -> Result<Vec<f64>> {
        compute(|| {
            let mut total = zero(&forward.outputs.logits)?;
            for logits in &forward.outputs.stage_logits {
                total = (total + cross_entropy(logits, &self.labels)?)?;
            }
            flat(&total.backward()?, self.model().theta().map(|(_, var)| var))
        })
    }

    fn statistics(&self, forward: Passed) -> Left {
        Left { pass: forward.pass, remembrance: self.remembered.last().map(|(new, _)| new.clone()) }
    }

    fn write_statistics(&mut self, Left { pass, remembrance }: Left) -> Result<()> {
        pass.commit()?;
        let model = self.model();
        if model.params.dtype() != self.learner.model.params.dtype() {
            for (name, buffer) in self.learner.model.params.buffers() {
                if let Some(value) = model.params.buffers().get(name) {
                    buffer.set(&value.as_detached_tensor().to_dtype(buffer.dtype())?)?;
                }
            }
        }
        if let (Some(memory), Some(remembrance)) = (&mut self.learner.memory, remembrance) {
            memory.remember(&remembrance);
        }
        Ok(())
    }

    fn step_phi(&mut self, gradient: &[f64], lr: f64) -> Result<()> {
        let mut rest = gradient;
        let by_name = self.learner.model.phi().map(|(name, var)| Ok((name.clone(), like(var, &mut rest)?)));
        let gradients = by_name.collect::<Result<Gradients>>()?;
        self.learner.matching_optimizer.step(&self.learner.model.params, gradients, lr)?;
        Ok(())
    }
}

/// What others said as the losses take it.
fn as_heard(heard: &[(usize, Words)]) -> Vec<Heard> {
    let of_one = |(index, words): &(usize, Words)| {
        let Words { embeddings, matching } = words.clone();
        Heard { embeddings, matching, ..Heard::nothing(*index) }
    };
    heard.iter().map(of_one).collect()
}

/// Gradients in the order of variables, 0 where the loss did not reach.
fn flat<'v>(store: &GradStore, vars: impl Iterator<Item = &'v Var>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for var in vars {
        match store.get(var.as_tensor()) {
            Some(gradient) => append(&mut all, gradient)?,
            None => all.resize(all.len() + var.elem_count(), 0.0),
        }
    }
    Ok(all)
}

/// Numbers of a tensor in f64, which not every device has.
fn append(all: &mut Vec<f64>, tensor: &Tensor) -> Result<()> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    all.extend(flat.to_dtype(DType::F64)?.to_vec1::<f64>()?);
    Ok(())
}

/// The next numbers of `rest` in the shape and type of a variable.
fn like(var: &Var, rest: &mut &[f64]) -> Result<Tensor> {
    let Some((values, after)) = rest.split_at_checked(var.elem_count()) else {
        candle_core::bail!("{} numbers are left for {:?}", rest.len(), var.dims());
    };
    *rest = after;
    Tensor::from_slice(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?.to_device(var.device())
}
