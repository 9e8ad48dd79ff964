//! One coordinator, a few peers and the network between them. [`World::enabled`] lists what may happen next,
//! [`World::perform`] makes one of it happen: the seeded world draws from that list by time, the search takes all of it.
//!
//! Connections are queues with the promises of TCP: in order, without gaps; one that breaks loses a suffix.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use cohort_coordinator::event::{Ended, Event as ClusterEvent, StreamId, Tick};
use cohort_proto::control::{FromPeer, JoinRequest, ToPeer};
use cohort_proto::id::{PeerName, RunId};

use crate::coordinator::Coordinator;
use crate::disk::Disk;
use crate::journal::Journal;
use crate::process::{Host, Link, Process};
use crate::trainer::Around;
use crate::training::Setting;
use crate::watch::Watch;

/// A mistake that is made on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// A peer starts at its newest checkpoint, whatever the others have heard of it.
    NewestCheckpoint,
    /// A log is released up to the newest checkpoint of its own peer, not to that of all.
    ReleaseOwn,
    /// Asked how much has arrived of one that is gone, a peer counts a step more.
    OneMore,
}

/// What may happen, faults apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    StartCoordinator,
    StartPeer(usize),
    /// A request to join arrives.
    Join(u64),
    /// Its answer does.
    Answer(usize),
    /// From a peer to the coordinator.
    Up(StreamId),
    /// From the coordinator to a peer.
    Down(StreamId),
    /// A peer that lost the coordinator tries to come back.
    Attempt(usize),
    /// A follower connects to a source.
    Connect(usize, usize),
    /// From a source to a follower.
    Deliver(usize, usize),
    /// The driver hears that a following has ended.
    TaskEnded(usize),
    Train(usize),
    News(usize),
    Heartbeat(usize),
    Timer,
}

/// What goes up a control stream.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello { run: RunId, name: PeerName, session: u64 },
    Word(FromPeer),
}

/// What comes down.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    /// The call was taken.
    Headers,
    Word(ToPeer),
    End,
}

/// The control stream of one attendance.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) peer: usize,
    pub(crate) up: VecDeque<Up>,
    pub(crate) down: VecDeque<Down>,
    /// Nothing more comes from the peer, and how that looks.
    pub(crate) up_end: Option<String>,
}

impl Stream {
    pub(crate) fn opened(peer: usize, hello: Up) -> Self {
        Self { peer, up: VecDeque::from([hello]), down: VecDeque::new(), up_end: None }
    }
}

/// A request to join on its way.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    pub(crate) peer: usize,
    pub(crate) request: JoinRequest,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) setting: Arc<Setting>,
    pub(crate) planted: Planted,
    /// Peers compute and hand on at once, so that only what crosses the network can be late.
    pub(crate) eager: bool,
    pub(crate) now: Tick,
    pub(crate) coordinator: Coordinator,
    pub(crate) hosts: Vec<Host>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    pub(crate) joins: BTreeMap<u64, Join>,
    /// How much of what is under way a break lets through.
    pub(crate) kept: usize,
    numbers: u64,
    /// Whether a checkpoint was damaged: only then may all fall back.
    pub(crate) damaged: bool,
    pub(crate) watch: Watch,
    pub(crate) notes: Notes,
}

/// What people would read, the newest last; no part of the state.
#[derive(Clone, Default)]
pub(crate) struct Notes(pub(crate) VecDeque<String>);

