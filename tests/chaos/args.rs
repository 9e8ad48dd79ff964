//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Disturbs a small real cohort in every way there is, and compares its end with that of one that nobody disturbs.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos", version)]
pub(crate) struct Args {
    /// What everything random is drawn from.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many times something is killed; pauses, graceful stops and partitions come on top.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub(crate) kills: u64,
    /// The run to disturb; a small one on the bundled part of Fashion-MNIST if not given.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peers", "method"])]
    pub(crate) run: Option<PathBuf>,
    /// What the others do when a peer dies; what the run says if not given.
    #[arg(long, value_enum)]
    pub(crate) policy: Option<Policy>,
    /// Peers of the small run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=26))]
    pub(crate) peers: u16,
    /// Method of the small run.
    #[arg(long, default_value = "mcl")]
    pub(crate) method: String,
    /// Steps of the run; by default as many as the kills need, or what the run says.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) steps: Option<u64>,
    /// How to say how it went.
    #[arg(long, value_enum, default_value = "json")]
    pub(crate) format: Format,
    /// Write everything to this folder, and leave it there.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_dir: Option<PathBuf>,
    /// Do without network namespaces even where they are permitted.
    #[arg(long)]
    pub(crate) no_partitions: bool,
}

/// What the others do when a peer dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// They wait for it.
    Wait,
    /// They go on without it.
    Continue,
}

/// How to say how it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object.
    Json,
    /// A few lines for people.
    Text,
}

impl Policy {
    /// As run.toml spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Continue => "continue",
        }
    }
}

impl Args {
    /// The command that repeats this.
    pub(crate) fn command(&self) -> String {
        let mut words =
            format!("cargo run --release --bin chaos -- --seed {} --kills {}", self.seed, self.kills);
        match &self.run {
            Some(run) => words.push_str(&format!(" --run {}", run.display())),
            None => words.push_str(&format!(" --peers {} --method {}", self.peers, self.method)),
        }
        if let Some(policy) = self.policy {
            words.push_str(&format!(" --policy {}", policy.name()));
        }
        if let Some(steps) = self.steps {
            words.push_str(&format!(" --steps {steps}"));
        }
        if self.no_partitions {
            words.push_str(" --no-partitions");
        }
        words
    }
}
