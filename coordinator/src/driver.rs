//! The one loop: next input, [`Cluster::handle`], perform its actions, all of them, before the next. The only owner of
//! the machine, the journal and the ways out to the peers; it decides nothing.

use std::collections::{BTreeMap, VecDeque};

use cohort_proto::control::{Accepted, Refusal, ToPeer};
use cohort_proto::wire;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::clock::{Clock, wall_ms};
use crate::cluster::Cluster;
use crate::event::{Action, Ended, Event, StreamId, Ticket};
use crate::journal::{Journal, Line, WriteFailed};
use crate::status::status;

/// What reaches the loop from the network tasks and the signals.
#[derive(Debug)]
pub enum Input {
    /// A peer wants to join.
    Join {
        /// The event, whose ticket is this request's.
        event: Box<Event>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Accepted, Refusal>>,
    },
    /// A stream was opened.
    Open {
        /// Its hello.
        event: Box<Event>,
        /// The way back.
        outlet: Outlet,
    },
    /// Anything that needs no answer.
    Event(Box<Event>),
    /// Somebody wants to know how far the run is.
    Status(oneshot::Sender<wire::StatusReply>),
}

/// The way to one attending peer. Dropping it ends the stream in both directions.
#[derive(Debug)]
pub struct Outlet {
    /// What the peer is still to be sent; its length is the limit of what may wait.
    pub queue: mpsc::Sender<Result<wire::ToPeer, Status>>,
    /// Dropped with the outlet, so that the reading side hears that it is over.
    pub open: oneshot::Sender<()>,
}

/// The loop's belongings.
#[derive(Debug)]
pub struct Driver {
    cluster: Cluster,
    journal: Journal,
    clock: Clock,
    inputs: mpsc::Receiver<Input>,
    answers: BTreeMap<Ticket, oneshot::Sender<Result<Accepted, Refusal>>>,
    outlets: BTreeMap<StreamId, Outlet>,
    /// What performing actions made happen: handled before the next input.
    consequences: VecDeque<Event>,
    /// Said once; what is still to be done after it must not wait for a journal that is gone.
    journal_failed: bool,
}

impl Driver {
    /// Takes what it will own.
    pub fn new(cluster: Cluster, journal: Journal, clock: Clock, inputs: mpsc::Receiver<Input>) -> Self {
        let consequences = VecDeque::new();
        Self {
            cluster,
            journal,
            clock,
            inputs,
            answers: BTreeMap::new(),
            outlets: BTreeMap::new(),
            consequences,
            journal_failed: false,
        }
    }

    /// Runs until the run is over and everything is written.
    pub async fn run(mut self) -> Ended {
        // What waits is taken before a deadline is looked at, since it may be the very word that was waited for; but
        // no more than fits the queue, so that a flood delays no deadline.
        let share = self.inputs.max_capacity();
        let mut inputs_left = share;
        loop {
            let event = self.next(inputs_left > 0).await;
            inputs_left =
                if event == Some(Event::Timer) || inputs_left == 0 { share } else { inputs_left - 1 };
            if let Some(event) = event
                && let Some(ended) = self.handle(event).await
            {
                return self.end(ended).await;
            }
        }
    }

    /// The next event; `None` for an input that is not one.
    async fn next(&mut self, inputs_first: bool) -> Option<Event> {
        let wake = self.cluster.poll_timeout();
        if !inputs_first && wake.is_some_and(|wake| wake <= self.clock.now()) {
            return Some(Event::Timer);
        }
        let wake = wake.map(|tick| self.clock.instant(tick));
        let sleep = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            biased;
            Some(input) = self.inputs.recv() => input,
            () = sleep => return Some(Event::Timer),
        };
        match input {
            Input::Event(event) => Some(*event),
            Input::Join { event, answer } => {
                if let Event::Join { ticket, .. } = *event {
                    self.answers.insert(ticket, answer);
                }
                Some(*event)
            }
            Input::Open { event, outlet } => {
                if let Event::Hello { stream, .. } = *event {
                    self.outlets.insert(stream, outlet);
                }
                Some(*event)
            }
            Input::Status(answer) => {
                // Whoever no longer waits does not need the answer.
                _ = answer.send(status(&self.cluster, self.clock.now(), self.journal.bytes()));
                None
            }
        }
    }

    /// One event and all that follows from it.
    async fn handle(&mut self, event: Event) -> Option<Ended> {
        let mut ended = None;
        let mut next = Some(event);
        while let Some(event) = next {
            let closed = match event {
                Event::StreamClosed { stream, .. } => Some(stream),
                _ => None,
            };
            let mut actions = Vec::new();
            self.cluster.handle(self.clock.now(), event, &mut actions);
            if let Some(stream) = closed {
                self.outlets.remove(&stream);
            }
            let mut stands = true;
            for action in actions {
                if let Action::Exit(how) = action {
                    ended = Some(how);
                    continue;
                }
                if !stands {
                    continue;
                }
                let others_stand_on_it =
                    matches!(&action, Action::Record(entry) if entry.others_stand_on_it());
                let Err(WriteFailed(cause)) = self.perform(action).await else { continue };
                if !self.journal_failed {
                    self.journal_failed = true;
                    self.consequences.push_back(Event::JournalFailed { cause });
                }
                stands &= !others_stand_on_it;
            }
            next = self.consequences.pop_front();
        }
        ended
    }

    async fn perform(&mut self, action: Action) -> Result<(), WriteFailed> {
        match action {
            Action::Answer { ticket, outcome } => {
                if let Some(answer) = self.answers.remove(&ticket) {
                    // A peer that hung up meanwhile is noticed by its missing stream.
                    _ = answer.send(outcome);
                }
            }
            Action::Record(entry) => return self.journal.write(wall_ms(), Line::Entry(entry)).await,
            Action::Send { streams, message } => self.send(&streams, message),
            Action::Close { stream, error } => {
                if let Some(outlet) = self.outlets.remove(&stream)
                    && let Some(error) = error
                {
                    // A queue that is full says by itself what was wrong.
                    _ = outlet.queue.try_send(Err(Status::failed_precondition(error)));
                }
            }
            Action::Note { warn, sentence } => {
                if warn {
                    tracing::warn!("{sentence}")
                } else {
                    tracing::info!("{sentence}")
                }
                return self.journal.write(wall_ms(), Line::Event { warn, sentence }).await;
            }
            Action::Exit(_) => {}
        }
        Ok(())
    }

    /// Queues a message on each stream. A peer that lets its queue fill up is dropped: it must not hold up the others
    /// or grow this process.
    fn send(&mut self, streams: &[StreamId], message: ToPeer) {
        let message = wire::ToPeer::from(message);
        for &stream in streams {
            let Some(outlet) = self.outlets.get(&stream) else { continue };
            if let Err(mpsc::error::TrySendError::Full(_)) = outlet.queue.try_send(Ok(message.clone())) {
                let waiting = outlet.queue.max_capacity();
                let cause =
                    format!("was given up: it does not read what it is sent, {waiting} messages wait");
                self.outlets.remove(&stream);
                self.consequences.push_back(Event::StreamClosed { stream, cause });
            }
        }
    }

    /// The last words are on their way to the peers; what was decided is on the disk.
    async fn end(mut self, ended: Ended) -> Ended {
        self.outlets.clear();
        match self.journal.flush().await {
            Err(WriteFailed(cause)) if ended != Ended::JournalFailed => {
                tracing::error!("the journal cannot be written: {cause}");
                Ended::JournalFailed
            }
            _ => ended,
        }
    }
}
