//! What to run: the built-in setting or a run.toml, changed by flags.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use cohort_peer::kernels::threads::allowed_cores;
use cohort_proto::exit::Exit;
use cohort_proto::limits::THREADS_MAX;
use cohort_proto::spec::{ARCHITECTURES, Length, RunSpec, SpecError};

use crate::Failure;

/// The setting that runs without arguments: about three minutes on two cores.
const SHORT: &str = include_str!("short.toml");

/// `--full`: all the data, the schedule of a real training.
const FULL: &str = include_str!("full.toml");

/// Trains a cohort on this machine: a coordinator and all peers as processes on loopback.
#[derive(Debug, Parser)]
#[command(name = "localhost", version)]
pub(crate) struct Args {
    /// The run to make; a short one on the bundled part of Fashion-MNIST if not given.
    #[arg(long)]
    run: Option<PathBuf>,
    /// The folder of the training and test data.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where everything is written; a run that was stopped there goes on. [default: a new folder under runs/]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The long version on all of Fashion-MNIST (from --data, or from Debian's package dataset-fashion-mnist).
    #[arg(long, conflicts_with = "run")]
    full: bool,
    /// The networks: how many, or their architectures, such as resnet8,wrn_10_1,resnet14.
    #[arg(long)]
    peers: Option<String>,
    /// Another seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Another number of epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Train the same networks alone as well, for comparison (the built-in settings do).
    #[arg(long, overrides_with = "no_baseline")]
    baseline: bool,
    /// Do not train the same networks alone.
    #[arg(long)]
    no_baseline: bool,
    /// CPU threads of each peer. [default: the cores, divided among the peers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX as i64))]
    threads: Option<u16>,
    /// Keep the CPU threads of each peer on cores of their own (Linux).
    #[arg(long)]
    pin: bool,
}

/// One run of processes.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The checked run spec.
    pub(crate) spec: RunSpec,
    /// Its text.
    pub(crate) text: String,
    /// The folder of the data, if not where the spec says.
    pub(crate) data: Option<PathBuf>,
    /// Where everything is written.
    pub(crate) out: PathBuf,
    /// CPU threads of each peer.
    pub(crate) threads: usize,
    /// The cores that the peers' threads stay on, those of the first peer first; none if they are free.
    pub(crate) cores: Vec<usize>,
}

/// Everything that one command does.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cohort: Job,
    /// The same networks without each other.
    pub(crate) alone: Option<Job>,
}

impl Args {
    /// Puts the run together.
    ///
    /// # Errors
    /// A run.toml or a flag that cannot be used.
    pub(crate) fn plan(&self) -> Result<Plan, Failure> {
        let builtin = if self.full { FULL } else { SHORT };
        let (text, folder) = match &self.run {
            None => (builtin.to_owned(), None),
            Some(path) => {
                let text = fs::read_to_string(path);
                let text = text.map_err(|e| {
                    Failure::new(Exit::BadSpec, format!("cannot read {}: {e}", path.display()))
                })?;
                (text, path.parent().map(Path::to_owned))
            }
        };
        let bad = |error: SpecError| Failure::new(Exit::BadSpec, self.in_file(&error.to_string()));
        // Errors are those of the file as it was written; only a good one is changed.
        RunSpec::parse(&text).map_err(bad)?;
        let text = self.changed(&text)?;
        let text = with_paths(&text, folder.as_deref())?;
        let spec = RunSpec::parse(&text).map_err(bad)?;
        let out = self.out.clone().unwrap_or_else(|| free_folder(&spec));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map(usize::from).unwrap_or_else(|| (cores / spec.peers.len()).max(1));
        let cores = if self.pin { self.cores(threads, spec.peers.len())? } else { Vec::new() };
        // `--full` must not find the part that is bundled, so it asks for all images.
        let data = self.data.clone().or_else(|| self.full.then(|| PathBuf::from(FULL_DATA)));
        let wants_baseline = !self.no_baseline && (self.baseline || self.run.is_none());
        let alone = match wants_baseline && spec.method_name() != "alone" {
            false => None,
            true => {
                let text = alone_text(&text)?;
                let spec = RunSpec::parse(&text).map_err(bad)?;
                Some(Job {
                    spec,
                    text,
                    data: data.clone(),
                    out: out.join("alone"),
                    threads,
                    cores: cores.clone(),
                })
            }
        };
        Ok(Plan { cohort: Job { spec, text, data, out, threads, cores }, alone })
    }

    /// As many cores as all threads of all peers together.
    fn cores(&self, threads: usize, peers: usize) -> Result<Vec<usize>, Failure> {
        let mut cores = allowed_cores();
        let wanted = threads.saturating_mul(peers);
        if cores.len() < wanted {
            let sentence = format!(
                "--pin: {peers} peers with {threads} threads each need {wanted} cores, this process may use {}; \
                 give fewer --threads or leave --pin out",
                cores.len()
            );
            return Err(Failure::new(Exit::Usage, sentence));
        }
        cores.truncate(wanted);
        Ok(cores)
    }

    fn in_file(&self, sentence: &str) -> String {
        match &self.run {
            Some(path) => format!("{}: {sentence}", path.display()),
            None => sentence.to_owned(),
        }
    }

