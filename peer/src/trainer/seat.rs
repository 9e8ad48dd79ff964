//! A peer's seat in the company: what it has heard and said, and what that permits. Takes words and gives news, and never
//! waits for either.

use std::collections::BTreeSet;
use std::sync::Arc;

use cohort_proto::contribution::{Contribution, ContributionError, Header, Position, Tensor};
use cohort_proto::id::{Digest, PeerName, RunId, Step, ViewId};
use cohort_proto::limits::RELAY_STEPS;
use cohort_proto::meta::Agenda;
use cohort_proto::schema::Schema;

use super::{News, Shared, Word};
use crate::error::PeerError;
use crate::net::follow::Place;
use crate::round::{Arrival, Permission, Rounds};
use crate::step::Interruption;

/// What sources said, by ascending index.
pub type Said = Vec<(usize, Arc<Contribution>)>;

/// Who this peer is in the run.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub me: PeerName,
    /// The run.
    pub run: RunId,
    /// What it says in round 0.
    pub schema: Schema,
    /// What is said in the other rounds.
    pub agenda: Agenda,
    /// Steps of the whole run.
    pub total_steps: Step,
    /// Those that it learns from.
    pub sources: BTreeSet<PeerName>,
    /// Whether to keep what was received for others.
    pub relays: bool,
}

/// The seat.
#[derive(Debug)]
pub struct Seat {
    identity: Identity,
    pub(super) rounds: Rounds,
    pub(super) shared: Shared,
    /// Places in the inboxes of sources, held until what was sent is consumed.
    places: Vec<(Header, Place)>,
    /// The newest step of which every peer has a checkpoint.
    common: Step,
    /// Which time that this peer starts: what is heard of an earlier one is void.
    epoch: u64,
    /// The question how much has arrived of those who are gone, until it is answered.
    flush: Option<(u64, Vec<PeerName>)>,
    /// The view in which the step under way began.
    pub(super) began_in: ViewId,
}

impl Seat {
    /// That of a peer which has heard nothing yet.
    pub fn new(identity: Identity, shared: Shared) -> Self {
        let Identity { me, run, total_steps, sources, .. } = &identity;
        let rounds = Rounds::new(me.clone(), *run, *total_steps, sources.clone());
        let (places, flush, began_in) = (Vec::new(), None, ViewId(0));
        Self { identity, rounds, shared, places, common: 0, epoch: 0, flush, began_in }
    }

    /// Whether the next step may begin.
    pub fn permission(&self) -> Permission {
        self.rounds.permission()
    }

    /// The view that holds for the next step.
    pub fn view(&self) -> ViewId {
        self.rounds.view().map_or(ViewId(0), |view| view.id)
    }

    /// Whether the cohort may go on without some: then what was trained before a start may not be what is trained after it.
    pub fn goes_on(&self) -> bool {
        self.identity.relays
    }

    /// The newest step of which every peer has a checkpoint.
    pub fn common(&self) -> Step {
        self.common
    }

    /// Which time that this peer starts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes that the contribution log holds.
    pub fn log_bytes(&self) -> u64 {
        self.shared.log.byte_len()
    }

    /// The step is complete.
    pub fn completed(&mut self) {
        self.rounds.completed();
        let next = self.rounds.next_step();
        self.places.retain(|(header, _)| header.position.step >= next);
        self.shared.relay.retain_from(next.saturating_sub(RELAY_STEPS));
    }

    /// Training is at the checkpoint of a step, where it was told to start.
    pub fn started(&mut self, step: Step) {
        self.shared.log.restart_at(step);
        self.rounds.started();
    }

    /// It cannot start where it was told to: it waits to be told anew.
    pub fn stand_down(&mut self) {
        self.rounds.stand_down();
    }

    /// A step was given up: what was said to it is said again, in the view that holds now.
    pub fn retakes(&mut self) {
        self.shared.log.cut_from(self.rounds.next_step());
    }

    /// The answer to a flush, if one was asked for: how much of the logs of those who are gone has arrived. Nothing of
    /// theirs arrives after the question.
    pub fn answer(&mut self) -> Option<News> {
        let (flush, peers) = self.flush.take()?;
        let (next, last) = (self.rounds.next_step(), self.identity.agenda.last_round());
        let until = |peer: PeerName| {
            let step = self.shared.relay.whole_until(&peer, next, last);
            // A step whose only round is here may be whole without anybody knowing: it is not completed by one alone.
            self.rounds.forget(&peer, step);
            self.places.retain(|(header, _)| header.source != peer || header.position.step < step);
            (peer, step)
        };
        Some(News::Received { flush, of: peers.into_iter().map(until).collect() })
    }

    /// Takes note of a word.
    ///
    /// # Errors
    /// It is one after which this peer cannot go on.
    pub fn take(&mut self, word: Word) -> Result<(), PeerError> {
        let arrival = match word {
            Word::View(view) => {
                self.arrived(Arrival::View(view))?;
                // What was said in a view that is void must not be taken for what is said in its place.
                self.shared.relay.retain(|header| self.rounds.holds(header));
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
            Word::Flush { peers, .. } if peers.contains(&self.identity.me) => {
                self.rounds.stand_down();
                return Ok(());
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
                    self.shared.relay.record(&contribution);
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
            Word::LookAgain => {
                return Err(PeerError::Internal("asked for its checkpoints after it joined".into()));
            }
        };
        self.arrived(arrival).map(|_| ())
    }

    fn arrived(&mut self, arrival: Arrival) -> Result<bool, PeerError> {
        self.rounds.arrived(arrival).map_err(|stray| PeerError::Contribution(stray.to_string()))
    }

    /// Says something in a round; its digest, unless nobody listens.
    ///
    /// # Errors
    /// It cannot be said.
    pub fn say(
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
        let appended = self.shared.log.append(Arc::new(contribution));
        appended.map_err(|error| PeerError::Internal(error.to_string()))?;
        Ok(Some(digest))
    }

    /// Whether the step under way is to be given up.
    ///
    /// # Errors
    /// It is, and why.
    pub fn interrupted(&self) -> Result<(), Interruption> {
        if let Some(stop) = self.rounds.abandon() {
            return Err(Interruption::Stopped(stop.clone()));
        }
        if self.rounds.restarts(self.began_in) {
            return Err(Interruption::Restarted);
        }
        Ok(())
    }

    /// What all sources said in a round, if it is all there.
    ///
    /// # Errors
    /// A source is on another batch.
    pub fn hear(&mut self, at: Position, batch_hash: u64) -> Result<Option<Said>, Interruption> {
        let Some(said) = self.rounds.take(at) else {
            self.shared.waits.for_sources(self.rounds.missing(at));
            return Ok(None);
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
        self.places.retain(|(header, _)| header.position > at);
        Ok(Some(said))
    }

    /// Nothing is waited for any more.
    pub fn waits_no_more(&self) {
        self.shared.waits.over();
    }
}
