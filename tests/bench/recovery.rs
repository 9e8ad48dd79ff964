//! What surviving costs, measured on real processes: how long a killed peer takes to be where it was, as a multiple of the
//! time that the lost steps took first, and which part of a step goes into checkpoints and into the contribution log.
//!
//!     cargo bench --workspace --bench recovery                 # an idle machine; about three minutes on two cores
//!
//! Two ResNet-8 train with MCL on the bundled Fashion-MNIST images. In each round one of them is killed by SIGKILL when
//! it is most of the way to its next checkpoint, and started again at once by the same command.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use cohort_tests::DATA;
use cohort_tests::process::{Signal, Site, wait_until};
use rusqlite::{Connection, OpenFlags};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// Coordinator and peer under one name.
const PROGRAM: &str = env!("CARGO_BIN_EXE_cohort");

/// Rounds, each with one kill.
const ROUNDS: usize = 3;
/// Steps between checkpoints: the default of run.toml.
const CHECKPOINT_EVERY: u64 = 200;
/// When a peer is killed: this many steps after a checkpoint.
const LOST: u64 = 180;
/// Long enough for the others to go on after that.
const STEPS: u64 = 2 * CHECKPOINT_EVERY + 20;

fn main() -> ExitCode {
    // Cargo adds words of its own, such as --bench: nothing can be chosen here.
    let _: Vec<OsString> = std::env::args_os().collect();
    match run() {
        Ok(()) => Exit::Finished.into(),
        Err(error) => {
            eprintln!("recovery: {error:#}");
            Exit::Internal.into()
        }
    }
}

/// One kill and what came of it, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// From the start of the second process until it had joined.
    join: f64,
    /// From its start until it had reported a step that its predecessor had not.
    caught_up: f64,
    /// What those steps took first.
    first: f64,
    steps: u64,
}

fn run() -> Result<()> {
    let mut rounds = Vec::new();
    let mut shares = Vec::new();
    for number in 0..ROUNDS {
        let (round, share) = once().with_context(|| format!("round {number}"))?;
        println!(
            "round {number}: {} steps took {:.2} s first, {:.2} s again ({:.2} s of them until it had joined): {:.2}",
            round.steps,
            round.first / 1e3,
            round.caught_up / 1e3,
            round.join / 1e3,
            round.caught_up / round.first
        );
        rounds.push(round);
        shares.extend(share);
    }
    let ratios: Vec<f64> = rounds.iter().map(|round| round.caught_up / round.first).collect();
    let [least, middle, greatest] = spread(ratios);
    println!("recovery, of the time of the lost steps: median {middle:.2} ({least:.2} to {greatest:.2})");
    for (act, what) in [("save", "checkpoints"), ("say", "the contribution log, saying included")] {
        let of_act = shares.iter().filter(|share| share.act == act).map(|share| share.percent);
        let [least, middle, greatest] = spread(of_act.collect());
        println!("{what}: median {middle:.2} % of training ({least:.2} to {greatest:.2})");
    }
    Ok(())
}

/// Starts a run, kills a peer in it, starts that again, and lets the run finish.
fn once() -> Result<(Round, Vec<Share>)> {
    let site = Site::new(PROGRAM, &run_toml())?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (a, mut b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    let calls = Calls::new(&url)?;
    wait_until("the place of the kill", || {
        Ok((calls.member("b")?.steps_done >= CHECKPOINT_EVERY + LOST).then_some(()))
    })?;
    b.signal(Signal::SIGKILL)?;
    drop(b);
    // Whatever it managed to report is on record now, and nothing else will be before it has caught up: what a replay
    // takes again is compared, not shown.
    let lost = calls.member("b")?;
    let started = Instant::now();
    let b = site.peer(&url, "b", &[])?;
    let mut joined = None;
    wait_until("the killed peer to be farther than it was", || {
        let member = calls.member("b")?;
        if member.address != lost.address {
            joined.get_or_insert(started.elapsed());
        }
        Ok((member.steps_done > lost.steps_done).then_some(()))
    })?;
    let reached = lost.steps_done;
    let caught_up = started.elapsed();
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let journal = Connection::open_with_flags(site.journal(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // The row of a step stays as the first process wrote it.
    let at = "SELECT reported_at FROM steps WHERE peer = 'b' AND step = ?";
    let reported = |step: u64| journal.query_row(at, [step.cast_signed()], |row| row.get::<_, i64>(0));
    let first = reported(reached - 1)? - reported(CHECKPOINT_EVERY - 1)?;
    ensure!(reached < 2 * CHECKPOINT_EVERY, "it was killed too late, at step {reached}");
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let round = Round {
        join: ms(joined.unwrap_or_default()),
        caught_up: ms(caught_up),
        first: first as f64,
        steps: reached - CHECKPOINT_EVERY,
    };
    Ok((round, shares(&journal)?))
}

/// The share of an act in the time that a peer trained.
#[derive(Debug)]
struct Share {
    act: String,
    percent: f64,
}

fn shares(journal: &Connection) -> Result<Vec<Share>> {
    let mut query = journal.prepare(
        "SELECT act, 100 * sum(ms) / (SELECT sum(ms) FROM timings AS whole WHERE whole.peer = timings.peer)
         FROM timings GROUP BY peer, act",
    )?;
    let rows = query.query_map([], |row| Ok(Share { act: row.get(0)?, percent: row.get(1)? }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Least, median and greatest.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// A connection to the coordinator that stays.
struct Calls {
    runtime: Runtime,
    client: CoordinatorClient<Channel>,
}

impl Calls {
    fn new(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(Endpoint::from_shared(url.to_owned())?.connect())?;
        Ok(Self { runtime, client: CoordinatorClient::new(channel) })
    }

    fn member(&self, name: &str) -> Result<wire::MemberStatus> {
        let mut client = self.client.clone();
        let status = self.runtime.block_on(client.status(wire::StatusRequest {}))?.into_inner();
        status.members.into_iter().find(|member| member.name == name).context("no such member")
    }
}

fn run_toml() -> String {
    format!(
        "[run]\nname = \"recovery\"\nseed = 1\nsteps = {STEPS}\ncheckpoint_every = {CHECKPOINT_EVERY}\n\
         [data]\ndataset = \"fashion-mnist\"\npath = {DATA:?}\ntrain_limit = 2000\nbatch = 64\n\
         [method]\nname = \"mcl\"\n[optim]\nlr = 0.05\n\
         [[peer]]\nname = \"a\"\narch = \"resnet8\"\n[[peer]]\nname = \"b\"\narch = \"resnet8\"\n"
    )
}
