//! Chaos: a small real cohort that is killed, stopped, damaged and parted at random moments, beside the same cohort that
//! nobody disturbs. What must not differ is compared, and one JSON object says how it went.
//!
//!     cargo run --release --bin chaos -- --seed 1 --kills 20
//!
//! Read in this order: [`plan`] (what will happen), [`setting`] (to which run), [`fleet`] (the processes), [`watch`] (what
//! the coordinator says of them), [`supervise`] (the loop of both runs), [`inflict`] and [`aim`] (what is done to them, and
//! when), [`recovery`] (how long they took to be back), [`verdict`] (what held), [`report`].
//!
//! Everything random is drawn from the seed. When it happens is a matter of real processes, so a seed repeats the
//! disturbances, in their order and about at their places, not the interleaving.

mod args;
mod plan;
mod setting;
mod fleet;
mod watch;
mod supervise;
mod inflict;
mod aim;
mod damage;
mod recovery;
mod verdict;
mod report;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use cohort_proto::exit::Exit;
use cohort_tests::net::Net;
use tempfile::TempDir;

use aim::Targets;
use args::{Args, Format};
use fleet::{COORDINATOR, Fleet, PEER};
use plan::{Plan, Possible};
use setting::Setting;
use supervise::{Expected, Supervisor};
use verdict::Verdict;

fn main() -> ExitCode {
    let mut argv: Vec<OsString> = std::env::args_os().collect();
    // This binary starts itself once for every process of a run, so one `cargo run` builds all that is needed.
    match argv.get(1).and_then(|word| word.to_str()) {
        Some(COORDINATOR) => {
            argv.remove(1);
            die_with_parent();
            return cohort_coordinator::cli::main(argv);
        }
        Some(PEER) => {
            argv.remove(1);
            die_with_parent();
            return cohort_peer::cli::main(argv);
        }
        _ => {}
    }
    let args = Args::parse();
    match run(&args) {
        Ok(true) => Exit::Finished.into(),
        Ok(false) => Exit::Internal.into(),
        Err(error) => {
            eprintln!("chaos: {error:#}");
            Exit::Internal.into()
        }
    }
}

/// Both runs and the comparison; whether everything held.
fn run(args: &Args) -> Result<bool> {
    let interrupted = interrupts()?;
    let folder = Folder::new(args.keep_dir.as_deref())?;
    let setting = Setting::new(args)?;
    setting.write(folder.path())?;
    let hosts: Vec<&str> = std::iter::once(COORDINATOR).chain(setting.peers()).collect();
    let net = if args.no_partitions { None } else { network(&hosts) };
    let possible = Possible { meta: setting.spec.meta().is_some(), partitions: net.is_some() };
    let plan = Plan::new(args.seed, args.kills, possible);

    let fleet = |name: &str| Fleet::new(&setting, &folder.path().join(name), net.as_ref());
    let timeout = Duration::from_millis(setting.spec.policy.failure_timeout_ms);
    eprintln!("chaos: first the run that nobody disturbs");
    let calm = Expected::calm();
    let calm = Supervisor::new(fleet("undisturbed")?, Plan::default(), calm, timeout, &interrupted)?.run();
    if let Some(failure) = &calm.failure {
        eprintln!("{}", calm.last_words);
        anyhow::bail!(
            "the run that nobody disturbed: {failure} (everything is in {})",
            folder.keep().display()
        );
    }
    eprintln!("chaos: it took {:.1} s; now the same with {} disturbances", calm.wall_s, plan.len());
    let targets = Targets {
        meta_steps: verdict::meta_steps(&folder.path().join("undisturbed"))?,
        step: Duration::from_secs_f64(report::step_ms(&calm) / 1000.0),
    };
    let expected = Expected::disturbed(&calm, plan.len(), targets);
    let rough = Supervisor::new(fleet("disturbed")?, plan, expected, timeout, &interrupted)?.run();
    let verdict = Verdict::of(&setting, folder.path(), &rough);
    let mut report = report::json(args, &setting, &calm, &rough, &verdict);
    let held = verdict.failures.is_empty();
    if !held {
        eprintln!("{}", rough.last_words);
        verdict.failures.iter().for_each(|failure| eprintln!("chaos: {failure}"));
        eprintln!("chaos: everything is in {}\nchaos: again: {}", folder.keep().display(), args.command());
    }
    if !held || args.keep_dir.is_some() {
        report = report::kept(report, folder.path());
    }
    match args.format {
        Format::Json => println!("{report}"),
        Format::Text => println!("{}", report::text(&report)),
    }
    Ok(held)
}

/// Where everything is written: a folder that was asked for, or one that goes when all is well.
enum Folder {
    Asked(PathBuf),
    Temporary(std::cell::Cell<Option<TempDir>>, PathBuf),
}

impl Folder {
    fn new(asked: Option<&Path>) -> Result<Self> {
        let Some(path) = asked else {
            let folder = tempfile::Builder::new().prefix("chaos-").tempdir()?;
            let path = folder.path().to_owned();
            return Ok(Self::Temporary(std::cell::Cell::new(Some(folder)), path));
        };
        fs::create_dir_all(path)?;
        let empty = fs::read_dir(path)?.next().is_none();
        anyhow::ensure!(empty, "--keep-dir {}: it is not empty", path.display());
        Ok(Self::Asked(path.canonicalize()?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Asked(path) | Self::Temporary(_, path) => path,
        }
    }

    /// Leaves it where it is.
    fn keep(&self) -> &Path {
        if let Self::Temporary(folder, _) = self
            && let Some(folder) = folder.take()
        {
            _ = folder.keep();
        }
        self.path()
    }
}

/// Hosts of their own for all processes, if that is permitted here.
fn network(hosts: &[&str]) -> Option<Net> {
    Net::new('x', hosts)
        .inspect_err(|why| {
            eprintln!("chaos: partitions are skipped, there are no network namespaces here: {why:#}")
        })
        .ok()
}

/// Set when somebody asks this process to end; its children die with it.
fn interrupts() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = interrupted.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            told.store(true, Ordering::Relaxed);
        })
        .context("a thread for signals")?;
    Ok(interrupted)
}

/// No process of a run outlives this program, even if this is killed.
fn die_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL) {
        eprintln!("chaos: this process may outlive its parent: {error}");
    }
}
