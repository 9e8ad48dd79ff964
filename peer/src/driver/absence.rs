//! While the coordinator is gone: attempts to come back to it, with pauses that grow and jitter, until the run's wait
//! timeout is over.

use std::sync::Arc;
use std::time::Duration;

use cohort_proto::control::{Accepted, JoinRequest};
use cohort_proto::id::RunId;
use cohort_proto::spec::RunSpec;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::PeerError;
use crate::net::backoff::Backoff;
use crate::net::control::{Attendance, Control};
use crate::net::network::Network;

/// One way back at a time.
#[derive(Debug)]
pub(super) struct Absence {
    network: Arc<dyn Network>,
    url: String,
    jitter: u64,
    patience: Duration,
    /// `None` while the coordinator is there.
    gone: Option<Gone>,
}

#[derive(Debug)]
struct Gone {
    since: Instant,
    backoff: Backoff,
    next: Option<Instant>,
    attempt: Option<JoinHandle<Result<(Accepted, Attendance), PeerError>>>,
}

impl Absence {
    pub(super) fn new(network: Arc<dyn Network>, url: String, jitter: u64, spec: &RunSpec) -> Self {
        let patience = Duration::from_millis(spec.policy.wait_timeout_ms);
        Self { network, url, jitter, patience, gone: None }
    }

    /// The coordinator is gone.
    pub(super) fn begin(&mut self) {
        let now = Instant::now();
        let mut backoff = Backoff::new(self.jitter);
        let next = Some(now + backoff.next_pause_always());
        self.gone = Some(Gone { since: now, backoff, next, attempt: None });
    }

    /// It is back, or no longer needed.
    pub(super) fn end(&mut self) {
        self.gone = None;
    }

    /// When to make the next attempt.
    pub(super) fn attempt_at(&self) -> Option<Instant> {
        self.gone.as_ref()?.next
    }

    /// Makes an attempt with what this peer says of itself now.
    pub(super) fn attempt(&mut self, request: JoinRequest, run: RunId) {
        if let Some(gone) = &mut self.gone {
            gone.next = None;
            let attempt = Control::come_back(self.network.clone(), self.url.clone(), request, run);
            gone.attempt = Some(tokio::spawn(attempt));
        }
    }

    /// How the attempt under way ends; never, without one.
    pub(super) async fn back(&mut self) -> Result<(Accepted, Attendance), PeerError> {
        let Some(attempt) = self.gone.as_mut().and_then(|gone| gone.attempt.as_mut()) else {
            return std::future::pending().await;
        };
        let ended = attempt.await;
        if let Some(gone) = &mut self.gone {
            gone.attempt = None;
        }
        ended.unwrap_or_else(|error| Err(PeerError::Internal(format!("coming back: {error}"))))
    }

    /// The attempt failed; returns why it was the last one, if it was.
    pub(super) fn failed(&mut self, cause: &str) -> Option<String> {
        let gone = self.gone.as_mut()?;
        let pause = gone.backoff.next_pause_always();
        let waited = gone.since.elapsed();
        if waited + pause > self.patience {
            self.gone = None;
            return Some(format!(
                "the coordinator at {} did not come back within {:.1} s ({cause})",
                self.url,
                waited.as_secs_f64()
            ));
        }
        tracing::debug!("the coordinator at {}: {cause}; again in {} ms", self.url, pause.as_millis());
        gone.next = Some(Instant::now() + pause);
        None
    }
}
