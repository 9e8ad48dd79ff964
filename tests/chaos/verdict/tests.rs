//! Two ends that agree, and every way in which they may not: each must be found.

use clap::Parser;

use super::*;
use crate::args::Args;
use crate::watch::Reported;

const PEERS: [&str; 2] = ["a", "b"];
const STEPS: u64 = 3;

fn digest(peer: &str, step: u64) -> Digest {
    Digest::of(format!("{peer}{step}"))
}

/// A folder in which two runs have ended alike.
fn alike() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for run in ["undisturbed", "disturbed"] {
        let state = folder.path().join(run).join("coordinator");
        fs::create_dir_all(&state).unwrap();
        let journal = Connection::open(state.join("journal.sqlite")).unwrap();
        let tables = "CREATE TABLE runs (phase TEXT, total_steps INTEGER);
            CREATE TABLE steps (peer TEXT, step INTEGER, digest TEXT, view INTEGER, said TEXT);
            CREATE TABLE terms (peer TEXT, step INTEGER, name TEXT, value REAL);
            CREATE TABLE views (view INTEGER, begins_at INTEGER);
            CREATE TABLE members (view INTEGER, peer TEXT);
            INSERT INTO runs VALUES ('finished', 3);
            INSERT INTO views VALUES (1, 0);";
        journal.execute_batch(tables).unwrap();
        for peer in PEERS {
            journal.execute("INSERT INTO members VALUES (1, ?)", [peer]).unwrap();
            for step in 0..STEPS {
                // A digest is of its run.
                let said = match run {
                    "disturbed" => digest(peer, step).to_string(),
                    _ => "of another run".to_owned(),
                };
                let step = i64::try_from(step).unwrap();
                journal
                    .execute("INSERT INTO steps VALUES (?, ?, ?, 1, 'tensors')", (peer, step, said))
                    .unwrap();
                journal.execute("INSERT INTO terms VALUES (?, ?, 'ce', 0.5)", (peer, step)).unwrap();
            }
            let last = folder.path().join(run).join("peers").join(peer).join("checkpoint-3");
            fs::create_dir_all(&last).unwrap();
            fs::write(last.join("model.safetensors"), peer).unwrap();
            fs::write(last.join("optimizer.safetensors"), peer).unwrap();
        }
    }
    folder
}

fn setting() -> Setting {
    Setting::new(&Args::parse_from(["chaos", "--peers", "2"])).unwrap()
}

/// What is judged once something in the disturbed run's journal was changed.
fn after(sql: &str) -> Verdict {
    let folder = alike();
    let journal = Connection::open(folder.path().join("disturbed/coordinator/journal.sqlite")).unwrap();
    journal.execute_batch(sql).unwrap();
    Verdict::of(&setting(), folder.path(), &Outcome::default())
}

#[test]
fn what_is_alike_holds() {
    let verdict = after("");
    assert!(verdict.failures.is_empty(), "{:?}", verdict.failures);
    assert!(verdict.weights_identical && verdict.optimizers_identical);
    assert_eq!((verdict.steps, verdict.views, verdict.lost, verdict.doubled), (3, 1, 0, 0));
    assert_eq!(verdict.weights["a"], Digest::of("a").to_string());
}

#[test]
fn every_fault_of_a_journal_is_found() {
    let lost = after("DELETE FROM steps WHERE peer = 'b' AND step = 1");
    assert_eq!((lost.lost, lost.doubled, lost.failures.len()), (1, 0, 1), "{:?}", lost.failures);
    for other in [
        "UPDATE steps SET said = 'x' WHERE step = 2",
        "UPDATE terms SET value = 0.25 WHERE step = 2",
        "DELETE FROM terms WHERE step = 2",
    ] {
        let other = after(other);
        assert_eq!((other.lost, other.doubled, other.failures.len()), (0, 2, 2), "{:?}", other.failures);
    }
    let more = after("INSERT INTO steps VALUES ('a', 3, 'x', 1, 'y')");
    assert_eq!((more.doubled, more.failures.len()), (1, 1), "{:?}", more.failures);
    assert_eq!(after("UPDATE runs SET phase = 'stopped'").failures.len(), 1);
    assert_eq!(after("UPDATE views SET view = 3; UPDATE members SET view = 3").failures.len(), 1);
}

#[test]
fn other_weights_are_found() {
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let folder = alike();
        let file = folder.path().join("disturbed/peers/b/checkpoint-3").join(name);
        fs::write(&file, "c").unwrap();
        let verdict = Verdict::of(&setting(), folder.path(), &Outcome::default());
        assert_eq!(verdict.failures.len(), 1, "{:?}", verdict.failures);
        fs::remove_file(&file).unwrap();
        let verdict = Verdict::of(&setting(), folder.path(), &Outcome::default());
        assert!(!(verdict.weights_identical && verdict.optimizers_identical));
        assert_eq!(verdict.failures.len(), 2, "{:?}", verdict.failures);
    }
}

#[test]
fn what_was_seen_counts_as_well() {
    let judge = |change: &dyn Fn(&mut Outcome)| {
        let mut rough = Outcome::default();
        let own = digest("a", 1).0.to_vec();
        let consumed = vec![("b".to_owned(), digest("b", 1).0.to_vec())];
        let losses = [("ce".to_owned(), bits(0.5))].into();
        rough.seen.reported.insert(("a".into(), 1, 1), Reported { own, consumed, losses });
        change(&mut rough);
        Verdict::of(&setting(), alike().path(), &rough)
    };
    assert!(judge(&|_| {}).failures.is_empty());
    let reported = |rough: &mut Outcome| rough.seen.reported.pop_first().unwrap().1;
    let other = judge(&|rough| {
        let mut reported = reported(rough);
        reported.own = digest("a", 2).0.to_vec();
        rough.seen.reported.insert(("a".into(), 1, 1), reported);
    });
    assert_eq!((other.doubled, other.failures.len()), (1, 1), "{:?}", other.failures);
    let lost_otherwise = judge(&|rough| {
        let losses = [("ce".to_owned(), bits(0.75))].into();
        let reported = Reported { losses, ..reported(rough) };
        rough.seen.reported.insert(("a".into(), 1, 1), reported);
    });
    assert_eq!((lost_otherwise.doubled, lost_otherwise.failures.len()), (1, 1));
    let disagreed = judge(&|rough| {
        let mut reported = reported(rough);
        reported.consumed[0].1 = digest("b", 2).0.to_vec();
        rough.seen.reported.insert(("a".into(), 1, 1), reported);
    });
    assert_eq!((disagreed.disagreements, disagreed.failures.len()), (1, 1), "{:?}", disagreed.failures);
    let twice = judge(&|rough| rough.seen.contradictions.push("twice".into()));
    assert_eq!((twice.doubled, twice.failures.len()), (1, 1), "{:?}", twice.failures);
    assert_eq!(judge(&|rough| rough.tally.unasked.push("stopped".into())).failures.len(), 1);
    assert_eq!(judge(&|rough| rough.failure = Some("hung".into())).failures.len(), 1);
}
