//! What a peer waits for, and what it may do next: no clock, no socket, no tensor. The training thread tells it what
//! has arrived and asks it before every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use cohort_proto::contribution::{Contribution, Header, Position};
use cohort_proto::control::{Start, Stop, StopKind};
use cohort_proto::id::{PeerName, RunId, Step, ViewId};
use cohort_proto::limits::{INBOX_PER_SOURCE, VIEWS_MAX};
use cohort_proto::view::{View, Views};

/// Something arrived.
#[derive(Debug, Clone)]
pub enum Arrival {
    /// The members from a step on; the same view again if one of them has another address.
    View(View),
    /// Training starts (again).
    Start(Start),
    /// Steps below this may be taken.
    Lease(Step),
    /// A source said something.
    Heard(Arc<Contribution>),
    /// The run ends.
    Stop(Stop),
}

/// What may be done at a step's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// Go there, and ask again.
    Start(Start),
    /// Take the step, in this view.
    Go(ViewId),
    /// Not yet.
    Wait(WaitsFor),
    /// Save and leave.
    Leave(Stop),
}

/// What a peer waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// The other peers to join.
    View,
    /// The coordinator to grant more steps.
    Lease,
    /// The coordinator to say that everybody is done.
    Finish,
    /// These sources' contributions.
    Sources(Vec<PeerName>),
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::View => f.write_str("the other peers to join"),
            Self::Lease => f.write_str("the coordinator to grant more steps"),
            Self::Finish => f.write_str("the others to complete the last step"),
            Self::Sources(names) => {
                let names: Vec<&str> = names.iter().map(PeerName::as_str).collect();
                write!(f, "word from {}", names.join(", "))
            }
        }
    }
}

/// A contribution that does not belong here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stray {
    /// From nobody that this peer follows.
    #[error("a contribution came from peer {0}, which this peer does not follow")]
    Source(PeerName),
    /// Of another run.
    #[error("peer {source_name} sent a contribution of run {run}, which is not this run")]
    Run {
        /// Who sent it.
        source_name: PeerName,
        /// Its run.
        run: RunId,
    },
    /// So far ahead that it cannot have waited for anybody.
    #[error("peer {source_name} sent step {step} while step {expected} was awaited")]
    Ahead {
        /// Who sent it.
        source_name: PeerName,
        /// The step it sent.
        step: Step,
        /// The step that was awaited.
        expected: Step,
    },
}

/// What has arrived for one peer.
#[derive(Debug, Clone)]
pub struct Rounds {
    me: PeerName,
    run: RunId,
    total: Step,
    next: Step,
    /// The first round of that step that was not taken yet: those before it are not wanted again, unless all is said
    /// again in another view.
    wanted: Position,
    /// Ascending in number and first step; each holds until the next one begins.
    views: Views,
    /// Where training is to start, until it has.
    start: Option<Start>,
    /// Whether it was told at all.
    has_started: bool,
    lease: Step,
    stop: Option<Stop>,
    /// Those that this peer learns from, as long as they are members.
    sources: BTreeSet<PeerName>,
    inbox: BTreeMap<PeerName, BTreeMap<Position, Arc<Contribution>>>,
}

impl Rounds {
    /// A peer that has heard nothing yet. `total` is the number of steps of the whole run, `sources` are those that it
    /// learns from.
    pub fn new(me: PeerName, run: RunId, total: Step, sources: BTreeSet<PeerName>) -> Self {
        let (views, inbox) = (Views::default(), BTreeMap::new());
        Self {
            me,
            run,
            total,
            next: 0,
            wanted: Position::of(0),
            views,
            start: None,
            has_started: false,
            lease: 0,
            stop: None,
            sources,
            inbox,
        }
    }

    /// Takes note of an arrival. Says whether it is kept: what comes twice, late, or from a view that is void is not.
    ///
    /// # Errors
    /// A contribution that no honest peer sends.
    pub fn arrived(&mut self, arrival: Arrival) -> Result<bool, Stray> {
        match arrival {
            Arrival::View(view) => self.viewed(view),
            Arrival::Start(start) => {
                (self.start, self.next, self.has_started) = (Some(start), start.step, true);
                self.wanted = Position::of(start.step);
                self.inbox.values_mut().for_each(BTreeMap::clear);
            }
            Arrival::Lease(until) => self.lease = self.lease.max(until),
            // A milder way to stop does not take back a harder one.
            Arrival::Stop(stop) => {
                if !self.stop.as_ref().is_some_and(|known| known.kind == StopKind::AtOnce) {
                    self.stop = Some(stop);
                }
            }
            Arrival::Heard(contribution) => return self.heard(contribution),
        }
        Ok(true)
    }

    /// A view that begins no later than others takes their place, and what was said in them from there on is void.
    fn viewed(&mut self, view: View) {
        // All go back to before where this peer is, which will be told where to start.
        if self.views.last().is_some_and(|known| known.id < view.id) && view.begins_at < self.next {
            self.stand_down();
        }
        let members = view.members.iter().map(|member| &member.name);
        for name in members.filter(|name| self.sources.contains(*name)) {
            self.inbox.entry(name.clone()).or_default();
        }
        let began_in = self.view().map(|view| view.id);
        self.views.insert(view);
        self.views.keep_newest(VIEWS_MAX);
        if self.view().map(|view| view.id) != began_in {
            self.wanted = Position::of(self.next);
        }
        let Self { inbox, views, .. } = self;
        for said in inbox.values_mut() {
            said.retain(|position, entry| {
                views.at(position.step).is_some_and(|view| view.id == entry.header().view)
            });
        }
    }

