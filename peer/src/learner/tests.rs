//! A model with everything that layer-wise methods add: shapes, precision, gates, state.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::models::Pass;
use crate::models::{StateDict, state};

const TINY: ImageShape = ImageShape { channels: 1, height: 8, width: 8 };
const CONFIG: SgdConfig = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, clip_norm: 0.0 };
/// Everything at once.
const ALL: Additions = Additions {
    stages: true,
    embedding: Some(6),
    matching: Some(7),
    fn_norm: None,
    radius: None,
    gate: true,
    map: None,
};

fn model(arch: &str, additions: Additions, dtype: DType) -> Model {
    let params = Params::new(7, "a", dtype, &Device::Cpu).unwrap();
    Model::build(arch, (TINY, 5), additions, params).unwrap()
}

fn learner(arch: &str) -> Learner {
    Learner::new(0, model(arch, ALL, DType::F32), Method::Alone, (CONFIG, CONFIG)).unwrap()
}

/// A batch of fixed numbers between -1 and 1.
fn images(batch: usize, dtype: DType) -> Tensor {
    let numbers: Vec<f64> = (0..batch * TINY.image_len()).map(|i| (i as f64 * 0.7).sin()).collect();
    Tensor::from_vec(numbers, (batch, 1, 8, 8), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Every tensor of the outputs with a name.
fn named(outputs: &Outputs) -> Vec<(String, &Tensor)> {
    let mut all = vec![("logits".to_owned(), &outputs.logits)];
    all.extend(outputs.aggregated.iter().map(|tensor| ("aggregated".to_owned(), tensor)));
    all.extend(outputs.score.iter().map(|tensor| ("score".to_owned(), tensor)));
    for (name, tensors) in
        [("stage", &outputs.stage_logits), ("embed", &outputs.embeddings), ("match", &outputs.matching)]
    {
        all.extend(tensors.iter().enumerate().map(|(k, tensor)| (format!("{name}.{k}"), tensor)));
    }
    all
}

/// A smooth function with a slope at every output but the aggregated logits; sums alone would cancel in batch norm.
fn objective(outputs: &Outputs) -> Tensor {
    let mut total = Tensor::zeros((), outputs.logits.dtype(), &Device::Cpu).unwrap();
    for (name, tensor) in named(outputs).iter().filter(|(name, _)| name != "aggregated") {
        let slope = name.bytes().map(f64::from).sum::<f64>().sin();
        let weights: Vec<f64> = (0..tensor.elem_count()).map(|i| (i as f64 * slope).cos()).collect();
        let weights = Tensor::from_vec(weights, tensor.shape(), &Device::Cpu).unwrap();
        let weights = weights.to_dtype(tensor.dtype()).unwrap();
        total = (total + (tensor.tanh().unwrap() * weights).unwrap().sum_all().unwrap()).unwrap();
    }
    total
}

#[test]
fn every_stage_says_everything() {
    let unit = |tensor: &Tensor| {
        let lengths = values(&tensor.sqr().unwrap().sum(1).unwrap());
        lengths.iter().all(|length| (length - 1.0).abs() < 1e-5)
    };
    for (arch, stages) in [("resnet6", 2), ("resnet8", 3), ("wrn_10_1", 3), ("resnet10", 4)] {
        let model = model(arch, ALL, DType::F32);
        for mut pass in [Pass::train(), Pass::eval()] {
            let outputs = model.forward(&images(4, DType::F32), &mut pass).unwrap();
            let counts = [&outputs.stage_logits, &outputs.embeddings, &outputs.matching].map(Vec::len);
            assert_eq!(counts, [stages; 3], "{arch}");
            assert_eq!(values(&outputs.stage_logits[stages - 1]), values(&outputs.logits), "{arch}");
            assert!(outputs.stage_logits.iter().all(|z| z.dims() == [4, 5]), "{arch}");
            assert_eq!(outputs.aggregated.as_ref().unwrap().dims(), [4, 5]);
            let score = outputs.score.as_ref().unwrap();
            assert!(score.dims() == [4, 1] && values(score).iter().all(|score| *score >= 0.0), "{arch}");
            assert!(outputs.embeddings.iter().all(|v| v.dims() == [4, 6] && unit(v)), "{arch}");
            assert!(outputs.matching.iter().all(|u| u.dims() == [4, 7] && unit(u)), "{arch}");
        }
    }
}

#[test]
fn what_a_method_does_not_need_is_not_built() {
    let one = Additions { embedding: Some(6), ..Additions::default() };
    let contrast = model("resnet8", one, DType::F32);
    let outputs = contrast.forward(&images(2, DType::F32), &mut Pass::train()).unwrap();
    assert_eq!((outputs.embeddings.len(), outputs.stage_logits.len()), (1, 0));
    let added = |name: &&String| METHOD_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    assert_eq!(contrast.params.trainable().keys().filter(added).count(), 4);
    let alone = model("resnet8", Additions::default(), DType::F32);
    assert_eq!(alone.params.trainable().keys().filter(added).count(), 0);
}

/// The fast kernels in f32 against candle's own operations in f64, at the same weights.
#[test]
fn single_precision_agrees_with_double() {
    for arch in ["resnet6", "resnet8", "wrn_10_1", "resnet10"] {
        let single = model(arch, ALL, DType::F32);
        let double = single.twin(DType::F64).unwrap();
        // The four stages end in maps of one pixel, which batch norm divides by the spread of the batch alone.
        let x = images(16, DType::F32);
        let outputs = single.forward(&x, &mut Pass::train()).unwrap();
        let expected = double.forward(&x.to_dtype(DType::F64).unwrap(), &mut Pass::train()).unwrap();
        for ((name, found), (_, expected)) in named(&outputs).into_iter().zip(named(&expected)) {
            let (found, expected) = (values(found), values(expected));
            let scale = expected.iter().fold(0f64, |max, value| max.max(value.abs()));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5 * scale, "{arch} {name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_twin_has_the_same_values_and_goes_its_own_way() {
    let single = model("resnet6", ALL, DType::F32);
    let mut pass = Pass::train();
    single.forward(&images(4, DType::F32), &mut pass).unwrap();
    pass.commit().unwrap();
    let before = single.params.state_dict().unwrap();
    let twin = single.twin(DType::F64).unwrap();
    let same = |a: &StateDict, b: &StateDict| {
        a.keys().eq(b.keys()) && a.iter().all(|(name, tensor)| values(tensor) == values(&b[name]))
    };
    assert!(same(&twin.params.state_dict().unwrap(), &before));
    assert!(twin.params.trainable().values().all(|var| var.dtype() == DType::F64));
    let mut pass = Pass::train();
    twin.forward(&images(4, DType::F64), &mut pass).unwrap();
    pass.commit().unwrap();
    assert!(same(&single.params.state_dict().unwrap(), &before), "the twin shares no storage");
    assert!(!same(&twin.params.state_dict().unwrap(), &before));
    twin.params.copy_from(&single.params).unwrap();
    assert!(same(&twin.params.state_dict().unwrap(), &before));
}

#[test]
fn a_snapshot_is_put_back_bit_by_bit() {
    let model = model("resnet6", ALL, DType::F32);
    let snapshot = model.params.state_dict().unwrap();
    for var in model.params.trainable().values().chain(model.params.buffers().values()) {
        var.set(&(var.as_tensor().ones_like().unwrap().to_dtype(var.dtype()).unwrap())).unwrap();
    }
    model.params.restore(&snapshot).unwrap();
    for (name, tensor) in model.params.state_dict().unwrap() {
        let bits = |tensor: &Tensor| values(tensor).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&tensor), bits(&snapshot[&name]), "{name}");
    }
    let mut short = snapshot;
    short.remove("fc.bias");
    assert!(model.params.restore(&short).unwrap_err().to_string().contains("`fc.bias`"));
}

#[test]
fn theta_phi_and_the_aggregator_are_all_there_is() {
    let model = model("resnet8", ALL, DType::F32);
    let theta: Vec<_> = model.theta().map(|(name, _)| name.as_str()).collect();
    let phi: Vec<_> = model.phi().map(|(name, _)| name.as_str()).collect();
    let expected = (0..3).flat_map(|k| [format!("match.{k}.bias"), format!("match.{k}.weight")]);
    assert_eq!(phi, expected.collect::<Vec<_>>());
    assert!(theta.contains(&"auxiliary_classifier.fc1.weight") && theta.contains(&"embed.2.0.bias"));
    let aggregator = model.params.trainable().keys().filter(|name| name.starts_with("aggregator."));
    assert_eq!(theta.len() + phi.len() + aggregator.count(), model.params.trainable().len());
    assert!(theta.is_sorted() && theta.iter().all(|name| !name.starts_with("aggregator.")));
}

#[test]
fn replayed_gates_give_the_same_bits_at_the_same_point() {
    // Rectifiers of the network, of the gate, of the branches and of the projection heads.
    for (arch, count) in
        [("resnet6", 6 + 2 + 2), ("resnet8", 8 + 6 + 3), ("wrn_10_1", 8 + 8 + 3), ("resnet10", 10 + 12 + 4)]
    {
        for dtype in [DType::F32, DType::F64] {
            let model = model(arch, ALL, dtype);
            let x = images(4, dtype);
            let mut pass = Pass::recording();
            let recorded = model.forward(&x, &mut pass).unwrap();
            let gates = pass.take_gates().unwrap();
            assert_eq!(gates.len(), count, "{arch}");
            let replayed = model.forward(&x, &mut Pass::replaying(&gates)).unwrap();
            let plain = model.forward(&x, &mut Pass::train()).unwrap();
            for ((name, a), ((_, b), (_, c))) in
                named(&recorded).into_iter().zip(named(&replayed).into_iter().zip(named(&plain)))
            {
                assert_eq!(values(a), values(b), "{arch} {name}");
                assert_eq!(values(a), values(c), "{arch} {name}");
            }
        }
    }
}

#[test]
fn gates_of_a_larger_network_are_refused_in_words() {
    let (model, x) = (model("resnet6", ALL, DType::F32), images(4, DType::F32));
    let mut pass = Pass::recording();
    for _ in 0..2 {
        model.forward(&x, &mut pass).unwrap();
    }
    let e = model.forward(&x, &mut Pass::replaying(&pass.take_gates().unwrap())).unwrap_err();
    assert!(e.to_string().contains("fewer rectifiers, 10, than the 20"), "{e}");
}

/// Central differences along a random direction, in f64: with replayed gates the objective is smooth, so that its
/// second differences are those of a smooth function as well.
#[test]
fn a_replayed_network_is_smooth() {
    for arch in ["resnet6", "resnet8", "wrn_10_1"] {
        let model = model(arch, ALL, DType::F64);
        let x = images(4, DType::F64);
        let mut pass = Pass::recording();
        model.forward(&x, &mut pass).unwrap();
        let gates = pass.take_gates().unwrap();
        let start = model.params.state_dict().unwrap();
        let evaluate = || objective(&model.forward(&x, &mut Pass::replaying(&gates)).unwrap());
        let gradients = model.params.gradients(&evaluate().backward().unwrap());
        let directions: Vec<(String, Tensor)> = (model.theta().chain(model.phi()))
            .enumerate()
            .map(|(n, (name, var))| {
                let numbers = (0..var.elem_count()).map(|i| ((i * 31 + n * 17) as f64 * 0.37).sin());
                let tensor = Tensor::from_vec(numbers.collect::<Vec<_>>(), var.shape(), &Device::Cpu);
                (name.clone(), tensor.unwrap())
            })
            .collect();
        let slope: f64 = directions
            .iter()
            .map(|(name, b)| values(&(&gradients[name] * b).unwrap().sum_all().unwrap())[0])
            .sum();
        let at = |t: f64| {
            for (name, b) in &directions {
                model.params.trainable()[name].set(&(&start[name] + (b * t).unwrap()).unwrap()).unwrap();
            }
            let value = values(&evaluate())[0];
            model.params.restore(&start).unwrap();
            value
        };
        let h = 1e-4;
        // Fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h.
        let difference = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let error = (difference - slope).abs() / slope.abs();
        assert!(error < 1e-6, "{arch}: {difference} and {slope}, relative {error:e}");
    }
}

#[test]
fn the_matching_has_its_own_optimiser() {
    let mut learner = learner("resnet6");
    let ones = |learner: &Learner, matching: bool| -> Vec<(String, Tensor)> {
        let all = learner.model.params.trainable().iter();
        let kept = all.filter(|(name, _)| name.starts_with(MATCHING_PREFIX) == matching);
        kept.map(|(name, var)| (name.clone(), var.ones_like().unwrap().detach())).collect()
    };
    let before = learner.model.params.state_dict().unwrap();
    let gradients = ones(&learner, false).into_iter().collect();
    learner.optimizer.step(&learner.model.params, gradients, 0.1).unwrap();
    let after = learner.model.params.state_dict().unwrap();
    for (name, tensor) in learner.model.params.trainable() {
        // Not even weight decay touches the matching in an ordinary step.
        let unchanged = values(tensor) == values(&before[name]);
        assert_eq!(unchanged, name.starts_with(MATCHING_PREFIX), "{name}");
    }
    let gradients = ones(&learner, true).into_iter().collect();
    learner.matching_optimizer.step(&learner.model.params, gradients, 0.1).unwrap();
    for (name, tensor) in learner.model.params.trainable() {
        let unchanged = values(tensor) == values(&after[name]);
        assert_eq!(unchanged, !name.starts_with(MATCHING_PREFIX), "{name}");
    }
    let wrong = ones(&learner, true).into_iter().collect();
    assert!(learner.optimizer.step(&learner.model.params, wrong, 0.1).is_err());
}

fn progress(arch: &str) -> crate::checkpoint::Progress {
    crate::checkpoint::Progress {
        steps_done: 1,
        run: cohort_proto::id::RunId(3),
        spec_hash: cohort_proto::id::Digest::of("spec"),
        peer: "a".into(),
        arch: arch.into(),
    }
}

#[test]
fn a_checkpoint_holds_both_optimisers_and_all_parameters() {
    let step = |learner: &mut Learner, factor: f64| {
        let (phi, theta) = learner
            .model
            .params
            .trainable()
            .iter()
            .map(|(name, var)| (name.clone(), (var.as_detached_tensor() * factor).unwrap()))
            .partition(|(name, _): &(String, Tensor)| name.starts_with(MATCHING_PREFIX));
        let mut pass = Pass::train();
        learner.model.forward(&images(4, DType::F32), &mut pass).unwrap();
        learner.optimizer.step(&learner.model.params, theta, 0.1).unwrap();
        learner.matching_optimizer.step(&learner.model.params, phi, 0.1).unwrap();
        pass.commit().unwrap();
    };
    let mut first = learner("resnet8");
    step(&mut first, 0.5);
    let folder = tempfile::tempdir().unwrap();
    let store = crate::checkpoint::Store::open(folder.path(), 1).unwrap();
    let (model, optimizer) = first.state().unwrap();
    assert_eq!(optimizer.len(), first.model.params.trainable().len());
    store.save(&progress("resnet8"), &model, &optimizer, 1).unwrap();

    let mut second = learner("resnet8");
    step(&mut second, -2.0);
    second.restore(&store.load(1).unwrap()).unwrap();
    for factor in [0.3, -0.2] {
        step(&mut first, factor);
        step(&mut second, factor);
    }
    let encoded = |learner: &Learner| {
        let (model, optimizer) = learner.state().unwrap();
        (state::encode(&model).unwrap(), state::encode(&optimizer).unwrap())
    };
    assert!(encoded(&first) == encoded(&second), "training goes on with the same bits");
}

#[test]
fn a_checkpoint_holds_what_is_remembered() {
    let peers = ["a", "b"].map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n")).concat();
    let text = format!(
        "[run]\nsteps = 1\n[data]\ndataset = \"mnist\"\nbatch = 2\n[method]\nname = \"mcl\"\nbank = true\nfeat_dim = 6\n{peers}"
    );
    let spec = RunSpec::parse(&text).unwrap();
    let fresh = || {
        let learner = Learner::build(&spec, 0, &spec.peers[0], TINY, Device::Cpu).unwrap();
        learner.with_memory(&spec, &[0, 0, 1, 1]).unwrap()
    };
    let banks = |learner: &Learner| learner.memory.as_ref().unwrap().banks().clone();
    let (mut first, mut second) = (fresh(), fresh());
    let v = [Tensor::ones((1, 6), DType::F32, &Device::Cpu).unwrap()];
    let heard = [crate::methods::Heard { embeddings: v.to_vec(), ..crate::methods::Heard::nothing(1) }];
    let memory = first.memory.as_mut().unwrap();
    let remembrance = memory.blend((0, &v), &heard, &[2]).unwrap();
    memory.remember(&remembrance);
    assert_ne!(banks(&second), banks(&first));
    let (model, optimizer) = first.state().unwrap();
    second.restore(&Checkpoint { progress: progress("resnet6"), model, optimizer }).unwrap();
    assert_eq!(banks(&second), banks(&first));
}
