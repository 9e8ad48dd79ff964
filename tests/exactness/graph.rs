//! Presets and mixed graphs: peers that exchange what their networks say end where one process ends that sums every term
//! of every network in one graph.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use cohort_peer::checkpoint::Checkpoint;
use cohort_peer::learner::{Additions, Learner, Model};
use cohort_peer::models::{ImageShape, Params, StateDict, state};
use cohort_proto::spec::{MethodSpec, PeerSpec, Role, RunSpec};
use cohort_tests::cluster;
use cohort_tests::joint::{Joint, max_difference};
use tempfile::TempDir;

use super::{TOLERANCE, data, difference, gap};

const STEPS: usize = 5;

/// Initial weights for a teacher: those that a network of its own seed begins with.
fn teacher(folder: &TempDir) -> String {
    let path = folder.path().join("t.safetensors");
    let mut params = Params::new(99, "t", candle_core::DType::F32, &Device::Cpu).unwrap();
    let image = ImageShape { channels: 1, height: 28, width: 28 };
    cohort_peer::models::build("wrn_10_1", image, 10, &mut params).unwrap();
    let weights: StateDict = params.state_dict().unwrap();
    std::fs::write(&path, state::encode(&weights).unwrap()).unwrap();
    format!("[[peer]]\nname = \"t\"\narch = \"wrn_10_1\"\nrole = \"teacher\"\ninit = {path:?}\n")
}

/// The same with a gate for an ensemble.
fn gated_teacher(folder: &TempDir) -> String {
    let path = folder.path().join("g.safetensors");
    let params = Params::new(98, "g", candle_core::DType::F32, &Device::Cpu).unwrap();
    let image = ImageShape { channels: 1, height: 28, width: 28 };
    let additions = Additions { gate: true, ..Additions::default() };
    let model = Model::build("resnet6", (image, 10), additions, params).unwrap();
    std::fs::write(&path, state::encode(&model.params.state_dict().unwrap()).unwrap()).unwrap();
    format!("[[peer]]\nname = \"g\"\narch = \"resnet6\"\nrole = \"teacher\"\ninit = {path:?}\n")
}

fn spec(graph: &str, peers: &str) -> RunSpec {
    spec_of("steps = 10", graph, peers)
}

fn spec_of(length: &str, graph: &str, peers: &str) -> RunSpec {
    let text = format!(
        "[run]\nseed = 3\n{length}\n[data]\ndataset = \"fashion-mnist\"\ntrain_limit = 60\nbatch = 20\n\
         {graph}\n[optim]\nlr = 0.05\n{peers}"
    );
    RunSpec::parse(&text).unwrap()
}

fn students(names: &[&str]) -> String {
    let architectures = ["resnet8", "wrn_10_1", "resnet6"];
    let one = |(i, name): (usize, &&str)| {
        format!("[[peer]]\nname = \"{name}\"\narch = \"{}\"\n", architectures[i % architectures.len()])
    };
    names.iter().enumerate().map(one).collect()
}

fn method(name: &str, rest: &str) -> String {
    format!("[method]\nname = \"{name}\"\n{rest}")
}

fn edge(rest: &str) -> String {
    format!("[[edge]]\n{rest}\n")
}

/// A teacher's DKD to two students, MCL between these, PS-KD of one of them.
fn mixed() -> String {
    edge("from = \"t\"\nto = [\"a\", \"b\"]\nterm = \"dkd\"\nwarmup = 2")
        + &edge("from = [\"a\", \"b\"]\nto = [\"a\", \"b\"]\nterm = \"mcl\"")
        + &edge("to = \"b\"\nterm = \"ps-kd\"")
}

/// Every term that an edge can have, with schedules and gates.
fn everything() -> String {
    let groups = "groups = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]";
    edge(&format!("to = \"a\"\nterm = \"anisotropic-label-smoothing\"\n{groups}"))
        + &edge("to = \"b\"\nterm = \"label-smoothing\"")
        + &edge("to = \"b\"\nterm = \"tolerant\"\nweight = 0.4")
        + &edge("to = \"c\"\nterm = \"hypersphere\"")
        + &edge("to = \"c\"\nterm = \"confidence-penalty\"")
        + &edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"\ngate = \"correct\"")
        + &edge("from = \"b\"\nto = \"a\"\nterm = \"kd\"\nschedule = \"linear\"")
        + &edge("from = \"c\"\nto = \"a\"\nterm = \"kd-fn\"\nschedule = \"progressive\"\ngate = \"correct\"")
        + &edge("from = [\"a\", \"b\"]\nto = \"c\"\nterm = \"logit-kd\"\ngate = \"negative-linear\"")
        + &edge("from = \"a\"\nto = \"c\"\nterm = \"dkd\"\nschedule = \"warm-up\"\nwarmup_epochs = 3")
}

