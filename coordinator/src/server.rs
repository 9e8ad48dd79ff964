//! Assembly: journal, machine, loop and services on a listener, in the order in which they start and end.

use std::io;
use std::path::Path;
use std::time::Duration;

use cohort_proto::limits::{CONTROL_MESSAGE_BYTES_MAX, KEEPALIVE, QUEUE_DEPTH, STREAMS_PER_CONNECTION};
use cohort_proto::spec::RunSpec;
use cohort_proto::wire::FILE_DESCRIPTOR_SET;
use cohort_proto::wire::coordinator_server::CoordinatorServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, Router, TcpIncoming};

use crate::admission;
use crate::clock::{Clock, draw_run_id, wall_ms};
use crate::cluster::{Cluster, History};
use crate::driver::{Driver, Input};
use crate::event::{Ended, Event};
use crate::journal::{Journal, JournalError};
use crate::service::Service;

/// How long the peers' last messages may take to leave after the run is over.
const FAREWELL: Duration = Duration::from_secs(2);

/// A run that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its method cannot work with its numbers.
    #[error("run.toml: {0}")]
    Spec(String),
    /// Its journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The services cannot run.
    #[error("the service cannot run: {0}")]
    Transport(String),
}

/// A run that is ready to be served: its journal is open.
#[derive(Debug)]
pub struct Prepared {
    spec: RunSpec,
    journal: Journal,
    history: History,
}

/// Where signals enter: a clone can ask the run to stop from anywhere.
#[derive(Debug, Clone)]
pub struct StopHandle {
    inputs: mpsc::Sender<Input>,
}

impl StopHandle {
    /// Asks the run to stop: gracefully the first time, at once the second. `by` says who asks, such as `SIGINT`.
    pub async fn stop(&self, by: &str) {
        // A loop that has ended has stopped.
        _ = self.inputs.send(Input::Event(Box::new(Event::StopAsked { by: by.to_owned() }))).await;
    }
}

/// The connections that come to a listener, with every setting that they need.
pub fn connections(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE))
}

impl Prepared {
    /// Checks what the spec asks of the network and opens the journal in `state`. Blocks; needs a runtime.
    ///
    /// # Errors
    /// A spec whose contributions exceed the limits; a folder that cannot be used or belongs to another run.
    pub fn open(spec: RunSpec, state: &Path) -> Result<Self, ServeError> {
        for index in 0..spec.peers.len() {
            let schema = spec.contribution_schema(index);
            let schema =
                schema.map_err(|error| ServeError::Spec(format!("{error}; make the batch smaller")))?;
            admission::check_log_bytes(&spec, &schema).map_err(ServeError::Spec)?;
        }
        let (journal, history) = Journal::open(state, &spec, draw_run_id(), wall_ms())?;
        Ok(Self { spec, journal, history })
    }

    /// The run, as the journal names it.
    pub fn run(&self) -> cohort_proto::id::RunId {
        self.history.run
    }

    /// Serves the run on the connections that come ([`connections`]) until it is over. `ready` gets the handle that
    /// stops it.
    ///
    /// # Errors
    /// The transport fails.
    pub async fn serve<C>(
        self,
        incoming: impl Stream<Item = io::Result<C>> + Send + 'static,
        ready: impl FnOnce(StopHandle),
    ) -> Result<Ended, ServeError>
    where
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let clock = Clock::start();
        let cluster = Cluster::new(clock.now(), self.spec, &self.history);
        let (inputs, queue) = mpsc::channel(QUEUE_DEPTH);
        let router = router(Service::new(inputs.clone())).await?;
        let (shut_down, asked) = oneshot::channel::<()>();
        let serving = router.serve_with_incoming_shutdown(incoming, async { _ = asked.await });
        let mut serving = tokio::spawn(serving);
        ready(StopHandle { inputs });
        let driver = Driver::new(cluster, self.journal, clock, queue);
        let ended = tokio::select! {
            ended = driver.run() => ended,
            broken = &mut serving => {
                let why = broken.map_or_else(|error| error.to_string(), |end| format!("{end:?}"));
                return Err(ServeError::Transport(why));
            }
        };
        _ = shut_down.send(());
        if tokio::time::timeout(FAREWELL, &mut serving).await.is_err() {
            serving.abort();
        }
        Ok(ended)
    }
}

/// The services with their limits.
async fn router(service: Service) -> Result<Router, ServeError> {
    let coordinator = CoordinatorServer::new(service)
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<CoordinatorServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServeError::Transport(error.to_string()))?;
    Ok(tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(coordinator)
        .add_service(health)
        .add_service(reflection))
}

#[cfg(test)]
mod tests;
