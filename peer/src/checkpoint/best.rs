//! The network that did best on held-out samples: a folder `best` with its weights and how good it was, replaced as a whole.
//! Nothing goes on from it.

use std::fs;
use std::path::PathBuf;

use cohort_proto::id::{Digest, Step};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, MODEL, Store};
use crate::models::{StateDict, state};

/// The folder.
const BEST: &str = "best";
const SCORE: &str = "validation.json";

/// How good it was, and when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps completed.
    pub step: Step,
    /// Top-1 on the held-out samples, percent.
    pub val_top1: f64,
    /// Their mean negative log-likelihood, nats.
    pub val_nll: f64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    best: Best,
    /// SHA-256 of the weights beside it.
    model_sha256: String,
}

impl Store {
    /// Where its weights are.
    pub fn best_weights(&self) -> PathBuf {
        self.folder.join(BEST).join(MODEL)
    }

    /// How good the best so far was; none if there is none, or if it is damaged, which is said.
    pub fn best(&self) -> Option<Best> {
        let record = fs::read(self.folder.join(BEST).join(SCORE)).ok()?;
        let record: Option<Record> = serde_json::from_slice(&record).ok();
        let weights = fs::read(self.best_weights()).unwrap_or_default();
        let sound = record.filter(|record| Digest::of(&weights).to_string() == record.model_sha256);
        if sound.is_none() {
            tracing::warn!("{} is damaged; the next best takes its place", self.folder.join(BEST).display());
        }
        sound.map(|record| record.best)
    }

    /// Puts another in its place, durably.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_best(&self, best: &Best, model: &StateDict) -> Result<(), CheckpointError> {
        let target = self.folder.join(BEST);
        let tensors = |cause| CheckpointError::Tensors { path: target.clone(), cause: Box::new(cause) };
        let model = state::encode(model).map_err(tensors)?;
        let record = Record { best: *best, model_sha256: Digest::of(&model).to_string() };
        // A struct of numbers and a text always serialises; an empty file would count as damaged.
        let record = serde_json::to_vec(&record).unwrap_or_default();
        self.put(&target, &[(MODEL, &model), (SCORE, &record)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_replaced_as_a_whole_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 3).unwrap();
        assert_eq!(store.best(), None);
        let tensors = |value: f32| {
            let tensor = candle_core::Tensor::new(&[value], &candle_core::Device::Cpu).unwrap();
            StateDict::from([("w".to_owned(), tensor)])
        };
        for (step, val_top1) in [(4, 50.0), (8, 62.5)] {
            let best = Best { step, val_top1, val_nll: 1.0 };
            store.save_best(&best, &tensors(val_top1 as f32)).unwrap();
            assert_eq!(Store::open(folder.path(), 3).unwrap().best(), Some(best));
        }
        assert!(store.steps().unwrap().is_empty(), "it is no checkpoint");
        fs::write(store.best_weights(), b"other").unwrap();
        assert_eq!(store.best(), None);
        store.save_best(&Best { step: 9, val_top1: 1.0, val_nll: 2.0 }, &tensors(0.0)).unwrap();
        assert_eq!(store.best().map(|best| best.step), Some(9));
    }
}
