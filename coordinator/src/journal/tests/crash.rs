//! The journal after a crash at any moment: whatever is in it is what was written up to some transaction, and one whose
//! write had returned is never missing.
//!
//! A crash is a copy of the files as they are at that moment, with the write-ahead log cut off or damaged where the disk
//! had not got further, that is opened as a restart opens it.

use proptest::prelude::*;
use rusqlite::types::Value;

use super::*;

/// The bytes before the first frame of a write-ahead log, and of a frame's header (SQLite's file format, section 4).
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

const WAL: &str = "journal.sqlite-wal";

/// Every row of every table, but for the number of starts, which each opening raises.
fn dump(folder: &Path) -> Vec<String> {
    let reader = Connection::open(folder.join(FILE)).unwrap();
    let tables = ["runs", "views", "members", "leases", "checkpoints", "steps", "terms", "timings", "events"];
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = reader.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let row = |row: &rusqlite::Row<'_>| {
            let cells = names.iter().enumerate().filter(|(_, name)| *name != "starts");
            let cells: rusqlite::Result<Vec<Value>> = cells.map(|(i, _)| row.get(i)).collect();
            Ok(format!("{table}: {:?}", cells?))
        };
        rows.extend(statement.query_map([], row).unwrap().map(Result::unwrap));
    }
    rows
}

/// A crash: the files as they are, the log cut off at a length.
fn crash(from: &Path, wal_length: usize) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::copy(from.join(FILE), to.path().join(FILE)).unwrap();
    let wal = fs::read(from.join(WAL)).unwrap_or_default();
    fs::write(to.path().join(WAL), &wal[..wal_length.min(wal.len())]).unwrap();
    to
}

fn wal_length(folder: &Path) -> usize {
    fs::metadata(folder.join(WAL)).map_or(0, |meta| meta.len() as usize)
}

/// Opens it as a restart does, which must go well; what is then in it, and what it was opened with.
fn restart(folder: &Path) -> (Vec<String>, History) {
    let (store, history) = Store::open(folder, &folder.join(FILE), &spec(), RunId(6), 0).unwrap();
    drop(store);
    (dump(folder), history)
}

fn open(folder: &Path) -> Store {
    Store::open(folder, &folder.join(FILE), &spec(), RunId(9), 0).unwrap().0
}

/// A view that begins late: what was reported before stays on record.
fn late_view(id: u64) -> Line {
    let Line::Entry(Entry::View { view, data }) = view(id) else { panic!("a view is one") };
    Line::Entry(Entry::View { view: View { begins_at: 1 << 40, ..view }, data })
}

/// All kinds of lines, the i-th of a history.
fn line(i: u64) -> Line {
    match i % 6 {
        0 => late_view(1 + i / 6),
        1 => Line::Entry(Entry::Lease { until: i }),
        2 | 3 => report(i, 0.5),
        4 => Line::Entry(Entry::Checkpoint { peer: name(), step: i }),
        _ => Line::Event { warn: false, sentence: format!("it is {i}") },
    }
}

/// A history in transactions: what is in the journal, and how long the log is, after each of them.
struct Written {
    folder: tempfile::TempDir,
    _store: Store,
    after: Vec<(usize, Vec<String>)>,
}

fn written(transactions: &[(usize, bool)]) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let mut after = vec![(wal_length(folder.path()), dump(folder.path()))];
    let mut next = 0;
    for (count, durable) in transactions {
        let lines: Vec<Line> = (next..next + *count as u64).map(line).collect();
        next += *count as u64;
        store.write(lines.iter().map(|line| (3, line)), *durable).unwrap();
        after.push((wal_length(folder.path()), dump(folder.path())));
    }
    Written { folder, _store: store, after }
}

impl Written {
    /// The log holds whole transactions up to a length, and so must the journal that is opened.
    fn check(&self, length: usize) {
        let crashed = crash(self.folder.path(), length);
        let (rows, history) = restart(crashed.path());
        let whole = self.after.iter().rfind(|(end, _)| *end <= length);
        let expected = whole.map(|(_, rows)| rows);
        assert!(expected == Some(&rows), "cut at {length}: {rows:?}, not {expected:?}");
        assert_eq!(history.run, RunId(9));
    }
}

#[test]
fn the_log_is_cut_off_at_and_inside_every_frame() {
    let written = written(&[(1, true), (3, false), (6, true), (2, false), (7, false), (1, true)]);
    let frame = FRAME_HEADER + 4096;
    let (first, last) = (written.after[0].0, wal_length(written.folder.path()));
    assert!((last - WAL_HEADER).is_multiple_of(frame), "the layout of the log is another");
    assert!(written.after.windows(2).all(|pair| pair[0].0 < pair[1].0), "a transaction without a frame");
    let mut at = WAL_HEADER + (first - WAL_HEADER) / frame * frame;
    while at <= last {
        for cut in [at, at + 1, at + FRAME_HEADER, at + frame / 2, at + frame - 1] {
            written.check(cut.min(last));
        }
        at += frame;
    }
}

