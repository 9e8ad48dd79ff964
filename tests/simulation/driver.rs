//! The network side of a peer: what `driver::Driver` does with each event, word by word.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_coordinator::event::StreamId;
use cohort_peer::standing::{Place, too_late};
use cohort_proto::contribution::Position;
use cohort_proto::control::{
    Accepted, FromPeer, Refusal, RefusalReason, Start, Stop, StopKind, ToPeer, Waiting,
};
use cohort_proto::id::{PeerName, ViewId};
use cohort_proto::limits::{INBOX_PER_SOURCE, QUEUE_DEPTH};
use cohort_proto::view::{Member, View};

use crate::journal::RUN;
use crate::process::{At, Link, News, Process, Source, Task, Word};
use crate::world::{Down, Join, Planted, Stream, Up, World};

impl World {
    pub(crate) fn process(&mut self, peer: usize) -> Option<&mut Process> {
        self.hosts[peer].process.as_mut()
    }

    /// A word for the training thread.
    pub(crate) fn tell(&mut self, peer: usize, word: Word) {
        let limit = QUEUE_DEPTH + self.setting.size.peers * INBOX_PER_SOURCE;
        let Some(process) = self.process(peer) else { return };
        process.words.push_back(word);
        if process.words.len() > limit {
            self.watch.fail(format!("more than {limit} words wait for the training thread of peer {peer}"));
        }
    }

    /// To the coordinator, as long as it is there.
    fn up(&mut self, peer: usize, message: FromPeer) {
        let Some(Link::Attending(stream)) = self.process(peer).map(|process| process.link.clone()) else {
            return;
        };
        let Some(open) = self.streams.get_mut(&stream).filter(|open| open.up_end.is_none()) else { return };
        if open.up.len() >= QUEUE_DEPTH {
            open.up_end = Some("was closed without a goodbye".into());
            return self.lost_coordinator(peer);
        }
        open.up.push_back(Up::Word(message));
    }

    /// The process presents itself, the first time or again.
    pub(crate) fn present(&mut self, peer: usize) {
        let (setting, number) = (self.setting.clone(), self.number());
        let Some(process) = self.process(peer) else { return };
        process.link = Link::Joining(number);
        let request = process.request(&setting, peer);
        if self.coordinator.cluster.is_none() {
            return self.unreachable(peer);
        }
        self.joins.insert(number, Join { peer, request });
    }

    /// The answer to a join has come.
    pub(crate) fn answered(&mut self, peer: usize) {
        let name = self.setting.name(peer).clone();
        let gone = self.coordinator.cluster.is_none();
        let Some(process) = self.process(peer) else { return };
        let Link::Answered(outcome) = process.link.clone() else { return };
        match *outcome {
            Ok(_) if gone => self.unreachable(peer),
            Ok(accepted) => {
                let stream = StreamId(self.number());
                let hello = Up::Hello { run: RUN, name, session: accepted.session };
                self.streams.insert(stream, Stream::opened(peer, hello));
                if let Some(process) = self.process(peer) {
                    process.link = Link::Opening { stream, accepted };
                }
            }
            Err(refusal) => self.refused(peer, &refusal),
        }
    }

    fn refused(&mut self, peer: usize, refusal: &Refusal) {
        let Some(process) = self.process(peer) else { return };
        if process.place.is_none() {
            // Who comes too late comes again and again, which tells nothing new.
            let ended = matches!(refusal.reason, RefusalReason::Closed | RefusalReason::LeftBehind);
            let too_late = self.eager && ended;
            let finished = refusal.reason == RefusalReason::Finished || too_late;
            return self.exits(peer, finished);
        }
        if refusal.reason == RefusalReason::TakenName {
            return self.unreachable(peer);
        }
        process.link = Link::Done;
        match too_late(refusal) {
            Some(stop) => self.tell(peer, Word::Stop(stop)),
            None => self.watch.fail(format!("peer {peer} ends: refused: {refusal}")),
        }
    }

    /// The attempt to reach the coordinator failed.
    pub(crate) fn unreachable(&mut self, peer: usize) {
        let (now, patience) = (self.now.0, self.setting.size.wait_timeout_ms);
        let Some(process) = self.process(peer) else { return };
        if process.place.is_none() {
            return self.exits(peer, false);
        }
        process.link = Link::Away;
        let waited = process.away_since.map_or(0, |since| now - since);
        if patience.is_some_and(|patience| waited > patience) {
            process.link = Link::Done;
            let sentence = "the coordinator did not come back".into();
            self.tell(peer, Word::Stop(Stop { kind: StopKind::AtOnce, sentence }));
        }
    }

