//! The main job: a coordinator and all peers of a run as real processes on this machine's loopback interface, with
//! progress bars, an evaluation, and a closing table beside the same networks trained alone.
//!
//! Read in this order: [`args`] (what to run), [`job`] (one run from start to summary), [`process`] (the child
//! processes), [`watch`] (progress), [`results`] (evaluation and table).

mod args;
mod job;
mod process;
mod signals;
mod watch;
mod results;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use cohort_proto::exit::Exit;

/// Why the job ends early: a sentence and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    sentence: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, sentence: sentence.into() }
    }

    pub(crate) fn internal(sentence: impl std::fmt::Display) -> Self {
        Self::new(Exit::Internal, sentence.to_string())
    }
}

fn main() -> ExitCode {
    let mut argv: Vec<OsString> = std::env::args_os().collect();
    // This binary starts itself once for every process of the run: the same programs as cohort-coordinator and
    // cohort-peer, so one `cargo run` builds all that is needed.
    match argv.get(1).and_then(|word| word.to_str()) {
        Some(process::COORDINATOR) => {
            argv.remove(1);
            return cohort_coordinator::cli::main(argv);
        }
        Some(process::PEER) => {
            argv.remove(1);
            return cohort_peer::cli::main(argv);
        }
        _ => {}
    }
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(std::io::stderr(), &format!("localhost: no runtime: {error}"));
            return Exit::Internal.into();
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => Exit::Finished.into(),
        Err(Failure { exit, sentence }) => {
            say(std::io::stderr(), &format!("localhost: {sentence}"));
            exit.into()
        }
    }
}

/// Writes a line. A reader that has gone away does not end a training.
pub(crate) fn say(mut to: impl std::io::Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// The cohort, then the same networks alone if that is asked for, then the table.
async fn run(args: args::Args) -> Result<(), Failure> {
    let plan = args.plan()?;
    let mut stops = signals::listen()?;
    say(std::io::stdout(), &plan.introduction());
    let cohort = job::run(&plan.cohort, "cohort", &mut stops).await?;
    let alone = match &plan.alone {
        Some(alone) => Some(job::run(alone, "alone", &mut stops).await?),
        None => None,
    };
    let summary = results::Summary { cohort, alone };
    summary.write(&plan.cohort.out)?;
    let out = plan.cohort.out.display();
    say(std::io::stdout(), &format!("{}Everything is in {out}", summary.table()));
    Ok(())
}
