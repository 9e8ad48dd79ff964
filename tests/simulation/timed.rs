//! A seeded world in time: every event that may happen gets a moment, by how slow its link or process is; now and then
//! something breaks. After the last fault everything must finish.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_coordinator::event::{StreamId, Tick};
use cohort_proto::control::StepReport;
use cohort_proto::id::{PeerName, Step};
use cohort_proto::rng::SplitMix64;

use crate::process::Link;
use crate::training::{Setting, Size};
use crate::world::{Event, Planted, World};

/// How long a world may take to finish once nothing breaks any more, in milliseconds.
const PATIENCE_MS: u64 = 600_000;

/// For how long a cohort that gives up waits before it does.
const GIVES_UP_MS: u64 = 8_000;

/// In a world that is quick a message arrives within so many milliseconds.
const QUICK_MS: u64 = 64;

/// How long it takes whoever can reach the coordinator to come back to it, and to hear of the end.
const COMING_BACK_MS: u64 = 2_000;

/// For how long a view is news, in milliseconds.
const TOLD_MS: u64 = 2_000;

/// Events of a world; most have a few thousand.
const EVENTS_MAX: u64 = 200_000;

/// What a seed came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) events: u64,
    pub(crate) faults: u64,
    pub(crate) steps_taken: u64,
    pub(crate) rollbacks: u64,
    /// Views after the first.
    pub(crate) views: u64,
    /// How often all stopped because somebody stayed away for too long.
    pub(crate) stops: u64,
}

/// A kind of world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// The test's name.
    pub(crate) name: &'static str,
    /// Whether the others go on without a peer that is lost.
    pub(crate) goes_on: bool,
    /// Whether all stop when too many stay away for too long, and are started again.
    pub(crate) gives_up: bool,
    pub(crate) planted: Planted,
}

/// What may break in a world, and how often.
#[derive(Debug, Clone, Copy)]
struct Weather {
    faults: u64,
    /// One event in so many is followed by a fault.
    rarity: u64,
    /// Whether checkpoints are damaged.
    damage: bool,
    /// Whether peers that are killed may stay away for long.
    absence: bool,
    /// Whether connections to the coordinator, and the coordinator, break above all while a new view is being told.
    spite: bool,
    latency_ms: u64,
    compute_ms: u64,
    /// Links are slow by a factor of up to this.
    slowness: u64,
}

/// A pair of ends between which nothing arrives until a moment; the coordinator is the end after the last peer.
type Cut = ((usize, usize), u64);

pub(crate) struct Timed {
    pub(crate) world: World,
    rng: SplitMix64,
    weather: Weather,
    due: BTreeMap<Event, u64>,
    /// By peer, and the coordinator after the last: it does nothing before this moment.
    hangs: Vec<u64>,
    cuts: Vec<Cut>,
    slow: Vec<u64>,
    faults_left: u64,
    last_fault: u64,
    /// The number of the newest view, and when it began.
    view: (u64, u64),
    events: u64,
    /// Whether the coordinator has ended.
    ended: bool,
}

