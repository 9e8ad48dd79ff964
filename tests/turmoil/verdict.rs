//! What must hold once everybody is done: the journal and the checkpoints, against the undisturbed run or, where the
//! others go on without one that is lost, against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cohort_proto::id::{Step, ViewId};
use rusqlite::{Connection, OpenFlags};

use crate::processes::Cohort;
use crate::setting::{STEPS, Setting, loss};
use crate::witness::{Done, Witness};

/// A row of the journal: the view, the loss and what was said.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    view: u64,
    loss: f64,
    said: String,
}

struct Journal {
    rows: BTreeMap<(usize, Step), Row>,
    /// Number, first step and members of every view.
    views: Vec<(u64, Step, BTreeSet<usize>)>,
    events: Vec<String>,
}

fn read(folder: &Path, setting: &Setting) -> rusqlite::Result<Journal> {
    let journal =
        Connection::open_with_flags(folder.join("journal.sqlite"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let index = |name: String| setting.spec.peers.iter().position(|peer| peer.name.as_str() == name).unwrap();
    let sql = "SELECT s.peer, s.step, s.view, t.value, s.said FROM steps s JOIN terms t USING (peer, step)";
    let rows = journal
        .prepare(sql)?
        .query_map([], |row| {
            let at = (index(row.get(0)?), row.get::<_, i64>(1)? as Step);
            Ok((at, Row { view: row.get::<_, i64>(2)? as u64, loss: row.get(3)?, said: row.get(4)? }))
        })?
        .collect::<rusqlite::Result<BTreeMap<_, _>>>()?;
    let members = |view: i64| -> rusqlite::Result<BTreeSet<usize>> {
        let mut members = journal.prepare("SELECT peer FROM members WHERE view = ?")?;
        members.query_map([view], |row| Ok(index(row.get(0)?)))?.collect()
    };
    let numbers: Vec<(i64, i64)> = journal
        .prepare("SELECT view, begins_at FROM views ORDER BY view")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let view = |(view, begins_at): (i64, i64)| Ok((view as u64, begins_at as Step, members(view)?));
    let views = numbers.into_iter().map(view).collect::<rusqlite::Result<_>>()?;
    let events = journal
        .prepare("SELECT sentence FROM events ORDER BY rowid")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Journal { rows, views, events })
}

/// What the coordinator told people, the newest last.
pub(crate) fn events(cohort: &Cohort) -> Vec<String> {
    read(&cohort.folder, &cohort.setting)
        .map_or_else(|error| vec![error.to_string()], |journal| journal.events)
}

/// Judges a cohort that is done.
pub(crate) fn judge(cohort: &Cohort) -> Result<(), String> {
    let journal = read(&cohort.folder, &cohort.setting).map_err(|error| error.to_string())?;
    let bad = ["no longer agree", "replays step"];
    if let Some(event) = journal.events.iter().find(|event| bad.iter().any(|bad| event.contains(bad))) {
        return Err(event.clone());
    }
    let witness = cohort.witness.lock().unwrap();
    same_as_witnessed(&journal, &witness)?;
    if cohort.setting.kind.goes_on {
        views_are_complete(&journal)?;
        trajectories_are_whole(&journal, &witness)?;
    } else {
        same_as_undisturbed(&journal, &cohort.setting)?;
    }
    let members = journal.views.last().map(|(.., members)| members.clone()).unwrap_or_default();
    for peer in members {
        let state = cohort.disks[peer].lock().unwrap().load(STEPS);
        let expected = witness.done.get(&(peer, STEPS - 1)).map(|done| done.after);
        if state.is_none() || state != expected {
            return Err(format!(
                "the last checkpoint of {} is {state:?}, not {expected:?}",
                cohort.name(peer)
            ));
        }
    }
    Ok(())
}

fn same_as_witnessed(journal: &Journal, witness: &Witness) -> Result<(), String> {
    for ((peer, step), row) in &journal.rows {
        let Some(Done { view, after, .. }) = witness.done.get(&(*peer, *step)) else {
            return Err(format!("the journal has step {step} of peer {peer}, which never completed it"));
        };
        if (row.view, row.loss) != (view.0, loss(*after)) {
            return Err(format!(
                "at step {step} of peer {peer} the journal has {row:?}, seen was view {view}"
            ));
        }
    }
    Ok(())
}

/// Every step is there once, and is what it is in the undisturbed run.
fn same_as_undisturbed(journal: &Journal, setting: &Setting) -> Result<(), String> {
    let peers = setting.spec.peers.len();
    if journal.rows.len() as u64 != peers as u64 * STEPS {
        return Err(format!("the journal has {} steps, not {peers} times {STEPS}", journal.rows.len()));
    }
    for ((peer, step), row) in &journal.rows {
        let said: BTreeMap<String, String> =
            serde_json::from_str(&row.said).map_err(|error| error.to_string())?;
        let expected = setting.said(*peer, *step).iter();
        let expected =
            expected.map(|tensor| (tensor.name.clone(), format!("{:016x}", tensor.digest))).collect();
        if row.loss != loss(setting.state(*peer, *step + 1)) || said != expected {
            return Err(format!("at step {step} of peer {peer} the journal has {row:?}, not {expected:?}"));
        }
    }
    Ok(())
}

/// Views are numbered without gaps, and whoever stays to the end has done all steps since it came in. Of those that were
/// lost the last reports may be lost as well.
fn views_are_complete(journal: &Journal) -> Result<(), String> {
    let numbers: Vec<u64> = journal.views.iter().map(|(number, ..)| *number).collect();
    if numbers != (1..=numbers.len() as u64).collect::<Vec<_>>() {
        return Err(format!("views are numbered {numbers:?}"));
    }
    let mut views = journal.views.clone();
    for (number, begins_at, _) in &journal.views {
        // It takes the place of those that begin no earlier.
        views.retain(|(earlier, begins, _)| earlier >= number || begins < begins_at);
    }
    for peer in views.iter().flat_map(|(.., members)| members).collect::<BTreeSet<_>>() {
        let mut missing = None;
        for (i, (number, begins_at, members)) in views.iter().enumerate() {
            if !members.contains(peer) {
                missing = None;
                continue;
            }
            for step in *begins_at..views.get(i + 1).map_or(STEPS, |(_, begins_at, _)| *begins_at) {
                match (journal.rows.get(&(*peer, step)), missing) {
                    (None, _) => missing = missing.or(Some(step)),
                    (Some(row), None) if row.view == *number => {}
                    (row, _) => {
                        return Err(format!(
                            "peer {peer} has {row:?} at step {step} of view {number}, missing is {missing:?}"
                        ));
                    }
                }
            }
        }
        if let Some(step) = missing {
            return Err(format!("peer {peer} is in the last view, but the journal lacks its step {step}"));
        }
    }
    Ok(())
}

/// Each step begins with the weights that the one before it left, or with those that its peer brought when it came in.
fn trajectories_are_whole(journal: &Journal, witness: &Witness) -> Result<(), String> {
    for (peer, step) in journal.rows.keys().filter(|(_, step)| *step > 0) {
        let Done { before, view, .. } = witness.done[&(*peer, *step)];
        let left = journal.rows.get(&(*peer, step - 1)).map(|_| witness.done[&(*peer, step - 1)].after);
        let brought = witness.came_in.get(&(*peer, *step)).copied();
        if Some(before) != left && Some(before) != brought {
            return Err(format!(
                "peer {peer} begins step {step} (view {}) with other weights than it had",
                ViewId(view.0)
            ));
        }
    }
    Ok(())
}
