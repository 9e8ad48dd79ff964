//! The deciding machine: membership, lease and agreement composed. No clock, no socket, no thread: [`Cluster::handle`]
//! takes the time and one event and appends what is to be done.
//!
//! **The one rule for callers: after every [`Cluster::handle`], perform all its actions, in order, before the next
//! event; and call it with [`Event::Timer`] at [`Cluster::poll_timeout`].** A debug build asserts the first half.
//!
//! A run goes through these stages, never back: gathering, running, stopping (gracefully, then at once if that fails) or
//! finished, over. A run that has begun runs, whoever of its members is missing.

mod history;
mod attend;
mod ending;
mod finished;
mod recover;
mod holdings;
mod shrink;
mod grow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cohort_proto::control::{Accepted, JoinRequest, Refusal, Start, Stop, StopKind, ToPeer};
use cohort_proto::id::{RunId, Step, ViewId};
use cohort_proto::spec::{FailurePolicy, RunSpec};
use cohort_proto::view::{View, Views};

use crate::agreement::Agreement;
use crate::event::{Action, Ended, Entry, Event, Phase, Tick};
use crate::lease::{Lease, Progress};
use crate::membership::Membership;

use finished::JoinAsked;

pub use history::{History, PeerRecord};

/// While peers are missing, people are told whom the run waits for, this often.
const REMINDER_MS: u64 = 30_000;

/// The state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    run: RunId,
    spec: RunSpec,
    last_view: ViewId,
    members: Membership,
    training: Option<Training>,
    stage: Stage,
    remind_at: Tick,
    journal_failed: bool,
    /// When the run moved last: a step was completed, or somebody came.
    moved_at: Tick,
    /// When it was looked last whether one who lives is not heard by the others.
    looked_at: Tick,
    /// How often all fell back together.
    fallbacks: u32,
    /// The question that survivors are answering, and how many were asked.
    flush: Option<shrink::Flush>,
    flushes: u64,
    /// Until when the members of a run that began under an earlier start may stay away.
    absent_until: Option<Tick>,
    /// Until then those who live have come back to a coordinator that was started again, or that has given them up.
    returning_until: Option<Tick>,
    /// Who was started again while the run ended, and was told so.
    refused: BTreeSet<usize>,
    /// Peers that came complete to a run that was found finished, and wait to hear whether all are.
    complete: BTreeMap<usize, JoinAsked>,
    /// Peers that live and were lost to the others.
    barred: BTreeMap<usize, grow::Bar>,
    /// What [`Cluster::poll_timeout`] said after the last event, to notice being woken late.
    promised: Option<Tick>,
}

/// What exists from the first view on.
#[derive(Debug, Clone, PartialEq)]
struct Training {
    /// The views that a member may still need; the last one holds.
    views: Views,
    lease: Lease,
    agreement: Agreement,
    /// Who serves what was received of those who are no longer members.
    relayed_by: BTreeMap<usize, usize>,
    /// Members whose replay has been found to differ, which is said once a replay.
    diverged: BTreeSet<usize>,
    /// Those who are to start elsewhere than where they were, and have reported nothing since.
    starting_anew: BTreeSet<usize>,
    /// Where those were told to start who have reported nothing since.
    told: BTreeMap<usize, Start>,
}

