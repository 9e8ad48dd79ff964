//! The loop of a run: starts what is to be started, finds what has ended and judges how, disturbs what is due, and gives
//! up when the run no longer gets on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cohort_tests::process::Signal;

use crate::aim::{Aim, Targets};
use crate::fleet::{COORDINATOR, End, FIRST, Fleet, State};
use crate::inflict::Link;
use crate::plan::{Kind, Plan};
use crate::recovery::{Recoveries, Recovery};
use crate::watch::{Seen, Watch};

/// The pause between two rounds of the loop.
const GLANCE: Duration = Duration::from_millis(3);

/// The same while a moment is being watched for that lasts a few milliseconds only.
const STARE: Duration = Duration::from_micros(200);

/// How often memory is measured.
const MEASURE: Duration = Duration::from_millis(200);

/// How long a process stays down that ended early by itself.
const EARLY_PAUSE: Duration = Duration::from_millis(300);

/// How often one may do that.
const EARLY_ENDS_MAX: u32 = 50;

/// How long a graceful stop that a peer was asked for may take before the coordinator is asked as well: the peer may not
/// yet have had a part in the run.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How long any graceful stop may take.
const STOP_MAX: Duration = Duration::from_secs(60);

/// What a run may take, and what is known of it beforehand.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// In all.
    pub(crate) overall: Duration,
    /// Without anybody getting on.
    pub(crate) stall: Duration,
    /// Where it is worth aiming at.
    pub(crate) targets: Targets,
}

impl Expected {
    /// For a run that nobody disturbs.
    pub(crate) fn calm() -> Self {
        let (overall, stall) = (Duration::from_secs(4 * 3600), Duration::from_secs(120));
        Self { overall, stall, targets: Targets::default() }
    }

    /// For the same run with so many disturbances.
    pub(crate) fn disturbed(calm: &Outcome, disturbances: usize, targets: Targets) -> Self {
        let overall = 60.0 + 5.0 * calm.wall_s + 15.0 * disturbances as f64;
        let stall = Duration::from_secs(90) + 5 * calm.stalls.longest;
        Self { overall: Duration::from_secs_f64(overall), stall, targets }
    }
}

/// A graceful stop that was asked for.
#[derive(Debug)]
pub(crate) struct Stopping {
    pub(crate) since: Instant,
    /// Whether the coordinator was asked.
    pub(crate) all: bool,
    /// How long all stay down after it.
    pub(crate) pause: Duration,
}

/// What was done to a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Disturbances.
    pub(crate) kinds: BTreeMap<Kind, u64>,
    /// Processes that were killed.
    pub(crate) killed: u64,
    /// Checkpoints that were damaged.
    pub(crate) damaged: u64,
    /// Processes that stopped though nobody had asked, in words.
    pub(crate) unasked: Vec<String>,
    /// The same while a damaged checkpoint may have been the reason.
    pub(crate) fallbacks: Vec<String>,
}

/// How long nobody got on.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Stalls {
    /// At the longest.
    pub(crate) longest: Duration,
    /// At the longest while every peer attended and nothing was being done to any process.
    pub(crate) untroubled: Duration,
}

/// How a run went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Why it was given up.
    pub(crate) failure: Option<String>,
    /// What all processes said last.
    pub(crate) last_words: String,
    pub(crate) seen: Seen,
    pub(crate) tally: Tally,
    pub(crate) stalls: Stalls,
    pub(crate) recoveries: Vec<Recovery>,
    /// By name, in megabytes.
    pub(crate) peak_rss_mb: BTreeMap<String, f64>,
    /// Disturbances that did not come before the end.
    pub(crate) left: usize,
    pub(crate) wall_s: f64,
}

