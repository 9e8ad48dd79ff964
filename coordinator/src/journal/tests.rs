//! The journal in a temporary folder: what is written, what is read back, what is refused.

mod crash;

use cohort_proto::control::{StepReport, TensorDigest, Term, Timing};
use cohort_proto::id::{Digest, PeerName, ViewId};
use cohort_proto::view::{Member, View, Views};
use rusqlite::Connection;

use super::*;
use crate::agreement::Said;
use crate::cluster::PeerRecord;
use crate::event::{DataFacts, Phase};

const TOML: &str = "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\n[method]\nname = \"alone\"\n[[peer]]\nname = \"a\"\narch = \"resnet8\"\n";

fn spec() -> RunSpec {
    RunSpec::parse(TOML).unwrap()
}

fn name() -> PeerName {
    PeerName::new("a").unwrap()
}

fn data() -> DataFacts {
    DataFacts { fingerprint: Digest::of("data"), total_steps: 9 }
}

fn view(id: u64) -> Line {
    let member = Member { index: 0, name: name(), address: "h:1".into(), schema: Default::default() };
    let view = View { id: ViewId(id), begins_at: 3, members: vec![member] };
    Line::Entry(Entry::View { view, data: data() })
}

fn report(step: u64, value: f64) -> Line {
    let report = StepReport {
        step,
        view: ViewId(1),
        epoch: u64::MAX,
        lr: 0.1,
        own_digest: Digest::of("x"),
        consumed: vec![],
        terms: vec![Term { name: "ce".into(), value }, Term { name: "ce".into(), value: 2.0 }],
        timings: vec![Timing { act: "forward".into(), ms: value }],
        images: 8,
        log_bytes: 1,
        said: vec![TensorDigest { name: "logits".into(), digest: 7 }],
    };
    Line::Entry(Entry::Report { peer: name(), report: Box::new(report) })
}

fn reopen(folder: &Path) -> (Journal, History) {
    Journal::open(folder, &spec(), RunId(6), 0).unwrap()
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, history) = Journal::open(folder.path(), &spec(), RunId(u64::MAX), 5).unwrap();
    let fresh = History {
        run: RunId(u64::MAX),
        starts: 0,
        views: Views::default(),
        data: None,
        lease_until: 0,
        records: vec![PeerRecord::default()],
    };
    assert_eq!(history, fresh);
    journal.write(6, view(1)).await.unwrap();
    journal.write(7, Line::Entry(Entry::Lease { until: 5 })).await.unwrap();
    for step in 3..5 {
        journal.write(8, report(step, f64::NAN)).await.unwrap();
    }
    journal.write(9, report(3, 1.5)).await.unwrap();
    journal.write(10, Line::Entry(Entry::Checkpoint { peer: name(), step: 4 })).await.unwrap();
    journal.write(10, Line::Entry(Entry::Phase(Phase::Running))).await.unwrap();
    journal.write(11, Line::Event { warn: true, sentence: "it happened".into() }).await.unwrap();
    journal.flush().await.unwrap();
    assert!(journal.bytes() > 0);

    let reader = Connection::open(folder.path().join(FILE)).unwrap();
    let one = |sql: &str| -> String { reader.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(one("SELECT id || phase || starts || total_steps FROM runs"), "ffffffffffffffffrunning19");
    assert_eq!(one("SELECT view || ' ' || begins_at || ' ' || made_at FROM views"), "1 3 6");
    assert_eq!(one("SELECT peer || arch || address FROM members"), "aresnet8h:1");
    assert_eq!(one("SELECT view || ' ' || until FROM leases"), "1 5");
    assert_eq!(one("SELECT count(*) || ' ' || max(epoch) FROM steps"), "2 9223372036854775807");
    assert_eq!(one("SELECT CAST(value AS TEXT) FROM terms WHERE step = 3"), "2.0");
    assert_eq!(one("SELECT count(*) || count(ms) FROM timings"), "21", "NaN is NULL");
    assert_eq!(one("SELECT peer || step FROM checkpoints"), "a4");
    assert_eq!(one("SELECT at || warn || sentence FROM events"), "111it happened");
    drop(journal);
    let (_journal, history) = reopen(folder.path());
    let said =
        Said { digest: Digest::of("x"), tensors: vec![TensorDigest { name: "logits".into(), digest: 7 }] };
    let member = Member { index: 0, name: name(), address: "h:1".into(), schema: Default::default() };
    let later = History {
        starts: 1,
        views: View { id: ViewId(1), begins_at: 3, members: vec![member] }.into(),
        data: Some(data()),
        lease_until: 5,
        // A step below the newest common checkpoint is not taken again.
        records: vec![PeerRecord { completed: 5, checkpoints: vec![4], said: vec![(4, said)] }],
        ..fresh
    };
    assert_eq!(history, later);
}

#[tokio::test]
async fn a_view_that_begins_earlier_makes_later_steps_void() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    journal.write(0, view(1)).await.unwrap();
    journal.write(0, Line::Entry(Entry::Lease { until: 9 })).await.unwrap();
    for step in 3..7 {
        journal.write(1, report(step, 1.0)).await.unwrap();
    }
    for step in [5, 6] {
        journal.write(1, Line::Entry(Entry::Checkpoint { peer: name(), step })).await.unwrap();
    }
    let Line::Entry(Entry::View { view: fallen, data }) = view(2) else { panic!() };
    let fallen = View { begins_at: 5, ..fallen };
    journal.write(2, Line::Entry(Entry::View { view: fallen, data })).await.unwrap();
    drop(journal);
    let (_journal, history) = reopen(folder.path());
    let views: Vec<(u64, u64)> = history.views.iter().map(|view| (view.id.0, view.begins_at)).collect();
    assert_eq!((views, history.lease_until), (vec![(1, 3), (2, 5)], 9), "granted stays granted");
    assert_eq!((history.records[0].completed, &history.records[0].checkpoints[..]), (5, &[5][..]));
}

