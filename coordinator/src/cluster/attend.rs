//! What an attending peer says, and what follows from it.

use std::collections::BTreeMap;

use cohort_proto::control::{FromPeer, StepReport, Stop, StopKind, ToPeer};
use cohort_proto::id::{Digest, PeerName, RunId, Step, ViewId};
use cohort_proto::spec::DivergencePolicy;

use super::holdings::counts;
use super::{Cluster, Stage, Training, note};
use crate::agreement::{Disagreement, Divergence, Said};
use crate::event::{Action, Entry, StreamId, Tick};
use crate::lease::Told;
use crate::membership::Presence;

impl Cluster {
    /// A stream begins. Everything that its peer may have missed is said again: all of it is state, not news.
    pub(super) fn hello(
        &mut self,
        now: Tick,
        stream: StreamId,
        run: RunId,
        name: &PeerName,
        session: u64,
        out: &mut Vec<Action>,
    ) {
        let (index, older) = match self.members.hello(now, stream, run, name, session) {
            Ok(found) => found,
            Err(error) => return out.push(Action::Close { stream, error: Some(error) }),
        };
        if let Some(older) = older {
            let error = Some(format!("a newer stream of peer {name} took its place"));
            out.push(Action::Close { stream: older, error });
        }
        note(out, false, format!("peer {name} attends"));
        if self.is_starting_anew(index) && self.members.log_from(index).is_none() {
            self.stand_down([index].into_iter(), out);
        }
        self.say_views(&[stream], out);
        if self.readdress_members() {
            // Those who came before were told where it was earlier.
            let others = self.members.streams().into_iter().filter(|other| *other != stream);
            self.say_views(&others.collect::<Vec<_>>(), out);
        }
        let mut say = |message| out.push(Action::Send { streams: vec![stream], message });
        if let Some(training) = &self.training {
            say(ToPeer::Lease(training.lease.until()));
            say(ToPeer::RetainFrom(training.lease.retain_from()));
        }
        if let Some(stop) = self.stop_told() {
            say(ToPeer::Stop(stop));
        }
        self.ask_again(index, stream, out);
        self.moved(now);
        // It may have saved its last checkpoint while it was away.
        self.after_progress(now, out);
    }

    pub(super) fn hear(&mut self, now: Tick, index: usize, message: FromPeer, out: &mut Vec<Action>) {
        match message {
            FromPeer::Heartbeat(waiting) => self.members.waits(index, waiting),
            FromPeer::Hello { .. } => self.fault(now, index, "said hello twice on one stream", out),
            FromPeer::Report(report) => self.report(now, index, report, out),
            FromPeer::CheckpointSaved { step, held } => self.saved(now, index, step, &held, out),
            // Every log holds all that it will ask for from where it starts anew, or will when its owner has started too.
            FromPeer::CannotFollow(_) if self.is_starting_anew(index) => {}
            FromPeer::CannotFollow(_) if !self.in_view().contains(&index) => {}
            FromPeer::CannotFollow(sentence) => {
                let why = format!("peer {} cannot follow: {sentence}", self.members.name(index));
                self.fall_back(now, &why, out);
            }
            FromPeer::Received { flush, of } => self.received(index, flush, of),
            FromPeer::StopWish(reason) => self.stop_wish(now, index, &reason, out),
            FromPeer::Leaving { steps_done, finished, reason } => {
                self.leaving(now, index, steps_done, finished, &reason, out);
            }
        }
    }

