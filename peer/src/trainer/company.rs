//! The rest of the cohort as the training thread meets it: it says things into the log, and listens at the inbox, where
//! it waits.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use cohort_proto::contribution::{Contribution, Position, Tensor};
use cohort_proto::id::{Digest, Step, ViewId};
use tokio::sync::mpsc;

use super::{News, Seat, Word};
use crate::error::PeerError;
use crate::round::Permission;
use crate::step::{Company, Interruption};

/// A cohort of processes.
#[derive(Debug)]
pub(super) struct Live {
    seat: Seat,
    inbox: mpsc::Receiver<Word>,
    outbox: mpsc::Sender<News>,
}

impl Live {
    pub(super) fn new(seat: Seat, inbox: mpsc::Receiver<Word>, outbox: mpsc::Sender<News>) -> Self {
        Self { seat, inbox, outbox }
    }

    pub(super) fn permission(&self) -> Permission {
        self.seat.permission()
    }

    /// Whether the cohort may go on without some: then what was trained before a start may not be what is trained after it.
    pub(super) fn goes_on(&self) -> bool {
        self.seat.goes_on()
    }

    /// Whether the others take a step without this peer.
    pub(super) fn is_left_behind_at(&self, step: Step) -> bool {
        self.seat.rounds.is_left_behind_at(step)
    }

    pub(super) fn common(&self) -> Step {
        self.seat.common()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.seat.epoch()
    }

    pub(super) fn completed(&mut self) {
        self.seat.completed();
    }

    pub(super) fn started(&mut self, step: Step) {
        self.seat.started(step);
    }

    pub(super) fn stand_down(&mut self) {
        self.seat.stand_down();
    }

    pub(super) fn retakes(&mut self) {
        self.seat.retakes();
    }

    /// Answers a flush, if one was asked for.
    pub(super) fn answer(&mut self) {
        if let Some(answer) = self.seat.answer() {
            // If nobody listens any more, the next wait says so.
            _ = self.outbox.blocking_send(answer);
        }
    }

    /// Takes note of everything that has arrived.
    pub(super) fn drain(&mut self) -> Result<(), PeerError> {
        while let Ok(word) = self.inbox.try_recv() {
            self.seat.take(word)?;
        }
        Ok(())
    }

    /// Waits for the next word.
    pub(super) fn wait(&mut self) -> Result<(), PeerError> {
        match self.inbox.blocking_recv() {
            Some(word) => self.seat.take(word),
            None => Err(PeerError::Internal("the network side of this peer is gone".into())),
        }
    }

    /// Waits for what all sources say in a round.
    fn hear_all(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        loop {
            self.drain()?;
            self.seat.interrupted()?;
            self.answer();
            if let Some(said) = self.seat.hear(at, batch_hash)? {
                return Ok(said);
            }
            self.wait()?;
        }
    }
}

impl Company for Live {
    fn view(&self) -> ViewId {
        self.seat.view()
    }

    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<Tensor>,
    ) -> Result<Option<Digest>, Interruption> {
        self.seat.say(at, batch_hash, tensors)
    }

    fn listen(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        let said = self.hear_all(at, batch_hash);
        self.seat.waits_no_more();
        said
    }

    fn log_bytes(&self) -> u64 {
        self.seat.log_bytes()
    }
}
