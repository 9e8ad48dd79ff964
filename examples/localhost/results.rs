//! What the networks are worth: evaluation by the same command that users have, the ensemble, the summary, the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cohort_peer::checkpoint::{Best, Store};
use cohort_peer::data;
use cohort_peer::evaluate::distance::Distances;
use cohort_peer::evaluate::groups::Grouped;
use cohort_peer::evaluate::{self, Metrics, answers, ensemble};
use cohort_peer::models::state;
use cohort_proto::dataset::{self, Split};
use cohort_proto::exit::Exit;
use cohort_proto::id::Digest;
use cohort_proto::spec::{Normalize, Role};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::Failure;
use crate::args::Job;
use crate::process::PEER;

/// The file of a checkpoint that has the weights.
const MODEL: &str = "model.safetensors";

/// One network after the run.
#[derive(Debug, Serialize)]
pub(crate) struct PeerResult {
    name: String,
    arch: String,
    steps: u64,
    #[serde(flatten)]
    metrics: Metrics,
    #[serde(flatten)]
    details: Details,
    /// SHA-256 of model.safetensors.
    weights_sha256: String,
    /// The network that was best on held-out samples, if any were.
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<BestResult>,
    /// Share of its step time spent publishing and waiting, over the steps that were seen.
    waiting_share: f64,
}

/// Part of what `eval` prints.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    /// Top-1 of each stage, where the method gives each a classifier, first stage first, in percent; the last is the
    /// network's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stage_top1: Vec<f64>,
    /// Top-1 of their aggregated logits, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aggregated_top1: Option<f64>,
    /// How far classes lie from those that the network takes them for, by classes and by samples.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    distances: Option<Distances>,
    /// What the run's groups of classes show, if it has any.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    groups: Option<Grouped>,
    /// Test images by label (rows) and answer (columns).
    confusion: Vec<Vec<u64>>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    method: String,
    peers: Vec<PeerResult>,
    /// Of the mean of the networks' probabilities.
    ensemble: Metrics,
    /// Of the mean of their logits.
    ensemble_of_logits: Metrics,
    /// Test images to which two networks give the same answer, percent: a row and a column each.
    agreement: Vec<Vec<f64>>,
    /// What every network was at the end of each generation, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    generations: Vec<Ancestry>,
    wall_s: f64,
}

/// A network chosen on held-out samples, on the test images.
#[derive(Debug, Serialize)]
struct BestResult {
    #[serde(flatten)]
    chosen: Best,
    #[serde(flatten)]
    metrics: Metrics,
}

/// The generations of one network.
#[derive(Debug, Serialize)]
struct Ancestry {
    name: String,
    /// Of each, first to last.
    generations: Vec<Metrics>,
    /// Of the mean of their probabilities.
    ensemble: Metrics,
}

/// The whole command.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    #[serde(flatten)]
    pub(crate) cohort: Results,
    /// The same networks without each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alone: Option<Results>,
}

/// Evaluates the last checkpoint of every peer.
///
/// # Errors
/// If one is missing or an evaluation fails.
pub(crate) async fn evaluate(
    job: &Job,
    waiting: BTreeMap<String, f64>,
    wall_s: f64,
) -> Result<Results, Failure> {
    let folder = data::folder(&job.spec.data, job.data.as_deref());
    let folder = folder.map_err(|error| Failure::new(Exit::BadData, error.to_string()))?;
    let labels = dataset::load_labels(&folder, job.spec.data.dataset, Split::Test, None);
    let labels = labels.map_err(|error| Failure::new(Exit::BadData, error.to_string()))?;
    let labels: Vec<usize> = labels.into_iter().map(usize::from).collect();
    let classes = job.spec.data.dataset.classes();
    let mut peers = Vec::new();
    let mut members = Vec::new();
    let mut generations = Vec::new();
    for peer in &job.spec.peers {
        let state = job.out.join("peers").join(peer.name.as_str());
        let (steps, weights) = last_checkpoint(&state)?;
        let logits_file = job.out.join(format!("logits-{}.safetensors", peer.name));
        let details = eval(job, &peer.arch, &weights, &folder, &logits_file).await?;
        let logits = read_logits(&logits_file)?;
        let metrics = evaluate::evaluate(&logits, classes, &labels).map_err(Failure::internal)?;
        if job.spec.run.generations > 1 && peer.role == Role::Student {
            let each = (steps / job.spec.run.generations).max(1);
            let mut ancestors = Vec::new();
            for generation in 1..job.spec.run.generations {
                let weights = state.join(format!("checkpoint-{}/{MODEL}", each * generation));
                let file = job.out.join(format!("logits-{}-{generation}.safetensors", peer.name));
                eval(job, &peer.arch, &weights, &folder, &file).await?;
                ancestors.push(read_logits(&file)?);
            }
            ancestors.push(logits.clone());
            generations.push(Ancestry::of(peer.name.to_string(), &ancestors, classes, &labels)?);
        }
        let bytes = fs::read(&weights).map_err(Failure::internal)?;
        let store = Store::open(&state, 1).map_err(Failure::internal)?;
        let best = match store.best() {
            Some(chosen) => {
                let file = job.out.join(format!("logits-{}-best.safetensors", peer.name));
                eval(job, &peer.arch, &store.best_weights(), &folder, &file).await?;
                let metrics = evaluate::evaluate(&read_logits(&file)?, classes, &labels);
                Some(BestResult { chosen, metrics: metrics.map_err(Failure::internal)? })
            }
            None => None,
        };
        peers.push(PeerResult {
            name: peer.name.to_string(),
            arch: peer.arch.clone(),
            steps,
            metrics,
            details,
            weights_sha256: Digest::of(&bytes).to_string(),
            best,
            waiting_share: waiting.get(peer.name.as_str()).copied().unwrap_or_default(),
        });
        members.push(logits);
    }
    let members: Vec<&[f64]> = members.iter().map(Vec::as_slice).collect();
    let worth = |logits: Vec<f64>| evaluate::evaluate(&logits, classes, &labels).map_err(Failure::internal);
    Ok(Results {
        method: job.spec.method_name().to_owned(),
        peers,
        ensemble: worth(ensemble::mean_of_softmax(&members, classes).map_err(Failure::internal)?)?,
        ensemble_of_logits: worth(ensemble::mean_of_logits(&members).map_err(Failure::internal)?)?,
        agreement: answers::agreement(&members, classes).map_err(Failure::internal)?,
        generations,
        wall_s,
    })
}

