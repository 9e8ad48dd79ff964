//! One seed: hosts, what is done to them, and whoever starts again what has died.

use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::faults::{Fault, Planned};
use crate::processes::{Cohort, Exit};
use crate::setting::STEPS;

/// Virtual time passes in steps of so many milliseconds; messages arrive between them.
const TICK: u64 = 2;
/// A process that ended by itself is started again after so long.
const PAUSE: u64 = 500;
/// A run that is not over by then hangs.
const OVERDUE: u64 = 300_000;
/// Milliseconds that a message takes at the most.
const LATENCY: u64 = 15;
const SLOW: u64 = 1000;

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Runs,
    /// It is started again at that time.
    Down(u64),
    /// It has nothing more to do.
    Over,
}

pub(crate) struct World<'a> {
    sim: Sim<'a>,
    cohort: Cohort,
    now: u64,
    hosts: Vec<Host>,
    /// Faults that are over at a time.
    passing: Vec<(u64, Fault)>,
    pub(crate) faults: u64,
}

impl World<'_> {
    pub(crate) fn new(cohort: Cohort) -> Self {
        let mut builder = Builder::new();
        builder
            .rng_seed(cohort.seed)
            .tick_duration(Duration::from_millis(TICK))
            .simulation_duration(Duration::from_millis(2 * OVERDUE))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(LATENCY))
            .tcp_capacity(4096)
            .enable_random_order();
        let mut sim = builder.build();
        for host in 0..=cohort.peers() {
            let process = cohort.clone();
            sim.host(cohort.name(host), move || process.clone().run(host));
        }
        let hosts = vec![Host::Runs; cohort.peers() + 1];
        Self { sim, cohort, now: 0, hosts, passing: Vec::new(), faults: 0 }
    }

    /// Runs until everybody is done; returns how long that took, in virtual milliseconds.
    pub(crate) fn run(&mut self, plan: &[Planned]) -> Result<u64, String> {
        let mut plan = plan.iter().peekable();
        while self.hosts.iter().any(|host| *host != Host::Over) {
            while let Some(planned) = plan.next_if(|planned| planned.at <= self.now) {
                self.strike(planned);
            }
            let over: Vec<(u64, Fault)> =
                self.passing.extract_if(.., |(until, _)| *until <= self.now).collect();
            over.into_iter().for_each(|(_, fault)| self.pass(&fault));
            self.start_again();
            self.sim.step().map_err(|error| error.to_string())?;
            self.now += TICK;
            self.cohort.witness.lock().unwrap().now = self.now;
            self.look_at_exits();
            self.send_home();
            if let Some(wrong) = &self.cohort.witness.lock().unwrap().wrong {
                return Err(wrong.clone());
            }
            if self.now > OVERDUE {
                return Err(format!("it is not over after {} s: {:?}", OVERDUE / 1000, self.hosts));
            }
        }
        Ok(self.now)
    }

    fn note(&self, line: &str) {
        self.cohort.witness.lock().unwrap().note(line);
    }

    fn name(&self, host: usize) -> String {
        self.cohort.name(host).to_owned()
    }

    fn others(&self, host: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|other| *other != host).collect()
    }

    fn strike(&mut self, planned: &Planned) {
        let Planned { lasts, fault, .. } = planned;
        self.note(&format!("-- {fault:?} for {lasts} ms"));
        self.faults += 1;
        match fault {
            Fault::Kill(hosts) => hosts.iter().for_each(|host| self.kill(*host, *lasts)),
            Fault::PowerCut(host) => self.cut_power(*host, *lasts),
            Fault::Damage(host) => {
                self.cut_power(*host, *lasts);
                let mut disk = self.cohort.disks[*host].lock().unwrap();
                // Who is complete needs it no more, and nobody could help it.
                if disk.load(STEPS).is_none() {
                    disk.damage_newest();
                }
            }
            Fault::Partition(a, b) => self.sim.partition(self.name(*a), self.name(*b)),
            Fault::OneWay(a, b) => self.sim.partition_oneway(self.name(*a), self.name(*b)),
            Fault::Isolate(host) => {
                for other in self.others(*host) {
                    self.sim.partition(self.name(*host), self.name(other));
                }
            }
            Fault::Hold(a, b) => self.sim.hold(self.name(*a), self.name(*b)),
            Fault::Slow(a, b) => self.delay(*a, *b, SLOW),
            Fault::Lossy(one_in) => self.sim.set_fail_rate(1.0 / *one_in as f64),
            Fault::Stop => self.cohort.stop.notify_waiters(),
        }
        self.passing.push((self.now + lasts, fault.clone()));
    }

    fn delay(&self, a: usize, b: usize, ms: u64) {
        self.sim.set_link_max_message_latency(self.name(a), self.name(b), Duration::from_millis(ms));
    }

    /// A fault is over. Processes have times of their own.
    fn pass(&mut self, fault: &Fault) {
        match fault {
            Fault::Partition(a, b) | Fault::OneWay(a, b) | Fault::Hold(a, b) => {
                self.sim.release(self.name(*a), self.name(*b));
            }
            Fault::Isolate(host) => {
                for other in self.others(*host) {
                    self.sim.release(self.name(*host), self.name(other));
                }
            }
            Fault::Slow(a, b) => self.delay(*a, *b, LATENCY),
            Fault::Lossy(_) => self.sim.set_fail_rate(0.0),
            Fault::Kill(_) | Fault::PowerCut(_) | Fault::Damage(_) | Fault::Stop => return,
        }
        self.note(&format!("-- {fault:?} is over"));
    }

    /// Kills a process, if there is one, and keeps it from running for a while.
    fn kill(&mut self, host: usize, lasts: u64) {
        if self.hosts[host] != Host::Over {
            self.sim.crash(self.name(host));
            self.cohort.exits.lock().unwrap()[host] = None;
            self.hosts[host] = Host::Down(self.now + lasts);
        }
    }

    /// What the system says to others when a process dies is lost.
    fn cut_power(&mut self, host: usize, lasts: u64) {
        let others = self.others(host);
        others.iter().for_each(|other| self.sim.partition(self.name(host), self.name(*other)));
        self.kill(host, lasts);
        others.iter().for_each(|other| self.sim.repair(self.name(host), self.name(*other)));
    }

    fn start_again(&mut self) {
        for host in 0..self.hosts.len() {
            if matches!(self.hosts[host], Host::Down(until) if until <= self.now) {
                self.hosts[host] = Host::Runs;
                self.sim.bounce(self.name(host));
            }
        }
    }

    fn look_at_exits(&mut self) {
        for host in 0..self.hosts.len() {
            let Some(exit) = self.cohort.exits.lock().unwrap()[host].take() else { continue };
            self.sim.crash(self.name(host));
            self.cohort.witness.lock().unwrap().ended = true;
            let (how, then) = match exit {
                Exit::Finished => ("finished".to_owned(), Host::Over),
                Exit::Stopped(why) => (why, Host::Down(self.now + PAUSE)),
                Exit::Wrong(why) => {
                    let what = format!("{} ends: {why}", self.name(host));
                    self.cohort.witness.lock().unwrap().fail(what);
                    (why, Host::Over)
                }
            };
            self.note(&format!("{} ends: {how}", self.name(host)));
            self.hosts[host] = then;
        }
    }

    /// Once the coordinator has seen the run finished, nobody needs to start again; who was left behind stays there.
    fn send_home(&mut self) {
        let peers = self.cohort.peers();
        if self.hosts[peers] != Host::Over {
            return;
        }
        for peer in 0..peers {
            let complete = self.cohort.disks[peer].lock().unwrap().load(STEPS).is_some();
            let down = matches!(self.hosts[peer], Host::Down(_));
            if down && (complete || self.cohort.setting.kind.goes_on) {
                self.hosts[peer] = Host::Over;
            } else if down {
                let what = format!("the run is finished, but {} is not", self.name(peer));
                self.cohort.witness.lock().unwrap().fail(what);
            }
        }
    }
}
