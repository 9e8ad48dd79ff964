//! Many seeds, or the one that `COHORT_SIM_SEED` names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::timed::{Kind, Outcome, Timed};
use crate::world::Planted;

/// Seeds of one run of each test; `COHORT_SIM_SEEDS` asks for another number, `COHORT_SIM_FIRST` for others.
const SEEDS: u64 = 3000;
/// Of worlds that give up.
const SEEDS_GIVEN_UP: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

const WAIT: Kind =
    Kind { name: "seeded_worlds_that_wait", goes_on: false, gives_up: false, planted: Planted::Nothing };
const GO_ON: Kind = Kind { name: "seeded_worlds_that_go_on", goes_on: true, ..WAIT };
const GIVE_UP_WAITING: Kind = Kind { name: "seeded_worlds_that_give_up_waiting", gives_up: true, ..WAIT };
const GIVE_UP_GOING_ON: Kind = Kind { name: "seeded_worlds_that_give_up_going_on", gives_up: true, ..GO_ON };

fn explain(seed: u64, kind: Kind, wrong: &str, timed: &Timed) -> String {
    let notes: Vec<&str> = timed.world.notes.0.iter().map(String::as_str).collect();
    format!(
        "seed {seed}: {wrong}\nthe last events:\n{}\n{}\nto see it again:\n  COHORT_SIM_SEED={seed} cargo test --locked \
         --test simulation {} -- --nocapture",
        notes.join("\n"),
        timed.world.positions(),
        kind.name
    )
}

fn try_seed(seed: u64, kind: Kind) -> Result<Outcome, String> {
    let mut timed = Timed::new(seed, kind);
    let outcome = timed.run();
    outcome.map_err(|wrong| explain(seed, kind, &wrong, &timed))
}

/// Every seed from a first one on, on all cores; the lowest that failed. With `COHORT_SIM_ALL` all are tried and each that
/// fails is named.
fn try_seeds(kind: Kind, first: u64, seeds: u64) -> (Option<u64>, [u64; 6]) {
    let all = number("COHORT_SIM_ALL").is_some();
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let sums: [AtomicU64; 6] = Default::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds || (!all && failed.load(Ordering::Relaxed) != u64::MAX) {
                return;
            }
            match try_seed(seed, kind) {
                Ok(Outcome { events, faults, steps_taken, rollbacks, views, stops }) => {
                    let parts = [events, faults, steps_taken, rollbacks, views, stops];
                    sums.iter().zip(parts).for_each(|(sum, part)| _ = sum.fetch_add(part, Ordering::Relaxed));
                }
                Err(wrong) => {
                    if all {
                        eprintln!("{}", wrong.lines().next().unwrap_or(""));
                    }
                    failed.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    ((failed != u64::MAX).then_some(failed), sums.map(AtomicU64::into_inner))
}

fn check(kind: Kind) {
    if let Some(seed) = number("COHORT_SIM_SEED") {
        let outcome = try_seed(seed, kind);
        assert!(outcome.is_ok(), "{}", outcome.err().unwrap_or_default());
        eprintln!("seed {seed}: {outcome:?}");
        return;
    }
    let began = std::time::Instant::now();
    let usual = if kind.gives_up { SEEDS_GIVEN_UP } else { SEEDS };
    let (first, seeds) =
        (number("COHORT_SIM_FIRST").unwrap_or(0), number("COHORT_SIM_SEEDS").unwrap_or(usual));
    let (failed, sums) = try_seeds(kind, first, seeds);
    let wrong = failed.and_then(|seed| try_seed(seed, kind).err());
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
    let [events, faults, steps, rollbacks, views, stops] = sums;
    eprintln!(
        "{}: {seeds} seeds, {events} events, {faults} faults, {steps} steps taken, {views} views after the first, \
         {rollbacks} times a peer was told to start elsewhere, {stops} times all stopped, {:.1} s",
        kind.name,
        began.elapsed().as_secs_f64()
    );
    assert!(faults > seeds, "the weather is too fair");
    assert_eq!(stops > 0, kind.gives_up, "{stops} times all stopped");
}

#[test]
fn seeded_worlds_that_wait() {
    check(WAIT);
}

#[test]
fn seeded_worlds_that_go_on() {
    check(GO_ON);
}

#[test]
fn seeded_worlds_that_give_up_waiting() {
    check(GIVE_UP_WAITING);
}

#[test]
fn seeded_worlds_that_give_up_going_on() {
    check(GIVE_UP_GOING_ON);
}

#[test]
fn planted_mistakes_are_found_by_seeds() {
    for kind in [
        Kind { planted: Planted::NewestCheckpoint, ..WAIT },
        Kind { planted: Planted::ReleaseOwn, ..WAIT },
        Kind { planted: Planted::OneMore, ..GO_ON },
    ] {
        let planted = kind.planted;
        let found = (0..400).find_map(|seed| try_seed(seed, kind).err());
        let wrong = found.unwrap();
        eprintln!("{planted:?}: {}", wrong.lines().next().unwrap_or(""));
    }
}