#[test]
fn presets_with_a_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let peers = students(&["a", "b"]) + &teacher(&folder);
    for (name, rest) in [("kd", ""), ("dkd", "warmup = 2"), ("kd-fn", "form = \"paper\"")] {
        assert!(difference(&spec(&method(name, rest), &peers), STEPS) < TOLERANCE, "{name}");
    }
}

#[test]
fn presets_among_students() {
    let three = students(&["a", "b", "c"]);
    let kdcl = ["minlogit", "naive", "linear", "mean"]
        .map(|target| method("kdcl", &format!("target = \"{target}\"")));
    let others = [method("ps-kd", ""), method("ktg", ""), method("ktg", "gate = \"correct\"")];
    for graph in kdcl.into_iter().chain(others) {
        assert!(difference(&spec(&graph, &three), STEPS) < TOLERANCE, "{graph}");
    }
}

/// The ramp ends in the second epoch, which the third step begins.
#[test]
fn gated_ensembles() {
    let folder = tempfile::tempdir().unwrap();
    let rest = "ramp = 2\nt = 2.0";
    for peers in [students(&["a", "b"]), students(&["a", "b", "c"])] {
        assert!(difference(&spec(&method("one", rest), &peers), STEPS) < TOLERANCE);
    }
    let two = format!("{rest}\ntopology = \"groups\"\ngroup = 2");
    assert!(difference(&spec(&method("one", &two), &students(&["a", "b", "c", "d"])), STEPS) < TOLERANCE);
    // A teacher is a member that brings its gate and never changes; other edges stand beside.
    let more =
        edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"") + &edge("to = \"a\"\nterm = \"label-smoothing\"");
    let taught = students(&["a", "b"]) + &gated_teacher(&folder);
    // Step by step: the reference adds the ensemble last, which rounds otherwise.
    assert!(gap(&spec(&(method("one", rest) + "\n" + &more), &taught), STEPS).all < TOLERANCE);
}

/// The gate and its velocity are in a checkpoint, and its weights move.
#[test]
fn a_gated_ensemble_goes_on_from_checkpoints_in_the_same_bits() {
    let spec = spec(&method("one", "ramp = 2"), &students(&["a", "b"]));
    let half = goes_on_in_the_same_bits(&spec, (2, 5));
    for name in ["gate.0.weight", "gate.0.bias", "gate.1.weight", "gate.1.bias"] {
        let velocity = &half[0].optimizer[&format!("{name}.momentum_buffer")];
        let moved =
            velocity.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(moved > 1e-6, "{name}: {moved}");
    }
}

/// A third of the samples is held out, so that an epoch has two steps, and weights are made three times in five.
#[test]
fn weights_by_errors_on_held_out_samples() {
    let graph = "validation = 20\n".to_owned() + &method("kdcl", "target = \"general\"");
    let two = spec(&graph, &students(&["a", "b"]));
    assert!(gap(&two, STEPS).all < TOLERANCE);
    assert!(gap(&spec(&graph, &students(&["a", "b", "c"])), STEPS).all < TOLERANCE);
    // Weights are of an epoch, and are needed in the middle of it.
    let half = goes_on_in_the_same_bits(&two, (3, 5));
    let weights: Vec<Vec<f64>> =
        half.iter().map(|peer| peer.optimizer["kdcl.weights"].to_vec1::<f64>().unwrap()).collect();
    assert!(weights[0] == weights[1] && (weights[0].iter().sum::<f64>() - 1.0).abs() < 1e-12, "{weights:?}");
    assert!((weights[0][0] - 0.5).abs() > 1e-4, "{weights:?}");
    // A teacher and three: who does not learn from anybody says what it makes of the samples all the same.
    let folder = tempfile::tempdir().unwrap();
    let four = spec(&graph, &(students(&["a", "b", "c"]) + &teacher(&folder)));
    let half = goes_on_in_the_same_bits(&four, (3, 5));
    assert_eq!(half[2].optimizer["kdcl.weights"].dims(), [4]);
    assert!(!half[3].optimizer.contains_key("kdcl.weights"));
}

