//! Following another peer's contribution log, live or from an older entry on: the same call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cohort_proto::contribution::{Contribution, Position};
use cohort_proto::control::Follow;
use cohort_proto::convert::open_contribution;
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::limits::{EXCHANGE_MESSAGE_BYTES_MAX, INBOX_PER_SOURCE, PROTOCOL_VERSION};
use cohort_proto::meta::Agenda;
use cohort_proto::rng::key_of;
use cohort_proto::view::{Member, Views};
use cohort_proto::wire;
use cohort_proto::wire::exchange_client::ExchangeClient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::backoff::Backoff;
use super::channel;
use super::network::Network;
use crate::error::PeerError;

/// Bytes that names and numbers add to the tensors of a contribution: a kilobyte each is more than they can need.
const MESSAGE_OVERHEAD: usize = 64 << 10;

/// A contribution that arrived, and the place it takes in the inbox until it is consumed.
#[derive(Debug)]
pub struct Delivery {
    /// What was said.
    pub contribution: Arc<Contribution>,
    /// Which time that this peer follows its sources: after it started elsewhere, what is still under way is void.
    pub epoch: u64,
    place: OwnedSemaphorePermit,
}

impl Delivery {
    /// One that did not come over the network.
    #[cfg(test)]
    pub(crate) fn new(contribution: Arc<Contribution>, epoch: u64, place: OwnedSemaphorePermit) -> Self {
        Self { contribution, epoch, place }
    }

    /// Frees the place: the source may send one more.
    pub fn into_contribution(self) -> (Arc<Contribution>, Place) {
        (self.contribution, Place { _permit: self.place })
    }
}

/// A place in the inbox; free again when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The first entry of a source that was not delivered yet, shared between the task that follows and whoever starts the
/// next such task.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<Mutex<Position>>);

impl Reached {
    /// Everything before this is there.
    pub fn at(position: Position) -> Self {
        Self(Arc::new(Mutex::new(position)))
    }

    /// The first entry wanted.
    pub fn get(&self) -> Position {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing before this is wanted.
    pub fn raise(&self, position: Position) {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = position.max(*reached);
    }
}

/// Whose log is followed, by whom, and from where.
#[derive(Debug, Clone)]
pub struct Following {
    /// The way to the source.
    pub network: Arc<dyn Network>,
    /// The source.
    pub source: Member,
    /// This peer.
    pub me: PeerName,
    /// The names of the tensors that it learns from.
    pub wanted: BTreeSet<String>,
    /// The run.
    pub run: RunId,
    /// What is said in the rounds of its steps.
    pub agenda: Agenda,
    /// The first entry wanted.
    pub reached: Reached,
    /// The views that this peer knows: an entry of another view is not taken.
    pub views: Arc<Views>,
    /// Which time that this peer follows its sources.
    pub epoch: u64,
    /// Places in the inbox, shared as `reached` is: what an earlier task delivered may still be waiting there.
    pub places: Arc<Semaphore>,
}

/// The places of one source in an inbox that is empty.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(INBOX_PER_SOURCE))
}

/// Follows until the receiver hangs up. A connection that breaks is made again from the entry after the last one
/// delivered, with pauses that grow, for as long as the run goes on: it is the coordinator that says who is waited for
/// and how long. An entry that cannot be used ends the following.
pub async fn follow<W: From<Delivery>>(
    following: Following,
    deliver: mpsc::Sender<W>,
) -> Result<(), PeerError> {
    let jitter = key_of(following.me.as_str()) ^ key_of(following.source.name.as_str());
    let mut backoff = Backoff::new(jitter);
    let mut patience = Backoff::new(jitter);
    let mut told = false;
    loop {
        let before = following.reached.get();
        let broke = match follow_once(&following, &deliver).await? {
            Ended::NobodyListens => return Ok(()),
            Ended::Broke(cause) => cause,
            // It may have still to go back to where all others are already.
            Ended::Released(cause) if patience.next_pause().is_none() => {
                return Err(PeerError::LogReleased(cause));
            }
            Ended::Released(cause) => cause,
        };
        let reached = following.reached.get();
        if reached > before {
            (backoff, told) = (Backoff::new(jitter ^ reached.step), false);
            patience = backoff.clone();
        }
        let pause = backoff.next_pause_always();
        let name = &following.source.name;
        if told {
            tracing::debug!("following peer {name}: {broke}; again in {} ms", pause.as_millis());
        } else {
            tracing::warn!("following peer {name}: {broke}; trying again until it is back");
        }
        told = true;
        tokio::time::sleep(pause).await;
    }
}

