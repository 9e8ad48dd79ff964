//! Small worlds, searched completely: every order of events, with one or two faults anywhere on the way. In every state
//! what must hold holds, and from every state a schedule without further faults finishes the run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cohort_coordinator::event::Tick;
use cohort_coordinator::membership::{Peer, Presence};
use cohort_proto::id::Step;

use crate::fingerprint::fingerprint;
use crate::process::Link;
use crate::training::{Setting, Size};
use crate::world::{Event, Planted, World};

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A peer is killed; all that it has sent arrives, or nothing.
    Kill(usize, usize),
    /// The coordinator is killed before its next action but so many, and everything is lost that may be, or nothing.
    KillCoordinator(usize),
    /// The control connection of a peer breaks; all that is under way on it arrives, or nothing.
    BreakControl(usize, usize),
    /// A stream between two peers breaks, and what is under way on it is lost.
    BreakStream(usize, usize),
    /// Nothing is heard of anybody until the first deadline.
    Timeout,
}

/// So much is under way at no time.
const ALL: usize = 1 << 20;

/// A search.
pub(crate) struct Search {
    faults: u32,
    /// By fingerprint: that of the state after the first event that may happen, itself at the end.
    fair: HashMap<u64, u64>,
    seen: HashSet<u64>,
    pub(crate) finished: u64,
    pub(crate) wrong: Option<String>,
}

/// A state on the way, with what is still to be tried from it.
struct Visit {
    print: u64,
    world: World,
    faults_left: u32,
    events: Vec<Event>,
    faults: Vec<Fault>,
    by: String,
}

impl Search {
    /// Explores everything. Stops at the first state in which something does not hold.
    pub(crate) fn run(size: Size, faults: u32, planted: Planted) -> Self {
        let world = World::new(Arc::new(Setting::new(size)), planted, true);
        let (fair, seen) = (HashMap::new(), HashSet::new());
        let mut search = Self { faults, fair, seen, finished: 0, wrong: None };
        search.explore(world);
        if search.wrong.is_none() {
            search.check_liveness();
        }
        search
    }

    pub(crate) fn states(&self) -> usize {
        self.seen.len()
    }

    fn explore(&mut self, mut world: World) {
        // Everybody joins and starts, one after the other.
        while !world
            .hosts
            .iter()
            .all(|host| host.process.as_ref().is_some_and(|process| process.has_spoken()))
        {
            let Some(first) = world.enabled().first().copied() else { break };
            world.perform(first);
        }
        let mut path: Vec<Visit> = Vec::new();
        path.extend(self.visit(world, self.faults, "the beginning".into()).1);
        while let Some(top) = path.last_mut() {
            let mut world = top.world.clone();
            // Faults first: the earlier something breaks, the shorter is the way to what it does.
            let (faults_left, by, is_fair) = if let Some(fault) = top.faults.pop() {
                strike(&mut world, fault);
                (top.faults_left - 1, format!("{fault:?}"), false)
            } else if let Some(event) = top.events.pop() {
                // What has been said on a control stream arrives together: where it may be cut, faults cut it.
                while event == Event::Timer || world.enabled().contains(&event) {
                    step(&mut world, event);
                    if !matches!(event, Event::Down(_) | Event::Up(_)) {
                        break;
                    }
                }
                (top.faults_left, format!("{event:?}"), true)
            } else {
                path.pop();
                continue;
            };
            let from = top.print;
            let wrong = world.watch.wrong.clone().or_else(|| final_wrong(&world));
            if let Some(wrong) = wrong {
                let way: Vec<&str> =
                    path.iter().map(|visit| visit.by.as_str()).chain([by.as_str()]).collect();
                self.wrong = Some(format!("{wrong}\n{}\n{}", way.join("\n"), world.positions()));
                return;
            }
            let (print, next) = self.visit(world, faults_left, by);
            if is_fair {
                self.fair.entry(from).or_insert(print);
            }
            path.extend(next);
        }
    }

    /// Takes note of a state; returns it with what is to be tried if it is a new one.
    fn visit(&mut self, world: World, faults_left: u32, by: String) -> (u64, Option<Visit>) {
        let print = fingerprint(&world, faults_left);
        if !self.seen.insert(print) {
            return (print, None);
        }
        let mut events = world.enabled();
        events.reverse();
        if world.coordinator.cluster.is_some() && (events.is_empty() || is_suspected(&world)) {
            // Only time passes, or more of it than one that is lost needs to come back.
            events.insert(0, Event::Timer);
        }
        self.finished += u64::from(world.is_over());
        if events.is_empty() {
            self.fair.insert(print, print);
            if !world.is_over() {
                let wrong = format!("nothing can happen any more\n{}", world.positions());
                self.wrong.get_or_insert(wrong);
            }
        }
        let faults = if faults_left > 0 && !world.is_over() { possible(&world) } else { vec![] };
        (print, Some(Visit { print, world, faults_left, events, faults, by }))
    }

