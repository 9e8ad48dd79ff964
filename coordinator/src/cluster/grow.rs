//! How a peer that the others went on without joins them again, under `on_failure = "continue"`: in a view that begins
//! where the lease ends. No member can have taken a step from there on, so nothing has to be agreed upon first. The peer
//! takes the weights of its newest checkpoint, and saves them under the number of the step at which it comes in: from
//! there on it can be replayed like anybody else.

use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::control::{Start, ToPeer};

use super::{Cluster, Stage, Training, note};
use crate::event::{Action, Tick};

/// One that lives and was lost to the others.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bar {
    /// Until then it may not come in again.
    until: Option<Tick>,
    /// How often it was lost.
    times: u32,
}

impl Cluster {
    /// Takes in all who attend and are in no view.
    pub(super) fn take_in_waiting(&mut self, now: Tick, out: &mut Vec<Action>) {
        let Some(Training { lease, .. }) = &self.training else { return };
        let (begins_at, is_late) = (lease.until(), lease.reaches_the_end());
        let quiet = matches!(self.stage, Stage::Running) && self.flush.is_none() && self.all_here();
        // Whoever is behind, or replays, may still need what was relayed of the one that comes in.
        let slowest = self.reached_by_all_but(&BTreeSet::new());
        let settled = self.view().is_some_and(|view| slowest >= view.begins_at);
        if !quiet || !settled || is_late || !self.all_started() {
            return;
        }
        let mut members = self.in_view();
        let waits = |index: &usize| {
            !members.contains(index) && self.members.attends(*index) && !self.is_barred(*index)
        };
        let waiting: BTreeSet<usize> = (0..self.members.peers().len()).filter(waits).collect();
        let Some(data) = self.members.data().filter(|_| !waiting.is_empty()) else { return };
        members.extend(&waiting);
        let mut brought = BTreeMap::new();
        for index in &waiting {
            self.members.starts(*index, begins_at);
            let Some(training) = &self.training else { return };
            brought.insert(*index, training.lease.newest_until(*index, begins_at));
        }
        self.begin_view(now, begins_at, &members, data, out);
        self.stand_down(brought.keys().copied(), out);
        self.say_views(&self.members.streams(), out);
        for (index, checkpoint) in brought {
            let Some(training) = &mut self.training else { return };
            training.relayed_by.remove(&index);
            training.diverged.remove(&index);
            let start = Start { step: begins_at, checkpoint };
            training.told.insert(index, start);
            let streams = self.members.streams_of([index]);
            out.push(Action::Send { streams, message: ToPeer::Start(start) });
            let name = self.members.name(index);
            note(
                out,
                false,
                format!(
                    "peer {name} comes in at step {begins_at} with its checkpoint of {} steps",
                    start.checkpoint
                ),
            );
        }
        self.after_progress(now, out);
    }

    /// Whether every member of the view was told where to start.
    pub(super) fn all_started(&self) -> bool {
        self.in_view().iter().all(|index| self.members.log_from(*index).is_some())
    }

    /// One that lives and was not heard by the others may come in again only after a while, which doubles each time.
    pub(super) fn bar(&mut self, now: Tick, index: usize) {
        let times = self.barred.get(&index).map_or(0, |bar| bar.times) + 1;
        let ms = self.spec.policy.failure_timeout_ms.saturating_mul(1 << times.min(10));
        self.barred.insert(index, Bar { until: Some(now.plus(ms)), times });
    }

    /// Whether one may not come in.
    pub(super) fn is_barred(&self, index: usize) -> bool {
        self.barred.get(&index).is_some_and(|bar| bar.until.is_some())
    }

    /// When the next peer may come in again.
    pub(super) fn next_unbarred(&self) -> Option<Tick> {
        self.barred.values().filter_map(|bar| bar.until).min()
    }

    /// Those whose time is over may come in again.
    pub(super) fn unbar(&mut self, now: Tick) {
        for bar in self.barred.values_mut() {
            bar.until = bar.until.filter(|until| now < *until);
        }
    }
}
