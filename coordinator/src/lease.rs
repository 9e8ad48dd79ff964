//! Which steps are granted, and which log entries are still needed. Sans-IO; knows members by index only.

use std::collections::BTreeSet;

use cohort_proto::id::Step;
use cohort_proto::limits::{CHECKPOINTS_MAX, LEASE_SPAN, LEASE_STEPS_MAX, LEASE_STEPS_MIN};

use crate::event::Tick;

/// The steps that members may take, and how far each is.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    until: Step,
    total: Step,
    members: Vec<Progress>,
    /// The fewest completed steps of any member, and since when.
    slowest: Step,
    slowest_since: Tick,
    /// Recent time per step of the slowest member, in microseconds.
    pace_us: Option<u64>,
    retain_from: Step,
}

/// How far a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Whether it is in the view that holds: only then do the others wait for it.
    pub in_view: bool,
    /// Steps that are on record.
    pub completed: Step,
    /// The step that its next report is about: less than `completed` while it replays.
    pub next: Step,
    /// Checkpoints that it may go back to, by completed steps; fresh weights (0) always.
    pub checkpoints: BTreeSet<Step>,
    /// All that are on its disk: it comes in with the newest.
    pub on_disk: BTreeSet<Step>,
    /// Whether it said itself where it is. The journal does not know of a replay under way, nor of what is on its disk no
    /// more.
    pub is_known: bool,
}

impl Progress {
    /// A member of which so many steps are on record, and these checkpoints.
    pub fn new(completed: Step, checkpoints: impl IntoIterator<Item = Step>) -> Self {
        let checkpoints: BTreeSet<Step> = checkpoints.into_iter().chain([0]).collect();
        let on_disk = checkpoints.clone();
        Self { in_view: true, completed, next: completed, checkpoints, on_disk, is_known: true }
    }
}

/// What a report tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A step that is complete for the first time.
    New,
    /// One that a replay has taken again.
    Again,
}

/// A report that does not continue its sender's trajectory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// A step came twice.
    #[error("reported step {got} again: step {expected} is its next")]
    Doubled {
        /// The step that came.
        got: Step,
        /// The one that was due.
        expected: Step,
    },
    /// Steps in between are missing.
    #[error("reported step {got}, but step {expected} was never reported: a step is lost")]
    Lost {
        /// The step that came.
        got: Step,
        /// The one that was due.
        expected: Step,
    },
    /// A step that was not granted.
    #[error("took step {got}, but its lease ends before step {until}")]
    BeyondLease {
        /// The step that came.
        got: Step,
        /// The end of the lease.
        until: Step,
    },
}

impl Lease {
    /// Members as far as they are; steps below `until` were granted by an earlier start of the coordinator.
    pub fn new(now: Tick, total: Step, members: Vec<Progress>, until: Step) -> Self {
        let mut lease =
            Self { until, total, members, slowest: 0, slowest_since: now, pace_us: None, retain_from: 0 };
        lease.slowest = lease.in_view().map(|member| member.completed).min().unwrap_or(0);
        lease.until = until.max(lease.slowest).min(total);
        lease.retain_from = lease.common();
        lease
    }

    /// Logs reached back to a step under an earlier start of the coordinator, and no further.
    pub fn was_retained(&mut self, from: Step) {
        self.retain_from = self.retain_from.max(from);
    }

    fn in_view(&self) -> impl Iterator<Item = &Progress> {
        self.members.iter().filter(|member| member.in_view)
    }

    /// The newest checkpoint that every member of the view holds and that none has still to reach, by what is on record:
    /// nobody will ask for anything from before it, and whoever starts there reports all that is not on record. 0 until all
    /// have said where they are.
    pub fn common(&self) -> Step {
        if !self.all_known() {
            return 0;
        }
        newest_behind_all(&self.in_view().collect::<Vec<_>>(), |member| member.next)
    }

    /// Whether a checkpoint of a member counts.
    pub fn counts(&self, member: usize, step: Step) -> bool {
        self.checkpoints(member).is_some_and(|held| held.contains(&step))
    }

    /// From a step on these members are in the view. One that was not has nothing to take before it. Of all others nothing
    /// counts from there on, be it that they are no members any more, or that they replay and come to other weights there.
    pub fn change_view(&mut self, now: Tick, begins_at: Step, members: &BTreeSet<usize>) {
        for (index, member) in self.members.iter_mut().enumerate() {
            let enters = !member.in_view && members.contains(&index);
            member.in_view = members.contains(&index);
            if enters {
                (member.completed, member.next, member.is_known) = (begins_at, begins_at, true);
                _ = member.on_disk.split_off(&(begins_at + 1));
            } else {
                member.completed = member.completed.min(begins_at);
                member.next = member.next.min(member.completed);
            }
            if member.in_view {
                _ = member.checkpoints.split_off(&(begins_at + 1));
            }
        }
        self.slowest = self.in_view().map(|member| member.completed).min().unwrap_or(self.slowest);
        self.slowest_since = now;
    }

