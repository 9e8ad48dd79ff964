//! Model selection on samples that nobody trains on: after every epoch the network is measured on them, and the best one so
//! far is kept beside the checkpoints. It never sees the test images, and what it measures changes nothing: a replay
//! measures the same again.

use std::sync::Arc;

use cohort_proto::control::Term;
use cohort_proto::dataset::Samples;
use cohort_proto::id::Step;

use crate::checkpoint::{Best, Store};
use crate::data::augment::Normalisation;
use crate::data::loader::LoaderInputs;
use crate::error::PeerError;
use crate::evaluate::evaluate;
use crate::learner::{Learner, Scores, widened};

/// What is measured, and how good the best was.
#[derive(Debug)]
pub(super) struct Validation {
    held_out: Arc<Samples>,
    normalisation: Normalisation,
    best: Option<Best>,
}

impl Validation {
    /// None if the run holds no samples out.
    pub(super) fn new(inputs: &LoaderInputs, store: &Store) -> Option<Self> {
        let held_out = inputs.held_out.clone()?;
        Some(Self { held_out, normalisation: inputs.normalisation.clone(), best: store.best() })
    }

    /// Measures the network after so many steps, and keeps it if none before had as high a top-1.
    ///
    /// # Errors
    /// If the device fails, the network's answers are not finite, or it cannot be kept.
    pub(super) fn look(
        &mut self,
        learner: &Learner,
        store: &Store,
        steps_done: Step,
    ) -> Result<[Term; 2], PeerError> {
        let scores = Scores::of(&learner.model, &self.held_out, &self.normalisation, &learner.device)?;
        let labels: Vec<usize> = self.held_out.labels.iter().copied().map(usize::from).collect();
        let metrics = evaluate(&widened(&scores.logits), learner.model.network.classes(), &labels);
        let metrics = metrics.map_err(|error| PeerError::Diverged {
            step: steps_done.saturating_sub(1),
            what: format!("validation ({error})"),
        })?;
        if self.best.as_ref().is_none_or(|best| metrics.top1 > best.val_top1) {
            let best = Best { step: steps_done, val_top1: metrics.top1, val_nll: metrics.nll };
            store.save_best(&best, &learner.model.params.state_dict()?)?;
            self.best = Some(best);
        }
        let term = |name: &str, value| Term { name: name.to_owned(), value };
        Ok([term("val_top1", metrics.top1), term("val_nll", metrics.nll)])
    }
}
