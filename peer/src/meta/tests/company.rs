//! Peers as threads: every exchange goes through channels, so that a peer that fails is noticed by the others.

use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::{Error, Result, Tensor};

use crate::meta::{Bilevel, Exchange, Gather, Outcome, Scalars, Settings, Words, update};

enum Message {
    Words(Exchange, Words),
    Scalars(Exchange, Scalars),
}

/// One thread's ends of the channels to all others.
pub(super) struct Thread {
    me: usize,
    /// By index; none for oneself.
    to: Vec<Option<Sender<Message>>>,
    from: Vec<Option<Receiver<Message>>>,
    /// Exchanges made so far, in order.
    pub(super) made: Vec<Exchange>,
    /// The exchange, counted from 0, that fails instead of being made.
    pub(super) fails_at: Option<usize>,
}

impl Thread {
    fn begin(&mut self, at: Exchange) -> Result<()> {
        if self.fails_at == Some(self.made.len()) {
            return Err(Error::msg("this exchange fails"));
        }
        self.made.push(at);
        Ok(())
    }

    fn say(&self, message: impl Fn() -> Message) -> Result<()> {
        self.to.iter().flatten().try_for_each(|to| to.send(message()).map_err(|_| gone()))
    }
}

fn gone() -> Error {
    Error::msg("another peer is gone")
}

impl Gather for Thread {
    type Error = Error;

    fn words(&mut self, at: Exchange, own: Words) -> Result<Vec<(usize, Words)>> {
        self.begin(at)?;
        let constants = |said: &[Tensor]| said.iter().map(Tensor::detach).collect::<Vec<_>>();
        let copy = || Words { embeddings: constants(&own.embeddings), matching: constants(&own.matching) };
        self.say(|| Message::Words(at, copy()))?;
        let heard = self.from.iter().enumerate().filter_map(|(j, from)| Some((j, from.as_ref()?)));
        let heard = heard.map(|(j, from)| match from.recv().map_err(|_| gone())? {
            Message::Words(theirs, words) if theirs == at => Ok((j, words)),
            _ => Err(Error::msg("peers are not in step")),
        });
        heard.collect()
    }

    fn scalars(&mut self, at: Exchange, own: Scalars) -> Result<Vec<Scalars>> {
        self.begin(at)?;
        self.say(|| Message::Scalars(at, own))?;
        let mut all = Vec::new();
        for (j, from) in self.from.iter().enumerate() {
            match from.as_ref().map(|from| from.recv().map_err(|_| gone())).transpose()? {
                Some(Message::Scalars(theirs, numbers)) if theirs == at => all.push(numbers),
                None if j == self.me => all.push(own),
                _ => return Err(Error::msg("peers are not in step")),
            }
        }
        Ok(all)
    }
}

fn threads(count: usize) -> Vec<Thread> {
    let empty = |me| Thread {
        me,
        to: (0..count).map(|_| None).collect(),
        from: (0..count).map(|_| None).collect(),
        made: Vec::new(),
        fails_at: None,
    };
    let mut all: Vec<Thread> = (0..count).map(empty).collect();
    for i in 0..count {
        for j in (0..count).filter(|j| *j != i) {
            let (to, from) = channel();
            all[i].to[j] = Some(to);
            all[j].from[i] = Some(from);
        }
    }
    all
}

/// Runs one meta-update of all peers, each in its thread; `peer`'s exchange number `n` fails if asked for.
pub(super) fn together<P: Bilevel + Send>(
    peers: &mut [P],
    settings: &Settings,
    fails: Option<(usize, usize)>,
) -> Vec<(Result<Outcome>, Vec<Exchange>)> {
    let mut threads = threads(peers.len());
    if let Some((peer, at)) = fails {
        threads[peer].fails_at = Some(at);
    }
    std::thread::scope(|scope| {
        let run = |(peer, mut company): (_, Thread)| {
            scope.spawn(move || {
                let outcome = update(peer, &mut company, settings);
                (outcome, company.made)
            })
        };
        let running: Vec<_> = peers.iter_mut().zip(threads).map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
