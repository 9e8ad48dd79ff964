//! `serve`.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use cohort_proto::exit::Exit;
use tokio::net::TcpListener;

use super::{Failure, ServeArgs, load};
use crate::event::Ended;
use crate::journal::JournalError;
use crate::server::{Prepared, ServeError, StopHandle, connections};

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let exit = match &error {
            ServeError::Spec(_) | ServeError::Journal(JournalError::OtherRun { .. }) => Exit::BadSpec,
            ServeError::Journal(_) => Exit::Storage,
            ServeError::Transport(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

pub(super) fn serve(args: &ServeArgs) -> Result<Exit, Failure> {
    let spec = load(&args.run)?;
    let spec_hash = spec.hash();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Internal, error))?;
    runtime.block_on(async {
        // The address first: a second start of the same command must not even touch the first one's journal.
        let listener = TcpListener::bind(&args.listen).await;
        let unusable = |error: io::Error| {
            Failure::new(
                Exit::Unreachable,
                format!("cannot listen on {}: {error}; give another --listen", args.listen),
            )
        };
        let listener = listener.map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        warn_beyond_loopback(address, args.insecure);
        let prepared = Prepared::open(spec, &args.state)?;
        let line = serde_json::json!({
            "listening": address.to_string(),
            "run": prepared.run().to_string(),
            "spec_hash": spec_hash.to_string(),
        });
        // Whoever knows that this process listens may ask it to stop.
        let signals = Signals::listen();
        announce(&line.to_string(), args.ready_file.as_deref())?;
        let ended = prepared.serve(connections(listener), |handle| signals.pass_on(&handle)).await?;
        Ok(match ended {
            Ended::Finished => Exit::Finished,
            Ended::Stopped => Exit::Stopped,
            Ended::JournalFailed => Exit::Storage,
        })
    })
}

fn warn_beyond_loopback(address: SocketAddr, insecure: bool) {
    if !address.ip().is_loopback() && !insecure {
        tracing::warn!(
            "listening on {address} without encryption or authentication: anyone who reaches this address can read \
             what the peers report and stop the run; use a network that you trust, and say so with --insecure"
        );
    }
}

/// The listener is bound, so whoever reads this can call: the kernel holds calls until the service takes them.
fn announce(line: &str, ready_file: Option<&Path>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    // A script that reads no output still wants the run.
    _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    if let Some(path) = ready_file {
        let unwritable = |error: io::Error| {
            Failure::new(Exit::Storage, format!("cannot write {}: {error}", path.display()))
        };
        let temporary = path.with_extension("partial");
        fs::write(&temporary, format!("{line}\n")).map_err(unwritable)?;
        fs::rename(&temporary, path).map_err(unwritable)?;
    }
    Ok(())
}

/// SIGINT, SIGTERM and SIGUSR1, which are caught from here on.
#[cfg(unix)]
struct Signals(Vec<(&'static str, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let mut caught = Vec::new();
        let kinds = [
            (SignalKind::interrupt(), "SIGINT"),
            (SignalKind::terminate(), "SIGTERM"),
            (SignalKind::user_defined1(), "SIGUSR1"),
        ];
        for (kind, name) in kinds {
            match signal(kind) {
                Ok(signals) => caught.push((name, signals)),
                Err(error) => {
                    tracing::warn!(
                        "{name} cannot be caught and will end the run without a checkpoint: {error}"
                    )
                }
            }
        }
        Self(caught)
    }

    /// Passes them on, for as long as the process lives.
    fn pass_on(self, handle: &StopHandle) {
        for (name, mut signals) in self.0 {
            let handle = handle.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    handle.stop(name).await;
                }
            });
        }
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    /// Passes it on, for as long as the process lives.
    fn pass_on(self, handle: &StopHandle) {
        let handle = handle.clone();
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                handle.stop("Ctrl-C").await;
            }
        });
    }
}
