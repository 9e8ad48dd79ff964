//! The batch plan: which samples step s trains on, in which order, and at which learning rate. A pure function of
//! the run's numbers and the labels, so that no index list travels and every process can check every other.

use thiserror::Error;

use crate::rng::{SplitMix64, fnv1a};

/// How the samples of a batch are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// Each epoch is a fresh random order of all samples, cut into batches; what does not fill the last batch is
    /// left out of that epoch.
    Shuffle,
    /// Each batch holds `per_class` samples of each of `batch / per_class` random classes, so that a contrastive
    /// loss finds positives (the sampler of Mutual Contrastive Learning, Yang et al., AAAI 2022). A sample may be
    /// drawn several times in an epoch, or never.
    PerClass {
        /// Samples of each chosen class; divides the batch size.
        per_class: usize,
    },
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunLength {
    /// This many epochs of `floor(samples / batch)` steps.
    Epochs(u64),
    /// Exactly this many steps. For the learning rate the run counts as `ceil(steps / steps per epoch)` epochs.
    Steps(u64),
}

/// How the learning rate goes on after the warm-up. Evaluated once per epoch e of the E epochs of a run, of which the
/// first W are warm-up.
#[derive(Debug, Clone, PartialEq)]
pub enum LrSchedule {
    /// `lr0 · ½ (1 + cos(π (e − W) / (E − W)))` (Loshchilov and Hutter, 2017, without restarts); stays above 0.
    Cosine,
    /// `lr0 · factor^n`, where n is the number of milestones that are not after epoch e. Milestones are epochs of
    /// the whole run, warm-up included.
    Multistep {
        /// Epochs at which the rate falls, in any order.
        milestones: Vec<u64>,
        /// What the rate is multiplied by; usually 0.1.
        factor: f64,
    },
    /// `lr0` throughout.
    Constant,
}

/// What a plan is made from. Plain numbers: whoever reads the run's description converts.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanInputs {
    /// Seed of the run.
    pub seed: u64,
    /// How samples are chosen.
    pub sampler: Sampler,
    /// Samples per batch.
    pub batch: usize,
    /// Epochs or steps, of each generation.
    pub length: RunLength,
    /// Generations: so often the whole length follows on itself, each time with other batches and from the first learning
    /// rate on.
    pub generations: u64,
    /// Learning rate before any schedule.
    pub lr0: f64,
    /// The schedule.
    pub schedule: LrSchedule,
    /// Warm-up: epoch e below this number trains at `lr0 · (e + 1) / warmup_epochs`.
    pub warmup_epochs: u64,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedBatch {
    /// The step, from 0 over the whole run.
    pub step: u64,
    /// The epoch it is in, from 0.
    pub epoch: u64,
    /// Which batch of the epoch it is, from 0.
    pub position_in_epoch: u64,
    /// Learning rate.
    pub lr: f64,
    /// The samples, in the order in which every peer lays them into the batch.
    pub indices: Vec<u32>,
    /// [`batch_hash`] of the three numbers that peers must agree on.
    pub hash: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    /// There is nothing to train on.
    #[error("there are no training samples")]
    NoSamples,
    /// More samples than an index can name.
    #[error("{0} training samples are too many: at most {max} can be numbered", max = u32::MAX)]
    TooManySamples(usize),
    /// A number that must be positive is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The data do not fill a single batch.
    #[error("batch = {batch} is larger than the training set of {samples} samples")]
    BatchLargerThanData {
        /// Samples per batch.
        batch: usize,
        /// Samples there are.
        samples: usize,
    },
    /// A batch cannot be made of whole groups.
    #[error("per_class = {per_class} does not divide batch = {batch}")]
    PerClassDoesNotDivide {
        /// Samples per class.
        per_class: usize,
        /// Samples per batch.
        batch: usize,
    },
    /// There are not enough classes for a batch.
    #[error(
        "per_class = {per_class} with {classes} classes in the training set fills at most {} places, but batch = \
         {batch}; raise per_class or lower batch",
        per_class * classes
    )]
    TooFewClasses {
        /// Samples per class.
        per_class: usize,
        /// Classes that occur in the training set.
        classes: usize,
        /// Samples per batch.
        batch: usize,
    },
    /// A rate or factor that is not a positive, finite number.
    #[error("{name} = {value} must be a positive number")]
    NotPositive {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// The number of steps does not fit 64 bits.
    #[error(
        "{epochs} epochs of {steps_per_epoch} steps are more steps than can be counted, or their generations are"
    )]
    TooLong {
        /// Epochs asked for.
        epochs: u64,
        /// Steps of each.
        steps_per_epoch: u64,
    },
    /// A step beyond the end of the run.
    #[error("step {step} is beyond the run, which has {total} steps")]
    StepOutOfRange {
        /// The step asked for.
        step: u64,
        /// Steps there are.
        total: u64,
    },
}

