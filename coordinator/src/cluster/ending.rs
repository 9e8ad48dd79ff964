//! How a run ends: finished, stopped gracefully, stopped at once; and what happens when peers do not go.

use cohort_proto::control::{Stop, StopKind, ToPeer};
use cohort_proto::limits::SENTENCE_CHARS_MAX;
use cohort_proto::spec::{FailurePolicy, RunSpec};

use super::{Cluster, REMINDER_MS, Stage, note};
use crate::event::{Action, Ended, Entry, Phase, Tick};
use crate::membership::{Lost, Presence};

/// Beyond the failure timeout: how long peers may take to save their state.
const SAVING_MS: u64 = 5_000;

/// How long a run that ends waits for its peers to go.
pub(super) fn patience_ms(spec: &RunSpec) -> u64 {
    spec.policy.failure_timeout_ms + SAVING_MS
}

/// How long a run stands still before somebody is given up who has not been found dead: twice as long as it takes to
/// notice a death, so that whatever explains it has been noticed by then.
pub(super) fn absence_ms(spec: &RunSpec) -> u64 {
    spec.policy.failure_timeout_ms.saturating_mul(2)
}

impl Cluster {
    /// Stops the run, or stops it harder than before. Nothing that is over or finished can be stopped.
    pub(super) fn stop(&mut self, now: Tick, kind: StopKind, sentence: String, out: &mut Vec<Action>) {
        // The end of the lease is out of reach while somebody is missing.
        let kind = if self.all_here() { kind } else { StopKind::AtOnce };
        match &self.stage {
            Stage::Over { .. } | Stage::Finished { .. } => return note(out, true, sentence),
            Stage::Stopping { stop, .. } if stop.kind == StopKind::AtOnce || kind == StopKind::Graceful => {
                return note(out, true, sentence);
            }
            Stage::Gathering | Stage::Running | Stage::Stopping { .. } => {}
        }
        let sentence: String = sentence.chars().take(SENTENCE_CHARS_MAX).collect();
        let lease_ms = match (kind, &self.training) {
            (StopKind::Graceful, Some(training)) => training.lease.left_ms(),
            _ => 0,
        };
        let patience = patience_ms(&self.spec) + lease_ms.saturating_mul(2);
        let stop = Stop { kind, sentence: sentence.clone() };
        note(out, true, format!("stopping ({kind}): {sentence}"));
        let deadline = self.returning_until.unwrap_or(now).max(now).plus(patience);
        self.stage = Stage::Stopping { stop: stop.clone(), deadline };
        self.say_who_may_return(now, out);
        out.push(Action::Record(Entry::Phase(Phase::Stopping)));
        self.tell_all(ToPeer::Stop(stop), out);
    }

    pub(super) fn stop_asked(&mut self, now: Tick, by: &str, out: &mut Vec<Action>) {
        let sentence = format!("the coordinator was asked to stop ({by})");
        match &self.stage {
            Stage::Gathering => self.stop(now, StopKind::AtOnce, sentence, out),
            Stage::Running => self.stop(now, StopKind::Graceful, sentence, out),
            Stage::Stopping { stop, .. } if stop.kind == StopKind::Graceful && self.members.any_present() => {
                self.stop(now, StopKind::AtOnce, format!("{sentence} at once"), out);
            }
            Stage::Stopping { .. } | Stage::Finished { .. } => self.over(now, out),
            Stage::Over { .. } => {}
        }
    }

    pub(super) fn journal_failed(&mut self, now: Tick, cause: &str, out: &mut Vec<Action>) {
        if !self.journal_failed {
            self.journal_failed = true;
            let sentence = format!("the coordinator's journal cannot be written: {cause}");
            // What was to be said together with what could not be written was not said.
            let told = self.stop_told();
            self.stop(now, StopKind::AtOnce, sentence, out);
            if let Some(stop) = told {
                self.tell_all(ToPeer::Stop(stop), out);
            }
        }
    }

    /// How all who attend were told that the run ends, if they were.
    pub(super) fn stop_told(&self) -> Option<Stop> {
        match &self.stage {
            Stage::Stopping { stop, .. } => Some(stop.clone()),
            Stage::Finished { asks: false, .. } => Some(self.finished_stop()),
            Stage::Finished { .. } | Stage::Gathering | Stage::Running | Stage::Over { .. } => None,
        }
    }