enum Ended {
    NobodyListens,
    Broke(String),
    /// The source no longer holds what is wanted.
    Released(String),
}

async fn follow_once<W: From<Delivery>>(
    following: &Following,
    deliver: &mpsc::Sender<W>,
) -> Result<Ended, PeerError> {
    let Following { source, me, wanted, run, agenda, epoch, places, .. } = following.clone();
    let who = format!("peer {}", source.name);
    let channel = match channel::connect_once(&*following.network, &source.address).await? {
        Ok(channel) => channel,
        Err(cause) => return Ok(Ended::Broke(cause)),
    };
    // Nothing larger than what was agreed is even read.
    let agreed = agenda.byte_len_max(&source.schema);
    let limit = agreed.saturating_add(MESSAGE_OVERHEAD).min(EXCHANGE_MESSAGE_BYTES_MAX);
    let mut client = ExchangeClient::new(channel).max_decoding_message_size(limit);
    let request = Follow {
        protocol_version: PROTOCOL_VERSION,
        run,
        follower: me,
        source: source.name.clone(),
        from: following.reached.get(),
        wanted: wanted.clone(),
    };
    let mut stream = match client.follow(wire::FollowRequest::from(&request)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return ended(&who, &status),
    };
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(Ended::NobodyListens) };
        let message = tokio::select! {
            biased;
            () = deliver.closed() => return Ok(Ended::NobodyListens),
            message = stream.message() => message,
        };
        let wire = match message {
            Ok(Some(wire)) => wire,
            Ok(None) => return Ok(Ended::Broke("it ended the stream".into())),
            Err(status) => return ended(&who, &status),
        };
        let step = wire.step;
        let refused = |why: String| {
            PeerError::Contribution(format!(
                "{who} sent a contribution to step {step} that cannot be used: {why}"
            ))
        };
        let Some(schema) = agenda.schema(&source.schema, wire.round) else {
            return Err(refused(format!("this run has no round {}", wire.round)));
        };
        let opened = open_contribution(wire, &schema, &wanted);
        let contribution = opened.map_err(|error| refused(error.to_string()))?;
        if contribution.header().source != source.name {
            return Err(refused(format!("it is signed {}", contribution.header().source)));
        }
        // Of a view without this peer nothing is said to it.
        let mine = following.views.at(step).filter(|view| view.member(&following.me).is_some());
        let (said_in, holds) = (contribution.header().view, mine.map(|view| view.id));
        if Some(said_in) != holds {
            // One of the two has not heard of a change of views yet; what is right will be said, or has been.
            let known = holds.map_or("none".to_owned(), |view| view.to_string());
            return Ok(Ended::Broke(format!(
                "it spoke of step {step} in view {said_in}, not in view {known}"
            )));
        }
        let next = contribution.header().position.following();
        let delivery = Delivery { contribution: Arc::new(contribution), epoch, place };
        if deliver.send(delivery.into()).await.is_err() {
            return Ok(Ended::NobodyListens);
        }
        // Not before it is delivered: this task may be ended while it waits for room.
        following.reached.raise(next);
    }
}

