//! Who is waited for, by whom, and since when.

use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::control::Waiting;
use cohort_proto::id::PeerName;
use cohort_proto::limits::WAITS_FOR_MAX;

use super::{Membership, Peer, Presence};
use crate::event::Tick;

impl Membership {
    /// Who is waited for and since when; empty if nobody is.
    pub fn waiting_for(&self, now: Tick, concerns: impl Fn(usize) -> bool) -> String {
        let seconds = |since: Tick| now.since(since) as f64 / 1000.0;
        let mut waits: Vec<String> = Vec::new();
        for (_, peer) in self.peers.iter().enumerate().filter(|(index, _)| concerns(*index)) {
            let Peer { name, presence, waiting, .. } = peer;
            match presence {
                Presence::Expected | Presence::Accepted | Presence::Left { .. } => {
                    waits.push(name.to_string())
                }
                Presence::Suspected { broke_at, cause } => {
                    waits.push(format!("{name} ({:.1} s; its connection {cause})", seconds(*broke_at)));
                }
                Presence::Dead { since, cause, .. } => {
                    waits.push(format!("{name} (given up {:.1} s ago: {cause})", seconds(*since)));
                }
                Presence::Attending(_) if waiting.ms > self.failure_timeout_ms => {
                    let sources: Vec<&str> = waiting.sources.iter().map(PeerName::as_str).collect();
                    let waited = waiting.ms as f64 / 1000.0;
                    waits.push(format!("word from {} to {name} ({waited:.1} s)", sources.join(", ")));
                }
                Presence::Attending(_) => {}
            }
        }
        if waits.is_empty() {
            return String::new();
        }
        let more = waits.len().saturating_sub(WAITS_FOR_MAX);
        waits.truncate(WAITS_FOR_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("waiting for {}{more}", waits.join(", "))
    }

    /// Of those concerned, the one for whom most others wait for longer than the failure timeout.
    pub fn most_missed(&self, concerned: &BTreeSet<usize>) -> Option<usize> {
        let mut missed: BTreeMap<usize, usize> = BTreeMap::new();
        for peer in concerned.iter().filter_map(|index| self.peers.get(*index)) {
            if peer.waiting.ms > self.failure_timeout_ms {
                let sources = peer.waiting.sources.iter().filter_map(|name| self.index(name));
                sources
                    .filter(|index| concerned.contains(index))
                    .for_each(|index| *missed.entry(index).or_default() += 1);
            }
        }
        missed.into_iter().max_by_key(|(index, times)| (*times, *index)).map(|(index, _)| index)
    }

    /// The names of those whose streams broke, whether they may still come back by themselves or not.
    pub fn broken(&self) -> Vec<&str> {
        let broken =
            |presence: &Presence| matches!(presence, Presence::Suspected { .. } | Presence::Dead { .. });
        let peers = self.peers.iter().filter(|peer| broken(&peer.presence));
        peers.map(|peer| peer.name.as_str()).collect()
    }

    /// The names of those who do not attend.
    pub fn missing(&self) -> Vec<&str> {
        self.peers.iter().filter(|peer| peer.stream().is_none()).map(|peer| peer.name.as_str()).collect()
    }

    /// A peer told what it waits for.
    pub fn waits(&mut self, index: usize, waiting: Waiting) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.waiting = waiting;
        }
    }

    /// Whether a peer was given up; it may live.
    pub fn is_given_up(&self, index: usize) -> bool {
        self.peers.get(index).is_some_and(|peer| matches!(peer.presence, Presence::Dead { .. }))
    }

    /// Whether somebody said goodbye.
    pub fn any_left(&self) -> bool {
        self.peers.iter().any(|peer| matches!(peer.presence, Presence::Left { .. }))
    }

    /// Whether somebody attends, is about to, or may come back.
    pub fn any_present(&self) -> bool {
        let present = |presence: &Presence| {
            matches!(presence, Presence::Accepted | Presence::Attending(_) | Presence::Suspected { .. })
        };
        self.peers.iter().any(|peer| present(&peer.presence))
    }
}
