//! How a cohort goes on without a member, under `on_failure = "continue"`: the flush of virtual synchrony.
//!
//! The survivors may have received different amounts of what the lost member said last, and all must learn from the same.
//! So they are asked: from the question on they take nothing more of the lost, and answer up to which step everything of
//! it is there. A step that somebody has in full can be completed by all, since whoever lacks something fetches it from
//! one who has it; the first step that nobody has in full is taken anew, in a view without the lost. Nobody has
//! completed that step, so nothing is undone.

use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::control::{StopKind, ToPeer};
use cohort_proto::id::{PeerName, Step, ViewId};
use cohort_proto::spec::FailurePolicy;
use cohort_proto::view::View;

use super::{Cluster, Stage, Training, note};
use crate::event::{Action, DataFacts, Entry, StreamId, Tick};
use crate::membership::{Peer, Presence};

/// A question that survivors are still answering.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Flush {
    id: u64,
    /// Those who are gone.
    lost: BTreeSet<usize>,
    /// By survivor: of each who is gone, the steps below which everything is there.
    answers: BTreeMap<usize, BTreeMap<usize, Step>>,
}

impl Cluster {
    /// The indices in the view that holds.
    pub(super) fn in_view(&self) -> BTreeSet<usize> {
        self.view().map(|view| view.members.iter().map(|member| member.index).collect()).unwrap_or_default()
    }

    /// Whether everybody in the view attends (before the first view: everybody).
    pub(super) fn all_here(&self) -> bool {
        match self.view() {
            None => self.members.all_attend(),
            Some(view) => view.members.iter().all(|member| self.members.attends(member.index)),
        }
    }

    /// Whether the cohort may go on without these members of its view.
    fn may_lose(&self, lost: &BTreeSet<usize>) -> bool {
        let policy = &self.spec.policy;
        let left = self.in_view().difference(lost).count();
        policy.on_failure == FailurePolicy::Continue && policy.is_enough(left)
    }

    /// A member of the view is lost to it. Returns whether the others go on without it, rather than wait.
    pub(super) fn lose(&mut self, index: usize, out: &mut Vec<Action>) -> bool {
        if !matches!(self.stage, Stage::Running) || !self.in_view().contains(&index) {
            return false;
        }
        if self.flush.as_ref().is_some_and(|flush| flush.lost.contains(&index)) {
            return true;
        }
        // Those who are waited for already are given up with it, or not at all.
        let mut lost: BTreeSet<usize> = self.in_view();
        lost.retain(|index| self.members.peer(*index).is_some_and(is_gone));
        lost.extend(self.flush.iter().flat_map(|flush| &flush.lost));
        lost.insert(index);
        lost.extend(self.coming_in(&lost));
        if !self.may_lose(&lost) {
            return false;
        }
        self.go_on_without(lost, out);
        true
    }

    /// The others are asked how much they have of these.
    fn go_on_without(&mut self, mut lost: BTreeSet<usize>, out: &mut Vec<Action>) {
        let names: Vec<&str> = lost.iter().map(|index| self.members.name(*index)).collect();
        note(out, true, format!("the others go on without {}", names.join(", ")));
        lost.extend(self.still_needed(&lost));
        self.begin_flush(lost, out);
    }

    fn begin_flush(&mut self, lost: BTreeSet<usize>, out: &mut Vec<Action>) {
        self.flushes += 1;
        self.flush = Some(Flush { id: self.flushes, lost, answers: BTreeMap::new() });
        self.ask(self.members.streams_of(self.survivors()), out);
    }

    /// A member that the others had to wait for may be one that they can go on without by now.
    pub(super) fn lose_those_gone(&mut self, out: &mut Vec<Action>) {
        let gone = |index: &usize| self.members.peer(*index).is_some_and(is_gone);
        if let Some(index) = self.in_view().into_iter().find(gone).filter(|_| self.flush.is_none()) {
            self.lose(index, out);
        }
    }

    /// Members who came back without a memory do not make those go back who are where the run is: they are put out, all or
    /// none, and come in again.
    pub(super) fn lose_those_without_memory(&mut self, out: &mut Vec<Action>) {
        let came = |index: &usize| {
            let presence = self.members.peer(*index).map(|peer| &peer.presence);
            matches!(presence, Some(Presence::Accepted | Presence::Attending(_)))
        };
        let (came, mut lost): (BTreeSet<usize>, BTreeSet<usize>) = self.in_view().into_iter().partition(came);
        lost.retain(|index| self.members.peer(*index).is_some_and(is_gone));
        let (there, fresh): (BTreeSet<usize>, BTreeSet<usize>) =
            came.into_iter().partition(|index| self.members.log_from(*index).is_some());
        lost.extend(&fresh);
        if !there.is_empty() && self.may_lose(&lost) {
            fresh.into_iter().for_each(|index| _ = self.lose(index, out));
        }
    }

