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

use cohort_proto::control::{Start, ToPeer};
use cohort_proto::id::Step;
use cohort_proto::limits::FALLBACKS_MAX;
use cohort_proto::view::View;

use super::{Cluster, Stage, StopKind, note};
use crate::event::{Action, Entry, Phase, Tick};
use crate::lease::newest_common;

impl Cluster {
    /// Tells those who wait for it where to start, once all members are here: before, nobody could complete a step that
    /// is not on record anyway, and one who comes later may hold older checkpoints only.
    pub(super) fn start_waiting(&mut self, now: Tick, out: &mut Vec<Action>) {
        let mut fresh = self.members.without_memory();
        let members = self.in_view();
        fresh.retain(|index| members.contains(index));
        if fresh.is_empty() || !self.all_here() {
            return;
        }
        let Some(training) = &self.training else { return };
        match start_of(training, &self.members, &fresh) {
            Some(step) => self.start(now, &fresh, step, out),
            None => self.fall_back(now, "no checkpoint of its own fits the logs of the others", out),
        }
    }

    /// These members go to their checkpoint of a step. The views are said again to all, since who was started again may
    /// have another address.
    fn start(&mut self, now: Tick, fresh: &[usize], step: Step, out: &mut Vec<Action>) {
        let Some(training) = &mut self.training else { return };
        for &index in fresh {
            training.lease.resume(index, step);
            training.diverged.remove(&index);
            self.members.starts(index, step);
        }
        self.say_views(&self.members.streams(), out);
        let streams = fresh.iter().filter_map(|index| self.members.peer(*index)?.stream()).collect();
        out.push(Action::Send { streams, message: ToPeer::Start(Start::at(step)) });
        let names: Vec<&str> = fresh.iter().map(|index| self.members.name(*index)).collect();
        note(out, false, format!("{} start from step {step}", names.join(", ")));
        out.push(Action::Record(Entry::Phase(Phase::Running)));
        self.moved(now);
    }

    /// Everybody in the view falls back, if all are here.
    pub(super) fn fall_back(&mut self, now: Tick, why: &str, out: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Running) && self.all_here() {
            self.fall_back_to(now, &self.in_view(), why, out);
        }
    }

    /// These members go back to the newest checkpoint that all of them hold, in a new view: what was said beyond it in
    /// the old one is void. With the same members the weights come out the same, since a replay is training; only time is
    /// lost.
    pub(super) fn fall_back_to(
        &mut self,
        now: Tick,
        members: &BTreeSet<usize>,
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let (Some(data), Some(training)) = (self.members.data(), &mut self.training) else { return };
        let step = newest_common(members.iter().filter_map(|index| training.lease.checkpoints(*index)));
        let step = step.unwrap_or(0);
        self.fallbacks += 1;
        if self.fallbacks > FALLBACKS_MAX {
            let sentence = format!(
                "the cohort has fallen back to a common checkpoint {FALLBACKS_MAX} times, and must again: {why}"
            );
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        note(out, true, format!("all fall back to step {step}: {why}"));
        training.lease.fall_back(now, step);
        self.begin_view(now, step, members, data, out);
        let everybody: Vec<usize> = members.iter().copied().collect();
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
    let last = training.views.last()?;
    let listens = last.members.iter().any(|member| !member.schema.tensors().is_empty());
    // Back to where somebody was a member whose log is lost, and no further back than any of them has been a member.
    let here = |view: &&View| view.members.iter().all(|member| last.member(&member.name).is_some());
    let of_all =
        |view: &&View| fresh.iter().all(|index| view.members.iter().any(|member| member.index == *index));
    let views = training.views.iter().rev().take_while(|view| here(view) && of_all(view));
    let first = views.last()?;
    let floor = if training.views.first() == Some(first) { 0 } else { first.begins_at };
    let mut range = floor..=Step::MAX;
    for member in last.members.iter().filter(|member| listens && !fresh.contains(&member.index)) {
        let log_from = members.log_from(member.index)?.max(training.lease.retain_from());
        range = (*range.start()).max(log_from)..=(*range.end()).min(training.lease.next(member.index));
    }
    let held = fresh.iter().filter_map(|index| training.lease.checkpoints(*index));
    let fitting: Vec<BTreeSet<Step>> =
        held.map(|held| held.iter().copied().filter(|step| range.contains(step)).collect()).collect();
    newest_common(fitting.iter())
}
