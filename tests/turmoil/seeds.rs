//! Many seeds, or the one that `COHORT_TURMOIL_SEED` names.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::faults::{Fault, Planned, plan};
use crate::processes::Cohort;
use crate::setting::{Kind, Setting};
use crate::verdict::{events, judge};
use crate::world::World;

/// Seeds of each policy in one run of this test; `COHORT_TURMOIL_SEEDS` asks for another number.
const SEEDS: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a seed came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    /// Virtual milliseconds.
    took: u64,
    faults: u64,
    steps_taken: u64,
    processes: u64,
    /// A digest of everything that was seen, in its order.
    trace: u64,
}

/// Held while a world runs: see [`begin_alike`].
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Tasks are numbered through the whole process, and a runtime that is dropped, as that of a killed process is, drops them
/// by the remainders of their numbers; so it hangs on these in which order others hear of a death. A world begins at a
/// number of which the remainder is known, and no other world runs beside it: a seed repeats itself, whatever ran before.
fn begin_alike() {
    /// A multiple of the number of lists in which tokio keeps the tasks of a runtime of one thread.
    const REMAINDERS: u64 = 64;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let number = || runtime.spawn(async {}).id().to_string().parse::<u64>().unwrap();
    while !number().is_multiple_of(REMAINDERS) {}
}

/// Runs a seed; if it fails, what was seen last.
fn run(seed: u64, setting: &Arc<Setting>, plan: &[Planned]) -> Result<Outcome, String> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    begin_alike();
    // In memory, if there is such a place: the journal waits for the disk at every lease.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let cohort = Cohort::new(setting.clone(), folder.path().join("state"), seed);
    let mut world = World::new(cohort.clone());
    let took = world.run(plan);
    let faults = world.faults;
    drop(world);
    match took.and_then(|took| judge(&cohort).map(|()| took)) {
        Ok(took) => {
            let witness = cohort.witness.lock().unwrap();
            let processes = cohort.lives.lock().unwrap().iter().sum();
            Ok(Outcome { took, faults, steps_taken: witness.steps_taken, processes, trace: witness.trace })
        }
        Err(wrong) => {
            let seen: Vec<String> = cohort.witness.lock().unwrap().lines.iter().cloned().collect();
            let (seen, told) = (seen.join("\n"), events(&cohort).join("\n"));
            Err(format!("{wrong}\nwhat was seen last:\n{seen}\nwhat the coordinator told:\n{told}"))
        }
    }
}

fn try_seed(seed: u64, setting: &Arc<Setting>, test: &str) -> Outcome {
    let peers = setting.spec.peers.len();
    run(seed, setting, &plan(seed, peers)).unwrap_or_else(|wrong| {
        panic!(
            "seed {seed}: {wrong}\nto see it again:\n  COHORT_TURMOIL_SEED={seed} cargo test --test turmoil {test} -- --nocapture"
        )
    })
}

/// Meta-updates in one seed of three.
fn settings(goes_on: bool) -> [Arc<Setting>; 3] {
    [true, false, false].map(|meta| Arc::new(Setting::new(Kind { goes_on, meta })))
}

fn try_seeds(goes_on: bool, test: &str) {
    let settings = settings(goes_on);
    let of = |seed: u64| &settings[seed as usize % settings.len()];
    if let Some(seed) = number("COHORT_TURMOIL_SEED") {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        eprintln!("seed {seed}: {:?}", try_seed(seed, of(seed), test));
        return;
    }
    let seeds = number("COHORT_TURMOIL_SEEDS").unwrap_or(SEEDS);
    let outcomes: Vec<Outcome> = (0..seeds).map(|seed| try_seed(seed, of(seed), test)).collect();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    eprintln!(
        "{test}: {seeds} seeds, {} s of virtual time, {} faults, {} processes, {} steps taken",
        sum(|outcome| outcome.took) / 1000,
        sum(|outcome| outcome.faults),
        sum(|outcome| outcome.processes),
        sum(|outcome| outcome.steps_taken)
    );
    assert!(sum(|outcome| outcome.faults) > seeds, "the weather is too fair");
}

#[test]
fn waiting_cohorts_end_in_the_weights_of_the_undisturbed_run() {
    try_seeds(false, "waiting_cohorts");
}

#[test]
fn cohorts_that_go_on_agree() {
    try_seeds(true, "cohorts_that_go_on");
}

#[test]
fn nobody_disturbed() {
    for goes_on in [false, true] {
        for setting in &settings(goes_on)[..2] {
            let outcome = run(1, setting, &[]).unwrap_or_else(|wrong| panic!("{wrong}"));
            let steps = crate::setting::STEPS * setting.spec.peers.len() as u64;
            assert_eq!((outcome.steps_taken, outcome.processes), (steps, 4), "{outcome:?}");
        }
    }
}

/// A peer that is running to the end of the lease, when all are gone who could say that it is to stop at once.
#[test]
fn one_that_stops_alone_does_not_wait_for_ever() {
    let [_, setting, _] = settings(false);
    let all_but_a = Fault::Kill(vec![1, 2, 3]);
    let stop = Planned { at: 800, lasts: 0, fault: Fault::Stop };
    for at in [850, 900, 950, 1000] {
        let plan = [stop.clone(), Planned { at, lasts: 3000, fault: all_but_a.clone() }];
        run(1, &setting, &plan).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

#[test]
fn a_seed_repeats_itself() {
    let [setting, ..] = settings(false);
    for seed in 100..106 {
        let once =
            || run(seed, &setting, &plan(seed, 3)).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let seen = |outcome: Outcome| (outcome.faults, outcome.trace);
        assert_eq!(seen(once()), seen(once()), "seed {seed}");
    }
}
