//! The checkpoints on a peer's disk, kept and let go as `checkpoint::Store` does.

use std::collections::BTreeMap;

use cohort_proto::id::Step;

use crate::process::Trail;

/// One peer's checkpoints, by completed steps.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    keep: usize,
    files: BTreeMap<Step, Checkpoint>,
}

#[derive(Debug, Clone)]
struct Checkpoint {
    state: u64,
    trail: Trail,
    good: bool,
}

impl Disk {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, files: BTreeMap::new() }
    }

    /// Writes a checkpoint, and lets go of the oldest beyond `keep` of which nobody may have need.
    pub(crate) fn save(&mut self, step: Step, state: u64, trail: Trail, common: Step) {
        self.files.insert(step, Checkpoint { state, trail, good: true });
        let surplus = self.files.len().saturating_sub(self.keep);
        let old: Vec<Step> =
            self.files.keys().copied().take(surplus).filter(|old| *old < step.min(common)).collect();
        old.iter().for_each(|old| _ = self.files.remove(old));
    }

    pub(crate) fn remove_after(&mut self, step: Step) {
        self.files.retain(|saved, _| *saved <= step);
    }

    pub(crate) fn load(&self, step: Step) -> Option<(u64, &Trail)> {
        let good = self.files.get(&step).filter(|checkpoint| checkpoint.good);
        good.map(|checkpoint| (checkpoint.state, &checkpoint.trail))
    }

    /// All that are there, good or not.
    pub(crate) fn contains(&self, step: Step) -> bool {
        self.files.contains_key(&step)
    }

    /// Those that verify.
    pub(crate) fn verified(&self) -> Vec<Step> {
        self.files.iter().filter(|(_, checkpoint)| checkpoint.good).map(|(step, _)| *step).collect()
    }

    /// A bit of the newest one flips.
    pub(crate) fn damage_newest(&mut self) -> bool {
        let newest = self.files.values_mut().rev().find(|checkpoint| checkpoint.good);
        newest.map(|checkpoint| checkpoint.good = false).is_some()
    }
}
