//! What held: the ends of both runs compared, and the journal and the reports of the disturbed one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cohort_proto::id::Digest;
use rusqlite::{Connection, OpenFlags};

use crate::setting::Setting;
use crate::supervise::Outcome;
use crate::watch::{Losses, bits};

/// How many sentences about one thing are said; the rest is counted.
const SENTENCES_MAX: usize = 5;

/// A row of the journal's steps, with its terms.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// Of what was said, in this run and view.
    digest: String,
    view: u64,
    /// What does not depend on which run it is: the tensors that were said, where the journal has them, and the losses.
    said: Option<String>,
    losses: Losses,
}

impl Row {
    fn same_step(&self, other: &Self) -> bool {
        (&self.said, &self.losses) == (&other.said, &other.losses)
    }
}

/// What a journal says.
#[derive(Debug, Default)]
struct Journal {
    phase: String,
    total_steps: u64,
    rows: BTreeMap<(String, u64), Row>,
    /// By number: the first step, and the members.
    views: BTreeMap<u64, (u64, BTreeSet<String>)>,
}

/// What held, and what did not.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// A sentence for each thing that did not; empty if all did.
    pub(crate) failures: Vec<String>,
    pub(crate) steps: u64,
    /// Steps of a peer without a row in the journal.
    pub(crate) lost: u64,
    /// Steps of a peer that were taken otherwise than in the undisturbed run, or twice and differently.
    pub(crate) doubled: u64,
    /// Contributions that were consumed otherwise than they were said.
    pub(crate) disagreements: u64,
    pub(crate) views: u64,
    /// SHA-256 by peer.
    pub(crate) weights: BTreeMap<String, String>,
    pub(crate) weights_identical: bool,
    pub(crate) optimizers_identical: bool,
}

impl Verdict {
    /// Judges the disturbed run in a folder by the undisturbed one beside it.
    pub(crate) fn of(setting: &Setting, folder: &Path, rough: &Outcome) -> Self {
        let mut verdict = Self::default();
        verdict.failures.extend(rough.failure.clone());
        if let Err(error) = verdict.judge(setting, folder, rough) {
            verdict.failures.push(format!("{error:#}"));
        }
        verdict
    }

    fn judge(&mut self, setting: &Setting, folder: &Path, rough: &Outcome) -> Result<()> {
        let journal = |run: &str| Journal::read(&folder.join(run).join("coordinator/journal.sqlite"));
        let (calm, actual) = (journal("undisturbed")?, journal("disturbed")?);
        self.steps = calm.total_steps;
        self.views = actual.views.len() as u64;
        let last_members = actual.views.values().next_back().map(|(_, members)| members.clone());
        self.files(setting, folder, &last_members.unwrap_or_default())?;
        if actual.phase != "finished" {
            self.failures.push(format!("the journal says that the run is {}", actual.phase));
        }
        self.agreement(&actual, rough);
        if setting.waits {
            self.against(&calm, &actual, rough);
        } else {
            self.by_itself(setting, &actual);
        }
        self.views_grow(&actual);
        let doubled = &rough.seen.contradictions;
        self.doubled += doubled.len() as u64;
        self.say(doubled.clone());
        if setting.waits {
            let unasked = rough.tally.unasked.iter().map(|words| format!("nobody had asked: {words}"));
            self.say(unasked.collect());
        }
        Ok(())
    }

