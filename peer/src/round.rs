//! What a peer waits for, and what it may do next: no clock, no socket, no tensor. The training thread tells it what
//! has arrived and asks it before every step.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cohort_proto::contribution::{Contribution, Position};
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
#[derive(Debug)]
pub struct Rounds {
    me: PeerName,
    run: RunId,
    total: Step,
    next: Step,
    /// Ascending in number and first step; each holds until the next one begins.
    views: Views,
    /// Where training is to start, until it has.
    start: Option<Start>,
    /// Whether it was told at all.
    has_started: bool,
    lease: Step,
    stop: Option<Stop>,
    /// Whether this peer needs what the others say.
    listens: bool,
    inbox: BTreeMap<PeerName, BTreeMap<Position, Arc<Contribution>>>,
}

impl Rounds {
    /// A peer that has heard nothing yet. `total` is the number of steps of the whole run.
    pub fn new(me: PeerName, run: RunId, total: Step, listens: bool) -> Self {
        let (views, inbox) = (Views::default(), BTreeMap::new());
        Self {
            me,
            run,
            total,
            next: 0,
            views,
            start: None,
            has_started: false,
            lease: 0,
            stop: None,
            listens,
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
        let sources = view.members.iter().map(|member| &member.name).filter(|name| **name != self.me);
        for name in sources {
            self.inbox.entry(name.clone()).or_default();
        }
        self.views.insert(view);
        self.views.keep_newest(VIEWS_MAX);
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
        let holds = self.views.at(header.position.step).map(|view| view.id);
        let due = self.views.due(&source_name, self.next);
        let Some(inbox) = self.inbox.get_mut(&source_name) else { return Err(Stray::Source(source_name)) };
        // What was said in a view that is void: its source has still to hear of that, and may have been far ahead.
        if Some(header.view) != holds {
            return Ok(false);
        }
        if header.position.step >= due.saturating_add(INBOX_PER_SOURCE as u64) {
            return Err(Stray::Ahead { source_name, step: header.position.step, expected: due });
        }
        // What was consumed before is sent again by a source that replays; it is skipped.
        let kept = header.position.step >= self.next && !inbox.contains_key(&header.position);
        if kept {
            inbox.insert(header.position, contribution);
        }
        Ok(kept)
    }

    /// Whether what a source said to a round is kept.
    pub fn holds(&self, source: &PeerName, at: Position) -> bool {
        self.inbox.get(source).is_some_and(|said| said.contains_key(&at))
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
        self.start.is_some() || self.view().is_none_or(|view| view.id != began_in)
    }

    /// The sources whose contribution to a round has not arrived.
    pub fn missing(&self, position: Position) -> Vec<PeerName> {
        let members = self.views.at(position.step).into_iter().flat_map(|view| &view.members);
        let said = |name: &PeerName| self.inbox.get(name).is_some_and(|said| said.contains_key(&position));
        let silent = members.filter(|member| self.listens && member.name != self.me && !said(&member.name));
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
        Some(taken)
    }

    /// The step is complete.
    pub fn completed(&mut self) {
        self.next += 1;
        let next = self.next;
        self.inbox.values_mut().for_each(|said| said.retain(|position, _| position.step >= next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_proto::contribution::Header;
    use cohort_proto::schema::Schema;
    use cohort_proto::view::Member;

    fn name(text: &str) -> PeerName {
        PeerName::new(text).unwrap()
    }

    fn view() -> View {
        let member = |index, text| Member {
            index,
            name: name(text),
            address: format!("127.0.0.1:{}", 4000 + index),
            schema: Schema::default(),
        };
        // The order of names is not that of indices.
        View { id: ViewId(1), begins_at: 2, members: vec![member(0, "c"), member(1, "b"), member(2, "a")] }
    }

    fn said(source: &str, step: Step) -> Arc<Contribution> {
        let header = Header {
            run: RunId(5),
            view: ViewId(1),
            position: Position::of(step),
            source: name(source),
            batch_hash: 0,
        };
        Arc::new(Contribution::seal(header, vec![], &Schema::default()).unwrap())
    }

    fn stop(kind: StopKind) -> Stop {
        Stop { kind, sentence: "asked".into() }
    }

    fn peer_b() -> Rounds {
        let mut rounds = Rounds::new(name("b"), RunId(5), 10, true);
        rounds.arrived(Arrival::View(view())).unwrap();
        rounds.arrived(Arrival::Start(Start::at(2))).unwrap();
        rounds.started();
        rounds.arrived(Arrival::Lease(4)).unwrap();
        rounds
    }

    #[test]
    fn waits_for_view_then_lease_then_goes() {
        let mut rounds = Rounds::new(name("b"), RunId(5), 10, true);
        assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View));
        rounds.arrived(Arrival::View(view())).unwrap();
        assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View), "nobody said where to start");
        rounds.arrived(Arrival::Start(Start::at(3))).unwrap();
        assert_eq!(rounds.permission(), Permission::Start(Start::at(3)));
        rounds.started();
        assert_eq!((rounds.next_step(), rounds.permission()), (3, Permission::Wait(WaitsFor::Lease)));
        rounds.arrived(Arrival::Lease(4)).unwrap();
        assert_eq!(rounds.permission(), Permission::Go(ViewId(1)));
    }

