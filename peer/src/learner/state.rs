//! What a checkpoint holds of a learner, and what a step that is given up puts back: everything that training changes.
//!
//! Saving and loading both take the learner apart without a `..`: whoever gives it another field says in both places
//! whether the field is saved, or this does not compile. A loss that must remember something from step to step keeps it
//! in such a field; [`Method`](crate::methods::Method) itself is only ever borrowed unchanged.

use candle_core::{Device, Result, Tensor};

use super::adversary::ADVERSARY_PREFIX;
use super::{BANK_PREFIX, CACHE_PREFIX, Learner, MATCHING_PREFIX, Remembrance, generations};
use crate::checkpoint::Checkpoint;
use crate::methods::terms::past::Past;
use crate::models::state::Mismatch;
use crate::models::{StateDict, StateError, Strictness};

/// The name of what a network said of every training sample, in a checkpoint.
pub const PAST: &str = "past";

/// The name of the weights of an epoch, in a checkpoint.
pub const WEIGHTS: &str = "kdcl.weights";

/// Everything that a step changes, as it was before.
#[derive(Debug)]
pub struct Before {
    /// Parameters and buffers by name.
    pub model: StateDict,
    /// The state of the optimisers, and the past, by name.
    pub rest: StateDict,
    /// What memory banks held of the samples of the step: all of a bank would be too much to copy.
    pub held: Option<Remembrance>,
}

impl Learner {
    /// Copies of all parameters and buffers, and of the rest: the state of both optimisers, whose names differ since no
    /// parameter has two, and the memory banks, what a teacher keeps, the past, the weights of the epoch, the
    /// network of the generation before and the discriminator with what trains it, which no network has.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<(StateDict, StateDict)> {
        let (model, mut rest) = self.state_but_banks()?;
        if let Some(memory) = &self.memory {
            rest.extend(memory.state_dict()?);
        }
        Ok((model, rest))
    }

    fn state_but_banks(&self) -> Result<(StateDict, StateDict)> {
        let Self {
            model,
            optimizer,
            matching_optimizer,
            cache,
            past,
            weights,
            predecessor,
            adversary,
            // All of it in a checkpoint, the rows of a batch before a step: whoever calls this says.
            memory: _,
            // The run spec and the number of steps say these, and they are the same after a restart.
            generation: _,
            index: _,
            role: _,
            method: _,
            meta: _,
            node: _,
            extent: _,
            device: _,
            // It takes its values from the model each time before it is used.
            twin: _,
        } = self;
        let mut rest = optimizer.state_dict()?;
        rest.extend(matching_optimizer.state_dict()?);
        if let Some(cache) = cache {
            rest.extend(cache.state_dict()?);
        }
        if let Some(past) = past {
            rest.insert(PAST.to_owned(), past.to_tensor()?);
        }
        if let Some(weights) = weights {
            rest.insert(WEIGHTS.to_owned(), Tensor::new(weights.as_slice(), &Device::Cpu)?);
        }
        if let Some(model) = predecessor {
            rest.extend(generations::state_of(model)?);
        }
        if let Some(adversary) = adversary {
            rest.extend(adversary.state_dict()?);
        }
        Ok((model.params.state_dict()?, rest))
    }

    /// Goes back to a checkpoint.
    ///
    /// # Errors
    /// If its tensors are not those of this network, its optimisers and its banks.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> std::result::Result<(), StateError> {
        self.of_generation_after(checkpoint.progress.steps_done)?;
        self.model.params.load(&checkpoint.model, Strictness::Strict)?;
        let is_bank = |name: &String| self.memory.is_some() && name.starts_with(BANK_PREFIX);
        let rest = checkpoint.optimizer.clone();
        let (banks, rest): (StateDict, StateDict) = rest.into_iter().partition(|(name, _)| is_bank(name));
        self.load_rest(rest)?;
        self.memory.as_mut().map_or(Ok(()), |memory| memory.load(&banks))
    }

    /// Copies what a step with the samples `indices` changes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn before(&self, indices: &[u32]) -> Result<Before> {
        let (model, rest) = self.state_but_banks()?;
        Ok(Before { model, rest, held: self.memory.as_ref().map(|memory| memory.held(indices)) })
    }

    /// Puts it back, bit for bit.
    ///
    /// # Errors
    /// If the device fails.
    pub fn put_back(&mut self, before: &Before) -> std::result::Result<(), StateError> {
        self.model.params.restore(&before.model)?;
        self.load_rest(before.rest.clone())?;
        if let (Some(memory), Some(held)) = (&mut self.memory, &before.held) {
            memory.remember(held);
        }
        Ok(())
    }

    fn load_rest(&mut self, mut rest: StateDict) -> std::result::Result<(), StateError> {
        let Self {
            optimizer,
            matching_optimizer,
            cache,
            past,
            weights,
            predecessor,
            adversary,
            // Loaded or put back by whoever calls this.
            memory: _,
            // Its parameters are loaded by whoever calls this; the rest of it is built from the run spec.
            model: _,
            generation: _,
            index: _,
            role: _,
            method: _,
            meta: _,
            node: _,
            extent: _,
            device: _,
            twin: _,
        } = self;
        let of_past = rest.remove(PAST);
        if let Some(past) = past {
            let rows = of_past.ok_or_else(|| {
                StateError::Mismatch(Mismatch { missing: vec![PAST.to_owned()], ..Mismatch::default() })
            })?;
            *past = Past::from_tensor(&rows, past.samples(), past.classes())?;
        }
        *weights = rest.remove(WEIGHTS).map(|weights| weights.to_vec1::<f64>()).transpose()?;
        generations::load(predecessor.as_ref(), &mut rest)?;
        let (contested, rest): (StateDict, StateDict) =
            rest.into_iter().partition(|(name, _)| adversary.is_some() && name.starts_with(ADVERSARY_PREFIX));
        let (said, rest): (StateDict, StateDict) =
            rest.into_iter().partition(|(name, _)| cache.is_some() && name.starts_with(CACHE_PREFIX));
        let (matching, every_step): (StateDict, StateDict) =
            rest.into_iter().partition(|(name, _)| name.starts_with(MATCHING_PREFIX));
        optimizer.load(&every_step)?;
        matching_optimizer.load(&matching)?;
        if let Some(adversary) = adversary {
            adversary.load(&contested)?;
        }
        if let Some(cache) = cache {
            cache.load(&said)?;
        }
        Ok(())
    }
}
