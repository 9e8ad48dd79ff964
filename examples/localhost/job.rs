//! One run, from starting its processes to what its networks are worth.

use std::fs;
use std::time::{Duration, Instant};

use cohort_proto::exit::Exit;
use tokio::time::{interval, timeout};

use crate::Failure;
use crate::args::Job;
use crate::process::Processes;
use crate::results::{self, Results};
use crate::watch::Watch;

/// How often the coordinator is asked for the state of the run.
const POLL: Duration = Duration::from_millis(250);

/// How long processes may take to leave after the run's end, or after one of them failed.
const LEAVE: Duration = Duration::from_secs(30);

/// Runs a job to its end and evaluates it.
///
/// # Errors
/// What ended it early. Whatever was complete is saved, and the same command with the same `--out` goes on.
pub(crate) async fn run(job: &Job, title: &str) -> Result<Results, Failure> {
    let started = Instant::now();
    let run_toml = job.out.join("run.toml");
    let write = |error: std::io::Error| {
        Failure::new(Exit::Storage, format!("cannot write {}: {error}", run_toml.display()))
    };
    fs::create_dir_all(&job.out).map_err(write)?;
    fs::write(&run_toml, &job.text).map_err(write)?;
    let mut processes = Processes::start(job, &run_toml).await?;
    let mut watch = Watch::new(job, title, &processes.url);
    let outcome = follow(&mut processes, &mut watch).await;
    watch.finish();
    outcome?;
    let waiting = watch.waiting_share();
    drop(processes);
    results::evaluate(job, waiting, started.elapsed().as_secs_f64()).await
}

/// Watches until every process has ended well.
async fn follow(processes: &mut Processes, watch: &mut Watch) -> Result<(), Failure> {
    let mut ticks = interval(POLL);
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => watch.poll().await,
            signal = tokio::signal::ctrl_c() => {
                if signal.is_ok() {
                    watch.say(if stopping { "stopping at once" } else { "stopping at the end of the lease; Ctrl-C again stops at once" });
                    stopping = true;
                    processes.ask_to_stop();
                }
            }
        }
        if let Some(failure) = processes.failed() {
            return Err(wind_up(processes, failure).await);
        }
        if processes.all_ended() {
            return Ok(());
        }
    }
}

/// One process has failed: the others are given time to save and leave. Returns the failure that was the cause.
async fn wind_up(processes: &mut Processes, first: Failure) -> Failure {
    processes.ask_to_stop();
    let ended = timeout(LEAVE, async {
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
