//! What can happen to a cluster and what it can want done: closed enums of plain data, so that a run can be replayed
//! from its events and a test can compare a list of actions. No channel, no socket, no clock.

use std::net::IpAddr;

use cohort_proto::control::{Accepted, FromPeer, JoinRequest, Refusal, StepReport, ToPeer};
use cohort_proto::id::{Digest, PeerName, RunId, Step};
use cohort_proto::view::View;

/// Milliseconds since some fixed moment, never going back. Whoever drives a machine reads the clock and passes it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment so many milliseconds later.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from an earlier moment to this one; 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names a request that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Names one attend stream; never used again after the stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A peer presents itself.
    Join {
        /// Whom to answer.
        ticket: Ticket,
        /// Where the call came from, if the transport knows.
        remote: Option<IpAddr>,
        /// What it says of itself.
        request: Box<JoinRequest>,
    },
    /// A stream was opened and began with the peer's hello.
    Hello {
        /// The new stream.
        stream: StreamId,
        /// The run that the peer means.
        run: RunId,
        /// Who it says it is.
        name: PeerName,
        /// Which of its attendances this is.
        session: u64,
    },
    /// A message came on a stream.
    Message {
        /// The stream.
        stream: StreamId,
        /// What it said.
        message: FromPeer,
    },
    /// A stream ended, whoever ended it.
    StreamClosed {
        /// The stream.
        stream: StreamId,
        /// How, for people: the end of a sentence that begins with "its connection".
        cause: String,
    },
    /// Somebody asked this process to stop.
    StopAsked {
        /// How it was asked, such as `SIGINT`.
        by: String,
    },
    /// The journal cannot be written, so nothing that must be durable can happen any more.
    JournalFailed {
        /// What the system said.
        cause: String,
    },
    /// The moment has come that the machine asked to be woken for.
    Timer,
}

/// What is to be done, in the order in which it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Answer a join.
    Answer {
        /// Whom.
        ticket: Ticket,
        /// With what.
        outcome: Result<Accepted, Refusal>,
    },
    /// Write into the journal. Where [`Entry::must_be_durable`] holds, no later action before it is on the disk, or before it
    /// is known that it cannot be; then only where [`Entry::others_stand_on_it`] does not hold.
    Record(Entry),
    /// Send one message on each of some streams.
    Send {
        /// The streams.
        streams: Vec<StreamId>,
        /// The message.
        message: ToPeer,
    },
    /// End a stream.
    Close {
        /// The stream.
        stream: StreamId,
        /// What was wrong with the peer; `None` if nothing was.
        error: Option<String>,
    },
    /// Tell people.
    Note {
        /// Whether something is wrong.
        warn: bool,
        /// What happened.
        sentence: String,
    },
    /// The run is over for this process.
    Exit(Ended),
}

/// How a run ended for the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every member has completed the last step and holds its last checkpoint.
    Finished,
    /// Before the end; what was complete is saved.
    Stopped,
    /// Because the journal could not be written.
    JournalFailed,
}

/// The data that all peers of a run share, as the first of them said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFacts {
    /// SHA-256 of the training data.
    pub fingerprint: Digest,
    /// Steps of the whole run.
    pub total_steps: Step,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A view begins, on these data.
    View {
        /// The view.
        view: View,
        /// The data.
        data: DataFacts,
    },
    /// Steps below `until` may be taken.
    Lease {
        /// The first step that may not.
        until: Step,
    },
    /// A peer has a checkpoint of so many completed steps.
    Checkpoint {
        /// The peer.
        peer: PeerName,
        /// Its completed steps.
        step: Step,
    },
    /// A peer has none of its checkpoints of more steps than these any more.
    Lost {
        /// The peer.
        peer: PeerName,
        /// Completed steps of the newest that it still has.
        after: Step,
    },
    /// A peer completed a step.
    Report {
        /// The peer.
        peer: PeerName,
        /// What it told.
        report: Box<StepReport>,
    },
    /// The run entered another phase.
    Phase(Phase),
}

impl Entry {
    /// Whether others may act on it only when it is on the disk, and with it all that was written before: on a view and
    /// a lease anybody acts; on a checkpoint, by letting go of what came before it; on the word that training starts
    /// somewhere, by keeping no entry from before.
    pub fn must_be_durable(&self) -> bool {
        !matches!(self, Self::Report { .. })
    }

    /// Whether what follows it must not be done if it cannot be written. How a run ends is told and done all the same.
    pub fn others_stand_on_it(&self) -> bool {
        self.must_be_durable() && !matches!(self, Self::Phase(_))
    }
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Peers are still expected.
    Gathering,
    /// Steps are taken.
    Running,
    /// Peers save and leave.
    Stopping,
    /// Ended before the last step.
    Stopped,
    /// Every member has completed the last step.
    Finished,
}

impl Phase {
    /// One word, for people and the journal.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
        }
    }
}