    /// The text with what the flags change.
    fn changed(&self, text: &str) -> Result<String, Failure> {
        if self.seed.is_none() && self.epochs.is_none() && self.peers.is_none() {
            return Ok(text.to_owned());
        }
        let mut table: toml::Table = text.parse().map_err(Failure::internal)?;
        if let Some(toml::Value::Table(run)) = table.get_mut("run") {
            let whole = |flag: &str, number: u64| {
                let number = i64::try_from(number);
                number.map_err(|_| Failure::new(Exit::Usage, format!("{flag} must be below 2^63")))
            };
            if let Some(seed) = self.seed {
                run.insert("seed".into(), whole("--seed", seed)?.into());
            }
            if let Some(epochs) = self.epochs {
                run.remove("steps");
                run.insert("epochs".into(), whole("--epochs", epochs)?.into());
            }
        }
        if let Some(peers) = &self.peers {
            let architectures = architectures(peers, &RunSpec::parse(text).map_err(Failure::internal)?)?;
            let peer = |(i, arch): (usize, String)| {
                let name = if i < 26 { char::from(b'a' + i as u8).to_string() } else { format!("p{i}") };
                toml::Table::from_iter([("name".into(), name.into()), ("arch".into(), arch.into())])
            };
            let peers = architectures.into_iter().enumerate().map(peer).map(toml::Value::Table);
            table.insert("peer".into(), toml::Value::Array(peers.collect()));
            if let Some(toml::Value::Table(policy)) = table.get_mut("policy") {
                policy.remove("min_peers");
            }
        }
        toml::to_string(&table).map_err(Failure::internal)
    }
}

/// Where Debian's package dataset-fashion-mnist puts all the images.
const FULL_DATA: &str = "/usr/share/datasets/fashion-mnist";

/// `--peers`: a number takes the architectures of the run in turn; otherwise they are named.
fn architectures(flag: &str, spec: &RunSpec) -> Result<Vec<String>, Failure> {
    let bad = |why: String| Failure::new(Exit::Usage, format!("--peers {flag}: {why}"));
    if let Ok(count) = flag.parse::<usize>() {
        let own: Vec<String> = spec.peers.iter().map(|peer| peer.arch.clone()).collect();
        if count == 0 || count > cohort_proto::limits::PEERS_MAX {
            return Err(bad("a run has at least one peer and at most a thousand".into()));
        }
        return Ok(own.into_iter().cycle().take(count).collect());
    }
    let named: Vec<String> = flag.split(',').map(|arch| arch.trim().to_owned()).collect();
    match named.iter().find(|arch| !ARCHITECTURES.contains(&arch.as_str())) {
        Some(unknown) => {
            Err(bad(format!("{unknown:?} is not an architecture (known: {})", ARCHITECTURES.join(", "))))
        }
        None => Ok(named),
    }
}

/// The text with paths that no longer depend on the folder of the file, since the coordinator reads a copy of it.
fn with_paths(text: &str, folder: Option<&Path>) -> Result<String, Failure> {
    let Some(folder) = folder else { return Ok(text.to_owned()) };
    let mut spec = RunSpec::parse(text).map_err(Failure::internal)?;
    spec.resolve_paths(folder);
    let mut table: toml::Table = text.parse().map_err(Failure::internal)?;
    let set = |section: Option<&mut toml::Value>, key: &str, path: &Option<PathBuf>| {
        if let (Some(toml::Value::Table(section)), Some(path)) = (section, path) {
            section.insert(key.into(), path.display().to_string().into());
        }
    };
    set(table.get_mut("data"), "path", &spec.data.path);
    if let Some(toml::Value::Array(peers)) = table.get_mut("peer") {
        for (section, peer) in peers.iter_mut().zip(&spec.peers) {
            set(Some(section), "init", &peer.init);
        }
    }
    toml::to_string(&table).map_err(Failure::internal)
}

/// The same run with every network by itself.
fn alone_text(text: &str) -> Result<String, Failure> {
    let mut table: toml::Table = text.parse().map_err(Failure::internal)?;
    let method = toml::Table::from_iter([("name".to_owned(), "alone".into())]);
    table.insert("method".into(), toml::Value::Table(method));
    table.remove("edge");
    if let Some(toml::Value::Table(run)) = table.get_mut("run") {
        run.remove("generations");
    }
    toml::to_string(&table).map_err(Failure::internal)
}

/// A folder under `runs/` that does not exist yet.
fn free_folder(spec: &RunSpec) -> PathBuf {
    let named = |n: u32| Path::new("runs").join(format!("{}-seed{}-{n}", spec.run.name, spec.run.seed));
    (1..).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(0))
}

impl Plan {
    /// What is about to happen, in a line or two.
    pub(crate) fn introduction(&self) -> String {
        let Job { spec, threads, .. } = &self.cohort;
        let peers: Vec<String> =
            spec.peers.iter().map(|peer| format!("{} ({})", peer.name, peer.arch)).collect();
        let length = match spec.run.length {
            Length::Epochs(epochs) => format!("{epochs} epochs"),
            Length::Steps(steps) => format!("{steps} steps"),
        };
        let length = match spec.run.generations {
            1 => length,
            several => format!("{several} generations of {length}"),
        };
        let images = spec.data.train_limit.map_or("all".to_owned(), |limit| limit.to_string());
        let then = if self.alone.is_some() { ", then the same networks alone" } else { "" };
        format!(
            "{} on {images} training images of {}, {length}, {} threads a peer: {}{then}",
            spec.method_name(),
            spec.data.dataset,
            threads,
            peers.join(" and "),
        )
    }
}
