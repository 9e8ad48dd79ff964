//! The services over real sockets, against peers written by hand.

use std::net::SocketAddr;

use cohort_proto::control::{
    Accepted, FromPeer, JoinRequest, Refusal, RefusalReason, Start, StepReport, ToPeer,
};
use cohort_proto::control::{Stop, StopKind};
use cohort_proto::id::{Digest, PeerName, ViewId};
use cohort_proto::limits::PROTOCOL_VERSION;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::*;

const TOML: &str = r#"
[run]
name = "served"
steps = 3
[data]
dataset = "fashion-mnist"
batch = 8
[method]
name = "dml"
[policy]
failure_timeout_ms = 1000
wait_timeout_ms = 3000
[[peer]]
name = "a"
arch = "resnet8"
[[peer]]
name = "b"
arch = "wrn_16_1"
"#;

struct Served {
    address: SocketAddr,
    stop: StopHandle,
    ended: JoinHandle<Result<Ended, ServeError>>,
    _state: tempfile::TempDir,
}

async fn served() -> Served {
    let state = tempfile::tempdir().unwrap();
    let prepared = Prepared::open(RunSpec::parse(TOML).unwrap(), state.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, ready) = oneshot::channel();
    let ended = tokio::spawn(prepared.serve(connections(listener), |stop| _ = handle.send(stop)));
    Served { address, stop: ready.await.unwrap(), ended, _state: state }
}

struct Peer {
    name: PeerName,
    client: CoordinatorClient<Channel>,
    accepted: Option<Accepted>,
    up: Option<mpsc::Sender<wire::FromPeer>>,
    down: Option<Streaming<wire::ToPeer>>,
}

impl Peer {
    async fn new(served: &Served, name: &str) -> Self {
        let client = CoordinatorClient::connect(format!("http://{}", served.address)).await.unwrap();
        Self { name: PeerName::new(name).unwrap(), client, accepted: None, up: None, down: None }
    }

    fn request(&self) -> wire::JoinRequest {
        let spec = RunSpec::parse(TOML).unwrap();
        JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            name: self.name.clone(),
            spec_hash: spec.hash(),
            arch: spec.peer(&self.name).unwrap().1.arch.clone(),
            classes: 10,
            address: format!("127.0.0.1:{}", 4000 + u16::from(self.name.as_str().as_bytes()[0])),
            schema: spec.contribution_schema(0).unwrap(),
            dataset_fingerprint: Digest::of("data"),
            total_steps: 3,
            checkpoints: None,
            standing: None,
        }
        .into()
    }

    async fn present(&mut self, request: wire::JoinRequest) -> Result<Accepted, Refusal> {
        let reply = self.client.join(request).await.unwrap().into_inner();
        reply.try_into().unwrap()
    }

    async fn open(&mut self, first: wire::FromPeer) -> Result<(), tonic::Status> {
        let (up, outgoing) = mpsc::channel(16);
        up.send(first).await.unwrap();
        self.down = Some(self.client.attend(ReceiverStream::new(outgoing)).await?.into_inner());
        self.up = Some(up);
        Ok(())
    }

    async fn attend(&mut self) {
        let accepted = self.present(self.request()).await.unwrap();
        self.accepted = Some(accepted);
        let hello = FromPeer::Hello { run: accepted.run, name: self.name.clone(), session: accepted.session };
        self.open(hello.into()).await.unwrap();
    }

    async fn say(&self, message: FromPeer) {
        self.up.as_ref().unwrap().send(message.into()).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Option<ToPeer>, tonic::Status> {
        let message = self.down.as_mut().unwrap().message().await?;
        Ok(message.map(|message| message.try_into().unwrap()))
    }

    async fn next(&mut self) -> ToPeer {
        self.hear().await.unwrap().unwrap()
    }

    async fn until_stop(&mut self) -> Stop {
        loop {
            if let ToPeer::Stop(stop) = self.next().await {
                return stop;
            }
        }
    }

    fn report(&self, step: u64) -> FromPeer {
        let other = if self.name.as_str() == "a" { "b" } else { "a" };
        let digest = |peer: &str| Digest::of(format!("{peer}{step}"));
        FromPeer::Report(StepReport {
            step,
            view: ViewId(1),
            epoch: 0,
            lr: 0.1,
            own_digest: digest(self.name.as_str()),
            consumed: vec![(PeerName::new(other).unwrap(), digest(other))],
            terms: vec![],
            timings: vec![],
            images: 8,
            log_bytes: 0,
            said: vec![],
        })
    }
}