    /// Says something to all who attend, if anybody does.
    pub(super) fn tell_all(&self, message: ToPeer, out: &mut Vec<Action>) {
        let streams = self.members.streams();
        if !streams.is_empty() {
            out.push(Action::Send { streams, message });
        }
    }

    /// Every member has completed the last step.
    pub(super) fn finish(&mut self, now: Tick, out: &mut Vec<Action>) {
        let stop = self.finished_stop();
        note(out, false, stop.sentence.clone());
        let deadline = self.returning_until.unwrap_or(now).max(now).plus(patience_ms(&self.spec));
        self.stage = Stage::Finished { deadline, asks: false };
        self.say_who_may_return(now, out);
        out.push(Action::Record(Entry::Phase(Phase::Finished)));
        self.tell_all(ToPeer::Stop(stop), out);
    }

    pub(super) fn finished_stop(&self) -> Stop {
        Stop { kind: StopKind::Finished, sentence: self.finished_sentence() }
    }

    pub(super) fn finished_sentence(&self) -> String {
        let total = self.members.data().map_or(0, |data| data.total_steps);
        format!("all {total} steps are complete")
    }

    /// A peer is gone while the run needs it. A run that runs waits for it.
    pub(super) fn died(&mut self, now: Tick, lost: &Lost, out: &mut Vec<Action>) {
        let &Lost { index, silent, ref cause } = lost;
        let at = self.steps_done(index);
        let presence = Presence::Dead { since: now, cause: cause.clone(), silent };
        if let Some(stream) = self.members.gone(index, presence) {
            out.push(Action::Close { stream, error: Some(format!("given up: {cause}")) });
        }
        self.some_may_return(now);
        if matches!(self.stage, Stage::Running) {
            if self.lose(index, out) || !self.in_view().contains(&index) {
                let name = self.members.name(index);
                return note(out, true, format!("peer {name} died at step {at}: {cause}"));
            }
            let name = self.members.name(index);
            let seconds = seconds_until(now, self.gives_up_at());
            return note(
                out,
                true,
                format!(
                    "peer {name} died at step {at}: {cause}; the others wait for it for {seconds} s: start it again \
                     with the same command"
                ),
            );
        }
        let name = self.members.name(index);
        let sentence = format!(
            "peer {name} died at step {at}: {cause}; the others save what is complete and stop; start the run again to \
             go on from there"
        );
        self.stop(now, StopKind::AtOnce, sentence, out);
    }

    /// The run has not moved for too long.
    fn give_up(&mut self, now: Tick, out: &mut Vec<Action>) {
        let seconds = self.spec.policy.wait_timeout_ms as f64 / 1000.0;
        let waiting = self.message(now);
        let why =
            if waiting.is_empty() { "everybody attends, but nobody gets on".to_owned() } else { waiting };
        let sentence = format!(
            "no step was completed for {seconds:.1} s (wait_timeout_ms): {why}; what is complete is saved; start the \
             run again to go on from there"
        );
        self.stop(now, StopKind::AtOnce, sentence, out);
    }

    /// Under `continue`, those who keep the others from going on: who did not come back to a coordinator that was started
    /// again, and who is not heard by others although both live.
    fn lose_by_time(&mut self, now: Tick, out: &mut Vec<Action>) {
        if self.absent_until.is_some_and(|until| now >= until) {
            self.absent_until = None;
            for index in self.in_view() {
                if self.members.peer(index).is_some_and(|peer| peer.presence == Presence::Expected) {
                    let cause = "it did not come back to this coordinator".to_owned();
                    self.died(now, &Lost { index, silent: true, cause }, out);
                }
            }
        }
        if self.stalls_at().is_none_or(|at| now < at) {
            return;
        }
        self.looked_at = now;
        if let Some(index) = self.members.most_missed(&self.in_view()) {
            // Otherwise the reminder says who waits for whom, until the run has not moved for too long.
            if self.lose(index, out) {
                let name = self.members.name(index);
                note(out, true, format!("peer {name} lives, but what it says does not reach the others"));
                self.moved(now);
                self.bar(now, index);
            }
        }
    }