/// A coordinator that is started again does not take for complete who lost its newest checkpoints.
#[tokio::test]
async fn checkpoints_that_are_lost_are_not_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    journal.write(0, view(1)).await.unwrap();
    for step in [4, 5, 6] {
        journal.write(1, Line::Entry(Entry::Checkpoint { peer: name(), step })).await.unwrap();
    }
    journal.write(2, Line::Entry(Entry::Lost { peer: name(), after: 4 })).await.unwrap();
    drop(journal);
    assert_eq!(reopen(folder.path()).1.records[0].checkpoints, [4]);
}

/// Peers' names may look like anything that a term's name has in it.
#[tokio::test]
async fn matching_is_a_view_of_means_by_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    journal.write(0, view(1)).await.unwrap();
    let weights: [&[(&str, f64)]; 3] = [
        &[("lambda.0.b.1", 0.25), ("lambda.0.b.0", 0.5), ("lambda.1.7.x-2.3.10", 0.75), ("lambda", 9.0)],
        &[("lambda.0.b.1", 0.5), ("lambda.0.b.0", 0.5), ("lambda.x", 9.0), ("lambda.x.y.z", 9.0)],
        &[("lambda.0.b.1", 1.0), ("lambda.0.b.0", f64::NAN), ("ce", 9.0)],
    ];
    for (step, terms) in (0..).zip(weights) {
        let Line::Entry(Entry::Report { peer, mut report }) = report(step, 0.0) else { panic!() };
        report.epoch = step / 2;
        report.terms =
            terms.iter().map(|(name, value)| Term { name: (*name).into(), value: *value }).collect();
        journal.write(1, Line::Entry(Entry::Report { peer, report })).await.unwrap();
    }
    journal.flush().await.unwrap();
    let reader = Connection::open(folder.path().join(FILE)).unwrap();
    let sql = "SELECT concat_ws(' ', peer, epoch, stage, source, source_stage, coalesce(mean, '-'), steps) \
               FROM matching ORDER BY peer, epoch, stage, source, source_stage";
    let mut statement = reader.prepare(sql).unwrap();
    let rows: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let expected = [
        "a 0 0 b 0 0.5 2",
        "a 0 0 b 1 0.375 2",
        "a 0 1 7.x-2.3 10 0.75 1",
        "a 1 0 b 0 - 0",
        "a 1 0 b 1 1.0 1",
    ];
    assert_eq!(rows, expected);
    let typed: String = reader
        .query_row("SELECT typeof(stage) || typeof(source_stage) || typeof(mean) FROM matching", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(typed, "integerintegerreal");
}

/// What an earlier version made, which had no such view.
#[tokio::test]
async fn a_view_that_an_older_journal_lacks_is_made() {
    let folder = tempfile::tempdir().unwrap();
    drop(Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap());
    let file = folder.path().join(FILE);
    Connection::open(&file).unwrap().execute_batch("DROP VIEW matching").unwrap();
    let _journal = reopen(folder.path());
    let rows =
        Connection::open(&file).unwrap().query_row("SELECT count(*) FROM matching", [], |row| row.get(0));
    assert_eq!(rows, Ok(0));
}

#[tokio::test]
async fn a_view_is_on_the_disk_when_its_write_returns() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    journal.write(0, view(7)).await.unwrap();
    let reader = Connection::open(folder.path().join(FILE)).unwrap();
    let last: i64 = reader.query_row("SELECT max(view) FROM views", [], |row| row.get(0)).unwrap();
    assert_eq!(last, 7);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    journal.write(0, view(1)).await.unwrap();
    // The number of a view is unique.
    let failed = journal.write(0, view(1)).await.unwrap_err();
    assert!(failed.0.contains("UNIQUE"), "{failed}");
    assert!(journal.write(0, report(1, 1.0)).await.is_err());
}

#[tokio::test]
async fn a_folder_of_another_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    drop(Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap());
    let other = RunSpec::parse(&TOML.replace("9", "8")).unwrap();
    let refused = Journal::open(folder.path(), &other, RunId(2), 0).unwrap_err();
    assert!(matches!(refused, JournalError::OtherRun { .. }), "{refused}");
    assert!(refused.to_string().contains(&folder.path().display().to_string()));
}

#[tokio::test]
async fn a_folder_serves_one_coordinator_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap();
    let refused = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap_err();
    assert!(matches!(refused, JournalError::InUse { .. }), "{refused}");
}

#[test]
fn what_is_no_journal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), [7; 4096]).unwrap();
    let refused = Journal::open(folder.path(), &spec(), RunId(1), 0).unwrap_err();
    assert!(matches!(refused, JournalError::Sqlite { .. }), "{refused}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Journal::open(&file, &spec(), RunId(1), 0).unwrap_err();
    assert!(matches!(refused, JournalError::Folder { .. }), "{refused}");
}
