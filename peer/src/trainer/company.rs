//! The rest of the cohort as the training thread meets it: it says things into the log, and listens at the inbox.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use cohort_proto::contribution::{Contribution, ContributionError, Header, Position, Tensor};
use cohort_proto::id::{Digest, PeerName, RunId, Step, ViewId};
use cohort_proto::limits::RELAY_STEPS;
use cohort_proto::meta::Agenda;
use cohort_proto::schema::Schema;
use tokio::sync::mpsc;

use super::{News, Word};
use crate::error::PeerError;
use crate::log::ContributionLog;
use crate::net::follow::Place;
use crate::relay::Relay;
use crate::round::{Arrival, Permission, Rounds};
use crate::step::{Company, Interruption};
use crate::waits::Waits;

/// Who this peer is in the run.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) me: PeerName,
    pub(super) run: RunId,
    pub(super) schema: Schema,
    pub(super) agenda: Agenda,
    pub(super) total_steps: Step,
    /// Those that it learns from.
    pub(super) sources: BTreeSet<PeerName>,
    /// Whether to keep what was received for others.
    pub(super) relays: bool,
}

/// A cohort of processes.
#[derive(Debug)]
pub(super) struct Live {
    identity: Identity,
    rounds: Rounds,
    inbox: mpsc::Receiver<Word>,
    outbox: mpsc::Sender<News>,
    log: Arc<ContributionLog>,
    /// Places in the inboxes of sources, held until what was sent is consumed.
    places: Vec<(Header, Place)>,
    /// The newest step of which every peer has a checkpoint.
    common: Step,
    /// Which time that this peer starts: what is heard of an earlier one is void.
    epoch: u64,
    waits: Arc<Waits>,
    relay: Arc<Relay>,
    /// The question how much has arrived of those who are gone, until it is answered.
    flush: Option<(u64, Vec<PeerName>)>,
    /// The view in which the step under way began.
    began_in: ViewId,
}

impl Live {
    pub(super) fn new(
        identity: Identity,
        (inbox, outbox): (mpsc::Receiver<Word>, mpsc::Sender<News>),
        log: Arc<ContributionLog>,
        (waits, relay): (Arc<Waits>, Arc<Relay>),
    ) -> Self {
        let Identity { me, run, total_steps, sources, .. } = &identity;
        let rounds = Rounds::new(me.clone(), *run, *total_steps, sources.clone());
        let (places, flush, began_in) = (Vec::new(), None, ViewId(0));
        Self {
            identity,
            rounds,
            inbox,
            outbox,
            log,
            places,
            common: 0,
            epoch: 0,
            waits,
            relay,
            flush,
            began_in,
        }
    }

    pub(super) fn permission(&self) -> Permission {
        self.rounds.permission()
    }

    /// Whether the cohort may go on without some: then what was trained before a start may not be what is trained after it.
    pub(super) fn goes_on(&self) -> bool {
        self.identity.relays
    }

    pub(super) fn common(&self) -> Step {
        self.common
    }

    pub(super) fn completed(&mut self) {
        self.rounds.completed();
        let next = self.rounds.next_step();
        self.places.retain(|(header, _)| header.position.step >= next);
        self.relay.retain_from(next.saturating_sub(RELAY_STEPS));
    }

    /// Training is at the checkpoint of a step, where it was told to start.
    pub(super) fn started(&mut self, step: Step) {
        self.log.restart_at(step);
        self.rounds.started();
    }

    /// A step was given up: what was said to it is said again, in the view that holds now.
    pub(super) fn retakes(&mut self) {
        self.log.cut_from(self.rounds.next_step());
    }

    /// Answers a flush, if one was asked for: how much of the logs of those who are gone has arrived. Nothing of theirs
    /// arrives after the question.
    pub(super) fn answer(&mut self) {
        let Some((flush, peers)) = self.flush.take() else { return };
        let (next, last) = (self.rounds.next_step(), self.identity.agenda.last_round());
        let until = |peer: PeerName| {
            let step = self.relay.whole_until(&peer, next, last);
            // A step whose only round is here may be whole without anybody knowing: it is not completed by one alone.
            self.rounds.forget(&peer, step);
            self.places.retain(|(header, _)| header.source != peer || header.position.step < step);
            (peer, step)
        };
        let of = peers.into_iter().map(until).collect();
        // If nobody listens any more, the next wait says so.
        _ = self.outbox.blocking_send(News::Received { flush, of });
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
            Word::View(view) => {
                self.arrived(Arrival::View(view))?;
                // What was said in a view that is void must not be taken for what is said in its place.
                self.relay.retain(|header| self.rounds.holds(header));
                self.places.retain(|(header, _)| self.rounds.holds(header));
                return Ok(());
            }
            Word::Lease(until) => Arrival::Lease(until),
            Word::Stop(stop) => Arrival::Stop(stop),
            Word::Start { start, epoch } => {
                self.epoch = epoch;
                self.places.clear();
                Arrival::Start(start)
            }
            Word::Flush { id, peers } => {
                self.flush = Some((id, peers));
                return Ok(());
            }
            Word::Heard(delivery) if delivery.epoch < self.epoch => return Ok(()),
            Word::Heard(delivery) => {
                let (contribution, place) = delivery.into_contribution();
                let header = contribution.header().clone();
                if self.identity.relays && self.rounds.holds(&header) {
                    self.relay.record(&contribution);
                }
                if self.arrived(Arrival::Heard(contribution))? {
                    self.places.push((header, place));
                }
                return Ok(());
            }
            Word::Common(step) => {
                self.common = self.common.max(step);
                return Ok(());
            }
            Word::Lost(error) => return Err(error),
            Word::Joined(run) => return Err(PeerError::Internal(format!("joined run {run} twice"))),
        };
        self.arrived(arrival).map(|_| ())
    }

    fn arrived(&mut self, arrival: Arrival) -> Result<bool, PeerError> {
        self.rounds.arrived(arrival).map_err(|stray| PeerError::Contribution(stray.to_string()))
    }
}

impl Live {
    /// Waits for what all sources say in a round.
    fn hear_all(&mut self, at: Position) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        loop {
            self.drain()?;
            if let Some(stop) = self.rounds.abandon() {
                return Err(Interruption::Stopped(stop.clone()));
            }
            if self.rounds.restarts(self.began_in) {
                return Err(Interruption::Restarted);
            }
            self.answer();
            if let Some(said) = self.rounds.take(at) {
                return Ok(said);
            }
            self.waits.for_sources(self.rounds.missing(at));
            self.wait()?;
        }
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
        if at.round == 0 {
            self.began_in = self.view();
        }
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
        let said = self.hear_all(at);
        self.waits.over();
        let said = said?;
        let elsewhere = said.iter().find(|(_, contribution)| contribution.header().batch_hash != batch_hash);
        if let Some((_, contribution)) = elsewhere {
            let source = &contribution.header().source;
            return Err(Interruption::from(PeerError::Contribution(format!(
                "peer {source} is on another batch at step {}: its data or its batch plan differ from this peer's",
                at.step
            ))));
        }
        // Sources may send as much again: a step of many rounds has more of them than places.
        self.places.retain(|(header, _)| header.position > at);
        Ok(said)
    }

    fn log_bytes(&self) -> u64 {
        self.log.byte_len()
    }
}
