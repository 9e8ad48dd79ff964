//! The checkpoints on a host's disk, which outlives its processes; kept and let go as `checkpoint::Store` does.

use std::collections::BTreeMap;

use cohort_proto::id::{RunId, Step};

/// One peer's checkpoints, by completed steps.
#[derive(Debug)]
pub(crate) struct Disk {
    keep: usize,
    files: BTreeMap<Step, Checkpoint>,
}

#[derive(Debug, Clone, Copy)]
struct Checkpoint {
    run: RunId,
    state: u64,
    good: bool,
}

impl Disk {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, files: BTreeMap::new() }
    }

    /// Writes a checkpoint, and lets go of the oldest beyond `keep` of which nobody may have need.
    pub(crate) fn save(&mut self, run: RunId, step: Step, state: u64, common: Step) {
        self.files.insert(step, Checkpoint { run, state, good: true });
        let surplus = self.files.len().saturating_sub(self.keep);
        let old: Vec<Step> =
            self.files.keys().copied().take(surplus).filter(|old| *old < step.min(common)).collect();
        old.iter().for_each(|old| _ = self.files.remove(old));
    }

    pub(crate) fn remove_after(&mut self, step: Step) {
        self.files.retain(|saved, _| *saved <= step);
    }

    pub(crate) fn load(&self, step: Step) -> Option<u64> {
        self.files.get(&step).filter(|checkpoint| checkpoint.good).map(|checkpoint| checkpoint.state)
    }

    /// All that are there, good or not.
    pub(crate) fn contains(&self, step: Step) -> bool {
        self.files.contains_key(&step)
    }

    /// Those that verify, and the run that they belong to.
    pub(crate) fn verified(&self) -> Option<(RunId, Vec<Step>)> {
        let good = || self.files.iter().filter(|(_, checkpoint)| checkpoint.good);
        Some((good().next()?.1.run, good().map(|(step, _)| *step).collect()))
    }

    /// A bit of the newest one flips.
    pub(crate) fn damage_newest(&mut self) {
        if let Some(newest) = self.files.values_mut().rev().find(|checkpoint| checkpoint.good) {
            newest.good = false;
        }
    }
}
