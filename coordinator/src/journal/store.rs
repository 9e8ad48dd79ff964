//! The SQLite side of the journal: the statements.

use std::path::Path;

use cohort_proto::control::{StepReport, TensorDigest};
use cohort_proto::id::{RunId, ViewId};
use cohort_proto::spec::RunSpec;
use cohort_proto::view::View;
use rusqlite::{Connection, Transaction, params};

use super::{JournalError, Line, recall};
use crate::cluster::History;
use crate::event::{DataFacts, Entry};

/// The tables.
const SCHEMA: &str = include_str!("schema.sql");
/// What can be asked of them besides: made at every start, since a journal of an earlier version lacks the later ones.
const VIEWS: &str = include_str!("views.sql");
/// The version of the tables, in the file's `user_version`.
const FORMAT: i64 = 2;

/// The open file.
pub(super) struct Store {
    connection: Connection,
    archs: Vec<String>,
    view: ViewId,
}

impl Store {
    pub(super) fn open(
        folder: &Path,
        file: &Path,
        spec: &RunSpec,
        fresh: RunId,
        at_ms: u64,
    ) -> Result<(Self, History), JournalError> {
        let failed = |source| JournalError::Sqlite { path: file.to_owned(), source };
        let mut connection = Connection::open(file).map_err(failed)?;
        // Readers never block the writer in this mode, so a user may query while the run goes on.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        let format: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        match format {
            0 => make(&mut connection, spec, fresh, at_ms).map_err(failed)?,
            FORMAT => check_run(&connection, folder, file, spec)?,
            got => return Err(JournalError::Format { path: file.to_owned(), got, known: FORMAT }),
        }
        connection.execute_batch(VIEWS).map_err(failed)?;
        let history = recall::history(&connection, spec).map_err(failed)?;
        connection.execute("UPDATE runs SET starts = starts + 1", []).map_err(failed)?;
        let archs = spec.peers.iter().map(|peer| peer.arch.clone()).collect();
        let view = history.views.last().map_or(ViewId(0), |view| view.id);
        Ok((Self { connection, archs, view }, history))
    }

    /// Writes lines in one transaction. Without `durable` a crash of the machine (not of the process) may lose them.
    pub(super) fn write<'a>(
        &mut self,
        lines: impl Iterator<Item = (u64, &'a Line)>,
        durable: bool,
    ) -> rusqlite::Result<()> {
        let synchronous = if durable { "FULL" } else { "NORMAL" };
        self.connection.pragma_update(None, "synchronous", synchronous)?;
        let transaction = self.connection.transaction()?;
        for (at_ms, line) in lines {
            write_line(&transaction, &self.archs, &mut self.view, whole(at_ms), line)?;
        }
        transaction.commit()
    }
}

fn make(connection: &mut Connection, spec: &RunSpec, fresh: RunId, at_ms: u64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.execute(
        "INSERT INTO runs (id, name, spec_hash, spec_json, made_at, starts, phase) VALUES (?, ?, ?, ?, ?, 0, 'gathering')",
        params![fresh.to_string(), spec.run.name, spec.hash().to_string(), spec.to_json(), whole(at_ms)],
    )?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

fn check_run(
    connection: &Connection,
    folder: &Path,
    file: &Path,
    spec: &RunSpec,
) -> Result<(), JournalError> {
    let ours = spec.hash();
    let row = connection.query_row("SELECT name, spec_hash FROM runs", [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    });
    let (theirs, their_hash) =
        row.map_err(|source| JournalError::Sqlite { path: file.to_owned(), source })?;
    if their_hash == ours.to_string() {
        return Ok(());
    }
    let their_hash = their_hash.chars().take(12).collect();
    Err(JournalError::OtherRun { path: folder.to_owned(), theirs, their_hash, our_hash: ours.short() })
}

fn write_line(
    transaction: &Transaction,
    archs: &[String],
    view: &mut ViewId,
    at: i64,
    line: &Line,
) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(params);
    match line {
        Line::Event { warn, sentence } => {
            run("INSERT INTO events VALUES (?, ?, ?)", params![at, warn, sentence])?;
        }
        Line::Entry(Entry::View { view: new, data }) => {
            *view = new.id;
            write_view(transaction, archs, at, new, data)?;
        }
        Line::Entry(Entry::Lease { until }) => {
            let params = params![whole(view.0), whole(*until), at];
            run("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", params)?;
        }
        Line::Entry(Entry::Checkpoint { peer, step }) => {
            let params = params![peer.as_str(), whole(*step), at];
            run("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", params)?;
        }
        Line::Entry(Entry::Lost { peer, after }) => {
            let params = params![peer.as_str(), whole(*after)];
            run("DELETE FROM checkpoints WHERE peer = ? AND step > ?", params)?;
        }
        Line::Entry(Entry::Phase(phase)) => {
            run("UPDATE runs SET phase = ?", params![phase.name()])?;
        }
        Line::Entry(Entry::Report { peer, report }) => write_report(transaction, peer.as_str(), at, report)?,
    }
    Ok(())
}

fn write_view(
    transaction: &Transaction,
    archs: &[String],
    at: i64,
    view: &View,
    data: &DataFacts,
) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE runs SET total_steps = ?, fingerprint = ?",
        params![whole(data.total_steps), data.fingerprint.to_string()],
    )?;
    // Steps from here on are taken anew, whatever was on record of them.
    for table in ["steps", "terms", "timings"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE step >= ?"), [whole(view.begins_at)])?;
    }
    // So are the checkpoints of them.
    transaction.execute("DELETE FROM checkpoints WHERE step > ?", [whole(view.begins_at)])?;
    let id = whole(view.id.0);
    transaction.execute("INSERT INTO views VALUES (?, ?, ?)", params![id, whole(view.begins_at), at])?;
    let mut insert = transaction.prepare_cached("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?)")?;
    for member in &view.members {
        let arch = archs.get(member.index).map_or("", String::as_str);
        let says = member.schema.to_string();
        insert.execute(params![
            id,
            whole(member.index as u64),
            member.name.as_str(),
            arch,
            member.address,
            says
        ])?;
    }
    Ok(())
}

fn write_report(transaction: &Transaction, peer: &str, at: i64, report: &StepReport) -> rusqlite::Result<()> {
    let step = whole(report.step);
    transaction
        .prepare_cached("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?
        .execute(params![
            peer,
            step,
            whole(report.view.0),
            whole(report.epoch),
            finite(report.lr),
            report.own_digest.to_string(),
            said_to_json(&report.said),
            whole(report.images),
            whole(report.log_bytes),
            at
        ])?;
    let mut term = transaction.prepare_cached("INSERT OR REPLACE INTO terms VALUES (?, ?, ?, ?)")?;
    for each in &report.terms {
        term.execute(params![peer, step, each.name, finite(each.value)])?;
    }
    let mut timing = transaction.prepare_cached("INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)")?;
    for each in &report.timings {
        timing.execute(params![peer, step, each.act, finite(each.ms)])?;
    }
    Ok(())
}

/// The digests of tensors by name.
fn said_to_json(said: &[TensorDigest]) -> String {
    let entries = said.iter().map(|said| (said.name.clone(), format!("{:016x}", said.digest).into()));
    serde_json::Value::Object(entries.collect()).to_string()
}

/// SQLite's integers are signed; a count that does not fit is a hostile one, and its greatest value says that too.
pub(super) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}
