//! What the training thread waits for in the middle of a step: written by it, read by the network side for every
//! heartbeat, so that whoever asks for the status sees who holds up whom.

use std::sync::{Mutex, PoisonError};

use cohort_proto::control::Waiting;
use cohort_proto::id::PeerName;
use cohort_proto::limits::WAITS_FOR_MAX;
use tokio::time::Instant;

/// A place for one note.
#[derive(Debug, Default)]
pub struct Waits(Mutex<Option<(Vec<PeerName>, Instant)>>);

impl Waits {
    /// These sources' contributions are missing. The wait has begun when the first of them was missed.
    pub fn for_sources(&self, mut sources: Vec<PeerName>) {
        sources.truncate(WAITS_FOR_MAX);
        let mut note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = note.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        *note = Some((sources, since));
    }

    /// Nothing is waited for any more.
    pub fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What is waited for now.
    pub fn look(&self) -> Waiting {
        let note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        note.as_ref().map_or_else(Waiting::default, |(sources, since)| Waiting {
            sources: sources.clone(),
            ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_lasts_until_it_is_over() {
        let waits = Waits::default();
        assert_eq!(waits.look(), Waiting::default());
        let source = PeerName::new("b").unwrap();
        waits.for_sources(vec![source.clone(); WAITS_FOR_MAX + 1]);
        assert_eq!(waits.look().sources, vec![source; WAITS_FOR_MAX]);
        waits.over();
        assert_eq!(waits.look(), Waiting::default());
    }
}