    /// When those who live and are not heard are given up: heartbeats say who waits for whom. If these say nothing yet (a
    /// step can take long), the next ones may.
    pub(super) fn stalls_at(&self) -> Option<Tick> {
        let goes_on = self.spec.policy.on_failure == FailurePolicy::Continue;
        let applies = goes_on && self.flush.is_none() && self.all_here();
        let still = self.moved_at.plus(absence_ms(&self.spec));
        applies.then(|| still.max(self.looked_at.plus(self.members.heartbeat_ms())))
    }

    /// What the passing of time decides.
    pub(super) fn expire(&mut self, now: Tick, out: &mut Vec<Action>) {
        for lost in self.members.lost(now) {
            match self.stage {
                Stage::Over { .. } => {}
                Stage::Gathering => {
                    if let Some(stream) = self.members.forget(lost.index) {
                        out.push(Action::Close { stream, error: Some(lost.cause.clone()) });
                    }
                    let name = self.members.name(lost.index);
                    note(out, true, format!("peer {name} is expected again: {}", lost.cause));
                }
                Stage::Running | Stage::Stopping { .. } | Stage::Finished { .. } => {
                    self.died(now, &lost, out);
                }
            }
        }
        if matches!(self.stage, Stage::Running) {
            self.lose_by_time(now, out);
        }
        if !self.is_early(now) {
            self.returning_until = None;
        }
        self.unbar(now);
        match &self.stage {
            Stage::Gathering if now >= self.remind_at => {
                self.remind_at = now.plus(REMINDER_MS);
                note(out, false, self.message(now));
            }
            Stage::Running if self.members.any_attends() && now >= self.gives_up_at() => {
                self.give_up(now, out)
            }
            Stage::Running if now >= self.remind_at => {
                self.remind_at = now.plus(REMINDER_MS);
                let waiting = self.message(now);
                if !waiting.is_empty() {
                    note(out, true, waiting);
                }
            }
            Stage::Stopping { stop, deadline } if now >= *deadline => match stop.kind {
                StopKind::Graceful => {
                    let sentence =
                        format!("{}; it took too long to reach the end of the lease", stop.sentence);
                    self.stop(now, StopKind::AtOnce, sentence, out);
                }
                StopKind::AtOnce | StopKind::Finished => self.over(now, out),
            },
            Stage::Finished { deadline, .. } if now >= *deadline => self.over(now, out),
            _ => {}
        }
    }

    /// Nothing more will happen: streams that are left are closed, and the process may end.
    pub(super) fn over(&mut self, now: Tick, out: &mut Vec<Action>) {
        self.tell_finished(now, out);
        let unsaved = self.unsaved();
        let (ended, sentence) = match &self.stage {
            _ if self.journal_failed => (Ended::JournalFailed, self.ending_message()),
            Stage::Finished { .. } if unsaved.is_empty() => (Ended::Finished, self.finished_sentence()),
            Stage::Finished { .. } => {
                let peers = unsaved.join(", ");
                let done = self.finished_sentence();
                (
                    Ended::Stopped,
                    format!(
                        "{done}, but the last checkpoint is not known to be saved by {peers}; start the run again"
                    ),
                )
            }
            _ => (Ended::Stopped, self.ending_message()),
        };
        for stream in self.members.streams() {
            let error = Some(format!("the coordinator ends: {sentence}"));
            out.push(Action::Close { stream, error });
        }
        note(out, ended != Ended::Finished, format!("the run is over: {sentence}"));
        self.stage = Stage::Over { ended, sentence };
        out.push(Action::Record(Entry::Phase(self.phase())));
        out.push(Action::Exit(ended));
    }

    /// Peers that neither left as finished nor said that their last checkpoint is on the disk.
    fn unsaved(&self) -> Vec<&str> {
        let Some(training) = &self.training else { return vec![] };
        let members = self.in_view();
        let peers = self.members.peers().iter().enumerate();
        peers
            .filter(|(index, peer)| {
                members.contains(index)
                    && peer.presence != Presence::Left { finished: true }
                    && !training.lease.has_last_checkpoint(*index)
            })
            .map(|(_, peer)| peer.name.as_str())
            .collect()
    }
}

/// Whole seconds from one moment to a later one.
pub(super) fn seconds_until(now: Tick, later: Tick) -> u64 {
    later.since(now).div_ceil(1000)
}
