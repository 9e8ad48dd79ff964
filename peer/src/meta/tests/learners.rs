//! The meta-update of real networks, in f32 with the fast kernels and in f64, against double backward through the
//! unrolled steps (PyTorch, f64; `tests/pytorch/hypergradient_networks.py` writes the reference).

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use cohort_proto::rng::{SplitMix64, key_of};

use crate::learner::{Additions, Learner, Model, Outputs};
use crate::meta::adjoint::Descent;
use crate::meta::in_process::update_all;
use crate::meta::update::{R_F32, R_F64};
use crate::meta::{OfLearner, Outcome, Settings};
use crate::methods::{Heard, LMclParams, Method};
use crate::models::{ImageShape, Params, Pass, StateDict, Strictness};
use crate::optim::SgdConfig;
use crate::step::load::Input;

const BATCH: usize = 16;
const CLASSES: usize = 5;
const LR: f64 = 0.05;
const DECAY: f64 = 5e-4;

/// `fill` of `models/testdata/generate.py`, rounded to f32.
fn fill(name: &str, shape: &[usize]) -> Tensor {
    let mut rng = SplitMix64::keyed(&[7, key_of(name)]);
    let count: usize = shape.iter().product();
    let weight = shape.len() > 1 && name.ends_with("weight");
    let bound = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    let around = if name.ends_with("bias") || name.ends_with("running_mean") { 0.0 } else { 1.0 };
    let number = |unit: f64| if weight { (2.0 * unit - 1.0) * bound } else { around + unit - 0.5 };
    let numbers: Vec<f32> = (0..count).map(|_| number(rng.unit_f64()) as f32).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn learner(index: usize, arch: &str) -> Learner {
    let image = ImageShape { channels: 1, height: 8, width: 8 };
    let params = LMclParams { feat_dim: 8, match_dim: 7, ..LMclParams::default() };
    let method = Method::LMcl(params);
    let params = Params::new(7, arch, DType::F32, &Device::Cpu).unwrap();
    let model = Model::build(arch, (image, CLASSES), Additions::from(&method), params).unwrap();
    let reals = model.params.state_dict().unwrap().into_iter().filter(|(_, t)| t.dtype().is_float());
    let filled: StateDict = reals.map(|(name, t)| (name.clone(), fill(&name, t.dims()))).collect();
    model.params.load(&filled, Strictness::Strict).unwrap();
    let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: DECAY, clip_norm: 0.0 };
    Learner::new(index, model, method, (config, config)).unwrap()
}