impl Timed {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let Kind { goes_on, gives_up, planted, .. } = kind;
        let mut rng = SplitMix64::keyed(&[0x51, seed, u64::from(goes_on) + 2 * u64::from(gives_up)]);
        let peers = 2 + rng.below(3) as usize;
        let min_peers = goes_on.then(|| 1 + rng.below(peers as u64) as usize);
        let checkpoint_every = 2 + rng.below(6);
        let size = Size {
            peers,
            steps: 8 + rng.below(30),
            checkpoint_every,
            keep: 1 + rng.below(3) as usize,
            rounds: if rng.below(3) == 0 { 6 } else { 1 },
            min_peers,
            wait_timeout_ms: gives_up.then_some(GIVES_UP_MS),
        };
        let weather = Weather {
            faults: 1 + rng.below(14),
            rarity: 10 << rng.below(6),
            damage: rng.below(4) == 0,
            absence: gives_up || (goes_on && rng.below(2) == 0),
            // Who gives up soon must be able to come back soon.
            latency_ms: 1 << rng.below(if gives_up { 5 } else { 7 }),
            compute_ms: 1 << rng.below(6),
            slowness: 1 << rng.below(if gives_up { 3 } else { 6 }),
            spite: rng.below(3) == 0,
        };
        let world = World::new(Arc::new(Setting::new(size)), planted, false);
        let slow = (0..=peers).map(|_| 1 + rng.below(weather.slowness)).collect();
        let (hangs, cuts) = (vec![0; peers + 1], vec![]);
        let (due, faults_left) = (BTreeMap::new(), weather.faults);
        let (last_fault, view, events) = (0, (1, 0), 0);
        Self {
            world,
            rng,
            weather,
            due,
            hangs,
            cuts,
            slow,
            faults_left,
            last_fault,
            view,
            events,
            ended: false,
        }
    }

    /// Lets the world run to its end.
    ///
    /// # Errors
    /// What did not hold.
    pub(crate) fn run(&mut self) -> Result<Outcome, String> {
        while !self.world.is_over() {
            let Some((event, at)) = self.next() else { return Err("nothing can happen any more".into()) };
            self.world.now = Tick(at.max(self.world.now.0));
            if !self.world.is_sign_of_life(event) {
                self.world.trace(self.world.words_of(event));
            }
            self.world.kept = self.rng.below(4) as usize;
            self.world.perform(event);
            self.events += 1;
            self.maybe_break();
            if let Some(wrong) = &self.world.watch.wrong {
                return Err(wrong.clone());
            }
            self.nobody_is_left_alone()?;
            if self.events > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} events: something goes round"));
            }
            if self.world.now.0 > self.last_fault + PATIENCE_MS {
                return Err(format!("not finished {PATIENCE_MS} ms after the last fault"));
            }
        }
        at_the_end(&self.world)?;
        Ok(Outcome {
            events: self.events,
            faults: self.weather.faults - self.faults_left,
            steps_taken: self.world.watch.steps_taken,
            rollbacks: self.world.watch.rollbacks,
            views: self.world.coordinator.journal.view().0 - 1,
            stops: self.world.watch.stops,
        })
    }

    /// Whoever lives when the coordinator ends has heard how the run ends, unless its world is too slow for that, or it could not
    /// reach the coordinator in these last moments.
    fn nobody_is_left_alone(&mut self) -> Result<(), String> {
        let quick = self.weather.latency_ms * self.slow.iter().max().unwrap_or(&1) <= QUICK_MS;
        let ended = self.world.coordinator.ended.is_some();
        if !ended || std::mem::replace(&mut self.ended, true) || !quick {
            return Ok(());
        }
        for (peer, host) in self.world.hosts.iter().enumerate() {
            let heard = |link: &Link| match link {
                Link::Answered(outcome) => outcome.is_err(),
                link => matches!(link, Link::Done),
            };
            let process = host.process.as_ref().filter(|process| process.place.is_some());
            let alone = process.is_some_and(|process| !heard(&process.link));
            if alone && self.free_at(Event::Attempt(peer)) + COMING_BACK_MS <= self.world.now.0 {
                return Err(format!("peer {peer} lives, and has not heard that the run is finished"));
            }
        }
        Ok(())
    }

    /// The event that is due first.
    fn next(&mut self) -> Option<(Event, u64)> {
        let mut enabled = self.world.enabled();
        let wake = self.world.coordinator.cluster.as_ref().and_then(|cluster| cluster.poll_timeout());
        enabled.extend(wake.map(|_| Event::Timer));
        for (peer, host) in self.world.hosts.iter().enumerate() {
            let attends = |link: &Link| matches!(link, Link::Attending(_));
            if host.process.as_ref().is_some_and(|process| attends(&process.link)) {
                enabled.push(Event::Heartbeat(peer));
            }
        }
        let old = std::mem::take(&mut self.due);
        for event in enabled {
            let at = match (event, wake) {
                (Event::Timer, Some(wake)) => wake.0,
                _ => old.get(&event).copied().unwrap_or_else(|| self.world.now.0 + self.delay(event)),
            };
            self.due.insert(event, at.max(self.free_at(event)));
        }
        let (&event, &at) = self.due.iter().min_by_key(|(_, at)| **at)?;
        self.due.remove(&event);
        Some((event, at))
    }

    /// The two ends of what an event needs; the same twice if it is one process alone.
    fn ends(&self, event: Event) -> (usize, usize) {
        let coordinator = self.world.hosts.len();
        let of = |stream: &StreamId| self.world.streams.get(stream).map_or(coordinator, |open| open.peer);
        match event {
            Event::Timer | Event::StartCoordinator => (coordinator, coordinator),
            Event::Join(number) => {
                (self.world.joins.get(&number).map_or(coordinator, |join| join.peer), coordinator)
            }
            Event::Up(stream) | Event::Down(stream) => (of(&stream), coordinator),
            Event::Answer(peer) | Event::Attempt(peer) | Event::StartPeer(peer) => (peer, coordinator),
            Event::Connect(follower, source) | Event::Deliver(follower, source) => {
                (follower, self.world.served_by(follower, source).unwrap_or(source))
            }
            Event::TaskEnded(peer) | Event::Train(peer) | Event::News(peer) | Event::Heartbeat(peer) => {
                (peer, peer)
            }
        }
    }

    /// The moment before which hangs and partitions forbid an event.
    fn free_at(&self, event: Event) -> u64 {
        let (a, b) = self.ends(event);
        let acts = match event {
            Event::Join(_) | Event::Up(_) => b,
            _ => a,
        };
        let cut = |(ends, until): &Cut| if *ends == (a, b) || *ends == (b, a) { *until } else { 0 };
        self.cuts.iter().map(cut).max().unwrap_or(0).max(self.hangs[acts])
    }

    fn delay(&mut self, event: Event) -> u64 {
        let (a, b) = self.ends(event);
        let Weather { latency_ms, compute_ms, .. } = self.weather;
        let slow = self.slow[a].max(self.slow[b]);
        let now_and_then = self.rng.below(50) == 0;
        let upto = match event {
            Event::StartCoordinator | Event::StartPeer(_) => 4000,
            Event::Join(_) | Event::Answer(_) | Event::Up(_) | Event::Down(_) | Event::Deliver(..) => {
                latency_ms * slow
            }
            Event::Attempt(_) | Event::Connect(..) => 1500,
            Event::Train(_) => compute_ms * slow,
            Event::News(_) | Event::TaskEnded(_) => {
                if now_and_then {
                    500
                } else {
                    2
                }
            }
            Event::Heartbeat(_) => return 400,
            Event::Timer => return 0,
        };
        // Messages do not wait for each other's journeys.
        let queue = match event {
            Event::Up(stream) => self.world.streams.get(&stream).map_or(1, |open| open.up.len()),
            Event::Down(stream) => self.world.streams.get(&stream).map_or(1, |open| open.down.len()),
            _ => 1,
        };
        self.rng.below(upto.min(4000) / queue.max(1) as u64 + 1)
    }

    fn maybe_break(&mut self) {
        let (now, view) = (self.world.now.0, self.world.coordinator.journal.view().0);
        if view > self.view.0 {
            self.view = (view, now);
        }
        let told = self.weather.spite && self.view.0 > 1 && now <= self.view.1 + TOLD_MS;
        let rarity = if told { self.weather.rarity.min(8) } else { self.weather.rarity };
        if self.faults_left == 0 || self.rng.below(rarity) > 0 {
            return;
        }
        self.faults_left -= 1;
        self.last_fault = self.world.now.0;
        let peers = self.world.hosts.len();
        let (peer, other) =
            (self.rng.below(peers as u64) as usize, self.rng.below(peers as u64 + 1) as usize);
        let kept = self.rng.below(6) as usize;
        let for_ms = 1 << self.rng.below(14);
        self.world.kept = kept;
        match if told { 7 + self.rng.below(4) } else { self.rng.below(16) } {
            0..=4 => self.kill(peer, kept),
            5 => (0..=peer).for_each(|peer| self.kill(peer, kept)),
            6 => {
                (0..peers).for_each(|peer| self.kill(peer, kept));
                self.kill_coordinator();
            }
            7 | 8 => self.kill_coordinator(),
            9 => {
                let actions = self.rng.below(7) as usize;
                let lost = self.lost();
                self.say(format!("the coordinator is killed after {actions} more actions"));
                self.world.coordinator.dies = Some((actions, lost));
            }
            10 => {
                self.say(format!("the control connection of {peer} breaks, {kept} messages get through"));
                self.world.break_control(peer, kept);
            }
            11 if peer != other && other < peers => {
                self.say(format!("the stream from {other} to {peer} breaks"));
                self.world.break_stream(peer, other, kept);
            }
            12 | 13 => {
                self.say(format!("{other} hangs for {for_ms} ms"));
                self.hangs[other] = self.world.now.0 + for_ms;
                self.last_fault += for_ms;
            }
            _ => {
                // The coordinator's own cable, or the way between two.
                let all = other == peers && self.rng.below(2) == 0;
                let those = if all { 0..peers } else { peer..peer + 1 };
                self.say(format!("nothing passes between {those:?} and {other} for {for_ms} ms"));
                self.cuts.retain(|(_, until)| *until > self.world.now.0);
                self.cuts.extend(those.map(|peer| ((peer, other), self.world.now.0 + for_ms)));
                self.last_fault += for_ms;
            }
        }
        self.world.calm();
    }

    fn kill(&mut self, peer: usize, kept: usize) {
        self.say(format!("{peer} is killed, {kept} of its messages get through"));
        self.world.crash_peer(peer, kept);
        if self.weather.absence && self.rng.below(2) == 0 {
            let for_ms = 1 << self.rng.below(16);
            self.say(format!("{peer} stays away for {for_ms} ms"));
            self.hangs[peer] = self.world.now.0 + for_ms;
            self.last_fault = self.last_fault.max(self.hangs[peer]);
        }
        // The last checkpoint cannot be made again once the run is complete, which may be said already.
        let complete = self.world.hosts[peer].disk.load(self.world.setting.size.steps).is_some();
        if self.weather.damage
            && !complete
            && self.rng.below(3) == 0
            && self.world.hosts[peer].disk.damage_newest()
        {
            self.world.damaged = true;
            self.say(format!("the newest checkpoint of {peer} is damaged"));
        }
    }

    /// Lines of the journal that are lost with the coordinator.
    fn lost(&mut self) -> usize {
        self.rng.below(12) as usize
    }

    fn kill_coordinator(&mut self) {
        let lost = self.lost();
        self.say(format!("the coordinator is killed, up to {lost} lines of its journal are lost"));
        if self.world.coordinator.cluster.is_some() {
            self.world.crash_coordinator(lost);
        }
    }

    fn say(&mut self, what: String) {
        self.world.trace(format!("FAULT {what}"));
    }
}