#[tokio::test]
async fn a_whole_run() {
    let served = served().await;
    let (mut a, mut b) = (Peer::new(&served, "a").await, Peer::new(&served, "b").await);
    a.attend().await;
    let taken = a.present(a.request()).await.unwrap_err();
    assert_eq!(taken.reason, RefusalReason::TakenName);
    b.attend().await;
    for peer in [&mut a, &mut b] {
        let ToPeer::View(view) = peer.next().await else { panic!("first the view") };
        assert_eq!((view.id, view.begins_at, view.members.len()), (ViewId(1), 0, 2));
        assert_eq!(peer.next().await, ToPeer::Start(Start::at(0)));
        assert_eq!(peer.next().await, ToPeer::Lease(2));
    }
    for step in 0..3 {
        a.say(a.report(step)).await;
        b.say(b.report(step)).await;
        if step == 0 {
            assert_eq!(a.next().await, ToPeer::Lease(3));
        }
    }
    for peer in [&a, &b] {
        peer.say(FromPeer::CheckpointSaved { step: 3, held: vec![3] }).await;
    }
    let stop = a.until_stop().await;
    assert_eq!(stop, Stop { kind: StopKind::Finished, sentence: "all 3 steps are complete".into() });
    let status = a.client.status(wire::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.phase(), status.total_steps, status.lease_until), (wire::Phase::Finished, 3, 3));
    assert!(status.members.iter().all(|member| member.steps_done == 3 && member.report.is_some()));
    assert!(status.journal_bytes > 0);
    let text = crate::status::StatusView::from(status).text();
    assert!(text.contains("finished") && text.contains("wrn_16_1"), "{text}");
    for peer in [&mut a, &mut b] {
        peer.say(FromPeer::Leaving { steps_done: 3, finished: true, reason: String::new() }).await;
    }
    assert_eq!(a.hear().await.unwrap(), None, "a stream that ends well ends without an error");
    assert_eq!(served.ended.await.unwrap().unwrap(), Ended::Finished);
}

#[tokio::test]
async fn what_a_peer_must_not_say() {
    let served = served().await;
    let mut a = Peer::new(&served, "a").await;
    let malformed = wire::JoinRequest { spec_hash: vec![1], ..a.request() };
    let refusal = a.present(malformed).await.unwrap_err();
    assert!(
        refusal.reason == RefusalReason::Malformed && refusal.sentence.contains("spec_hash"),
        "{refusal}"
    );
    // A message of another version is refused for that, whatever else is strange about it.
    let newer = wire::JoinRequest { protocol_version: 9, spec_hash: vec![1], ..a.request() };
    assert_eq!(a.present(newer).await.unwrap_err().reason, RefusalReason::ProtocolVersion);
    let first = a.open(FromPeer::Heartbeat(Default::default()).into()).await.unwrap_err();
    assert!(first.code() == Code::InvalidArgument && first.message().contains("hello"), "{first}");
    let stranger = FromPeer::Hello { run: cohort_proto::id::RunId(1), name: a.name.clone(), session: 1 };
    a.open(stranger.into()).await.unwrap();
    let refused = a.hear().await.unwrap_err();
    assert!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("join again"),
        "{refused}"
    );
    let huge = wire::JoinRequest { arch: "x".repeat(5 << 20), ..a.request() };
    assert_eq!(a.client.join(huge).await.unwrap_err().code(), Code::OutOfRange);
    // The peer that broke off the protocol is expected again, and everything still works.
    a.attend().await;
    a.up.as_ref().unwrap().send(wire::FromPeer { message: None }).await.unwrap();
    let status = loop {
        let status = a.client.status(wire::StatusRequest {}).await.unwrap().into_inner();
        if status.members[0].state() != wire::MemberState::Attending {
            break status;
        }
    };
    assert_eq!(status.phase(), wire::Phase::Gathering);
}

#[tokio::test]
async fn a_peer_that_hangs_up_and_stays_away_ends_the_run_for_the_others() {
    let served = served().await;
    let (mut a, mut b) = (Peer::new(&served, "a").await, Peer::new(&served, "b").await);
    a.attend().await;
    b.attend().await;
    b.next().await;
    drop(b);
    let beating = a.up.clone().unwrap();
    let heart = tokio::spawn(async move {
        while beating.send(FromPeer::Heartbeat(Default::default()).into()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let stop = tokio::time::timeout(Duration::from_secs(20), a.until_stop()).await.unwrap();
    assert!(stop.kind == StopKind::AtOnce && stop.sentence.contains("waiting for b"), "{stop:?}");
    a.say(FromPeer::Leaving { steps_done: 0, finished: false, reason: String::new() }).await;
    assert_eq!(served.ended.await.unwrap().unwrap(), Ended::Stopped);
    heart.abort();
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_given_up() {
    let served = served().await;
    let mut a = Peer::new(&served, "a").await;
    a.attend().await;
    // While it waits for others, each wish is answered, and nobody reads the answers.
    let wish = FromPeer::StopWish("x".repeat(900));
    let up = a.up.clone().unwrap();
    let flood = tokio::spawn(async move { while up.send(wish.clone().into()).await.is_ok() {} });
    let given_up = async {
        let mut other = Peer::new(&served, "b").await;
        loop {
            let status = other.client.status(wire::StatusRequest {}).await.unwrap().into_inner();
            if status.members[0].state() != wire::MemberState::Attending {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), given_up).await.unwrap();
    flood.abort();
}

#[tokio::test]
async fn it_stops_when_asked_and_serves_health() {
    let served = served().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.connect().await.unwrap());
    let service = "cohort.v1.Coordinator".to_owned();
    let reply = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(reply.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    served.stop.stop("test").await;
    assert_eq!(served.ended.await.unwrap().unwrap(), Ended::Stopped);
}
