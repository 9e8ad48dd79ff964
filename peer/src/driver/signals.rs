//! The signals that ask a process to stop: interrupt from a terminal, terminate from a scheduler, and the user signal
//! that Slurm sends before it takes the machine away.

use std::io;

/// Signals that have been asked for.
#[derive(Debug)]
pub(super) struct Signals {
    #[cfg(unix)]
    kinds: [tokio::signal::unix::Signal; 3],
}

/// The next signal; never, if none were asked for.
pub(super) async fn next(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    }
}

impl Signals {
    #[cfg(unix)]
    pub(super) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::user_defined1()];
        let [interrupt, terminate, user] = kinds.map(signal);
        Ok(Self { kinds: [interrupt?, terminate?, user?] })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        let [interrupt, terminate, user] = &mut self.kinds;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = user.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
