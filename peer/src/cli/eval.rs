//! `cohort-peer eval`.

use candle_core::{DType, Device, Tensor};
use cohort_proto::dataset::{self, DatasetKind, Split};
use cohort_proto::spec::{Augment, DataSpec, Normalize, SamplerSpec};

use super::{EvalArgs, print_json};
use crate::data;
use crate::data::loader::EvaluationBatches;
use crate::error::PeerError;
use crate::evaluate::{EvaluateError, evaluate};
use crate::learner::METHOD_PREFIXES;
use crate::models::{
    ImageShape, Network, Params, Pass, StateDict, StateError, Strictness, build, registry, state,
};

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
        batch: BATCH,
        sampler: SamplerSpec::Shuffle,
        augment: Augment::None,
        normalize,
    };
    let samples = dataset::load(&data::folder(&spec, None)?, kind, Split::Test, None)?;
    let image = ImageShape::from(&samples.images);
    let mut params = Params::new(0, "eval", DType::F32, &Device::Cpu)?;
    let network = build(&args.arch, image, kind.classes(), &mut params)?;
    let unusable = |error: StateError| PeerError::Weights(format!("{}: {error}", args.weights.display()));
    let weights = state::load_safetensors(&args.weights).map_err(unusable)?;
    params.load(&weights, Strictness::Lenient { prefixes: &METHOD_PREFIXES }).map_err(unusable)?;

    let normalisation = data::normalisation(&spec, image.channels)?;
    let batches = EvaluationBatches::new(&samples, &normalisation, BATCH)?;
    let logits = logits_of(&*network, batches)?;
    if let Some(path) = args.logits {
        write_logits(&path, &logits, kind.classes())?;
    }
    let scores: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let labels: Vec<usize> = samples.labels.iter().map(|&label| usize::from(label)).collect();
    let unusable = |error: EvaluateError| PeerError::Weights(format!("{}: {error}", args.weights.display()));
    print_json(&evaluate(&scores, kind.classes(), &labels).map_err(unusable)?)
}

/// [N, classes], row after row, in file order.
fn logits_of(network: &dyn Network, batches: EvaluationBatches<'_>) -> Result<Vec<f32>, PeerError> {
    let mut logits = Vec::new();
    for batch in batches {
        let images = Tensor::from_vec(batch.images, batch.shape.as_slice(), &Device::Cpu)?;
        let output = network.forward(&images, &mut Pass::eval())?;
        logits.extend(output.logits.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(logits)
}

fn write_logits(path: &std::path::Path, logits: &[f32], classes: usize) -> Result<(), PeerError> {
    let tensor = Tensor::from_slice(logits, (logits.len() / classes.max(1), classes), &Device::Cpu)?;
    let tensors = StateDict::from([("logits".to_owned(), tensor)]);
    state::save_safetensors(path, &tensors).map_err(|error| PeerError::Output(format!("--logits: {error}")))
}
