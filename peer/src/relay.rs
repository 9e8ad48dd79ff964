//! What this peer received of others in its last steps, kept for those who have received less when a source is gone: the
//! survivors of a view must all have consumed the same. Written by the training thread, served like the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cohort_proto::contribution::{Contribution, Header, Position};
use cohort_proto::id::{PeerName, Step};

/// Entries by source.
#[derive(Debug, Default)]
pub struct Relay(Mutex<BTreeMap<PeerName, BTreeMap<Position, Arc<Contribution>>>>);

impl Relay {
    /// Another one with the same entries, for whoever wants to see what might become of it.
    pub fn copy(&self) -> Self {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self(Mutex::new(sources.clone()))
    }

    /// Keeps an entry.
    pub fn record(&self, contribution: &Arc<Contribution>) {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let header = contribution.header();
        sources.entry(header.source.clone()).or_default().insert(header.position, contribution.clone());
    }

    /// Lets go of entries below a step.
    pub fn retain_from(&self, step: Step) {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entries in sources.values_mut() {
            *entries = entries.split_off(&Position::of(step));
        }
    }

    /// Lets go of what does not hold any more: it is said again in another view.
    pub fn retain(&self, holds: impl Fn(&Header) -> bool) {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entries in sources.values_mut() {
            entries.retain(|_, entry| holds(entry.header()));
        }
    }

    /// What is here of a source from a position on, in order; `None` if nothing of it ever was.
    pub fn entries(&self, source: &PeerName, from: Position) -> Option<Vec<Arc<Contribution>>> {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(sources.get(source)?.range(from..).map(|(_, entry)| entry.clone()).collect())
    }

    /// The first step, from `next` on, of which not everything that a source says is here. A step is whole if its last
    /// round is here or one of a later step; whether a step has more than one round is not known here.
    pub fn whole_until(&self, source: &PeerName, next: Step, last_round: u32) -> Step {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(newest) = sources.get(source).and_then(|entries| entries.keys().next_back()) else {
            return next;
        };
        let whole = if newest.round >= last_round { newest.step.saturating_add(1) } else { newest.step };
        whole.max(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_proto::id::{RunId, ViewId};
    use cohort_proto::schema::Schema;

    fn entry(step: Step, round: u32) -> Arc<Contribution> {
        let source = PeerName::new("c").unwrap();
        let position = Position { step, round };
        let header = Header { run: RunId(1), view: ViewId(1), position, source, batch_hash: 0 };
        Arc::new(Contribution::seal(header, vec![], &Schema::default()).unwrap())
    }

    #[test]
    fn a_step_is_whole_with_its_last_round_or_a_later_step() {
        let (relay, c) = (Relay::default(), PeerName::new("c").unwrap());
        assert_eq!(relay.whole_until(&c, 4, 0), 4);
        relay.record(&entry(4, 0));
        assert_eq!((relay.whole_until(&c, 4, 0), relay.whole_until(&c, 4, 9)), (5, 4));
        relay.record(&entry(5, 0));
        assert_eq!((relay.whole_until(&c, 4, 0), relay.whole_until(&c, 4, 9)), (6, 5));
        assert_eq!(relay.whole_until(&c, 7, 0), 7, "what was consumed is whole");
        relay.retain(|_| false);
        assert_eq!(relay.whole_until(&c, 0, 0), 0, "nothing of it is here any more");
    }

    #[test]
    fn entries_are_kept_between_two_steps() {
        let (relay, c) = (Relay::default(), PeerName::new("c").unwrap());
        (0..6).for_each(|step| relay.record(&entry(step, 0)));
        relay.retain_from(2);
        relay.retain(|header| header.position.step < 4);
        let steps = |from| {
            let entries = relay.entries(&c, Position::of(from)).unwrap();
            entries.iter().map(|entry| entry.header().position.step).collect::<Vec<_>>()
        };
        assert_eq!((steps(0), steps(3)), (vec![2, 3], vec![3]));
        assert!(relay.entries(&PeerName::new("d").unwrap(), Position::of(0)).is_none());
    }
}
