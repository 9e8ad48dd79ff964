//! The training thread. It owns every tensor of the peer; words come in through one bounded channel and go out through
//! another, so nothing async touches a tensor and nothing that computes blocks the network.

mod prepare;
mod seat;
mod company;
mod validation;

pub use prepare::{Facts, Inputs, Prepared};
pub use seat::{Identity, Said, Seat};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use cohort_proto::control::{Checkpoints, Start, StepReport, Stop, StopKind, Timing};
use cohort_proto::id::{PeerName, RunId, Step};
use cohort_proto::limits::{INBOX_PER_SOURCE, QUEUE_DEPTH};
use cohort_proto::meta::Agenda;
use cohort_proto::spec::{FailurePolicy, Role};
use cohort_proto::view::View;
use tokio::sync::mpsc;

use crate::checkpoint::{Progress, Store};
use crate::clock::seconds_of;
use crate::data::loader::{Batch, Loader, LoaderInputs};
use crate::error::PeerError;
use crate::learner::Learner;
use crate::log::ContributionLog;
use crate::net::follow::Delivery;
use crate::relay::Relay;
use crate::round::Permission;
use crate::step::{self, Interruption};
use crate::waits::Waits;
use company::Live;
use prepare::Fresh;
use validation::Validation;

/// The act of measuring the network on held-out samples.
const VALIDATE: &str = "validate";

/// The act of writing a checkpoint, in the timings of the step after it.
const SAVE: &str = "save";

/// To the training thread.
#[derive(Debug)]
pub enum Word {
    /// Before that: which checkpoints are there now? Another process may have written since.
    LookAgain,
    /// The coordinator accepted this peer.
    Joined(RunId),
    /// The members from a step on.
    View(View),
    /// Training starts; what is heard in an earlier epoch is void.
    Start {
        /// Where.
        start: Start,
        /// Which time that this peer starts.
        epoch: u64,
    },
    /// Steps below this may be taken.
    Lease(Step),
    /// Every peer has a checkpoint of this step.
    Common(Step),
    /// A source said something.
    Heard(Delivery),
    /// The run ends.
    Stop(Stop),
    /// Some are gone, and nothing more of theirs comes: how much has arrived?
    Flush {
        /// Names the question.
        id: u64,
        /// Who is gone.
        peers: Vec<PeerName>,
    },
    /// What a source says cannot be used.
    Lost(PeerError),
}

impl From<Delivery> for Word {
    fn from(delivery: Delivery) -> Self {
        Self::Heard(delivery)
    }
}

/// From the training thread.
#[derive(Debug)]
pub enum News {
    /// The peer is built and can be presented to the coordinator.
    Prepared(Box<Facts>),
    /// The answer to [`Word::LookAgain`].
    Found(Option<Checkpoints>),
    /// A step is complete.
    Step(StepReport),
    /// A checkpoint is safely on disk.
    Saved {
        /// Its completed steps.
        step: Step,
        /// All that are on disk now, ascending.
        held: Vec<Step>,
        /// Which time that this peer started; until it starts elsewhere, which may remove some.
        epoch: u64,
    },
    /// The answer to [`Word::Flush`].
    Received {
        /// Which one.
        flush: u64,
        /// By name: everything that it said to steps below this is here.
        of: Vec<(PeerName, Step)>,
    },
    /// Training has ended; nothing follows.
    Ended(Ending),
}

/// How training ended.
#[derive(Debug)]
pub struct Ending {
    /// Completed steps.
    pub steps_done: Step,
    /// Whether a checkpoint of them is on disk (at step 0 there is nothing to save).
    pub saved: bool,
    /// The word that ended it, or what went wrong.
    pub cause: Result<Stop, PeerError>,
}

impl Ending {
    /// That of a process that was asked to stop while it waited to join.
    pub fn before_joining() -> Self {
        let sentence = "this peer was asked to stop before it had joined".to_owned();
        Self { steps_done: 0, saved: false, cause: Ok(Stop { kind: StopKind::AtOnce, sentence }) }
    }
}

