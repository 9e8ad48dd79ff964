//! The network side of a peer: one loop in which everything that can happen arrives as an [`Event`]. It carries words
//! between the coordinator, the sources, the signals and the training thread, and decides nothing about training.

mod signals;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cohort_proto::contribution::Position;
use cohort_proto::control::{FromPeer, JoinRequest, Stop, StopKind, ToPeer};
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::limits::PROTOCOL_VERSION;
use cohort_proto::meta::Agenda;
use cohort_proto::spec::{DeviceSpec, RunSpec};
use cohort_proto::view::View;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::PeerError;
use crate::log::ContributionLog;
use crate::net::control::{Attendance, Control};
use crate::net::follow::{Following, follow};
use crate::net::serve::{Served, bind, serve};
use crate::trainer::{self, Ending, Facts, Inputs, News, Trainer, Word};
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
    /// The training thread said something, or is gone.
    Trainer(Option<News>),
    /// A source can no longer be followed.
    FollowEnded(Result<(), PeerError>),
    /// Somebody asked the process to stop.
    Signal,
    /// It is time to say that this peer is alive.
    Heartbeat,
    /// The coordinator did not answer a wish to stop.
    StopOverdue,
}

/// Runs one peer from its first word to its last.
///
/// # Errors
/// Whatever ended it before the run did.
pub async fn run(config: Config) -> Result<Ending, PeerError> {
    let mut control = Control::connect(&config.coordinator, config.name.as_str()).await?;
    let (spec, spec_hash) = control.run_spec().await?;
    let Some((index, peer)) = spec.peer(&config.name) else {
        let names: Vec<&str> = spec.peers.iter().map(|peer| peer.name.as_str()).collect();
        let known = names.join(", ");
        return Err(PeerError::Usage(format!(
            "run {} has no peer {}; its peers are {known}",
            spec.run.name, config.name
        )));
    };
    let device = config.device.unwrap_or(peer.device);
    let state = config.state.clone().unwrap_or_else(|| {
        PathBuf::from("runs").join(&spec.run.name).join("peers").join(config.name.as_str())
    });
    let log = Arc::new(ContributionLog::new(0));
    let inputs = Inputs { spec: spec.clone(), spec_hash, index, data: config.data.clone(), device, state };
    let mut trainer = trainer::start(inputs, log.clone())?;
    let facts = match trainer.news.recv().await {
        Some(News::Prepared(facts)) => *facts,
        Some(News::Ended(Ending { cause: Err(error), .. })) => return Err(error),
        _ => return Err(PeerError::Internal(trainer.cause_of_death())),
    };

    let (listener, bound) = bind(&listen_address(&config).await?).await?;
    let address = advertised(&config, bound).await;
    warn_if_open(&config, bound);
    let served = Arc::new(Served {
        me: config.name.clone(),
        followers: spec.peers.iter().map(|peer| peer.name.clone()).collect::<BTreeSet<_>>(),
        log: log.clone(),
        run: OnceLock::new(),
    });
    let (stop_serving, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, served.clone(), stopped));

    let listens = !facts.schema.tensors().is_empty();
    let accepted = control.join(join_request(&config, address, facts)).await?;
    // Set once: this process joins one run.
    let _ = served.run.set(accepted.run);
    tracing::info!("joined run {} ({}) as {}", accepted.run, spec.run.name, config.name);
    // The thread is waiting for exactly this word.
    let _ = trainer.words.send(Word::Joined(accepted.run)).await;
    let hello = FromPeer::Hello { run: accepted.run, name: config.name.clone(), session: accepted.session };
    let attendance = control.attend(hello).await?;
    let driver = Driver {
        me: config.name,
        run: accepted.run,
        listens,
        spec,
        log,
        attendance: Some(attendance),
        follows: JoinSet::new(),
        in_view: false,
        stop_deadline: None,
        wishes: 0,
    };
    let ending = driver.attend(trainer, Duration::from_millis(accepted.heartbeat_ms.max(1))).await;
    drop(stop_serving);
    server.abort();
    ending
}