/// What must have come of a run.
///
/// # Errors
/// What has not.
pub(crate) fn at_the_end(world: &World) -> Result<(), String> {
    let World { setting, hosts, coordinator, .. } = world;
    let steps = coordinator.journal.steps()?;
    if setting.goes_on() {
        return after_going_on(world, &steps);
    }
    for (peer, host) in hosts.iter().enumerate() {
        let state = host.disk.load(setting.size.steps).map(|(state, _)| state);
        if state != Some(setting.state(peer, setting.size.steps)) {
            return Err(format!("peer {peer} does not hold the weights of the undisturbed run"));
        }
        for step in 0..setting.size.steps {
            match steps.get(&(setting.name(peer).clone(), step)) {
                None => return Err(format!("the journal has no step {step} of peer {peer}")),
                Some(report) if report.said.first() != Some(setting.said(peer, step)) => {
                    return Err(format!("by the journal, peer {peer} said something else in step {step}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// What must have come of a run in which peers were left behind: of every step, who was a member then and stayed has
/// taken it in the view that holds for it, and has consumed what the others say that they said.
fn after_going_on(world: &World, steps: &BTreeMap<(PeerName, Step), &StepReport>) -> Result<(), String> {
    let World { setting, hosts, watch, .. } = world;
    let total = setting.size.steps;
    let Some(last) = watch.views.last() else { return Err("there was no view".into()) };
    for peer in last.members.iter().map(|member| member.index) {
        let Some((_, trail)) = hosts[peer].disk.load(total) else {
            return Err(format!("peer {peer} does not hold its last checkpoint"));
        };
        if let Some(what) = watch.strays(peer, total, trail) {
            return Err(format!("peer {peer} ends with weights that do not count: {what}"));
        }
    }
    for step in 0..total {
        let (Some(view), Some(next)) = (watch.views.at(step), watch.views.at(step + 1)) else {
            return Err(format!("no view holds for step {step}"));
        };
        for member in view.members.iter().filter(|member| next.member(&member.name).is_some()) {
            let Some(report) = steps.get(&(member.name.clone(), step)) else {
                if watch.put_out.contains(&member.index) {
                    continue;
                }
                return Err(format!("the journal has no step {step} of {}, who stayed", member.name));
            };
            if report.view != view.id {
                return Err(format!(
                    "by the journal, {} took step {step} in view {}",
                    member.name, report.view
                ));
            }
            for (source, digest) in &report.consumed {
                let said = steps.get(&(source.clone(), step)).filter(|said| said.view == view.id);
                if said.is_some_and(|said| said.own_digest != *digest) {
                    return Err(format!("{} heard something else of {source} in step {step}", member.name));
                }
            }
        }
    }
    Ok(())
}
