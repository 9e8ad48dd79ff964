//! Exactness: peers that only exchange what their networks say end in the weights of one process that holds all the
//! networks. The reference is the joint trainer in `src/joint.rs`: one graph, one backward pass, no exchange.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;

use cohort_peer::checkpoint::Store;
use cohort_proto::spec::RunSpec;
use cohort_tests::cluster;
use cohort_tests::joint::{Joint, max_difference};

/// Weights after ten steps in f32 may differ by rounding: sums are formed in another order.
const TOLERANCE: f64 = 2e-5;

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data/fashion-mnist")
}

fn spec(method: &str, peers: usize) -> RunSpec {
    let architectures = ["resnet8", "wrn_10_1", "resnet14"];
    let peers: String = (0..peers)
        .map(|i| {
            format!("[[peer]]\nname = \"p{i}\"\narch = \"{}\"\n", architectures[i % architectures.len()])
        })
        .collect();
    let text = format!(
        "[run]\nseed = 3\nsteps = 10\n[data]\ndataset = \"fashion-mnist\"\ntrain_limit = 60\nbatch = 20\n\
         [method]\n{method}\n[optim]\nlr = 0.05\n{peers}"
    );
    RunSpec::parse(&text).unwrap()
}

/// Trains both ways and returns the greatest difference over all peers.
fn difference(spec: &RunSpec, steps: usize) -> f64 {
    let together = cluster::train(spec, &data(), steps).unwrap();
    let mut joint = Joint::new(spec, &data()).unwrap();
    for _ in 0..steps {
        assert!(joint.step().unwrap().is_finite());
    }
    let pairs = together.iter().zip(joint.weights().unwrap());
    let worst =
        pairs.map(|(a, b)| max_difference(a, &b).unwrap()).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    eprintln!("{} x{}: {:.2e} in {}", spec.method.name(), spec.peers.len(), worst.0, worst.1);
    worst.0
}

#[test]
fn dml_with_two_and_three_peers() {
    assert!(difference(&spec("name = \"dml\"", 2), 10) < TOLERANCE);
    assert!(difference(&spec("name = \"dml\"\nt = 2.0\nreduce = \"sum\"", 3), 10) < TOLERANCE);
}

#[test]
fn mcl_with_two_peers() {
    assert!(difference(&spec("name = \"mcl\"", 2), 10) < TOLERANCE);
}

#[test]
fn mcl_with_three_peers() {
    assert!(difference(&spec("name = \"mcl\"\nlogit_kd = \"all\"", 3), 10) < TOLERANCE);
}

/// Three batches an epoch, so that ten steps have four meta-updates.
#[test]
fn l_mcl_with_two_and_three_peers_and_meta_updates() {
    let l_mcl = |extra: &str| format!("name = \"l-mcl\"\nfeat_dim = 16\nmeta_freq = 3\n{extra}");
    assert!(difference(&spec(&l_mcl(""), 2), 10) < TOLERANCE);
    assert!(difference(&spec(&l_mcl("meta_precision = \"f64\""), 3), 10) < TOLERANCE);
}

const BANKS: [&str; 2] = [
    "name = \"mcl\"\nfeat_dim = 16\nbank = true\nbank_negatives = 30",
    "name = \"l-mcl\"\nfeat_dim = 16\nmatching = \"uniform\"\nbank = true\nbank_positives = 2\nbank_negatives = 30",
];

#[test]
fn mcl_and_l_mcl_at_memory_banks() {
    for method in BANKS {
        assert!(difference(&spec(method, 2), 5) < TOLERANCE);
    }
}

/// Every peer holds the banks of all: they are the same bits, and a run that goes on from checkpoints in files ends where
/// the undisturbed one ends.
#[test]
fn banks_are_replicas_and_a_resumed_run_is_bitwise_the_undisturbed_one() {
    for method in BANKS {
        let spec = spec(method, 2);
        let whole = cluster::train_from(&spec, &data(), &[], 5).unwrap();
        let names: Vec<_> = whole[0].optimizer.keys().filter(|name| name.starts_with("bank.")).collect();
        assert_eq!(names, ["bank.0", "bank.1"]);
        let bits = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for name in names {
            assert_eq!(bits(&whole[0].optimizer[name]), bits(&whole[1].optimizer[name]), "{name}");
            assert!(whole.iter().all(|peer| !peer.model.contains_key(name)));
        }
        let half = cluster::train_from(&spec, &data(), &[], 2).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let through_files = half.iter().enumerate().map(|(index, held)| {
            let store = Store::open(&folder.path().join(index.to_string()), 1).unwrap();
            store.save(&held.progress, &held.model, &held.optimizer, 0).unwrap();
            Arc::new(store.load(2).unwrap())
        });
        let resumed = cluster::train_from(&spec, &data(), &through_files.collect::<Vec<_>>(), 3).unwrap();
        for (a, b) in whole.iter().zip(&resumed) {
            assert_eq!(max_difference(&a.model, &b.model).unwrap().0, 0.0);
            assert_eq!(max_difference(&a.optimizer, &b.optimizer).unwrap().0, 0.0);
        }
        assert!(max_difference(&half[0].optimizer, &whole[0].optimizer).unwrap().0 > 0.0);
    }
}

#[test]
fn the_comparison_would_see_a_missing_term() {
    let with = spec("name = \"mcl\"", 2);
    let without = spec("name = \"mcl\"\nlogit_kd = \"off\"", 2);
    let a = cluster::train(&with, &data(), 2).unwrap();
    let b = cluster::train(&without, &data(), 2).unwrap();
    assert!(max_difference(&a[0], &b[0]).unwrap().0 > 10.0 * TOLERANCE);
}

#[test]
fn two_clusters_are_bitwise_equal() {
    let spec = spec("name = \"mcl\"", 2);
    let [a, b] = [0, 1].map(|_| cluster::train(&spec, &data(), 4).unwrap());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(max_difference(a, b).unwrap().0, 0.0);
    }
}