/// With and without a layer between the map and its discriminator; rates at which a wrong gradient would be seen.
#[test]
fn adversaries() {
    let rest = "lr_g = 0.01\nlr_d = 0.01";
    let narrow = format!("{rest}\nchannels = 16");
    for (rest, peers) in
        [(rest, ["a", "b"].as_slice()), (&narrow, &["a", "b"]), (rest, &["a", "b", "d", "e"])]
    {
        // Maps of one size: none of the networks has two stages.
        let peers_of_run = students(peers).replace("resnet6", "resnet14");
        let run = spec(&method("afd", rest), &peers_of_run);
        let trace = cluster::trace(&run, &data(), STEPS).unwrap();
        let mut joint = Joint::new(&run, &data()).unwrap();
        for _ in 0..STEPS {
            joint.step().unwrap();
        }
        for (states, (model, kept)) in trace.iter().zip(joint.states().unwrap()) {
            let (of_peer, kept_by_peer) = states.last().unwrap();
            assert!(kept.keys().any(|name| name.starts_with("adversary.discriminator.")));
            let far =
                [max_difference(of_peer, &model).unwrap(), max_difference(kept_by_peer, &kept).unwrap()];
            eprintln!("afd x{}: {far:?}", peers.len());
            assert!(far.iter().all(|(far, _)| *far < TOLERANCE), "{far:?}");
        }
        let logits = edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"\nt = 3.0");
        if peers.len() == 2 && rest != narrow {
            let alone = logits + &edge("from = \"b\"\nto = \"a\"\nterm = \"kl\"\nt = 3.0");
            let without = cluster::train(&spec(&alone, &peers_of_run), &data(), STEPS).unwrap();
            let (far, _) = max_difference(&trace[0].last().unwrap().0, &without[0]).unwrap();
            assert!(far > 0.01, "the adversary changes nothing: {far}");
        }
    }
}

/// Discriminators and both their optimisers are in a checkpoint.
#[test]
fn adversaries_go_on_from_checkpoints_in_the_same_bits() {
    let spec = spec(&method("afd", "channels = 16\nlr_g = 0.01\nlr_d = 0.01"), &students(&["a", "b"]));
    let half = goes_on_in_the_same_bits(&spec, (2, 5));
    let steps = &half[1].optimizer["adversary.of_discriminator.step"];
    assert_eq!(steps.to_scalar::<i64>().unwrap(), 2);
}

/// Checkpoints after the first steps, from which training goes on to the bits of a run without a break.
fn goes_on_in_the_same_bits(spec: &RunSpec, (first, all): (usize, usize)) -> Vec<Arc<Checkpoint>> {
    let whole = cluster::train_from(spec, &data(), &[], all).unwrap();
    let half = cluster::train_from(spec, &data(), &[], first).unwrap();
    let half: Vec<_> = half.into_iter().map(Arc::new).collect();
    let resumed = cluster::train_from(spec, &data(), &half, all - first).unwrap();
    for (whole, resumed) in whole.iter().zip(&resumed) {
        let bytes = |tensors: &BTreeMap<_, _>| state::encode(tensors).unwrap();
        assert!(bytes(&whole.model) == bytes(&resumed.model));
        assert!(bytes(&whole.optimizer) == bytes(&resumed.optimizer));
    }
    half
}

/// Step by step: the reference adds the contrastive terms pair by pair, which rounds otherwise.
#[test]
fn couplings_of_neighbours() {
    let four = students(&["a", "b", "c", "d"]);
    for (name, rest) in [
        ("dml", "topology = \"ring\""),
        ("mcl", "topology = \"star\"\nlogit_kd = \"all\""),
        ("mcl", "topology = \"groups\"\ngroup = 2"),
    ] {
        assert!(gap(&spec(&method(name, rest), &four), STEPS).all < TOLERANCE, "{name} {rest}");
    }
}

#[test]
fn mixed_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let peers = students(&["a", "b"]) + &teacher(&folder);
    assert!(gap(&spec(&mixed(), &peers), STEPS).all < TOLERANCE);
    assert!(gap(&spec(&everything(), &students(&["a", "b", "c"])), STEPS).all < TOLERANCE);
}

/// What a network said of each sample is part of its checkpoint.
#[test]
fn a_mixed_graph_goes_on_from_checkpoints_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(&mixed(), &(students(&["a", "b"]) + &teacher(&folder)));
    let whole = cluster::train_from(&spec, &data(), &[], 6).unwrap();
    let half = cluster::train_from(&spec, &data(), &[], 4).unwrap();
    let half: Vec<_> = half.into_iter().map(Arc::new).collect();
    assert!(half[1].optimizer.contains_key("past") && !half[0].optimizer.contains_key("past"));
    let resumed = cluster::train_from(&spec, &data(), &half, 2).unwrap();
    for (whole, resumed) in whole.iter().zip(&resumed) {
        let bytes = |tensors: &BTreeMap<_, _>| state::encode(tensors).unwrap();
        assert!(bytes(&whole.model) == bytes(&resumed.model));
        assert!(bytes(&whole.optimizer) == bytes(&resumed.optimizer));
    }
}

/// Steps of a generation in these tests: less than two epochs.
const GENERATION: u64 = 5;