/// Whoever watches over a run.
pub(crate) struct Supervisor<'a> {
    pub(crate) fleet: Fleet<'a>,
    pub(crate) watch: Watch,
    pub(crate) plan: Plan,
    pub(crate) expected: Expected,
    pub(crate) began: Instant,
    /// When something was last done to the run.
    pub(crate) disturbed_at: Instant,
    /// A kill that waits for its moment.
    pub(crate) aim: Option<Aim>,
    pub(crate) stopping: Option<Stopping>,
    /// What is cut or lossy, and until when.
    pub(crate) links: Vec<(Link, Instant)>,
    /// The step of a damaged checkpoint, until every peer has a newer one.
    pub(crate) damaged: Option<u64>,
    pub(crate) failure_timeout: Duration,
    pub(crate) tally: Tally,
    pub(crate) recoveries: Recoveries,
    stalls: Stalls,
    troubled_at: Instant,
    measured_at: Instant,
    interrupted: Arc<AtomicBool>,
}

impl<'a> Supervisor<'a> {
    /// Watches over a fleet that is not started yet.
    pub(crate) fn new(
        fleet: Fleet<'a>,
        plan: Plan,
        expected: Expected,
        failure_timeout: Duration,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let door = fleet.net.map(|net| net.door(COORDINATOR));
        let watch = Watch::start(&fleet.url(), door)?;
        let now = Instant::now();
        Ok(Self {
            fleet,
            watch,
            plan,
            expected,
            began: now,
            disturbed_at: now,
            aim: None,
            stopping: None,
            links: Vec::new(),
            damaged: None,
            failure_timeout,
            tally: Tally::default(),
            recoveries: Recoveries::default(),
            stalls: Stalls::default(),
            troubled_at: now,
            measured_at: now,
            interrupted: interrupted.clone(),
        })
    }

    /// From the first start to the last end.
    pub(crate) fn run(mut self) -> Outcome {
        let failure = self.go().err().map(|error| format!("{error:#}"));
        self.fleet.slots.iter_mut().for_each(|slot| slot.measure());
        Outcome {
            last_words: if failure.is_some() { self.fleet.last_words() } else { String::new() },
            failure,
            seen: self.watch.finish(),
            tally: self.tally,
            stalls: self.stalls,
            recoveries: self.recoveries.done,
            peak_rss_mb: self
                .fleet
                .slots
                .iter()
                .map(|slot| (slot.name.clone(), slot.peak_rss_mb()))
                .collect(),
            left: self.plan.len(),
            wall_s: self.began.elapsed().as_secs_f64(),
        }
    }

    fn go(&mut self) -> Result<()> {
        loop {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            ensure!(
                self.began.elapsed() < self.expected.overall,
                "not over after {:?}",
                self.expected.overall
            );
            self.reap()?;
            if self.fleet.over() {
                return Ok(());
            }
            self.keep_appointments()?;
            self.look()?;
            match self.stopping.is_some() {
                true => self.go_on_stopping()?,
                false => self.disturb()?,
            }
            thread::sleep(if self.aim.is_some() { STARE } else { GLANCE });
        }
    }

    fn reap(&mut self) -> Result<()> {
        for place in 0..self.fleet.slots.len() {
            let end = self.fleet.slots.get_mut(place).map(|slot| slot.reap()).transpose()?.flatten();
            if let Some(end) = end {
                self.ended(place, end)?;
            }
        }
        let now = Instant::now();
        if now.duration_since(self.measured_at) >= MEASURE {
            self.measured_at = now;
            self.fleet.slots.iter_mut().for_each(|slot| slot.measure());
        }
        Ok(())
    }

    /// Judges a process that ended by itself, and decides whether it comes back.
    pub(crate) fn ended(&mut self, place: usize, end: End) -> Result<()> {
        let finished = matches!(self.fleet.slots.get(FIRST).map(|slot| &slot.state), Some(State::Done));
        let stopping = self.stopping.is_some();
        self.forget_old_damage();
        let after_damage = self.damaged.is_some();
        let Some(slot) = self.fleet.slots.get_mut(place) else { return Ok(()) };
        let words = format!("{} ended early ({end:?}): {}", slot.name, slot.last_line());
        match end {
            End::Wrongly(how) => bail!("{}: {how}: {}", slot.name, slot.last_line()),
            End::Finished => slot.state = State::Done,
            // Nobody is there any more to tell it that the run is over.
            End::Unreachable if place != FIRST && finished => slot.state = State::Done,
            _ if stopping => slot.state = State::Down(None),
            end => {
                eprintln!("chaos: {words}");
                slot.early_ends += 1;
                ensure!(
                    slot.early_ends <= EARLY_ENDS_MAX,
                    "{} ends early again and again: {words}",
                    slot.name
                );
                slot.state = State::Down(Some(Instant::now() + EARLY_PAUSE));
                match end {
                    // One that comes while the coordinator is down may find nobody.
                    End::Unreachable => {}
                    _ if after_damage => self.tally.fallbacks.push(words),
                    _ => self.tally.unasked.push(words),
                }
            }
        }
        Ok(())
    }

