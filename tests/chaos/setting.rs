//! The run that is disturbed: a small one made here, or somebody's run.toml.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cohort_proto::spec::{FailurePolicy, RunSpec};
use cohort_tests::DATA;

use crate::args::Args;

/// Two small families, so that peers differ.
const ARCHITECTURES: [&str; 2] = ["resnet6", "resnet8"];

/// Steps of the small run for each kill: enough for a kill to hit a run that has got over the one before, and for a
/// checkpoint in between.
const STEPS_PER_KILL: u64 = 20;

/// Steps of the small run at least.
const STEPS_MIN: u64 = 100;

/// A silence of this many milliseconds is a death, in the small run.
const FAILURE_TIMEOUT_MS: u64 = 2000;

/// A run to disturb.
#[derive(Debug)]
pub(crate) struct Setting {
    text: String,
    pub(crate) spec: RunSpec,
    /// Whether the others wait for a peer that died; if not, they go on without it.
    pub(crate) waits: bool,
}

impl Setting {
    /// What the arguments ask for.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let text = match &args.run {
            Some(path) => {
                let text =
                    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                changed(&text, path, args)?
            }
            None => small(args),
        };
        let spec = RunSpec::parse(&text).map_err(|error| anyhow::anyhow!("run.toml: {error}"))?;
        let waits = spec.policy.on_failure == FailurePolicy::Wait;
        Ok(Self { text, spec, waits })
    }

    /// Writes run.toml, which all processes of both runs read.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        Ok(fs::write(folder.join("run.toml"), &self.text)?)
    }

    /// The names of the peers in order.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &str> {
        self.spec.peers.iter().map(|peer| peer.name.as_str())
    }
}

/// The small run.
fn small(args: &Args) -> String {
    let steps = args.steps.unwrap_or_else(|| STEPS_MIN.max(STEPS_PER_KILL * args.kills));
    let policy = args.policy.map_or("wait", |policy| policy.name());
    let least = match policy {
        "continue" => "min_peers = 1\n",
        _ => "",
    };
    let peers = (0..args.peers).zip(ARCHITECTURES.iter().cycle()).map(|(i, arch)| {
        let name = char::from(b'a' + u8::try_from(i).unwrap_or(25));
        format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n")
    });
    // Few dimensions and frequent meta-updates keep l-mcl as quick as the others.
    let more = if args.method == "l-mcl" {
        "feat_dim = 16\nmeta_freq = 4\nmeta_times = 1\nmeta_precision = \"f32\"\n"
    } else {
        ""
    };
    format!(
        "[run]\nname = \"chaos\"\nseed = 7\nsteps = {steps}\ncheckpoint_every = 10\n\
         [data]\ndataset = \"fashion-mnist\"\npath = {DATA:?}\ntrain_limit = 200\nbatch = 16\n\
         [method]\nname = {:?}\n{more}[optim]\nlr = 0.02\n\
         [policy]\non_failure = \"{policy}\"\nfailure_timeout_ms = {FAILURE_TIMEOUT_MS}\n{least}{}",
        args.method,
        peers.collect::<String>()
    )
}

/// Somebody's run with the policy and the length that the arguments ask for, and paths that hold from any folder.
fn changed(text: &str, path: &Path, args: &Args) -> Result<String> {
    let mut spec = RunSpec::parse(text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    spec.resolve_paths(&path.canonicalize()?.parent().map(Path::to_owned).unwrap_or_default());
    let mut table: toml::Table = text.parse()?;
    if let Some(policy) = args.policy {
        section(&mut table, "policy")?.insert("on_failure".into(), policy.name().into());
    }
    if let Some(steps) = args.steps {
        let run = section(&mut table, "run")?;
        run.remove("epochs");
        run.insert("steps".into(), i64::try_from(steps)?.into());
    }
    if let Some(data) = &spec.data.path {
        section(&mut table, "data")?.insert("path".into(), data.display().to_string().into());
    }
    if let Some(toml::Value::Array(peers)) = table.get_mut("peer") {
        for (section, peer) in peers.iter_mut().zip(&spec.peers) {
            if let (toml::Value::Table(section), Some(init)) = (section, &peer.init) {
                section.insert("init".into(), init.display().to_string().into());
            }
        }
    }
    Ok(toml::to_string(&table)?)
}

/// A section of run.toml, made if it is not there.
fn section<'a>(table: &'a mut toml::Table, name: &str) -> Result<&'a mut toml::Table> {
    let entry = table.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    entry.as_table_mut().with_context(|| format!("run.toml: {name} is no section"))
}
