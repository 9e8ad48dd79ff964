//! Who is expected, who attends, who is silent and who is gone. Sans-IO: whoever composes it decides what follows.

mod deadlines;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cohort_proto::control::{Accepted, JoinRequest, Refusal, RefusalReason, StepReport, Waiting};
use cohort_proto::id::{Digest, PeerName, RunId, Step};
use cohort_proto::limits::SESSION_BITS;
use cohort_proto::schema::Schema;
use cohort_proto::spec::RunSpec;
use cohort_proto::view::Member;

use crate::admission;
use crate::event::{DataFacts, StreamId, Tick};
use crate::lease::newest_common;

pub use deadlines::Lost;

/// The peers of a run, by index in the spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    run: RunId,
    spec_hash: Digest,
    failure_timeout_ms: u64,
    next_session: u64,
    /// What the peers agree on, and whether that is settled by an earlier view.
    data: Option<DataFacts>,
    settled: bool,
    peers: Vec<Peer>,
    by_name: BTreeMap<PeerName, usize>,
    by_stream: BTreeMap<StreamId, usize>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: PeerName,
    /// Its architecture, as the spec has it.
    pub arch: String,
    /// Whether it is here.
    pub presence: Presence,
    /// What it said when it joined.
    pub joined: Option<Joined>,
    /// When it was heard last.
    pub last_heard: Tick,
    /// Its last report.
    pub report: Option<Box<StepReport>>,
    /// What it waits for, by its last heartbeat.
    pub waiting: Waiting,
}

/// What a peer said when it joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Names this attendance.
    pub session: u64,
    /// Where its log is served.
    pub address: String,
    /// What it says.
    pub schema: Schema,
    /// Checkpoints it can start from; fresh weights (0) always.
    pub checkpoints: BTreeSet<Step>,
    /// Its log holds everything from this step on; `None` as long as it is to be told where to start.
    pub log_from: Option<Step>,
}

/// Whether a peer is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Not yet.
    Expected,
    /// Accepted, its stream is still to come.
    Accepted,
    /// On this stream.
    Attending(StreamId),
    /// Its stream broke; it may come back until its time is over.
    Suspected {
        /// When it broke.
        broke_at: Tick,
        /// How.
        cause: String,
    },
    /// It did not come back; it may still be started again.
    Dead {
        /// When it was given up.
        since: Tick,
        /// Why.
        cause: String,
        /// Whether it fell silent: the connection of a process that dies breaks, that of one whose cable is cut does not.
        silent: bool,
    },
    /// It said goodbye.
    Left {
        /// Whether it had completed the whole run.
        finished: bool,
    },
}

impl Membership {
    /// All peers of the spec are expected. `starts`: how often this run's coordinator was started before; `data`: of
    /// the run's earlier views.
    pub fn new(run: RunId, spec: &RunSpec, starts: u64, data: Option<DataFacts>) -> Self {
        let peer = |peer: &cohort_proto::spec::PeerSpec| Peer {
            name: peer.name.clone(),
            arch: peer.arch.clone(),
            presence: Presence::Expected,
            joined: None,
            last_heard: Tick::default(),
            report: None,
            waiting: Waiting::default(),
        };
        Self {
            run,
            spec_hash: spec.hash(),
            failure_timeout_ms: spec.policy.failure_timeout_ms,
            next_session: (starts << SESSION_BITS) + 1,
            settled: data.is_some(),
            data,
            peers: spec.peers.iter().map(peer).collect(),
            by_name: spec.peers.iter().enumerate().map(|(i, peer)| (peer.name.clone(), i)).collect(),
            by_stream: BTreeMap::new(),
        }
    }

    /// The peers, by index.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// A peer.
    pub fn peer(&self, index: usize) -> Option<&Peer> {
        self.peers.get(index)
    }

    /// A peer's name, for sentences.
    pub fn name(&self, index: usize) -> &str {
        self.peers.get(index).map_or("?", |peer| peer.name.as_str())
    }

    /// The peer of a name.
    pub fn index(&self, name: &PeerName) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The peer that attends on a stream.
    pub fn on_stream(&self, stream: StreamId) -> Option<usize> {
        self.by_stream.get(&stream).copied()
    }

    /// What the peers train on, once one has said it.
    pub fn data(&self) -> Option<DataFacts> {
        self.data
    }

    /// From now on no peer may bring other data.
    pub fn settle(&mut self) {
        self.settled = self.data.is_some();
    }

    /// How often a peer should be heard, in milliseconds.
    pub fn heartbeat_ms(&self) -> u64 {
        (self.failure_timeout_ms / 5).clamp(50, 2000)
    }

    /// The streams of all who attend.
    pub fn streams(&self) -> Vec<StreamId> {
        self.peers.iter().filter_map(|peer| peer.stream()).collect()
    }

    /// Whether a peer attends.
    pub fn attends(&self, index: usize) -> bool {
        self.peers.get(index).is_some_and(|peer| peer.stream().is_some())
    }