    /// The coordinator's side of the stream says something.
    pub(crate) fn down(&mut self, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let (peer, word) = (open.peer, open.down.pop_front());
        let link = self.process(peer).map(|process| process.link.clone());
        match (link, word) {
            (Some(Link::Opening { stream: own, accepted }), Some(word)) if own == stream => match word {
                Down::Headers => self.attends(peer, stream, accepted),
                _ => self.unreachable(peer),
            },
            (Some(Link::Attending(own)), Some(Down::Word(word))) if own == stream => self.heard(peer, word),
            (Some(Link::Attending(own)), Some(Down::End)) if own == stream => self.lost_coordinator(peer),
            // A process that is not there any more, or that has turned to another stream.
            _ => {}
        }
    }

    fn attends(&mut self, peer: usize, stream: StreamId, accepted: Accepted) {
        let Some(process) = self.process(peer) else { return };
        (process.link, process.away_since) = (Link::Attending(stream), None);
        let Some(place) = &mut process.place else {
            let held = process.trainer.held.iter().copied().collect();
            process.place = Some(Place::new(&accepted, held));
            return;
        };
        if place.is_another_start(&accepted) {
            process.gone.clear();
        }
        let (again, held) = (place.accepted_again(&accepted), place.held().to_vec());
        for report in again {
            self.up(peer, FromPeer::Report(report));
        }
        if let Some(step) = held.last().copied() {
            self.up(peer, FromPeer::CheckpointSaved { step, held });
        }
    }

    fn lost_coordinator(&mut self, peer: usize) {
        let since = self.setting.gives_up().then_some(self.now.0);
        let Some(process) = self.process(peer) else { return };
        process.link = if process.stopping { Link::Done } else { Link::Away };
        process.away_since = since;
    }

    fn heard(&mut self, peer: usize, word: ToPeer) {
        match word {
            ToPeer::View(view) => {
                self.tell(peer, Word::View(view.clone()));
                self.viewed(peer, view);
                self.follow(peer);
            }
            ToPeer::Start(start) => self.told_to_start(peer, start),
            ToPeer::Flush { id, peers } => self.flushed(peer, id, peers),
            ToPeer::Lease(until) => {
                if let Some(place) = self.process(peer).and_then(|process| process.place.as_mut()) {
                    place.granted(until);
                }
                self.tell(peer, Word::Lease(until));
            }
            ToPeer::RetainFrom(step) => {
                if let Some(process) = self.process(peer) {
                    process.log.0.retain_from(step);
                }
                self.tell(peer, Word::Common(step));
            }
            ToPeer::Stop(stop) => {
                let given_up =
                    ["wait_timeout_ms", "left after"].iter().any(|why| stop.sentence.contains(why));
                if stop.kind != StopKind::Finished && !(given_up && self.setting.gives_up()) {
                    self.watch.fail(format!("the run stops: {}", stop.sentence));
                }
                if let Some(process) = self.process(peer) {
                    process.stopping = true;
                }
                self.tell(peer, Word::Stop(stop));
            }
        }
    }

    fn told_to_start(&mut self, peer: usize, mut start: Start) {
        let newest = self.process(peer).and_then(|process| process.trainer.held.last().copied());
        if self.planted == Planted::NewestCheckpoint {
            start = newest.map_or(start, Start::at);
        }
        let Some(process) = self.process(peer) else { return };
        let view = process.views.at(start.step).map_or(ViewId(0), |view| view.id);
        let Some(place) = &mut process.place else { return };
        let epoch = place.starts(start, view);
        process.tasks.clear();
        process.sources.clear();
        (process.started, process.epoch) = (true, epoch);
        self.tell(peer, Word::Start { start, epoch });
        self.follow(peer);
    }

    /// A view was said, perhaps again.
    fn viewed(&mut self, peer: usize, view: View) {
        // Tasks that are told to end may still deliver what they have.
        if self.kept % 2 == 1 {
            (0..self.hosts.len()).for_each(|source| self.deliver_last(peer, source));
        }
        let Some(process) = self.process(peer) else { return };
        if process.views.last().is_none_or(|newest| newest.id < view.id) {
            process.sources.values_mut().for_each(|source| source.again = true);
            process.gone.clear();
        }
        process.views.insert(view);
        let next = process.place.as_ref().map_or(0, Place::next);
        process.views.retain_from(next);
    }

    /// Some are gone: how much of what they said has arrived?
    fn flushed(&mut self, peer: usize, id: u64, peers: Vec<PeerName>) {
        let setting = self.setting.clone();
        if let Some(process) = self.process(peer) {
            process.gone.extend(peers.iter().map(|name| setting.index(name)));
            if peers.contains(setting.name(peer)) {
                process.place.iter_mut().for_each(Place::stands_down);
                process.started = false;
            }
        }
        self.tell(peer, Word::Flush { id, peers });
        self.follow(peer);
    }

