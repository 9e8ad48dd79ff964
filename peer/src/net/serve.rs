//! The service through which other peers follow our log.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use cohort_proto::contribution::Contribution;
use cohort_proto::control::Follow;
use cohort_proto::convert::contribution_for;
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::limits::{
    EXCHANGE_MESSAGE_BYTES_MAX, KEEPALIVE, PEERS_MAX, PROTOCOL_VERSION, STREAMS_PER_CONNECTION,
};
use cohort_proto::wire;
use cohort_proto::wire::exchange_server::{Exchange, ExchangeServer};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::error::PeerError;
use crate::log::{ContributionLog, Gone};
use crate::net::network::{Listener, Network};
use crate::relay::Relay;

/// Bytes of a request of the data plane: names and numbers only.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Entries that are on their way to one follower: the one being sent and the next.
const ENTRIES_IN_FLIGHT: usize = 2;

/// What the service answers with.
#[derive(Debug)]
pub struct Served {
    /// This peer.
    pub me: PeerName,
    /// Who may follow: the names of the run spec.
    pub followers: BTreeSet<PeerName>,
    /// The log.
    pub log: Arc<ContributionLog>,
    /// What it received of others, for those who have received less.
    pub relay: Arc<Relay>,
    /// Known once the coordinator has accepted this peer; nobody can follow before.
    pub run: OnceLock<RunId>,
}

/// Binds the address that followers will be told.
pub async fn bind(network: &dyn Network, listen: &str) -> Result<(Box<dyn Listener>, SocketAddr), PeerError> {
    network.listen(listen).await.map_err(|error| {
        PeerError::Unreachable(format!("cannot listen on {listen}: {error}; choose another --listen"))
    })
}

/// Serves until `stop` is dropped or says so.
pub async fn serve(
    listener: Box<dyn Listener>,
    served: Arc<Served>,
    stop: oneshot::Receiver<()>,
) -> Result<(), PeerError> {
    let exchange = ExchangeServer::new(Service { served, follows: Arc::new(Semaphore::new(PEERS_MAX)) })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(EXCHANGE_MESSAGE_BYTES_MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ExchangeServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| PeerError::Internal(format!("gRPC reflection: {error}")))?;
    let services = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(exchange)
        .add_service(health_service)
        .add_service(reflection);
    let served = listener.serve(services, stop).await;
    served.map_err(|error| PeerError::Internal(format!("the exchange service ended: {error}")))
}

struct Service {
    served: Arc<Served>,
    /// One permit a stream that is being served.
    follows: Arc<Semaphore>,
}

impl Service {
    fn check(&self, follow: &Follow) -> Result<(), Status> {
        let Served { me, followers, run, .. } = &*self.served;
        if follow.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "protocol version {} is not spoken here; peer {me} speaks {PROTOCOL_VERSION}",
                follow.protocol_version
            )));
        }
        if &follow.source != me && self.served.relay.entries(&follow.source, follow.from).is_none() {
            return Err(Status::not_found(format!("this is peer {me}, not {}", follow.source)));
        }
        if !followers.contains(&follow.follower) {
            return Err(Status::permission_denied(format!("{} is not in this run", follow.follower)));
        }
        match run.get() {
            // It has just been accepted and will know in a moment: worth another attempt.
            None => Err(Status::unavailable(format!("peer {me} has not joined yet"))),
            Some(run) if *run != follow.run => {
                Err(Status::not_found(format!("peer {me} is in run {run}, not in run {}", follow.run)))
            }
            Some(_) => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Exchange for Service {
    type FollowStream = ReceiverStream<Result<wire::Contribution, Status>>;

    async fn follow(
        &self,
        request: Request<wire::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let follow = Follow::try_from(request.into_inner())?;
        self.check(&follow)?;
        let permit = self.follows.clone().try_acquire_owned();
        let permit = permit
            .map_err(|_| Status::resource_exhausted(format!("{PEERS_MAX} streams are served already")))?;
        let (tx, rx) = mpsc::channel(ENTRIES_IN_FLIGHT);
        let served = self.served.clone();
        tokio::spawn(async move {
            if follow.source == served.me {
                send_entries(&served.log, &follow, &tx).await;
            } else {
                relay_entries(&served.relay, &follow, &tx).await;
            }
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// What another peer said, as far as it came here; nothing is added to that any more.
async fn relay_entries(
    relay: &Relay,
    follow: &Follow,
    tx: &mpsc::Sender<Result<wire::Contribution, Status>>,
) {
    for entry in relay.entries(&follow.source, follow.from).unwrap_or_default() {
        if tx.send(Ok(message_for(follow, &entry))).await.is_err() {
            return;
        }
    }
    tx.closed().await;
}

/// An entry as it travels to a follower: of the tensors that it does not learn from only the digests.
fn message_for(follow: &Follow, entry: &Contribution) -> wire::Contribution {
    contribution_for(entry, |name| follow.wanted.contains(name))
}

async fn send_entries(
    log: &ContributionLog,
    follow: &Follow,
    tx: &mpsc::Sender<Result<wire::Contribution, Status>>,
) {
    let generation = log.generation();
    let mut from = follow.from;
    loop {
        let entry = tokio::select! {
            biased;
            // The follower hung up while there was nothing to send.
            () = tx.closed() => return,
            entry = log.next(from, generation) => entry,
        };
        let message = match entry {
            Ok(entry) => {
                from = entry.header().position.following();
                Ok(message_for(follow, &entry))
            }
            Err(gone @ Gone::Released { .. }) => Err(Status::data_loss(gone.to_string())),
            Err(gone @ Gone::Anew) => Err(Status::aborted(gone.to_string())),
        };
        let last = message.is_err();
        if tx.send(message).await.is_err() || last {
            return;
        }
    }
}
