//! Bounded retries with pauses that double and jitter, so that peers that lost the same host do not return as one.

use std::time::Duration;

use cohort_proto::limits::{CONNECT_ATTEMPTS, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};
use cohort_proto::rng::SplitMix64;

/// The pauses between the attempts of one retried call.
#[derive(Debug, Clone)]
pub struct Backoff {
    attempts_left: u32,
    pause: Duration,
    rng: SplitMix64,
}

impl Backoff {
    /// A fresh series; `key` makes its jitter differ from other peers'.
    pub fn new(key: u64) -> Self {
        Self { attempts_left: CONNECT_ATTEMPTS, pause: RETRY_PAUSE_MIN, rng: SplitMix64::new(key) }
    }

    /// How long to wait before the next attempt, and so on without end.
    pub fn next_pause_always(&mut self) -> Duration {
        self.attempts_left = CONNECT_ATTEMPTS;
        self.next_pause().unwrap_or(RETRY_PAUSE_MAX)
    }

    /// How long to wait before the next attempt: between half of the nominal pause and the whole; `None` when the
    /// attempts are used up.
    pub fn next_pause(&mut self) -> Option<Duration> {
        self.attempts_left = self.attempts_left.checked_sub(1).filter(|left| *left > 0)?;
        let pause = self.pause.mul_f64(0.5 + 0.5 * self.rng.unit_f64());
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_jitter_and_end() {
        let pauses = |key| -> Vec<Duration> {
            let mut backoff = Backoff::new(key);
            std::iter::from_fn(|| backoff.next_pause()).collect()
        };
        let (a, b) = (pauses(1), pauses(2));
        assert_eq!(a.len() as u32, CONNECT_ATTEMPTS - 1);
        assert_ne!(a, b);
        for (i, pause) in a.iter().enumerate() {
            let nominal = (RETRY_PAUSE_MIN * 2u32.pow(i as u32)).min(RETRY_PAUSE_MAX);
            assert!((nominal / 2..=nominal).contains(pause), "{pause:?} of {nominal:?}");
        }
        let mut without_end = Backoff::new(1);
        let last = (0..100).map(|_| without_end.next_pause_always()).last();
        assert!(last.is_some_and(|last| (RETRY_PAUSE_MAX / 2..=RETRY_PAUSE_MAX).contains(&last)), "{last:?}");
    }
}