    /// Starts, continues, kills and heals what is due.
    fn keep_appointments(&mut self) -> Result<()> {
        let now = Instant::now();
        for place in 0..self.fleet.slots.len() {
            let Some(slot) = self.fleet.slots.get_mut(place) else { continue };
            if slot.paused_until.is_some_and(|until| until <= now) {
                slot.paused_until = None;
                slot.signal(Signal::SIGCONT);
            }
            let doomed = slot.doomed_at.is_some_and(|at| at <= now);
            let (name, pause) = (slot.name.clone(), slot.doomed_pause);
            if matches!(slot.state, State::Down(Some(due)) if due <= now) {
                let from = self.newest_good(&name);
                self.fleet.start(place)?;
                self.recoveries.restarted(&name, from);
            } else if doomed {
                self.kill(place, pause)?;
            }
        }
        let (healed, links) =
            std::mem::take(&mut self.links).into_iter().partition(|(_, until)| *until <= now);
        self.links = links;
        let healed: Vec<(Link, Instant)> = healed;
        healed.iter().try_for_each(|(link, _)| self.heal(link))
    }

    /// Sees how far the run is, how long it has stood still, and who has caught up.
    fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        let seen = self.watch.seen();
        let attending = seen.members.values().all(|member| member.attending);
        let calm = self.fleet.all_up() && self.links.is_empty() && self.stopping.is_none();
        if !(calm && attending) {
            self.troubled_at = now;
        }
        let progress_at = seen.progress_at.unwrap_or(self.began);
        let stall = now.duration_since(progress_at);
        let at_the_end =
            seen.total_steps > 0 && seen.members.values().all(|member| member.steps_done >= seen.total_steps);
        if seen.progress_at.is_some() && !at_the_end {
            self.stalls.longest = self.stalls.longest.max(stall);
            let untroubled = stall.min(now.duration_since(self.troubled_at));
            self.stalls.untroubled = self.stalls.untroubled.max(untroubled);
        }
        self.recoveries.look(&seen, calm);
        if stall > self.expected.stall {
            bail!("nobody got on for {stall:.1?}; the coordinator says: {:?}", seen.message);
        }
        Ok(())
    }

    /// Waits until a graceful stop is complete, and lets all come back.
    fn go_on_stopping(&mut self) -> Result<()> {
        let Some(stopping) = &mut self.stopping else { return Ok(()) };
        let took = stopping.since.elapsed();
        if !self.fleet.slots.iter().any(|slot| slot.up()) {
            let due = Instant::now() + stopping.pause;
            for slot in &mut self.fleet.slots {
                if matches!(slot.state, State::Down(_)) {
                    slot.state = State::Down(Some(due));
                }
            }
            eprintln!(
                "chaos: {:.1} s: all have stopped within {took:.1?}",
                self.began.elapsed().as_secs_f64()
            );
            self.stopping = None;
            // What comes next may come a while after this, not after the wish.
            self.disturbed_at = due;
        } else if took > STOP_MAX {
            bail!("asked to stop, the run has not stopped within {STOP_MAX:?}");
        } else if took > STOP_PATIENCE && !stopping.all {
            stopping.all = true;
            if let Some(coordinator) = self.fleet.slots.get_mut(FIRST) {
                coordinator.signal(Signal::SIGTERM);
            }
        }
        Ok(())
    }
}
