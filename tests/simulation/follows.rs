//! Following and serving: `net::follow` and `net::serve` with queues for connections.

use std::collections::VecDeque;

use cohort_peer::log::Gone;
use cohort_proto::contribution::Position;
use cohort_proto::limits::{CONNECT_ATTEMPTS, INBOX_PER_SOURCE};
use cohort_proto::view::View;

use crate::process::{Connection, Item, Process, Seat, Task, Word};
use crate::world::World;

/// Entries between the two ends of a stream: those that the source has read from its log, and those under way.
const UNDER_WAY: usize = 3;

impl World {
    /// Whose process listens on the address that a task knows.
    fn server(&self, address: &str) -> Option<(usize, &Process)> {
        // Before it has joined it says that it is not ready, which is as if it were not there.
        let listens = |process: &&Process| process.address == address && process.place.is_some();
        let processes = self.hosts.iter().enumerate();
        let mut found =
            processes.filter_map(|(peer, host)| Some((peer, host.process.as_ref().filter(listens)?)));
        found.next()
    }

    /// Who is at the other end of a task's connection: the source itself, or one that received what it said.
    pub(crate) fn served_by(&self, follower: usize, source: usize) -> Option<usize> {
        let task = self.hosts[follower].process.as_ref()?.tasks.get(&source)?;
        self.server(&task.address).map(|(peer, _)| peer)
    }

    fn task(&mut self, follower: usize, source: usize) -> Option<&mut Task> {
        self.process(follower)?.tasks.get_mut(&source)
    }

    pub(crate) fn may_connect(&self, follower: usize, source: usize) -> bool {
        let task = self.hosts[follower].process.as_ref().and_then(|process| process.tasks.get(&source));
        // Of a source of which it has heard nothing a peer says that it is another one; that is worth another attempt.
        let answers = |task: &Task| {
            let heard = |server: &Process| server.relay.0.entries(&task.name, Position::default()).is_some();
            self.server(&task.address).is_some_and(|(by, server)| by == source || heard(server))
        };
        task.is_some_and(|task| task.connection.is_none() && !task.ended && answers(task))
    }

    pub(crate) fn connect(&mut self, follower: usize, source: usize) {
        let Some(process) = self.hosts[follower].process.as_ref() else { return };
        let (Some(task), Some(from)) = (process.tasks.get(&source), process.sources.get(&source)) else {
            return;
        };
        let cursor = from.reached;
        let Some((by, server)) = self.server(&task.address) else { return };
        let (generation, on_the_way) = if by == source {
            (Some(server.log.0.generation()), VecDeque::new())
        } else {
            let Some(entries) = server.relay.0.entries(&task.name, cursor) else { return };
            (None, entries.into_iter().map(Item::Entry).collect())
        };
        if let Some(task) = self.task(follower, source) {
            task.asked = cursor;
            task.connection =
                Some(Connection { cursor, generation, on_the_way, closed: generation.is_none() });
        }
    }

    /// Every source sends what it has, as far as there is room.
    pub(crate) fn send_entries(&mut self) {
        let peers = self.setting.size.peers;
        for follower in 0..peers {
            for source in (0..peers).filter(|source| *source != follower) {
                while self.send_entry(follower, source) {}
            }
        }
    }

    fn send_entry(&mut self, follower: usize, source: usize) -> bool {
        let Some(process) = self.hosts[follower].process.as_ref() else { return false };
        let Some(task) = process.tasks.get(&source) else { return false };
        let Some(connection) = task.connection.as_ref() else { return false };
        if connection.closed || connection.on_the_way.len() >= UNDER_WAY {
            return false;
        }
        let Some((_, server)) = self.server(&task.address) else { return false };
        let log = &server.log.0;
        let item = if Some(log.generation()) != connection.generation {
            Item::Anew
        } else {
            match log.get(connection.cursor) {
                Ok(Some(entry)) => Item::Entry(entry),
                Ok(None) => return false,
                Err(Gone::Released { .. }) => Item::Released,
                Err(Gone::Anew) => Item::Anew,
            }
        };
        let Some(connection) = self.task(follower, source).and_then(|task| task.connection.as_mut()) else {
            return false;
        };
        match &item {
            Item::Entry(entry) => connection.cursor = entry.header().position.following(),
            _ => connection.closed = true,
        }
        connection.on_the_way.push_back(item);
        true
    }

    pub(crate) fn may_deliver(&self, follower: usize, source: usize) -> bool {
        let Some(process) = self.hosts[follower].process.as_ref() else { return false };
        let connection = process.tasks.get(&source).and_then(|task| task.connection.as_ref());
        let waits = connection.is_some_and(|connection| !connection.on_the_way.is_empty());
        waits && process.sources.get(&source).is_some_and(|source| source.taken < INBOX_PER_SOURCE)
    }

    /// A task that has been told to end has one entry more in its hands.
    pub(crate) fn deliver_last(&mut self, follower: usize, source: usize) {
        let next = self.task(follower, source).and_then(|task| task.connection.as_ref()?.on_the_way.front());
        if matches!(next, Some(Item::Entry(_))) && self.may_deliver(follower, source) {
            self.deliver(follower, source);
        }
    }

    /// The next item of a stream arrives.
    pub(crate) fn deliver(&mut self, follower: usize, source: usize) {
        let Some(process) = self.process(follower) else { return };
        let (Some(task), Some(from)) = (process.tasks.get_mut(&source), process.sources.get_mut(&source))
        else {
            return;
        };
        let Some(item) = task.connection.as_mut().and_then(|connection| connection.on_the_way.pop_front())
        else {
            return;
        };
        match item {
            Item::Entry(contribution) => {
                let header = contribution.header();
                let holds = task.views.at(header.position.step);
                let to_it = |view: &&View| view.members.iter().any(|member| member.index == follower);
                if Some(header.view) != holds.filter(to_it).map(|view| view.id) {
                    // One of the two has not heard of a change of views yet, or is not meant.
                    task.connection = None;
                    return;
                }
                from.taken += 1;
                from.reached = from.reached.max(header.position.following());
                task.released = 0;
                let seat = Seat { source, inbox: from.inbox };
                let word = Word::Heard { epoch: task.epoch, seat, contribution };
                self.tell(follower, word);
            }
            Item::Anew | Item::Broken => task.connection = None,
            Item::Released => {
                task.connection = None;
                task.released = if from.reached > task.asked { 0 } else { task.released + 1 };
                if task.released >= CONNECT_ATTEMPTS {
                    task.ended = true;
                    process.ended_tasks += 1;
                }
            }
        }
    }

    /// A connection between two peers breaks: all but the first `kept` items that are under way are lost.
    pub(crate) fn break_stream(&mut self, follower: usize, source: usize, kept: usize) {
        if let Some(connection) = self.task(follower, source).and_then(|task| task.connection.as_mut()) {
            connection.on_the_way.truncate(kept);
            connection.on_the_way.push_back(Item::Broken);
            connection.closed = true;
        }
    }

    /// A process is gone, and with it all streams that it served.
    pub(crate) fn break_followers(&mut self, gone: usize, address: &str) {
        let peers = 0..self.setting.size.peers;
        for (follower, source) in peers.clone().flat_map(|f| peers.clone().map(move |s| (f, s))) {
            let kept = self.kept;
            let task = self.task(follower, source);
            if follower != gone && task.is_some_and(|task| task.address == address) {
                self.break_stream(follower, source, kept);
            }
        }
    }
}
