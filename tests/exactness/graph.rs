//! Presets and mixed graphs: peers that exchange what their networks say end where one process ends that sums every term
//! of every network in one graph.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_peer::models::{ImageShape, Params, StateDict, state};
use cohort_proto::spec::RunSpec;
use cohort_tests::cluster;
use cohort_tests::joint::max_difference;
use tempfile::TempDir;

use super::{TOLERANCE, data, difference, gap};

const STEPS: usize = 5;

/// Initial weights for a teacher: those that a network of its own seed begins with.
fn teacher(folder: &TempDir) -> String {
    let path = folder.path().join("t.safetensors");
    let mut params = Params::new(99, "t", candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let image = ImageShape { channels: 1, height: 28, width: 28 };
    cohort_peer::models::build("wrn_10_1", image, 10, &mut params).unwrap();
    let weights: StateDict = params.state_dict().unwrap();
    std::fs::write(&path, state::encode(&weights).unwrap()).unwrap();
    format!("[[peer]]\nname = \"t\"\narch = \"wrn_10_1\"\nrole = \"teacher\"\ninit = {path:?}\n")
}

fn spec(graph: &str, peers: &str) -> RunSpec {
    let text = format!(
        "[run]\nseed = 3\nsteps = 10\n[data]\ndataset = \"fashion-mnist\"\ntrain_limit = 60\nbatch = 20\n\
         {graph}\n[optim]\nlr = 0.05\n{peers}"
    );
    RunSpec::parse(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
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
        + &edge("from = \"c\"\nto = \"a\"\nterm = \"kd-fn\"\nschedule = \"progressive\"")
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

/// A network that nobody teaches trains in company as it does by itself.
#[test]
fn what_no_edge_reaches_is_not_changed_by_the_others() {
    let edges = edge("from = \"a\"\nto = \"b\"\nterm = \"kl\"");
    let together = cluster::train(&spec(&edges, &students(&["a", "b"])), &data(), STEPS).unwrap();
    let alone = cluster::train(&spec(&method("alone", ""), &students(&["a", "b"])), &data(), STEPS).unwrap();
    assert_eq!(max_difference(&together[0], &alone[0]).unwrap().0, 0.0);
    assert!(max_difference(&together[1], &alone[1]).unwrap().0 > 0.0);
}
