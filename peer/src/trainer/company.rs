//! The rest of the cohort as the training thread meets it: it says things into the log, and listens at the inbox.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cohort_proto::contribution::{Contribution, ContributionError, Header, Position, Tensor};
use cohort_proto::control::{Stop, StopKind};
use cohort_proto::id::{Digest, PeerName, RunId, Step, ViewId};
use cohort_proto::meta::Agenda;
use cohort_proto::schema::Schema;
use cohort_proto::view::View;
use tokio::sync::mpsc;

use super::Word;
use crate::error::PeerError;
use crate::log::ContributionLog;
use crate::net::follow::Place;
use crate::round::{Arrival, Permission, Rounds, WaitsFor};
use crate::step::{Company, Interruption};

/// Who this peer is in the run.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) me: PeerName,
    pub(super) run: RunId,
    pub(super) schema: Schema,
    pub(super) agenda: Agenda,
    pub(super) total_steps: Step,
    /// How long to wait for what a living source says.
    pub(super) stall: Duration,
}

/// A cohort of processes.
#[derive(Debug)]
pub(super) struct Live {
    identity: Identity,
    rounds: Rounds,
    inbox: mpsc::Receiver<Word>,
    log: Arc<ContributionLog>,
    /// Places in the inboxes of sources, held until what was sent is consumed.
    places: Vec<(Position, Place)>,
    /// The newest step of which every peer has a checkpoint.
    common: Step,
    /// The last time that was told.
    now: Duration,
}

impl Live {
    pub(super) fn new(identity: Identity, inbox: mpsc::Receiver<Word>, log: Arc<ContributionLog>) -> Self {
        // An empty schema means that nobody listens to anybody.
        let listens = !identity.schema.tensors().is_empty();
        let rounds = Rounds::new(identity.me.clone(), identity.run, identity.total_steps, listens);
        Self { identity, rounds, inbox, log, places: Vec::new(), common: 0, now: Duration::ZERO }
    }

    /// The first view, or the stop that came before it.
    pub(super) fn wait_for_view(&mut self) -> Result<Result<View, Stop>, PeerError> {
        loop {
            match (self.rounds.view(), self.rounds.permission()) {
                (_, Permission::Leave(stop)) => return Ok(Err(stop)),
                (Some(view), _) => return Ok(Ok(view.clone())),
                (None, _) => self.wait()?,
            }
        }
    }

    pub(super) fn permission(&self) -> Permission {
        self.rounds.permission()
    }

    pub(super) fn common(&self) -> Step {
        self.common
    }

    pub(super) fn completed(&mut self) {
        self.rounds.completed();
        let next = self.rounds.next_step();
        self.places.retain(|(position, _)| position.step >= next);
    }

    pub(super) fn restart_log_at(&self, step: Step) {
        self.log.restart_at(step);
    }

    /// Takes note of everything that has arrived.
    pub(super) fn drain(&mut self) -> Result<(), PeerError> {
        while let Ok(word) = self.inbox.try_recv() {
            self.take(word)?;
        }
        Ok(())
    }

    /// Waits for the next word.
    pub(super) fn wait(&mut self) -> Result<(), PeerError> {
        match self.inbox.blocking_recv() {
            Some(word) => self.take(word),
            None => Err(PeerError::Internal("the network side of this peer is gone".into())),
        }
    }

    fn take(&mut self, word: Word) -> Result<(), PeerError> {
        let arrival = match word {
            Word::View(view) => Arrival::View(view),
            Word::Lease(until) => Arrival::Lease(until),
            Word::Stop(stop) => Arrival::Stop(stop),
            Word::Heard(delivery) => {
                let (contribution, place) = delivery.into_contribution();
                self.places.push((contribution.header().position, place));
                Arrival::Heard(contribution)
            }
            Word::Common(step) => {
                self.common = self.common.max(step);
                return Ok(());
            }
            Word::Tick(now) => {
                self.now = now;
                return Ok(());
            }
            // One who stops anyway ends as it was told to, whoever left first.
            Word::Lost(PeerError::PeerLost(why)) if self.rounds.stopping().is_some() => {
                Arrival::Stop(Stop { kind: StopKind::AtOnce, sentence: why })
            }
            Word::Lost(error) => return Err(error),
            Word::Joined(run) => return Err(PeerError::Internal(format!("joined run {run} twice"))),
        };
        self.rounds.arrived(arrival).map_err(|stray| PeerError::Contribution(stray.to_string()))
    }
}

impl Company for Live {
    fn view(&self) -> ViewId {
        self.rounds.view().map_or(ViewId(0), |view| view.id)
    }

    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<Tensor>,
    ) -> Result<Option<Digest>, Interruption> {
        let Identity { me, run, schema, agenda, .. } = &self.identity;
        if schema.tensors().is_empty() {
            return Ok(None);
        }
        let Some(schema) = agenda.schema(schema, at.round) else {
            return Err(PeerError::Internal(format!("this run has no round {}", at.round)).into());
        };
        let header = Header { run: *run, view: self.view(), position: at, source: me.clone(), batch_hash };
        let contribution = Contribution::seal(header, tensors, &schema).map_err(|error| match error {
            ContributionError::NotFinite { name, .. } => PeerError::Diverged { step: at.step, what: name },
            error => {
                PeerError::Internal(format!("what this peer would say does not fit its schema: {error}"))
            }
        })?;
        let digest = contribution.digest();
        let appended = self.log.append(Arc::new(contribution));
        appended.map_err(|error| PeerError::Internal(error.to_string()))?;
        Ok(Some(digest))
    }

    fn listen(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        self.drain()?;
        let since = self.now;
        let said = loop {
            self.drain()?;
            let waited = self.now.saturating_sub(since);
            if waited > self.identity.stall {
                let silent = WaitsFor::Sources(self.rounds.missing(at));
                let sentence = format!("waited {} s for {silent} on step {}", waited.as_secs(), at.step);
                return Err(Interruption::from(PeerError::PeerLost(sentence)));
            }
            if let Some(stop) = self.rounds.abandon() {
                return Err(Interruption::Stopped(stop.clone()));
            }
            match self.rounds.take(at) {
                Some(said) => break said,
                None => self.wait()?,
            }
        };
        let elsewhere = said.iter().find(|(_, contribution)| contribution.header().batch_hash != batch_hash);
        if let Some((_, contribution)) = elsewhere {
            let source = &contribution.header().source;
            return Err(Interruption::from(PeerError::Contribution(format!(
                "peer {source} is on another batch at step {}: its data or its batch plan differ from this peer's",
                at.step
            ))));
        }
        // Sources may send as much again: a step of many rounds has more of them than places.
        self.places.retain(|(position, _)| *position > at);
        Ok(said)
    }

    fn log_bytes(&self) -> u64 {
        self.log.byte_len()
    }
}