/// The very first transaction makes the tables: without it the folder is a new one.
#[test]
fn a_crash_while_the_tables_are_made() {
    let written = written(&[]);
    let length = wal_length(written.folder.path());
    for cut in (0..length).step_by(509) {
        let crashed = crash(written.folder.path(), cut);
        let (_, history) = restart(crashed.path());
        assert!(history.run == RunId(6) || history.run == RunId(9), "{history:?}");
        assert_eq!((history.views, history.data), (Default::default(), None));
    }
}

/// A crash between any two lines of one transaction: none of them is there.
#[test]
fn a_crash_within_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.write([(3, &line(0))].into_iter(), true).unwrap();
    let before = dump(folder.path());
    // Enough for SQLite to write pages before the transaction ends.
    let lines: Vec<Line> = (1..6000).map(line).collect();
    let mut crashes = 0;
    let each = lines.iter().enumerate().map(|(i, line)| {
        if i % 397 == 0 {
            let crashed = crash(folder.path(), usize::MAX);
            assert_eq!(restart(crashed.path()).0, before, "after {i} lines");
            crashes += 1;
        }
        (3, line)
    });
    store.write(each, true).unwrap();
    assert!(crashes > 10);
    assert!(dump(folder.path()).len() > before.len() + 5000);
}

/// Long enough for SQLite to move the log into the file several times, and begin it anew.
#[test]
fn a_crash_after_any_transaction_of_a_long_history() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let mut moved = 0;
    let mut length = 0;
    for part in 0..400 {
        let lines: Vec<Line> = (30 * part..30 * (part + 1)).map(line).collect();
        store.write(lines.iter().map(|line| (3, line)), false).unwrap();
        let now = wal_length(folder.path());
        moved += u32::from(now <= length);
        length = now;
        if part % 20 == 19 {
            let crashed = crash(folder.path(), usize::MAX);
            assert_eq!(restart(crashed.path()).0, dump(folder.path()), "after {part} transactions");
        }
    }
    assert!(moved > 0, "the log was never moved");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_history_cut_off_anywhere(
        transactions in proptest::collection::vec((1..20usize, any::<bool>()), 1..12),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let written = written(&transactions);
        let (first, last) = (written.after[0].0, wal_length(written.folder.path()));
        for cut in cuts {
            written.check(first + cut.index(last - first + 1));
        }
    }

    /// Bytes that the disk has spoilt in the log end it there: what was before is whole, nothing is made up.
    #[test]
    fn a_log_that_is_damaged_anywhere(
        transactions in proptest::collection::vec((1..20usize, any::<bool>()), 1..12),
        place in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let written = written(&transactions);
        let (first, last) = (written.after[0].0, wal_length(written.folder.path()));
        let place = first + place.index(last - first);
        let crashed = crash(written.folder.path(), usize::MAX);
        let path = crashed.path().join(WAL);
        let mut wal = fs::read(&path).unwrap();
        wal[place] ^= flip;
        fs::write(&path, wal).unwrap();
        let (rows, _) = restart(crashed.path());
        let whole = written.after.iter().rfind(|(end, _)| *end <= place).map(|(_, rows)| rows);
        // Not every byte of a frame's header counts: with one that does not, nothing is lost.
        let all = written.after.last().map(|(_, rows)| rows);
        prop_assert!(whole == Some(&rows) || all == Some(&rows), "damaged at {}: {:?}", place, rows);
    }
}

/// With the real writing task: whenever the write of a view has returned, the view is there, whatever else is on its
/// way.
#[tokio::test]
async fn what_was_to_be_durable_is_there_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &spec(), RunId(9), 0).unwrap();
    for id in 1..60 {
        for step in 0..id {
            journal.write(1, report(100 * id + step, 1.0)).await.unwrap();
        }
        journal.write(2, late_view(id)).await.unwrap();
        let crashed = crash(folder.path(), usize::MAX);
        let (rows, history) = restart(crashed.path());
        assert_eq!(history.views.last().map(|view| view.id), Some(ViewId(id)));
        // Lines are written in their order, so those before it are there as well.
        let reports = rows.iter().filter(|row| row.starts_with("steps")).count() as u64;
        assert_eq!(reports, id * (id + 1) / 2);
    }
}