    /// Those who have still to come in, where others are now: they have heard nothing of what these may lack. They are put
    /// out with one who is lost, and come in again.
    fn coming_in(&self, lost: &BTreeSet<usize>) -> BTreeSet<usize> {
        let (Some(training), reached) = (&self.training, self.reached_by_all_but(lost)) else {
            return BTreeSet::new();
        };
        let since = |index: &usize| training.views.since(&self.members.peer(*index)?.name);
        let others = self.in_view().into_iter().filter(|index| !lost.contains(index));
        others.filter(|index| since(index).is_some_and(|since| since > reached)).collect()
    }

    /// Those who were lost earlier, of whom a survivor may still lack what they said last.
    fn still_needed(&self, lost: &BTreeSet<usize>) -> BTreeSet<usize> {
        let (Some(training), reached) = (&self.training, self.reached_by_all_but(lost)) else {
            return BTreeSet::new();
        };
        let left_at = |index: &usize| training.views.left_at(&self.members.peer(*index)?.name);
        let needed = |index: &usize| left_at(index).is_some_and(|left_at| left_at > reached);
        (0..self.members.peers().len()).filter(needed).collect()
    }

    /// A coordinator that was started again does not know who has what those said who left the cohort before. If a member
    /// may still lack some of it, all are asked.
    pub(super) fn ask_for_relays(&mut self, out: &mut Vec<Action>) {
        if self.flush.is_some() || !self.all_here() || !self.all_started() {
            return;
        }
        let mut unknown = self.still_needed(&BTreeSet::new());
        unknown.retain(|index| self.training.as_ref().is_some_and(|t| !t.relayed_by.contains_key(index)));
        if !unknown.is_empty() {
            self.begin_flush(unknown, out);
        }
    }

    /// The step that the slowest of the others is at.
    pub(super) fn reached_by_all_but(&self, lost: &BTreeSet<usize>) -> Step {
        let Some(training) = &self.training else { return 0 };
        let others = self.in_view().into_iter().filter(|index| !lost.contains(index));
        others.map(|index| training.lease.next(index)).min().unwrap_or(0)
    }

    fn survivors(&self) -> BTreeSet<usize> {
        let lost = self.flush.as_ref().map(|flush| &flush.lost);
        let survives = |index: &usize| lost.is_none_or(|lost| !lost.contains(index));
        self.in_view().into_iter().filter(survives).collect()
    }

    /// Asks on these streams, if there is a question.
    pub(super) fn ask(&self, streams: Vec<StreamId>, out: &mut Vec<Action>) {
        let Some(flush) = &self.flush else { return };
        let name = |index: &usize| self.members.peer(*index).map(|peer| peer.name.clone());
        let peers = flush.lost.iter().filter_map(name).collect();
        out.push(Action::Send { streams, message: ToPeer::Flush { id: flush.id, peers } });
    }

    /// A survivor that comes back is asked again: what it answered may no longer be all that it has.
    pub(super) fn ask_again(&mut self, index: usize, stream: StreamId, out: &mut Vec<Action>) {
        if !self.survivors().contains(&index) {
            return;
        }
        if let Some(flush) = &mut self.flush {
            flush.answers.remove(&index);
            self.ask(vec![stream], out);
        }
    }

    /// An answer came; one to an older question no longer counts.
    pub(super) fn received(&mut self, index: usize, id: u64, of: Vec<(PeerName, Step)>) {
        let of = of.into_iter().filter_map(|(name, step)| Some((self.members.index(&name)?, step))).collect();
        if let Some(flush) = self.flush.as_mut().filter(|flush| flush.id == id) {
            flush.answers.insert(index, of);
        }
    }

    /// Once all survivors have answered, which every event may bring about: the view without the lost.
    pub(super) fn decide_cut(&mut self, now: Tick, out: &mut Vec<Action>) {
        let survivors = self.survivors();
        let Some(flush) = &self.flush else { return };
        if !survivors.iter().all(|index| self.members.attends(*index)) {
            return self.stop_waiting_for_answers(now, &survivors, out);
        }
        if survivors.iter().any(|index| self.members.log_from(*index).is_none()) {
            // Somebody has no memory of what the lost said: those who are here begin anew.
            return self.begin_anew(now, out);
        }
        if !survivors.iter().all(|index| flush.answers.contains_key(index)) {
            return;
        }
        let early = self.coming_in(&flush.lost);
        if !early.is_empty() && flush.lost.iter().any(|lost| self.in_view().contains(lost)) {
            // One of the others is further behind than it was when they were asked.
            let lost = flush.lost.union(&early).copied().collect();
            return if self.may_lose(&lost) {
                self.go_on_without(lost, out)
            } else {
                self.begin_anew(now, out)
            };
        }
        let answer = |survivor: &usize, lost: &usize| self.answer(flush, *survivor, *lost);
        let best = |lost: &usize| {
            let answers = survivors.difference(&early).map(|survivor| (answer(survivor, lost), *survivor));
            answers.max_by_key(|(step, survivor)| (*step, std::cmp::Reverse(*survivor)))
        };
        let providers: BTreeMap<usize, (Step, usize)> =
            flush.lost.iter().filter_map(|lost| Some((*lost, best(lost)?))).collect();
        let Some(begins_at) = providers.values().map(|(step, _)| *step).min() else { return };
        let lost = flush.lost.clone();
        // If a survivor has all that will ever be needed of those who left before, nothing is taken again: where nobody has
        // been yet the view that is said is the same.
        let begins_at = begins_at.min(self.lease_until());
        self.flush = None;
        self.cut(now, begins_at, &survivors, providers.into_iter().map(|(lost, (_, by))| (lost, by)), out);
        self.after_progress(now, out);
        // What they remember is void; they may come in again.
        lost.into_iter().for_each(|index| self.members.forgets(index));
    }

