//! What is read back from the journal when a coordinator is started again: the views, the lease, and of every peer how
//! far it was and what it said in the steps that it may take again.

use cohort_proto::control::TensorDigest;
use cohort_proto::id::{Digest, PeerName, RunId, Step, ViewId};
use cohort_proto::limits::DIGEST_STEPS_MAX;
use cohort_proto::spec::RunSpec;
use cohort_proto::view::{Member, View, Views};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::store::whole;
use crate::agreement::Said;
use crate::cluster::{History, PeerRecord};
use crate::event::DataFacts;

pub(super) fn history(connection: &Connection, spec: &RunSpec) -> rusqlite::Result<History> {
    let (run, starts, total, fingerprint) = connection.query_row(
        "SELECT id, starts, total_steps, fingerprint FROM runs",
        [],
        |row| -> rusqlite::Result<(String, i64, Option<i64>, Option<String>)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        },
    )?;
    let run = u64::from_str_radix(&run, 16).map_err(|error| unreadable(0, error))?;
    let data = match (total, fingerprint) {
        (Some(total), Some(hex)) => {
            Some(DataFacts { fingerprint: digest(3, &hex)?, total_steps: count(total) })
        }
        _ => None,
    };
    let views = views(connection, spec)?;
    let begins_at = views.first().map_or(0, |view| view.begins_at);
    let retained = retained(connection, spec)?;
    let record = |peer: &PeerName| record(connection, peer, begins_at, retained);
    Ok(History {
        run: RunId(run),
        starts: count(starts),
        lease_until: lease(connection)?,
        records: spec.peers.iter().map(|peer| record(&peer.name)).collect::<rusqlite::Result<_>>()?,
        views,
        data,
    })
}

/// The views that hold for some step.
fn views(connection: &Connection, spec: &RunSpec) -> rusqlite::Result<Views> {
    let mut statement = connection.prepare("SELECT view, begins_at FROM views ORDER BY view")?;
    let rows = statement.query_map([], |row| Ok((count(row.get(0)?), count(row.get(1)?))))?;
    let mut views = Views::default();
    for row in rows {
        let (id, begins_at) = row?;
        views.insert(View { id: ViewId(id), begins_at, members: members(connection, spec, id)? });
    }
    Ok(views)
}

fn members(connection: &Connection, spec: &RunSpec, view: u64) -> rusqlite::Result<Vec<Member>> {
    let mut statement =
        connection.prepare("SELECT idx, peer, address FROM members WHERE view = ? ORDER BY idx")?;
    let rows = statement.query_map([whole(view)], |row| {
        let index = usize::try_from(row.get::<_, i64>(0)?).map_err(|error| unreadable(0, error))?;
        let name = PeerName::new(row.get::<_, String>(1)?).map_err(|error| unreadable(1, error))?;
        let schema = spec.contribution_schema(index).map_err(|error| unreadable(0, error))?;
        Ok(Member { index, name, address: row.get(2)?, schema })
    })?;
    rows.collect()
}

/// The end of the last grant. What was granted in an earlier view stays granted: some may have gone so far, and a crash can
/// come between a view and the line that says so again.
fn lease(connection: &Connection) -> rusqlite::Result<Step> {
    let until: Option<i64> = connection.query_row("SELECT max(until) FROM leases", [], |row| row.get(0))?;
    Ok(until.map_or(0, count))
}

/// The newest checkpoint that all peers said they have: nobody takes earlier steps again.
fn retained(connection: &Connection, spec: &RunSpec) -> rusqlite::Result<Step> {
    let sql = "SELECT step FROM checkpoints GROUP BY step HAVING count(*) = ? ORDER BY step DESC LIMIT 1";
    let step: Option<i64> =
        connection.query_row(sql, [whole(spec.peers.len() as u64)], |row| row.get(0)).optional()?;
    Ok(step.map_or(0, count))
}

fn record(
    connection: &Connection,
    peer: &PeerName,
    begins_at: Step,
    retained: Step,
) -> rusqlite::Result<PeerRecord> {
    let newest: Option<i64> =
        connection
            .query_row("SELECT max(step) FROM steps WHERE peer = ?", [peer.as_str()], |row| row.get(0))?;
    let mut held = connection.prepare("SELECT step FROM checkpoints WHERE peer = ? ORDER BY step")?;
    let checkpoints =
        held.query_map([peer.as_str()], |row| Ok(count(row.get(0)?)))?.collect::<Result<_, _>>()?;
    let mut steps = connection.prepare(
        "SELECT step, digest, said FROM steps WHERE peer = ? AND step >= ? ORDER BY step DESC LIMIT ?",
    )?;
    let limits = params![peer.as_str(), whole(retained), whole(DIGEST_STEPS_MAX as u64)];
    let said = steps.query_map(limits, said)?.collect::<Result<_, _>>()?;
    Ok(PeerRecord { completed: newest.map_or(begins_at, |step| count(step) + 1), checkpoints, said })
}

fn said(row: &Row<'_>) -> rusqlite::Result<(Step, Said)> {
    let digest = digest(1, &row.get::<_, String>(1)?)?;
    let tensors: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&row.get::<_, String>(2)?).map_err(|error| unreadable(2, error))?;
    let tensor = |(name, value): (String, serde_json::Value)| {
        let digest =
            u64::from_str_radix(value.as_str().unwrap_or(""), 16).map_err(|error| unreadable(2, error));
        Ok(TensorDigest { name, digest: digest? })
    };
    let tensors = tensors.into_iter().map(tensor).collect::<rusqlite::Result<_>>()?;
    Ok((count(row.get(0)?), Said { digest, tensors }))
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn digest(column: usize, hex: &str) -> rusqlite::Result<Digest> {
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let digits = hex.get(2 * i..2 * i + 2).unwrap_or("");
        *byte = u8::from_str_radix(digits, 16).map_err(|error| unreadable(column, error))?;
    }
    Ok(Digest(bytes))
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
