//! Exactness: peers that only exchange what their networks say end in the weights of one process that holds all the
//! networks. The reference is the joint trainer in `src/joint.rs`: one graph, one backward pass, no exchange.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod teacher;
mod graph;

use std::path::PathBuf;
use std::sync::Arc;

use cohort_peer::checkpoint::Store;
use cohort_peer::models::StateDict;
use cohort_proto::spec::RunSpec;
use cohort_tests::cluster::{self, State};
use cohort_tests::joint::{Joint, max_difference};

/// Weights after ten steps in f32 may differ by rounding: sums are formed in another order.
const TOLERANCE: f64 = 2e-5;

/// For the matching's weights, as a share of how far they moved.
const MATCHING_F64: f64 = 1e-4;
const MATCHING_F32: f64 = 5e-2;

fn data() -> PathBuf {
    PathBuf::from(cohort_tests::DATA)
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
    eprintln!("{} x{}: {:.2e} in {}", spec.method_name(), spec.peers.len(), worst.0, worst.1);
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

/// Small batches of few images: two or three to an epoch, of which `meta_freq` makes some end in a meta-update.
fn l_mcl_spec(peers: &[&str], steps: usize, (batch, images): (usize, usize), extra: &str) -> RunSpec {
    let peers: String = (peers.iter().enumerate())
        .map(|(i, arch)| format!("[[peer]]\nname = \"p{i}\"\narch = \"{arch}\"\n"))
        .collect();
    let text = format!(
        "[run]\nseed = 3\nsteps = {steps}\n[data]\ndataset = \"fashion-mnist\"\ntrain_limit = {images}\nbatch = {batch}\n\
         [method]\nname = \"l-mcl\"\nfeat_dim = 16\n{extra}\n[optim]\nlr = 0.05\n{peers}"
    );
    RunSpec::parse(&text).unwrap()
}

fn beginning(prefix: &str, state: &StateDict) -> StateDict {
    let those = state.iter().filter(|(name, _)| name.starts_with(prefix));
    those.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// What two trainings differ by: the greatest difference of a weight, that of the matching as a share of how far it moved,
/// and that of an entry of a bank.
#[derive(Debug, Clone, Copy, Default)]
struct Gap {
    all: f64,
    matching: f64,
    banks: f64,
}

impl Gap {
    fn between(cluster: &[State], joint: &Joint, before: &[StateDict]) -> Self {
        let mut gap = Self::default();
        for (((a, kept), b), before) in cluster.iter().zip(joint.weights().unwrap()).zip(before) {
            gap.all = gap.all.max(max_difference(a, &b).unwrap().0);
            // Every peer has the banks of all.
            let banks = beginning("bank.", kept);
            gap.banks = gap.banks.max(max_difference(&banks, &joint.banks()).unwrap().0);
            let of = |weights| beginning("match.", weights);
            let (a, b, before) = (of(a), of(&b), of(before));
            let moved = if b.is_empty() { 0.0 } else { max_difference(&b, &before).unwrap().0 };
            if moved > 0.0 {
                gap.matching = gap.matching.max(max_difference(&a, &b).unwrap().0 / moved);
            }
        }
        gap
    }

    fn max(self, other: Self) -> Self {
        Self {
            all: self.all.max(other.all),
            matching: self.matching.max(other.matching),
            banks: self.banks.max(other.banks),
        }
    }
}

/// The greatest gap of a step of both from the same state, over all steps of a run. Without going back to the same state
/// rounding would grow some thirtyfold with each step: the contrastive terms of a fresh network are that steep, and an
/// activation next to 0 may fall on either side.
fn gap(spec: &RunSpec, steps: usize) -> Gap {
    let trace = cluster::trace(spec, &data(), steps).unwrap();
    let mut joint = Joint::new(spec, &data()).unwrap();
    let mut worst = Gap::default();
    for step in 0..steps {
        let before = joint.weights().unwrap();
        assert!(joint.step().unwrap().is_finite());
        let together: Vec<State> = trace.iter().map(|states| states[step].clone()).collect();
        let gap = Gap::between(&together, &joint, &before);
        eprintln!("{} x{} step {step}: {gap:?}", spec.method.name(), trace.len());
        worst = worst.max(gap);
        joint.put(&together).unwrap();
    }
    worst
}

/// The gap after a whole run of both by themselves.
fn l_mcl_gap_after(spec: &RunSpec, steps: usize) -> Gap {
    let trace = cluster::trace(spec, &data(), steps).unwrap();
    let mut joint = Joint::new(spec, &data()).unwrap();
    let start = joint.weights().unwrap();
    for _ in 0..steps {
        assert!(joint.step().unwrap().is_finite());
    }
    let together: Vec<State> = trace.into_iter().map(|states| states.last().unwrap().clone()).collect();
    let gap = Gap::between(&together, &joint, &start);
    eprintln!("l-mcl x{} after {steps}: {gap:?}", together.len());
    gap
}

/// Three meta-updates, at steps 0, 2 and 4. The reference makes them in f64; so does the cluster here, where the
/// difference quotient is good to some 1e-9. What is left is one rounding of φ to f32, 7e-9 at its size, where φ moves by
/// about 1e-3; another ReLU or teacher is some 1e-2 of that at least.
fn l_mcl_in_f64(peers: &[&str]) {
    let spec = l_mcl_spec(peers, 5, (4, 8), "meta_freq = 2\nmeta_precision = \"f64\"");
    let gap = gap(&spec, 5);
    assert!(gap.all < TOLERANCE && gap.matching < MATCHING_F64, "{gap:?}");
}

#[test]
fn l_mcl_with_two_peers_and_meta_updates() {
    l_mcl_in_f64(&["resnet6", "resnet8"]);
}

#[test]
fn l_mcl_with_three_peers_and_meta_updates() {
    l_mcl_in_f64(&["resnet6", "wrn_10_1", "resnet8"]);
}

/// The same at memory banks, which a meta-update changes on its way and, as in the authors' code, once for good.
#[test]
fn l_mcl_with_meta_updates_at_memory_banks() {
    for (peers, more) in [
        (&["resnet6", "resnet8"][..], "meta_bn = \"none\"\nbank_bug = true"),
        (&["resnet6", "wrn_10_1", "resnet8"], ""),
    ] {
        let extra =
            format!("meta_freq = 2\nmeta_precision = \"f64\"\nbank = true\nbank_negatives = 12\n{more}");
        let gap = gap(&l_mcl_spec(peers, 3, (4, 8), &extra), 3);
        assert!(gap.all < TOLERANCE && gap.matching < MATCHING_F64 && gap.banks < 1e-7, "{gap:?}");
    }
}

/// In f32 a meta-update differs from the reference by the error of its difference quotient, 1e-3 of the greatest movement
/// here, and by activations that the path meets next to 0: none here, but one would make percents, where networks are
/// fresh and the batch is small. A term that is missing makes 17 percent.
#[test]
fn l_mcl_with_two_peers_and_meta_updates_in_f32() {
    let spec = l_mcl_spec(&["resnet6", "resnet8"], 3, (8, 16), "meta_freq = 2\nmeta_precision = \"f32\"");
    let gap = gap(&spec, 3);
    assert!(gap.matching < MATCHING_F32, "{gap:?}");
}

/// A term of labels in the place of the last stage's cross-entropy; what the stages and the meta-updates do stays.
#[test]
fn l_mcl_with_terms_of_labels() {
    let edges = "[[edge]]\nto = \"p0\"\nterm = \"label-smoothing\"\n[[edge]]\nto = \"p1\"\nterm = \"ps-kd\"\n\
                 [[edge]]\nto = \"p2\"\nterm = \"hypersphere\"\n[[edge]]\nto = \"p2\"\nterm = \"confidence-penalty\"";
    let of = |edges: &str| {
        let extra = format!("meta_freq = 2\nmeta_precision = \"f64\"\n{edges}");
        l_mcl_spec(&["resnet6", "wrn_10_1", "resnet8"], 4, (4, 8), &extra)
    };
    let gap = gap(&of(edges), 4);
    assert!(gap.all < TOLERANCE && gap.matching < MATCHING_F64, "{gap:?}");
    let [with, without] = [edges, ""].map(|edges| cluster::train(&of(edges), &data(), 1).unwrap());
    for (with, without) in with.iter().zip(&without).take(1) {
        assert!(max_difference(with, without).unwrap().0 > 10.0 * TOLERANCE);
    }
}

/// No meta-update, but what else can be chosen.
#[test]
fn l_mcl_of_other_kinds() {
    let kinds =
        ["matching = \"uniform\"", "matching = \"one-to-one\"\nkd = false", "double = false\nmeta_freq = 0"];
    for kind in kinds {
        let gap = l_mcl_gap_after(&l_mcl_spec(&["resnet6", "resnet8"], 4, (4, 12), kind), 4);
        assert!(gap.all < TOLERANCE, "{kind}: {gap:?}");
    }
}

const BANKS: [&str; 3] = [
    "name = \"mcl\"\nfeat_dim = 16\nbank = true\nbank_negatives = 30",
    "name = \"l-mcl\"\nfeat_dim = 16\nmatching = \"uniform\"\nbank = true\nbank_negatives = 30\nbank_positives = 2\n\
     bank_momentum = 0.25",
    "name = \"l-mcl\"\nfeat_dim = 16\nmatching = \"one-to-one\"\nbank = true\nbank_negatives = 30\nbank_bug = true\n\
     double = false\nkd = false",
];

/// Step by step from the same state, since nothing else can be compared at this rate: the joint trainer drifts from itself
/// as far as from the cluster (2e-4 after two steps, 3e-3 after four) when one layer begins at other last bits, because
/// remembered rows are strangers to a fresh network and the scores steep. What one step differs by is rounding, and the
/// banks are the same bits.
#[test]
fn mcl_and_l_mcl_at_memory_banks() {
    for method in BANKS {
        for peers in [2, 3] {
            let gap = gap(&spec(method, peers), 5);
            assert!(gap.all < TOLERANCE && gap.banks < 1e-7, "{method} x{peers}: {gap:?}");
        }
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
