//! The processes that hosts run: the coordinator and the peers, assembled as their command lines do it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cohort_coordinator::event::Ended;
use cohort_coordinator::server::Prepared;
use cohort_peer::driver::{self, Config, Machine};
use cohort_peer::error::PeerError;
use cohort_peer::trainer::Ending;
use cohort_proto::control::{RefusalReason, StopKind};
use tokio::sync::Notify;
use turmoil::net::TcpListener;

use crate::disk::Disk;
use crate::network::{Connections, Simulated};
use crate::setting::Setting;
use crate::trainer::{self, Desk};
use crate::witness::Witness;

/// The host of the coordinator; those of peers have their names.
pub(crate) const COORDINATOR: &str = "coordinator";

const COORDINATOR_PORT: u16 = 4700;
const PEER_PORT: u16 = 4701;

/// How a process ended by itself.
#[derive(Debug, Clone)]
pub(crate) enum Exit {
    /// The run is complete.
    Finished,
    /// It may be started again.
    Stopped(String),
    /// It must not have ended so.
    Wrong(String),
}

/// What outlives the processes of a cohort.
#[derive(Debug, Clone)]
pub(crate) struct Cohort {
    pub(crate) setting: Arc<Setting>,
    pub(crate) witness: Arc<Mutex<Witness>>,
    pub(crate) disks: Vec<Arc<Mutex<Disk>>>,
    /// The coordinator's state.
    pub(crate) folder: PathBuf,
    /// Asks the coordinator to stop.
    pub(crate) stop: Arc<Notify>,
    /// By host: how its process ended, until that is looked at.
    pub(crate) exits: Arc<Mutex<Vec<Option<Exit>>>>,
    /// By host: how many processes it has had.
    pub(crate) lives: Arc<Mutex<Vec<u64>>>,
    pub(crate) seed: u64,
}

impl Cohort {
    pub(crate) fn new(setting: Arc<Setting>, folder: PathBuf, seed: u64) -> Self {
        let peers = setting.spec.peers.len();
        let disk = |_| Arc::new(Mutex::new(Disk::new(setting.spec.run.keep)));
        Self {
            disks: (0..peers).map(disk).collect(),
            witness: Arc::default(),
            folder,
            stop: Arc::default(),
            exits: Arc::new(Mutex::new(vec![None; peers + 1])),
            lives: Arc::new(Mutex::new(vec![0; peers + 1])),
            setting,
            seed,
        }
    }

    pub(crate) fn peers(&self) -> usize {
        self.disks.len()
    }

    /// Hosts are peers, and the coordinator after them.
    pub(crate) fn name(&self, host: usize) -> &str {
        if host == self.peers() { COORDINATOR } else { self.setting.name(host) }
    }

    /// The process of a host. It never returns: whoever sees how it ended closes its connections, as a system does.
    pub(crate) async fn run(self, host: usize) -> turmoil::Result {
        let life = {
            let mut lives = self.lives.lock().unwrap();
            lives[host] += 1;
            lives[host]
        };
        self.witness.lock().unwrap().note(&format!("{} begins its process {life}", self.name(host)));
        let exits = self.exits.clone();
        let exit = if host == self.peers() { self.coordinator().await } else { self.peer(host, life).await };
        exits.lock().unwrap()[host] = Some(exit);
        std::future::pending().await
    }

    async fn coordinator(self) -> Exit {
        let bound = TcpListener::bind(("0.0.0.0", COORDINATOR_PORT)).await;
        let Ok(listener) = bound else { return Exit::Wrong("the coordinator's port is taken".into()) };
        let prepared = match Prepared::open(self.setting.spec.clone(), &self.folder) {
            Ok(prepared) => prepared,
            Err(error) => return Exit::Wrong(error.to_string()),
        };
        let stop = self.stop;
        let ended = prepared.serve(Connections::of(listener), |handle| {
            tokio::spawn(async move {
                loop {
                    stop.notified().await;
                    handle.stop("the test").await;
                }
            });
        });
        match ended.await {
            Ok(Ended::Finished) => Exit::Finished,
            Ok(Ended::Stopped) => Exit::Stopped("it stopped".into()),
            Ok(Ended::JournalFailed) => Exit::Wrong("the journal cannot be written".into()),
            Err(error) => Exit::Wrong(error.to_string()),
        }
    }

    async fn peer(self, peer: usize, life: u64) -> Exit {
        let config = Config {
            coordinator: format!("http://{COORDINATOR}:{COORDINATOR_PORT}"),
            name: self.setting.spec.peers[peer].name.clone(),
            device: None,
            data: None,
            listen: Some(format!("0.0.0.0:{PEER_PORT}")),
            advertise: Some(format!("{}:{PEER_PORT}", self.setting.name(peer))),
            state: None,
            insecure: true,
        };
        let desk = Desk {
            setting: self.setting.clone(),
            disk: self.disks[peer].clone(),
            witness: self.witness.clone(),
            peer,
            key: self.seed ^ (life << 32) ^ (peer as u64),
        };
        let machine = Machine {
            network: Arc::new(Simulated),
            signals: false,
            trainer: Box::new(move |inputs, shared| Ok(trainer::start(desk, &inputs, shared))),
            process: life as u32,
        };
        exit_of(driver::run(config, machine).await)
    }
}

fn exit_of(outcome: Result<Ending, PeerError>) -> Exit {
    let error = match outcome {
        // It may have been taking its last steps again.
        Ok(Ending { cause: Ok(stop), .. }) if stop.kind == StopKind::Finished => return Exit::Finished,
        Ok(Ending { cause: Ok(stop), .. }) => return Exit::Stopped(stop.sentence),
        Ok(Ending { cause: Err(error), .. }) | Err(error) => error,
    };
    match &error {
        PeerError::Refused(refusal) if refusal.reason == RefusalReason::Finished => Exit::Finished,
        PeerError::LeftBehind { .. } => Exit::Stopped(error.to_string()),
        PeerError::Refused(refusal)
            if matches!(
                refusal.reason,
                RefusalReason::Closed | RefusalReason::LeftBehind | RefusalReason::TakenName
            ) =>
        {
            Exit::Stopped(error.to_string())
        }
        PeerError::Unreachable(_) => Exit::Stopped(error.to_string()),
        _ => Exit::Wrong(error.to_string()),
    }
}