    /// Weights and optimisers at the end. Whoever the others went on without has none, if the run ended before it came in
    /// again: only the last members must.
    fn files(&mut self, setting: &Setting, folder: &Path, members: &BTreeSet<String>) -> Result<()> {
        let last = format!("checkpoint-{}", self.steps);
        let file = |run: &str, peer: &str, name: &str| -> Result<Vec<u8>> {
            let path: PathBuf = folder.join(run).join("peers").join(peer).join(&last).join(name);
            fs::read(&path).with_context(|| format!("no last checkpoint {}", path.display()))
        };
        (self.weights_identical, self.optimizers_identical) = (true, true);
        for peer in setting.peers() {
            for (name, identical) in [
                ("model.safetensors", &mut self.weights_identical),
                ("optimizer.safetensors", &mut self.optimizers_identical),
            ] {
                let expected = file("undisturbed", peer, name)?;
                let same = match file("disturbed", peer, name) {
                    Ok(bytes) => {
                        if name.starts_with("model") {
                            self.weights.insert(peer.to_owned(), Digest::of(&bytes).to_string());
                        }
                        bytes == expected
                    }
                    Err(error) => {
                        if setting.waits || members.contains(peer) {
                            self.failures.push(format!("{error:#}"));
                        }
                        false
                    }
                };
                *identical &= same;
                if !same && setting.waits {
                    self.failures.push(format!("peer {peer} ends in another {name}"));
                }
            }
        }
        Ok(())
    }

    /// Every peer took every step once, as it did undisturbed.
    fn against(&mut self, calm: &Journal, actual: &Journal, rough: &Outcome) {
        let mut words = Vec::new();
        for ((peer, step), expected) in &calm.rows {
            match actual.rows.get(&(peer.clone(), *step)) {
                None => {
                    self.lost += 1;
                    words.push(format!("step {step} of peer {peer} is not in the journal"));
                }
                Some(row) if !row.same_step(expected) => {
                    self.doubled += 1;
                    words.push(format!("step {step} of peer {peer} is another in the journal"));
                }
                Some(_) => {}
            }
        }
        for (peer, step) in actual.rows.keys().filter(|key| !calm.rows.contains_key(*key)) {
            self.doubled += 1;
            words.push(format!("step {step} of peer {peer} is too much"));
        }
        for ((peer, step, view), reported) in &rough.seen.reported {
            let key = (peer.clone(), *step);
            let other = calm.rows.get(&key).is_none_or(|row| row.losses != reported.losses);
            let journal = actual.rows.get(&key).filter(|row| row.view == *view);
            if other || journal.is_some_and(|row| row.digest != hex(&reported.own)) {
                self.doubled += 1;
                words.push(format!("peer {peer} reported another step {step} (view {view})"));
            }
        }
        self.say(words);
    }

    /// Every member of a view took all its steps, but for the last reports of one that was put out: they may be lost with it.
    fn by_itself(&mut self, setting: &Setting, actual: &Journal) {
        let mut words = Vec::new();
        // By peer: the first step that the journal lacks, and the view that holds there.
        let mut lacks: BTreeMap<&String, (u64, u64)> = BTreeMap::new();
        for step in 0..self.steps {
            let holds = actual.views.iter().rfind(|(_, (begins_at, _))| *begins_at <= step);
            let Some((view, (_, members))) = holds else {
                self.failures.push(format!("no view holds for step {step}"));
                return;
            };
            lacks.retain(|peer, _| members.contains(*peer));
            for peer in members {
                if !actual.rows.contains_key(&(peer.clone(), step)) {
                    lacks.entry(peer).or_insert((step, *view));
                } else if let Some(from) =
                    lacks.remove(peer).filter(|from| !put_out(actual, peer, *from, step))
                {
                    words.push((peer, from));
                }
            }
            if members.len() < setting.spec.policy.min_peers {
                self.failures.push(format!("view {view} has {} members", members.len()));
            }
        }
        let at_the_end = lacks.into_iter().filter(|(peer, from)| !put_out(actual, peer, *from, self.steps));
        words.extend(at_the_end);
        self.lost += words.len() as u64;
        let say = |(peer, (step, view)): (&String, (u64, u64))| {
            format!("step {step} of peer {peer}, a member of view {view}, is not in the journal")
        };
        self.say(words.into_iter().map(say).collect());
    }