/// The plan of a run. Answers for any step in any order; asking along an epoch is cheap, since the order of the
/// epoch asked for last is kept.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    inputs: PlanInputs,
    samples: u32,
    /// Per class that occurs, by ascending label, its samples by ascending index.
    members: Vec<Vec<u32>>,
    steps_per_epoch: u64,
    epochs: u64,
    total_steps: u64,
    order: Option<EpochOrder>,
}

/// The samples of an epoch's batches, one batch after the other.
#[derive(Debug, Clone)]
struct EpochOrder {
    epoch: u64,
    indices: Vec<u32>,
}

impl BatchPlan {
    /// The plan over samples with these labels, in the order of the training set.
    ///
    /// # Errors
    /// Numbers from which no batch can be made; the words name the key to change.
    pub fn new(inputs: PlanInputs, labels: &[u8]) -> Result<Self, PlanError> {
        let samples = u32::try_from(labels.len()).map_err(|_| PlanError::TooManySamples(labels.len()))?;
        let members = members_by_class(labels);
        check(&inputs, labels.len(), members.len())?;
        let steps_per_epoch = (labels.len() / inputs.batch) as u64;
        let (epochs, per_generation) = match inputs.length {
            RunLength::Epochs(epochs) => {
                let total = epochs.checked_mul(steps_per_epoch);
                (epochs, total.ok_or(PlanError::TooLong { epochs, steps_per_epoch })?)
            }
            RunLength::Steps(steps) => (steps.div_ceil(steps_per_epoch), steps),
        };
        let total_steps = per_generation.checked_mul(inputs.generations);
        let total_steps = total_steps.ok_or(PlanError::TooLong { epochs, steps_per_epoch })?;
        Ok(Self { inputs, samples, members, steps_per_epoch, epochs, total_steps, order: None })
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Steps of each generation.
    pub fn steps_per_generation(&self) -> u64 {
        self.total_steps / self.inputs.generations.max(1)
    }

    /// Batches in an epoch: `floor(samples / batch)` for both samplers.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Epochs of the run, or of each of its generations; the last may be cut short by an exact number of steps.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// Samples in the training set.
    pub fn samples(&self) -> usize {
        self.samples as usize
    }

    /// What the plan was made from.
    pub fn inputs(&self) -> &PlanInputs {
        &self.inputs
    }

    /// Whether an epoch ends with a step, be it that the run or its generation does.
    pub fn ends_epoch(&self, step: u64) -> bool {
        let within = step % self.steps_per_generation().max(1) + 1;
        within.is_multiple_of(self.steps_per_epoch) || within == self.steps_per_generation()
    }

    /// Learning rate of an epoch.
    pub fn lr(&self, epoch: u64) -> f64 {
        let PlanInputs { lr0, warmup_epochs: warmup, ref schedule, .. } = self.inputs;
        if epoch < warmup {
            return lr0 * (epoch + 1) as f64 / warmup as f64;
        }
        match schedule {
            LrSchedule::Cosine => {
                let done = (epoch - warmup) as f64 / self.epochs.saturating_sub(warmup).max(1) as f64;
                lr0 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            LrSchedule::Multistep { milestones, factor } => {
                milestones.iter().filter(|&&milestone| milestone <= epoch).fold(lr0, |lr, _| lr * factor)
            }
            LrSchedule::Constant => lr0,
        }
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// A step at or beyond [`Self::total_steps`].
    pub fn batch(&mut self, step: u64) -> Result<PlannedBatch, PlanError> {
        if step >= self.total_steps {
            return Err(PlanError::StepOutOfRange { step, total: self.total_steps });
        }
        let (generation, within) = (step / self.steps_per_generation(), step % self.steps_per_generation());
        let position_in_epoch = within % self.steps_per_epoch;
        let epoch_within = within / self.steps_per_epoch;
        let lr = self.lr(epoch_within);
        let epoch = generation * self.epochs + epoch_within;
        let order = match self.order.take() {
            Some(order) if order.epoch == epoch => order,
            _ => EpochOrder { epoch, indices: self.epoch_indices(epoch) },
        };
        let start = position_in_epoch as usize * self.inputs.batch;
        let indices = order.indices[start..start + self.inputs.batch].to_vec();
        self.order = Some(order);
        let hash = batch_hash(epoch, step, &indices);
        Ok(PlannedBatch { step, epoch, position_in_epoch, lr, indices, hash })
    }

    /// The samples of all batches of an epoch.
    fn epoch_indices(&mut self, epoch: u64) -> Vec<u32> {
        let rng = epoch_rng(self.inputs.seed, epoch);
        match self.inputs.sampler {
            Sampler::Shuffle => {
                let mut indices: Vec<u32> = (0..self.samples).collect();
                shuffle(&mut indices, &mut { rng });
                indices
            }
            Sampler::PerClass { per_class } => self.per_class_indices(rng, per_class),
        }
    }

    /// The epoch of the sampler per class, replayed from its start, because the order of the classes persists from
    /// batch to batch.
    fn per_class_indices(&mut self, mut rng: SplitMix64, per_class: usize) -> Vec<u32> {
        let mut classes: Vec<usize> = (0..self.members.len()).collect();
        let mut indices = Vec::with_capacity(self.steps_per_epoch as usize * self.inputs.batch);
        for _ in 0..self.steps_per_epoch {
            shuffle(&mut classes, &mut rng);
            for &class in &classes[..self.inputs.batch / per_class] {
                draw(&mut self.members[class], per_class, &mut rng, &mut indices);
            }
        }
        indices
    }
}

/// 64-bit FNV-1a over epoch, step and indices, each as a little-endian u64. Peers send it with what they say, so
/// that two that train on different batches notice.
pub fn batch_hash(epoch: u64, step: u64, indices: &[u32]) -> u64 {
    let numbers = [epoch, step].into_iter().chain(indices.iter().map(|&index| u64::from(index)));
    fnv1a(numbers.flat_map(u64::to_le_bytes))
}

fn check(inputs: &PlanInputs, samples: usize, classes: usize) -> Result<(), PlanError> {
    let batch = inputs.batch;
    let length = match inputs.length {
        RunLength::Epochs(epochs) => ("epochs", epochs),
        RunLength::Steps(steps) => ("steps", steps),
    };
    for (name, number) in [("batch", batch as u64), length, ("generations", inputs.generations)] {
        if number == 0 {
            return Err(PlanError::Zero(name));
        }
    }
    let factor = match inputs.schedule {
        LrSchedule::Multistep { factor, .. } => factor,
        LrSchedule::Cosine | LrSchedule::Constant => 1.0,
    };
    for (name, value) in [("lr", inputs.lr0), ("factor", factor)] {
        if !value.is_finite() || value <= 0.0 {
            return Err(PlanError::NotPositive { name, value });
        }
    }
    if samples == 0 {
        return Err(PlanError::NoSamples);
    }
    if batch > samples {
        return Err(PlanError::BatchLargerThanData { batch, samples });
    }
    match inputs.sampler {
        Sampler::PerClass { per_class: 0 } => Err(PlanError::Zero("per_class")),
        Sampler::PerClass { per_class } if !batch.is_multiple_of(per_class) => {
            Err(PlanError::PerClassDoesNotDivide { per_class, batch })
        }
        Sampler::PerClass { per_class } if batch / per_class > classes => {
            Err(PlanError::TooFewClasses { per_class, classes, batch })
        }
        Sampler::PerClass { .. } | Sampler::Shuffle => Ok(()),
    }
}

/// The samples of each class that occurs.
fn members_by_class(labels: &[u8]) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); usize::from(u8::MAX) + 1];
    for (index, &label) in (0..).zip(labels) {
        members[usize::from(label)].push(index);
    }
    members.retain(|indices| !indices.is_empty());
    members
}

