//! The only reader of time, and the only source of chance. Time is that of the runtime, which a test can make up.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use cohort_proto::id::RunId;
use tokio::time::Instant;

use crate::event::Tick;

/// Time, counted from the moment this was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts counting.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Milliseconds since the start.
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The moment of a tick.
    pub fn instant(&self, tick: Tick) -> Instant {
        // Beyond what the platform can count lies no moment that anyone waits for.
        self.start.checked_add(std::time::Duration::from_millis(tick.0)).unwrap_or(self.start)
    }
}

/// Milliseconds since 1970, for the journal.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A run id that no other run has: the standard library seeds its hashers from the system's randomness.
pub fn draw_run_id() -> RunId {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(wall_ms());
    RunId(hasher.finish().max(1))
}
