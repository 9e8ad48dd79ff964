//! The network side of a peer: one loop in which everything that can happen arrives as an [`Event`]. It carries words
//! between the coordinator, the sources, the signals and the training thread, and decides nothing about training.

mod machine;
mod coming_in;
mod absence;
mod address;
mod follows;
mod signals;

pub use machine::{Machine, StartTrainer};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_proto::control::{
    Accepted, Checkpoints, FromPeer, JoinRequest, Refusal, RefusalReason, Stop, StopKind, ToPeer,
};
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::spec::DeviceSpec;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::PeerError;
use crate::log::ContributionLog;
use crate::net::control::Attendance;
use crate::standing::{Place, too_late};
use crate::trainer::{Ending, News, Trainer, Word};
use crate::waits::Waits;
use absence::Absence;
use coming_in::{Attending, come_in};
use follows::Follows;
use signals::Signals;

/// How long the last words of a peer may take to leave it.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the command line says about one peer.
#[derive(Debug, Clone)]
pub struct Config {
    /// The coordinator's address.
    pub coordinator: String,
    /// Which peer of the run spec this is.
    pub name: PeerName,
    /// Where to compute, if not where the run spec says.
    pub device: Option<DeviceSpec>,
    /// Where the data are, if not where the run spec says.
    pub data: Option<PathBuf>,
    /// Where to listen for followers.
    pub listen: Option<String>,
    /// The address that followers are told, if not the one that is listened on.
    pub advertise: Option<String>,
    /// The folder of checkpoints; `runs/RUN/peers/NAME` if not given.
    pub state: Option<PathBuf>,
    /// Whether to serve plain text beyond loopback without a warning.
    pub insecure: bool,
}

/// Everything that can happen to the network side of a peer.
enum Event {
    /// The coordinator said something, or its stream ended (with the reason, if it broke).
    Coordinator(Result<Option<ToPeer>, String>),
    /// An attempt to come back to the coordinator ended.
    CameBack(Box<Result<(Accepted, Attendance), PeerError>>),
    /// The training thread said something, or is gone.
    Trainer(Option<News>),
    /// A source can no longer be followed.
    FollowEnded(Result<(), PeerError>),
    /// Somebody asked the process to stop.
    Signal,
    /// It is time to say that this peer is alive.
    Heartbeat,
    /// It is time to try to come back to the coordinator.
    Attempt,
    /// The coordinator did not answer a wish to stop, or is gone before this peer has stopped.
    StopOverdue,
}

/// Runs one peer on a machine from its first word to its last.
///
/// # Errors
/// Whatever ended it before the run did.
pub async fn run(config: Config, machine: Machine) -> Result<Ending, PeerError> {
    let Machine { network, signals, trainer, process } = machine;
    // Whoever is not there yet may be asked to stop.
    let signals = signals.then(Signals::listen).transpose();
    let mut signals = signals.map_err(|error| PeerError::Internal(format!("signals: {error}")))?;
    let Attending { driver, trainer, heartbeat, server, stop_serving } = tokio::select! {
        biased;
        attending = come_in(config, network, trainer, process) => attending?,
        () = signals::next(&mut signals) => return Ok(Ending::before_joining()),
    };
    let ending = driver.attend(trainer, signals, heartbeat).await;
    drop(stop_serving);
    server.abort();
    ending
}

struct Driver {
    me: PeerName,
    run: RunId,
    failure_timeout: Duration,
    /// With what this peer presents itself, but for where it stands.
    request: JoinRequest,
    log: Arc<ContributionLog>,
    waits: Arc<Waits>,
    place: Place,
    /// `None` while the coordinator is gone.
    attendance: Option<Attendance>,
    absence: Absence,
    follows: Follows,
    /// Whether the coordinator told this peer to stop.
    stopping: bool,
    /// When to stop at once: a wish to stop was not answered, or the coordinator went before this peer had stopped.
    stop_deadline: Option<Instant>,
    /// How often somebody asked this process to stop.
    wishes: u32,
}