/// A handle to the training thread.
#[derive(Debug)]
pub struct Trainer {
    /// Words for it.
    pub words: mpsc::Sender<Word>,
    /// Its news.
    pub news: mpsc::Receiver<News>,
    /// The thread itself, if it has one of its own.
    pub thread: Option<JoinHandle<()>>,
}

/// What the training thread writes and the network side reads.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What this peer says.
    pub log: Arc<ContributionLog>,
    /// What it received.
    pub relay: Arc<Relay>,
    /// What it waits for.
    pub waits: Arc<Waits>,
}

/// Starts the thread. It prepares, says [`News::Prepared`], and waits for [`Word::Joined`].
///
/// # Errors
/// If the system gives no thread.
pub fn start(inputs: Inputs, shared: Shared) -> Result<Trainer, PeerError> {
    // Room for every contribution that may be under way, and for the coordinator's words besides.
    let (words, inbox) = mpsc::channel(QUEUE_DEPTH + inputs.spec.peers.len() * INBOX_PER_SOURCE);
    let (outbox, news) = mpsc::channel(QUEUE_DEPTH);
    let thread = std::thread::Builder::new().name("trainer".into()).spawn(move || {
        let ending = match prepare::prepare(inputs) {
            Ok(prepared) => train(prepared, inbox, &outbox, shared),
            Err(error) => Ending { steps_done: 0, saved: false, cause: Err(error) },
        };
        // If nobody listens any more, there is nobody to tell.
        let _ = outbox.blocking_send(News::Ended(ending));
    });
    let thread = thread.map_err(|error| PeerError::Internal(format!("no training thread: {error}")))?;
    Ok(Trainer { words, news, thread: Some(thread) })
}

impl Trainer {
    /// What the thread died of, once its news have ended without [`News::Ended`].
    pub fn cause_of_death(self) -> String {
        match self.thread.map(JoinHandle::join) {
            None | Some(Ok(())) => "the training thread ended without a word".into(),
            Some(Err(panic)) => {
                let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
                let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
                format!("the training thread panicked: {}", words.unwrap_or_default())
            }
        }
    }
}

/// What the thread works with once the peer has joined.
struct Training<'a> {
    learner: Learner,
    /// Builds the learner with the weights of step 0.
    fresh: Fresh,
    company: Live,
    outbox: &'a mpsc::Sender<News>,
    store: Store,
    progress: Progress,
    checkpoint_every: Step,
    /// Steps of the newest checkpoint that this thread wrote or loaded.
    saved: Step,
    /// Those of all checkpoints on disk that were found good or written by this process.
    held: BTreeSet<Step>,
    /// The samples held out for validation, if there are any.
    validation: Option<Validation>,
    /// How long checkpoints took since the last report, which tells it.
    saving: Option<Timing>,
}