    /// From every state, always taking the first event that may happen must come to an end, which is a finished run.
    fn check_liveness(&mut self) {
        let mut ends: HashSet<u64> = HashSet::new();
        for start in self.fair.keys() {
            let (mut at, mut way) = (*start, HashSet::new());
            while !ends.contains(&at) && way.insert(at) && self.fair[&at] != at {
                at = self.fair[&at];
            }
            if !ends.contains(&at) && self.fair[&at] != at {
                self.wrong = Some("a schedule without faults goes round for ever".into());
                return;
            }
            ends.extend(way);
        }
    }
}

/// What must have come of a run that is over.
fn final_wrong(world: &World) -> Option<String> {
    if !world.is_over() {
        return None;
    }
    crate::timed::at_the_end(world).err()
}

/// The faults that change something.
fn possible(world: &World) -> Vec<Fault> {
    let mut faults = Vec::new();
    let peers = world.hosts.len();
    for (peer, host) in world.hosts.iter().enumerate() {
        let Some(process) = &host.process else { continue };
        faults.extend([Fault::Kill(peer, 0), Fault::Kill(peer, ALL)]);
        if !matches!(process.link, Link::Away | Link::Done) {
            faults.extend([Fault::BreakControl(peer, 0), Fault::BreakControl(peer, ALL)]);
        }
        let connected =
            |source: &usize| process.tasks.get(source).is_some_and(|task| task.connection.is_some());
        faults.extend((0..peers).filter(connected).map(|source| Fault::BreakStream(peer, source)));
    }
    if world.coordinator.cluster.is_some() {
        faults.extend([Fault::KillCoordinator(0), Fault::KillCoordinator(ALL), Fault::Timeout]);
    }
    faults
}

/// Whether the others may go on without a peer unless it comes back in time.
fn is_suspected(world: &World) -> bool {
    let peers = world.coordinator.cluster.iter().flat_map(|cluster| cluster.members().peers());
    let suspected = |peer: &Peer| matches!(peer.presence, Presence::Suspected { .. });
    world.setting.goes_on() && peers.into_iter().any(suspected)
}

/// An event; before a timer, time passes until it is due.
fn step(world: &mut World, event: Event) {
    if event == Event::Timer
        && let Some(at) = world.coordinator.cluster.as_ref().and_then(|cluster| cluster.poll_timeout())
    {
        if world.setting.goes_on() {
            world.now = Tick(at.0.saturating_sub(1)).max(world.now);
            world.hear_all();
        }
        world.now = at.max(world.now);
    }
    world.perform(event);
}

fn strike(world: &mut World, fault: Fault) {
    world.kept = 0;
    match fault {
        Fault::Kill(peer, kept) => world.crash_peer(peer, kept),
        Fault::KillCoordinator(lost) => world.crash_coordinator(lost),
        Fault::BreakControl(peer, kept) => world.break_control(peer, kept),
        Fault::BreakStream(follower, source) => world.break_stream(follower, source, 0),
        Fault::Timeout => {
            let at = world.coordinator.cluster.as_ref().and_then(|cluster| cluster.poll_timeout());
            world.now = at.map_or(world.now, |at| at.max(world.now));
            world.perform(Event::Timer);
        }
    }
    world.calm();
}

/// A world of peers that wait for each other; with a checkpoint every two steps.
fn waiting(peers: usize, steps: Step) -> Size {
    let (min_peers, wait_timeout_ms) = (None, None);
    Size { peers, steps, checkpoint_every: 2, keep: 1, rounds: 1, min_peers, wait_timeout_ms }
}

/// Explores, and prints what was found.
fn search(size: Size, faults: u32, planted: Planted) -> Search {
    let began = std::time::Instant::now();
    let search = Search::run(size, faults, planted);
    eprintln!(
        "{size:?}, {faults} faults, {planted:?}: {} states, {} of them finished, {:.1} s",
        search.states(),
        search.finished,
        began.elapsed().as_secs_f64()
    );
    search
}

/// The numbers of states are pinned, so that a search that has shrunk is noticed.
fn check(size: Size, faults: u32, states: usize) {
    let search = search(size, faults, Planted::Nothing);
    assert!(search.wrong.is_none(), "{}", search.wrong.unwrap_or_default());
    assert_eq!(search.states(), states, "{size:?}, {faults} faults");
}

#[test]
fn small_worlds_that_wait_are_searched_completely() {
    check(waiting(2, 3), 0, 226);
    check(waiting(3, 2), 0, 1424);
    check(waiting(2, 2), 1, 14021);
}

#[test]
fn three_that_wait_are_searched_completely() {
    check(waiting(3, 1), 1, 324_699);
}

#[test]
fn small_worlds_that_go_on_are_searched_completely() {
    check(Size { min_peers: Some(1), ..waiting(2, 2) }, 1, 35884);
}

#[test]
fn planted_mistakes_are_found() {
    let goes_on = Size { min_peers: Some(1), ..waiting(2, 2) };
    for (size, planted) in [
        (waiting(2, 2), Planted::NewestCheckpoint),
        (waiting(2, 2), Planted::ReleaseOwn),
        (goes_on, Planted::OneMore),
    ] {
        let search = search(size, 1, planted);
        let wrong = search.wrong.unwrap();
        eprintln!("{planted:?}: {}", wrong.lines().next().unwrap_or(""));
    }
}
