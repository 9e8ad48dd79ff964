//! The signals that ask the whole job to stop: Ctrl-C, a scheduler's SIGTERM, a terminal that is closed.

use tokio::sync::watch;

use crate::Failure;

/// How often somebody asked to stop.
pub(crate) type Stops = watch::Receiver<u32>;

/// Listens for the life of the process.
///
/// # Errors
/// If the system does not allow it.
#[cfg(unix)]
pub(crate) fn listen() -> Result<Stops, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |error: std::io::Error| Failure::internal(format!("signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let (count, stops) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(stops)
}

/// Listens for the life of the process.
///
/// # Errors
/// Never here.
#[cfg(not(unix))]
pub(crate) fn listen() -> Result<Stops, Failure> {
    let (count, stops) = watch::channel(0);
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(stops)
}