impl Ancestry {
    fn of(name: String, logits: &[Vec<f64>], classes: usize, labels: &[usize]) -> Result<Self, Failure> {
        let worth = |logits: &[f64]| evaluate::evaluate(logits, classes, labels).map_err(Failure::internal);
        let generations = logits.iter().map(|logits| worth(logits)).collect::<Result<_, _>>()?;
        let all: Vec<&[f64]> = logits.iter().map(Vec::as_slice).collect();
        let mean = ensemble::mean_of_softmax(&all, classes).map_err(Failure::internal)?;
        Ok(Self { name, generations, ensemble: worth(&mean)? })
    }

    /// A line of the closing table.
    fn words(&self) -> String {
        let each: Vec<String> = self.generations.iter().map(|m| format!("{:.2}", m.top1)).collect();
        let label = format!("generations of {}", self.name);
        format!("{label:<20} top-1 {}, all {:.2}\n", each.join(" "), self.ensemble.top1)
    }
}

fn last_checkpoint(peer: &Path) -> Result<(u64, PathBuf), Failure> {
    let entries = fs::read_dir(peer).into_iter().flatten().flatten();
    let steps =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok());
    let newest: Option<u64> = steps.max();
    let missing = || Failure::new(Exit::Storage, format!("no checkpoint in {}", peer.display()));
    newest.map(|step| (step, peer.join(format!("checkpoint-{step}")).join(MODEL))).ok_or_else(missing)
}

/// Runs `cohort-peer eval` as a process of its own, which writes the logits to a file.
async fn eval(job: &Job, arch: &str, weights: &Path, data: &Path, logits: &Path) -> Result<Details, Failure> {
    let program = std::env::current_exe().map_err(Failure::internal)?;
    let mut command = Command::new(program);
    command
        .args([PEER, "eval", "--arch", arch, "--dataset", job.spec.data.dataset.name(), "--weights"])
        .arg(weights);
    command.arg("--data").arg(data).arg("--logits").arg(logits);
    if let Normalize::By { mean, std } = &job.spec.data.normalize {
        let list = |numbers: &[f64]| numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        command.arg(format!("--mean={}", list(mean))).arg(format!("--std={}", list(std)));
    }
    if !job.spec.data.groups.is_empty() {
        let groups: Vec<String> = job.spec.data.groups.iter().map(u32::to_string).collect();
        command.args(["--groups", &groups.join(",")]);
    }
    let output = command.stdin(Stdio::null()).output().await.map_err(Failure::internal)?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map_err(Failure::internal);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Failure::internal(format!(
        "evaluating {}: {}",
        weights.display(),
        words.lines().last().unwrap_or_default()
    )))
}

fn read_logits(path: &Path) -> Result<Vec<f64>, Failure> {
    let tensors = state::load_safetensors(path).map_err(Failure::internal)?;
    let logits = tensors.get("logits").ok_or_else(|| Failure::internal("no logits were written"))?;
    let values = logits.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(Failure::internal)?;
    Ok(values.into_iter().map(f64::from).collect())
}

impl Summary {
    /// Writes `summary.json`.
    ///
    /// # Errors
    /// If that is not possible.
    pub(crate) fn write(&self, out: &Path) -> Result<(), Failure> {
        let path = out.join("summary.json");
        let text = serde_json::to_string_pretty(self).map_err(Failure::internal)?;
        let failed = |error| Failure::new(Exit::Storage, format!("cannot write {}: {error}", path.display()));
        fs::write(&path, text + "\n").map_err(failed)
    }

