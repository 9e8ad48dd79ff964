//! The words of the control plane, as both sides use them.

use std::fmt;

use crate::contribution::Position;
use crate::id::{Digest, PeerName, RunId, Step, ViewId};
use crate::schema::Schema;
use crate::view::View;

/// A peer presents itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The wire protocol it speaks.
    pub protocol_version: u32,
    /// Its name in the run spec.
    pub name: PeerName,
    /// SHA-256 of the run spec that it built itself from.
    pub spec_hash: Digest,
    /// The architecture it built.
    pub arch: String,
    /// Classes of its classifier.
    pub classes: u32,
    /// Where its contribution log is served, `host:port`.
    pub address: String,
    /// What it will say in every round 0.
    pub schema: Schema,
    /// SHA-256 of the training data as used.
    pub dataset_fingerprint: Digest,
    /// Steps of the whole run as its batch plan has it.
    pub total_steps: Step,
    /// The checkpoints that it could start from, and the run that they belong to.
    pub checkpoints: Option<Checkpoints>,
}

/// Checkpoints that a peer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoints {
    /// The run in which they were written.
    pub run: RunId,
    /// Completed steps of each, ascending.
    pub steps: Vec<Step>,
}

/// A peer may attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The run.
    pub run: RunId,
    /// Names this attendance among all of the same peer.
    pub session: u64,
    /// How often the coordinator wants to hear from it, in milliseconds.
    pub heartbeat_ms: u64,
}

/// Why a peer may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// It speaks another version of the protocol.
    ProtocolVersion,
    /// The run spec names no such peer.
    UnknownName,
    /// A peer of that name attends already.
    TakenName,
    /// It was built from another run spec.
    SpecHash,
    /// It built another architecture than the run spec says, or one that nobody knows.
    Arch,
    /// Another number of classes.
    Classes,
    /// The address is taken by another peer, or cannot be reached from elsewhere.
    Address,
    /// What it will say does not fit the method.
    Schema,
    /// Other training data.
    Dataset,
    /// Its checkpoints belong to another run.
    Checkpoints,
    /// The run no longer takes peers.
    Closed,
    /// A field is missing or out of its limits.
    Malformed,
}

/// A refusal, with a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// What programs go by.
    pub reason: RefusalReason,
    /// What happened and what to do.
    pub sentence: String,
}

/// One named loss term of a step, before its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Such as `ce` or `soft_icl`.
    pub name: String,
    /// Its value.
    pub value: f64,
}

/// How the names of matching weights begin: `lambda.K.SOURCE.Z` is the mean weight with which the reporting peer's stage
/// K is matched with stage Z of a source.
pub const MATCHING_TERM: &str = "lambda.";

impl Term {
    /// Whether it is the weight of a pair of stages, of which there are too many for a line.
    pub fn is_matching(name: &str) -> bool {
        name.starts_with(MATCHING_TERM)
    }
}

/// How long one act of the step took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The act, as the files of the peer's `step` folder are called.
    pub act: String,
    /// Milliseconds.
    pub ms: f64,
}

/// What a peer tells of a completed step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step.
    pub step: Step,
    /// The view that held.
    pub view: ViewId,
    /// Its epoch.
    pub epoch: u64,
    /// The learning rate that was used.
    pub lr: f64,
    /// Digest of what it said itself in round 0.
    pub own_digest: Digest,
    /// Digest of everything it consumed, by source.
    pub consumed: Vec<(PeerName, Digest)>,
    /// The loss terms.
    pub terms: Vec<Term>,
    /// The acts, in the order of the recipe.
    pub timings: Vec<Timing>,
    /// Samples in the batch.
    pub images: u64,
    /// Bytes that its contribution log holds.
    pub log_bytes: u64,
}

/// From an attending peer to the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub enum FromPeer {
    /// First on every stream: which attendance this is.
    Hello {
        /// The run.
        run: RunId,
        /// The peer.
        name: PeerName,
        /// From [`Accepted`].
        session: u64,
    },
    /// Still there.
    Heartbeat,
    /// A step is complete.
    Report(StepReport),
    /// A checkpoint with this many completed steps is safely on disk.
    CheckpointSaved(Step),
    /// Somebody asked the peer to stop; it would like the cohort to stop at a common step.
    StopWish(String),
    /// Last on a stream that ends well.
    Leaving {
        /// Steps it has completed and saved.
        steps_done: Step,
        /// Whether that is the whole run.
        finished: bool,
        /// Why, if not because it finished or was told to.
        reason: String,
    },
}

/// How a run ends for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopKind {
    /// Every member has completed the last step.
    Finished,
    /// Run to the end of the lease, save there, leave.
    Graceful,
    /// Save what is complete now, leave.
    AtOnce,
}

/// The coordinator ends the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// How.
    pub kind: StopKind,
    /// Why, for people.
    pub sentence: String,
}

/// From the coordinator to an attending peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToPeer {
    /// These members, from this step on.
    View(View),
    /// Steps below this may be taken.
    Lease(Step),
    /// Log entries below this will not be asked for again.
    RetainFrom(Step),
    /// The run ends.
    Stop(Stop),
}

/// A peer asks another for its contribution log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// The wire protocol that the follower speaks.
    pub protocol_version: u32,
    /// The run.
    pub run: RunId,
    /// Who asks.
    pub follower: PeerName,
    /// Who is asked.
    pub source: PeerName,
    /// The first entry wanted.
    pub from: Position,
}

impl fmt::Display for StopKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Graceful => "graceful",
            Self::AtOnce => "at once",
        })
    }
}
