//! Generations (Furlanello et al., ICML 2018; Yang et al., AAAI 2019): a network is trained anew, from fresh weights, with
//! itself as it was at the end of the generation before as a frozen teacher. The steps of a run go through all generations
//! in a row, so a checkpoint, a replay and a lease know nothing of them.

use std::mem;

use candle_core::{DType, Result, Tensor};
use cohort_proto::id::Step;
use cohort_proto::spec::Role;

use super::{Learner, Model, Outputs};
use crate::error::PeerError;
use crate::models::{Pass, StateDict, StateError, Strictness};

/// Where the names of the network of the generation before begin in a checkpoint.
pub(super) const BEFORE_PREFIX: &str = "before.";

/// Builds the learner as it is at the beginning of a generation.
pub type Fresh<'a> = &'a dyn Fn(u64) -> std::result::Result<Learner, PeerError>;

impl Learner {
    /// Goes over to the generation of a step, if the step is its first one: fresh weights, optimisers at rest, nothing
    /// remembered but the network itself.
    ///
    /// # Errors
    /// If no network can be built, or the step is of no generation that follows.
    pub fn enter(&mut self, step: Step, fresh: Fresh<'_>) -> std::result::Result<(), PeerError> {
        let wanted = step / self.extent.steps.max(1);
        if self.role == Role::Teacher || wanted == self.generation {
            return Ok(());
        }
        if wanted != self.generation + 1 {
            let generation = self.generation;
            return Err(PeerError::Internal(format!(
                "step {step} is of generation {wanted}, but the weights are of generation {generation}"
            )));
        }
        let mut next = fresh(wanted)?;
        next.generation = wanted;
        let last = mem::replace(self, next);
        if self.node.looks_back() {
            self.predecessor = Some(last.model);
        }
        tracing::info!("generation {wanted} begins at step {step}");
        Ok(())
    }

    /// What the network of the generation before makes of images, as a constant, if anything is learned from it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn look_back(&self, images: &Tensor) -> Result<Option<Outputs>> {
        self.predecessor.as_ref().map(|model| model.forward(images, &mut Pass::eval())).transpose()
    }

    /// Makes room for what a checkpoint of so many steps holds of the generation before.
    pub(super) fn of_generation_after(&mut self, steps_done: Step) -> std::result::Result<(), StateError> {
        self.generation = steps_done.saturating_sub(1) / self.extent.steps.max(1);
        if self.generation == 0 || !self.node.looks_back() {
            self.predecessor = None;
        } else if self.predecessor.is_none() {
            let twin = self.model.twin(DType::F32);
            let twin = twin.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
            self.predecessor = Some(twin);
        }
        Ok(())
    }
}

/// The parameters and buffers of the network before, under names of their own.
pub(super) fn state_of(predecessor: &Model) -> Result<StateDict> {
    let named = predecessor.params.state_dict()?.into_iter();
    Ok(named.map(|(name, tensor)| (format!("{BEFORE_PREFIX}{name}"), tensor)).collect())
}

/// Takes them out of what a checkpoint holds besides the network.
pub(super) fn load(predecessor: Option<&Model>, rest: &mut StateDict) -> std::result::Result<(), StateError> {
    let Some(model) = predecessor else { return Ok(()) };
    let all = mem::take(rest).into_iter();
    let (before, others): (StateDict, StateDict) = all.partition(|(name, _)| name.starts_with(BEFORE_PREFIX));
    *rest = others;
    let short = |name: String| name.strip_prefix(BEFORE_PREFIX).map_or(name.clone(), str::to_owned);
    let before: StateDict = before.into_iter().map(|(name, tensor)| (short(name), tensor)).collect();
    model.params.load(&before, Strictness::Strict)?;
    Ok(())
}
