//! The deciding machine: membership, lease and agreement composed. No clock, no socket, no thread: [`Cluster::handle`]
//! takes the time and one event and appends what is to be done.
//!
//! **The one rule for callers: after every [`Cluster::handle`], perform all its actions, in order, before the next
//! event; and call it with [`Event::Timer`] at [`Cluster::poll_timeout`].** A debug build asserts the first half.
//!
//! A run goes through these stages, never back: gathering, running, stopping (gracefully, then at once if that fails) or
//! finished, over.

mod attend;
mod ending;

use std::net::IpAddr;

use cohort_proto::control::{Accepted, JoinRequest, Refusal, RefusalReason, Stop, StopKind, ToPeer};
use cohort_proto::id::{RunId, Step, ViewId};
use cohort_proto::spec::RunSpec;
use cohort_proto::view::View;

use crate::admission;
use crate::agreement::Agreement;
use crate::event::{Action, DataFacts, Ended, Entry, Event, Phase, Tick};
use crate::lease::Lease;
use crate::membership::{Membership, Presence};

/// While peers are missing, people are told whom the run waits for, this often.
const REMINDER_MS: u64 = 30_000;

/// What the journal knows of a run from earlier starts of the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The run.
    pub run: RunId,
    /// How often its coordinator was started before.
    pub starts: u64,
    /// The last view; 0 if there was none.
    pub last_view: ViewId,
    /// What its views trained on.
    pub data: Option<DataFacts>,
}

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
    /// What [`Cluster::poll_timeout`] said after the last event, to notice being woken late.
    promised: Option<Tick>,
}

/// What exists from the first view on.
#[derive(Debug, Clone, PartialEq)]
struct Training {
    view: View,
    lease: Lease,
    agreement: Agreement,
    /// By member: whether its stream is a second one, on which it may say again what the first may have lost.
    repeats: Vec<bool>,
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Gathering,
    Running,
    Stopping { stop: Stop, deadline: Tick },
    Finished { deadline: Tick },
    Over { ended: Ended, sentence: String },
}

impl Cluster {
    /// Waits for the peers of the spec.
    pub fn new(now: Tick, spec: RunSpec, history: &History) -> Self {
        Self {
            run: history.run,
            last_view: history.last_view,
            members: Membership::new(history.run, &spec, history.starts, history.data),
            spec,
            training: None,
            stage: Stage::Gathering,
            remind_at: now.plus(REMINDER_MS),
            journal_failed: false,
            promised: None,
        }
    }