    fn report(&mut self, now: Tick, index: usize, report: StepReport, out: &mut Vec<Action>) {
        let outside = !self.in_view().contains(&index);
        let before = |start: Step| report.step < start;
        let Some(training) = &mut self.training else {
            return self.fault(now, index, "reported a step before the run began", out);
        };
        if outside || self.members.log_from(index).is_none_or(before) {
            // What it remembers is void, and it has still to hear of that, or of where it starts.
            return;
        }
        let StepReport { step, view, own_digest, .. } = report;
        let holds = training.views.at(step).map_or(ViewId(0), |view| view.id);
        if view < holds {
            // It was under way when all fell back, and will be taken again.
            if !training.starting_anew.contains(&index) {
                self.starts_anew(
                    index,
                    "took a step that all others take again, and has not heard of that",
                    out,
                );
            }
            return;
        }
        if view != holds {
            let what = format!("reported step {step} in view {view}, but view {holds} holds");
            return self.fault(now, index, &what, out);
        }
        let heard: BTreeMap<usize, Digest> = report
            .consumed
            .iter()
            .filter_map(|(name, digest)| Some((self.members.index(name)?, *digest)))
            .collect();
        if heard.len() != report.consumed.len() {
            let what = format!(
                "reported for step {step} that it consumed something of a peer that is not in the run, or twice of one"
            );
            return self.fault(now, index, &what, out);
        }
        let said = Said { digest: own_digest, tensors: report.said.clone() };
        training.starting_anew.remove(&index);
        training.told.remove(&index);
        let starts_here = training.views.iter().any(|other| other.id == view && other.begins_at == step);
        if starts_here && view > ViewId(1) && step < training.lease.next(index) {
            // It heard of the view first, and then that it is to start there: it takes its first step again.
            training.lease.resume(index, step);
        }
        match training.lease.report(now, index, step) {
            Err(error) => return self.fault(now, index, &error.to_string(), out),
            Ok(Told::Again) => {
                let again = training.agreement.again(index, step, &said);
                self.moved(now);
                return again.unwrap_or_else(|difference| self.diverged(now, index, step, &difference, out));
            }
            Ok(Told::New) => {}
        }
        if let Err(difference) = training.agreement.report(index, step, said, &heard) {
            let sentence = self.disagreement(step, difference);
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        self.moved(now);
        let report = Box::new(report);
        let peer = self.members.peers()[index].name.clone();
        out.push(Action::Record(Entry::Report { peer, report: report.clone() }));
        self.members.reported(index, report);
        self.after_progress(now, out);
    }

    /// Whether one is to start elsewhere than where it was, and has reported nothing since.
    fn is_starting_anew(&self, index: usize) -> bool {
        self.training.as_ref().is_some_and(|training| training.starting_anew.contains(&index))
    }

    /// A member that attends has to be told (again) where to start.
    fn starts_anew(&mut self, index: usize, why: &str, out: &mut Vec<Action>) {
        note(out, true, format!("peer {} {why}: it starts anew", self.members.name(index)));
        self.void(index);
        self.stand_down([index].into_iter(), out);
    }

    fn disagreement(&self, step: Step, difference: Disagreement) -> String {
        let Disagreement { source, hearer, heard, other, others } = difference;
        let (source, hearer) = (self.members.name(source), self.members.name(hearer));
        let other = if other == difference.source {
            "that peer itself says".to_owned()
        } else {
            format!("peer {} consumed", self.members.name(other))
        };
        format!(
            "peers no longer agree: at step {step} peer {hearer} consumed {} of peer {source}, but {other} {}; the run \
             stops because its peers would learn from different things",
            heard.short(),
            others.short()
        )
    }

    /// A replay recomputed something else than was said the first time, and others have learnt from that.
    fn diverged(
        &mut self,
        now: Tick,
        index: usize,
        step: Step,
        difference: &Divergence,
        out: &mut Vec<Action>,
    ) {
        let Divergence { tensor, before, now: computed } = difference;
        let what = tensor.as_ref().map_or("a later round".to_owned(), |tensor| format!("{tensor:?}"));
        let sentence = format!(
            "peer {} replays step {step} and says another {what} than the first time ({}, not {}): its processor, \
             device or program is not the one that it had; the others have learnt from what it said before",
            self.members.name(index),
            computed.short(),
            before.short()
        );
        if self.spec.policy.on_divergence == DivergencePolicy::Stop {
            return self.stop(now, StopKind::AtOnce, sentence, out);
        }
        if self.training.as_mut().is_some_and(|training| training.diverged.insert(index)) {
            note(out, true, format!("{sentence}; the run goes on (on_divergence = \"warn\")"));
        }
    }

    fn saved(&mut self, now: Tick, index: usize, step: Step, held: &[Step], out: &mut Vec<Action>) {
        let Some(training) = &mut self.training else {
            return self.fault(now, index, "saved a checkpoint before the run began", out);
        };
        let held: Vec<Step> = held.iter().copied().chain([step]).collect();
        // What it was told to start from may have been let go meanwhile.
        let start = training.lease.next(index);
        let held_it = training.lease.counts(index, start);
        let lacks = training.told.get(&index).is_some_and(|start| !start.is_possible_with(&held));
        let mut known = training.lease.checkpoints(index).cloned().unwrap_or_default();
        known.remove(&step);
        let Training { lease, views, .. } = &mut *training;
        match lease.saved(index, step, &held, |step| counts(views, index, step)) {
            Err(error) => {
                let what = format!("saved a checkpoint of {step} steps, but {error}");
                self.fault(now, index, &what, out);
            }
            Ok(grown) => {
                let lets_go = lacks || (held_it && !training.lease.counts(index, start));
                // Whatever logs may be let go for is durable first: this one, and others that count since views have changed.
                training.record_what_counts(index, &known, &self.members.peers()[index].name, out);
                if let Some(step) = grown {
                    training.retain_from(step);
                    let message = ToPeer::RetainFrom(step);
                    out.push(Action::Send { streams: self.members.streams(), message });
                }
                if lets_go && self.members.log_from(index).is_some() {
                    self.starts_anew(index, "no longer has the checkpoint from which it was to start", out);
                }
                self.after_progress(now, out);
            }
        }
    }

    fn stop_wish(&mut self, now: Tick, index: usize, reason: &str, out: &mut Vec<Action>) {
        let name = self.members.name(index);
        let reason = if reason.is_empty() { "it gave no reason" } else { reason };
        let sentence = format!("peer {name} asked to stop: {reason}");
        match self.stage {
            Stage::Running => self.stop(now, StopKind::Graceful, sentence, out),
            // Nothing has begun that the others would have to end: that one peer may go.
            Stage::Gathering => {
                note(out, false, sentence.clone());
                let streams = self.members.streams_of([index]);
                let message = ToPeer::Stop(Stop { kind: StopKind::AtOnce, sentence });
                out.push(Action::Send { streams, message });
            }
            Stage::Stopping { .. } | Stage::Finished { .. } | Stage::Over { .. } => {}
        }
    }

    fn leaving(
        &mut self,
        now: Tick,
        index: usize,
        steps_done: Step,
        finished: bool,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        let gathering = matches!(self.stage, Stage::Gathering);
        let finished = finished && self.training.as_ref().is_some_and(|t| t.lease.is_done(index));
        let stream = if gathering {
            self.members.forget(index)
        } else {
            self.members.gone(index, Presence::Left { finished })
        };
        if let Some(stream) = stream {
            out.push(Action::Close { stream, error: None });
        }
        let name = self.members.name(index);
        // A peer that was told to stop gives the reason that it was told.
        let told = matches!(&self.stage, Stage::Stopping { stop, .. } if stop.sentence == reason);
        let why = if reason.is_empty() || told { String::new() } else { format!(": {reason}") };
        let sentence = format!("peer {name} left after {steps_done} steps{why}");
        // Who leaves before the end of the lease leaves steps that the others cannot take without it.
        let early = !finished && steps_done < self.lease_until();
        if !finished && self.lose(index, out) {
            return note(out, true, sentence);
        }
        match &self.stage {
            Stage::Running if !finished && !self.in_view().contains(&index) => note(out, true, sentence),
            Stage::Running if !finished => {
                // A peer that leaves because it lost another tells only half of the story.
                let suspected = self.members.broken().join(", ");
                let also = if suspected.is_empty() {
                    suspected
                } else {
                    format!(" (the connection of {suspected} broke before)")
                };
                let sentence = format!("{sentence}{also}; the others save what is complete and stop");
                self.stop(now, StopKind::AtOnce, sentence, out);
            }
            Stage::Stopping { stop, .. } if stop.kind == StopKind::Graceful && early => {
                self.stop(now, StopKind::AtOnce, format!("{}; {sentence}", stop.sentence), out);
            }
            _ => note(out, false, sentence),
        }
    }

    /// A peer does not keep to the protocol. Before the run it is shown the door; a run that it is part of goes on without
    /// it, or stops.
    pub(super) fn fault(&mut self, now: Tick, index: usize, what: &str, out: &mut Vec<Action>) {
        let sentence = format!("peer {} {what}", self.members.name(index));
        if matches!(self.stage, Stage::Gathering) {
            if let Some(stream) = self.members.forget(index) {
                out.push(Action::Close { stream, error: Some(sentence.clone()) });
            }
            return note(out, true, sentence);
        }
        let outside = matches!(self.stage, Stage::Running) && !self.in_view().contains(&index);
        if outside || self.lose(index, out) {
            let presence = Presence::Dead { since: now, cause: what.to_owned(), silent: false };
            if let Some(stream) = self.members.gone(index, presence) {
                out.push(Action::Close { stream, error: Some(sentence.clone()) });
            }
            return note(out, true, sentence);
        }
        self.stop(now, StopKind::AtOnce, format!("{sentence}; the run stops"), out);
    }
}
