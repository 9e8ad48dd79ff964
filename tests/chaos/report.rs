//! How it went: one JSON object, or the same as a few lines.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::args::Args;
use crate::plan::Kind;
use crate::recovery::Recovery;
use crate::setting::Setting;
use crate::supervise::Outcome;
use crate::verdict::Verdict;

/// Everything that there is to say.
pub(crate) fn json(
    args: &Args,
    setting: &Setting,
    calm: &Outcome,
    rough: &Outcome,
    verdict: &Verdict,
) -> Value {
    let kinds = |kills: bool| -> BTreeMap<&str, u64> {
        let these = rough.tally.kinds.iter().filter(|(kind, _)| kind.kills() == kills);
        these.map(|(kind, times)| (kind.name(), *times)).collect()
    };
    let all_kills: u64 =
        rough.tally.kinds.iter().filter(|(kind, _)| Kind::kills(**kind)).map(|(_, n)| n).sum();
    json!({
        "seed": args.seed,
        "held": verdict.failures.is_empty(),
        "failures": verdict.failures,
        "method": setting.spec.method_name(),
        "policy": if setting.waits { "wait" } else { "continue" },
        "peers": setting.peers().collect::<Vec<_>>(),
        "kills": kinds(true),
        "kills_in_all": all_kills,
        "processes_killed": rough.tally.killed,
        "other_disturbances": kinds(false),
        "checkpoints_damaged": rough.tally.damaged,
        "disturbances_left": rough.left,
        "unasked_stops": rough.tally.unasked,
        "fallbacks": rough.tally.fallbacks,
        "steps": verdict.steps,
        "views": verdict.views,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "disagreements": verdict.disagreements,
        "weights_identical": verdict.weights_identical,
        "optimizers_identical": verdict.optimizers_identical,
        "weights_sha256": verdict.weights,
        "longest_stall_ms": rough.stalls.longest.as_millis() as u64,
        "longest_untroubled_stall_ms": rough.stalls.untroubled.as_millis() as u64,
        "undisturbed_step_ms": tenth(step_ms(calm)),
        "recovery": recovery(&rough.recoveries, step_ms(calm)),
        "recoveries": rough.recoveries.iter().map(one).collect::<Vec<_>>(),
        "peak_rss_mb": peaks(rough),
        "undisturbed_peak_rss_mb": peaks(calm),
        "undisturbed_wall_s": tenth(calm.wall_s),
        "wall_s": tenth(rough.wall_s),
        "repeat": args.command(),
        "kept": Value::Null,
    })
}

/// The object, with the folder in which everything was left.
pub(crate) fn kept(mut report: Value, folder: &Path) -> Value {
    report["kept"] = folder.display().to_string().into();
    report
}

/// A few lines for people.
pub(crate) fn text(report: &Value) -> String {
    let mut text = String::new();
    for key in [
        "held",
        "failures",
        "policy",
        "method",
        "steps",
        "kills",
        "processes_killed",
        "other_disturbances",
        "checkpoints_damaged",
        "lost",
        "doubled",
        "disagreements",
        "weights_identical",
        "longest_stall_ms",
        "recovery",
        "peak_rss_mb",
        "undisturbed_wall_s",
        "wall_s",
        "repeat",
        "kept",
    ] {
        text.push_str(&format!("{key:<20} {}\n", report[key]));
    }
    text
}

/// What a step takes when nobody disturbs it.
pub(crate) fn step_ms(calm: &Outcome) -> f64 {
    let first_at = calm.seen.members.values().map(|member| &member.first_at);
    let pace = first_at.filter_map(|at| {
        let ((from, began), (to, ended)) = (at.first_key_value()?, at.last_key_value()?);
        let steps = to.checked_sub(*from).filter(|steps| *steps > 0)?;
        Some(ended.duration_since(*began).as_secs_f64() * 1000.0 / steps as f64)
    });
    pace.fold(0.0, f64::max)
}

fn one(recovery: &Recovery) -> Value {
    json!({
        "peer": recovery.peer,
        "from": recovery.from,
        "reached": recovery.reached,
        "joined_ms": tenth(recovery.joined_ms),
        "caught_up_ms": tenth(recovery.caught_up_ms),
        "first_ms": tenth(recovery.first_ms),
        "undisturbed_by_others": recovery.alone,
    })
}

/// Medians over the recoveries during which nobody else was disturbed: from the start of the process to having caught up,
/// what of it passed before it had joined, and the replay per lost step as a multiple of an undisturbed step.
fn recovery(all: &[Recovery], step_ms: f64) -> Value {
    let alone: Vec<&Recovery> = all.iter().filter(|each| each.alone).collect();
    let of = |what: &dyn Fn(&Recovery) -> f64| tenth(median(alone.iter().map(|each| what(each)).collect()));
    let replay = |each: &Recovery| {
        let lost = each.reached.saturating_sub(each.from).max(1) as f64;
        (each.caught_up_ms - each.joined_ms) / (lost * step_ms.max(1e-3))
    };
    json!({
        "in_all": all.len(),
        "undisturbed_by_others": alone.len(),
        "median_lost_steps": of(&|each| each.reached.saturating_sub(each.from) as f64),
        "median_caught_up_ms": of(&|each| each.caught_up_ms),
        "median_joined_ms": of(&|each| each.joined_ms),
        "median_replay_over_undisturbed": (100.0 * median(alone.iter().map(|each| replay(each)).collect())).round() / 100.0,
    })
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

fn peaks(outcome: &Outcome) -> BTreeMap<&str, f64> {
    outcome.peak_rss_mb.iter().map(|(name, mb)| (name.as_str(), tenth(*mb))).collect()
}

fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
