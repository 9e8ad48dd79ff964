//! From the first word to the coordinator until it is attended: the run spec, what trains, the address for followers, and
//! the wish to join, for as long as it may be granted.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cohort_proto::control::{Accepted, Checkpoints, FromPeer, JoinRequest, Refusal, RefusalReason};
use cohort_proto::limits::PROTOCOL_VERSION;
use cohort_proto::meta::Agenda;
use cohort_proto::rng::key_of;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::absence::Absence;
use super::follows::Follows;
use super::{Config, Driver, StartTrainer, address, tell};
use crate::error::PeerError;
use crate::log::ContributionLog;
use crate::net::backoff::Backoff;
use crate::net::control::Control;
use crate::net::network::Network;
use crate::net::serve::{Served, bind, serve};
use crate::relay::Relay;
use crate::standing::Place;
use crate::trainer::{Ending, Facts, Inputs, News, Shared, Trainer, Word};
use crate::waits::Waits;

/// A peer that the coordinator has taken in.
pub(super) struct Attending {
    pub(super) driver: Driver,
    pub(super) trainer: Trainer,
    /// How often this peer says that it lives.
    pub(super) heartbeat: Duration,
    /// Serves the log, until the other is dropped.
    pub(super) server: JoinHandle<Result<(), PeerError>>,
    pub(super) stop_serving: oneshot::Sender<()>,
}

/// From the first word to the coordinator until it is attended.
pub(super) async fn come_in(
    config: Config,
    network: Arc<dyn Network>,
    start_trainer: StartTrainer,
    process: u32,
) -> Result<Attending, PeerError> {
    let jitter = key_of(config.name.as_str()) ^ u64::from(process);
    let mut control = Control::connect(&*network, &config.coordinator, Backoff::new(jitter)).await?;
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
    let (relay, waits) = (Arc::new(Relay::default()), Arc::new(Waits::default()));
    let shared = Shared { log: log.clone(), relay: relay.clone(), waits: waits.clone() };
    let inputs = Inputs { spec: spec.clone(), spec_hash, index, data: config.data.clone(), device, state };
    let mut trainer = start_trainer(inputs, shared)?;
    let facts = match trainer.news.recv().await {
        Some(News::Prepared(facts)) => *facts,
        Some(News::Ended(Ending { cause: Err(error), .. })) => return Err(error),
        _ => return Err(PeerError::Internal(trainer.cause_of_death())),
    };

    let (listener, bound) = bind(&*network, &address::listen_address(&config).await?).await?;
    let address = address::advertised(&config, bound).await;
    address::warn_if_open(&config, bound);
    let served = Arc::new(Served {
        me: config.name.clone(),
        followers: spec.peers.iter().map(|peer| peer.name.clone()).collect::<BTreeSet<_>>(),
        log: log.clone(),
        relay,
        run: OnceLock::new(),
    });
    let (stop_serving, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, served.clone(), stopped));

    let sources = facts.sources.clone();
    let mut request = join_request(&config, address, facts);
    let patience = Duration::from_millis(spec.policy.failure_timeout_ms);
    let backoff = Backoff::new(jitter);
    let accepted = join(&mut control, &mut request, &mut trainer, backoff, patience + patience / 2).await?;
    // Set once: this process joins one run.
    let _ = served.run.set(accepted.run);
    tracing::info!("joined run {} ({}) as {}", accepted.run, spec.run.name, config.name);
    // The thread is waiting for exactly this word.
    let _ = trainer.words.send(Word::Joined(accepted.run)).await;
    let hello = FromPeer::Hello { run: accepted.run, name: config.name.clone(), session: accepted.session };
    let mut absence = Absence::new(network.clone(), config.coordinator, jitter, &spec);
    let attendance = match control.attend(hello).await {
        Ok(attendance) => Some(attendance),
        Err(PeerError::Unreachable(sentence)) => {
            tracing::warn!("{sentence}; waiting for it");
            absence.begin();
            None
        }
        Err(error) => return Err(error),
    };
    let held = request.checkpoints.iter().flat_map(|held| held.steps.iter().copied()).collect();
    let driver = Driver {
        follows: Follows::new(
            network.clone(),
            config.name.clone(),
            sources,
            (accepted.run, Agenda::of(&spec)),
        ),
        absence,
        place: Place::new(&accepted, held),
        me: config.name,
        run: accepted.run,
        failure_timeout: Duration::from_millis(spec.policy.failure_timeout_ms),
        request,
        log,
        waits,
        attendance,
        stopping: false,
        stop_deadline: None,
        wishes: 0,
    };
    let heartbeat = Duration::from_millis(accepted.heartbeat_ms.max(1));
    Ok(Attending { driver, trainer, heartbeat, server, stop_serving })
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
        standing: None,
    }
}

/// Joins. The process that had this name before may have died so lately that the coordinator has not missed it yet, so
/// that a name that is taken is worth waiting for as long as that may take; and a coordinator that goes away before it has
/// answered may be started again.
async fn join(
    control: &mut Control,
    request: &mut JoinRequest,
    trainer: &mut Trainer,
    mut backoff: Backoff,
    patience: Duration,
) -> Result<Accepted, PeerError> {
    let until = Instant::now() + patience;
    let mut told = false;
    let mut gone = backoff.clone();
    loop {
        match control.join(request.clone()).await {
            Err(PeerError::Unreachable(sentence)) => {
                let Some(pause) = gone.next_pause() else { return Err(PeerError::Unreachable(sentence)) };
                tracing::warn!("{sentence}; trying again");
                tokio::time::sleep(pause).await;
            }
            Err(PeerError::Refused(Refusal { reason: RefusalReason::TakenName, sentence }))
                if Instant::now() < until =>
            {
                if !told {
                    tracing::warn!("{sentence}; waiting in case that one has died");
                    told = true;
                }
                tokio::time::sleep(backoff.next_pause_always()).await;
                // That one may have saved more, and let go of what was found here.
                request.checkpoints = look_again(trainer).await?;
            }
            outcome => return outcome,
        }
    }
}

/// The checkpoints that are on the disk now.
async fn look_again(trainer: &mut Trainer) -> Result<Option<Checkpoints>, PeerError> {
    tell(trainer, Word::LookAgain).await;
    match trainer.news.recv().await {
        Some(News::Found(checkpoints)) => Ok(checkpoints),
        Some(News::Ended(Ending { cause: Err(error), .. })) => Err(error),
        _ => Err(PeerError::Internal("the training thread does not say what it finds".into())),
    }
}