    fn heard(&mut self, contribution: Arc<Contribution>) -> Result<bool, Stray> {
        let header = contribution.header();
        let source_name = header.source.clone();
        if header.run != self.run {
            return Err(Stray::Run { source_name, run: header.run });
        }
        let holds = self.holds(header);
        let due = self.views.due(&source_name, self.views.due(&self.me, self.next));
        let Some(inbox) = self.inbox.get_mut(&source_name) else { return Err(Stray::Source(source_name)) };
        // What was said in a view that is void: its source has still to hear of that, and may have been far ahead.
        if !holds {
            return Ok(false);
        }
        if header.position.step >= due.saturating_add(INBOX_PER_SOURCE as u64) {
            return Err(Stray::Ahead { source_name, step: header.position.step, expected: due });
        }
        // What was consumed before is sent again by a source that replays; it is skipped.
        let kept = header.position >= self.wanted && !inbox.contains_key(&header.position);
        if kept {
            inbox.insert(header.position, contribution);
        }
        Ok(kept)
    }

    /// Whether something was said in the view that holds for its step, and to this peer.
    pub fn holds(&self, header: &Header) -> bool {
        let holds = self.views.at(header.position.step);
        holds.is_some_and(|view| view.id == header.view && view.member(&self.me).is_some())
    }

    /// Whether the view that holds for a step, as far as is known, is without this peer.
    pub fn is_left_behind_at(&self, step: Step) -> bool {
        self.views.at(step).is_some_and(|view| view.member(&self.me).is_none())
    }

    /// What a source that is gone said to steps from this on is not to be used: others do not know that it is here.
    pub fn forget(&mut self, source: &PeerName, from: Step) {
        if let Some(said) = self.inbox.get_mut(source) {
            _ = said.split_off(&Position::of(from));
        }
    }

    /// What this peer did so far may be void, and so may be where it was told to start: nothing is done before it is told
    /// (anew).
    pub fn stand_down(&mut self) {
        (self.start, self.has_started) = (None, false);
    }

    /// The step that comes next.
    pub fn next_step(&self) -> Step {
        self.next
    }

    /// The view that holds for the next step.
    pub fn view(&self) -> Option<&View> {
        self.views.at(self.next)
    }

    /// Training is where it was told to start.
    pub fn started(&mut self) {
        self.start = None;
    }

    /// Whether the next step may begin.
    pub fn permission(&self) -> Permission {
        if let Some(stop) = self.stop.as_ref().filter(|stop| stop.kind != StopKind::Graceful) {
            return Permission::Leave(stop.clone());
        }
        if let Some(start) = self.start {
            return Permission::Start(start);
        }
        let member = |view: &&View| self.has_started && view.member(&self.me).is_some();
        let Some(view) = self.view().filter(member) else {
            return self.stop.clone().map_or(Permission::Wait(WaitsFor::View), Permission::Leave);
        };
        if self.next >= self.total {
            return Permission::Wait(WaitsFor::Finish);
        }
        if self.next < self.lease {
            return Permission::Go(view.id);
        }
        self.stop.clone().map_or(Permission::Wait(WaitsFor::Lease), Permission::Leave)
    }

    /// The word to stop, if there was one.
    pub fn stopping(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Whether a step that has begun must be given up: nobody will say what it waits for. A run can be finished for one
    /// that is taking its last steps again.
    pub fn abandon(&self) -> Option<&Stop> {
        self.stop.as_ref().filter(|stop| stop.kind != StopKind::Graceful)
    }

    /// Whether a step that began in a view must be given up: training starts elsewhere, or another view holds.
    pub fn restarts(&self, began_in: ViewId) -> bool {
        !self.has_started || self.start.is_some() || self.view().is_none_or(|view| view.id != began_in)
    }

    /// The sources whose contribution to a round has not arrived.
    pub fn missing(&self, position: Position) -> Vec<PeerName> {
        let members = self.views.at(position.step).into_iter().flat_map(|view| &view.members);
        let said = |name: &PeerName| self.inbox.get(name).is_some_and(|said| said.contains_key(&position));
        let silent = members.filter(|member| self.sources.contains(&member.name) && !said(&member.name));
        silent.map(|member| member.name.clone()).collect()
    }

    /// Hands over what all sources said in a round, in the order of the peers' indices; `None` if one is missing.
    pub fn take(&mut self, position: Position) -> Option<Vec<(usize, Arc<Contribution>)>> {
        if !self.missing(position).is_empty() {
            return None;
        }
        let Self { inbox, views, .. } = self;
        let taken = views
            .at(position.step)
            .into_iter()
            .flat_map(|view| &view.members)
            .filter_map(|member| Some((member.index, inbox.get_mut(&member.name)?.remove(&position)?)))
            .collect();
        // Rounds come in order, so nobody asks for an earlier one again.
        inbox.values_mut().for_each(|said| said.retain(|other, _| *other > position));
        self.wanted = position.following();
        Some(taken)
    }

    /// The step is complete.
    pub fn completed(&mut self) {
        self.next += 1;
        let next = self.next;
        self.wanted = Position::of(next);
        self.inbox.values_mut().for_each(|said| said.retain(|position, _| position.step >= next));
    }
}

#[cfg(test)]
mod tests;
