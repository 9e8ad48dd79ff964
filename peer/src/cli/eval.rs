//! `cohort-peer eval`.

use candle_core::{DType, Device, Tensor};
use cohort_proto::dataset::{self, DatasetKind, Split};
use cohort_proto::spec::{Augment, DataSpec, Normalize, SamplerSpec};
use serde::Serialize;

use super::{EvalArgs, print_json};
use crate::data;
use crate::error::PeerError;
use crate::evaluate::{EvaluateError, Metrics, evaluate};
use crate::learner::{
    AGGREGATOR_PREFIX, AUXILIARY_PREFIX, Additions, METHOD_PREFIXES, Model, Scores, widened,
};
use crate::models::{ImageShape, Params, StateDict, StateError, Strictness, registry, state};

pub(super) fn run(args: EvalArgs) -> Result<(), PeerError> {
    let kind: DatasetKind =
        args.dataset.parse().map_err(|error: dataset::UnknownDataset| PeerError::Usage(error.to_string()))?;
    registry::check_name(&args.arch).map_err(|error| PeerError::Usage(error.to_string()))?;
    let normalize = match args.mean.is_empty() {
        true => Normalize::Dataset,
        false => Normalize::By { mean: args.mean, std: args.std },
    };
    let spec = DataSpec {
        dataset: kind,
        path: args.data,
        train_limit: None,
        validation: 0,
        // Nothing is trained.
        batch: 1,
        sampler: SamplerSpec::Shuffle,
        augment: Augment::None,
        normalize,
    };
    let samples = dataset::load(&data::folder(&spec, None)?, kind, Split::Test, None)?;
    let image = ImageShape::from(&samples.images);
    let unusable = |error: StateError| PeerError::Weights(format!("{}: {error}", args.weights.display()));
    let weights = state::load_safetensors(&args.weights).map_err(unusable)?;
    let has = |prefix: &str| weights.keys().any(|name| name.contains(prefix));
    let (stages, aggregator) = (has(AUXILIARY_PREFIX), has(AGGREGATOR_PREFIX));
    let additions = Additions { stages, ..Additions::default() };
    let params = Params::new(0, "eval", DType::F32, &Device::Cpu)?;
    let mut model = Model::build(&args.arch, (image, kind.classes()), additions, params)?;
    model.params.load(&weights, Strictness::Lenient { prefixes: &METHOD_PREFIXES }).map_err(unusable)?;
    // An aggregator that nobody trained weighs at random.
    model.aggregator = model.aggregator.filter(|_| aggregator);

    let normalisation = data::normalisation(&spec, image.channels)?;
    let scores = Scores::of(&model, &samples, &normalisation, &Device::Cpu)?;
    if let Some(path) = args.logits {
        write_logits(&path, &scores.logits, kind.classes())?;
    }
    let labels: Vec<usize> = samples.labels.iter().map(|&label| usize::from(label)).collect();
    let unusable = |error: EvaluateError| PeerError::Weights(format!("{}: {error}", args.weights.display()));
    print_json(&worth(&scores, kind.classes(), &labels).map_err(unusable)?)
}

/// What is printed.
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
}

fn worth(scores: &Scores, classes: usize, labels: &[usize]) -> Result<Worth, EvaluateError> {
    let worth = |logits: &[f32]| evaluate(&widened(logits), classes, labels);
    let top1 = |logits: &Vec<f32>| Ok(worth(logits)?.top1);
    Ok(Worth {
        network: worth(&scores.logits)?,
        stage_top1: scores.stages.iter().map(top1).collect::<Result<_, _>>()?,
        aggregated_top1: scores.aggregated.as_ref().map(top1).transpose()?,
    })
}

fn write_logits(path: &std::path::Path, logits: &[f32], classes: usize) -> Result<(), PeerError> {
    let tensor = Tensor::from_slice(logits, (logits.len() / classes.max(1), classes), &Device::Cpu)?;
    let tensors = StateDict::from([("logits".to_owned(), tensor)]);
    state::save_safetensors(path, &tensors).map_err(|error| PeerError::Output(format!("--logits: {error}")))
}
