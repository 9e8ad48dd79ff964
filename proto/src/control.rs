//! The words of the control plane, as both sides use them.

use std::collections::BTreeSet;
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
    /// Where it stands, if it is a process that has been in the run all along.
    pub standing: Option<Standing>,
}

/// Where a process stands that lost the coordinator but not its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its last attendance.
    pub session: u64,
    /// Steps it has completed.
    pub steps_done: Step,
    /// Its log holds everything from this step on.
    pub log_from: Step,
    /// The end of the lease that it holds.
    pub lease_until: Step,
    /// The view in which it took its last step; if none since it was told where to start, the one that held there.
    pub view: ViewId,
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
    /// Steps of this peer that are on record: it reports from here on.
    pub reported: Step,
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
    /// The run is complete, and so is this peer.
    Finished,
    /// The run is complete, and the others went on without this peer.
    LeftBehind,
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
    /// What it said in round 0, tensor by tensor.
    pub said: Vec<TensorDigest>,
}

/// A short digest of one tensor of a contribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDigest {
    /// The tensor's name.
    pub name: String,
    /// The first 8 bytes of the SHA-256 of its data, little-endian.
    pub digest: u64,
}

impl TensorDigest {
    /// The digest of a tensor's bytes.
    pub fn of(name: &str, data: &[u8]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = Digest::of(data).0;
        Self { name: name.to_owned(), digest: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }
    }
}

/// What a peer waits for in the middle of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The sources whose contributions have not come.
    pub sources: Vec<PeerName>,
    /// For how long it has waited, in milliseconds.
    pub ms: u64,
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
    /// Still there, and what it waits for.
    Heartbeat(Waiting),
    /// A step is complete.
    Report(StepReport),
    /// A checkpoint is safely on disk.
    CheckpointSaved {
        /// Its completed steps.
        step: Step,
        /// All that are on disk now, ascending.
        held: Vec<Step>,
    },
    /// Somebody asked the peer to stop; it would like the cohort to stop at a common step.
    StopWish(String),
    /// A source no longer holds an entry that this peer needs.
    CannotFollow(String),
    /// The answer to a flush.
    Received {
        /// Which one.
        flush: u64,
        /// By the names of those who are gone: everything that they said to steps below this is here.
        of: Vec<(PeerName, Step)>,
    },
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
    /// Take the weights of a checkpoint and train from a step.
    Start(Start),
    /// These members are gone: take nothing more of theirs, and say how much has arrived. One that is named itself does
    /// nothing more before it is told where to start.
    Flush {
        /// Names the question; a later one takes its place.
        id: u64,
        /// Who is gone.
        peers: Vec<PeerName>,
    },
}

/// Where training starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The first step to take.
    pub step: Step,
    /// Completed steps of the checkpoint whose weights it takes (0: fresh ones): as many, but for a peer that was left
    /// behind by the others.
    pub checkpoint: Step,
}

impl Start {
    /// From the checkpoint of so many steps, with the next.
    pub fn at(step: Step) -> Self {
        Self { step, checkpoint: step }
    }

    /// Whether one with these checkpoints can do it, or has begun: when it comes in it saves that of its first step, and may
    /// let go of the one with which it came.
    pub fn is_possible_with(&self, held: &[Step]) -> bool {
        [self.checkpoint, self.step].iter().any(|step| *step == 0 || held.contains(step))
    }
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
    /// The names of the tensors that the follower learns from.
    pub wanted: BTreeSet<String>,
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
