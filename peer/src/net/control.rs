//! The coordinator as seen from a peer.

use std::sync::Arc;

use cohort_proto::control::{Accepted, FromPeer, JoinRequest, Refusal, ToPeer};
use cohort_proto::id::{Digest, RunId};
use cohort_proto::limits::{CONTROL_MESSAGE_BYTES_MAX, PROTOCOL_VERSION, QUEUE_DEPTH};
use cohort_proto::spec::RunSpec;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::backoff::Backoff;
use super::channel;
use super::network::Network;
use crate::error::PeerError;

/// A connection to the coordinator.
#[derive(Debug, Clone)]
pub struct Control {
    url: String,
    client: CoordinatorClient<Channel>,
}

/// The stream of an attending peer.
#[derive(Debug)]
pub struct Attendance {
    /// Heartbeats and reports up.
    pub up: mpsc::Sender<wire::FromPeer>,
    down: Streaming<wire::ToPeer>,
}

impl Control {
    /// Connects, with bounded retries.
    ///
    /// # Errors
    /// If nobody answers, or the URL is none.
    pub async fn connect(network: &dyn Network, url: &str, backoff: Backoff) -> Result<Self, PeerError> {
        Ok(Self::on(url, channel::connect(network, url, "the coordinator", backoff).await?))
    }

    /// One attempt to come back: connects, joins and attends.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] if it is worth another attempt.
    pub async fn come_back(
        network: Arc<dyn Network>,
        url: String,
        request: JoinRequest,
        run: RunId,
    ) -> Result<(Accepted, Attendance), PeerError> {
        let channel = channel::connect_once(&*network, &url).await?.map_err(PeerError::Unreachable)?;
        let mut control = Self::on(&url, channel);
        let name = request.name.clone();
        let accepted = control.join(request).await?;
        if accepted.run != run {
            let other = accepted.run;
            return Err(PeerError::Mismatch(format!(
                "the coordinator at {url} now serves run {other}, not run {run} of which this peer is part; give it the \
                 --state folder that it had"
            )));
        }
        let attendance = control.attend(FromPeer::Hello { run, name, session: accepted.session }).await?;
        Ok((accepted, attendance))
    }

    fn on(url: &str, channel: Channel) -> Self {
        let client = CoordinatorClient::new(channel)
            .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
        Self { url: url.to_owned(), client }
    }

    fn failed(&self, asked: &str, status: &tonic::Status) -> PeerError {
        PeerError::Unreachable(format!(
            "the coordinator at {} did not answer {asked}: {}",
            self.url,
            status.message()
        ))
    }

    /// The run spec that the coordinator hands out, checked against its hash.
    pub async fn run_spec(&mut self) -> Result<(RunSpec, Digest), PeerError> {
        let reply = self.client.status(wire::StatusRequest {}).await;
        let status = reply.map_err(|status| self.failed("status", &status))?.into_inner();
        if status.protocol_version != PROTOCOL_VERSION {
            return Err(PeerError::Mismatch(format!(
                "the coordinator at {} speaks protocol version {}, this peer {PROTOCOL_VERSION}; install the same \
                 version of Cohort on both",
                self.url, status.protocol_version
            )));
        }
        let hash = Digest::of(&status.spec_json);
        if status.spec_hash != hash.0 {
            return Err(PeerError::Mismatch(format!(
                "the run spec from {} does not have the hash it claims",
                self.url
            )));
        }
        Ok((RunSpec::from_json(&status.spec_json)?, hash))
    }

    /// Presents this peer.
    pub async fn join(&mut self, request: JoinRequest) -> Result<Accepted, PeerError> {
        let reply = self.client.join(wire::JoinRequest::from(request)).await;
        let reply = reply.map_err(|status| self.failed("join", &status))?.into_inner();
        let outcome = Result::<Accepted, Refusal>::try_from(reply);
        Ok(outcome
            .map_err(|error| PeerError::Mismatch(format!("the coordinator's answer to join: {error}")))??)
    }

    /// Opens the stream; `hello` is the first message on it.
    pub async fn attend(&mut self, hello: FromPeer) -> Result<Attendance, PeerError> {
        let (up, rx) = mpsc::channel(QUEUE_DEPTH);
        // The queue is empty and open, so this cannot wait.
        let _ = up.send(hello.into()).await;
        let down = self.client.attend(ReceiverStream::new(rx)).await;
        let down = down.map_err(|status| self.failed("attend", &status))?.into_inner();
        Ok(Attendance { up, down })
    }
}

impl Attendance {
    /// The next word of the coordinator; `None` when the stream has ended, with the reason if it broke.
    pub async fn next(&mut self) -> Result<Option<ToPeer>, String> {
        match self.down.message().await {
            Ok(Some(message)) => ToPeer::try_from(message).map(Some).map_err(|error| error.to_string()),
            Ok(None) => Ok(None),
            Err(status) => Err(if status.message().is_empty() {
                status.code().to_string()
            } else {
                status.message().to_owned()
            }),
        }
    }
}