fn generations(graph: &str, count: u64) -> RunSpec {
    let length = format!("steps = {GENERATION}\ngenerations = {count}");
    spec_of(&length, graph, &students(&["a", "b"]))
}

/// Every generation begins with fresh weights and learns from the last one's.
#[test]
fn generations_learn_from_those_before() {
    let graphs = [
        method("self-kd", ""),
        method("generations", "alpha = 0.3\nt = 2.0"),
        method("self-kd", "term = \"kd-fn\""),
        method("tsd", "k = 3"),
        method("ps-kd", "") + &edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"\ngenerations = \"later\""),
    ];
    for graph in graphs {
        assert!(difference(&generations(&graph, 2), 2 * GENERATION as usize) < TOLERANCE, "{graph}");
    }
}

#[test]
fn a_generation_is_trained_like_one_by_itself() {
    let two = generations(&method("self-kd", ""), 2);
    let first = cluster::train(&two, &data(), GENERATION as usize).unwrap();
    let alone = cluster::train(&generations(&method("alone", ""), 1), &data(), GENERATION as usize).unwrap();
    assert_eq!(max_difference(&first[0], &alone[0]).unwrap().0, 0.0, "the first has no teacher");
    let begun = cluster::train(&two, &data(), GENERATION as usize + 1).unwrap();
    let (far, _) = max_difference(&begun[0], &first[0]).unwrap();
    assert!(far > 0.1, "the second begins with other weights: {far}");
}

#[test]
fn generations_go_on_from_checkpoints_in_the_same_bits() {
    let spec = generations(&method("generations", ""), 3);
    let whole = cluster::train_from(&spec, &data(), &[], 13).unwrap();
    // In the middle of the second, and at its end.
    for first in [7, 10] {
        let half = cluster::train_from(&spec, &data(), &[], first).unwrap();
        let half: Vec<_> = half.into_iter().map(Arc::new).collect();
        assert!(half[0].optimizer.keys().any(|name| name.starts_with("before.")));
        let resumed = cluster::train_from(&spec, &data(), &half, 13 - first).unwrap();
        for (whole, resumed) in whole.iter().zip(&resumed) {
            let bytes = |tensors: &BTreeMap<_, _>| state::encode(tensors).unwrap();
            assert!(bytes(&whole.model) == bytes(&resumed.model), "from {first}");
            assert!(bytes(&whole.optimizer) == bytes(&resumed.optimizer), "from {first}");
        }
    }
}

/// Every run file that comes with the project trains, with few images and weights made here for teachers.
#[test]
fn the_run_files_of_the_project_train() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/runs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut spec = RunSpec::load(&path).unwrap();
        assert!(!spec.graph().edges.is_empty(), "{}", path.display());
        (spec.data.train_limit, spec.data.batch) = (Some(120), 20);
        spec.data.validation = spec.data.validation.min(40);
        if let MethodSpec::LMcl(method) = &mut spec.method {
            method.meta.freq = 0;
        }
        let bank = match &mut spec.method {
            MethodSpec::Mcl(method) => method.bank.as_mut(),
            MethodSpec::LMcl(method) => method.bank.as_mut(),
            _ => None,
        };
        bank.into_iter().for_each(|bank| bank.negatives = 30);
        let weights = tempfile::tempdir().unwrap();
        for index in 0..spec.peers.len() {
            if spec.peers[index].role == Role::Student {
                continue;
            }
            let file = weights.path().join(format!("{index}.safetensors"));
            let student = PeerSpec { role: Role::Student, init: None, ..spec.peers[index].clone() };
            let image = ImageShape { channels: 1, height: 28, width: 28 };
            let built = Learner::build(&spec, index, &student, image, Device::Cpu).unwrap();
            std::fs::write(&file, state::encode(&built.model.params.state_dict().unwrap()).unwrap()).unwrap();
            spec.peers[index].init = Some(file);
        }
        let trained = cluster::train(&spec, &data(), 3).unwrap();
        assert_eq!(trained.len(), spec.peers.len());
        count += 1;
    }
    assert!(count >= 22, "only {count} run files");
}

/// A network that nobody teaches trains in company as it does by itself.
#[test]
fn what_no_edge_reaches_is_not_changed_by_the_others() {
    let edges = edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"");
    let together = cluster::train(&spec(&edges, &students(&["a", "b"])), &data(), STEPS).unwrap();
    let alone = cluster::train(&spec(&method("alone", ""), &students(&["a", "b"])), &data(), STEPS).unwrap();
    assert_eq!(max_difference(&together[0], &alone[0]).unwrap().0, 0.0);
    assert!(max_difference(&together[1], &alone[1]).unwrap().0 > 0.0);
}
