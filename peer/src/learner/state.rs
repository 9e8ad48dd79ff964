//! What a checkpoint holds of a learner, and what a step that is given up puts back: everything that training changes.
//!
//! Saving and loading both take the learner apart without a `..`: whoever gives it another field says in both places
//! whether the field is saved, or this does not compile. A loss that must remember something from step to step keeps it
//! in such a field; [`Method`](crate::methods::Method) itself is only ever borrowed unchanged.

use candle_core::Result;

use super::{BANK_PREFIX, CACHE_PREFIX, Learner, MATCHING_PREFIX, generations};
use crate::checkpoint::Checkpoint;
use crate::methods::terms::past::Past;
use crate::models::state::Mismatch;
use crate::models::{StateDict, StateError, Strictness};

/// The name of what a network said of every training sample, in a checkpoint.
pub const PAST: &str = "past";

/// Everything that a step changes, as it was before.
#[derive(Debug)]
pub struct Before {
    /// Parameters and buffers by name.
    pub model: StateDict,
    /// The state of the optimisers, and what is remembered, by name.
    pub rest: StateDict,
}

impl Learner {
    /// Copies of all parameters and buffers, and of the rest: the state of both optimisers, whose names differ since no
    /// parameter has two, and the memory banks, what a teacher keeps, the past
    /// and the network of the generation before, which no network has.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<(StateDict, StateDict)> {
        let Self {
            model,
            optimizer,
            matching_optimizer,
            memory,
            cache,
            past,
            predecessor,
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
        if let Some(memory) = memory {
            rest.extend(memory.state_dict()?);
        }
        if let Some(cache) = cache {
            rest.extend(cache.state_dict()?);
        }
        if let Some(past) = past {
            rest.insert(PAST.to_owned(), past.to_tensor()?);
        }
        if let Some(model) = predecessor {
            rest.extend(generations::state_of(model)?);
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
        self.load_rest(&checkpoint.optimizer)
    }

    /// Copies what a step changes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn before(&self) -> Result<Before> {
        let (model, rest) = self.state()?;
        Ok(Before { model, rest })
    }

    /// Puts it back, bit for bit.
    ///
    /// # Errors
    /// If the device fails.
    pub fn put_back(&mut self, before: &Before) -> std::result::Result<(), StateError> {
        self.model.params.restore(&before.model)?;
        self.load_rest(&before.rest)
    }

    fn load_rest(&mut self, rest: &StateDict) -> std::result::Result<(), StateError> {
        let Self {
            optimizer,
            matching_optimizer,
            memory,
            cache,
            past,
            predecessor,
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
        if let Some(past) = past {
            let rows = rest.get(PAST).ok_or_else(|| {
                StateError::Mismatch(Mismatch { missing: vec![PAST.to_owned()], ..Mismatch::default() })
            })?;
            *past = Past::from_tensor(rows, past.samples(), past.classes())?;
        }
        let others = rest.iter().filter(|(name, _)| *name != PAST);
        let mut rest: StateDict = others.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        generations::load(predecessor.as_ref(), &mut rest)?;
        let (said, rest): (StateDict, StateDict) =
            rest.into_iter().partition(|(name, _)| cache.is_some() && name.starts_with(CACHE_PREFIX));
        let (banks, optimizers): (StateDict, StateDict) =
            rest.into_iter().partition(|(name, _)| memory.is_some() && name.starts_with(BANK_PREFIX));
        let (matching, every_step): (StateDict, StateDict) =
            optimizers.into_iter().partition(|(name, _)| name.starts_with(MATCHING_PREFIX));
        optimizer.load(&every_step)?;
        matching_optimizer.load(&matching)?;
        if let Some(memory) = memory {
            memory.load(&banks)?;
        }
        if let Some(cache) = cache {
            cache.load(&said)?;
        }
        Ok(())
    }
}
