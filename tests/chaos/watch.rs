//! What the coordinator says of the run, asked over and over by a thread of its own, so that neither a coordinator that is
//! down nor one that hangs holds up whoever disturbs it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cohort_proto::limits::CONTROL_MESSAGE_BYTES_MAX;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use nix::sched::{CloneFlags, setns};
use tonic::transport::{Channel, Endpoint};

/// The pause between two questions: shorter than a step.
const POLL: Duration = Duration::from_millis(10);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);

/// One report of a step: what its peer said, and what it consumed of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) own: Vec<u8>,
    pub(crate) consumed: Vec<(String, Vec<u8>)>,
    pub(crate) losses: Losses,
}

/// The loss terms of a step by name, bit for bit; `None` for one that is no number. Unlike digests, which are of one run
/// alone, they are the same in every run that does the same.
pub(crate) type Losses = BTreeMap<String, Option<u64>>;

/// A term as it is compared.
pub(crate) fn bits(value: f64) -> Option<u64> {
    value.is_finite().then(|| value.to_bits())
}

/// A peer as the coordinator sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    /// Steps that it has completed.
    pub(crate) steps_done: u64,
    /// The most that it ever had.
    pub(crate) reached: u64,
    /// How often another process of it has joined.
    pub(crate) joins: u64,
    /// How many of its reports were seen.
    pub(crate) reports: u64,
    /// The step of the last.
    pub(crate) report_step: Option<u64>,
    pub(crate) attending: bool,
    /// When it first had so many steps.
    pub(crate) first_at: BTreeMap<u64, Instant>,
    address: String,
    last: Option<wire::StepReport>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) total_steps: u64,
    /// The most steps that any peer has completed.
    pub(crate) frontier: u64,
    /// When anybody last got on, and how often somebody did.
    pub(crate) progress_at: Option<Instant>,
    pub(crate) members: BTreeMap<String, Member>,
    /// Reports by peer, step and view.
    pub(crate) reported: BTreeMap<(String, u64, u64), Reported>,
    /// Reports that say otherwise than an earlier one of the same peer, step and view.
    pub(crate) contradictions: Vec<String>,
    /// What the run waits for, as the coordinator says.
    pub(crate) message: String,
}

impl Seen {
    /// Takes in an answer.
    fn learn(&mut self, reply: wire::StatusReply, now: Instant) {
        self.total_steps = self.total_steps.max(reply.total_steps);
        self.message = reply.message;
        for status in reply.members {
            let attending = status.state() == wire::MemberState::Attending;
            let name = status.name;
            let member = self.members.entry(name.clone()).or_default();
            member.attending = attending;
            if !status.address.is_empty() && status.address != member.address {
                member.address = status.address;
                member.joins += 1;
            }
            if status.steps_done != member.steps_done {
                member.steps_done = status.steps_done;
                self.progress_at = Some(now);
            }
            if attending && member.first_at.is_empty() {
                member.first_at.insert(0, now);
            }
            if status.steps_done > member.reached {
                member.reached = status.steps_done;
                member.first_at.insert(status.steps_done, now);
            }
            self.frontier = self.frontier.max(status.steps_done);
            if let Some(report) = status.report.filter(|report| Some(report) != member.last.as_ref()) {
                member.reports += 1;
                member.report_step = Some(report.step);
                self.progress_at = Some(now);
                member.last = Some(report.clone());
                self.note(name, report);
            }
        }
    }

