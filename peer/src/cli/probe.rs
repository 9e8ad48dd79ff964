//! `cohort-peer probe`.

use candle_core::Device;
use cohort_proto::dataset::{Samples, Split};
use serde::Serialize;

use super::network::{Source, Weights};
use super::{ProbeArgs, print_json};
use crate::error::PeerError;
use crate::evaluate::{EvaluateError, Metrics, evaluate};
use crate::learner::{Model, Scores, widened};
use crate::models::ImageShape;
use crate::probe::{Labelled, Probe, ProbeConfig};

/// That of the classifier's SGD.
const MOMENTUM: f64 = 0.9;

pub(super) fn run(args: ProbeArgs) -> Result<(), PeerError> {
    let weights = Weights { arch: args.arch, file: args.weights };
    weights.check()?;
    let source = Source::new(args.data)?;
    let training = source.samples(Split::Train, args.limit.map(|limit| limit as usize))?;
    let test = source.samples(Split::Test, None)?;
    let network = weights.load(ImageShape::from(&training.images), None)?;
    let (seen, unseen) = (features(&network, &source, &training)?, features(&network, &source, &test)?);

    let config = ProbeConfig {
        epochs: u64::from(args.epochs),
        batch: args.batch as usize,
        lr: args.lr,
        momentum: MOMENTUM,
    };
    let (classes, width) = (source.kind.classes(), network.network.feature_width());
    let mut probe = Probe::new(width, classes, args.seed)?;
    probe.train(Labelled { features: &seen, labels: &training.labels }, &config)?;
    let worth = |features: &[f32], samples: &Samples| -> Result<Metrics, PeerError> {
        let labels: Vec<usize> = samples.labels.iter().map(|&label| usize::from(label)).collect();
        let logits = widened(&probe.logits(features)?);
        evaluate(&logits, classes, &labels).map_err(|error| unusable(&weights, error))
    };
    print_json(&Report {
        dataset: source.kind.name(),
        classes,
        width,
        train_samples: training.labels.len(),
        train_top1: worth(&seen, &training)?.top1,
        seed: args.seed,
        epochs: config.epochs,
        test: worth(&unseen, &test)?,
    })
}

/// What the network makes of the samples, in front of its own classifier.
fn features(network: &Model, source: &Source, samples: &Samples) -> Result<Vec<f32>, PeerError> {
    let scores = Scores::of(network, samples, &source.normalisation(samples)?, &Device::Cpu)?;
    Ok(scores.features)
}

fn unusable(weights: &Weights, error: EvaluateError) -> PeerError {
    match error {
        EvaluateError::NotFinite { .. } => PeerError::Usage(format!(
            "the classifier over {} has left the numbers; lower --lr",
            weights.file.display()
        )),
        other => weights.unusable(other),
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    dataset: &'static str,
    classes: usize,
    /// Of a feature.
    width: usize,
    train_samples: usize,
    train_top1: f64,
    seed: u64,
    epochs: u64,
    /// On the test images.
    #[serde(flatten)]
    test: Metrics,
}
