//! A teacher among the peers, against one process in which its network is frozen: it speaks, it is learnt from, and no
//! bit of it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_peer::checkpoint::{Checkpoint, Store};
use cohort_peer::models::{StateDict, state};
use cohort_proto::spec::{Augment, RunSpec, SamplerSpec};
use cohort_tests::cluster::{self, State};
use cohort_tests::joint::{Joint, max_difference};
use tempfile::TempDir;

use crate::{Gap, MATCHING_F64, TOLERANCE, data};

/// The teacher stands between two students.
const PEERS: [(&str, &str); 3] = [("s0", "resnet6"), ("t", "resnet8"), ("s1", "wrn_10_1")];

/// Its place among them.
const TEACHER: usize = 1;

fn spec(method: &str, peers: &str, (steps, batch, images): (usize, usize, usize)) -> RunSpec {
    let text = format!(
        "[run]\nseed = 3\nsteps = {steps}\n[data]\ndataset = \"fashion-mnist\"\ntrain_limit = {images}\nbatch = {batch}\n\
         [method]\n{method}\n[optim]\nlr = 0.05\n{peers}"
    );
    RunSpec::parse(&text).unwrap()
}

/// What a network of the teacher's architecture has become in some steps by itself, with running statistics of its own.
fn weights(folder: &Path, method: &str) -> PathBuf {
    let (name, arch) = PEERS[TEACHER];
    let lone = spec(method, &format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n"), (4, 20, 80));
    let trained = cluster::train(&lone, &data(), 4).unwrap().remove(0);
    let file = folder.join("teacher.safetensors");
    state::save_safetensors(&file, &trained).unwrap();
    file
}

/// The run of two students and a teacher, and the folder in which its weights are.
fn taught(method: &str, size: (usize, usize, usize)) -> (RunSpec, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let init = weights(folder.path(), method);
    let of = |(i, (name, arch)): (usize, &(&str, &str))| {
        let role =
            if i == TEACHER { format!("role = \"teacher\"\ninit = {init:?}\n") } else { String::new() };
        format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n{role}")
    };
    let peers: String = PEERS.iter().enumerate().map(of).collect();
    (spec(method, &peers, size), folder)
}

/// Steps of both from the same state, over a run: the greatest gap. The teacher must stay as it was loaded, optimisers
/// included.
fn gap(method: &str, size: (usize, usize, usize)) -> Gap {
    let (spec, folder) = taught(method, size);
    let loaded = state::load_safetensors(&folder.path().join("teacher.safetensors")).unwrap();
    let trace = cluster::trace(&spec, &data(), size.0).unwrap();
    let mut joint = Joint::new(&spec, &data()).unwrap();
    let mut worst = Gap::default();
    for step in 0..size.0 {
        let before = joint.weights().unwrap();
        assert!(joint.step().unwrap().is_finite());
        let together: Vec<State> = trace.iter().map(|states| states[step].clone()).collect();
        let after: Vec<StateDict> = joint.weights().unwrap();
        let gap = Gap::between(&together, &joint, &before);
        eprintln!("{} with a teacher, step {step}: {gap:?}", spec.method.name());
        worst = worst.max(gap);
        for teacher in [&together[TEACHER].0, &after[TEACHER]] {
            assert_eq!(max_difference(teacher, &loaded).unwrap().0, 0.0, "step {step}");
        }
        let optimizer = &together[TEACHER].1;
        assert_eq!(max_difference(optimizer, &trace[TEACHER][0].1).unwrap().0, 0.0, "step {step}");
        assert!(max_difference(&together[0].0, &before[0]).unwrap().0 > 0.0, "students learn");
        joint.put(&together).unwrap();
    }
    worst
}

#[test]
fn dml_with_a_teacher() {
    assert!(gap("name = \"dml\"", (4, 20, 60)).all < TOLERANCE);
}

#[test]
fn mcl_with_a_teacher() {
    assert!(gap("name = \"mcl\"\nlogit_kd = \"all\"", (4, 20, 60)).all < TOLERANCE);
}

/// Meta-updates after the first step and after the third. The teacher's side of the matching is a constant in them.
#[test]
fn l_mcl_with_a_teacher_and_meta_updates() {
    let method = "name = \"l-mcl\"\nfeat_dim = 16\nmeta_freq = 2\nmeta_precision = \"f64\"";
    let gap = gap(method, (3, 4, 12));
    assert!(gap.all < TOLERANCE && gap.matching > 0.0 && gap.matching < MATCHING_F64, "{gap:?}");
}

/// What a student ends in depends on what the teacher says.
#[test]
fn the_teacher_is_heard() {
    let (spec, _folder) = taught("name = \"dml\"", (2, 20, 60));
    let mut alone = spec.clone();
    alone.peers.remove(TEACHER);
    let [with, without] = [&spec, &alone].map(|spec| cluster::train(spec, &data(), 2).unwrap().remove(0));
    assert!(max_difference(&with, &without).unwrap().0 > 10.0 * TOLERANCE);
}

/// The bits of everything that a checkpoint holds of a peer, but for what begins with a word.
fn bits(checkpoint: &Checkpoint, without: &str) -> Vec<u8> {
    let rest = checkpoint.optimizer.iter().filter(|(name, _)| !name.starts_with(without));
    let rest: StateDict = rest.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    [state::encode(&checkpoint.model).unwrap(), state::encode(&rest).unwrap()].concat()
}

/// A teacher that keeps what it said says the same bits as one that looks at every image again. All samples are known after the
/// three steps of the first epoch.
#[test]
fn a_teacher_that_keeps_what_it_said() {
    const STEPS: usize = 8;
    const HALF: usize = 5;
    for method in ["name = \"dml\"", "name = \"mcl\"\nlogit_kd = \"all\""] {
        let (mut plain, _folder) = taught(method, (STEPS, 20, 60));
        (plain.data.augment, plain.data.sampler) = (Augment::None, SamplerSpec::Shuffle);
        let mut kept = plain.clone();
        kept.peers[TEACHER].cache = true;
        let [looked, recalled] =
            [&plain, &kept].map(|spec| cluster::train_from(spec, &data(), &[], STEPS).unwrap());
        for (looked, recalled) in looked.iter().zip(&recalled) {
            assert!(bits(looked, "cache.") == bits(recalled, "cache."), "{method}");
        }
        assert!(recalled[TEACHER].optimizer.contains_key("cache.logits"));

        let folder = tempfile::tempdir().unwrap();
        let half = cluster::train_from(&kept, &data(), &[], HALF).unwrap();
        let stores: Vec<Store> = half
            .iter()
            .enumerate()
            .map(|(index, held)| {
                let store = Store::open(&folder.path().join(index.to_string()), 1).unwrap();
                store.save(&held.progress, &held.model, &held.optimizer, 0).unwrap();
                store
            })
            .collect();
        let held = || stores.iter().map(|store| store.load(HALF as u64).unwrap()).collect::<Vec<_>>();
        let go_on = |held: Vec<Checkpoint>| {
            let held: Vec<Arc<Checkpoint>> = held.into_iter().map(Arc::new).collect();
            cluster::train_from(&kept, &data(), &held, STEPS - HALF).unwrap()
        };
        for (whole, resumed) in recalled.iter().zip(&go_on(held())) {
            assert!(bits(whole, "nothing") == bits(resumed, "nothing"), "{method}");
        }
        // It is what was kept that is said, not what the network would say.
        let mut other = held();
        let logits = other[TEACHER].optimizer["cache.logits"].affine(-1.0, 0.0).unwrap();
        other[TEACHER].optimizer.insert("cache.logits".to_owned(), logits);
        assert!(bits(&go_on(other)[0], "nothing") != bits(&recalled[0], "nothing"), "{method}");
    }
}