    fn note(&mut self, peer: String, report: wire::StepReport) {
        let consumed = report.consumed.into_iter().map(|each| (each.source, each.digest)).collect();
        let losses = report.terms.into_iter().map(|term| (term.name, bits(term.value))).collect();
        let new = Reported { own: report.own_digest, consumed, losses };
        let (step, view) = (report.step, report.view);
        let before = self.reported.insert((peer.clone(), step, view), new.clone());
        if before.is_some_and(|before| before != new) {
            self.contradictions
                .push(format!("peer {peer} reported step {step} of view {view} twice, differently"));
        }
    }
}

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the coordinator at a URL; `door` is the network namespace in which that is.
    pub(crate) fn start(url: &str, door: Option<PathBuf>) -> Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(ANSWER).timeout(ANSWER);
        let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (told, ended) = (seen.clone(), over.clone());
        let watch = move || {
            if let Err(error) = watch(&endpoint, door, &told, &ended) {
                eprintln!("chaos: nobody watches the run any more: {error:#}");
            }
        };
        let thread =
            thread::Builder::new().name("watch".into()).spawn(watch).context("a thread that watches")?;
        Ok(Self { seen, over, thread: Some(thread) })
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen in all.
    pub(crate) fn finish(mut self) -> Seen {
        self.end();
        std::mem::take(&mut *self.seen())
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Its own words were said when it failed.
        _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

fn watch(endpoint: &Endpoint, door: Option<PathBuf>, seen: &Mutex<Seen>, over: &AtomicBool) -> Result<()> {
    if let Some(door) = door {
        // Of this thread alone.
        setns(File::open(door)?, CloneFlags::CLONE_NEWNET)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client: Option<CoordinatorClient<Channel>> = None;
        while !over.load(Ordering::Relaxed) {
            match ask(&mut client, endpoint).await {
                Some(reply) => {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).learn(reply, Instant::now());
                }
                // It is down, or does not answer: another may.
                None => client = None,
            }
            tokio::time::sleep(POLL).await;
        }
    });
    Ok(())
}

async fn ask(
    client: &mut Option<CoordinatorClient<Channel>>,
    endpoint: &Endpoint,
) -> Option<wire::StatusReply> {
    if client.is_none() {
        let channel = endpoint.connect().await.ok()?;
        *client = Some(CoordinatorClient::new(channel).max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX));
    }
    Some(client.as_mut()?.status(wire::StatusRequest {}).await.ok()?.into_inner())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An answer about one peer, which has reported a step.
    pub(crate) fn answer(address: &str, steps_done: u64, said: u8) -> wire::StatusReply {
        let report = wire::StepReport {
            step: steps_done.saturating_sub(1),
            own_digest: vec![said; 32],
            ..Default::default()
        };
        let member = wire::MemberStatus {
            name: "a".into(),
            address: address.into(),
            state: wire::MemberState::Attending.into(),
            steps_done,
            report: (steps_done > 0).then_some(report),
            ..Default::default()
        };
        wire::StatusReply { total_steps: 9, members: vec![member], ..Default::default() }
    }

    impl Seen {
        /// Takes in an answer now.
        pub(crate) fn hear(&mut self, reply: wire::StatusReply) {
            self.learn(reply, Instant::now());
        }
    }

    #[test]
    fn progress_joins_and_reports_are_counted_once() {
        let mut seen = Seen::default();
        for (address, steps) in
            [("h:1", 0), ("h:1", 2), ("h:1", 2), ("", 0), ("h:1", 0), ("h:2", 1), ("h:2", 4)]
        {
            seen.hear(answer(address, steps, 7));
        }
        let member = &seen.members["a"];
        assert_eq!((member.joins, member.reports, member.reached, seen.frontier), (2, 3, 4, 4));
        assert_eq!(member.first_at.keys().copied().collect::<Vec<_>>(), [0, 2, 4]);
        assert!(seen.contradictions.is_empty() && seen.reported.len() == 3);
    }

    #[test]
    fn a_step_that_is_reported_differently_is_found() {
        let mut seen = Seen::default();
        seen.hear(answer("h:1", 2, 7));
        seen.hear(answer("h:1", 3, 7));
        seen.hear(answer("h:2", 2, 8));
        assert_eq!(seen.contradictions.len(), 1, "{:?}", seen.contradictions);
    }
}
