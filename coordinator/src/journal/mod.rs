//! The journal of a run: an SQLite file that survives the coordinator and that anyone may query (`schema.sql` documents
//! its tables). One task owns the connection; the deciding loop hands it lines through a bounded queue and waits only
//! for those that must be on the disk before anyone acts on them.

mod recall;
mod store;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cohort_proto::id::RunId;
use cohort_proto::limits::QUEUE_DEPTH;
use cohort_proto::spec::RunSpec;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{block_in_place, spawn};

use crate::cluster::History;
use crate::event::Entry;
use store::Store;

/// The journal's file in the state folder.
const FILE: &str = "journal.sqlite";
/// The file whose lock keeps a second coordinator out of the folder.
const LOCK: &str = "lock";
/// Lines that one transaction takes at the most: a second's worth of a fast cohort.
const BATCH_MAX: usize = 1024;

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder or a file in it cannot be made or opened.
    #[error("the state folder {} cannot be used: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another coordinator works in the folder.
    #[error("the state folder {} is in use by another coordinator; stop that one, or give this one another --state", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It belongs to another run.
    #[error(
        "the state folder {} belongs to run {theirs:?} with another run spec ({their_hash}, this is {our_hash}); give \
         another --state, or the run.toml that it was made with", path.display()
    )]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// The name of its run.
        theirs: String,
        /// The start of its spec's hash.
        their_hash: String,
        /// The start of this spec's hash.
        our_hash: String,
    },
    /// It was made by another version.
    #[error("the journal {} has format {got}, this version knows {known}; give another --state", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        got: i64,
        /// Ours.
        known: i64,
    },
    /// What SQLite says.
    #[error("the journal {} cannot be read or written: {source}; {}", path.display(), advice(source))]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
}

/// A line that could not be written, and the reason that the writing task gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WriteFailed(pub String);

/// What to do about what SQLite says.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase, ReadOnly};
    match error.sqlite_error_code() {
        Some(DiskFull) => "make room on its disk and start the coordinator again",
        Some(DatabaseCorrupt | NotADatabase) => {
            "it is damaged: put a copy in its place, or begin the run anew with other --state folders"
        }
        Some(ReadOnly) => "let this process write there, or give another --state",
        _ => "see to its folder and start the coordinator again",
    }
}

/// What the journal takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Something of the run.
    Entry(Entry),
    /// Something that people were told.
    Event {
        /// Whether something was wrong.
        warn: bool,
        /// What.
        sentence: String,
    },
}

/// A line on its way, with the time it is about and whoever waits for it.
struct Order {
    at_ms: u64,
    line: Option<Line>,
    durable: Option<oneshot::Sender<()>>,
}

/// The way to the writing task. Dropping it ends the task once everything is written.
#[derive(Debug)]
pub struct Journal {
    queue: mpsc::Sender<Order>,
    failure: Arc<OnceLock<String>>,
    file: PathBuf,
    _lock: File,
}

impl Journal {
    /// Opens the journal of a folder, or makes one for run `fresh`, and counts this start. Blocks; called in a runtime,
    /// before anything is served.
    ///
    /// # Errors
    /// A folder that cannot be written, is in use, or belongs to another run spec.
    pub fn open(
        folder: &Path,
        spec: &RunSpec,
        fresh: RunId,
        at_ms: u64,
    ) -> Result<(Self, History), JournalError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Folder { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let lock_path = folder.join(LOCK);
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path)(source)),
        }
        let file = folder.join(FILE);
        let (store, history) = Store::open(folder, &file, spec, fresh, at_ms)?;
        let (queue, orders) = mpsc::channel(QUEUE_DEPTH);
        let failure = Arc::new(OnceLock::new());
        spawn(write_all(store, orders, Arc::clone(&failure)));
        Ok((Self { queue, failure, file, _lock: lock }, history))
    }

    /// Hands a line over; waits only while the queue is full, or, for a line that must be durable, until it is on the
    /// disk.
    ///
    /// # Errors
    /// The journal can no longer be written.
    pub async fn write(&self, at_ms: u64, line: Line) -> Result<(), WriteFailed> {
        if matches!(&line, Line::Entry(entry) if entry.must_be_durable()) {
            return self.durable(at_ms, Some(line)).await;
        }
        self.queue.send(Order { at_ms, line: Some(line), durable: None }).await.map_err(|_| self.failed())
    }

    /// Waits until everything handed over so far is on the disk.
    ///
    /// # Errors
    /// The journal can no longer be written.
    pub async fn flush(&self) -> Result<(), WriteFailed> {
        self.durable(0, None).await
    }

    async fn durable(&self, at_ms: u64, line: Option<Line>) -> Result<(), WriteFailed> {
        let (done, waits) = oneshot::channel();
        let sent = self.queue.send(Order { at_ms, line, durable: Some(done) }).await;
        sent.map_err(|_| self.failed())?;
        waits.await.map_err(|_| self.failed())
    }

    fn failed(&self) -> WriteFailed {
        WriteFailed(self.failure.get().cloned().unwrap_or_else(|| "nobody writes it any more".to_owned()))
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        let wal = self.file.with_extension("sqlite-wal");
        [&self.file, &wal].into_iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum()
    }
}

/// Writes what waits, many lines in one transaction, until nobody can hand over more or writing fails: whoever waits
/// or writes next then finds the queue closed and `reason` given.
async fn write_all(mut store: Store, mut orders: mpsc::Receiver<Order>, reason: Arc<OnceLock<String>>) {
    let mut batch = Vec::new();
    while orders.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let durable = batch.iter().any(|order| order.durable.is_some());
        let lines = batch.iter().filter_map(|order| Some((order.at_ms, order.line.as_ref()?)));
        if let Err(error) = blocking(|| store.write(lines, durable)) {
            // Only this task ever sets it. The queue closes before those who wait for this batch are let go.
            _ = reason.set(error.to_string());
            drop(orders);
            return;
        }
        for waiting in batch.drain(..).filter_map(|order| order.durable) {
            // Whoever no longer waits does not need the answer.
            _ = waiting.send(());
        }
    }
}

/// Does what blocks: of several threads of a runtime the others take over meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests;
