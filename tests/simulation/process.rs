//! One process of a peer: what its network side and its training thread own. The real [`Rounds`], [`ContributionLog`] and
//! [`Place`]; the tasks and channels around them are plain data here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use cohort_coordinator::event::StreamId;
use cohort_peer::log::ContributionLog;
use cohort_peer::relay::Relay;
use cohort_peer::round::Rounds;
use cohort_peer::standing::Place;
use cohort_proto::contribution::{Contribution, Header, Position};
use cohort_proto::control::{Accepted, JoinRequest, Refusal, Start, StepReport, Stop, TensorDigest};
use cohort_proto::id::{Digest, PeerName, Step, ViewId};
use cohort_proto::view::{View, Views};

use crate::journal::RUN;
use crate::training::{Setting, fresh};

/// A machine that may run a process of a peer.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) disk: crate::disk::Disk,
    pub(crate) process: Option<Process>,
    /// Its process has ended well: nobody starts it again.
    pub(crate) finished: bool,
    /// How often it was started.
    pub(crate) lives: u64,
}

/// A place in the inbox, of what a source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) source: usize,
    /// Which of the inboxes that were made for it.
    pub(crate) inbox: u64,
}

/// To the training thread.
#[derive(Clone)]
pub(crate) enum Word {
    View(View),
    Start { start: Start, epoch: u64 },
    Lease(Step),
    Common(Step),
    Heard { contribution: Arc<Contribution>, epoch: u64, seat: Seat },
    Flush { id: u64, peers: Vec<PeerName> },
    Stop(Stop),
}

/// From the training thread.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Step(StepReport),
    Saved { step: Step, held: Vec<Step>, epoch: u64 },
    Received { flush: u64, of: Vec<(PeerName, Step)> },
    Ended { steps_done: Step, saved: bool, stop: Stop },
}

/// Where a process is with the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// Its request to join of this number is on the way.
    Joining(u64),
    /// The answer is.
    Answered(Box<Result<Accepted, Refusal>>),
    /// Its hello is.
    Opening {
        stream: StreamId,
        accepted: Accepted,
    },
    Attending(StreamId),
    /// It will try to come back.
    Away,
    /// It was told to stop, and needs no coordinator any more.
    Done,
}

/// What has been delivered of a source, and how many places of its inbox are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) reached: Position,
    pub(crate) taken: usize,
    pub(crate) inbox: u64,
    /// It is to be heard again from where this peer is.
    pub(crate) again: bool,
}

/// A task that follows a source.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) name: PeerName,
    pub(crate) address: String,
    pub(crate) epoch: u64,
    /// The views that were known when it began.
    pub(crate) views: Arc<Views>,
    /// What had been delivered when it connected.
    pub(crate) asked: Position,
    /// How often in a row the source said that it no longer holds what is wanted.
    pub(crate) released: u32,
    pub(crate) connection: Option<Connection>,
    /// It ended with an error that the driver has not heard yet.
    pub(crate) ended: bool,
}

/// A stream of log entries, from the side of the source.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The next entry to send.
    pub(crate) cursor: Position,
    /// That of the log; none for what a third one received of the source.
    pub(crate) generation: Option<u64>,
    pub(crate) on_the_way: VecDeque<Item>,
    /// Nothing is sent any more.
    pub(crate) closed: bool,
}

#[derive(Clone)]
pub(crate) enum Item {
    Entry(Arc<Contribution>),
    Anew,
    Released,
    Broken,
}

#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) address: String,
    pub(crate) link: Link,
    pub(crate) place: Option<Place>,
    pub(crate) stopping: bool,
    /// Since when it has been without a coordinator, if it does not wait for ever.
    pub(crate) away_since: Option<u64>,
    pub(crate) views: Views,
    /// Of these nothing more is taken.
    pub(crate) gone: BTreeSet<usize>,
    /// Whether it was told where to start, and how often.
    pub(crate) started: bool,
    pub(crate) epoch: u64,
    pub(crate) sources: BTreeMap<usize, Source>,
    pub(crate) inboxes: u64,
    pub(crate) tasks: BTreeMap<usize, Task>,
    /// Errors of tasks that have ended and that the driver has not heard yet.
    pub(crate) ended_tasks: usize,
    pub(crate) log: Log,
    pub(crate) relay: Received,
    pub(crate) words: VecDeque<Word>,
    pub(crate) news: VecDeque<News>,
    pub(crate) trainer: Trainer,
}

/// A contribution, by what tells it from others.
fn short(entry: &Contribution) -> (Position, u64, &str) {
    (entry.header().position, entry.header().view.0, entry.header().source.as_str())
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::View(view) => write!(f, "view {} {}", view.id, view.begins_at),
            Self::Start { start, epoch } => write!(f, "start {start:?} {epoch}"),
            Self::Flush { id, peers } => write!(f, "flush {id} {peers:?}"),
            Self::Lease(until) => write!(f, "lease {until}"),
            Self::Common(step) => write!(f, "common {step}"),
            Self::Heard { contribution, epoch, .. } => write!(f, "{:?} {epoch}", short(contribution)),
            Self::Stop(stop) => write!(f, "stop {}", stop.kind),
        }
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "{:?}", short(entry)),
            Self::Anew => f.write_str("anew"),
            Self::Released => f.write_str("released"),
            Self::Broken => f.write_str("broken"),
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = Position::of(self.0.begins_at());
        write!(f, "{} {at:?}", self.0.generation())?;
        while let Ok(Some(entry)) = self.0.get(at) {
            write!(f, " {:?}", short(&entry))?;
            at = entry.header().position.following();
        }
        Ok(())
    }
}