/// What an error status means: a broken connection is tried again, and so is an address at which somebody else answers
/// now (a port is given to another once its process is dead, and the coordinator says where the source went); a refusal
/// or a message over the limit is final.
fn ended(who: &str, status: &tonic::Status) -> Result<Ended, PeerError> {
    use tonic::Code;
    let words = format!("{who}: {}", status.message());
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::NotFound
        | Code::Unimplemented => Ok(Ended::Broke(status.message().to_owned())),
        Code::DataLoss => Ok(Ended::Released(words)),
        Code::OutOfRange => Err(PeerError::Contribution(format!(
            "{words} (a message larger than the agreed schema is refused)"
        ))),
        _ => Err(PeerError::Mismatch(words)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use cohort_proto::contribution::{Header, Tensor};
    use cohort_proto::id::ViewId;
    use cohort_proto::schema::{DType, Schema, TensorSpec};
    use cohort_proto::spec::RunSpec;
    use cohort_proto::view::View;
    use tokio::sync::oneshot;

    use super::*;
    use crate::log::ContributionLog;
    use crate::net::network::Tcp;
    use crate::net::serve::{Served, bind, serve};
    use crate::relay::Relay;

    const RUN: &str = "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\nbatch = 2\n[method]\nname = \"dml\"\n\
                       [[peer]]\nname = \"a\"\narch = \"resnet8\"\n[[peer]]\nname = \"b\"\narch = \"resnet8\"\n";

    /// Over real sockets, followers that learn from different tensors get these, and digests that all have in common.
    #[tokio::test]
    async fn what_is_not_wanted_does_not_travel() {
        let name = |text: &str| PeerName::new(text).unwrap();
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![2, 3] };
        let schema = Schema::new(vec![spec("logits"), spec("embed.0")]).unwrap();
        let tensors =
            schema.tensors().iter().map(|spec| Tensor { spec: spec.clone(), data: vec![0; 24].into() });
        let (run, view, position) = (RunId(3), ViewId(1), Position::of(0));
        let header = Header { run, view, position, source: name("a"), batch_hash: 0 };
        let said = Contribution::seal(header, tensors.collect(), &schema).unwrap();
        let log = Arc::new(ContributionLog::new(0));
        log.append(Arc::new(said.clone())).unwrap();

        let (listener, address) = bind(&Tcp, "127.0.0.1:0").await.unwrap();
        let (me, followers) = (name("a"), [name("b")].into());
        let served = Served { me, followers, log, relay: Arc::new(Relay::default()), run: OnceLock::new() };
        served.run.set(run).unwrap();
        let (_stop, asked) = oneshot::channel();
        tokio::spawn(serve(listener, Arc::new(served), asked));

        let member = |(index, peer): (usize, &str)| Member {
            index,
            name: name(peer),
            address: address.to_string(),
            schema: schema.clone(),
        };
        let members: Vec<Member> = ["a", "b"].into_iter().enumerate().map(member).collect();
        let mut views = Views::default();
        views.insert(View { id: view, begins_at: 0, members: members.clone() });
        let views = Arc::new(views);
        for wanted in [&["logits", "embed.0"][..], &["logits"], &["embed.0"], &[]] {
            let following = Following {
                network: Arc::new(Tcp),
                source: members[0].clone(),
                me: name("b"),
                wanted: wanted.iter().map(|name| (*name).to_owned()).collect(),
                run,
                agenda: Agenda::of(&RunSpec::parse(RUN).unwrap()),
                reached: Reached::default(),
                views: views.clone(),
                epoch: 0,
                places: places(),
            };
            let (deliver, mut inbox) = mpsc::channel::<Delivery>(1);
            let following = tokio::spawn(follow(following, deliver));
            let (came, _) = inbox.recv().await.unwrap().into_contribution();
            let names: Vec<&str> = came.tensors().map(|tensor| tensor.spec.name.as_str()).collect();
            assert_eq!((names.as_slice(), came.byte_len()), (wanted, 24 * wanted.len()));
            assert_eq!((came.header(), came.digest()), (said.header(), said.digest()));
            following.abort();
        }
    }

    #[test]
    fn a_stranger_at_the_address_is_waited_out_and_a_refusal_is_final() {
        let of = |code| ended("peer b", &tonic::Status::new(code, "words"));
        for code in [tonic::Code::NotFound, tonic::Code::Unimplemented, tonic::Code::Unavailable] {
            assert!(matches!(of(code), Ok(Ended::Broke(_))), "{code:?}");
        }
        assert!(matches!(of(tonic::Code::DataLoss), Ok(Ended::Released(_))));
        for code in [tonic::Code::PermissionDenied, tonic::Code::FailedPrecondition] {
            assert!(matches!(of(code), Err(PeerError::Mismatch(_))), "{code:?}");
        }
        assert!(matches!(of(tonic::Code::OutOfRange), Err(PeerError::Contribution(_))));
    }
}
