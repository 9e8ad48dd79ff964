//! What a crash, a full disk or a bad one may leave: found by digest, named, and passed over for the one before.

use proptest::prelude::*;

use super::*;

const FILES: [&str; 3] = [MODEL, OPTIMIZER, PROGRESS];

/// Checkpoints of one step and of two.
fn two() -> (tempfile::TempDir, Store) {
    let (folder, store) = store(3);
    store.save(&progress(1), &tensors(1.0), &tensors(0.5), COMMON).unwrap();
    store.save(&progress(2), &tensors(2.0), &tensors(0.25), COMMON).unwrap();
    (folder, store)
}

/// What a restart goes on from: the newest that verifies.
fn restarted(store: &Store) -> Checkpoint {
    let newest = steps(store).pop().unwrap();
    store.load(newest).unwrap()
}

/// The newest cannot be loaded, for a reason that names the file, and a restart has the one before, unharmed.
fn check_passed_over(store: &Store, name: &str) -> Result<(), TestCaseError> {
    let error = store.load(2).unwrap_err().to_string();
    let file = store.path(2).join(name).display().to_string();
    prop_assert!(error.contains(&file), "{} does not name {}", error, file);
    let before = restarted(store);
    prop_assert_eq!(before.progress, progress(1));
    prop_assert_eq!(before.model["fc.weight"].to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    prop_assert_eq!(before.optimizer["fc.weight"].to_vec1::<f32>().unwrap(), [0.5, 2.0]);
    Ok(())
}

#[test]
fn every_truncation_of_every_file() {
    let (_folder, store) = two();
    for name in FILES {
        let file = store.path(2).join(name);
        let good = fs::read(&file).unwrap();
        for length in 0..good.len() {
            fs::write(&file, &good[..length]).unwrap();
            check_passed_over(&store, name).unwrap();
        }
        fs::write(&file, &good).unwrap();
        assert_eq!(restarted(&store).progress, progress(2), "{name} is whole again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn flipped_bits(
        which in 0..FILES.len(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let (_folder, store) = two();
        let file = store.path(2).join(FILES[which]);
        let good = fs::read(&file).unwrap();
        let mut bytes = good.clone();
        for (place, bit) in flips {
            bytes[place.index(good.len())] ^= 1 << bit;
        }
        prop_assume!(bytes != good);
        fs::write(&file, bytes).unwrap();
        check_passed_over(&store, FILES[which])?;
    }

    #[test]
    fn other_bytes_of_any_length(which in 0..FILES.len(), bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_folder, store) = two();
        fs::write(store.path(2).join(FILES[which]), bytes).unwrap();
        check_passed_over(&store, FILES[which])?;
    }

    #[test]
    fn bytes_after_the_end(which in 0..FILES.len(), more in proptest::collection::vec(any::<u8>(), 1..50)) {
        let (_folder, store) = two();
        let file = store.path(2).join(FILES[which]);
        let bytes = [fs::read(&file).unwrap(), more].concat();
        fs::write(&file, bytes).unwrap();
        check_passed_over(&store, FILES[which])?;
    }
}

#[test]
fn missing_files_and_folders_in_their_places() {
    for name in FILES {
        let (_folder, store) = two();
        let file = store.path(2).join(name);
        fs::remove_file(&file).unwrap();
        check_passed_over(&store, name).unwrap();
        fs::create_dir(&file).unwrap();
        check_passed_over(&store, name).unwrap();
    }
}

/// Whole files in the wrong place have digests of their own; only those of the record beside them count.
#[test]
fn files_of_another_checkpoint() {
    for name in FILES {
        let (_folder, store) = two();
        fs::copy(store.path(1).join(name), store.path(2).join(name)).unwrap();
        // A record of the other step is found by its step, the other two by its digests.
        check_passed_over(&store, name).unwrap();
    }
    let (_folder, store) = two();
    fs::rename(store.path(2), store.path(7)).unwrap();
    assert!(store.load(7).unwrap_err().to_string().contains("another step"));
    assert_eq!(steps(&store), [1]);
}

/// A crash while a checkpoint is written, at many places in each of its files: what was there is not touched, and the
/// next checkpoint is written over what was left.
#[test]
fn a_crash_at_any_place_of_writing() {
    let (_folder, store) = two();
    let contents = FILES.map(|name| fs::read(store.path(2).join(name)).unwrap());
    let temporary = store.folder.join(TEMPORARY);
    for (whole, name) in FILES.into_iter().enumerate() {
        for length in (0..=contents[whole].len()).step_by(7) {
            fs::create_dir(&temporary).unwrap();
            for (name, content) in FILES.iter().zip(&contents).take(whole) {
                fs::write(temporary.join(name), content).unwrap();
            }
            fs::write(temporary.join(name), &contents[whole][..length]).unwrap();
            assert_eq!(steps(&store), [1, 2]);
            assert_eq!(restarted(&store).progress, progress(2));
            store.save(&progress(2), &tensors(2.0), &tensors(0.25), COMMON).unwrap();
            assert!(!temporary.exists());
        }
    }
    assert_eq!(restarted(&store).progress, progress(2));
}

/// A crash while the oldest is removed leaves part of it; that counts as none, and goes with the next checkpoint.
#[test]
fn a_crash_while_the_oldest_is_removed() {
    for gone in FILES {
        let (_folder, store) = two();
        fs::remove_file(store.path(1).join(gone)).unwrap();
        assert_eq!(steps(&store), [2]);
        for step in 3..6 {
            store.save(&progress(step), &tensors(0.0), &tensors(0.0), COMMON).unwrap();
        }
        assert_eq!(steps(&store), [3, 4, 5]);
        assert!(!store.path(1).exists());
    }
}
