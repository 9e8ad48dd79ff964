//! The contribution log: what this peer has said, one entry per (step, round), kept for followers until the
//! coordinator says that nobody can ask for it again. The training thread appends; any number of followers read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cohort_proto::contribution::{Contribution, Position};
use cohort_proto::id::Step;
use cohort_proto::limits::LOG_BYTES_MAX;
use tokio::sync::Notify;

/// Why an entry cannot be appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log holds as much as it may.
    #[error(
        "the contribution log holds {held} bytes and may not grow beyond {LOG_BYTES_MAX}: lower checkpoint_every, \
         since entries are kept back to the oldest checkpoint that a follower may restart from"
    )]
    Full {
        /// Bytes held.
        held: u64,
    },
    /// Entries are appended in order, each once.
    #[error("entry {at:?} does not follow the last entry {last:?}")]
    OutOfOrder {
        /// The new entry's position.
        at: Position,
        /// The last entry's position.
        last: Position,
    },
}

/// Why a follower cannot go on reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The entry is no longer there.
    #[error("entries before step {}, round {} are no longer retained", kept_from.step, kept_from.round)]
    Released {
        /// The oldest position that is.
        kept_from: Position,
    },
    /// The log began anew after it was asked, so its entries may be others.
    #[error("the log was begun anew")]
    Anew,
}

#[derive(Debug, Clone, Default)]
struct Entries {
    /// Nothing at or after this position was let go.
    kept_from: Position,
    list: VecDeque<Arc<Contribution>>,
    bytes: u64,
    /// How often it was begun anew.
    generation: u64,
}

/// The log. Clones of its [`Arc`] are handed to the training thread and to the service that followers call.
#[derive(Debug)]
pub struct ContributionLog {
    entries: Mutex<Entries>,
    /// Wakes followers at the tail, in the order in which they came.
    changed: Notify,
}

impl ContributionLog {
    /// An empty log that begins at a step.
    pub fn new(begins_at: Step) -> Self {
        let entries = Entries { kept_from: Position::of(begins_at), ..Entries::default() };
        Self { entries: Mutex::new(entries), changed: Notify::new() }
    }