    /// A member reports from here on: from a checkpoint, or from where it stands.
    pub fn resume(&mut self, member: usize, next: Step) {
        if let Some(progress) = self.members.get_mut(member) {
            (progress.next, progress.is_known) = (next.min(progress.completed), true);
        }
    }

    /// What a member has on its disk, and what of that counts; what it does not hold any more is not counted on, nor what
    /// is of steps that it has not reported (again): in another view they come to other weights, which it saves then.
    pub fn holds(
        &mut self,
        member: usize,
        on_disk: impl IntoIterator<Item = Step>,
        counts: impl Fn(Step) -> bool,
    ) {
        let total = self.total;
        if let Some(progress) = self.members.get_mut(member) {
            let most = if progress.in_view { progress.completed } else { total };
            progress.on_disk = on_disk.into_iter().filter(|step| *step <= total).chain([0]).collect();
            while progress.on_disk.len() > CHECKPOINTS_MAX {
                progress.on_disk.pop_first();
            }
            let counting = progress.on_disk.iter().copied().filter(|step| *step <= most && counts(*step));
            progress.checkpoints = counting.collect();
        }
    }

    /// Lets go of checkpoints that do not count, by member and step.
    pub fn retain_checkpoints(&mut self, counts: impl Fn(usize, Step) -> bool) {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.checkpoints.retain(|step| counts(index, *step));
        }
    }

    /// A member starts at a step: what it holds of later ones does not count any more.
    pub fn starts(&mut self, member: usize, step: Step) {
        self.resume(member, step);
        if let Some(progress) = self.members.get_mut(member) {
            _ = progress.checkpoints.split_off(&(step + 1));
            _ = progress.on_disk.split_off(&(step + 1));
        }
    }

    /// The newest checkpoint that all of these hold, and may go back to together.
    pub fn common_of(&self, members: &BTreeSet<usize>) -> Step {
        self.common_until(members, Step::MAX)
    }

    /// The same, of no later steps than these.
    pub fn common_until(&self, members: &BTreeSet<usize>, until: Step) -> Step {
        let members: Vec<&Progress> = members.iter().filter_map(|index| self.members.get(*index)).collect();
        newest_behind_all(&members, |member| member.completed.min(until))
    }

    /// The checkpoints of a member.
    pub fn checkpoints(&self, member: usize) -> Option<&BTreeSet<Step>> {
        self.members.get(member).map(|progress| &progress.checkpoints)
    }

    /// The newest checkpoint on a member's disk that is not of later steps; fresh weights if there is no other.
    pub fn newest_until(&self, member: usize, step: Step) -> Step {
        let on_disk = self.members.get(member).map(|progress| &progress.on_disk);
        on_disk.and_then(|held| held.range(..=step).next_back()).copied().unwrap_or(0)
    }

    /// These go back to a step: what they did beyond it no longer counts. What was granted stays granted, since nobody who
    /// was told of it forgets it.
    pub fn fall_back(&mut self, now: Tick, members: &BTreeSet<usize>, step: Step) {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.in_view = members.contains(&index);
        }
        for member in self.members.iter_mut().filter(|member| member.in_view) {
            (member.completed, member.next) = (step, step);
        }
        self.retain_from = self.retain_from.min(step);
        (self.slowest, self.slowest_since) = (step, now);
    }

    /// The next report of a member: where it is now, which is behind what is on record while it replays.
    pub fn next(&self, member: usize) -> Step {
        self.members.get(member).map_or(0, |progress| progress.next)
    }

    /// Steps below this may be taken.
    pub fn until(&self) -> Step {
        self.until
    }

    /// Whether every step is granted: nobody can come in any more.
    pub fn reaches_the_end(&self) -> bool {
        self.until >= self.total
    }

    /// Log entries below this will not be asked for again.
    pub fn retain_from(&self) -> Step {
        self.retain_from
    }

    /// Steps that a member has completed.
    pub fn completed(&self, member: usize) -> Step {
        self.members.get(member).map_or(0, |progress| progress.completed)
    }

    /// The fewest steps that any member has completed.
    pub fn slowest(&self) -> Step {
        self.slowest
    }

    /// Whether a member has completed the last step.
    pub fn is_done(&self, member: usize) -> bool {
        self.completed(member) >= self.total
    }

    /// About how long the slowest member needs to the end of the lease, in milliseconds; 0 before its pace is known.
    pub fn left_ms(&self) -> u64 {
        let steps = self.until.saturating_sub(self.slowest);
        self.pace_us.unwrap_or(0).saturating_mul(steps) / 1000
    }

    /// Whether every member said itself where it is, so that nothing stands on the journal alone.
    pub fn all_known(&self) -> bool {
        self.in_view().all(|member| member.is_known)
    }

    /// Whether every member has completed the last step.
    pub fn all_done(&self) -> bool {
        self.slowest >= self.total
    }

    /// Whether every member has completed the last step and holds the checkpoint of it: nothing can be lost any more.
    pub fn all_saved(&self) -> bool {
        self.all_done() && self.in_view().all(|member| member.checkpoints.contains(&self.total))
    }

    /// Whether a member's last checkpoint is on its disk.
    pub fn has_last_checkpoint(&self, member: usize) -> bool {
        self.members.get(member).is_some_and(|progress| progress.checkpoints.contains(&self.total))
    }

    /// Takes a member's report of a completed step. O(members).
    ///
    /// # Errors
    /// The step is not the member's next, or was not granted.
    pub fn report(&mut self, now: Tick, member: usize, step: Step) -> Result<Told, OutOfOrder> {
        let until = self.until;
        let Some(progress) = self.members.get_mut(member) else { return Ok(Told::Again) };
        let expected = progress.next;
        if step < expected {
            return Err(OutOfOrder::Doubled { got: step, expected });
        }
        if step >= until {
            return Err(OutOfOrder::BeyondLease { got: step, until });
        }
        if step > expected {
            return Err(OutOfOrder::Lost { got: step, expected });
        }
        progress.next = step + 1;
        if step < progress.completed {
            return Ok(Told::Again);
        }
        progress.completed = step + 1;
        self.measure(now);
        Ok(Told::New)
    }

    /// Follows the slowest member's pace: a moving average that forgets half in about three steps.
    fn measure(&mut self, now: Tick) {
        let slowest = self.in_view().map(|progress| progress.completed).min().unwrap_or(0);
        let steps = slowest.saturating_sub(self.slowest);
        if steps == 0 {
            return;
        }
        let sample = now.since(self.slowest_since).saturating_mul(1000) / steps;
        let pace = self.pace_us.map_or(sample, |pace| (pace.saturating_mul(4).saturating_add(sample)) / 5);
        self.pace_us = Some(pace);
        self.slowest = slowest;
        self.slowest_since = now;
    }

    /// Steps that the lease should reach beyond the slowest member: as many as fit its span at the recent pace.
    fn ahead(&self) -> u64 {
        let span_us = LEASE_SPAN.as_micros() as u64;
        match self.pace_us {
            None => LEASE_STEPS_MIN,
            Some(pace_us) => (span_us / pace_us.max(1)).clamp(LEASE_STEPS_MIN, LEASE_STEPS_MAX),
        }
    }

    /// Extends the lease when half of it or less is left; returns its new end if so. Not on every report, so that
    /// fast steps do not cost a message each.
    pub fn renew(&mut self) -> Option<Step> {
        let ahead = self.ahead();
        let target = self.slowest.saturating_add(ahead).min(self.total);
        let left = self.until.saturating_sub(self.slowest);
        let useful = left.saturating_mul(2) <= ahead || target == self.total;
        if target > self.until && useful {
            self.until = target;
            Some(target)
        } else {
            None
        }
    }

    /// Takes a member's word that a checkpoint of so many completed steps is on its disk, and what else is; returns the
    /// new `retain_from` if the newest checkpoint that all hold has grown.
    ///
    /// # Errors
    /// A checkpoint of steps that nobody may have taken yet.
    pub fn saved(
        &mut self,
        member: usize,
        step: Step,
        held: &[Step],
        counts: impl Fn(Step) -> bool,
    ) -> Result<Option<Step>, OutOfOrder> {
        if step > self.until {
            return Err(OutOfOrder::BeyondLease { got: step.saturating_sub(1), until: self.until });
        }
        // One that was told to start before these has still to hear that, and they will not be there when it has.
        let here = self.members.get(member).filter(|progress| progress.in_view);
        let behind = here.map_or(Step::MAX, |progress| progress.next);
        self.holds(member, held.iter().copied(), |step| step <= behind && counts(step));
        let grown = Some(self.common()).filter(|common| *common > self.retain_from);
        self.retain_from = grown.unwrap_or(self.retain_from);
        Ok(grown)
    }
}

/// The newest checkpoint that all of these hold and have behind them, by where each of them is; 0 if there is no other.
fn newest_behind_all(members: &[&Progress], at: impl Fn(&Progress) -> Step) -> Step {
    let reached = members.iter().map(|member| at(member)).min().unwrap_or(0);
    let within = |member: &&Progress| member.checkpoints.range(..=reached).copied().collect();
    let within: Vec<BTreeSet<Step>> = members.iter().map(within).collect();
    newest_common(within.iter()).unwrap_or(0)
}

/// The greatest number that is in every set.
pub fn newest_common<'a>(mut sets: impl Iterator<Item = &'a BTreeSet<Step>>) -> Option<Step> {
    let first = sets.next()?;
    let rest: Vec<&BTreeSet<Step>> = sets.collect();
    first.iter().rev().find(|step| rest.iter().all(|set| set.contains(step))).copied()
}

#[cfg(test)]
mod tests;