    /// The closing table.
    pub(crate) fn table(&self) -> String {
        let Self { cohort, alone } = self;
        let mut table = String::new();
        let mut row = |cells: [String; 5]| {
            let [name, together, alone, gain, waits] = cells;
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{name:<20} {together:>24} {alone:>24} {gain:>7} {waits:>7}");
        };
        let text = |words: &str| words.to_owned();
        row([
            text("test set"),
            format!("{}: top-1 top-5 NLL", cohort.method),
            text(alone.as_ref().map_or("", |_| "alone: top-1 top-5 NLL")),
            text(alone.as_ref().map_or("", |_| "gain")),
            text("waits"),
        ]);
        for (i, peer) in cohort.peers.iter().enumerate() {
            let other = alone.as_ref().and_then(|alone| alone.peers.get(i)).map(|peer| &peer.metrics);
            let waits = format!("{:.1} %", 100.0 * peer.waiting_share);
            row([
                format!("{} {}", peer.name, peer.arch),
                cells(Some(&peer.metrics)),
                cells(other),
                gain(&peer.metrics, other),
                waits,
            ]);
        }
        let other = alone.as_ref().map(|alone| &alone.ensemble);
        row([
            text("ensemble"),
            cells(Some(&cohort.ensemble)),
            cells(other),
            gain(&cohort.ensemble, other),
            String::new(),
        ]);
        if let Some(same) = cohort.mean_agreement() {
            let words = |same: f64| format!("{same:.2} % agree");
            let other = alone.as_ref().and_then(Results::mean_agreement);
            row([
                text("same answers"),
                words(same),
                other.map_or(String::new(), words),
                String::new(),
                String::new(),
            ]);
        }
        for peer in &cohort.peers {
            table.push_str(&peer.details.words(&peer.name));
            if let Some(BestResult { chosen, metrics }) = &peer.best {
                let label = format!("best of {}", peer.name);
                let (step, val) = (chosen.step, chosen.val_top1);
                let _ = writeln!(
                    table,
                    "{label:<20} top-1 {:.2}, chosen at step {step} (held out: {val:.2})",
                    metrics.top1
                );
            }
        }
        cohort.generations.iter().for_each(|ancestry| table.push_str(&ancestry.words()));
        let alone_s = alone.as_ref().map_or(String::new(), |alone| format!(" and {:.0} s", alone.wall_s));
        let _ = writeln!(
            table,
            "{} steps each, {:.0} s{alone_s} of wall time",
            cohort.peers.first().map_or(0, |peer| peer.steps),
            cohort.wall_s
        );
        table
    }
}

impl Results {
    /// Mean over the pairs of networks, if there are any.
    fn mean_agreement(&self) -> Option<f64> {
        let pairs: Vec<f64> =
            self.agreement.iter().enumerate().flat_map(|(place, row)| row[..place].iter().copied()).collect();
        (!pairs.is_empty()).then(|| pairs.iter().sum::<f64>() / pairs.len() as f64)
    }
}

impl Details {
    /// A line of the closing table, if there are stages to speak of.
    fn words(&self, peer: &str) -> String {
        let Self { stage_top1, aggregated_top1, .. } = self;
        if stage_top1.is_empty() {
            return String::new();
        }
        let stages: Vec<String> = stage_top1.iter().map(|top1| format!("{top1:.2}")).collect();
        let aggregated = aggregated_top1.map_or(String::new(), |top1| format!(", aggregated {top1:.2}"));
        format!("{:<20} top-1 {}{aggregated}\n", format!("stages of {peer}"), stages.join(" "))
    }
}

fn cells(metrics: Option<&Metrics>) -> String {
    metrics.map_or(String::new(), |m| format!("{:.2} {:.2} {:.4}", m.top1, m.top5, m.nll))
}

fn gain(together: &Metrics, alone: Option<&Metrics>) -> String {
    alone.map_or(String::new(), |alone| format!("{:+.2}", together.top1 - alone.top1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_where_there_are_some() {
        let rest = r#""top1": 84.5, "dist_c": 0.25, "dist_s": 0.5, "confusion": [[1, 0], [0, 1]]"#;
        let read = |printed: &str| serde_json::from_str::<Details>(&format!("{{{rest}{printed}}}")).unwrap();
        let words = |printed: &str| read(printed).words("a");
        let stages = r#", "stage_top1": [70.0, 84.5], "aggregated_top1": 85.125"#;
        assert_eq!(words(stages), "stages of a          top-1 70.00 84.50, aggregated 85.12\n");
        assert_eq!(words(""), "");
        let grouped = read(r#", "group_top1": 97.0, "dist_within": 0.5, "dist_between": null"#);
        let groups = Grouped { group_top1: 97.0, dist_within: Some(0.5), dist_between: None };
        assert_eq!((read("").groups, grouped.groups), (None, Some(groups)));
    }
}
