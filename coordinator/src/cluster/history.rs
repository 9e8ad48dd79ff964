//! A run that began under an earlier start of the coordinator: what the journal says of it, and how it goes on.

use cohort_proto::id::{RunId, Step};
use cohort_proto::spec::FailurePolicy;
use cohort_proto::view::{View, Views};

use super::Training;
use super::holdings::counts;
use crate::agreement::{Agreement, Said};
use crate::event::{DataFacts, Tick};
use crate::lease::{Lease, Progress};

/// What the journal knows of a run from earlier starts of the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The run.
    pub run: RunId,
    /// How often its coordinator was started before.
    pub starts: u64,
    /// The views that members may still need; none before the run began.
    pub views: Views,
    /// What they train on.
    pub data: Option<DataFacts>,
    /// Steps below this were granted.
    pub lease_until: Step,
    /// What is on record of each peer, by index.
    pub records: Vec<PeerRecord>,
}

/// What is on record of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its completed steps.
    pub completed: Step,
    /// The checkpoints that it said are on its disk.
    pub checkpoints: Vec<Step>,
    /// What it said in the steps that it may take again.
    pub said: Vec<(Step, Said)>,
}

/// The training of a run that began under an earlier start of the coordinator.
pub(super) fn recall(now: Tick, policy: FailurePolicy, history: &History) -> Option<Training> {
    let data = history.data?;
    let last = history.views.last()?;
    let since = |index: usize| {
        let member = |view: &&View| view.members.iter().any(|member| member.index == index);
        history.views.iter().rev().take_while(member).last().map(|view| view.begins_at)
    };
    let progress = |(index, record): (usize, &PeerRecord)| {
        // One that came in with a checkpoint of steps that it never reported has them behind it when all fall back to that.
        let counting =
            || record.checkpoints.iter().copied().filter(|held| counts(&history.views, index, *held));
        let held = counting().filter(|held| *held <= last.begins_at).max();
        let completed = record.completed.max(since(index).unwrap_or(0)).max(held.unwrap_or(0));
        let progress = Progress::new(completed, counting());
        let in_view = last.members.iter().any(|member| member.index == index);
        Progress { in_view, is_known: false, ..progress }
    };
    let members = history.records.iter().enumerate().map(progress).collect();
    let mut lease = Lease::new(now, data.total_steps, members, history.lease_until);
    if policy == FailurePolicy::Continue {
        // One that came in lately holds nothing that the others held before it came; theirs is not to be lost for that.
        let ends = history.views.iter().skip(1).map(|next| next.begins_at).chain([Step::MAX]);
        let members = |view: &View| view.members.iter().map(|member| member.index).collect();
        let all_held =
            history.views.iter().zip(ends).map(|(view, end)| lease.common_until(&members(view), end));
        lease.was_retained(all_held.max().unwrap_or(0));
    }
    let mut agreement = Agreement::default();
    for (index, record) in history.records.iter().enumerate() {
        for (step, said) in &record.said {
            agreement.remember(index, *step, said.clone());
        }
    }
    let mut training = Training::new(history.views.clone(), lease, agreement);
    training.retain_from(training.lease.retain_from());
    Some(training)
}
