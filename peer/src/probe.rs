//! The linear-probe transfer test: how well a linear classifier tells the classes of another data set from the features of
//! a network that stays as it is, as in Contrastive Representation Distillation (Tian et al., ICLR 2020, section 4.1).
//!
//! The classifier minimises the cross-entropy by SGD over shuffled batches, at a rate that falls to a tenth after 30, 60 and
//! 90 % of the epochs. The seed decides its first weights and all orders, so a probe can be repeated bit for bit.

use candle_core::{DType, Device, Tensor};
use cohort_proto::plan::{BatchPlan, LrSchedule, PlanInputs, RunLength, Sampler};

use crate::error::PeerError;
use crate::kernels::threads::compute;
use crate::methods::cross_entropy::cross_entropy;
use crate::models::layers::Linear;
use crate::models::{Params, Pass};
use crate::optim::{Sgd, SgdConfig};

/// The name of the classifier's parameters.
const CLASSIFIER: &str = "classifier";

/// Rows that are classified at a time.
const ROWS: usize = 4096;

/// How the classifier is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeConfig {
    /// Passes over the samples.
    pub epochs: u64,
    /// Samples in a batch, at most as many as there are; what does not fill the last batch is left out of an epoch.
    pub batch: usize,
    /// The first learning rate.
    pub lr: f64,
    /// Momentum, without look-ahead.
    pub momentum: f64,
}

/// Features of labelled samples.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// `[N, D]`, row after row.
    pub features: &'a [f32],
    /// N classes.
    pub labels: &'a [u8],
}

/// A linear classifier of features.
pub struct Probe {
    params: Params,
    classifier: Linear,
    width: usize,
    seed: u64,
}

impl Probe {
    /// One for features of width D, with the weights that a seed draws.
    ///
    /// # Errors
    /// A width of 0, or the device fails.
    pub fn new(width: usize, classes: usize, seed: u64) -> Result<Self, PeerError> {
        if width == 0 {
            return Err(PeerError::Internal("features of width 0 cannot be classified".to_owned()));
        }
        let mut params = Params::new(seed, "probe", DType::F32, &Device::Cpu)?;
        let classifier = Linear::new(params.scope(CLASSIFIER), width, classes)?;
        Ok(Self { params, classifier, width, seed })
    }

    /// Trains it.
    ///
    /// # Errors
    /// Features that are not those of the labels, labels that are no classes, numbers from which no plan can be made.
    pub fn train(&mut self, samples: Labelled<'_>, config: &ProbeConfig) -> Result<(), PeerError> {
        let Labelled { features, labels } = samples;
        if labels.len().checked_mul(self.width) != Some(features.len()) {
            let (numbers, width) = (features.len(), self.width);
            let problem = format!("{numbers} numbers are not {} features of width {width}", labels.len());
            return Err(PeerError::Internal(problem));
        }
        let tenths = |tenths: u64| (config.epochs.saturating_mul(tenths)).div_ceil(10);
        let inputs = PlanInputs {
            seed: self.seed,
            sampler: Sampler::Shuffle,
            batch: config.batch.min(labels.len()),
            length: RunLength::Epochs(config.epochs),
            generations: 1,
            lr0: config.lr,
            schedule: LrSchedule::Multistep { milestones: [3, 6, 9].map(tenths).to_vec(), factor: 0.1 },
            warmup_epochs: 0,
        };
        let mut plan = BatchPlan::new(inputs, labels)?;
        let momentum = config.momentum;
        let sgd = SgdConfig { momentum, nesterov: false, weight_decay: 0.0, clip_norm: 0.0 };
        let mut optimizer = Sgd::new(&self.params, sgd)?;
        compute(|| -> Result<(), PeerError> {
            for step in 0..plan.total_steps() {
                let batch = plan.batch(step)?;
                self.step(samples, &batch.indices, &mut optimizer, batch.lr)?;
            }
            Ok(())
        })
    }

