//! How members come back into a run that has begun: each is told from which of its checkpoints to start, so that every
//! entry that it will ask for is still in a log, and every entry that others will ask of it is said again.
//!
//! A member that lost its memory starts at the newest checkpoint `c` with three properties, by what is on record. All
//! members hold a checkpoint of `c`: it can go there, and so can all others if they should die later. No member that kept
//! its memory has completed fewer than `c` steps: whatever it has not heard of the others yet, they will say again; a
//! checkpoint can be ahead of what its owner managed to say. And the logs of those reach back to `c`, so what was heard
//! can be heard again. Several that lost their memory start at the same step, since each needs the others from there on.
//! Logs are kept back to the newest step that has the first two properties, and the third follows; only if a checkpoint
//! is damaged there may be no such step, and all fall back together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::control::{Start, ToPeer};
use cohort_proto::id::Step;
use cohort_proto::limits::FALLBACKS_MAX;
use cohort_proto::spec::FailurePolicy;
use cohort_proto::view::View;

use super::holdings::has;
use super::{Cluster, Stage, StopKind, Training, note};
use crate::event::{Action, Entry, Phase, Tick};
use crate::lease::newest_common;
use crate::membership::Membership;

impl Cluster {
    /// Tells those who wait for it where to start, once all members are here: before, nobody could complete a step that
    /// is not on record anyway, and one who comes later may hold older checkpoints only.
    pub(super) fn start_waiting(&mut self, now: Tick, out: &mut Vec<Action>) {
        let mut fresh = self.members.without_memory();
        let members = self.in_view();
        fresh.retain(|index| members.contains(index));
        let Some(training) = &self.training else { return };
        if self.flush.is_some() || !self.all_here() || fresh.is_empty() {
            return;
        }
        match start_of(training, &self.members, &fresh) {
            Some(step) => self.start(now, &fresh.iter().map(|index| (*index, step)).collect(), step, out),
            None => self.fall_back(now, "no checkpoint of its own fits the logs of the others", out),
        }
    }

    /// These members start at a step, each from a checkpoint: of that step, unless it comes in there. The views are said again
    /// to all, since who was started again may have another address.
    fn start(&mut self, now: Tick, fresh: &BTreeMap<usize, Step>, step: Step, out: &mut Vec<Action>) {
        // Whoever starts there keeps no entry from before: that all have come so far must not be forgotten.
        out.push(Action::Record(Entry::Phase(Phase::Running)));
        let Some(training) = &mut self.training else { return };
        for (&index, &checkpoint) in fresh {
            training.told.insert(index, Start { step, checkpoint });
            let known = training.lease.checkpoints(index).cloned().unwrap_or_default();
            training.lease.starts(index, step);
            // Who removes later ones must not be taken for one that has them by a coordinator that is started again.
            training.record_what_counts(index, &known, &self.members.peers()[index].name, out);
            training.diverged.remove(&index);
            self.members.starts(index, step);
        }
        self.say_views(&self.members.streams(), out);
        for checkpoint in fresh.values().copied().collect::<BTreeSet<_>>() {
            let with_it = fresh.iter().filter(|(_, from)| **from == checkpoint).map(|(index, _)| *index);
            let streams = self.members.streams_of(with_it);
            out.push(Action::Send { streams, message: ToPeer::Start(Start { step, checkpoint }) });
        }
        let names: Vec<&str> = fresh.keys().map(|index| self.members.name(*index)).collect();
        note(out, false, format!("{} start from step {step}", names.join(", ")));
        self.moved(now);
    }

    /// Those who have a memory do nothing more with it, not even in a view that begins where they are, before they are told
    /// where to start: others would let go of what they need for doing it once more.
    pub(super) fn stand_down(&self, members: impl Iterator<Item = usize>, out: &mut Vec<Action>) {
        let members: Vec<usize> = members.collect();
        let name = |index: &usize| self.members.peer(*index).map(|peer| peer.name.clone());
        let (streams, peers) =
            (self.members.streams_of(members.clone()), members.iter().filter_map(name).collect());
        out.push(Action::Send { streams, message: ToPeer::Flush { id: 0, peers } });
    }

    /// What one remembers is void, be it that all fell back and it did not hear of that, or that what it was to start from
    /// is not there any more: it is told anew where to start.
    pub(super) fn void(&mut self, index: usize) {
        self.members.forgets(index);
        if let Some(training) = &mut self.training {
            training.lease.resume(index, Step::MAX);
            training.starting_anew.insert(index);
            training.told.remove(&index);
        }
    }

