//! Kills that wait for a moment which lasts a few milliseconds only.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use cohort_proto::rng::SplitMix64;

use crate::fleet::Fleet;
use crate::plan::Kind;
use crate::watch::Seen;

/// Begins the name of the folder that a checkpoint is while it is written.
const IN_PROGRESS: &str = ".checkpoint-in-progress";

/// How long to wait for the moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// How deep into writing a checkpoint the kill may come, in microseconds.
const CHECKPOINT_US: u64 = 4000;

/// Where it is worth aiming at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Targets {
    /// The steps that a meta-update follows.
    pub(crate) meta_steps: BTreeSet<u64>,
    /// How long a step takes.
    pub(crate) step: Duration,
}

/// A kill that waits.
#[derive(Debug)]
pub(crate) struct Aim {
    pub(crate) kind: Kind,
    pub(crate) dice: SplitMix64,
    since: Instant,
    delay: Duration,
    /// Whom of several to prefer.
    first: usize,
    /// Who is in the moment, and since when.
    sighted: Option<(usize, Instant)>,
}

impl Aim {
    /// At a checkpoint that is being written or a meta-update.
    pub(crate) fn at(kind: Kind, dice: &mut SplitMix64, targets: &Targets) -> Self {
        let delay_us = match kind {
            // A meta-update takes some steps' time.
            Kind::InMeta => dice.below(4 * targets.step.as_micros() as u64),
            _ => dice.below(CHECKPOINT_US),
        };
        let delay = Duration::from_micros(delay_us);
        let first = dice.below(64) as usize;
        Self { kind, dice: dice.clone(), since: Instant::now(), delay, first, sighted: None }
    }

    /// Whom to kill now; `Some(None)` if the moment did not come.
    pub(crate) fn hit(&mut self, fleet: &Fleet, seen: &Seen, targets: &Targets) -> Option<Option<usize>> {
        if self.sighted.is_none() {
            let mut peers = fleet.peers_up();
            let first = self.first.checked_rem(peers.len()).unwrap_or(0);
            peers.rotate_left(first);
            let sighted = peers.into_iter().find(|place| {
                let Some(slot) = fleet.slots.get(*place) else { return false };
                match self.kind {
                    Kind::InMeta => seen.members.get(&slot.name).is_some_and(|member| {
                        member.attending && targets.meta_steps.contains(&member.steps_done)
                    }),
                    _ => writes(&fleet.state_of(&slot.name)),
                }
            });
            self.sighted = sighted.map(|place| (place, Instant::now()));
        }
        match self.sighted {
            Some((place, at)) if at.elapsed() >= self.delay => Some(Some(place)),
            None if self.since.elapsed() > PATIENCE => Some(None),
            _ => None,
        }
    }
}

/// Whether a checkpoint is being written into a folder.
fn writes(state: &Path) -> bool {
    let entries = std::fs::read_dir(state).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(IN_PROGRESS))
}