    /// Survivors who were given up, and have had the time to come back, will not answer. If enough are here, be it that they
    /// were lost to those before, these begin anew.
    fn stop_waiting_for_answers(&mut self, now: Tick, survivors: &BTreeSet<usize>, out: &mut Vec<Action>) {
        let mut away = survivors.iter().filter(|index| !self.members.attends(**index));
        let gone = away.all(|index| self.members.peer(*index).is_some_and(is_gone));
        if gone && !self.is_early(now) && self.spec.policy.is_enough(self.able_to_begin().len()) {
            self.begin_anew(now, out);
        }
    }

    /// The step below which a survivor has everything that one who is gone said; [`Step::MAX`] if that is all it will need.
    fn answer(&self, flush: &Flush, survivor: usize, lost: usize) -> Step {
        let step = flush.answers.get(&survivor).and_then(|of| of.get(&lost)).copied().unwrap_or(0);
        let (Some(peer), Some(training)) = (self.members.peer(lost), &self.training) else { return step };
        match training.views.left_at(&peer.name) {
            Some(left_at) if left_at <= step => Step::MAX,
            // It left before all that anybody can still take.
            None if !self.in_view().contains(&lost) => Step::MAX,
            _ => training.views.due(&peer.name, step),
        }
    }

    /// The survivors' view begins; what they lack of the lost they find at those who have it.
    fn cut(
        &mut self,
        now: Tick,
        begins_at: Step,
        survivors: &BTreeSet<usize>,
        providers: impl Iterator<Item = (usize, usize)>,
        out: &mut Vec<Action>,
    ) {
        let (Some(data), Some(training)) = (self.members.data(), &mut self.training) else { return };
        // Where they are now: of one that replays more is on record than it has.
        let reached = survivors.iter().map(|index| training.lease.next(*index)).max().unwrap_or(0);
        if begins_at < reached {
            let sentence = format!(
                "a survivor has completed {reached} steps, but nobody says that it has what the lost said to them"
            );
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        training.relayed_by.extend(providers);
        self.begin_view(now, begins_at, survivors, data, out);
        self.say_views(&self.members.streams(), out);
    }

    /// A view of these members begins, durable before it is said: to all, with the views before it, since a member that
    /// is behind finds what it lacks at other addresses now.
    pub(super) fn begin_view(
        &mut self,
        now: Tick,
        begins_at: Step,
        members: &BTreeSet<usize>,
        data: DataFacts,
        out: &mut Vec<Action>,
    ) {
        self.last_view = ViewId(self.last_view.0.saturating_add(1));
        let view = View { id: self.last_view, begins_at, members: self.members.members_of(members) };
        let Some(training) = &mut self.training else { return };
        note(out, false, format!("view {} begins at step {begins_at} with {} peers", view.id, members.len()));
        training.views.insert(view.clone());
        training.lease.change_view(now, begins_at, members);
        training.forget_what_does_not_count();
        training.agreement.forget_from(begins_at);
        let until = training.lease.until();
        out.push(Action::Record(Entry::View { view, data }));
        out.push(Action::Record(Entry::Lease { until }));
        self.moved(now);
    }

    /// The newest first, so that what is void is never taken for valid.
    pub(super) fn say_views(&self, streams: &[StreamId], out: &mut Vec<Action>) {
        let Some(training) = &self.training else { return };
        for view in training.views.iter().rev() {
            let mut view = view.clone();
            self.readdress(training, &mut view);
            out.push(Action::Send { streams: streams.to_vec(), message: ToPeer::View(view) });
        }
    }

    /// Writes down where the members are now; says whether one is elsewhere than was written.
    pub(super) fn readdress_members(&mut self) -> bool {
        let Some(training) = &mut self.training else { return false };
        let mut moved = false;
        for member in training.views.newest_members_mut() {
            if let Some(address) = self.members.address(member.index).filter(|now| *now != member.address) {
                member.address = address.to_owned();
                moved = true;
            }
        }
        moved
    }

    fn readdress(&self, training: &Training, view: &mut View) {
        let now_in: BTreeSet<usize> = self.in_view();
        for member in &mut view.members {
            // Whoever left the cohort has a log that nobody serves but those who received it.
            let left = !now_in.contains(&member.index);
            let relay = training.relayed_by.get(&member.index).filter(|_| left);
            if let Some(address) = self.members.address(*relay.unwrap_or(&member.index)) {
                member.address = address.to_owned();
            }
        }
    }
}

/// Whether a peer has been given up, or said goodbye.
fn is_gone(peer: &Peer) -> bool {
    matches!(peer.presence, Presence::Dead { .. } | Presence::Left { .. })
}
