//! One run, from starting its processes to what its networks are worth.

use std::fs;
use std::time::{Duration, Instant};

use cohort_proto::exit::Exit;
use tokio::time::{interval, timeout};

use crate::Failure;
use crate::args::Job;
use crate::process::Processes;
use crate::results::{self, Results};
use crate::signals::Stops;
use crate::watch::Watch;

/// How often the coordinator is asked for the state of the run.
const POLL: Duration = Duration::from_millis(250);

/// How long processes may take to leave after one of them failed, besides two failure timeouts.
const LEAVE: Duration = Duration::from_secs(20);

/// Runs a job to its end and evaluates it.
///
/// # Errors
/// What ended it early. Whatever was complete is saved, and the same command with the same `--out` goes on.
pub(crate) async fn run(job: &Job, title: &str, stops: &mut Stops) -> Result<Results, Failure> {
    let started = Instant::now();
    let run_toml = job.out.join("run.toml");
    let write = |error: std::io::Error| {
        Failure::new(Exit::Storage, format!("cannot write {}: {error}", run_toml.display()))
    };
    fs::create_dir_all(&job.out).map_err(write)?;
    if fs::read_to_string(&run_toml).is_ok_and(|text| text != job.text) {
        let other = format!("{} holds a run of another run.toml; choose another --out", job.out.display());
        return Err(Failure::new(Exit::BadSpec, other));
    }
    fs::write(&run_toml, &job.text).map_err(write)?;
    let mut processes = Processes::start(job, &run_toml).await?;
    let mut watch = Watch::new(job, title, &processes.url);
    let outcome = follow(job, &mut processes, &mut watch, stops).await;
    watch.finish();
    outcome?;
    let waiting = watch.waiting_share();
    drop(processes);
    let evaluation = results::evaluate(job, waiting, started.elapsed().as_secs_f64());
    tokio::select! {
        results = evaluation => results,
        _ = stops.changed() => Err(Failure::new(Exit::Stopped, "stopped while evaluating; the networks are trained and saved")),
    }
}

/// Watches until every process has ended well.
async fn follow(
    job: &Job,
    processes: &mut Processes,
    watch: &mut Watch,
    stops: &mut Stops,
) -> Result<(), Failure> {
    let mut ticks = interval(POLL);
    loop {
        tokio::select! {
            _ = ticks.tick() => watch.poll().await,
            Ok(()) = stops.changed() => match *stops.borrow_and_update() {
                1 => {
                    watch.say("stopping at the end of the lease; Ctrl-C again stops at once");
                    processes.ask_to_stop();
                }
                2 => {
                    watch.say("stopping at once; Ctrl-C again kills what is left");
                    processes.ask_to_stop();
                }
                _ => return Err(Failure::new(Exit::Stopped, "killed before everything was saved")),
            },
        }
        for name in processes.revive() {
            watch.say(&format!("{name} was killed and is started again"));
        }
        if let Some(failure) = processes.failed() {
            let limit = LEAVE + 2 * Duration::from_millis(job.spec.policy.failure_timeout_ms);
            return tokio::select! {
                cause = wind_up(processes, failure, limit) => Err(cause),
                Ok(()) = stops.changed() => Err(Failure::new(Exit::Stopped, "killed before everything was saved")),
            };
        }
        if processes.all_ended() {
            return Ok(());
        }
    }
}

/// One process has failed: the others are given time to save and leave. Returns the failure that was the cause.
async fn wind_up(processes: &mut Processes, first: Failure, limit: Duration) -> Failure {
    processes.ask_to_stop();
    let ended = timeout(limit, async {
        while !processes.all_ended() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let in_time = ended.await.is_ok();
    let mut failure = processes.failed().unwrap_or(first);
    if !in_time {
        failure.sentence.push_str("; a process that did not leave was killed");
    }
    failure
}
