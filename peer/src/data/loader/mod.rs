//! Batches for training, prepared ahead by a thread of their own, and batches for evaluation in file order. Plain
//! memory only: the thread that owns the tensors makes tensors of it.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use cohort_proto::dataset::{Images, Samples};
use cohort_proto::plan::{BatchPlan, PlanError, PlannedBatch};
use thiserror::Error;

use super::augment::{Augment, Normalisation, Place, augment_into};
use crate::models::ImageShape;

/// Batches that wait ready for the training thread. A batch takes well under a millisecond to prepare; a few cover
/// the change of an epoch and a thread that is scheduled late. At 128 images of 3x224x224, each holds 77 MB.
pub const READY_BATCHES: usize = 4;

/// One training batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The step, from 0 over the whole run.
    pub step: u64,
    /// The epoch it is in, from 0.
    pub epoch: u64,
    /// Which batch of the epoch it is, from 0.
    pub position_in_epoch: u64,
    /// Learning rate.
    pub lr: f64,
    /// The samples, as the batch plan has them.
    pub indices: Vec<u32>,
    /// The plan's hash of epoch, step and indices.
    pub hash: u64,
    /// Normalised pixels of `shape`, the last dimension fastest.
    pub images: Vec<f32>,
    /// One class per image.
    pub labels: Vec<u32>,
    /// Images, channels, rows, columns.
    pub shape: [usize; 4],
    /// What the run holds out, in the first batch of an epoch.
    pub held_out: Option<HeldOut>,
}

/// Samples that nobody trains on, and how their pixels become network input. Clones share the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// The samples.
    pub samples: Arc<Samples>,
    /// How their pixels become network input.
    pub normalisation: Normalisation,
}

/// Why there is no next batch.
#[derive(Debug, Error)]
pub enum LoaderError {
    /// The system gives no thread.
    #[error("the loader thread cannot be started: {0}")]
    Spawn(io::Error),
    /// Plan and samples are not of the same training set.
    #[error("the batch plan is for {planned} samples, but {loaded} are loaded")]
    OtherSamples {
        /// Samples of the plan.
        planned: usize,
        /// Samples there are.
        loaded: usize,
    },
    /// Normalisation and images do not fit.
    #[error("images have {images} channels, but the normalisation is for {normalisation}")]
    OtherChannels {
        /// Channels of the images.
        images: usize,
        /// Channels of the normalisation.
        normalisation: usize,
    },
    /// The plan has no such batch.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan names a sample that does not exist.
    #[error("sample {index} of step {step} does not exist: there are {samples}")]
    NoSuchSample {
        /// The sample.
        index: u32,
        /// The step that should train on it.
        step: u64,
        /// Samples there are.
        samples: usize,
    },
    /// The loader thread ended by a bug.
    #[error("the loader thread failed: {0}")]
    Panicked(String),
    /// The loader gave an error before and has stopped.
    #[error("the loader has stopped after an error")]
    Stopped,
}

/// What a loader works from.
#[derive(Debug, Clone)]
pub struct LoaderInputs {
    /// The training set.
    pub samples: Arc<Samples>,
    /// What was held out of it for validation.
    pub held_out: Option<Arc<Samples>>,
    /// The plan over it.
    pub plan: BatchPlan,
    /// What is done to images.
    pub augment: Augment,
    /// How pixels become network input.
    pub normalisation: Normalisation,
}

/// Prepares the batches of a run ahead, in the order of the plan. Dropping it stops its thread and waits for it, no
/// longer than it takes to prepare one batch.
#[derive(Debug)]
pub struct Loader {
    /// None once the loader has stopped.
    batches: Option<Receiver<Result<Batch, LoaderError>>>,
    thread: Option<JoinHandle<()>>,
    /// Steps that are still to be handed out.
    left: u64,
}

impl Loader {
    /// Begins to prepare the batches from `step` to the end of the plan; none if `step` is the end.
    ///
    /// # Errors
    /// Inputs that do not fit each other, or no thread.
    pub fn start(inputs: LoaderInputs, step: u64) -> Result<Self, LoaderError> {
        let loaded = inputs.samples.images.count;
        if inputs.plan.samples() != loaded || inputs.samples.labels.len() != loaded {
            return Err(LoaderError::OtherSamples { planned: inputs.plan.samples(), loaded });
        }
        check_channels(&inputs.samples.images, &inputs.normalisation)?;
        let end = inputs.plan.total_steps();
        if step > end {
            return Err(PlanError::StepOutOfRange { step, total: end }.into());
        }
        let LoaderInputs { samples, held_out, mut plan, augment, normalisation } = inputs;
        let held_out = held_out.map(|samples| HeldOut { samples, normalisation: normalisation.clone() });
        Self::spawn(step, end, move |step| {
            let batch = prepare(&samples, plan.batch(step)?, plan.inputs().seed, augment, &normalisation)?;
            let held_out = held_out.clone().filter(|_| batch.position_in_epoch == 0);
            Ok(Batch { held_out, ..batch })
        })
    }

