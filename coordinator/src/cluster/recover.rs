//! How members come back into a run that has begun: each is told from which of its checkpoints to start, so that every
//! entry that it will ask for is still in a log, and every entry that others will ask of it is said again.
//!
//! A member that lost its memory starts at a step `c` with three properties. It holds a checkpoint of `c`. The logs of
//! those who kept their memory reach back to `c`, so it can hear again what it heard. And none of these has completed
//! fewer than `c` steps, so whatever they have not heard of it yet, it will say again; a checkpoint can be ahead of
//! what its owner managed to say. Several that lost their memory start at the same step, since each needs the others
//! from there on. The newest checkpoint that all members hold has the last two properties at any time, for logs are kept
//! back to it; only if it was damaged meanwhile do all fall back together.

use std::collections::BTreeSet;

use cohort_proto::control::ToPeer;
use cohort_proto::id::{Step, ViewId};
use cohort_proto::limits::FALLBACKS_MAX;
use cohort_proto::view::View;

use super::{Cluster, Stage, StopKind, note};
use crate::event::{Action, Entry, Phase, Tick};
use crate::lease::newest_common;

impl Cluster {
    /// Tells those who wait for it where to start, once all members are here: before, nobody could complete a step that
    /// is not on record anyway, and one who comes later may hold older checkpoints only.
    pub(super) fn start_waiting(&mut self, now: Tick, out: &mut Vec<Action>) {
        let fresh = self.members.without_memory();
        if fresh.is_empty() || !self.members.all_attend() {
            return;
        }
        let Some(training) = &mut self.training else { return };
        match start_of(training, &self.members, &fresh) {
            Some(step) => self.start(now, &fresh, step, out),
            None => self.fall_back(now, "no checkpoint of its own fits the logs of the others", out),
        }
    }

    /// These members go to their checkpoint of a step. The view is said again to all, since who was started again may
    /// have another address.
    fn start(&mut self, now: Tick, fresh: &[usize], step: Step, out: &mut Vec<Action>) {
        let Some(training) = &mut self.training else { return };
        for view in &mut training.views {
            self.members.readdress(view);
        }
        for &index in fresh {
            training.lease.resume(index, step);
            training.diverged.remove(&index);
            self.members.starts(index, step);
        }
        let streams = self.members.streams();
        if let Some(view) = training.views.last() {
            out.push(Action::Send { streams, message: ToPeer::View(view.clone()) });
        }
        let streams = fresh.iter().filter_map(|index| self.members.peer(*index)?.stream()).collect();
        out.push(Action::Send { streams, message: ToPeer::Start(step) });
        let names: Vec<&str> = fresh.iter().map(|index| self.members.name(*index)).collect();
        note(out, false, format!("{} start from step {step}", names.join(", ")));
        out.push(Action::Record(Entry::Phase(Phase::Running)));
        self.moved(now);
    }

    /// Everybody goes back to the newest checkpoint that all hold, in a new view: what was said beyond it in the old one
    /// is void. The weights come out the same, since a replay is training; only time is lost.
    pub(super) fn fall_back(&mut self, now: Tick, why: &str, out: &mut Vec<Action>) {
        if !matches!(self.stage, Stage::Running) || !self.members.all_attend() {
            return;
        }
        let (Some(data), Some(training)) = (self.members.data(), &mut self.training) else { return };
        let all = 0..self.members.peers().len();
        let step = newest_common(all.clone().filter_map(|index| training.lease.checkpoints(index)));
        let step = step.unwrap_or(0);
        self.fallbacks += 1;
        if self.fallbacks > FALLBACKS_MAX {
            let sentence = format!(
                "the cohort has fallen back to a common checkpoint {FALLBACKS_MAX} times, and must again: {why}"
            );
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        self.last_view = ViewId(self.last_view.0.saturating_add(1));
        let view = View { id: self.last_view, begins_at: step, members: self.members.members() };
        note(out, true, format!("all fall back to step {step}, in view {}: {why}", view.id));
        training.views.retain(|older| older.begins_at < step);
        training.views.push(view.clone());
        training.lease.fall_back(now, step);
        training.agreement.forget_from(step);
        out.push(Action::Record(Entry::View { view, data }));
        for &stream in &self.members.streams() {
            for view in &training.views {
                out.push(Action::Send { streams: vec![stream], message: ToPeer::View(view.clone()) });
            }
        }
        let everybody: Vec<usize> = all.collect();
        self.start(now, &everybody, step, out);
        self.after_progress(now, out);
    }
}

/// Where those without memory may start; `None` if nowhere.
fn start_of(
    training: &super::Training,
    members: &crate::membership::Membership,
    fresh: &[usize],
) -> Option<Step> {
    let held: Vec<&BTreeSet<Step>> =
        fresh.iter().filter_map(|index| training.lease.checkpoints(*index)).collect();
    let listens = training.views.last()?.members.iter().any(|member| !member.schema.tensors().is_empty());
    let mut range = 0..=Step::MAX;
    for index in (0..members.peers().len()).filter(|index| listens && !fresh.contains(index)) {
        let log_from = members.log_from(index)?.max(training.lease.retain_from());
        range = (*range.start()).max(log_from)..=(*range.end()).min(training.lease.next(index));
    }
    let fitting: Vec<BTreeSet<Step>> = held
        .into_iter()
        .map(|held| held.iter().copied().filter(|step| range.contains(step)).collect())
        .collect();
    newest_common(fitting.iter())
}
