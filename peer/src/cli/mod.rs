//! Arguments → configuration → run → exit code. Data go to stdout, words to stderr.

mod join;
mod network;
mod eval;
mod probe;
mod bench;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cohort_proto::exit::Exit;
use cohort_proto::id::PeerName;
use cohort_proto::limits::THREADS_MAX;
use cohort_proto::spec::DeviceSpec;

use crate::error::PeerError;
use crate::kernels::threads::{self, Threads};

/// One peer of a cohort: trains its own network and learns from what the others say.
#[derive(Debug, Parser)]
#[command(name = "cohort-peer", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a run and train to its end.
    Join(JoinArgs),
    /// Measure weights on a test set; metrics as JSON on stdout.
    Eval(EvalArgs),
    /// Measure how well a linear classifier tells the classes of another data set from a network's features; JSON on stdout.
    Probe(ProbeArgs),
    /// Measure the throughput of training steps; JSON on stdout.
    Bench(BenchArgs),
}

#[derive(Debug, clap::Args)]
struct JoinArgs {
    /// Where the coordinator listens, such as http://127.0.0.1:4700.
    #[arg(long)]
    coordinator: String,
    /// Which peer of the run this is.
    #[arg(long)]
    name: PeerName,
    /// cpu, cuda:N or metal; what the run spec says if not given.
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// The folder of the training data; what the run spec says if not given.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where to listen for the peers that follow this one [default: any port on the interface to the coordinator].
    #[arg(long)]
    listen: Option<String>,
    /// The address (host or host:port) that those peers are told [default: the one that is listened on].
    #[arg(long)]
    advertise: Option<String>,
    #[command(flatten)]
    cpu: CpuArgs,
    /// The folder of checkpoints [default: runs/RUN/peers/NAME].
    #[arg(long)]
    state: Option<PathBuf>,
    /// Serve plain text beyond loopback without a warning.
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, clap::Args)]
struct EvalArgs {
    /// The architecture, such as resnet20.
    #[arg(long)]
    arch: String,
    /// The weights: a model.safetensors.
    #[arg(long)]
    weights: PathBuf,
    /// Another network, ARCH:FILE; may stand several times. Then agreement and ensembles are measured as well.
    #[arg(long, value_name = "ARCH:FILE")]
    with: Vec<network::Weights>,
    #[command(flatten)]
    data: DataArgs,
    /// Write the logits of --weights, f32 [N, classes] in file order, to this file.
    #[arg(long)]
    logits: Option<PathBuf>,
    /// The group of each class, such as 0,0,1: also measure how groups are confused, and how far apart they are.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<u32>,
    #[command(flatten)]
    cpu: CpuArgs,
}

#[derive(Debug, clap::Args)]
struct ProbeArgs {
    /// The architecture, such as resnet20.
    #[arg(long)]
    arch: String,
    /// The weights: a model.safetensors. They stay as they are.
    #[arg(long)]
    weights: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Train the classifier on the first so many training images [default: all].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Passes over them; after 30, 60 and 90 % of these the rate falls to a tenth.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: u32,
    /// Features in a batch.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// The first learning rate, of SGD with momentum 0.9.
    #[arg(long, default_value_t = 0.1, value_parser = rate)]
    lr: f64,
    /// Decides the classifier's first weights and the order of the images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    cpu: CpuArgs,
}

#[derive(Debug, clap::Args)]
struct DataArgs {
    /// The data set, such as fashion-mnist.
    #[arg(long)]
    dataset: String,
    /// Its folder.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Mean of each channel, if the images are normalised otherwise than the data set's usually are.
    #[arg(long, value_delimiter = ',', requires = "std")]
    mean: Vec<f64>,
    /// Deviation of each channel.
    #[arg(long, value_delimiter = ',', requires = "mean")]
    std: Vec<f64>,
}

#[derive(Debug, clap::Args)]
struct BenchArgs {
    /// The architecture, such as resnet20.
    #[arg(long)]
    arch: String,
    /// How it learns: from an echo of itself, unless alone.
    #[arg(long, value_enum, default_value_t = BenchMethod::Alone)]
    method: BenchMethod,
    /// Channels x height x width.
    #[arg(long, default_value = "3x32x32")]
    image: String,
    /// Classes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    classes: u32,
    /// Images in a batch.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Steps that are measured, after a few that are not.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    #[command(flatten)]
    cpu: CpuArgs,
}

#[derive(Debug, clap::Args)]
struct CpuArgs {
    /// CPU threads [default: all cores, or one for each of --cores].
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = threads_in_range)]
    threads: usize,
    /// Keep the threads on these cores, such as 0,1 (Linux) [default: wherever the system puts them].
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
}

impl From<&CpuArgs> for Threads {
    fn from(cpu: &CpuArgs) -> Self {
        Self { count: cpu.threads, cores: cpu.cores.clone() }
    }
}

/// The methods that can be measured, each with its usual hyper-parameters.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum BenchMethod {
    Alone,
    Dml,
    Mcl,
    #[value(name = "l-mcl")]
    LMcl,
}

/// More threads than any machine has cores are a slip of the hand.
fn threads_in_range(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if threads <= THREADS_MAX => Ok(threads),
        _ => Err(format!("must be 0 (all cores) to {THREADS_MAX}")),
    }
}

/// A learning rate.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err("must be a positive number".to_owned()),
    }
}

/// Runs the command line. Call it first in a process: it sets up threads and memory before anything else runs.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, not errors, and go to stdout with exit 0.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Finished.into() };
        }
    };
    let cpu = match &args.command {
        Command::Join(join) => &join.cpu,
        Command::Eval(eval) => &eval.cpu,
        Command::Probe(probe) => &probe.cpu,
        Command::Bench(bench) => &bench.cpu,
    };
    let threads = match threads::init(cpu.into()) {
        Ok(threads) => threads,
        Err(error) => return failed(&PeerError::Usage(error.to_string())),
    };
    log_to_stderr();
    let result = match args.command {
        Command::Join(args) => join::run(args),
        Command::Eval(args) => eval::run(args).map(|()| Exit::Finished),
        Command::Probe(args) => probe::run(args).map(|()| Exit::Finished),
        Command::Bench(args) => bench::run(&args, threads).map(|()| Exit::Finished),
    };
    result.map_or_else(|error| failed(&error), ExitCode::from)
}

/// A line on stderr. A reader that has gone away does not change how a run ends.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One clear sentence and the exit code.
fn failed(error: &PeerError) -> ExitCode {
    say(&format!("cohort-peer: {error}"));
    error.exit().into()
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    // A second subscriber in one process is refused; the first goes on.
    let _ = subscriber.try_init();
}

/// Prints a value as one line of JSON; a reader that has gone away is not an error.
fn print_json(value: &impl serde::Serialize) -> Result<(), PeerError> {
    use std::io::Write;
    let text = serde_json::to_string(value).map_err(|error| PeerError::Internal(error.to_string()))?;
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}
