//! `cohort-peer eval`.

use candle_core::{DType, Device, Tensor};
use cohort_proto::dataset::{self, DatasetKind, Split};
use cohort_proto::spec::{Augment, DataSpec, Normalize, SamplerSpec};
use serde::Serialize;

use super::{EvalArgs, print_json};
use crate::data;
use crate::data::loader::EvaluationBatches;
use crate::error::PeerError;
use crate::evaluate::{EvaluateError, Metrics, evaluate};
use crate::learner::{AGGREGATOR_PREFIX, AUXILIARY_PREFIX, Additions, METHOD_PREFIXES, Model};
use crate::models::{ImageShape, Params, Pass, StateDict, StateError, Strictness, registry, state};

/// Images that pass through the network at a time: enough to keep the kernels busy, little memory.
const BATCH: usize = 250;

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
        batch: BATCH,
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
    let batches = EvaluationBatches::new(&samples, &normalisation, BATCH)?;
    let scores = scores(&model, batches)?;
    if let Some(path) = args.logits {
        write_logits(&path, &scores.logits, kind.classes())?;
    }
    let labels: Vec<usize> = samples.labels.iter().map(|&label| usize::from(label)).collect();
    let unusable = |error: EvaluateError| PeerError::Weights(format!("{}: {error}", args.weights.display()));
    print_json(&scores.worth(kind.classes(), &labels).map_err(unusable)?)
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

/// Logits [N, classes], row after row, in file order: of the network, of every stage if the weights hold their
/// classifiers, and of the aggregator if they hold one.
#[derive(Debug, Default)]
struct Scores {
    logits: Vec<f32>,
    stages: Vec<Vec<f32>>,
    aggregated: Option<Vec<f32>>,
}

impl Scores {
    fn worth(&self, classes: usize, labels: &[usize]) -> Result<Worth, EvaluateError> {
        let worth = |logits: &[f32]| {
            let logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
            evaluate(&logits, classes, labels)
        };
        let top1 = |logits: &Vec<f32>| Ok(worth(logits)?.top1);
        Ok(Worth {
            network: worth(&self.logits)?,
            stage_top1: self.stages.iter().map(top1).collect::<Result<_, _>>()?,
            aggregated_top1: self.aggregated.as_ref().map(top1).transpose()?,
        })
    }
}

fn scores(model: &Model, batches: EvaluationBatches<'_>) -> Result<Scores, PeerError> {
    let numbers = |logits: &Tensor| logits.flatten_all()?.to_vec1::<f32>();
    let mut scores = Scores::default();
    for batch in batches {
        let images = Tensor::from_vec(batch.images, batch.shape.as_slice(), &Device::Cpu)?;
        let outputs = model.forward(&images, &mut Pass::eval())?;
        scores.logits.extend(numbers(&outputs.logits)?);
        scores.stages.resize(outputs.stage_logits.len(), Vec::new());
        for (all, logits) in scores.stages.iter_mut().zip(&outputs.stage_logits) {
            all.extend(numbers(logits)?);
        }
        if let Some(aggregated) = &outputs.aggregated {
            scores.aggregated.get_or_insert_default().extend(numbers(aggregated)?);
        }
    }
    Ok(scores)
}

fn write_logits(path: &std::path::Path, logits: &[f32], classes: usize) -> Result<(), PeerError> {
    let tensor = Tensor::from_slice(logits, (logits.len() / classes.max(1), classes), &Device::Cpu)?;
    let tensors = StateDict::from([("logits".to_owned(), tensor)]);
    state::save_safetensors(path, &tensors).map_err(|error| PeerError::Output(format!("--logits: {error}")))
}