    /// Takes one event at a moment not before that of the last one; appends what is to be done.
    pub fn handle(&mut self, now: Tick, event: Event, out: &mut Vec<Action>) {
        debug_assert!(out.is_empty(), "all actions of an event are performed before the next event");
        self.forgive_lateness(now, out);
        match event {
            Event::Join { ticket, remote, request } => {
                let outcome = self.join(now, remote, &request, out);
                out.push(Action::Answer { ticket, outcome });
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
        self.expire(now, out);
        self.settle(now, out);
        self.promised = self.poll_timeout();
    }

    /// The moment at which to call again with [`Event::Timer`] if nothing else happens before; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Tick> {
        let members = self.members.poll_timeout();
        match &self.stage {
            Stage::Gathering => Some(members.map_or(self.remind_at, |at| at.min(self.remind_at))),
            Stage::Running => members,
            Stage::Stopping { deadline, .. } | Stage::Finished { deadline } => {
                Some(members.map_or(*deadline, |at| at.min(*deadline)))
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
        self.training.as_ref().map(|training| &training.view)
    }

    /// Steps below this may be taken.
    pub fn lease_until(&self) -> Step {
        self.training.as_ref().map_or(0, |training| training.lease.until())
    }

    /// Steps that a peer has completed.
    pub fn steps_done(&self, index: usize) -> Step {
        self.training.as_ref().map_or(0, |training| training.lease.completed(index))
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

    /// Why the run stopped or what it waits for; empty while it runs.
    pub fn message(&self) -> String {
        match &self.stage {
            Stage::Gathering => self.waiting_for(),
            Stage::Running => String::new(),
            Stage::Stopping { stop, .. } => stop.sentence.clone(),
            Stage::Finished { .. } => self.finished_sentence(),
            Stage::Over { sentence, .. } => sentence.clone(),
        }
    }

    /// A machine that is called late (a stopped process, a slow disk) has not listened meanwhile: what peers said waits
    /// in queues, so that time does not count as their silence.
    fn forgive_lateness(&mut self, now: Tick, out: &mut Vec<Action>) {
        let late_ms = self.promised.map_or(0, |promised| now.since(promised));
        if late_ms > self.members.heartbeat_ms() {
            self.members.forgive(now, late_ms);
            if let Stage::Stopping { deadline, .. } | Stage::Finished { deadline } = &mut self.stage {
                *deadline = deadline.plus(late_ms);
            }
            note(
                out,
                true,
                format!("this coordinator was held up for {late_ms} ms; peers are given that time"),
            );
        }
    }

    fn join(
        &mut self,
        now: Tick,
        remote: Option<IpAddr>,
        request: &JoinRequest,
        out: &mut Vec<Action>,
    ) -> Result<Accepted, Refusal> {
        let outcome = match &self.stage {
            Stage::Gathering => self.members.join(now, &self.spec, remote, request),
            _ => Err(self.refuse_late(now, request, out)),
        };
        let name = &request.name;
        match &outcome {
            Ok(accepted) => {
                note(
                    out,
                    false,
                    format!("peer {name} joined from {} (session {})", request.address, accepted.session),
                );
            }
            Err(refusal) => note(out, true, format!("peer {name} is refused: {}", refusal.sentence)),
        }
        outcome
    }

    /// A run that has begun takes nobody in. That a member joins anew shows that its earlier process is gone, so the
    /// others need not wait for its time to be over.
    fn refuse_late(&mut self, now: Tick, request: &JoinRequest, out: &mut Vec<Action>) -> Refusal {
        let known = admission::check_version(request.protocol_version)
            .and_then(|()| self.members.check_name(request));
        let index = match known {
            Ok(index) => index,
            Err(refusal) => return refusal,
        };
        let suspected =
            self.members.peer(index).is_some_and(|p| matches!(p.presence, Presence::Suspected { .. }));
        if matches!(self.stage, Stage::Running) && suspected {
            self.died(now, index, "its process was started again", out);
        }
        let sentence = match &self.stage {
            Stage::Finished { .. } | Stage::Over { ended: Ended::Finished, .. } => {
                "the run is finished".to_owned()
            }
            _ => format!(
                "the run takes no peer in now ({}); start it again when it has stopped",
                self.message()
            ),
        };
        admission::refusal(RefusalReason::Closed, sentence)
    }

    /// What follows from everything so far: the run begins when all attend, and is over when all have gone.
    fn settle(&mut self, now: Tick, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Gathering if self.members.all_attend() => self.begin(now, out),
            Stage::Stopping { .. } | Stage::Finished { .. } if !self.members.any_present() => self.over(out),
            _ => {}
        }
    }

    /// The first view of this start, durable before anyone hears of it, and then the lease.
    fn begin(&mut self, now: Tick, out: &mut Vec<Action>) {
        let Some(data) = self.members.data() else { return };
        let begins_at = self.members.newest_common_checkpoint();
        self.last_view = ViewId(self.last_view.0.saturating_add(1));
        let view = View { id: self.last_view, begins_at, members: self.members.members() };
        let count = view.members.len();
        self.members.settle();
        note(out, false, format!("view {} begins at step {begins_at} with {count} peers", view.id));
        out.push(Action::Record(Entry::View { view: view.clone(), data }));
        out.push(Action::Send { streams: self.members.streams(), message: ToPeer::View(view.clone()) });
        self.training = Some(Training {
            view,
            lease: Lease::new(now, begins_at, data.total_steps, count),
            agreement: Agreement::new(count),
            repeats: vec![false; count],
        });
        self.stage = Stage::Running;
        out.push(Action::Record(Entry::Phase(Phase::Running)));
        self.after_progress(now, out);
    }

    /// Renews the lease while the run runs, and ends the run when its last step is complete.
    fn after_progress(&mut self, now: Tick, out: &mut Vec<Action>) {
        let Some(training) = &mut self.training else { return };
        if matches!(self.stage, Stage::Running)
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
        if ends_well && training.lease.all_done() {
            self.finish(now, out);
        }
    }

    fn waiting_for(&self) -> String {
        let missing = self.members.missing();
        let more =
            if missing.len() > 16 { format!(" and {} more", missing.len() - 16) } else { String::new() };
        let names = missing.iter().take(16).copied().collect::<Vec<_>>().join(", ");
        format!("waiting for {names}{more}")
    }
}

fn note(out: &mut Vec<Action>, warn: bool, sentence: String) {
    out.push(Action::Note { warn, sentence });
}

#[cfg(test)]
mod tests;
