//! `[run]` and `[policy]`.

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::section::Section;
use crate::id::{Step, is_name};
use crate::limits::{CHECKPOINTS_MAX, NAME_CHARS_MAX, PEERS_MAX, STEPS_MAX};

/// Most generations: the last checkpoint of each is kept.
const GENERATIONS_MAX: u64 = 100;

/// Milliseconds that a run may wait: 30 days.
const WAIT_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSection {
    /// The run's name.
    pub name: String,
    /// What batches, augmentation and initial weights are drawn from.
    pub seed: u64,
    /// How long it is.
    pub length: Length,
    /// Steps between two checkpoints.
    pub checkpoint_every: Step,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// How often every network is trained anew, each time with the one before as a frozen teacher.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub generations: u64,
}

fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_one(number: &u64) -> bool {
    *number == 1
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// So many passes over the data.
    Epochs(u64),
    /// Exactly so many steps.
    Steps(Step),
}

impl RunSection {
    /// Its number of generations is 0 if the section does not say it: then the method does.
    pub(super) fn read(mut section: Section) -> Result<Self, SpecError> {
        let name = section.text("name")?.unwrap_or_else(|| "run".to_owned());
        if !is_name(&name) {
            let rule = format!("{name:?} must be 1 to {NAME_CHARS_MAX} letters, digits, '-', '_' or '.'");
            return Err(section.error("name", rule));
        }
        // TOML integers are signed; a seed is any of the non-negative ones.
        let seed = section.whole("seed", 0..=i64::MAX as u64)?.unwrap_or(0);
        let epochs = section.whole("epochs", 1..=1_000_000)?;
        let steps = section.whole("steps", 1..=STEPS_MAX)?;
        let length = match (steps, epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, Some(epochs)) => Length::Epochs(epochs),
            (None, None) => {
                return Err(
                    section.missing("epochs", "write epochs = 20, or steps = 400 for an exact number")
                );
            }
        };
        let checkpoint_every = section.whole("checkpoint_every", 1..=STEPS_MAX)?.unwrap_or(200);
        let keep = section.whole("keep", 1..=CHECKPOINTS_MAX as u64)?.unwrap_or(3) as usize;
        let generations = section.whole("generations", 1..=GENERATIONS_MAX)?.unwrap_or(0);
        section.finish()?;
        Ok(Self { name, seed, length, checkpoint_every, keep, generations })
    }
}

/// `[policy]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// What the others do when a peer dies.
    pub on_failure: FailurePolicy,
    /// A peer that is silent for longer is dead.
    pub failure_timeout_ms: u64,
    /// How long the run waits for a peer that is gone, or a peer for its coordinator, before it stops with its state
    /// saved.
    pub wait_timeout_ms: u64,
    /// What happens when a peer that replays recomputes something else than before.
    pub on_divergence: DivergencePolicy,
    /// Fewer peers than this do not train.
    pub min_peers: usize,
}

impl PolicySpec {
    /// Whether so many peers are enough to train without the others.
    pub fn is_enough(&self, peers: usize) -> bool {
        peers >= self.min_peers.max(1)
    }
}

/// What happens when a peer that replays recomputes something else than before (another CPU type, a changed binary).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DivergencePolicy {
    /// The coordinator says so, and the run goes on.
    Warn,
    /// The run stops, with its state saved.
    Stop,
}

/// What the others do when a peer dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailurePolicy {
    /// Nobody goes on without it: the others wait until it has been started again and has caught up.
    Wait,
    /// The others go on without it; it joins them again when it has been started again.
    Continue,
}

impl PolicySpec {
    pub(super) fn read(mut section: Section, peers: usize) -> Result<Self, SpecError> {
        let on_failure = match section.text("on_failure")?.as_deref() {
            None | Some("wait") => FailurePolicy::Wait,
            Some("continue") => FailurePolicy::Continue,
            Some(other) => {
                let problem = format!("{other:?} is not known; write \"wait\" or \"continue\"");
                return Err(section.error("on_failure", problem));
            }
        };
        let failure_timeout_ms = section.whole("failure_timeout_ms", 200..=3_600_000)?.unwrap_or(10_000);
        let wait_timeout_ms = section.whole("wait_timeout_ms", 200..=WAIT_MS_MAX)?.unwrap_or(600_000);
        let on_divergence = match section.text("on_divergence")?.as_deref() {
            None | Some("warn") => DivergencePolicy::Warn,
            Some("stop") => DivergencePolicy::Stop,
            Some(other) => {
                let problem = format!("{other:?} is not known; write \"warn\" or \"stop\"");
                return Err(section.error("on_divergence", problem));
            }
        };
        let least = match on_failure {
            FailurePolicy::Wait => peers,
            FailurePolicy::Continue => peers.min(2),
        };
        let min_peers = section.whole("min_peers", 1..=PEERS_MAX as u64)?.map_or(least, |n| n as usize);
        if min_peers > peers {
            return Err(section.error("min_peers", format!("is {min_peers}, but the run has {peers} peers")));
        }
        section.finish()?;
        Ok(Self { on_failure, failure_timeout_ms, wait_timeout_ms, on_divergence, min_peers })
    }
}
