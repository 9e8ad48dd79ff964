//! The tonic handlers: decode, enqueue, await. They decide nothing and hold nothing that a peer could make grow: every
//! queue has a length and every wait an end.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_proto::control::{FromPeer, JoinRequest, Refusal, RefusalReason};
use cohort_proto::limits::{CONNECT_TIMEOUT, QUEUE_DEPTH};
use cohort_proto::wire;
use cohort_proto::wire::coordinator_server::Coordinator;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::admission;
use crate::driver::{Input, Outlet};
use crate::event::{Event, StreamId, Ticket};

/// How long the first message of a stream may take.
const HELLO_TIMEOUT: Duration = CONNECT_TIMEOUT;

/// Messages that may wait for one peer. A peer is sent about one a step; one that is this far behind does not read.
const OUTLET_DEPTH: usize = QUEUE_DEPTH;

/// The way into the deciding loop; clones share it.
#[derive(Debug, Clone)]
pub struct Service {
    inputs: mpsc::Sender<Input>,
    /// Tickets and streams are numbered by one counter.
    numbers: Arc<AtomicU64>,
}

impl Service {
    /// Hands inputs to the loop that reads `inputs`.
    pub fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self { inputs, numbers: Arc::new(AtomicU64::new(1)) }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    async fn enqueue(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| over())
    }
}

fn over() -> Status {
    Status::unavailable("this coordinator is ending")
}

fn remote<T>(request: &Request<T>) -> Option<IpAddr> {
    request.remote_addr().map(|address| address.ip())
}

#[tonic::async_trait]
impl Coordinator for Service {
    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        let (answer, waits) = oneshot::channel();
        self.enqueue(Input::Status(answer)).await?;
        waits.await.map(Response::new).map_err(|_| over())
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let remote = remote(&request);
        let request = match decode_join(request.into_inner()) {
            Ok(request) => Box::new(request),
            Err(refusal) => {
                tracing::warn!("a peer is refused: {refusal}");
                return Ok(Response::new(Err(refusal).into()));
            }
        };
        let (answer, waits) = oneshot::channel();
        let event = Box::new(Event::Join { ticket: Ticket(self.number()), remote, request });
        self.enqueue(Input::Join { event, answer }).await?;
        let outcome = waits.await.map_err(|_| over())?;
        Ok(Response::new(outcome.into()))
    }

    type AttendStream = ReceiverStream<Result<wire::ToPeer, Status>>;

    async fn attend(
        &self,
        request: Request<Streaming<wire::FromPeer>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came on the stream"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before its hello"))?;
        let FromPeer::Hello { run, name, session } = FromPeer::try_from(first)? else {
            return Err(Status::invalid_argument("the first message of a stream must be a hello"));
        };
        let stream = StreamId(self.number());
        let (queue, outgoing) = mpsc::channel(OUTLET_DEPTH);
        let (open, closed) = oneshot::channel();
        let event = Box::new(Event::Hello { stream, run, name, session });
        self.enqueue(Input::Open { event, outlet: Outlet { queue, open } }).await?;
        tokio::spawn(listen(self.clone(), stream, incoming, closed));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A message of another version need not even decode, so its version is looked at first.
fn decode_join(request: wire::JoinRequest) -> Result<JoinRequest, Refusal> {
    admission::check_version(request.protocol_version)?;
    JoinRequest::try_from(request).map_err(|error| Refusal {
        reason: RefusalReason::Malformed,
        sentence: format!("the join request's {error}"),
    })
}

/// Hands on what a peer says until its stream ends or the loop drops its outlet.
async fn listen(
    service: Service,
    stream: StreamId,
    mut incoming: Streaming<wire::FromPeer>,
    mut closed: oneshot::Receiver<()>,
) {
    let cause = loop {
        let message = tokio::select! {
            biased;
            _ = &mut closed => return,
            message = incoming.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => FromPeer::try_from(message),
            Ok(None) => break "was closed without a goodbye".to_owned(),
            Err(status) => break format!("broke ({})", status.message()),
        };
        let event = match message {
            Ok(message) => Event::Message { stream, message },
            Err(error) => break format!("was given up: it carried a message whose {error}"),
        };
        if service.enqueue(Input::Event(Box::new(event))).await.is_err() {
            return;
        }
    };
    // If the loop has ended, nobody needs to know.
    _ = service.enqueue(Input::Event(Box::new(Event::StreamClosed { stream, cause }))).await;
}