/// The generator of an epoch. Seed and epoch are mixed one after the other: neighbouring seeds and epochs share
/// nothing.
fn epoch_rng(seed: u64, epoch: u64) -> SplitMix64 {
    let seed = SplitMix64::new(seed).next_u64();
    SplitMix64::new(SplitMix64::new(seed ^ epoch).next_u64())
}

/// Fisher and Yates' shuffle from the last place down.
fn shuffle<T>(items: &mut [T], rng: &mut SplitMix64) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.below(last as u64 + 1) as usize);
    }
}

/// Draws `count` members of a class into `out`: without replacement if the class has enough, else with. `members`
/// is left in its ascending order.
fn draw(members: &mut [u32], count: usize, rng: &mut SplitMix64, out: &mut Vec<u32>) {
    let size = members.len();
    if size < count {
        out.extend((0..count).map(|_| members[rng.below(size as u64) as usize]));
        return;
    }
    // The first places of a shuffle in place, undone afterwards: copying the class for each draw would make an
    // epoch quadratic in the number of samples.
    let swaps: Vec<(usize, usize)> =
        (0..count).map(|place| (place, place + rng.below((size - place) as u64) as usize)).collect();
    for &(place, other) in &swaps {
        members.swap(place, other);
    }
    out.extend_from_slice(&members[..count]);
    for &(place, other) in swaps.iter().rev() {
        members.swap(place, other);
    }
}

#[cfg(test)]
mod tests;