impl Driver {
    async fn attend(
        mut self,
        mut trainer: Trainer,
        mut signals: Option<Signals>,
        heartbeat: Duration,
    ) -> Result<Ending, PeerError> {
        let mut heartbeats = tokio::time::interval(heartbeat);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let (overdue, attempt) = (self.stop_deadline.unwrap_or(far), self.absence.attempt_at());
            // What is rare never waits for what is not, and the training thread never waits for room for its news while
            // words for it are taken in.
            let event = tokio::select! {
                biased;
                () = signals::next(&mut signals) => Event::Signal,
                _ = heartbeats.tick() => Event::Heartbeat,
                () = tokio::time::sleep_until(attempt.unwrap_or(far)), if attempt.is_some() => Event::Attempt,
                () = tokio::time::sleep_until(overdue), if self.stop_deadline.is_some() => Event::StopOverdue,
                back = self.absence.back() => Event::CameBack(Box::new(back)),
                Some(ended) = self.follows.ended() => Event::FollowEnded(ended),
                news = trainer.news.recv() => Event::Trainer(news),
                word = next_word(&mut self.attendance) => Event::Coordinator(word),
            };
            match event {
                Event::Trainer(Some(News::Ended(ending))) => {
                    self.follows.shutdown().await;
                    self.farewell(&ending).await;
                    return Ok(ending);
                }
                Event::Trainer(None) => return Err(PeerError::Internal(trainer.cause_of_death())),
                Event::Trainer(Some(news)) => self.pass_on(news, &trainer).await,
                Event::Coordinator(word) => self.heard(word, &trainer).await,
                Event::CameBack(back) => self.came_back(*back, &trainer).await,
                Event::FollowEnded(Ok(())) => {}
                Event::FollowEnded(Err(PeerError::LogReleased(sentence))) => {
                    tracing::warn!("{sentence}");
                    self.up(FromPeer::CannotFollow(sentence));
                    // If all have fallen back the source is in the middle of a step, or has still to hear of it.
                    self.follow(&trainer);
                }
                Event::FollowEnded(Err(error)) => tell(&trainer, Word::Lost(error)).await,
                Event::Signal => self.asked_to_stop(&trainer).await,
                Event::Heartbeat => self.up(FromPeer::Heartbeat(self.waits.look())),
                Event::Attempt => {
                    let held = self.place.held().to_vec();
                    let checkpoints =
                        (!held.is_empty()).then_some(Checkpoints { run: self.run, steps: held });
                    let standing = self.place.standing(self.log.begins_at());
                    let request = JoinRequest { checkpoints, standing, ..self.request.clone() };
                    self.absence.attempt(request, self.run);
                }
                Event::StopOverdue => {
                    self.stop_deadline = None;
                    let what = if self.stopping { "told" } else { "asked" };
                    let sentence = format!("{what} to stop, and nothing more was heard of the coordinator");
                    tell(&trainer, Word::Stop(Stop { kind: StopKind::AtOnce, sentence })).await;
                }
            }
        }
    }

    /// To the coordinator, as long as it is there. A queue that is full means that it no longer reads: the stream is
    /// given up, and what was not sent is said again on the next one.
    fn up(&mut self, message: FromPeer) {
        if let Some(attendance) = &self.attendance
            && let Err(error) = attendance.up.try_send(message.into())
        {
            tracing::debug!("a message to the coordinator was not sent: {error}");
            self.lost_coordinator("it does not read");
        }
    }

    async fn pass_on(&mut self, news: News, trainer: &Trainer) {
        match news {
            News::Step(report) => {
                if self.place.completed(report.clone()) {
                    self.follows.completed(report.step);
                    self.up(FromPeer::Report(report));
                }
            }
            News::Saved { step, held, epoch } => {
                if self.place.holds(held.clone(), epoch) {
                    self.up(FromPeer::CheckpointSaved { step, held });
                }
            }
            News::Received { flush, of } => self.up(FromPeer::Received { flush, of }),
            News::Prepared(_) | News::Found(_) | News::Ended(_) => {
                let error = PeerError::Internal("the training thread repeats itself".into());
                tell(trainer, Word::Lost(error)).await;
            }
        }
    }

    async fn heard(&mut self, word: Result<Option<ToPeer>, String>, trainer: &Trainer) {
        let reason = match word {
            Ok(Some(ToPeer::View(view))) => {
                tell(trainer, Word::View(view.clone())).await;
                self.follows.viewed(view, self.place.next());
                return self.follow(trainer);
            }
            Ok(Some(ToPeer::Start(start))) => {
                let epoch = self.place.starts(start, self.follows.view_at(start.step));
                self.follows.restart(epoch);
                // Before anything is heard in the new epoch.
                tell(trainer, Word::Start { start, epoch }).await;
                return self.follow(trainer);
            }
            Ok(Some(ToPeer::Flush { id, peers })) => {
                self.follows.take_no_more(&peers).await;
                if peers.contains(&self.me) {
                    self.place.stands_down();
                    self.follows.stands_down();
                }
                tell(trainer, Word::Flush { id, peers }).await;
                return self.follow(trainer);
            }
            Ok(Some(ToPeer::Lease(until))) => {
                self.place.granted(until);
                return tell(trainer, Word::Lease(until)).await;
            }
            Ok(Some(ToPeer::RetainFrom(step))) => {
                self.log.retain_from(step);
                return tell(trainer, Word::Common(step)).await;
            }
            Ok(Some(ToPeer::Stop(stop))) => {
                (self.stopping, self.stop_deadline) = (true, None);
                tracing::info!("the coordinator says stop ({}): {}", stop.kind, stop.sentence);
                return tell(trainer, Word::Stop(stop)).await;
            }
            Ok(None) => "it ended the stream".to_owned(),
            Err(reason) => reason,
        };
        self.lost_coordinator(&reason);
    }

    /// Training goes on to the end of the lease meanwhile.
    fn lost_coordinator(&mut self, reason: &str) {
        self.attendance = None;
        if self.stopping {
            // Those with whom the lease was to be run to its end may be gone as well, and nobody would say so.
            self.stop_deadline = Some(Instant::now() + self.failure_timeout);
            return;
        }
        tracing::warn!(
            "the coordinator is gone ({reason}); running to the end of the lease and waiting for it"
        );
        self.absence.begin();
    }

    async fn came_back(&mut self, back: Result<(Accepted, Attendance), PeerError>, trainer: &Trainer) {
        match back {
            Ok((accepted, attendance)) => {
                tracing::info!("back at the coordinator (session {})", accepted.session);
                self.absence.end();
                if self.place.is_another_start(&accepted) {
                    self.follows.forget_who_is_gone();
                }
                self.attendance = Some(attendance);
                for report in self.place.accepted_again(&accepted) {
                    self.up(FromPeer::Report(report));
                }
                // One may have been saved since the request was made.
                let held = self.place.held().to_vec();
                if let Some(step) = held.last().copied() {
                    self.up(FromPeer::CheckpointSaved { step, held });
                }
            }
            // An attempt whose answer was lost may have left a stream behind that nobody has missed yet.
            Err(
                PeerError::Unreachable(cause)
                | PeerError::Refused(Refusal { reason: RefusalReason::TakenName, sentence: cause }),
            ) => {
                if let Some(sentence) = self.absence.failed(&cause) {
                    tell(trainer, Word::Stop(Stop { kind: StopKind::AtOnce, sentence })).await;
                }
            }
            Err(error) => {
                self.absence.end();
                let word = match &error {
                    PeerError::Refused(refusal) => too_late(refusal).map(Word::Stop),
                    _ => None,
                };
                tell(trainer, word.unwrap_or(Word::Lost(error))).await;
            }
        }
    }

    fn follow(&mut self, trainer: &Trainer) {
        self.follows.follow(self.place.next(), &trainer.words);
    }

    async fn asked_to_stop(&mut self, trainer: &Trainer) {
        self.wishes += 1;
        let reason = format!("peer {} was asked to stop", self.me);
        if self.wishes == 1 && self.follows.knows_a_view() && self.attendance.is_some() {
            tracing::info!(
                "asked to stop: the cohort runs to the end of its lease; ask again to stop at once"
            );
            self.up(FromPeer::StopWish(reason));
            self.stop_deadline = Some(Instant::now() + self.failure_timeout);
        } else {
            tell(trainer, Word::Stop(Stop { kind: StopKind::AtOnce, sentence: reason })).await;
        }
    }

    /// Tells the coordinator how it ended and waits, not for long, until that has left.
    async fn farewell(&mut self, ending: &Ending) {
        let Some(up) = self.attendance.as_ref().map(|attendance| attendance.up.clone()) else { return };
        let reason = match &ending.cause {
            Ok(stop) if stop.kind == StopKind::Finished => String::new(),
            Ok(stop) => stop.sentence.clone(),
            Err(error) => error.to_string(),
        };
        let finished = matches!(&ending.cause, Ok(stop) if stop.kind == StopKind::Finished);
        if ending.saved && !finished {
            let held = self.place.held().iter().copied().chain([ending.steps_done]).collect();
            self.up(FromPeer::CheckpointSaved { step: ending.steps_done, held });
        }
        let leaving = FromPeer::Leaving { steps_done: ending.steps_done, finished, reason };
        let sent = up.send_timeout(leaving.into(), FAREWELL).await;
        drop(up);
        let Some(mut attendance) = self.attendance.take().filter(|_| sent.is_ok()) else { return };
        // The coordinator ends its side once it has read ours to the end.
        let (closed, _) = tokio::sync::mpsc::channel(1);
        attendance.up = closed;
        let drained = async { while let Ok(Some(_)) = attendance.next().await {} };
        if tokio::time::timeout(FAREWELL, drained).await.is_err() {
            tracing::debug!("the coordinator did not close the stream");
        }
    }
}

/// A word for the training thread. If it is gone, its last news say why.
async fn tell(trainer: &Trainer, word: Word) {
    let _ = trainer.words.send(word).await;
}

/// The coordinator's next word; never, once it is gone.
async fn next_word(attendance: &mut Option<Attendance>) -> Result<Option<ToPeer>, String> {
    match attendance {
        Some(attendance) => attendance.next().await,
        None => std::future::pending().await,
    }
}