    /// Another log with the same entries, for whoever wants to see what might become of it.
    pub fn copy(&self) -> Self {
        Self { entries: Mutex::new(self.entries().clone()), changed: Notify::new() }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // A panic elsewhere cannot leave the deque half changed: every mutation below is a single push or pop.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next entry and wakes followers at the tail.
    pub fn append(&self, contribution: Arc<Contribution>) -> Result<(), AppendError> {
        let mut entries = self.entries();
        let at = contribution.header().position;
        if let Some(last) = entries.list.back().map(|last| last.header().position).filter(|last| *last >= at)
        {
            return Err(AppendError::OutOfOrder { at, last });
        }
        let bytes = entries.bytes.saturating_add(contribution.byte_len() as u64);
        if bytes > LOG_BYTES_MAX {
            return Err(AppendError::Full { held: entries.bytes });
        }
        entries.bytes = bytes;
        entries.list.push_back(contribution);
        drop(entries);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Forgets entries below a step.
    pub fn retain_from(&self, step: Step) {
        let mut entries = self.entries();
        while let Some(old) = entries.list.pop_front_if(|entry| entry.header().position.step < step) {
            entries.bytes = entries.bytes.saturating_sub(old.byte_len() as u64);
            // A follower that has just read this entry stands behind it and has lost nothing.
            entries.kept_from = old.header().position.following();
        }
    }

    /// Starts over at a step, empty: the peer goes on from a checkpoint. Those who have read entries are cut off.
    pub fn restart_at(&self, step: Step) {
        let mut entries = self.entries();
        let generation = entries.generation + u64::from(!entries.list.is_empty());
        *entries = Entries { kept_from: Position::of(step), generation, ..Entries::default() };
        drop(entries);
        self.changed.notify_waiters();
    }

    /// Lets go of what was said from a step on: it is said again in another view. Those who read are cut off.
    pub fn cut_from(&self, step: Step) {
        let mut entries = self.entries();
        let before = entries.list.len();
        while let Some(entry) = entries.list.pop_back_if(|entry| entry.header().position.step >= step) {
            entries.bytes = entries.bytes.saturating_sub(entry.byte_len() as u64);
        }
        entries.generation += u64::from(entries.list.len() < before);
        drop(entries);
        self.changed.notify_waiters();
    }

    /// The first step that it holds, or will hold.
    pub fn begins_at(&self) -> Step {
        let kept_from = self.entries().kept_from;
        kept_from.step + u64::from(kept_from.round > 0)
    }

    /// Names the present contents: after [`ContributionLog::restart_at`] it is another number.
    pub fn generation(&self) -> u64 {
        self.entries().generation
    }

    /// Bytes of tensor data held.
    pub fn byte_len(&self) -> u64 {
        self.entries().bytes
    }

    /// The first entry at or after a position; `None` if it has not been said yet.
    pub fn get(&self, from: Position) -> Result<Option<Arc<Contribution>>, Gone> {
        let entries = self.entries();
        if from < entries.kept_from {
            return Err(Gone::Released { kept_from: entries.kept_from });
        }
        let at = entries.list.partition_point(|entry| entry.header().position < from);
        Ok(entries.list.get(at).cloned())
    }

    /// As [`ContributionLog::get`], waiting until the entry has been said; for one who began to read in a generation.
    ///
    /// # Errors
    /// If the entry is gone, or the log was begun anew since.
    pub async fn next(&self, from: Position, generation: u64) -> Result<Arc<Contribution>, Gone> {
        loop {
            // Before the look at what is there: what is said meanwhile wakes it.
            let changed = self.changed.notified();
            if self.generation() != generation {
                return Err(Gone::Anew);
            }
            if let Some(entry) = self.get(from)? {
                return Ok(entry);
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_proto::contribution::{Header, Tensor};
    use cohort_proto::id::{PeerName, RunId, ViewId};
    use cohort_proto::schema::{DType, Schema, TensorSpec};

    fn entry(step: Step) -> Arc<Contribution> {
        let spec = TensorSpec { name: "logits".into(), dtype: DType::F32, shape: vec![2] };
        let schema = Schema::new(vec![spec.clone()]).unwrap();
        let source = PeerName::new("a").unwrap();
        let header =
            Header { run: RunId(1), view: ViewId(1), position: Position::of(step), source, batch_hash: 0 };
        Arc::new(Contribution::seal(header, vec![Tensor { spec, data: vec![0; 8].into() }], &schema).unwrap())
    }

    fn step_at(log: &ContributionLog, from: Step) -> Result<Option<Step>, Gone> {
        Ok(log.get(Position::of(from))?.map(|entry| entry.header().position.step))
    }

    #[test]
    fn entries_are_found_until_they_are_let_go() {
        let log = ContributionLog::new(3);
        for step in 3..8 {
            log.append(entry(step)).unwrap();
        }
        let gone = |step, round| Err(Gone::Released { kept_from: Position { step, round } });
        assert_eq!(step_at(&log, 2), gone(3, 0));
        assert_eq!(step_at(&log, 5), Ok(Some(5)));
        assert_eq!(step_at(&log, 8), Ok(None));
        assert_eq!(log.byte_len(), 40);
        log.retain_from(6);
        assert_eq!(step_at(&log, 5), gone(5, 1));
        assert_eq!(step_at(&log, 6), Ok(Some(6)));
        assert_eq!(log.byte_len(), 16);
        log.retain_from(4);
        assert_eq!(step_at(&log, 5), gone(5, 1), "what is gone stays gone");
    }

    #[test]
    fn a_follower_that_has_read_all_may_wait_for_what_comes() {
        let log = ContributionLog::new(0);
        log.append(entry(0)).unwrap();
        let tail = Position::of(0).following();
        log.retain_from(1);
        assert_eq!(log.get(tail), Ok(None));
        assert!(log.get(Position::of(0)).is_err());
    }

    #[test]
    fn no_entry_twice() {
        let log = ContributionLog::new(0);
        log.append(entry(0)).unwrap();
        assert!(matches!(log.append(entry(0)), Err(AppendError::OutOfOrder { .. })));
    }

    #[tokio::test]
    async fn a_follower_at_the_tail_wakes() {
        let log = Arc::new(ContributionLog::new(0));
        let follower = tokio::spawn({
            let log = log.clone();
            async move { log.next(Position::of(0), 0).await }
        });
        tokio::task::yield_now().await;
        log.append(entry(0)).unwrap();
        assert_eq!(follower.await.unwrap().unwrap().header().position.step, 0);
    }

    #[test]
    fn what_is_said_again_in_another_view_replaces_what_was_said() {
        let log = ContributionLog::new(0);
        (0..4).for_each(|step| log.append(entry(step)).unwrap());
        log.cut_from(4);
        assert_eq!(log.generation(), 0);
        log.cut_from(2);
        assert_eq!((log.generation(), log.byte_len()), (1, 16));
        log.append(entry(2)).unwrap();
        assert_eq!(step_at(&log, 2), Ok(Some(2)));
    }

    #[tokio::test]
    async fn those_who_have_read_are_cut_off_when_it_begins_anew() {
        let log = ContributionLog::new(0);
        log.restart_at(2);
        assert_eq!((log.generation(), log.begins_at()), (0, 2), "nobody has read anything");
        log.append(entry(2)).unwrap();
        log.restart_at(1);
        assert_eq!(log.next(Position::of(3), 0).await, Err(Gone::Anew));
        log.append(entry(1)).unwrap();
        assert_eq!(log.next(Position::of(1), 1).await.unwrap().header().position.step, 1);
    }
}