    #[test]
    fn takes_in_the_order_of_indices_when_all_have_spoken() {
        let mut rounds = peer_b();
        rounds.arrived(Arrival::Heard(said("a", 2))).unwrap();
        assert_eq!(rounds.missing(Position::of(2)), [name("c")]);
        assert!(rounds.take(Position::of(2)).is_none());
        rounds.arrived(Arrival::Heard(said("c", 2))).unwrap();
        let taken = rounds.take(Position::of(2)).unwrap();
        let order: Vec<_> = taken.iter().map(|(index, c)| (*index, c.header().source.as_str())).collect();
        assert_eq!(order, [(0, "c"), (2, "a")]);
    }

    #[test]
    fn replayed_entries_are_skipped_and_strays_refused() {
        let mut rounds = peer_b();
        assert_eq!(
            rounds.arrived(Arrival::Heard(said("a", 1))),
            Ok(false),
            "an entry of the past is not kept"
        );
        let far = rounds.arrived(Arrival::Heard(said("a", 6)));
        assert!(matches!(far, Err(Stray::Ahead { step: 6, expected: 2, .. })));
        assert!(matches!(rounds.arrived(Arrival::Heard(said("x", 2))), Err(Stray::Source(_))));
        let mut other = Rounds::new(name("b"), RunId(6), 10, true);
        other.arrived(Arrival::View(view())).unwrap();
        assert!(matches!(other.arrived(Arrival::Heard(said("a", 2))), Err(Stray::Run { .. })));
    }

    #[test]
    fn what_comes_twice_or_from_a_void_view_is_not_kept() {
        let mut rounds = peer_b();
        assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(true));
        assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(false));
        let newer = View { id: ViewId(2), begins_at: 3, ..view() };
        rounds.arrived(Arrival::View(newer)).unwrap();
        rounds.arrived(Arrival::Start(Start::at(3))).unwrap();
        assert!(rounds.restarts(ViewId(1)));
        rounds.started();
        assert_eq!(rounds.view().map(|view| view.id), Some(ViewId(2)));
        assert_eq!(rounds.missing(Position::of(3)).len(), 2, "what was heard before is void");
        assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(false));
    }

    #[test]
    fn one_that_comes_in_later_speaks_of_later_steps() {
        let mut rounds = peer_b();
        let without = View { id: ViewId(2), begins_at: 3, members: vec![view().members[1].clone()] };
        let again = View { id: ViewId(3), begins_at: 9, ..view() };
        rounds.arrived(Arrival::View(without)).unwrap();
        rounds.arrived(Arrival::View(again)).unwrap();
        let said = |step| {
            let header = said("a", step).header().clone();
            Arc::new(
                Contribution::seal(Header { view: ViewId(3), ..header }, vec![], &Schema::default()).unwrap(),
            )
        };
        rounds.completed();
        assert_eq!(rounds.arrived(Arrival::Heard(said(9))), Ok(true));
        assert!(matches!(rounds.arrived(Arrival::Heard(said(13))), Err(Stray::Ahead { expected: 9, .. })));
        assert!(rounds.missing(Position::of(3)).is_empty(), "in between nobody else is a member");
    }

    #[test]
    fn a_view_that_is_said_again_changes_nothing_but_addresses() {
        let mut rounds = peer_b();
        rounds.arrived(Arrival::Heard(said("a", 2))).unwrap();
        rounds.arrived(Arrival::View(view())).unwrap();
        assert_eq!(rounds.missing(Position::of(2)), [name("c")]);
    }

    #[test]
    fn a_graceful_stop_runs_to_the_end_of_the_lease() {
        let mut rounds = peer_b();
        rounds.arrived(Arrival::Stop(stop(StopKind::Graceful))).unwrap();
        assert_eq!(rounds.permission(), Permission::Go(ViewId(1)));
        assert!(rounds.abandon().is_none());
        rounds.completed();
        rounds.completed();
        assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::Graceful)));
    }

    #[test]
    fn at_once_is_at_once_and_stays() {
        let mut rounds = peer_b();
        rounds.arrived(Arrival::Stop(stop(StopKind::AtOnce))).unwrap();
        rounds.arrived(Arrival::Stop(stop(StopKind::Graceful))).unwrap();
        assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::AtOnce)));
        assert!(rounds.abandon().is_some());
    }

    #[test]
    fn the_last_step_waits_for_the_others() {
        let mut rounds = peer_b();
        rounds.arrived(Arrival::Lease(10)).unwrap();
        (2..10).for_each(|_| rounds.completed());
        assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::Finish));
        rounds.arrived(Arrival::Stop(stop(StopKind::Finished))).unwrap();
        assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::Finished)));
    }

    #[test]
    fn one_who_does_not_listen_misses_nobody() {
        let mut rounds = Rounds::new(name("b"), RunId(5), 10, false);
        rounds.arrived(Arrival::View(view())).unwrap();
        assert!(rounds.missing(Position::of(2)).is_empty());
        assert_eq!(rounds.take(Position::of(2)), Some(vec![]));
    }
}
