//! Whose time is over.

use super::{Membership, Peer, Presence};
use crate::event::Tick;

/// A peer whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The peer.
    pub index: usize,
    /// Whether it fell silent, rather than that its connection broke.
    pub silent: bool,
    /// Why, for people: the end of a sentence that begins with its name.
    pub cause: String,
}

impl Membership {
    /// When a peer's time is over: a silent one's after the failure timeout, one whose stream broke after half of it
    /// if that is sooner.
    fn deadline(&self, peer: &Peer) -> Option<Tick> {
        let silent = peer.last_heard.plus(self.failure_timeout_ms);
        match peer.presence {
            Presence::Accepted | Presence::Attending(_) => Some(silent),
            Presence::Suspected { broke_at, .. } => {
                Some(silent.min(broke_at.plus(self.failure_timeout_ms / 2)))
            }
            Presence::Expected | Presence::Dead { .. } | Presence::Left { .. } => None,
        }
    }

    /// The next moment at which somebody's time is over.
    pub fn poll_timeout(&self) -> Option<Tick> {
        self.peers.iter().filter_map(|peer| self.deadline(peer)).min()
    }

    /// Those whose time is over.
    pub fn lost(&self, now: Tick) -> Vec<Lost> {
        let over = |peer: &Peer| self.deadline(peer).is_some_and(|deadline| deadline <= now);
        let lost = self.peers.iter().enumerate().filter(|(_, peer)| over(peer));
        let silent = |peer: &Peer| !matches!(peer.presence, Presence::Suspected { .. });
        lost.map(|(index, peer)| Lost { index, silent: silent(peer), cause: self.cause(now, peer) }).collect()
    }

    fn cause(&self, now: Tick, peer: &Peer) -> String {
        let silent = now.since(peer.last_heard) as f64 / 1000.0;
        match &peer.presence {
            Presence::Suspected { broke_at, cause } => {
                let gone = now.since(*broke_at) as f64 / 1000.0;
                format!("its connection {cause}, and it did not come back within {gone:.1} s")
            }
            Presence::Accepted => format!("it was accepted but did not attend within {silent:.1} s"),
            _ => format!("nothing was heard of it for {silent:.1} s"),
        }
    }

    /// This process was not woken for so long: that is no peer's silence. What peers said meanwhile is still to be
    /// taken from queues, for which they get the time of a heartbeat besides.
    pub fn forgive(&mut self, now: Tick, late_ms: u64) {
        let ms = late_ms.saturating_add(self.heartbeat_ms());
        for peer in &mut self.peers {
            peer.last_heard = peer.last_heard.plus(ms).min(now);
            if let Presence::Suspected { broke_at, .. } = &mut peer.presence {
                *broke_at = broke_at.plus(ms).min(now);
            }
        }
    }
}