    fn step(
        &self,
        samples: Labelled<'_>,
        indices: &[u32],
        optimizer: &mut Sgd,
        lr: f64,
    ) -> candle_core::Result<()> {
        let mut rows = Vec::with_capacity(indices.len() * self.width);
        let mut labels = Vec::with_capacity(indices.len());
        for index in indices.iter().map(|index| *index as usize) {
            rows.extend_from_slice(&samples.features[index * self.width..(index + 1) * self.width]);
            labels.push(u32::from(samples.labels[index]));
        }
        let rows = Tensor::from_vec(rows, (indices.len(), self.width), &Device::Cpu)?;
        let labels = Tensor::from_vec(labels, indices.len(), &Device::Cpu)?;
        let loss = cross_entropy(&self.classifier.forward(&rows, &Pass::train())?, &labels)?;
        optimizer.step(&self.params, self.params.gradients(&loss.backward()?), lr)?;
        Ok(())
    }

    /// The logits `[N, C]` of features `[N, D]`, row after row.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f32>, PeerError> {
        let mut logits = Vec::new();
        for rows in features.chunks(ROWS * self.width) {
            let rows = Tensor::from_slice(rows, (rows.len() / self.width, self.width), &Device::Cpu)?;
            let of_rows = compute(|| self.classifier.forward(&rows, &Pass::eval()))?;
            logits.extend(of_rows.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{StateDict, Strictness};

    const SAMPLES: usize = 12;
    const WIDTH: usize = 3;
    const CLASSES: usize = 4;

    /// `x[n,d] = sin(1.3n + 2.1d) + 0.1d`.
    fn features() -> Vec<f32> {
        let cells = (0..SAMPLES).flat_map(|n| (0..WIDTH).map(move |d| (n as f64, d as f64)));
        cells.map(|(n, d)| ((1.3 * n + 2.1 * d).sin() + 0.1 * d) as f32).collect()
    }

    /// `n² mod 4`, but 3 for every fifth.
    fn labels() -> Vec<u8> {
        (0..SAMPLES as u8).map(|n| if n % 5 == 0 { 3 } else { n * n % 4 + n % 3 / 2 }).collect()
    }

    fn config(batch: usize) -> ProbeConfig {
        ProbeConfig { epochs: 10, batch, lr: 0.5, momentum: 0.9 }
    }

    fn trained(seed: u64, batch: usize) -> Probe {
        let mut probe = Probe::new(WIDTH, CLASSES, seed).unwrap();
        let (features, labels) = (features(), labels());
        probe.train(Labelled { features: &features, labels: &labels }, &config(batch)).unwrap();
        probe
    }

    /// Against `tests/pytorch/probe.py`, in f64: ten steps of all samples from weights 0.
    #[test]
    fn ends_where_pytorch_does() {
        let mut probe = Probe::new(WIDTH, CLASSES, 5).unwrap();
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let start = StateDict::from([
            ("classifier.weight".to_owned(), zeros(&[CLASSES, WIDTH])),
            ("classifier.bias".to_owned(), zeros(&[CLASSES])),
        ]);
        probe.params.load(&start, Strictness::Strict).unwrap();
        let (features, labels) = (features(), labels());
        // More than there are: all of them.
        probe.train(Labelled { features: &features, labels: &labels }, &config(64)).unwrap();
        let logits = probe.logits(&features).unwrap();
        for (got, expected) in logits.iter().zip(PYTORCH) {
            assert!((f64::from(*got) - expected).abs() < 2e-6, "{got}, expected {expected}");
        }
    }

    /// Logits of the first three samples.
    const PYTORCH: [f64; 12] = [
        -0.119400383568,
        -0.148067679391,
        -0.654419247524,
        0.921887310482,
        -0.249622031726,
        0.180427235075,
        -0.228776363733,
        0.297971160384,
        -0.357524849865,
        1.470624068122,
        -0.232865435643,
        -0.880233782615,
    ];

    #[test]
    fn the_seed_decides_everything() {
        let bits = |probe: &Probe| -> Vec<u32> {
            probe.logits(&features()).unwrap().into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&trained(5, 4)), bits(&trained(5, 4)));
        assert_ne!(bits(&trained(5, 4)), bits(&trained(6, 4)));
    }

    #[test]
    fn features_of_other_samples_are_refused() {
        let mut probe = Probe::new(WIDTH, CLASSES, 5).unwrap();
        let (features, labels) = (features(), labels());
        let mut refused = |labels: &[u8]| {
            probe.train(Labelled { features: &features, labels }, &config(4)).unwrap_err().to_string()
        };
        assert!(refused(&labels[1..]).contains("36 numbers are not 11 features of width 3"));
        assert!(!refused(&[9; SAMPLES]).is_empty(), "there is no class 9");
    }
}