impl fmt::Debug for Notes {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Lines of a trace that are kept.
const TRACE: usize = 40000;

impl World {
    pub(crate) fn new(setting: Arc<Setting>, planted: Planted, eager: bool) -> Self {
        let host = |_| Host { disk: Disk::new(setting.size.keep), process: None, finished: false, lives: 0 };
        let hosts = (0..setting.size.peers).map(host).collect();
        let coordinator = Coordinator {
            journal: Journal::default(),
            cluster: None,
            outlets: Default::default(),
            dies: None,
            ended: None,
        };
        Self {
            setting,
            planted,
            eager,
            now: Tick(0),
            coordinator,
            hosts,
            streams: BTreeMap::new(),
            joins: BTreeMap::new(),
            kept: 0,
            numbers: 0,
            damaged: false,
            watch: Watch::default(),
            notes: Notes::default(),
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn note(&mut self, warn: bool, sentence: String) {
        let sign = if warn { "!" } else { " " };
        self.trace(format!("    {sign} {sentence}"));
    }

    pub(crate) fn trace(&mut self, line: String) {
        if self.eager {
            return;
        }
        self.notes.0.push_back(format!("{:>8} {line}", self.now.0));
        if self.notes.0.len() > TRACE {
            self.notes.0.pop_front();
        }
    }

    /// Whether the run is complete and everybody has gone home.
    pub(crate) fn is_over(&self) -> bool {
        let gone =
            |host: &Host| host.process.as_ref().is_none_or(|process| matches!(process.link, Link::Away));
        self.coordinator.ended == Some(Ended::Finished) && self.hosts.iter().all(gone)
    }

    /// Where everybody is, for people.
    pub(crate) fn positions(&self) -> String {
        let place = |(peer, host): (usize, &Host)| match &host.process {
            None if host.finished => format!("{peer}: finished"),
            None => format!("{peer}: not running"),
            Some(process) => format!(
                "{peer}: {:?}, {} steps done, missing {:?}, permission {:?}, holds {:?}, sources {:?}, tasks {:?}",
                process.link,
                process.trainer.steps_done,
                process
                    .trainer
                    .rounds
                    .missing(cohort_proto::contribution::Position::of(process.trainer.steps_done)),
                process.trainer.rounds.permission(),
                process.trainer.held,
                process.sources,
                process.tasks,
            ),
        };
        self.hosts.iter().enumerate().map(place).collect::<Vec<_>>().join("\n")
    }

    /// Whether an event says no more than that somebody is alive.
    pub(crate) fn is_sign_of_life(&self, event: Event) -> bool {
        let beat = |stream: &StreamId| {
            let open = self.streams.get(stream);
            matches!(open.and_then(|open| open.up.front()), Some(Up::Word(FromPeer::Heartbeat(_))))
        };
        match event {
            Event::Heartbeat(_) | Event::Timer => true,
            Event::Up(stream) => beat(&stream),
            _ => false,
        }
    }

    /// An event and what it is about, for people.
    pub(crate) fn words_of(&self, event: Event) -> String {
        let said = match event {
            Event::Up(stream) => self.streams.get(&stream).map(|open| (open.peer, spoken(open.up.front()))),
            Event::Down(stream) => self.streams.get(&stream).map(|open| (open.peer, told(open.down.front()))),
            _ => None,
        };
        said.map_or_else(|| format!("{event:?}"), |(peer, words)| format!("{event:?} of {peer}: {words}"))
    }

    /// All that may happen now, faults apart.
    pub(crate) fn enabled(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut may = |event, yes: bool| {
            if yes {
                events.push(event);
            }
        };
        let here = self.coordinator.cluster.is_some();
        may(Event::StartCoordinator, !here && self.coordinator.ended.is_none());
        self.joins.keys().for_each(|number| may(Event::Join(*number), here));
        for (stream, open) in &self.streams {
            may(Event::Up(*stream), here && self.may_arrive(*stream, open));
            may(Event::Down(*stream), !open.down.is_empty() && self.is_read(*stream, open));
        }
        for (peer, host) in self.hosts.iter().enumerate() {
            // Where nothing is late but the network, a peer comes (back) when its old stream is known to be closed.
            let late = self.eager && self.streams.values().any(|open| open.peer == peer);
            let Some(process) = &host.process else {
                may(Event::StartPeer(peer), here && !host.finished && !late);
                continue;
            };
            may(Event::Answer(peer), matches!(process.link, Link::Answered(_)));
            let in_vain = self.setting.gives_up();
            may(Event::Attempt(peer), (here || in_vain) && !late && matches!(process.link, Link::Away));
            for &source in process.tasks.keys() {
                may(Event::Connect(peer, source), self.may_connect(peer, source));
                may(Event::Deliver(peer, source), self.may_deliver(peer, source));
            }
            may(Event::TaskEnded(peer), process.ended_tasks > 0);
            may(Event::Train(peer), process.may_train());
            may(Event::News(peer), !process.news.is_empty());
        }
        events
    }

    /// Whether the coordinator reads something on a stream next.
    fn may_arrive(&self, stream: StreamId, open: &Stream) -> bool {
        let hello = matches!(open.up.front(), Some(Up::Hello { .. }));
        let read = self.coordinator.outlets.contains(&stream);
        hello || (read && (!open.up.is_empty() || open.up_end.is_some()))
    }

    /// Whether the process that opened a stream still reads it.
    fn is_read(&self, stream: StreamId, open: &Stream) -> bool {
        let link = self.hosts[open.peer].process.as_ref().map(|process| &process.link);
        match link {
            Some(Link::Opening { stream: own, .. } | Link::Attending(own)) => *own == stream,
            _ => false,
        }
    }

    pub(crate) fn perform(&mut self, event: Event) {
        match event {
            Event::StartCoordinator => self.start_coordinator(),
            Event::StartPeer(peer) => self.start_peer(peer),
            Event::Join(number) => self.join(number),
            Event::Answer(peer) => self.answered(peer),
            Event::Up(stream) => self.arrives(stream),
            Event::Down(stream) => self.down(stream),
            Event::Attempt(peer) => self.present(peer),
            Event::Connect(follower, source) => self.connect(follower, source),
            Event::Deliver(follower, source) => self.deliver(follower, source),
            Event::TaskEnded(peer) => self.task_ended(peer),
            Event::Train(peer) => self.train(peer),
            Event::News(peer) => self.news(peer),
            Event::Heartbeat(peer) => self.heartbeat(peer),
            Event::Timer => self.happens(ClusterEvent::Timer),
        }
        self.calm();
    }

    /// What follows by itself.
    pub(crate) fn calm(&mut self) {
        self.send_entries();
        while self.eager && self.hurry() {
            self.send_entries();
        }
        let dead: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(stream, open)| !self.may_still_arrive(**stream, open) && !self.is_read(**stream, open))
            .map(|(stream, _)| *stream)
            .collect();
        dead.iter().for_each(|stream| _ = self.streams.remove(stream));
    }

    /// One thing that is done at once where only the network is late.
    fn hurry(&mut self) -> bool {
        let peers = 0..self.hosts.len();
        let busy = |host: &Host| {
            host.process.as_ref().is_some_and(|process| {
                let answered = matches!(process.link, Link::Answered(_));
                answered || process.may_train() || !process.news.is_empty() || process.ended_tasks > 0
            })
        };
        if let Some(peer) = self.hosts.iter().position(busy) {
            self.answered(peer);
            self.news(peer);
            self.train(peer);
            if self.hosts[peer].process.as_ref().is_some_and(|process| process.ended_tasks > 0) {
                self.task_ended(peer);
            }
            return true;
        }
        let pairs = peers.clone().flat_map(|follower| peers.clone().map(move |source| (follower, source)));
        let ready = pairs.into_iter().find(|(follower, source)| self.may_connect(*follower, *source));
        ready.inspect(|(follower, source)| self.connect(*follower, *source)).is_some()
    }

    fn may_still_arrive(&self, stream: StreamId, open: &Stream) -> bool {
        self.coordinator.outlets.contains(&stream) || matches!(open.up.front(), Some(Up::Hello { .. }))
    }

    /// All who attend say that they are alive, and what else they have to say.
    pub(crate) fn hear_all(&mut self) {
        for peer in 0..self.hosts.len() {
            self.heartbeat(peer);
            let Some(Link::Attending(stream)) = self.process(peer).map(|process| process.link.clone()) else {
                continue;
            };
            while self
                .streams
                .get(&stream)
                .is_some_and(|open| self.may_arrive(stream, open) && !open.up.is_empty())
            {
                self.arrives(stream);
            }
        }
    }

    fn start_peer(&mut self, peer: usize) {
        let host = &mut self.hosts[peer];
        host.lives += 1;
        host.process = Some(Process::start(&self.setting, peer, host.lives, &host.disk));
        self.watch.born(peer);
        self.present(peer);
    }

    fn train(&mut self, peer: usize) {
        let now = self.now.0;
        let host = &mut self.hosts[peer];
        let Some(process) = host.process.as_mut().filter(|process| process.may_train()) else { return };
        let (setting, planted) = (&*self.setting, self.planted);
        let around =
            &mut Around { setting, disk: &mut host.disk, watch: &mut self.watch, peer, now, planted };
        process.train(around);
    }

    /// A process of a peer is killed; of what it has sent, so many messages still arrive on each connection.
    pub(crate) fn crash_peer(&mut self, peer: usize, kept: usize) {
        self.kept = kept;
        let Some(process) = self.hosts[peer].process.take() else { return };
        self.break_followers(peer, &process.address);
        for open in self.streams.values_mut().filter(|open| open.peer == peer) {
            end_up(open, kept);
        }
        if kept == 0 {
            self.joins.retain(|_, join| join.peer != peer);
        }
    }

    /// The control connection of a peer breaks.
    pub(crate) fn break_control(&mut self, peer: usize, kept: usize) {
        let Some(process) = self.hosts[peer].process.as_ref() else { return };
        match process.link {
            Link::Joining(_) | Link::Answered(_) => {
                self.joins.retain(|_, join| join.peer != peer || kept > 0);
                self.unreachable(peer);
            }
            Link::Opening { stream, .. } | Link::Attending(stream) => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    end_up(open, kept);
                    open.down.truncate(kept);
                    open.down.push_back(Down::End);
                }
            }
            Link::Away | Link::Done => {}
        }
    }
}

/// Nothing more comes from a peer than the first messages under way.
fn end_up(open: &mut Stream, kept: usize) {
    open.up.truncate(kept);
    open.up_end.get_or_insert_with(|| "broke".into());
}

/// What a peer says, in short.
fn spoken(up: Option<&Up>) -> String {
    match up {
        Some(Up::Word(FromPeer::Report(report))) => format!("step {} in view {}", report.step, report.view),
        Some(Up::Word(word)) => format!("{word:?}"),
        Some(Up::Hello { session, .. }) => format!("hello, session {session}"),
        None => "the end".into(),
    }
}

/// What a peer is told, in short.
fn told(down: Option<&Down>) -> String {
    match down {
        Some(Down::Word(ToPeer::View(view))) => {
            let members: Vec<usize> = view.members.iter().map(|member| member.index).collect();
            format!("view {} from {} of {members:?}", view.id, view.begins_at)
        }
        Some(Down::Word(word)) => format!("{word:?}"),
        other => format!("{other:?}"),
    }
}