    /// The streams of those of these who attend.
    pub fn streams_of(&self, indices: impl IntoIterator<Item = usize>) -> Vec<StreamId> {
        indices.into_iter().filter_map(|index| self.peers.get(index)?.stream()).collect()
    }

    /// Whether every peer attends.
    pub fn all_attend(&self) -> bool {
        self.peers.iter().all(|peer| peer.stream().is_some())
    }

    /// Whether somebody attends.
    pub fn any_attends(&self) -> bool {
        !self.by_stream.is_empty()
    }

    /// Those who attend and are to be told where to start.
    pub fn without_memory(&self) -> Vec<usize> {
        let waits = |peer: &Peer| {
            peer.stream().is_some() && peer.joined.as_ref().is_some_and(|joined| joined.log_from.is_none())
        };
        self.peers.iter().enumerate().filter(|(_, peer)| waits(peer)).map(|(index, _)| index).collect()
    }

    /// The first step that a peer's log holds, if it was told where to start.
    pub fn log_from(&self, index: usize) -> Option<Step> {
        self.peers.get(index)?.joined.as_ref()?.log_from
    }

    /// A peer was told where to start.
    pub fn starts(&mut self, index: usize, step: Step) {
        if let Some(joined) = self.peers.get_mut(index).and_then(|peer| peer.joined.as_mut()) {
            joined.log_from = Some(step);
        }
    }

    /// What a peer remembers of the run is void.
    pub fn forgets(&mut self, index: usize) {
        if let Some(joined) = self.peers.get_mut(index).and_then(|peer| peer.joined.as_mut()) {
            joined.log_from = None;
        }
    }

    /// Where a peer's log is served.
    pub fn address(&self, index: usize) -> Option<&str> {
        Some(&self.peers.get(index)?.joined.as_ref()?.address)
    }

    /// The view's members, in the order of the spec.
    pub fn members(&self) -> Vec<Member> {
        let joined =
            self.peers.iter().enumerate().filter_map(|(i, peer)| Some((i, peer, peer.joined.as_ref()?)));
        joined
            .map(|(index, peer, joined)| Member {
                index,
                name: peer.name.clone(),
                address: joined.address.clone(),
                schema: joined.schema.clone(),
            })
            .collect()
    }

    /// The members of a view of these peers, in the order of the spec.
    pub fn members_of(&self, indices: &BTreeSet<usize>) -> Vec<Member> {
        let mut members = self.members();
        members.retain(|member| indices.contains(&member.index));
        members
    }

    /// The newest step from which every peer can start.
    pub fn newest_common_checkpoint(&self) -> Step {
        newest_common(
            self.peers.iter().filter_map(|peer| peer.joined.as_ref()).map(|joined| &joined.checkpoints),
        )
        .unwrap_or(0)
    }