fn train(
    prepared: Prepared,
    mut inbox: mpsc::Receiver<Word>,
    outbox: &mpsc::Sender<News>,
    shared: Shared,
) -> Ending {
    let Prepared { learner, fresh, loader, store, facts, spec, peer } = prepared;
    let total = facts.total_steps;
    let progress = Progress {
        steps_done: 0,
        run: RunId(0),
        spec_hash: facts.spec_hash,
        peer: peer.name.to_string(),
        arch: peer.arch.clone(),
    };
    let (schema, sources) = (facts.schema.clone(), facts.sources.keys().cloned().collect());
    let steps_of = |held: &Option<Checkpoints>| held.iter().flat_map(|held| held.steps.clone()).collect();
    let mut held: BTreeSet<Step> = steps_of(&facts.checkpoints);
    let not_joined = |cause| Ending { steps_done: 0, saved: false, cause };
    if outbox.blocking_send(News::Prepared(Box::new(facts))).is_err() {
        return not_joined(Err(PeerError::Internal("nobody listens to the training thread".into())));
    }
    let run = loop {
        match inbox.blocking_recv() {
            Some(Word::Joined(run)) => break run,
            Some(Word::LookAgain) => match prepare::held(&store, progress.spec_hash, &peer) {
                Ok(found) => {
                    held = steps_of(&found);
                    // If nobody listens any more, no further word comes.
                    _ = outbox.blocking_send(News::Found(found));
                }
                Err(error) => return not_joined(Err(error)),
            },
            Some(Word::Stop(stop)) => return not_joined(Ok(stop)),
            other => return not_joined(Err(PeerError::Internal(format!("not joined, but {other:?}")))),
        }
    };
    let store = match store.taken_by(&peer.name) {
        Ok(store) => store,
        Err(error) => return not_joined(Err(error.into())),
    };
    let agenda = Agenda::of(&spec);
    let relays = spec.policy.on_failure == FailurePolicy::Continue;
    let identity = Identity { me: peer.name, run, schema, agenda, total_steps: total, sources, relays };
    let company = Live::new(Seat::new(identity, shared), inbox, outbox.clone());
    let checkpoint_every = spec.run.checkpoint_every;
    let progress = Progress { run, ..progress };
    let mut training = Training {
        learner,
        fresh,
        company,
        outbox,
        store,
        progress,
        checkpoint_every,
        saved: 0,
        held,
        validation: None,
        saving: None,
    };
    let cause = training.run(loader).and_then(|stop| training.for_its_part(stop, total));
    training.end(cause)
}

