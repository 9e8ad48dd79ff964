//! Which of a member's checkpoints count, and whether its memory does. One that was left behind may have saved steps that
//! the others took without it: such a checkpoint is as good as any to come in with, but nobody goes back to it.

use std::collections::BTreeSet;

use cohort_proto::control::Standing;
use cohort_proto::id::{PeerName, Step};
use cohort_proto::view::{View, Views};

use super::Training;
use crate::event::{Action, Entry};

impl Training {
    /// What a member has on its disk.
    pub(super) fn holds(&mut self, index: usize, held: impl IntoIterator<Item = Step>) {
        let Self { lease, views, .. } = self;
        lease.holds(index, held, |step| counts(views, index, step));
    }

    /// What a member holds that counts goes on record, but for what is known; and that it lost the newest, since a
    /// coordinator that is started again must not take it for complete.
    pub(super) fn record_what_counts(
        &self,
        index: usize,
        known: &BTreeSet<Step>,
        name: &PeerName,
        out: &mut Vec<Action>,
    ) {
        let newest = |held: &BTreeSet<Step>| held.last().copied().unwrap_or(0);
        let after = self.lease.checkpoints(index).map_or(0, newest);
        if newest(known) > after {
            out.push(Action::Record(Entry::Lost { peer: name.clone(), after }));
        }
        let counting = self.lease.checkpoints(index).into_iter().flatten();
        for &step in counting.filter(|step| !known.contains(step)) {
            out.push(Action::Record(Entry::Checkpoint { peer: name.clone(), step }));
        }
    }

    /// Whether a process may go on where it stands: no view that came after the one in which it took its last step begins
    /// before that place, and it has been a member since. A new view voids what was done from its first step on in those
    /// before it, and nothing else.
    pub(super) fn remembers(&self, name: &PeerName, standing: &Standing) -> bool {
        let Standing { steps_done, view, .. } = *standing;
        let holds = self.views.iter().all(|known| known.id <= view || known.begins_at >= steps_done);
        holds && self.views.since(name).is_some_and(|since| since <= steps_done)
    }

    /// After a change of views: what does not count any more is forgotten.
    pub(super) fn forget_what_does_not_count(&mut self) {
        let Self { lease, views, .. } = self;
        lease.retain_checkpoints(|index, step| counts(views, index, step));
    }
}

/// Whether a checkpoint is one that its owner can go back to: it took the step before it, or came in there, in a view that
/// holds. Who is no member may hold any.
pub(super) fn counts(views: &Views, index: usize, step: Step) -> bool {
    let at = |step| views.at(step).or(views.first()).is_some_and(|view| has(view, index));
    let is_member = views.last().is_some_and(|view| has(view, index));
    step == 0 || !is_member || at(step) || at(step - 1)
}

pub(super) fn has(view: &View, index: usize) -> bool {
    view.members.iter().any(|member| member.index == index)
}