    /// What each peer consumed is what its source says it said.
    fn agreement(&mut self, actual: &Journal, rough: &Outcome) {
        let mut words = Vec::new();
        for ((peer, step, view), reported) in &rough.seen.reported {
            for (source, digest) in &reported.consumed {
                let said = actual.rows.get(&(source.clone(), *step)).filter(|row| row.view == *view);
                if said.is_some_and(|row| row.digest != hex(digest)) {
                    words.push(format!("peer {peer} consumed in step {step} what peer {source} did not say"));
                }
            }
        }
        self.disagreements = words.len() as u64;
        self.say(words);
    }

    /// A view is followed by one with the next number.
    fn views_grow(&mut self, actual: &Journal) {
        let numbers: Vec<u64> = actual.views.keys().copied().collect();
        if numbers != (1..=numbers.len() as u64).collect::<Vec<_>>() {
            self.failures.push(format!("the numbers of views have gaps: {numbers:?}"));
        }
    }

    fn say(&mut self, mut words: Vec<String>) {
        let more = words.len().saturating_sub(SENTENCES_MAX);
        words.truncate(SENTENCES_MAX);
        self.failures.extend(words);
        if more > 0 {
            self.failures.push(format!("and {more} more like this"));
        }
    }
}

impl Journal {
    fn read(path: &Path) -> Result<Self> {
        let open = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection = open.with_context(|| format!("the journal {}", path.display()))?;
        let (phase, total_steps) =
            connection.query_row("SELECT phase, coalesce(total_steps, 0) FROM runs", [], |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
            })?;
        let mut journal = Self { phase, total_steps, ..Self::default() };
        let mut steps = connection.prepare("SELECT * FROM steps")?;
        let mut rows = steps.query([])?;
        while let Some(row) = rows.next()? {
            let key = (row.get("peer")?, row.get::<_, i64>("step")?.unsigned_abs());
            let view = row.get::<_, i64>("view")?.unsigned_abs();
            // Journals of older formats do not have it.
            let said = row.get("said").ok();
            let step = Row { digest: row.get("digest")?, view, said, losses: Losses::new() };
            journal.rows.insert(key, step);
        }
        let mut terms = connection.prepare("SELECT peer, step, name, value FROM terms")?;
        let mut rows = terms.query([])?;
        while let Some(row) = rows.next()? {
            let key = (row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs());
            if let Some(step) = journal.rows.get_mut(&key) {
                step.losses.insert(row.get(2)?, row.get::<_, Option<f64>>(3)?.and_then(bits));
            }
        }
        let mut views =
            connection.prepare("SELECT view, begins_at, peer FROM views JOIN members USING (view)")?;
        let mut rows = views.query([])?;
        while let Some(row) = rows.next()? {
            let (view, begins_at) =
                (row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs());
            let entry = journal.views.entry(view).or_insert_with(|| (begins_at, BTreeSet::new()));
            entry.1.insert(row.get(2)?);
        }
        Ok(journal)
    }
}

/// The steps that a meta-update followed, as a journal says.
pub(crate) fn meta_steps(folder: &Path) -> Result<BTreeSet<u64>> {
    let path = folder.join("coordinator/journal.sqlite");
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut steps = connection.prepare("SELECT DISTINCT step FROM terms WHERE name = 'meta_gradient'")?;
    let steps = steps.query_map([], |row| Ok(row.get::<_, i64>(0)?.unsigned_abs()))?;
    Ok(steps.collect::<rusqlite::Result<_>>()?)
}

/// Whether a peer was put out of a view after a step that is not on record, and not after one that is.
fn put_out(journal: &Journal, peer: &String, (from, view): (u64, u64), until: u64) -> bool {
    let mut later = journal.views.range(view + 1..).map(|(_, later)| later);
    later.any(|(begins_at, members)| *begins_at > from && *begins_at <= until && !members.contains(peer))
}

fn hex(digest: &[u8]) -> String {
    digest.try_into().map_or_else(|_| String::new(), |bytes| Digest(bytes).to_string())
}

#[cfg(test)]
mod tests;