fn batch() -> (Tensor, Tensor) {
    let images =
        fill("input.bias", &[BATCH, 64]).affine(2.0, 0.0).unwrap().reshape((BATCH, 1, 8, 8)).unwrap();
    let labels: Vec<u32> = (0..BATCH).map(|n| (n % CLASSES) as u32).collect();
    (images, Tensor::new(labels, &Device::Cpu).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn settings(r: f64) -> Settings {
    let descent = Descent { lr: LR, momentum: 0.9, weight_decay: DECAY };
    Settings { inner_steps: 2, descent, r, compat_a1: false, statistics: true }
}

fn meta_update(learners: &mut [Learner], precision: DType) {
    let outcome = meta_update_with(learners, precision, &batch());
    assert!(matches!(outcome, Outcome::Learnt { .. }));
}

fn meta_update_with(
    learners: &mut [Learner],
    precision: DType,
    (images, labels): &(Tensor, Tensor),
) -> Outcome {
    let (images, labels) = (images.clone(), labels.clone());
    let input = Input { step: 0, epoch: 0, indices: vec![], images, labels, weights: None };
    let of = |learner| OfLearner::new(learner, &input, precision).unwrap();
    let mut peers: Vec<OfLearner<'_>> = learners.iter_mut().map(of).collect();
    let r = if precision == DType::F64 { R_F64 } else { R_F32 };
    update_all(&mut peers, &settings(r)).unwrap()
}

/// A training step of all networks, as the peers of a cohort take it.
fn step(learners: &mut [Learner], (images, labels): &(Tensor, Tensor)) {
    let mut passes: Vec<Pass> = learners.iter().map(|_| Pass::train()).collect();
    let forward = learners.iter().zip(&mut passes);
    let outputs: Vec<Outputs> =
        forward.map(|(learner, pass)| learner.model.forward(images, pass).unwrap()).collect();
    let constants = |said: &[Tensor]| said.iter().map(Tensor::detach).collect();
    let said = outputs.iter().enumerate().map(|(index, said)| Heard {
        embeddings: constants(&said.embeddings),
        matching: constants(&said.matching),
        aggregated: said.aggregated.as_ref().map(Tensor::detach),
        ..Heard::nothing(index)
    });
    let said: Vec<Heard> = said.collect();
    for (me, (learner, pass)) in learners.iter_mut().zip(passes).enumerate() {
        let heard: Vec<Heard> = said.iter().filter(|other| other.index != me).cloned().collect();
        let share = learner.method.loss(me, said.len(), outputs[me].own(), &heard, labels, None).unwrap();
        let loss = share.total.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        assert!(loss.is_finite(), "the loss is {loss}");
        let gradients = learner.model.params.gradients(&share.total.backward().unwrap());
        learner.optimizer.step(&learner.model.params, gradients, LR).unwrap();
        pass.commit().unwrap();
    }
}

/// Without a positive pair every contrastive term is 0; with one sample every similarity matrix has one entry.
#[test]
fn steps_and_meta_updates_with_few_samples_or_classes_stay_finite() {
    let (images, _) = batch();
    let batches: [(&str, &[u32]); 4] = [
        ("no positive pair", &[0, 1, 2, 3, 4]),
        ("one class", &[2; 6]),
        ("one pair", &[1, 1, 0]),
        ("one sample", &[3]),
    ];
    for (name, labels) in batches {
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        let batch = (images.narrow(0, 0, labels.dims()[0]).unwrap(), labels);
        for precision in [DType::F32, DType::F64] {
            let mut learners = vec![learner(0, "resnet6"), learner(1, "wrn_10_1"), learner(2, "resnet8")];
            for _ in 0..2 {
                step(&mut learners, &batch);
                let outcome = meta_update_with(&mut learners, precision, &batch);
                assert!(matches!(outcome, Outcome::Learnt { .. }), "{name} in {precision:?}: {outcome:?}");
            }
            for learner in &learners {
                for (weight, tensor) in learner.model.params.state_dict().unwrap() {
                    let finite = values(&tensor).iter().all(|x| x.is_finite());
                    assert!(finite, "{name} in {precision:?}: {weight}");
                }
            }
        }
    }
}

/// What a fresh optimiser was given: its velocity after the step, without the weight decay.
fn hypergradient(learner: &Learner, before: &StateDict) -> Vec<(String, Vec<f64>)> {
    let velocity = learner.matching_optimizer.state_dict().unwrap();
    let of = |(name, speed): (&String, &Tensor)| {
        let name = name.trim_end_matches(".momentum_buffer").to_owned();
        let phi = values(&before[&name]);
        let gradient = values(speed).iter().zip(phi).map(|(v, phi)| v - DECAY * phi).collect();
        (name, gradient)
    };
    velocity.iter().map(of).collect()
}

/// Relative Euclidean error and cosine, all networks together.
fn against_reference(precision: DType) -> (f64, f64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/meta/testdata");
    let exact = candle_core::safetensors::load(folder.join("networks.safetensors"), &Device::Cpu).unwrap();
    let mut learners = vec![learner(0, "resnet8"), learner(1, "wrn_10_1")];
    let before: Vec<_> = learners.iter().map(|l| l.model.params.state_dict().unwrap()).collect();
    meta_update(&mut learners, precision);
    let (mut gap, mut size, mut own, mut dot) = (0.0, 0.0, 0.0, 0.0);
    for (i, (learner, before)) in learners.iter().zip(&before).enumerate() {
        for (name, found) in hypergradient(learner, before) {
            for (x, y) in found.iter().zip(values(&exact[&format!("{i}.{name}")])) {
                gap += (x - y) * (x - y);
                size += y * y;
                own += x * x;
                dot += x * y;
            }
        }
    }
    let (error, cosine) = ((gap / size).sqrt(), dot / (size * own).sqrt());
    eprintln!("{precision:?}: relative error {error:.2e}, 1 - cosine {:.2e}", 1.0 - cosine);
    (error, cosine)
}

#[test]
fn real_networks_learn_what_double_backward_says() {
    // The optimiser that the gradient is read from computes in f32.
    let (error, _) = against_reference(DType::F64);
    assert!(error < 1e-5, "f64: {error:e}");
    let (error, cosine) = against_reference(DType::F32);
    assert!(error < 1e-2 && cosine > 0.999, "f32: {error:e}, {cosine}");
}

#[test]
fn only_matching_and_running_statistics_change() {
    for precision in [DType::F32, DType::F64] {
        let mut learners = vec![learner(0, "resnet8"), learner(1, "wrn_10_1")];
        let expected: Vec<_> = learners.iter().map(after_one_more_update).collect();
        meta_update(&mut learners, precision);
        for (learner, expected) in learners.iter().zip(&expected) {
            let after = learner.model.params.state_dict().unwrap();
            for (name, tensor) in &after {
                let (found, expected) = (values(tensor), values(&expected[name]));
                if name.starts_with("match.") {
                    assert_ne!(found, expected, "{name} {precision:?}");
                } else if name.contains("running") && precision == DType::F64 {
                    let scale = expected.iter().fold(1e-3f64, |max, x| max.max(x.abs()));
                    let gap = found.iter().zip(&expected).fold(0f64, |max, (a, b)| max.max((a - b).abs()));
                    assert!(gap < 1e-5 * scale, "{name}: {gap:e}");
                } else {
                    assert_eq!(found, expected, "{name} {precision:?}");
                }
            }
        }
    }
}

/// All tensors with the running statistics of one training pass more.
fn after_one_more_update(learner: &Learner) -> StateDict {
    let before = learner.model.params.state_dict().unwrap();
    let mut pass = Pass::recording();
    learner.model.forward(&batch().0, &mut pass).unwrap();
    pass.commit().unwrap();
    let after = learner.model.params.state_dict().unwrap();
    learner.model.params.restore(&before).unwrap();
    after
}