    /// Takes or refuses a peer. Every check of a kind comes before those that need its result. Whoever calls this detaches the
    /// stream that the peer may have had before.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn join(
        &mut self,
        now: Tick,
        spec: &RunSpec,
        remote: Option<IpAddr>,
        request: &JoinRequest,
    ) -> Result<(usize, Accepted), Refusal> {
        admission::check_version(request.protocol_version)?;
        let index = self.check_name(request)?;
        admission::check_spec_hash(request.spec_hash, self.spec_hash)?;
        let Some(peer) = spec.peers.get(index) else { return Err(self.unknown(&request.name)) };
        admission::check_arch(&request.arch, peer)?;
        admission::check_classes(request.classes, spec)?;
        admission::check_total(request.total_steps, spec)?;
        if let Some((expected, first)) = self.expected_data(index) {
            admission::check_data(request, expected, &first)?;
        }
        self.check_address(index, &request.address)?;
        admission::check_reachable(&request.address, remote)?;
        admission::check_schema(request, spec, index)?;
        admission::check_checkpoints(request, self.run)?;
        Ok((index, self.accept(now, index, request)))
    }

    fn unknown(&self, name: &PeerName) -> Refusal {
        let known: Vec<&str> = self.peers.iter().take(16).map(|peer| peer.name.as_str()).collect();
        let more = if self.peers.len() > 16 { ", ..." } else { "" };
        let sentence = format!("run.toml has no peer {name}; its peers are {}{more}", known.join(", "));
        admission::refusal(RefusalReason::UnknownName, sentence)
    }

    pub(crate) fn check_name(&self, request: &JoinRequest) -> Result<usize, Refusal> {
        let index = self.index(&request.name).ok_or_else(|| self.unknown(&request.name))?;
        match self.peers.get(index) {
            Some(Peer { presence: Presence::Attending(_), joined: Some(joined), name, .. })
                if request.standing.is_none_or(|standing| standing.session != joined.session) =>
            {
                let sentence = format!(
                    "a peer named {name} attends already, from {}; stop that one, or join under another name of run.toml",
                    joined.address
                );
                Err(admission::refusal(RefusalReason::TakenName, sentence))
            }
            _ => Ok(index),
        }
    }

    /// What a peer's data must be, and who said so. A peer that is the only one here may correct itself.
    fn expected_data(&self, index: usize) -> Option<(DataFacts, String)> {
        let data = self.data?;
        if self.settled {
            return Some((data, "this run".to_owned()));
        }
        let other = self.peers.iter().enumerate().find(|(i, peer)| *i != index && peer.joined.is_some())?;
        Some((data, format!("peer {}", other.1.name)))
    }

    fn check_address(&self, index: usize, address: &str) -> Result<(), Refusal> {
        let taken = self.peers.iter().enumerate().find(|(i, peer)| {
            *i != index && peer.joined.as_ref().is_some_and(|joined| joined.address == address)
        });
        taken.map_or(Ok(()), |(_, other)| {
            let sentence = format!(
                "the address {address} is that of peer {}; give each peer its own with --listen or --advertise",
                other.name
            );
            Err(admission::refusal(RefusalReason::Address, sentence))
        })
    }

    /// A peer that was accepted is to open its stream; returns the one that it had before.
    pub fn detach(&mut self, index: usize) -> Option<StreamId> {
        self.gone(index, Presence::Accepted)
    }

    fn accept(&mut self, now: Tick, index: usize, request: &JoinRequest) -> Accepted {
        let session = self.next_session;
        self.next_session += 1;
        if !self.settled {
            let fingerprint = request.dataset_fingerprint;
            self.data = Some(DataFacts { fingerprint, total_steps: request.total_steps });
        }
        if let Some(peer) = self.peers.get_mut(index) {
            let held = request.checkpoints.iter().flat_map(|held| held.steps.iter().copied());
            let checkpoints = held.filter(|&step| step <= request.total_steps).chain([0]).collect();
            let (address, schema) = (request.address.clone(), request.schema.clone());
            let log_from = request.standing.map(|standing| standing.log_from);
            peer.joined = Some(Joined { session, address, schema, checkpoints, log_from });
            peer.last_heard = now;
            peer.waiting = Waiting::default();
        }
        Accepted { run: self.run, session, heartbeat_ms: self.heartbeat_ms(), reported: 0 }
    }

    /// A stream began with a hello. Returns the peer and the older stream that it replaces, if any.
    ///
    /// # Errors
    /// No such attendance; what to do.
    pub fn hello(
        &mut self,
        now: Tick,
        stream: StreamId,
        run: RunId,
        name: &PeerName,
        session: u64,
    ) -> Result<(usize, Option<StreamId>), String> {
        if run != self.run {
            return Err(format!("this is run {}, not run {run}; join again", self.run));
        }
        let index = self.index(name).ok_or_else(|| format!("run.toml has no peer {name}"))?;
        let Some(peer) = self.peers.get_mut(index) else {
            return Err(format!("run.toml has no peer {name}"));
        };
        if peer.joined.as_ref().is_none_or(|joined| joined.session != session) {
            return Err(format!("session {session} of peer {name} is not known here (any more); join again"));
        }
        let older = match peer.presence {
            Presence::Accepted | Presence::Suspected { .. } => None,
            Presence::Attending(older) => Some(older),
            Presence::Expected | Presence::Dead { .. } | Presence::Left { .. } => {
                return Err(format!("session {session} of peer {name} is over; join again"));
            }
        };
        peer.presence = Presence::Attending(stream);
        peer.last_heard = now;
        if let Some(older) = older {
            self.by_stream.remove(&older);
        }
        self.by_stream.insert(stream, index);
        Ok((index, older))
    }

    /// A peer was heard on its stream.
    pub fn heard(&mut self, now: Tick, index: usize) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.last_heard = peer.last_heard.max(now);
        }
    }

    /// Keeps a peer's last report for whoever asks for the status.
    pub fn reported(&mut self, index: usize, report: Box<StepReport>) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.report = Some(report);
        }
    }

    /// A stream ended without goodbye; returns whose it was.
    pub fn broke(&mut self, now: Tick, stream: StreamId, cause: String) -> Option<usize> {
        let index = self.by_stream.remove(&stream)?;
        self.peers.get_mut(index)?.presence = Presence::Suspected { broke_at: now, cause };
        Some(index)
    }

    /// A peer is gone for good; returns its stream, which is to be closed. Its last words stay for the status.
    pub fn gone(&mut self, index: usize, presence: Presence) -> Option<StreamId> {
        let peer = self.peers.get_mut(index)?;
        let stream = peer.stream();
        peer.presence = presence;
        stream.inspect(|stream| _ = self.by_stream.remove(stream))
    }

    /// A peer is expected anew, as if it had never been here; returns its stream, which is to be closed. When it was
    /// the last one here, the data are open again, so that one with wrong data does not lock out all others.
    pub fn forget(&mut self, index: usize) -> Option<StreamId> {
        let stream = self.gone(index, Presence::Expected);
        if let Some(peer) = self.peers.get_mut(index) {
            peer.joined = None;
        }
        if !self.settled && self.peers.iter().all(|peer| peer.joined.is_none()) {
            self.data = None;
        }
        stream
    }
}

impl Peer {
    /// The stream on which it attends.
    pub fn stream(&self) -> Option<StreamId> {
        match self.presence {
            Presence::Attending(stream) => Some(stream),
            _ => None,
        }
    }
}