    /// Runs `prepare` for each step of `first..end` in a thread.
    fn spawn(
        first: u64,
        end: u64,
        prepare: impl FnMut(u64) -> Result<Batch, LoaderError> + Send + 'static,
    ) -> Result<Self, LoaderError> {
        let (sender, receiver) = sync_channel(READY_BATCHES);
        let thread = thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || run(first, end, prepare, &sender))
            .map_err(LoaderError::Spawn)?;
        Ok(Self { batches: Some(receiver), thread: Some(thread), left: end - first })
    }

    /// The next batch, waiting for it if it is not ready; None after the last one of the plan.
    ///
    /// # Errors
    /// What went wrong in the thread, once; after that [`LoaderError::Stopped`].
    pub fn next_batch(&mut self) -> Result<Option<Batch>, LoaderError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(batches) = &self.batches else { return Err(LoaderError::Stopped) };
        match batches.recv() {
            Ok(Ok(batch)) => {
                self.left -= 1;
                Ok(Some(batch))
            }
            Ok(Err(error)) => {
                self.stop();
                Err(error)
            }
            // The thread is gone although steps are left.
            Err(_) => Err(LoaderError::Panicked(self.stop().unwrap_or_else(|| "it ended early".to_owned()))),
        }
    }

    /// Stops the thread, waits for its end and gives the words of its panic, if that is how it ended.
    fn stop(&mut self) -> Option<String> {
        // Without a receiver the thread's next send fails, also one that is waiting for room.
        self.batches = None;
        let panic = self.thread.take()?.join().err()?;
        Some(panic_words(panic.as_ref()))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let Some(words) = self.stop() {
            tracing::error!("the loader thread failed after its batches were no longer wanted: {words}");
        }
    }
}

/// The loader thread: prepares and hands over until the end, an error, or nobody listens.
fn run(
    first: u64,
    end: u64,
    mut prepare: impl FnMut(u64) -> Result<Batch, LoaderError>,
    batches: &SyncSender<Result<Batch, LoaderError>>,
) {
    for step in first..end {
        let batch = prepare(step);
        let failed = batch.is_err();
        if batches.send(batch).is_err() || failed {
            return;
        }
    }
}

fn panic_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned())
}

/// Fetches, augments and normalises the images of a planned batch.
fn prepare(
    samples: &Samples,
    planned: PlannedBatch,
    seed: u64,
    augment: Augment,
    normalisation: &Normalisation,
) -> Result<Batch, LoaderError> {
    let PlannedBatch { step, epoch, position_in_epoch, lr, indices, hash } = planned;
    let shape = ImageShape::from(&samples.images);
    let mut images = Vec::with_capacity(indices.len() * shape.image_len());
    let mut labels = Vec::with_capacity(indices.len());
    let mut augmented = Vec::with_capacity(shape.image_len());
    for (position, &index) in (0..).zip(&indices) {
        let sample = samples.images.image(index as usize).zip(samples.labels.get(index as usize));
        let Some((image, &label)) = sample else {
            return Err(LoaderError::NoSuchSample { index, step, samples: samples.images.count });
        };
        augmented.clear();
        augment_into(image, shape, augment, Place { seed, epoch, step, position }, &mut augmented);
        normalisation.apply(&augmented, shape, &mut images);
        labels.push(u32::from(label));
    }
    let shape = [indices.len(), shape.channels, shape.height, shape.width];
    Ok(Batch { step, epoch, position_in_epoch, lr, indices, hash, images, labels, shape, held_out: None })
}

/// A batch of images to measure a network on.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationBatch {
    /// Position of the first image in the file.
    pub first: usize,
    /// Normalised pixels of `shape`, the last dimension fastest.
    pub images: Vec<f32>,
    /// One class per image.
    pub labels: Vec<u32>,
    /// Images, channels, rows, columns.
    pub shape: [usize; 4],
}

/// All samples in file order, without augmentation; the last batch holds what is left.
#[derive(Debug, Clone)]
pub struct EvaluationBatches<'a> {
    samples: &'a Samples,
    normalisation: &'a Normalisation,
    batch: usize,
    next: usize,
}

impl<'a> EvaluationBatches<'a> {
    /// Batches of `batch` samples, at least one.
    ///
    /// # Errors
    /// A normalisation for another number of channels.
    pub fn new(
        samples: &'a Samples,
        normalisation: &'a Normalisation,
        batch: usize,
    ) -> Result<Self, LoaderError> {
        check_channels(&samples.images, normalisation)?;
        Ok(Self { samples, normalisation, batch: batch.max(1), next: 0 })
    }
}

impl Iterator for EvaluationBatches<'_> {
    type Item = EvaluationBatch;

    fn next(&mut self) -> Option<EvaluationBatch> {
        let first = self.next;
        let end = self.samples.labels.len().min(first.saturating_add(self.batch));
        let shape = ImageShape::from(&self.samples.images);
        let pixels = self.samples.images.pixels.get(first * shape.image_len()..end * shape.image_len())?;
        if pixels.is_empty() {
            return None;
        }
        self.next = end;
        let mut images = Vec::with_capacity(pixels.len());
        for image in pixels.chunks_exact(shape.image_len()) {
            self.normalisation.apply(image, shape, &mut images);
        }
        let labels = self.samples.labels[first..end].iter().map(|&label| u32::from(label)).collect();
        let shape = [end - first, shape.channels, shape.height, shape.width];
        Some(EvaluationBatch { first, images, labels, shape })
    }
}

fn check_channels(images: &Images, normalisation: &Normalisation) -> Result<(), LoaderError> {
    let (images, normalisation) = (images.channels, normalisation.channels());
    if images != normalisation {
        return Err(LoaderError::OtherChannels { images, normalisation });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
