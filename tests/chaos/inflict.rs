//! What is done to the processes of a run.

use std::time::{Duration, Instant};

use anyhow::Result;
use cohort_proto::rng::SplitMix64;
use cohort_tests::process::Signal;

use crate::aim::Aim;
use crate::damage;
use crate::fleet::{COORDINATOR, End, FIRST, Slot, State};
use crate::plan::{Disturbance, Kind};
use crate::supervise::{Stopping, Supervisor};

/// One in so many peers that are killed finds its newest checkpoint damaged.
const DAMAGED_EVERY: u64 = 5;

/// The longest of the short times that a process stays down.
const SHORT_MS: u64 = 800;

/// How long after its start, at the most, a process is killed that is to die while it joins.
const JOIN_MS: u64 = 700;

/// What is cut or lossy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// A host's cable.
    Cable(String),
    /// What two hosts see of each other.
    Pair(String, String),
    /// What a host sends.
    Lossy(String),
}

impl Supervisor<'_> {
    /// Does what is due, one thing at a time.
    pub(crate) fn disturb(&mut self) -> Result<()> {
        if let Some(aim) = self.aim.take() {
            return self.go_on_aiming(aim);
        }
        let progress = {
            let seen = self.watch.seen();
            if seen.total_steps == 0 { 0.0 } else { seen.frontier as f64 / seen.total_steps as f64 }
        };
        let since = Instant::now().saturating_duration_since(self.disturbed_at);
        match self.plan.due(progress, since) {
            Some(disturbance) => self.inflict(disturbance),
            None => Ok(()),
        }
    }

    fn inflict(&mut self, mut disturbance: Disturbance) -> Result<()> {
        let mut kind = disturbance.kind;
        let dice = &mut disturbance.dice;
        let done = match kind {
            Kind::Peer => self.kill_peers(1, dice)?,
            Kind::Several => {
                let most = self.fleet.slots.len().saturating_sub(1).max(2) as u64;
                let count = 2 + dice.below(most - 1);
                self.kill_peers(count as usize, dice)?
            }
            Kind::Coordinator => self.kill_these(&[FIRST], dice)?,
            Kind::All => {
                let all: Vec<usize> = (0..self.fleet.slots.len()).collect();
                self.kill_these(&all, dice)?
            }
            Kind::InJoin => self.kill_in_join(dice)?,
            Kind::InCheckpoint | Kind::InMeta => {
                self.aim = Some(Aim::at(kind, dice, &self.expected.targets));
                // Whether it hit is known later.
                return Ok(());
            }
            Kind::PausePeer => match self.any_peer(dice) {
                Some(place) => self.pause(place, dice),
                None => false,
            },
            Kind::PauseCoordinator => self.pause(FIRST, dice),
            Kind::Graceful => self.ask_to_stop(dice),
            Kind::CutPeer | Kind::CutCoordinator | Kind::Part | Kind::Lossy => match self.cut(kind, dice)? {
                Some(cut) => {
                    kind = cut;
                    true
                }
                // It is cut already, and stays so for as long as it was to be.
                None => return Ok(()),
            },
        };
        self.note(kind, done, disturbance);
        Ok(())
    }

    /// Counts a disturbance, or puts it off until there is somebody to disturb.
    fn note(&mut self, kind: Kind, done: bool, disturbance: Disturbance) {
        if done {
            *self.tally.kinds.entry(kind).or_default() += 1;
            self.disturbed_at = Instant::now();
        } else {
            self.plan.again(disturbance);
        }
    }

    fn go_on_aiming(&mut self, mut aim: Aim) -> Result<()> {
        let hit = aim.hit(&self.fleet, &self.watch.seen(), &self.expected.targets);
        let Some(hit) = hit else {
            self.aim = Some(aim);
            return Ok(());
        };
        let (place, kind) = match hit {
            Some(place) => (Some(place), aim.kind),
            // The moment did not come: any other.
            None => (self.any_peer(&mut aim.dice), Kind::Peer),
        };
        let done = match place {
            Some(place) => {
                self.say(&format!("{}:", aim.kind.name()));
                self.kill_these(&[place], &mut aim.dice)?
            }
            None => false,
        };
        let again = Disturbance { kind: Kind::Peer, moment: crate::plan::NOW, dice: aim.dice };
        self.note(kind, done, again);
        Ok(())
    }

    fn any_peer(&self, dice: &mut SplitMix64) -> Option<usize> {
        let up = self.fleet.peers_up();
        up.get(dice.below(up.len() as u64) as usize).copied()
    }

    fn kill_peers(&mut self, count: usize, dice: &mut SplitMix64) -> Result<bool> {
        let mut up = self.fleet.peers_up();
        let mut chosen = Vec::new();
        while chosen.len() < count && !up.is_empty() {
            chosen.push(up.swap_remove(dice.below(up.len() as u64) as usize));
        }
        self.kill_these(&chosen, dice)
    }

    /// Kills processes at once, each of which comes back at a time of its own; whether there was any to kill.
    fn kill_these(&mut self, places: &[usize], dice: &mut SplitMix64) -> Result<bool> {
        let up = |place: &&usize| self.fleet.slots.get(**place).is_some_and(|slot| slot.up());
        let places: Vec<usize> = places.iter().filter(up).copied().collect();
        for place in &places {
            if let Some(slot) = self.fleet.slots.get_mut(*place) {
                slot.signal(Signal::SIGKILL);
            }
        }
        for place in &places {
            let pause = self.pause_of(dice);
            self.kill(*place, pause)?;
            if dice.below(DAMAGED_EVERY) == 0 {
                self.damage(*place, dice)?;
            }
        }
        Ok(!places.is_empty())
    }

    /// Kills one that comes back after a pause.
    pub(crate) fn kill(&mut self, place: usize, pause: Duration) -> Result<()> {
        let Some(slot) = self.fleet.slots.get_mut(place) else { return Ok(()) };
        let name = slot.name.clone();
        match slot.kill()? {
            Some(End::Killed) => {
                slot.state = State::Down(Some(Instant::now() + pause));
                self.tally.killed += 1;
                self.recoveries.killed(&name, &self.watch.seen());
                self.say(&format!("kill -9 of {name}, back in {:.1} s", pause.as_secs_f64()));
                Ok(())
            }
            Some(end) => self.ended(place, end),
            None => Ok(()),
        }
    }

    /// How long one stays down: not at all, a short time, or longer than the others hold it for alive.
    fn pause_of(&self, dice: &mut SplitMix64) -> Duration {
        match dice.below(5) {
            0 | 1 => Duration::ZERO,
            2 | 3 => Duration::from_millis(dice.below(SHORT_MS)),
            _ => self.failure_timeout + Duration::from_millis(dice.below(SHORT_MS)),
        }
    }

    /// Kills a peer, and its successor while that joins.
    fn kill_in_join(&mut self, dice: &mut SplitMix64) -> Result<bool> {
        let Some(place) = self.any_peer(dice) else { return Ok(false) };
        self.kill(place, Duration::ZERO)?;
        let pause = self.pause_of(dice);
        if let Some(slot) = self.fleet.slots.get_mut(place) {
            slot.doomed_at = Some(Instant::now() + Duration::from_millis(dice.below(JOIN_MS)));
            slot.doomed_pause = pause;
        }
        Ok(true)
    }

    fn damage(&mut self, place: usize, dice: &mut SplitMix64) -> Result<()> {
        self.forget_old_damage();
        let Some(slot) = self.fleet.slots.get(place).filter(|_| place != FIRST) else { return Ok(()) };
        // With one damaged already, the one before may be all that is left.
        if self.damaged.is_some() || slot.up() {
            return Ok(());
        }
        let name = slot.name.clone();
        if let Some((step, words)) = damage::newest(&self.fleet.state_of(&name), dice)? {
            self.damaged = Some(step);
            self.tally.damaged += 1;
            self.say(&format!("{name}'s checkpoint {step} is damaged: {words}"));
        }
        Ok(())
    }

    /// Once every peer has a newer checkpoint, nobody goes back to what a damaged one was for.
    pub(crate) fn forget_old_damage(&mut self) {
        let mut peers = self.fleet.slots.iter().skip(FIRST + 1);
        let newest = |name: &str| damage::checkpoints(&self.fleet.state_of(name)).last().copied();
        if self.damaged.is_some_and(|step| peers.all(|slot| newest(&slot.name) > Some(step))) {
            self.damaged = None;
        }
    }

    /// The newest checkpoint of a peer that nobody has damaged.
    pub(crate) fn newest_good(&self, name: &str) -> u64 {
        let steps = damage::checkpoints(&self.fleet.state_of(name));
        steps.into_iter().rfind(|step| Some(*step) != self.damaged).unwrap_or(0)
    }

    fn pause(&mut self, place: usize, dice: &mut SplitMix64) -> bool {
        let longest = 2 * self.failure_timeout.as_millis() as u64;
        let pause = Duration::from_millis(100 + dice.below(longest));
        let Some(slot) = self.fleet.slots.get_mut(place).filter(|slot| slot.up()) else { return false };
        slot.signal(Signal::SIGSTOP);
        slot.paused_until = Some(Instant::now() + pause);
        let name = slot.name.clone();
        self.say(&format!("{name} is paused for {:.1} s", pause.as_secs_f64()));
        true
    }

    /// Asks the coordinator or a peer to stop, while there is a coordinator to tell all others. One that does not listen yet
    /// would end as any process does, and tell nobody.
    fn ask_to_stop(&mut self, dice: &mut SplitMix64) -> bool {
        if !self.fleet.slots.get(FIRST).is_some_and(Slot::listens) {
            return false;
        }
        let attending: Vec<usize> = {
            let seen = self.watch.seen();
            let attends = |place: &usize| {
                let name = self.fleet.slots.get(*place).map(|slot| slot.name.as_str()).unwrap_or_default();
                seen.members.get(name).is_some_and(|member| member.attending)
            };
            self.fleet.peers_up().into_iter().filter(attends).collect()
        };
        let peer = attending.get(dice.below(attending.len() as u64) as usize).copied();
        let place = if dice.below(2) == 0 { Some(FIRST) } else { peer };
        let pause = Duration::from_millis(dice.below(SHORT_MS));
        let Some(slot) = place.and_then(|place| self.fleet.slots.get_mut(place)) else { return false };
        if !slot.up() || slot.paused_until.is_some() {
            return false;
        }
        slot.signal(Signal::SIGTERM);
        let name = slot.name.clone();
        for slot in &mut self.fleet.slots {
            slot.doomed_at = None;
            // Whoever asks all to stop does not start any.
            if matches!(slot.state, State::Down(_)) {
                slot.state = State::Down(None);
            }
        }
        self.stopping = Some(Stopping { since: Instant::now(), all: place == Some(FIRST), pause });
        self.say(&format!("{name} is asked to stop"));
        true
    }

    /// Cuts something off; what kind of cut it became, if any.
    fn cut(&mut self, kind: Kind, dice: &mut SplitMix64) -> Result<Option<Kind>> {
        let Some(net) = self.fleet.net else { return Ok(None) };
        let longest = 2 * self.failure_timeout.as_millis() as u64;
        let until = Instant::now() + Duration::from_millis(300 + dice.below(longest));
        let mut peers: Vec<String> =
            self.fleet.slots.iter().skip(FIRST + 1).map(|slot| slot.name.clone()).collect();
        let mut any = || match peers.is_empty() {
            true => String::new(),
            false => peers.swap_remove(dice.below(peers.len() as u64) as usize),
        };
        let link = match kind {
            Kind::CutCoordinator => Link::Cable(COORDINATOR.to_owned()),
            Kind::Part => {
                let (one, other) = (any(), any());
                Link::Pair(one.clone().min(other.clone()), one.max(other))
            }
            Kind::Lossy => Link::Lossy(any()),
            _ => Link::Cable(any()),
        };
        let alone = matches!(&link, Link::Pair(one, _) if one.is_empty());
        if alone || self.links.iter().any(|(cut, _)| *cut == link) {
            return Ok(None);
        }
        match &link {
            Link::Cable(host) => net.cut(host)?,
            Link::Pair(one, other) => net.part(one, other)?,
            Link::Lossy(host) => {
                if let Err(error) = net.lose(host, 50) {
                    eprintln!("chaos: the cable instead, for no packets can be lost here: {error:#}");
                    return self.cut(Kind::CutPeer, dice);
                }
            }
        }
        let seconds = until.duration_since(Instant::now()).as_secs_f64();
        self.say(&format!("{} for {seconds:.1} s: {link:?}", kind.name()));
        self.links.push((link, until));
        Ok(Some(kind))
    }

    /// Ends what [`Self::cut`] began.
    pub(crate) fn heal(&mut self, link: &Link) -> Result<()> {
        let Some(net) = self.fleet.net else { return Ok(()) };
        match link {
            Link::Cable(host) => net.mend(host),
            Link::Pair(one, other) => net.unite(one, other),
            Link::Lossy(host) => net.lose(host, 0),
        }
    }

    fn say(&self, words: &str) {
        let frontier = self.watch.seen().frontier;
        eprintln!("chaos: {:.1} s, step {frontier}: {words}", self.began.elapsed().as_secs_f64());
    }
}