impl Training<'_> {
    /// Trains until the coordinator says stop, or something goes wrong.
    fn run(&mut self, inputs: LoaderInputs) -> Result<Stop, PeerError> {
        let total = inputs.plan.total_steps();
        if self.learner.role == Role::Student {
            self.validation = Validation::new(&inputs, &self.store);
        }
        let mut loader = None;
        // The batch of a step that is taken again in another view.
        let mut given_up: Option<Batch> = None;
        loop {
            self.company.drain()?;
            self.company.answer();
            match self.company.permission() {
                Permission::Leave(stop) => return Ok(stop),
                Permission::Start(start) => {
                    self.start_at(start)?;
                    loader = Some(Loader::start(inputs.clone(), start.step)?);
                    given_up = None;
                }
                Permission::Wait(_) => self.company.wait()?,
                Permission::Go(_) => {
                    let batch = match given_up.take() {
                        Some(batch) => Some(batch),
                        None => loader.as_mut().map(Loader::next_batch).transpose()?.flatten(),
                    };
                    let Some(batch) = batch else {
                        return Err(PeerError::Internal("the plan ended before the run did".into()));
                    };
                    self.learner.enter(batch.step, &*self.fresh)?;
                    match step::run(&mut self.learner, &mut self.company, &batch) {
                        Ok(report) => {
                            let ends_epoch = inputs.plan.ends_epoch(report.step);
                            self.completed(report, total, ends_epoch)?;
                        }
                        Err(Interruption::Stopped(stop)) => return Ok(stop),
                        Err(Interruption::Restarted) => {
                            self.company.retakes();
                            given_up = Some(batch);
                        }
                        Err(Interruption::Failed(error)) => return Err(*error),
                    }
                }
            }
        }
    }

    /// Goes to the checkpoint of a step, or to fresh weights. There is no other recovery: from here on, training is the
    /// replay of what was trained before.
    fn start_at(&mut self, start: Start) -> Result<(), PeerError> {
        let Start { step, checkpoint: from } = start;
        if from > 0 && !self.held.contains(&from) {
            // It was let go while all decided to go back there. Who says what there is instead is told anew.
            self.company.stand_down();
            return self.tell_what_is_held(self.held.last().copied().unwrap_or(0));
        }
        if from == 0 && self.progress.steps_done > 0 {
            self.learner = (self.fresh)(0)?;
        }
        if from > 0 {
            let checkpoint = self.store.load(from)?;
            self.learner.restore(&checkpoint).map_err(|error| {
                PeerError::Mismatch(format!("checkpoint {}: {error}", self.store.path(from).display()))
            })?;
            tracing::info!("going on from {}", self.store.path(from).display());
        }
        if self.company.goes_on() {
            self.store.remove_after(step)?;
            self.held.retain(|held| *held <= step);
        }
        (self.progress.steps_done, self.saved) = (step, from);
        self.company.started(step);
        if from < step {
            // The others went on without it. From where it joins them again it can be replayed like anybody else.
            self.save_and_tell()?;
        }
        Ok(())
    }

    fn completed(&mut self, mut report: StepReport, total: Step, ends_epoch: bool) -> Result<(), PeerError> {
        self.progress.steps_done = report.step + 1;
        if let Some(validation) = self.validation.as_mut().filter(|_| ends_epoch) {
            let looked = || validation.look(&self.learner, &self.store, self.progress.steps_done);
            let (terms, seconds) = seconds_of(looked);
            report.terms.extend(terms?);
            report.timings.push(Timing { act: VALIDATE.to_owned(), ms: seconds * 1e3 });
        }
        report.timings.extend(self.saving.take());
        self.company.completed();
        self.tell(News::Step(report))?;
        let done = self.progress.steps_done;
        let ends = done == total || done.is_multiple_of(self.learner.extent.steps);
        if ends || done.is_multiple_of(self.checkpoint_every) {
            self.save_and_tell()?;
        }
        Ok(())
    }

    /// A step is reported before its checkpoint is written, so that no checkpoint is ahead of what the coordinator knows;
    /// what it cost is in the report of the next step.
    fn save_and_tell(&mut self) -> Result<(), PeerError> {
        let (saved, seconds) = seconds_of(|| self.save());
        saved?;
        self.saving = Some(Timing { act: SAVE.to_owned(), ms: seconds * 1e3 });
        self.tell_what_is_held(self.saved)
    }

    fn tell_what_is_held(&self, step: Step) -> Result<(), PeerError> {
        let held = self.held.iter().copied().collect();
        self.tell(News::Saved { step, held, epoch: self.company.epoch() })
    }

    fn save(&mut self) -> Result<(), PeerError> {
        let (model, optimizer) = self.learner.state()?;
        self.store.save(&self.progress, &model, &optimizer, self.company.common())?;
        self.saved = self.progress.steps_done;
        let there = self.store.steps()?;
        self.held.insert(self.saved);
        self.held.retain(|step| there.contains(step));
        Ok(())
    }

    fn tell(&self, news: News) -> Result<(), PeerError> {
        let lost = |_| PeerError::Internal("nobody listens to the training thread".into());
        self.outbox.blocking_send(news).map_err(lost)
    }

    /// A run can be finished without a peer that the others had left behind: that one is not.
    fn for_its_part(&self, stop: Stop, total: Step) -> Result<Stop, PeerError> {
        // One that is yet to be told where to come in has done none.
        let steps = self.progress.steps_done.max(self.held.last().copied().unwrap_or(0));
        let void = self.company.is_left_behind_at(total.saturating_sub(1));
        match stop.kind == StopKind::Finished && (steps < total || void) {
            true => Err(PeerError::LeftBehind { steps }),
            false => Ok(stop),
        }
    }

    /// Saves what is complete, whatever ended the training.
    fn end(mut self, cause: Result<Stop, PeerError>) -> Ending {
        let steps_done = self.progress.steps_done;
        let cause = match cause {
            _ if self.saved == steps_done => cause,
            cause => match (self.save(), cause) {
                (Ok(()), cause) => cause,
                (Err(error), Err(first)) => {
                    tracing::error!("after {first}, the state could not be saved: {error}");
                    Err(first)
                }
                (Err(error), Ok(_)) => Err(error),
            },
        };
        Ending { steps_done, saved: self.saved == steps_done && steps_done > 0, cause }
    }
}
