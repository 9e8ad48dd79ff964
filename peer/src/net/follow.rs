//! Following another peer's contribution log, live or from an older entry on: the same call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_proto::contribution::{Contribution, Position};
use cohort_proto::control::Follow;
use cohort_proto::convert::open_contribution;
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::limits::{EXCHANGE_MESSAGE_BYTES_MAX, INBOX_PER_SOURCE, PROTOCOL_VERSION, RETRY_PAUSE_MAX};
use cohort_proto::meta::Agenda;
use cohort_proto::rng::key_of;
use cohort_proto::view::Member;
use cohort_proto::wire;
use cohort_proto::wire::exchange_client::ExchangeClient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::backoff::Backoff;
use super::channel;
use crate::error::PeerError;

/// Bytes that names and numbers add to the tensors of a contribution: a kilobyte each is more than they can need.
const MESSAGE_OVERHEAD: usize = 64 << 10;

/// A contribution that arrived, and the place it takes in the inbox until it is consumed.
#[derive(Debug)]
pub struct Delivery {
    /// What was said.
    pub contribution: Arc<Contribution>,
    place: OwnedSemaphorePermit,
}

impl Delivery {
    /// One that did not come over the network.
    #[cfg(test)]
    pub(crate) fn new(contribution: Arc<Contribution>, place: OwnedSemaphorePermit) -> Self {
        Self { contribution, place }
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

/// Whose log is followed, by whom, and from where.
#[derive(Debug, Clone)]
pub struct Following {
    /// The source.
    pub source: Member,
    /// This peer.
    pub me: PeerName,
    /// The run.
    pub run: RunId,
    /// What is said in the rounds of its steps.
    pub agenda: Agenda,
    /// The first entry wanted.
    pub from: Position,
    /// How long to try to get back to a source that is gone. It is the coordinator that says who is dead, after the
    /// failure timeout, so this must be longer.
    pub patience: Duration,
}

/// Follows until the receiver hangs up. A connection that breaks is made again from the entry after the last one
/// received, for as long as patience lasts; an entry that cannot be used ends the following.
pub async fn follow<W: From<Delivery>>(
    mut following: Following,
    deliver: mpsc::Sender<W>,
) -> Result<(), PeerError> {
    let places = Arc::new(Semaphore::new(INBOX_PER_SOURCE));
    let jitter = key_of(following.me.as_str()) ^ key_of(following.source.name.as_str());
    let mut backoff = Backoff::new(jitter);
    let mut last_heard = Instant::now();
    loop {
        let before = following.from;
        let broke = match follow_once(&mut following, &deliver, &places).await? {
            Ended::NobodyListens => return Ok(()),
            Ended::Broke(cause) => cause,
        };
        if following.from > before {
            (backoff, last_heard) = (Backoff::new(jitter ^ following.from.step), Instant::now());
        }
        let pause = backoff.next_pause().unwrap_or(RETRY_PAUSE_MAX);
        if last_heard.elapsed() + pause > following.patience {
            let Member { name, address, .. } = &following.source;
            return Err(PeerError::PeerLost(format!("peer {name} at {address} is gone: {broke}")));
        }
        tracing::warn!(
            "following peer {}: {broke}; again in {} ms",
            following.source.name,
            pause.as_millis()
        );
        tokio::time::sleep(pause).await;
    }
}

enum Ended {
    NobodyListens,
    Broke(String),
}

async fn follow_once<W: From<Delivery>>(
    following: &mut Following,
    deliver: &mpsc::Sender<W>,
    places: &Arc<Semaphore>,
) -> Result<Ended, PeerError> {
    let Following { source, me, run, agenda, .. } = following.clone();
    let who = format!("peer {}", source.name);
    let channel = match channel::connect_once(&source.address).await? {
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
        from: following.from,
    };
    let mut stream = match client.follow(wire::FollowRequest::from(&request)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return ended(&who, &status),
    };
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(Ended::NobodyListens) };
        let message = tokio::select! {
            message = stream.message() => message,
            () = deliver.closed() => return Ok(Ended::NobodyListens),
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
        let contribution = open_contribution(wire, &schema).map_err(|error| refused(error.to_string()))?;
        if contribution.header().source != source.name {
            return Err(refused(format!("it is signed {}", contribution.header().source)));
        }
        following.from = contribution.header().position.following();
        let delivery = Delivery { contribution: Arc::new(contribution), place };
        if deliver.send(delivery.into()).await.is_err() {
            return Ok(Ended::NobodyListens);
        }
    }
}

/// What an error status means: a broken connection is tried again; a refusal or a message over the limit is final.
fn ended(who: &str, status: &tonic::Status) -> Result<Ended, PeerError> {
    use tonic::Code;
    let words = format!("{who}: {}", status.message());
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted => Ok(Ended::Broke(status.message().to_owned())),
        Code::OutOfRange => Err(PeerError::Contribution(format!(
            "{words} (a message larger than the agreed schema is refused)"
        ))),
        _ => Err(PeerError::Mismatch(words)),
    }
}
