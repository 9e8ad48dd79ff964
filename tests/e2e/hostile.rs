//! A peer written by hand with the generated client and server: it joins as it should, and then says what it likes.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cohort_proto::contribution::{Contribution, Header, Position, Tensor};
use cohort_proto::convert::contribution_for;
use cohort_proto::dataset;
use cohort_proto::id::{PeerName, RunId, Step, ViewId};
use cohort_proto::plan::BatchPlan;
use cohort_proto::schema::Schema;
use cohort_proto::spec::RunSpec;
use cohort_proto::wire;
use cohort_proto::wire::exchange_server::{Exchange, ExchangeServer};
use cohort_proto::wire::from_peer::Message as Up;
use cohort_proto::wire::join_reply::Outcome;
use cohort_proto::wire::to_peer::Message as Down;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use crate::call::{client, honest_join};

/// The name under which the hostile peer joins.
pub(crate) const NAME: &str = "b";

/// What it knows when it speaks.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) run: RunId,
    pub(crate) view: ViewId,
    pub(crate) schema: Schema,
    plan: std::sync::Mutex<BatchPlan>,
}

impl Speaker {
    /// The header that an honest peer would write.
    pub(crate) fn header(&self, step: Step) -> Result<Header> {
        let mut plan = self.plan.lock().map_err(|_| anyhow::anyhow!("the plan is poisoned"))?;
        let batch_hash = plan.batch(step)?.hash;
        let source = PeerName::new(NAME)?;
        Ok(Header { run: self.run, view: self.view, position: Position::of(step), source, batch_hash })
    }

    /// Tensors of a schema, all zero, sealed under a header.
    pub(crate) fn sealed(&self, header: Header, schema: &Schema) -> Result<wire::Contribution> {
        let zeros = |spec: &cohort_proto::schema::TensorSpec| -> Result<Tensor> {
            let bytes = spec.byte_len().context("too large")?;
            Ok(Tensor { spec: spec.clone(), data: vec![0; bytes].into() })
        };
        let tensors: Result<Vec<Tensor>> = schema.tensors().iter().map(zeros).collect();
        Ok(contribution_for(&Contribution::seal(header, tensors?, schema)?, |_| true))
    }

    /// What an honest peer might say.
    pub(crate) fn honest(&self, step: Step) -> Result<wire::Contribution> {
        self.sealed(self.header(step)?, &self.schema)
    }
}

/// What it says to whoever follows it: the entry at place i once the follower has completed i steps, and after all of
/// them nothing any more.
pub(crate) type Script = fn(&Speaker) -> Result<Vec<wire::Contribution>>;

/// How it behaves towards the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// As a real peer: heartbeats, and it leaves when it is told to stop.
    Good,
    /// It attends, and is never heard again.
    Mute,
}

struct Service {
    url: String,
    speaker: Arc<OnceLock<Speaker>>,
    script: Script,
}

#[tonic::async_trait]
impl Exchange for Service {
    type FollowStream = ReceiverStream<Result<wire::Contribution, Status>>;

    async fn follow(
        &self,
        request: Request<wire::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let speaker = self.speaker.get().ok_or_else(|| Status::unavailable("no view yet"))?;
        let said = (self.script)(speaker).map_err(|error| Status::unknown(format!("{error:#}")))?;
        let (tx, rx) = mpsc::channel(16);
        let (url, follower) = (self.url.clone(), request.into_inner().follower);
        tokio::spawn(async move {
            for (steps, message) in (0..).zip(said) {
                if until_completed(&url, &follower, steps).await.is_err()
                    || tx.send(Ok(message)).await.is_err()
                {
                    return;
                }
            }
            tx.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

async fn until_completed(url: &str, peer: &str, steps: Step) -> Result<()> {
    let mut client = client(url).await?;
    loop {
        let status = client.status(wire::StatusRequest {}).await?.into_inner();
        if status.members.iter().any(|member| member.name == peer && member.steps_done >= steps) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The hostile peer at work. Dropping it takes it off the network, like a process that is killed.
#[derive(Debug)]
pub(crate) struct Hostile {
    _runtime: Runtime,
}

impl Hostile {
    /// Joins and attends; what follows happens on threads of its own.
    pub(crate) fn join(url: &str, manners: Manners, script: Script) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(join(url.to_owned(), manners, script))?;
        Ok(Self { _runtime: runtime })
    }
}

async fn join(url: String, manners: Manners, script: Script) -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    let speaker = Arc::new(OnceLock::new());
    let service = ExchangeServer::new(Service { url: url.clone(), speaker: speaker.clone(), script });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut client = client(&url).await?;
    let (spec, request) = honest_join(&mut client, NAME, &address.to_string()).await?;
    let Some(Outcome::Accepted(accepted)) = client.join(request).await?.into_inner().outcome else {
        bail!("the hostile peer is refused before it could be hostile")
    };
    let (up, messages) = mpsc::channel(16);
    let hello = wire::Hello { run: accepted.run, name: NAME.into(), session: accepted.session };
    up.send(from_peer(Up::Hello(hello))).await?;
    let mut down = client.attend(ReceiverStream::new(messages)).await?.into_inner();
    tokio::spawn(async move {
        let mut heartbeats = tokio::time::interval(Duration::from_millis(accepted.heartbeat_ms));
        loop {
            let message = tokio::select! {
                message = down.message() => message,
                _ = heartbeats.tick() => {
                    if manners == Manners::Good {
                        up.send(from_peer(Up::Heartbeat(wire::Heartbeat::default()))).await?;
                    }
                    continue;
                }
            };
            match message?.and_then(|message| message.message) {
                Some(Down::View(view)) => {
                    // The first view is the only one.
                    _ = speaker.set(speak(&spec, RunId(accepted.run), ViewId(view.id))?);
                }
                Some(Down::Stop(_)) if manners == Manners::Good => {
                    let leaving = wire::Leaving { steps_done: 0, finished: false, reason: "told to".into() };
                    up.send(from_peer(Up::Leaving(leaving))).await?;
                }
                Some(_) => {}
                None => return anyhow::Ok(()),
            }
        }
    });
    Ok(())
}

fn speak(spec: &RunSpec, run: RunId, view: ViewId) -> Result<Speaker> {
    let data = &spec.data;
    let folder = data.path.clone().unwrap_or_default();
    let labels = dataset::load_labels(&folder, data.dataset, dataset::Split::Train, data.train_limit)?;
    let plan = std::sync::Mutex::new(spec.batch_plan(&labels)?);
    Ok(Speaker { run, view, schema: spec.contribution_schema(0)?, plan })
}

fn from_peer(message: Up) -> wire::FromPeer {
    wire::FromPeer { message: Some(message) }
}
