//! The coordinator's journal: what must be durable is so at once, with all before it; of what follows, a crash loses a
//! suffix. [`Journal::history`] reads it back as the tables of the real one are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_coordinator::agreement::Said;
use cohort_coordinator::cluster::{History, PeerRecord};
use cohort_coordinator::event::Entry;
use cohort_proto::control::StepReport;
use cohort_proto::id::{PeerName, RunId, Step, ViewId};
use cohort_proto::view::Views;

use crate::training::Setting;

pub(crate) const RUN: RunId = RunId(77);

#[derive(Clone, Default)]
pub(crate) struct Journal {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Entries before this one survive any crash.
    durable: usize,
    pub(crate) starts: u64,
}

/// An entry, by what tells it from others.
fn short(entry: &Entry) -> String {
    match entry {
        Entry::View { view, .. } => {
            let members: Vec<usize> = view.members.iter().map(|member| member.index).collect();
            format!("v{} {} {members:?}", view.id, view.begins_at)
        }
        Entry::Lease { until } => format!("l{until}"),
        Entry::Checkpoint { peer, step } => format!("c{peer}{step}"),
        Entry::Lost { peer, after } => format!("f{peer}{after}"),
        Entry::Report { peer, report } => format!("r{peer}{}", report.step),
        Entry::Phase(phase) => phase.name().into(),
    }
}

impl Journal {
    pub(crate) fn record(&mut self, entry: Entry) {
        let durable = entry.must_be_durable();
        self.entries.push(Arc::new(entry));
        if durable {
            self.durable = self.entries.len();
        }
    }

    /// What it says, with the entries in order between which the order makes no difference to whoever reads it.
    pub(crate) fn in_any_order(&self) -> String {
        let (durable, at_risk) = self.entries.split_at(self.durable);
        let ordered = |entries: &[Arc<Entry>]| {
            let divides = |entry: &Arc<Entry>| matches!(**entry, Entry::View { .. } | Entry::Lost { .. });
            let parts = entries.chunk_by(|one, next| !divides(one) && !divides(next));
            let in_order = parts.flat_map(|part| {
                let mut words: Vec<String> = part.iter().map(|entry| short(entry)).collect();
                words.sort_unstable();
                words
            });
            in_order.collect::<Vec<_>>().join(" ")
        };
        format!("{} {}; {}", self.starts, ordered(durable), ordered(at_risk))
    }

    /// Entries that a crash may lose.
    pub(crate) fn at_risk(&self) -> usize {
        self.entries.len() - self.durable
    }

    pub(crate) fn crash(&mut self, lost: usize) {
        self.entries.truncate(self.entries.len() - lost.min(self.at_risk()));
        self.durable = self.entries.len();
    }

    /// What each peer reported of each step that is on record.
    ///
    /// # Errors
    /// A step that is there twice.
    pub(crate) fn steps(&self) -> Result<BTreeMap<(PeerName, Step), &StepReport>, String> {
        let mut steps = BTreeMap::new();
        for entry in &self.entries {
            match &**entry {
                Entry::View { view, .. } => steps.retain(|(_, step), _| *step < view.begins_at),
                Entry::Report { peer, report }
                    if steps.insert((peer.clone(), report.step), &**report).is_some() =>
                {
                    return Err(format!("the journal has step {} of {peer} twice", report.step));
                }
                _ => {}
            }
        }
        Ok(steps)
    }

    /// What the next start of the coordinator finds.
    pub(crate) fn history(&self, setting: &Setting) -> History {
        let (mut views, mut data, mut lease_until) = (Views::default(), None, 0);
        let mut held: BTreeMap<&PeerName, BTreeSet<Step>> = BTreeMap::new();
        for entry in &self.entries {
            match &**entry {
                Entry::View { view, data: facts } => {
                    views.insert(view.clone());
                    held.values_mut().for_each(|steps| steps.retain(|step| *step <= view.begins_at));
                    data = Some(*facts);
                }
                Entry::Lease { until } => lease_until = lease_until.max(*until),
                Entry::Checkpoint { peer, step } => _ = held.entry(peer).or_default().insert(*step),
                Entry::Lost { peer, after } => _ = held.entry(peer).or_default().split_off(&(after + 1)),
                Entry::Report { .. } | Entry::Phase(_) => {}
            }
        }
        let names = || setting.spec.peers.iter().map(|peer| &peer.name);
        let of = |name: &PeerName| held.get(name).cloned().unwrap_or_default();
        let in_all = |step: &Step| names().all(|name| of(name).contains(step));
        let retained = names().flat_map(of).filter(in_all).max().unwrap_or(0);
        let begins_at = views.first().map_or(0, |view| view.begins_at);
        let steps = self.steps().unwrap_or_default();
        let record = |name: &PeerName| {
            let mine = || steps.iter().filter(|((peer, _), _)| peer == name);
            let said = mine().filter(|((_, step), _)| *step >= retained);
            PeerRecord {
                completed: mine().map(|((_, step), _)| step + 1).max().unwrap_or(begins_at),
                checkpoints: of(name).into_iter().collect(),
                said: said.map(|((_, step), report)| (*step, said_in(report))).rev().collect(),
            }
        };
        let records = names().map(record).collect();
        History { run: RUN, starts: self.starts, views, data, lease_until, records }
    }

    /// The newest view.
    pub(crate) fn view(&self) -> ViewId {
        let views = self.entries.iter().rev();
        let newest = views
            .filter_map(|entry| if let Entry::View { view, .. } = &**entry { Some(view.id) } else { None });
        newest.max().unwrap_or(ViewId(0))
    }
}

fn said_in(report: &StepReport) -> Said {
    Said { digest: report.own_digest, tensors: report.said.clone() }
}