impl Training {
    /// Nobody is on the way to anywhere yet.
    fn new(views: Views, lease: Lease, agreement: Agreement) -> Self {
        Self {
            views,
            lease,
            agreement,
            relayed_by: BTreeMap::new(),
            diverged: BTreeSet::new(),
            starting_anew: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    /// Logs reach back to a step, and nobody takes an earlier one again.
    fn retain_from(&mut self, step: Step) {
        self.agreement.forget_below(step);
        // Who has a checkpoint of it took the step before.
        self.views.retain_from(step.saturating_sub(1));
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Gathering,
    Running,
    Stopping {
        stop: Stop,
        deadline: Tick,
    },
    /// While it asks, somebody may still come who is not complete, and nobody has been told the end.
    Finished {
        deadline: Tick,
        asks: bool,
    },
    Over {
        ended: Ended,
        sentence: String,
    },
}

impl Cluster {
    /// Waits for the peers of the spec, or for those of a run that has begun.
    pub fn new(now: Tick, spec: RunSpec, history: &History) -> Self {
        let training = history::recall(now, spec.policy.on_failure, history);
        let complete = training.as_ref().is_some_and(|training| training.lease.all_saved());
        let stage = match &training {
            _ if complete => {
                let patience = ending::patience_ms(&spec).max(finished::returning_ms(&spec));
                Stage::Finished { deadline: now.plus(patience), asks: true }
            }
            Some(_) => Stage::Running,
            None => Stage::Gathering,
        };
        let absent_until = (stage == Stage::Running).then(|| now.plus(finished::absent_ms(&spec)));
        let returning_until = (history.starts > 0).then(|| now.plus(finished::returning_ms(&spec)));
        Self {
            run: history.run,
            last_view: history.views.last().map_or(ViewId(0), |view| view.id),
            members: Membership::new(history.run, &spec, history.starts, history.data),
            spec,
            training,
            stage,
            remind_at: now.plus(REMINDER_MS),
            journal_failed: false,
            moved_at: now,
            looked_at: now,
            fallbacks: 0,
            flush: None,
            flushes: 0,
            absent_until,
            returning_until,
            refused: BTreeSet::new(),
            complete: BTreeMap::new(),
            barred: BTreeMap::new(),
            promised: None,
        }
    }

    /// Takes one event at a moment not before that of the last one; appends what is to be done.
    pub fn handle(&mut self, now: Tick, event: Event, out: &mut Vec<Action>) {
        debug_assert!(out.is_empty(), "all actions of an event are performed before the next event");
        self.forgive_lateness(now, out);
        match event {
            Event::Join { ticket, remote, request } => {
                self.take_the_place_of_older(&request, out);
                if let Some(index) = self.came_complete(now, &request) {
                    self.keep_waiting(index, JoinAsked { ticket, remote, request }, out);
                } else {
                    self.answer_join(now, JoinAsked { ticket, remote, request }, out);
                }
            }
            Event::Hello { stream, run, name, session } => self.hello(now, stream, run, &name, session, out),
            Event::Message { stream, message } => {
                // A stream that was closed may still have had messages under way.
                if let Some(index) = self.members.on_stream(stream) {
                    self.members.heard(now, index);
                    self.hear(now, index, message, out);
                }
            }
            Event::StreamClosed { stream, cause } => {
                if let Some(index) = self.members.broke(now, stream, cause.clone()) {
                    note(out, true, format!("peer {}: its connection {cause}", self.members.name(index)));
                }
            }
            Event::StopAsked { by } => self.stop_asked(now, &by, out),
            Event::JournalFailed { cause } => self.journal_failed(now, &cause, out),
            Event::Timer => {}
        }
        self.answer_complete(now, out);
        self.expire(now, out);
        self.settle(now, out);
        self.promised = self.poll_timeout();
    }

    /// The moment at which to call again with [`Event::Timer`] if nothing else happens before; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Tick> {
        let members = self.members.poll_timeout();
        match &self.stage {
            Stage::Gathering => Some(members.map_or(self.remind_at, |at| at.min(self.remind_at))),
            Stage::Running => {
                let give_up = self.members.any_attends().then(|| self.gives_up_at());
                let moments = [give_up, members, self.absent_until, self.stalls_at(), self.next_unbarred()];
                moments.into_iter().chain([self.returning_until, Some(self.remind_at)]).flatten().min()
            }
            Stage::Stopping { deadline, .. } | Stage::Finished { deadline, .. } => {
                [members, self.returning_until, Some(*deadline)].into_iter().flatten().min()
            }
            Stage::Over { .. } => None,
        }
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The spec.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The peers.
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// The view that holds.
    pub fn view(&self) -> Option<&View> {
        self.training.as_ref()?.views.last()
    }

    /// Steps below this may be taken.
    pub fn lease_until(&self) -> Step {
        self.training.as_ref().map_or(0, |training| training.lease.until())
    }

    /// Steps that a peer has completed.
    pub fn steps_done(&self, index: usize) -> Step {
        self.training.as_ref().map_or(0, |training| training.lease.completed(index))
    }

    /// Log entries from this step on are kept.
    pub fn retain_from(&self) -> Step {
        self.training.as_ref().map_or(0, |training| training.lease.retain_from())
    }

    /// Where the run is.
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Gathering => Phase::Gathering,
            Stage::Running => Phase::Running,
            Stage::Stopping { .. } => Phase::Stopping,
            Stage::Finished { .. } | Stage::Over { ended: Ended::Finished, .. } => Phase::Finished,
            Stage::Over { .. } => Phase::Stopped,
        }
    }

    /// Why the run stopped, or who is waited for and since when; empty while it runs.
    pub fn message(&self, now: Tick) -> String {
        match &self.stage {
            Stage::Gathering => self.members.waiting_for(now, |_| true),
            Stage::Running => {
                let members = self.in_view();
                self.members.waiting_for(now, |index| members.contains(&index))
            }
            _ => self.ending_message(),
        }
    }

    fn ending_message(&self) -> String {
        match &self.stage {
            Stage::Stopping { stop, .. } => stop.sentence.clone(),
            Stage::Finished { .. } => self.finished_sentence(),
            Stage::Over { sentence, .. } => sentence.clone(),
            Stage::Gathering | Stage::Running => String::new(),
        }
    }

    /// A machine that is called late (a stopped process, a slow disk) has not listened meanwhile: what peers said waits
    /// in queues, so that time does not count as their silence.
    fn forgive_lateness(&mut self, now: Tick, out: &mut Vec<Action>) {
        let late_ms = self.promised.map_or(0, |promised| now.since(promised));
        if late_ms > self.members.heartbeat_ms() {
            self.members.forgive(now, late_ms);
            self.moved_at = self.moved_at.plus(late_ms);
            self.returning_until = self.returning_until.map(|until| until.plus(late_ms));
            self.absent_until = self.absent_until.map(|until| until.plus(late_ms));
            if let Stage::Stopping { deadline, .. } | Stage::Finished { deadline, .. } = &mut self.stage {
                *deadline = deadline.plus(late_ms);
            }
            note(
                out,
                true,
                format!("this coordinator was held up for {late_ms} ms; peers are given that time"),
            );
        }
    }

    fn answer_join(&mut self, now: Tick, asked: JoinAsked, out: &mut Vec<Action>) {
        let JoinAsked { ticket, remote, request } = asked;
        let outcome = self.join(now, remote, &request, out);
        out.push(Action::Answer { ticket, outcome });
    }

    fn join(
        &mut self,
        now: Tick,
        remote: Option<IpAddr>,
        request: &JoinRequest,
        out: &mut Vec<Action>,
    ) -> Result<Accepted, Refusal> {
        let before = (self.stage.clone(), self.absent_until);
        self.reopen(now, request);
        let open = match &self.stage {
            Stage::Gathering | Stage::Running => true,
            // A process that has been here all along only lost its connection: it is told how the run ends.
            Stage::Stopping { .. } | Stage::Finished { .. } => request.standing.is_some(),
            Stage::Over { .. } => false,
        };
        let outcome = if open { self.take_in(now, remote, request, out) } else { self.refuse_late(request) };
        let name = &request.name;
        match &outcome {
            Ok(accepted) => {
                note(
                    out,
                    false,
                    format!("peer {name} joined from {} (session {})", request.address, accepted.session),
                );
            }
            Err(refusal) => {
                // Who is not taken in opens nothing.
                (self.stage, self.absent_until) = before;
                note(out, true, format!("peer {name} is refused: {}", refusal.sentence));
            }
        }
        outcome
    }

    fn take_in(
        &mut self,
        now: Tick,
        remote: Option<IpAddr>,
        request: &JoinRequest,
        out: &mut Vec<Action>,
    ) -> Result<Accepted, Refusal> {
        let given_up = self.known(request).is_ok_and(|index| self.members.is_given_up(index));
        let (index, mut accepted) = self.members.join(now, &self.spec, remote, request)?;
        self.refused.remove(&index);
        if given_up && request.standing.is_some() {
            // It lives, so that others may who were given up with it.
            self.some_may_return(now);
        }
        if let Some(stream) = self.members.detach(index) {
            let error = Some(format!("peer {} joined anew", request.name));
            out.push(Action::Close { stream, error });
        }
        if let Some(training) = &mut self.training {
            training.told.remove(&index);
            let held = request.checkpoints.iter().flat_map(|held| held.steps.iter().copied());
            let known = training.lease.checkpoints(index).cloned().unwrap_or_default();
            training.holds(index, held);
            training.record_what_counts(index, &known, &request.name, out);
            match request.standing {
                Some(standing) if training.remembers(&request.name, &standing) => {
                    training.starting_anew.remove(&index);
                    training.lease.resume(index, standing.steps_done);
                    accepted.reported = training.lease.next(index);
                }
                // The others have gone on without it, or have fallen back and it has not heard of that.
                Some(_) => {
                    self.void(index);
                    accepted.reported = Step::MAX;
                }
                None => {
                    // It is not on its way to anywhere before it is told where to start.
                    training.lease.resume(index, Step::MAX);
                }
            }
        }
        Ok(accepted)
    }

    /// What follows from everything so far: the run begins when all attend, goes on when all are back, and is over when
    /// all have gone.
    fn settle(&mut self, now: Tick, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Gathering if self.members.all_attend() => self.begin(now, out),
            Stage::Running => {
                self.lose_those_gone(out);
                self.lose_those_without_memory(out);
                self.decide_cut(now, out);
                self.start_waiting(now, out);
                self.ask_for_relays(out);
                self.take_in_waiting(now, out);
            }
            _ if self.members.any_present() || !self.may_be_over() => {}
            // Whoever comes back only now is told how the run ends; nobody else would tell it.
            _ if self.some_return(now) => {}
            _ => self.over(now, out),
        }
    }

