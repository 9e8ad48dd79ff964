//! Logits, loss, gradients and running statistics against PyTorch's, from the files that `testdata/generate.py` made.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use cohort_proto::rng::{SplitMix64, key_of};

use super::{network, values};
use crate::models::state::load_safetensors;
use crate::models::{
    Aggregator, AuxiliaryClassifier, ImageShape, Network, Params, Pass, StateDict, Strictness,
};

/// Entries of a gradient that a file holds if it does not say otherwise.
const SAMPLES: usize = 256;

/// Auxiliary classifiers and aggregator of a network.
struct Staged {
    auxiliary: AuxiliaryClassifier,
    aggregator: Aggregator,
}

impl Staged {
    fn new(network: &dyn Network, params: &mut Params) -> Self {
        let auxiliary = network.auxiliary_classifier(params.scope("auxiliary_classifier")).unwrap();
        let (stages, d) = (network.stage_widths().len(), network.feature_width());
        Self { auxiliary, aggregator: Aggregator::new(params.scope("aggregator"), stages, d).unwrap() }
    }
}

/// What is classified, by name: the network's logits, or those of every stage and the aggregated ones.
fn logits(
    network: &dyn Network,
    staged: Option<&Staged>,
    x: &Tensor,
    pass: &mut Pass,
) -> BTreeMap<String, Tensor> {
    let output = network.forward(x, pass).unwrap();
    let Some(staged) = staged else { return BTreeMap::from([("logits".to_owned(), output.logits)]) };
    let branches = staged.auxiliary.forward(&output.stages, pass).unwrap();
    let (mut features, mut logits): (Vec<_>, Vec<_>) =
        branches.into_iter().map(|branch| (branch.feature, branch.logits)).unzip();
    features.push(output.feature);
    logits.push(output.logits);
    let weights = staged.aggregator.forward(&features, pass).unwrap().exp().unwrap();
    let weights = weights.broadcast_div(&weights.sum_keepdim(1).unwrap()).unwrap();
    let weighted = logits.iter().enumerate().map(|(k, z)| z.broadcast_mul(&weights.narrow(1, k, 1)?));
    let aggregated = weighted.reduce(|sum, term| sum? + term?).unwrap().unwrap();
    let stages = logits.into_iter().enumerate().map(|(k, logits)| (format!("logits.{k}"), logits));
    stages.chain([("aggregated".to_owned(), aggregated)]).collect()
}

#[test]
fn networks_agree_with_pytorch_in_f64() {
    check_folder(DType::F64, 1e-9);
}

#[test]
fn networks_agree_with_pytorch_in_f32() {
    check_folder(DType::F32, 1e-5);
}

fn check_folder(dtype: DType, tolerance: f64) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/models/testdata");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    assert!(files.len() >= 5, "each family, with and without stages");
    for file in files {
        check(&file, dtype, tolerance);
    }
}

fn check(file: &Path, dtype: DType, tolerance: f64) {
    let expected = load_safetensors(file).unwrap();
    let about = metadata(file);
    let sides: Vec<usize> = about["image"].split('x').map(|side| side.parse().unwrap()).collect();
    let image = ImageShape { channels: sides[0], height: sides[1], width: sides[2] };
    let samples = about.get("samples").map_or(SAMPLES, |samples| samples.parse().unwrap());
    let (classes, batch): (usize, usize) =
        (about["classes"].parse().unwrap(), about["batch"].parse().unwrap());
    let (mut params, network) = network(&about["arch"], image, classes, dtype);
    let staged = about.contains_key("stages").then(|| Staged::new(&*network, &mut params));
    params.load(&filled(&params), Strictness::Strict).unwrap();
    let x = fill("input.bias", &[batch, image.channels, image.height, image.width]).affine(2.0, 0.0).unwrap();
    let x = x.to_dtype(dtype).unwrap();

    let mut found = BTreeMap::new();
    let mut pass = Pass::train();
    let all = logits(&*network, staged.as_ref(), &x, &mut pass);
    let losses = all.values().map(|logits| cross_entropy(logits, classes));
    let loss = losses.reduce(|sum, loss| (sum + loss).unwrap()).unwrap();
    for (name, gradient) in params.gradients(&loss.backward().unwrap()) {
        found.insert(format!("grad.{name}"), sampled(&gradient, samples));
    }
    found.insert("loss".to_owned(), loss);
    let evaluated = logits(&*network, staged.as_ref(), &x, &mut Pass::eval());
    found.extend(evaluated.into_iter().map(|(name, logits)| (format!("{name}.eval"), logits)));
    found.extend(all.into_iter().map(|(name, logits)| (format!("{name}.train"), logits)));
    pass.commit().unwrap();
    let statistics = params.buffers().iter().filter(|(name, _)| name.contains("running"));
    found.extend(statistics.map(|(name, var)| (format!("after.{name}"), var.as_tensor().clone())));

    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &found {
        assert_close(&format!("{} {name}", file.display()), tensor, &expected[name], tolerance);
    }
}

/// Relative to the largest entry, as a sum of many numbers deserves.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(0f64, |max, value| max.max(value.abs()));
    let worst = found.iter().zip(&expected).fold(0f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= tolerance * scale, "{what}: off by {worst:e} where the largest entry is {scale:e}");
}

/// Mean cross-entropy with the labels 0, 1, 2, ... in turn.
fn cross_entropy(logits: &Tensor, classes: usize) -> Tensor {
    let batch = logits.dims()[0];
    let labels: Vec<u32> = (0..batch).map(|n| (n % classes) as u32).collect();
    let labels = Tensor::from_vec(labels, (batch, 1), &Device::Cpu).unwrap();
    let log_sum = logits.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
    (log_sum - logits.gather(&labels, 1).unwrap()).unwrap().mean_all().unwrap()
}

fn sampled(gradient: &Tensor, samples: usize) -> Tensor {
    let flat = values(gradient);
    let stride = flat.len().div_ceil(samples);
    let kept: Vec<f64> = flat.into_iter().step_by(stride).collect();
    Tensor::new(kept, &Device::Cpu).unwrap()
}

/// Every tensor of `params` with the numbers that the script gives it.
fn filled(params: &Params) -> StateDict {
    let reals = params.state_dict().unwrap().into_iter().filter(|(_, tensor)| tensor.dtype().is_float());
    reals.map(|(name, tensor)| (name.clone(), fill(&name, tensor.dims()))).collect()
}

/// The script's function of the same name.
fn fill(name: &str, shape: &[usize]) -> Tensor {
    let mut rng = SplitMix64::keyed(&[7, key_of(name)]);
    let count: usize = shape.iter().product();
    let weight = shape.len() > 1 && name.ends_with("weight");
    let bound = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    let around = if name.ends_with("bias") || name.ends_with("running_mean") { 0.0 } else { 1.0 };
    let number = |unit: f64| if weight { (2.0 * unit - 1.0) * bound } else { around + unit - 0.5 };
    let numbers: Vec<f64> = (0..count).map(|_| number(rng.unit_f64())).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn metadata(file: &Path) -> HashMap<String, String> {
    let bytes = std::fs::read(file).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap()
}
