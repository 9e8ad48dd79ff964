//! The coordinator's process: the real [`Cluster`], and around it what `driver::Driver` does with its actions.

use std::collections::{BTreeSet, VecDeque};

use cohort_coordinator::cluster::Cluster;
use cohort_coordinator::event::{Action, Ended, Entry, Event, StreamId, Ticket};
use cohort_proto::limits::QUEUE_DEPTH;

use crate::journal::Journal;
use crate::process::{Link, Process};
use crate::world::{Down, Up, World};

/// The machine of the coordinator: its disk, and its process if that runs.
#[derive(Clone)]
pub(crate) struct Coordinator {
    pub(crate) journal: Journal,
    pub(crate) cluster: Option<Cluster>,
    /// Streams that it has not ended.
    pub(crate) outlets: BTreeSet<StreamId>,
    /// It dies after so many more actions, and loses so many lines of the journal that need not be durable.
    pub(crate) dies: Option<(usize, usize)>,
    /// How its last process ended by itself.
    pub(crate) ended: Option<Ended>,
}

impl World {
    pub(crate) fn start_coordinator(&mut self) {
        let history = self.coordinator.journal.history(&self.setting);
        self.coordinator.journal.starts += 1;
        self.coordinator.cluster = Some(Cluster::new(self.now, self.setting.spec.clone(), &history));
        self.coordinator.ended = None;
    }

    /// One event and all that follows from it.
    pub(crate) fn happens(&mut self, event: Event) {
        let mut next = VecDeque::from([event]);
        while let Some(event) = next.pop_front() {
            let Some(cluster) = &mut self.coordinator.cluster else { return };
            if let Event::StreamClosed { stream, .. } = &event {
                self.coordinator.outlets.remove(stream);
            }
            let mut actions = Vec::new();
            // Logs that were let go stay so, whatever a coordinator that was started again knows of it.
            let before = if self.damaged { 0 } else { self.watch.retained };
            self.watch.retained = cluster.retain_from().max(before);
            cluster.handle(self.now, event, &mut actions);
            for action in actions {
                if let Some((left, lost)) = self.coordinator.dies {
                    if left == 0 {
                        return self.crash_coordinator(lost);
                    }
                    self.coordinator.dies = Some((left - 1, lost));
                }
                if let Action::Exit(ended) = action {
                    return self.coordinator_ends(ended);
                }
                next.extend(self.act(action));
            }
            if let Some(cluster) = &self.coordinator.cluster
                && let Some(view) = cluster.view()
            {
                self.watch.settled(view, cluster.lease_until(), &self.setting);
            }
        }
    }

    /// Performs an action; returns what that makes happen.
    fn act(&mut self, action: Action) -> Vec<Event> {
        let mut consequences = Vec::new();
        match action {
            Action::Answer { ticket, outcome } => {
                let processes = self.hosts.iter_mut().filter_map(|host| host.process.as_mut());
                let waits =
                    |process: &&mut Process| matches!(process.link, Link::Joining(own) if own == ticket.0);
                if let Some(process) = processes.into_iter().find(waits) {
                    process.link = Link::Answered(Box::new(outcome));
                }
            }
            Action::Record(entry) => {
                if let Entry::View { view, .. } = &entry {
                    self.watch.decided(view, self.damaged, &self.setting);
                }
                let another = matches!(&entry, Entry::View { view, .. } if view.id.0 > 1);
                if another && !self.damaged && !self.setting.goes_on() {
                    self.watch.fail("all fall back, though no checkpoint was damaged".into());
                }
                self.coordinator.journal.record(entry);
            }
            Action::Send { streams, message } => {
                for stream in streams {
                    let Some(open) = self.streams.get_mut(&stream) else { continue };
                    if !self.coordinator.outlets.contains(&stream) {
                        continue;
                    }
                    if open.down.len() >= QUEUE_DEPTH {
                        self.close(stream);
                        let cause = "was given up: it does not read what it is sent".into();
                        consequences.push(Event::StreamClosed { stream, cause });
                    } else {
                        open.down.push_back(Down::Word(message.clone()));
                    }
                }
            }
            Action::Close { stream, error } => {
                // Peers here are honest, so nothing that they say is out of order.
                let wrong = ["reported", "saved a checkpoint", "said hello"];
                if let Some(error) = error.filter(|error| wrong.iter().any(|words| error.contains(words))) {
                    self.watch.fail(format!("an honest peer is shown the door: {error}"));
                }
                self.close(stream);
            }
            Action::Note { warn, sentence } => self.note(warn, sentence),
            Action::Exit(_) => {}
        }
        consequences
    }

    /// The coordinator ends a stream, and reads no more of it.
    fn close(&mut self, stream: StreamId) {
        if self.coordinator.outlets.remove(&stream)
            && let Some(open) = self.streams.get_mut(&stream)
        {
            open.down.push_back(Down::End);
            open.up.clear();
        }
    }

    /// A request to join arrives.
    pub(crate) fn join(&mut self, number: u64) {
        let Some(join) = self.joins.remove(&number) else { return };
        self.happens(Event::Join { ticket: Ticket(number), remote: None, request: Box::new(join.request) });
    }

    /// The next thing on a stream from a peer arrives.
    pub(crate) fn arrives(&mut self, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let event = match open.up.pop_front() {
            Some(Up::Hello { run, name, session }) => {
                open.down.push_back(Down::Headers);
                self.coordinator.outlets.insert(stream);
                Event::Hello { stream, run, name, session }
            }
            Some(Up::Word(message)) => Event::Message { stream, message },
            None => Event::StreamClosed { stream, cause: open.up_end.clone().unwrap_or_default() },
        };
        self.happens(event);
    }

    /// Its process is killed; the last lines of the journal are lost.
    pub(crate) fn crash_coordinator(&mut self, lost: usize) {
        self.coordinator.journal.crash(lost);
        self.coordinator_is_gone();
    }

    fn coordinator_ends(&mut self, ended: Ended) {
        self.coordinator_is_gone();
        match ended {
            // With exit code 75: somebody starts it again, as all others.
            Ended::Stopped if self.setting.gives_up() => self.watch.stops += 1,
            Ended::Finished => self.coordinator.ended = Some(ended),
            _ => self.watch.fail(format!("the coordinator ends: {ended:?}")),
        }
    }

    fn coordinator_is_gone(&mut self) {
        (self.coordinator.cluster, self.coordinator.dies) = (None, None);
        self.coordinator.outlets.clear();
        for open in self.streams.values_mut() {
            open.up.clear();
            open.up_end.get_or_insert_default();
            let kept = self.kept.min(open.down.len());
            open.down.truncate(kept);
            open.down.push_back(Down::End);
        }
        self.joins.clear();
        for peer in 0..self.hosts.len() {
            if matches!(self.process(peer).map(|process| &process.link), Some(Link::Joining(_))) {
                self.unreachable(peer);
            }
        }
    }
}