    /// Everybody in the view falls back, if all are here.
    pub(super) fn fall_back(&mut self, now: Tick, why: &str, out: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Running) && self.all_here() && self.flush.is_none() {
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
        let Some(data) = self.members.data() else { return };
        self.fallbacks += 1;
        if self.fallbacks > FALLBACKS_MAX {
            let sentence = format!(
                "the cohort has fallen back to a common checkpoint {FALLBACKS_MAX} times, and must again: {why}"
            );
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        let (members, step) = &self.way_back(members);
        let Some(training) = &mut self.training else { return };
        let from = members.iter().map(|index| (*index, training.lease.newest_until(*index, *step))).collect();
        training.lease.fall_back(now, members, *step);
        training.starting_anew.clone_from(members);
        note(out, true, format!("all fall back to step {step}: {why}"));
        self.begin_view(now, *step, members, data, out);
        let out_of_it = (0..self.members.peers().len()).filter(|index| !members.contains(index));
        out_of_it.for_each(|index| self.members.forgets(index));
        self.stand_down(members.iter().copied(), out);
        self.start(now, &from, *step, out);
        self.after_progress(now, out);
    }

    /// Those of the view who are here and are heard by the others.
    pub(super) fn able_to_begin(&self) -> BTreeSet<usize> {
        let mut here = self.in_view();
        here.retain(|index| self.members.attends(*index) && !self.is_barred(*index));
        here
    }

    /// Those of the view who are here fall back, whoever was given up. If they do not hold what all held, they wait for those
    /// who do.
    pub(super) fn begin_anew(&mut self, now: Tick, out: &mut Vec<Action>) {
        let here = self.able_to_begin();
        let Some(training) = &self.training else { return };
        if self.all_here() || self.way_back(&here).1 >= training.lease.retain_from() {
            self.flush = None;
            self.fall_back_to(now, &here, "some members and their logs are lost", out);
        }
    }

    /// Who of these members go back together, and where to: to what all of them hold, unless that is from before what all
    /// held once, or fresh weights, since one who has come in since then may hold nothing else. Then as many as hold one
    /// checkpoint go back to it, and the others come in again: there and then, if they are needed; or where the lease ends,
    /// if they had left before that and come in since, even if fewer than are needed are on their own up to there.
    fn way_back(&self, members: &BTreeSet<usize>) -> (BTreeSet<usize>, Step) {
        let Some(Training { lease, views, .. }) = &self.training else { return (members.clone(), 0) };
        let (common, retained) = (lease.common_of(members), lease.retain_from());
        let policy = &self.spec.policy;
        if (common >= retained && common > 0) || policy.on_failure == FailurePolicy::Wait {
            return (members.clone(), common);
        }
        let held = members.iter().filter_map(|index| lease.checkpoints(*index)).flatten().copied();
        let steps: BTreeSet<Step> = held.filter(|step| *step >= retained.max(1)).collect();
        let goes = |index: &usize, step| lease.completed(*index) >= step && lease.counts(*index, step);
        let together =
            |step| (members.iter().copied().filter(|index| goes(index, step)).collect::<BTreeSet<_>>(), step);
        let mut ways: Vec<(BTreeSet<usize>, Step)> = steps.into_iter().map(together).collect();
        ways.sort_by_key(|(those, step)| Reverse((those.len(), *step)));
        for (those, step) in &ways {
            if common < retained && policy.is_enough(those.len()) {
                return (those.clone(), *step);
            }
            // Whoever took the step before it with them cannot come in after it.
            let was_there = |index: &usize| views.at(step - 1).is_none_or(|view| has(view, *index));
            if !members.difference(those).any(was_there) {
                return (members.clone(), *step);
            }
        }
        let came_since = |index: &usize, step| {
            let since = self.members.peer(*index).and_then(|peer| views.since(&peer.name));
            since.is_some_and(|since| since > step)
        };
        let on_their_own = |(those, step): &(BTreeSet<usize>, Step)| {
            !those.is_empty() && members.difference(those).all(|index| came_since(index, *step))
        };
        let may_come_in = policy.is_enough(members.len()) && !lease.reaches_the_end();
        let way = ways.into_iter().find(|way| may_come_in && on_their_own(way));
        way.unwrap_or_else(|| (members.clone(), common))
    }
}

/// Where those without memory may start; `None` if nowhere.
fn start_of(training: &Training, members: &Membership, fresh: &[usize]) -> Option<Step> {
    let lease = &training.lease;
    let last = training.views.last()?;
    if last.members.iter().all(|member| member.schema.tensors().is_empty()) {
        // Nobody listens to anybody: only what is on record counts.
        let held = |index: &usize| {
            let reached = lease.completed(*index);
            lease.checkpoints(*index).map(|held| held.range(..=reached).copied().collect::<BTreeSet<_>>())
        };
        return newest_common(fresh.iter().filter_map(held).collect::<Vec<_>>().iter());
    }
    // Back to where somebody was a member whose log is lost, or one of these was none yet.
    let same = |view: &&View| {
        view.members.iter().map(|member| member.index).eq(last.members.iter().map(|m| m.index))
    };
    let first = training.views.iter().rev().take_while(same).last()?;
    let floor = if training.views.first() == Some(first) { 0 } else { first.begins_at };
    let step = lease.common();
    let mut rest = last.members.iter().map(|member| member.index).filter(|index| !fresh.contains(index));
    let held = rest.all(|index| members.log_from(index).is_some_and(|log_from| log_from <= step));
    (held && lease.retain_from() <= step && floor <= step).then_some(step)
}
