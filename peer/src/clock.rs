//! The only reader of real time in a peer. Nothing that trains depends on it; reports do.

use std::time::Instant;

use cohort_proto::control::Timing;

/// Measures the acts of a step, one after another.
#[derive(Debug)]
pub struct Acts {
    since: Instant,
    timings: Vec<Timing>,
}

impl Acts {
    /// Starts the first act.
    #[expect(clippy::new_without_default, reason = "it starts a clock, so it is an act, not a value")]
    pub fn new() -> Self {
        Self { since: Instant::now(), timings: Vec::new() }
    }

    /// Ends an act; the next one begins.
    pub fn done(&mut self, act: &str) {
        let now = Instant::now();
        let ms = now.duration_since(self.since).as_secs_f64() * 1e3;
        self.since = now;
        self.timings.push(Timing { act: act.to_owned(), ms });
    }

    /// What was measured, in order.
    pub fn into_timings(self) -> Vec<Timing> {
        self.timings
    }
}

/// Seconds that something takes.
pub fn seconds_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed().as_secs_f64())
}
