//! Checkpoints: what is written is read back, and what is damaged is found.

mod damage;

use super::*;
use candle_core::{Device, Tensor};
use cohort_proto::id::RunId;

/// Every peer has every checkpoint.
const COMMON: Step = Step::MAX;

fn progress(steps_done: Step) -> Progress {
    Progress {
        steps_done,
        run: RunId(3),
        spec_hash: Digest::of("spec"),
        peer: "a".into(),
        arch: "resnet8".into(),
    }
}

fn tensors(value: f32) -> StateDict {
    [("fc.weight".to_owned(), Tensor::new(&[value, 2.0], &Device::Cpu).unwrap())].into_iter().collect()
}

fn store(keep: usize) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("peers/a"), keep).unwrap();
    (folder, store)
}

fn steps(store: &Store) -> Vec<Step> {
    store.held().unwrap().into_iter().map(|progress| progress.steps_done).collect()
}

#[test]
fn round_trip() {
    let (_folder, store) = store(3);
    let path = store.save(&progress(7), &tensors(1.5), &tensors(0.25), COMMON).unwrap();
    assert!(path.join("model.safetensors").is_file());
    let read = store.load(7).unwrap();
    assert_eq!(read.progress, progress(7));
    assert_eq!(read.model["fc.weight"].to_vec1::<f32>().unwrap(), [1.5, 2.0]);
    assert_eq!(read.optimizer["fc.weight"].to_vec1::<f32>().unwrap(), [0.25, 2.0]);
}

#[test]
fn the_newest_are_kept_and_a_step_can_be_written_again() {
    let (_folder, store) = store(2);
    for step in [5, 10, 15] {
        store.save(&progress(step), &tensors(step as f32), &tensors(0.0), COMMON).unwrap();
    }
    assert_eq!(steps(&store), [10, 15]);
    store.save(&progress(10), &tensors(-1.0), &tensors(0.0), COMMON).unwrap();
    assert_eq!(steps(&store), [10, 15]);
    assert_eq!(store.load(10).unwrap().model["fc.weight"].to_vec1::<f32>().unwrap()[0], -1.0);
}

#[test]
fn what_a_slower_peer_does_not_have_yet_is_kept() {
    let (_folder, store) = store(2);
    for step in [5, 10, 15, 20] {
        store.save(&progress(step), &tensors(0.0), &tensors(0.0), 10).unwrap();
    }
    assert_eq!(steps(&store), [10, 15, 20]);
    store.save(&progress(25), &tensors(0.0), &tensors(0.0), 20).unwrap();
    assert_eq!(steps(&store), [20, 25]);
}

#[test]
fn those_of_later_steps_go_when_training_starts_before_them() {
    let (_folder, store) = store(4);
    for step in [5, 10, 15, 20] {
        store.save(&progress(step), &tensors(0.0), &tensors(0.0), COMMON).unwrap();
    }
    store.remove_after(10).unwrap();
    assert_eq!(steps(&store), [5, 10]);
}

#[test]
fn every_damage_is_found_and_the_one_before_is_still_held() {
    let (_folder, store) = store(3);
    store.save(&progress(1), &tensors(1.0), &tensors(0.0), COMMON).unwrap();
    let path = store.save(&progress(2), &tensors(2.0), &tensors(0.0), COMMON).unwrap();
    for name in [MODEL, OPTIMIZER, PROGRESS] {
        let file = path.join(name);
        let good = fs::read(&file).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for damaged in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
            fs::write(&file, damaged).unwrap();
            let error = store.load(2).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(steps(&store), [1]);
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(steps(&store), [1, 2]);
}

#[test]
fn what_a_crash_left_does_not_count() {
    let (_folder, store) = store(3);
    fs::create_dir_all(store.folder.join(TEMPORARY)).unwrap();
    fs::write(store.folder.join(TEMPORARY).join(MODEL), b"half").unwrap();
    assert!(steps(&store).is_empty());
    store.save(&progress(1), &tensors(1.0), &tensors(0.0), COMMON).unwrap();
    assert!(!store.folder.join(TEMPORARY).exists());
    assert_eq!(steps(&store), [1]);
}

/// One that was taken for dead while it wrote: its successor takes what it has begun away, and what it goes on with then is
/// nowhere.
#[test]
fn what_another_process_had_begun_goes_when_the_folder_is_taken() {
    let (_folder, store) = store(3);
    let folder = store.folder.clone();
    let peer = PeerName::new("a").unwrap();
    let first = store.taken_by(&peer).unwrap();
    first.save(&progress(1), &tensors(1.0), &tensors(0.0), COMMON).unwrap();
    let word = first.owner.as_ref().map(Owner::word).unwrap().to_owned();
    let begun = folder.join(format!("{TEMPORARY}{word}"));
    fs::create_dir(&begun).unwrap();
    let second = Store::open(&folder, 3).unwrap().taken_by(&peer).unwrap();
    assert!(!begun.exists());
    let late = first.save(&progress(2), &tensors(2.0), &tensors(0.0), COMMON);
    assert!(matches!(late, Err(CheckpointError::Taken { .. })), "{late:?}");
    assert!(matches!(first.remove_after(0), Err(CheckpointError::Taken { .. })));
    assert_eq!(steps(&second), [1]);
    second.save(&progress(2), &tensors(3.0), &tensors(0.0), COMMON).unwrap();
    assert_eq!(steps(&second), [1, 2]);
    let other = PeerName::new("b").unwrap();
    assert!(matches!(second.taken_by(&other), Err(CheckpointError::OfAnother { .. })));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    fs::write(&blocked, b"").unwrap();
    let error = Store::open(&blocked.join("a"), 3).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}
