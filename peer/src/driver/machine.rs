//! What a peer has of the machine that it runs on, besides the clock: the network, the signals, a thread to train on.

use std::fmt;
use std::sync::Arc;

use crate::error::PeerError;
use crate::net::network::{Network, Tcp};
use crate::trainer::{self, Inputs, Shared, Trainer};

/// Starts what trains.
pub type StartTrainer = Box<dyn FnOnce(Inputs, Shared) -> Result<Trainer, PeerError> + Send>;

/// A machine. The default one is real, and this process is the peer's alone.
pub struct Machine {
    /// How others are reached.
    pub network: Arc<dyn Network>,
    /// Whether signals to this process are meant for this peer.
    pub signals: bool,
    /// Starts what trains.
    pub trainer: StartTrainer,
    /// What tells this process from others in which the same peer ran: its pauses differ from theirs.
    pub process: u32,
}

impl Default for Machine {
    fn default() -> Self {
        let trainer = Box::new(trainer::start);
        Self { network: Arc::new(Tcp), signals: true, trainer, process: std::process::id() }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, signals, process, trainer: _ } = self;
        write!(f, "process {process} on {network:?}, signals {signals}")
    }
}