    /// Follows the members of all views that hold for a step to come, each from the first entry of it that has not been
    /// delivered.
    fn follow(&mut self, peer: usize) {
        let me = self.setting.name(peer).clone();
        let Some(process) = self.process(peer) else { return };
        process.tasks.clear();
        if !process.started {
            return;
        }
        let next = process.place.as_ref().map_or(0, Place::next);
        process.views.retain_from(next);
        let views = Arc::new(process.views.clone());
        let mine = views.iter().filter(|view| view.members.iter().any(|member| member.index == peer));
        let members = mine.flat_map(|view| &view.members);
        let members: BTreeMap<usize, &Member> = members.map(|member| (member.index, member)).collect();
        for (index, member) in members {
            if index == peer || process.gone.contains(&index) {
                continue;
            }
            let reached = Position::of(views.due(&member.name, views.due(&me, next)));
            let inboxes = &mut process.inboxes;
            let source = process.sources.entry(index).or_insert_with(|| {
                *inboxes += 1;
                Source { reached, taken: 0, inbox: *inboxes, again: false }
            });
            if std::mem::take(&mut source.again) {
                source.reached = reached;
            }
            let task = Task {
                name: member.name.clone(),
                address: member.address.clone(),
                epoch: process.epoch,
                views: views.clone(),
                asked: reached,
                released: 0,
                connection: None,
                ended: false,
            };
            process.tasks.insert(index, task);
        }
    }

    /// A following has ended because the source no longer holds what it needs.
    pub(crate) fn task_ended(&mut self, peer: usize) {
        let Some(process) = self.process(peer) else { return };
        process.ended_tasks -= 1;
        self.up(peer, FromPeer::CannotFollow("entries are no longer retained".into()));
        self.follow(peer);
    }

    pub(crate) fn heartbeat(&mut self, peer: usize) {
        let now = self.now.0;
        let Some(trainer) = self.process(peer).map(|process| &process.trainer) else { return };
        let waiting = match (&trainer.at, trainer.waits_since) {
            (At::Listening(exchange), Some(since)) => {
                Waiting { sources: trainer.rounds.missing(exchange.at), ms: now - since }
            }
            _ => Waiting::default(),
        };
        self.up(peer, FromPeer::Heartbeat(waiting));
    }

    /// The driver takes one of the training thread's news.
    pub(crate) fn news(&mut self, peer: usize) {
        let planted = self.planted;
        let Some(process) = self.process(peer) else { return };
        let Some(news) = process.news.pop_front() else { return };
        match news {
            News::Step(report) => {
                if !process.place.as_mut().is_some_and(|place| place.completed(report.clone())) {
                    return;
                }
                for source in process.sources.values_mut().filter(|source| !source.again) {
                    source.reached = source.reached.max(Position::of(report.step + 1));
                }
                self.up(peer, FromPeer::Report(report));
            }
            News::Saved { step, held, epoch } => {
                if !process.place.as_mut().is_some_and(|place| place.holds(held.clone(), epoch)) {
                    return;
                }
                if planted == Planted::ReleaseOwn {
                    process.log.0.retain_from(step);
                }
                self.up(peer, FromPeer::CheckpointSaved { step, held });
            }
            News::Received { flush, of } => self.up(peer, FromPeer::Received { flush, of }),
            News::Ended { steps_done, saved, stop } => self.farewell(peer, steps_done, saved, &stop),
        }
    }

    fn farewell(&mut self, peer: usize, steps_done: u64, saved: bool, stop: &Stop) {
        let Some(process) = self.process(peer) else { return };
        let finished = stop.kind == StopKind::Finished;
        let held = process.place.iter().flat_map(|place| place.held().to_vec()).chain([steps_done]).collect();
        let link = process.link.clone();
        if saved && !finished {
            self.up(peer, FromPeer::CheckpointSaved { step: steps_done, held });
        }
        let reason = if finished { String::new() } else { stop.sentence.clone() };
        self.up(peer, FromPeer::Leaving { steps_done, finished, reason });
        if let Link::Attending(stream) = link
            && let Some(open) = self.streams.get_mut(&stream)
        {
            open.up_end = Some("was closed without a goodbye".into());
        }
        self.exits(peer, finished);
    }

    /// The process ends by itself.
    pub(crate) fn exits(&mut self, peer: usize, finished: bool) {
        let Some(process) = self.hosts[peer].process.take() else { return };
        self.hosts[peer].finished |= finished;
        self.break_followers(peer, &process.address);
    }
}
