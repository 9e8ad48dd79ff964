//! Peers as threads, with a record of the exchanges and one that can be made to fail.

use candle_core::{Error, Result};
use cohort_proto::meta::RoundKind;

use crate::meta::in_process::Neighbours;
use crate::meta::{Bilevel, Gather, Outcome, Scalars, Settings, Words, update};

/// One thread's company.
struct Recorded {
    company: Neighbours,
    made: Vec<RoundKind>,
    /// The exchange, counted from 0, that fails instead of being made.
    fails_at: Option<usize>,
}

impl Recorded {
    fn begin(&mut self, at: RoundKind) -> Result<()> {
        if self.fails_at == Some(self.made.len()) {
            return Err(Error::msg("this exchange fails"));
        }
        self.made.push(at);
        Ok(())
    }
}

impl Gather for Recorded {
    type Error = Error;

    fn words(&mut self, at: RoundKind, own: Words) -> Result<Vec<(usize, Words)>> {
        self.begin(at)?;
        self.company.words(at, own)
    }

    fn scalars(&mut self, at: RoundKind, own: Scalars) -> Result<Vec<Scalars>> {
        self.begin(at)?;
        self.company.scalars(at, own)
    }
}

/// Runs one meta-update of all peers, each in its thread; `fails` names a peer and the number of its exchange that
/// fails.
pub(super) fn together<P: Bilevel + Send>(
    peers: &mut [P],
    settings: &Settings,
    fails: Option<(usize, usize)>,
) -> Vec<(Result<Outcome>, Vec<RoundKind>)> {
    let companies = Neighbours::of(peers.len());
    std::thread::scope(|scope| {
        let run = |(index, (peer, company))| {
            let fails_at = fails.filter(|(peer, _)| *peer == index).map(|(_, at)| at);
            let mut company = Recorded { company, made: Vec::new(), fails_at };
            scope.spawn(move || {
                let outcome = update(peer, &mut company, settings);
                (outcome, company.made)
            })
        };
        let running: Vec<_> = peers.iter_mut().zip(companies).enumerate().map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