/// The real log, with copies for worlds that branch.
pub(crate) struct Log(pub(crate) ContributionLog);

impl Clone for Log {
    fn clone(&self) -> Self {
        Self(self.0.copy())
    }
}

/// The real store of what was received of others, with copies as well.
pub(crate) struct Received(pub(crate) Relay);

impl Clone for Received {
    fn clone(&self) -> Self {
        Self(self.0.copy())
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = (0..9).filter_map(|peer| PeerName::new(format!("p{peer}")).ok());
        let entries = names.filter_map(|name| self.0.entries(&name, Position::default()));
        let short =
            entries.map(|entries| entries.iter().map(|e| format!("{:?}", short(e))).collect::<Vec<_>>());
        write!(f, "{:?}", short.collect::<Vec<_>>())
    }
}

/// What the training thread owns.
#[derive(Debug, Clone)]
pub(crate) struct Trainer {
    pub(crate) rounds: Rounds,
    pub(crate) epoch: u64,
    pub(crate) common: Step,
    /// Places in inboxes, and what took each.
    pub(crate) seats: Vec<(Header, Seat)>,
    /// The question how much has arrived of those who are gone.
    pub(crate) flush: Option<(u64, Vec<PeerName>)>,
    /// The view in which the step under way began.
    pub(crate) began_in: ViewId,
    /// Since when it has waited in the middle of the step.
    pub(crate) waits_since: Option<u64>,
    pub(crate) state: u64,
    pub(crate) trail: Trail,
    pub(crate) steps_done: Step,
    pub(crate) saved: Step,
    pub(crate) held: BTreeSet<Step>,
    pub(crate) at: At,
    /// Nothing can be done before another word comes.
    pub(crate) blocked: bool,
}

/// The view in which each step was taken that made the weights what they are.
pub(crate) type Trail = BTreeMap<Step, ViewId>;

/// Where the training thread is.
#[derive(Debug, Clone)]
pub(crate) enum At {
    /// Between two steps.
    Rest,
    /// In the middle of one, waiting for the others.
    Listening(Exchange),
    Ended,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    pub(crate) at: Position,
    pub(crate) heard: u64,
    pub(crate) own: Vec<Digest>,
    pub(crate) consumed: BTreeMap<PeerName, Vec<Digest>>,
    pub(crate) said: Vec<TensorDigest>,
}

impl Process {
    pub(crate) fn start(setting: &Setting, peer: usize, life: u64, disk: &crate::disk::Disk) -> Self {
        let others =
            (0..setting.size.peers).filter(|other| *other != peer && !setting.schema.tensors().is_empty());
        let sources = others.map(|other| setting.name(other).clone()).collect();
        let rounds = Rounds::new(setting.name(peer).clone(), RUN, setting.size.steps, sources);
        let trainer = Trainer {
            rounds,
            epoch: 0,
            common: 0,
            seats: vec![],
            flush: None,
            began_in: ViewId(0),
            waits_since: None,
            state: fresh(peer),
            trail: Trail::new(),
            steps_done: 0,
            saved: 0,
            held: disk.verified().into_iter().collect(),
            at: At::Rest,
            blocked: false,
        };
        Self {
            // As with a port that the system chooses: another one each time.
            address: format!("127.0.0.1:{}", 2000 + 100 * peer as u64 + life % 100),
            link: Link::Joining(0),
            place: None,
            stopping: false,
            away_since: None,
            views: Views::default(),
            gone: BTreeSet::new(),
            started: false,
            epoch: 0,
            sources: BTreeMap::new(),
            inboxes: 0,
            tasks: BTreeMap::new(),
            ended_tasks: 0,
            log: Log(ContributionLog::new(0)),
            relay: Received(Relay::default()),
            words: VecDeque::new(),
            news: VecDeque::new(),
            trainer,
        }
    }

    /// Whether it has begun its first step.
    pub(crate) fn has_spoken(&self) -> bool {
        matches!(self.trainer.at, At::Listening(_))
    }

    /// With what it presents itself, the first time or again.
    pub(crate) fn request(&self, setting: &Setting, peer: usize) -> JoinRequest {
        let held: Vec<Step> = match &self.place {
            Some(place) => place.held().to_vec(),
            None => self.trainer.held.iter().copied().collect(),
        };
        let checkpoints =
            (!held.is_empty()).then_some(cohort_proto::control::Checkpoints { run: RUN, steps: held });
        JoinRequest {
            protocol_version: cohort_proto::limits::PROTOCOL_VERSION,
            name: setting.name(peer).clone(),
            spec_hash: setting.spec.hash(),
            arch: setting.spec.peers[peer].arch.clone(),
            classes: 10,
            address: self.address.clone(),
            schema: setting.schema.clone(),
            dataset_fingerprint: Digest::of("data"),
            total_steps: setting.size.steps,
            checkpoints,
            standing: self.place.as_ref().and_then(|place| place.standing(self.log.0.begins_at())),
        }
    }
}
