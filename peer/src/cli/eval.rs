//! `cohort-peer eval`.

use candle_core::{Device, Tensor};
use cohort_proto::dataset::{Samples, Split};
use serde::Serialize;

use super::network::{Source, Weights};
use super::{EvalArgs, print_json};
use crate::error::PeerError;
use crate::evaluate::distance::{Distances, Features, distances};
use crate::evaluate::groups::{Grouped, grouped};
use crate::evaluate::{EvaluateError, Metrics, answers, ensemble, evaluate};
use crate::learner::{Scores, widened};
use crate::models::{ImageShape, StateDict, state};

/// K of the distances between similar classes.
const RANKS: usize = 5;

pub(super) fn run(args: EvalArgs) -> Result<(), PeerError> {
    let first = Weights { arch: args.arch, file: args.weights };
    let all: Vec<Weights> = std::iter::once(first).chain(args.with).collect();
    all.iter().try_for_each(Weights::check)?;
    let source = Source::new(args.data)?;
    let classes = source.kind.classes();
    if !args.groups.is_empty() && args.groups.len() != classes {
        return Err(PeerError::Usage(format!(
            "--groups has a group for {} classes, but {} has {classes}; give one number a class, such as 0,0,1",
            args.groups.len(),
            source.kind
        )));
    }
    let samples = source.samples(Split::Test, None)?;
    let labels: Vec<usize> = samples.labels.iter().map(|&label| usize::from(label)).collect();
    let task = Task { classes, labels: &labels, groups: &args.groups };
    let mut worths = Vec::with_capacity(all.len());
    let mut logits = Vec::with_capacity(all.len());
    for (place, weights) in all.iter().enumerate() {
        let scores = scores(weights, &source, &samples)?;
        if let Some(path) = args.logits.as_ref().filter(|_| place == 0) {
            write_logits(path, &scores.logits, classes)?;
        }
        worths.push(task.worth(&scores).map_err(|error| weights.unusable(error))?);
        logits.push(widened(&scores.logits));
    }
    let mut networks = all.iter().zip(worths);
    let Some((_, first)) = networks.next() else { return Ok(()) };
    let company = match described(networks) {
        others if others.is_empty() => None,
        others => {
            let members: Vec<&[f64]> = logits.iter().map(Vec::as_slice).collect();
            let company = task.company(others, &members);
            Some(company.map_err(|error| PeerError::Weights(error.to_string()))?)
        }
    };
    print_json(&Report { first, company })
}

fn described<'a>(networks: impl Iterator<Item = (&'a Weights, Worth)>) -> Vec<Other> {
    let other = |(weights, worth): (&Weights, Worth)| Other {
        arch: weights.arch.clone(),
        weights: weights.file.display().to_string(),
        worth,
    };
    networks.map(other).collect()
}

fn scores(weights: &Weights, source: &Source, samples: &Samples) -> Result<Scores, PeerError> {
    let model = weights.load(ImageShape::from(&samples.images), Some(source.kind.classes()))?;
    Scores::of(&model, samples, &source.normalisation(samples)?, &Device::Cpu)
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    first: Worth,
    #[serde(flatten)]
    company: Option<Company>,
}

/// What several networks are worth together.
#[derive(Debug, Serialize)]
struct Company {
    /// Those after the first.
    others: Vec<Other>,
    /// Samples to which two networks give the same answer, percent: a row and a column each, in the order of the command
    /// line.
    agreement: Vec<Vec<f64>>,
    ensemble: Ensembles,
}

#[derive(Debug, Serialize)]
struct Other {
    arch: String,
    weights: String,
    #[serde(flatten)]
    worth: Worth,
}

#[derive(Debug, Serialize)]
struct Ensembles {
    mean_of_probabilities: Metrics,
    mean_of_logits: Metrics,
}

/// What one network is worth.
#[derive(Debug, Serialize)]
struct Worth {
    /// The network's own.
    #[serde(flatten)]
    network: Metrics,
    /// Top-1 of the classifier of each stage, first stage first, in percent; the last is the network's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stage_top1: Vec<f64>,
    /// Top-1 of the logits that the aggregator mixes of all stages, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregated_top1: Option<f64>,
    /// How far classes lie from those that the network takes them for, by classes and by samples, unless all samples are
    /// of one class.
    #[serde(flatten)]
    distances: Option<Distances>,
    /// What the groups of classes show, if there are any.
    #[serde(flatten)]
    groups: Option<Grouped>,
    /// Samples by label (rows) and answer (columns).
    confusion: Vec<Vec<u64>>,
}

/// What networks are measured by.
struct Task<'a> {
    classes: usize,
    labels: &'a [usize],
    groups: &'a [u32],
}

impl Task<'_> {
    fn worth(&self, scores: &Scores) -> Result<Worth, EvaluateError> {
        let Self { classes, labels, groups } = *self;
        let (logits, features) = (widened(&scores.logits), widened(&scores.features));
        let features = Features { values: &features, width: scores.width };
        let top1 = |logits: &Vec<f32>| Ok(evaluate(&widened(logits), classes, labels)?.top1);
        let network = evaluate(&logits, classes, labels)?;
        let distances = several(distances(features, &logits, classes, labels, RANKS))?;
        let by_groups = || several(grouped(features, &logits, classes, labels, groups));
        Ok(Worth {
            network,
            stage_top1: scores.stages.iter().map(top1).collect::<Result<_, _>>()?,
            aggregated_top1: scores.aggregated.as_ref().map(top1).transpose()?,
            distances,
            groups: if groups.is_empty() { None } else { by_groups()? },
            confusion: answers::confusion(&logits, classes, labels)?,
        })
    }

    fn company(&self, others: Vec<Other>, members: &[&[f64]]) -> Result<Company, EvaluateError> {
        let worth = |logits: &[f64]| evaluate(logits, self.classes, self.labels);
        let ensemble = Ensembles {
            mean_of_probabilities: worth(&ensemble::mean_of_softmax(members, self.classes)?)?,
            mean_of_logits: worth(&ensemble::mean_of_logits(members)?)?,
        };
        Ok(Company { others, agreement: answers::agreement(members, self.classes)?, ensemble })
    }
}

/// Nothing where there is one class only.
fn several<T>(of_classes: Result<T, EvaluateError>) -> Result<Option<T>, EvaluateError> {
    match of_classes {
        Err(EvaluateError::FewClasses { .. }) => Ok(None),
        other => other.map(Some),
    }
}

fn write_logits(path: &std::path::Path, logits: &[f32], classes: usize) -> Result<(), PeerError> {
    let tensor = Tensor::from_slice(logits, (logits.len() / classes.max(1), classes), &Device::Cpu)?;
    let tensors = StateDict::from([("logits".to_owned(), tensor)]);
    state::save_safetensors(path, &tensors).map_err(|error| PeerError::Output(format!("--logits: {error}")))
}