fn join_request(config: &Config, address: String, facts: Facts) -> JoinRequest {
    JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        name: config.name.clone(),
        spec_hash: facts.spec_hash,
        arch: facts.arch,
        classes: u32::try_from(facts.classes).unwrap_or(u32::MAX),
        address,
        schema: facts.schema,
        dataset_fingerprint: facts.dataset_fingerprint,
        total_steps: facts.total_steps,
        checkpoints: facts.checkpoints,
    }
}

/// The address of this machine on the way to the coordinator. Connecting a datagram socket sends nothing.
async fn local_ip(coordinator: &str) -> Option<IpAddr> {
    let address = coordinator.rsplit("//").next().unwrap_or(coordinator).trim_end_matches('/');
    let target = tokio::net::lookup_host(address).await.ok()?.next()?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Where to listen if the command line does not say: on the interface that leads to the coordinator.
async fn listen_address(config: &Config) -> Result<String, PeerError> {
    if let Some(listen) = &config.listen {
        return Ok(listen.clone());
    }
    let ip = local_ip(&config.coordinator).await;
    let ip = ip.ok_or_else(|| {
        PeerError::Usage("no way to the coordinator is known; give --listen and --advertise".into())
    })?;
    Ok(SocketAddr::new(ip, 0).to_string())
}

async fn advertised(config: &Config, bound: SocketAddr) -> String {
    if let Some(advertise) = &config.advertise {
        let has_port = advertise.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        return if has_port { advertise.clone() } else { format!("{advertise}:{}", bound.port()) };
    }
    if bound.ip().is_unspecified()
        && let Some(ip) = local_ip(&config.coordinator).await
    {
        return SocketAddr::new(ip, bound.port()).to_string();
    }
    bound.to_string()
}

fn warn_if_open(config: &Config, bound: SocketAddr) {
    if !config.insecure && !bound.ip().is_loopback() {
        tracing::warn!(
            "listening on {bound} in plain text: whoever reaches this port can read what this peer says; use a private \
             network, and --insecure to say that you know"
        );
    }
}

struct Driver {
    me: PeerName,
    run: RunId,
    listens: bool,
    spec: RunSpec,
    log: Arc<ContributionLog>,
    /// `None` once the coordinator is gone.
    attendance: Option<Attendance>,
    follows: JoinSet<Result<(), PeerError>>,
    in_view: bool,
    /// When to stop waiting for the coordinator's answer to a wish to stop.
    stop_deadline: Option<Instant>,
    /// How often somebody asked this process to stop.
    wishes: u32,
}

impl Driver {
    async fn attend(mut self, mut trainer: Trainer, heartbeat: Duration) -> Result<Ending, PeerError> {
        let mut signals =
            Signals::listen().map_err(|error| PeerError::Internal(format!("signals: {error}")))?;
        let began = Instant::now();
        let mut heartbeats = tokio::time::interval(heartbeat);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let overdue = self.stop_deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let event = tokio::select! {
                word = next_word(&mut self.attendance) => Event::Coordinator(word),
                news = trainer.news.recv() => Event::Trainer(news),
                Some(ended) = self.follows.join_next() => Event::FollowEnded(flatten(ended)),
                () = signals.next() => Event::Signal,
                _ = heartbeats.tick() => Event::Heartbeat,
                () = tokio::time::sleep_until(overdue), if self.stop_deadline.is_some() => Event::StopOverdue,
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
                Event::FollowEnded(Ok(())) => {}
                Event::FollowEnded(Err(error)) => tell(&trainer, Word::Lost(error)).await,
                Event::Signal => self.asked_to_stop(&trainer).await,
                Event::Heartbeat => {
                    self.up(FromPeer::Heartbeat);
                    // One that computes will see a later tick; ticks must not take the room of other words.
                    if trainer.words.capacity() > trainer.words.max_capacity() / 2 {
                        let _ = trainer.words.try_send(Word::Tick(began.elapsed()));
                    }
                }
                Event::StopOverdue => {
                    self.stop_deadline = None;
                    let sentence = "asked to stop, and the coordinator did not answer".to_owned();
                    tell(&trainer, Word::Stop(Stop { kind: StopKind::AtOnce, sentence })).await;
                }
            }
        }
    }

    /// To the coordinator, as long as it is there. A queue that is full means that it no longer reads.
    fn up(&mut self, message: FromPeer) {
        if let Some(attendance) = &self.attendance
            && let Err(error) = attendance.up.try_send(message.into())
        {
            tracing::debug!("a message to the coordinator was not sent: {error}");
        }
    }

    async fn pass_on(&mut self, news: News, trainer: &Trainer) {
        match news {
            News::Step(report) => self.up(FromPeer::Report(report)),
            News::Saved(step) => self.up(FromPeer::CheckpointSaved(step)),
            News::Prepared(_) | News::Ended(_) => {
                let error = PeerError::Internal("the training thread repeats itself".into());
                tell(trainer, Word::Lost(error)).await;
            }
        }
    }

    async fn heard(&mut self, word: Result<Option<ToPeer>, String>, trainer: &Trainer) {
        let reason = match word {
            Ok(Some(ToPeer::View(view))) => {
                // The view first: what a source says is refused by one who does not know the view yet.
                tell(trainer, Word::View(view.clone())).await;
                return self.follow_sources(&view, trainer);
            }
            Ok(Some(ToPeer::Lease(until))) => return tell(trainer, Word::Lease(until)).await,
            Ok(Some(ToPeer::RetainFrom(step))) => {
                self.log.retain_from(step);
                return tell(trainer, Word::Common(step)).await;
            }
            Ok(Some(ToPeer::Stop(stop))) => {
                self.stop_deadline = None;
                tracing::info!("the coordinator says stop ({}): {}", stop.kind, stop.sentence);
                return tell(trainer, Word::Stop(stop)).await;
            }
            Ok(None) => "it ended the stream".to_owned(),
            Err(reason) => reason,
        };
        self.attendance = None;
        // Every peer runs to the end of the lease it has, so all of them stop at the same step.
        let sentence = format!("the coordinator is gone ({reason})");
        tracing::warn!("{sentence}; running to the end of the lease");
        tell(trainer, Word::Stop(Stop { kind: StopKind::Graceful, sentence })).await;
    }

    fn follow_sources(&mut self, view: &View, trainer: &Trainer) {
        self.follows.abort_all();
        self.in_view = true;
        let sources = view.members.iter().filter(|member| self.listens && member.name != self.me);
        for source in sources {
            let following = Following {
                source: source.clone(),
                me: self.me.clone(),
                run: self.run,
                agenda: Agenda::of(&self.spec),
                from: Position::of(view.begins_at),
                patience: 2 * Duration::from_millis(self.spec.policy.failure_timeout_ms),
            };
            self.follows.spawn(follow(following, trainer.words.clone()));
        }
    }

    async fn asked_to_stop(&mut self, trainer: &Trainer) {
        self.wishes += 1;
        let reason = format!("peer {} was asked to stop", self.me);
        if self.wishes == 1 && self.in_view && self.attendance.is_some() {
            tracing::info!(
                "asked to stop: the cohort runs to the end of its lease; ask again to stop at once"
            );
            self.up(FromPeer::StopWish(reason));
            self.stop_deadline =
                Some(Instant::now() + Duration::from_millis(self.spec.policy.failure_timeout_ms));
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
            self.up(FromPeer::CheckpointSaved(ending.steps_done));
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

fn flatten(ended: Result<Result<(), PeerError>, tokio::task::JoinError>) -> Result<(), PeerError> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(PeerError::Internal(format!("following a peer: {error}"))),
    }
}
