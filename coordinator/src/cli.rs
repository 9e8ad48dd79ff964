//! The command line: raw arguments, what they mean, and the exit code of what happened.

mod serve;
mod query;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cohort_proto::exit::Exit;
use cohort_proto::spec::{RunSpec, SpecError};

/// The coordinator of a cohort: who is in, which steps may run, and what is durable.
#[derive(Debug, Parser)]
#[command(name = "cohort-coordinator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a run until it is over.
    Serve(ServeArgs),
    /// Print the batch plan of a run, one JSON object a line, or its graph.
    Plan(PlanArgs),
    /// Show how far a run is.
    Status(StatusArgs),
}

/// `serve`.
#[derive(Debug, Args)]
struct ServeArgs {
    /// The run.toml.
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4700")]
    listen: String,
    /// The folder of the journal; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Write the line that stdout gets to this file as well, once peers can call.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Do not warn that plain text is served beyond this host.
    #[arg(long)]
    insecure: bool,
}

/// `plan`.
#[derive(Debug, Args)]
struct PlanArgs {
    /// The run.toml.
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// The folder of the training data; otherwise run.toml's, or the usual ones.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only the first so many steps.
    #[arg(long, value_name = "K")]
    steps: Option<u64>,
    /// Print the graph of the run instead: every term of every peer's loss, with all defaults, and what travels for it.
    #[arg(long, conflicts_with_all = ["data", "steps"])]
    show_graph: bool,
    /// How to show the graph.
    #[arg(long, value_enum, default_value = "text", requires = "show_graph")]
    format: Format,
}

/// `status`.
#[derive(Debug, Args)]
struct StatusArgs {
    /// The coordinator, such as http://127.0.0.1:4700.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// How to show it.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A sentence for people and the code for scripts.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    sentence: String,
}

impl Failure {
    fn new(exit: Exit, sentence: impl ToString) -> Self {
        Self { exit, sentence: sentence.to_string() }
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::new(Exit::BadSpec, error)
    }
}

/// Does what the arguments say; the first of them is the program's name. Data go to stdout, words to stderr.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do about a closed terminal.
            _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Finished }.into();
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // A program that dispatches here may have its own subscriber already.
    _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    let done = match cli.command {
        Command::Serve(args) => serve::serve(&args),
        Command::Plan(args) => query::plan(&args),
        Command::Status(args) => query::status(&args),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(Failure { exit, sentence }) => {
            // A reader that has gone away does not change how a run ends.
            _ = writeln!(std::io::stderr(), "cohort-coordinator: {sentence}");
            exit.into()
        }
    }
}

fn load(path: &std::path::Path) -> Result<RunSpec, Failure> {
    Ok(RunSpec::load(path)?)
}
