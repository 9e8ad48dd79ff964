//! A whole cohort in one process: a thread for each network, exchanging through channels. A thread that fails hangs up,
//! and the others notice.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use candle_core::{Error, Result, Tensor};
use cohort_proto::meta::RoundKind;

use super::problem::{Bilevel, Gather, Scalars, Words};
use super::update::{Outcome, Settings, update};

/// Messages that wait in a channel: a thread is at most one exchange ahead of another.
const IN_STEP: usize = 2;

#[derive(Debug)]
enum Message {
    Words(RoundKind, Words),
    Scalars(RoundKind, Scalars),
}

/// One thread's ends of the channels to all others.
#[derive(Debug)]
pub struct Neighbours {
    /// By index; none for oneself.
    to: Vec<Option<SyncSender<Message>>>,
    from: Vec<Option<Receiver<Message>>>,
}

impl Neighbours {
    /// The ends of `count` threads that all know each other.
    pub fn of(count: usize) -> Vec<Self> {
        let nobody = || Self { to: Vec::with_capacity(count), from: Vec::with_capacity(count) };
        let mut all: Vec<Self> = (0..count).map(|_| nobody()).collect();
        for i in 0..count {
            for j in 0..count {
                let (to, from) = if i == j { (None, None) } else { Some(sync_channel(IN_STEP)).unzip() };
                all[i].to.push(to);
                all[j].from.push(from);
            }
        }
        all
    }

    fn say(&self, message: impl Fn() -> Message) -> Result<()> {
        self.to.iter().flatten().try_for_each(|to| to.send(message()).map_err(|_| gone()))
    }
}

fn gone() -> Error {
    Error::msg("the thread of another network is gone")
}

fn out_of_step() -> Error {
    Error::msg("the threads of two networks are not in step")
}

impl Gather for Neighbours {
    type Error = Error;

    fn words(&mut self, at: RoundKind, own: Words) -> Result<Vec<(usize, Words)>> {
        let constants = |said: &[Tensor]| said.iter().map(Tensor::detach).collect::<Vec<_>>();
        let Words { embeddings, matching } = &own;
        let copy = || Words { embeddings: constants(embeddings), matching: constants(matching) };
        self.say(|| Message::Words(at, copy()))?;
        let heard = self.from.iter().enumerate().filter_map(|(j, from)| Some((j, from.as_ref()?)));
        let heard = heard.map(|(j, from)| match from.recv().map_err(|_| gone())? {
            Message::Words(theirs, words) if theirs == at => Ok((j, words)),
            _ => Err(out_of_step()),
        });
        heard.collect()
    }

    fn scalars(&mut self, at: RoundKind, own: Scalars) -> Result<Vec<Scalars>> {
        self.say(|| Message::Scalars(at, own))?;
        let all =
            self.from.iter().map(|from| match from.as_ref().map(|from| from.recv().map_err(|_| gone())) {
                None => Ok(own),
                Some(said) => match said? {
                    Message::Scalars(theirs, numbers) if theirs == at => Ok(numbers),
                    _ => Err(out_of_step()),
                },
            });
        all.collect()
    }
}

/// One meta-update of all networks of a cohort, given by ascending index.
///
/// # Errors
/// That of the first network that failed by itself, else that of one which noticed.
pub fn update_all<P: Bilevel + Send>(peers: &mut [P], settings: &Settings) -> Result<Outcome> {
    let neighbours = Neighbours::of(peers.len());
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let run = |(peer, mut company)| scope.spawn(move || update(peer, &mut company, settings));
        let running: Vec<_> = peers.iter_mut().zip(neighbours).map(run).collect();
        let panicked = |_| Err(Error::msg("the thread of a network panicked"));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    outcomes.into_iter().reduce(|first, next| first.and(next)).unwrap_or(Ok(Outcome::Abandoned))
}