    /// The first view, durable before anyone hears of it, the lease, and then the word to start.
    fn begin(&mut self, now: Tick, out: &mut Vec<Action>) {
        let Some(data) = self.members.data() else { return };
        let begins_at = self.members.newest_common_checkpoint();
        self.last_view = ViewId(self.last_view.0.saturating_add(1));
        let view = View { id: self.last_view, begins_at, members: self.members.members() };
        self.members.settle();
        note(
            out,
            false,
            format!("view {} begins at step {begins_at} with {} peers", view.id, view.members.len()),
        );
        out.push(Action::Record(Entry::View { view: view.clone(), data }));
        let progress = |peer: &crate::membership::Peer| {
            let held = peer.joined.iter().flat_map(|joined| joined.checkpoints.range(..=begins_at).copied());
            Progress::new(begins_at, held)
        };
        let progress = self.members.peers().iter().map(progress).collect();
        let lease = Lease::new(now, data.total_steps, progress, 0);
        self.training = Some(Training::new(view.into(), lease, Agreement::default()));
        self.stage = Stage::Running;
        self.start_waiting(now, out);
        self.after_progress(now, out);
    }

    /// The run moved.
    fn moved(&mut self, now: Tick) {
        self.moved_at = self.moved_at.max(now);
    }

    /// When the run stops unless it moves.
    fn gives_up_at(&self) -> Tick {
        self.moved_at.plus(self.spec.policy.wait_timeout_ms)
    }

    /// Renews the lease while the run runs, and ends the run when its last step is complete.
    fn after_progress(&mut self, now: Tick, out: &mut Vec<Action>) {
        let Some(training) = &mut self.training else { return };
        // Those who are on their own until others have come in go no further.
        let policy = &self.spec.policy;
        let members = training.views.last().map_or(0, |view| view.members.len());
        let enough = policy.on_failure == FailurePolicy::Wait || policy.is_enough(members);
        if matches!(self.stage, Stage::Running)
            && enough
            && let Some(until) = training.lease.renew()
        {
            out.push(Action::Record(Entry::Lease { until }));
            out.push(Action::Send { streams: self.members.streams(), message: ToPeer::Lease(until) });
        }
        let ends_well = match &self.stage {
            Stage::Running => true,
            Stage::Stopping { stop, .. } => stop.kind == StopKind::Graceful,
            _ => false,
        };
        if ends_well && training.lease.all_known() && training.lease.all_saved() {
            self.finish(now, out);
        }
    }
}

fn note(out: &mut Vec<Action>, warn: bool, sentence: String) {
    out.push(Action::Note { warn, sentence });
}

#[cfg(test)]
mod tests;
