//! When two worlds are the same to the search: when nothing that can follow tells them apart. What is left out of the
//! comparison, and why nothing depends on it:
//!
//! - **Names of streams, requests and sessions.** They are compared for equality only; which of two peers came first
//!   decides who has the smaller one. They are numbered anew in the order of peers.
//! - **The order of lines of the journal** between two views, losses of checkpoints, or what a crash may take: it is read
//!   back as sets, and the faults of the search lose all or nothing of what is not durable.
//! - **Who heard a contribution first**: the digest is compared, the hearer stands in the sentence about a difference, and
//!   with a difference the search ends.

use std::collections::HashMap;
use std::fmt::Write;

use cohort_coordinator::event::{StreamId, Ticket};
use cohort_proto::rng::SplitMix64;

use crate::coordinator::Coordinator;
use crate::world::{Join, Stream, World};

/// What stands before the names that are only compared for equality, and what each kind is called here.
const NAMES: [(&str, char); 4] =
    [("StreamId(", 's'), ("Ticket(", 'j'), ("Joining(", 'j'), ("session: ", 'c')];

/// What stands before sets whose order is that of the names in them.
const SETS: [&str; 2] = ["by_stream: {", "outlets: {"];

/// What stands before who was heard, by whom first, and with which digest.
const HEARD: &str = "heard: {";

/// A hash of everything that decides what may follow.
pub(crate) fn fingerprint(world: &World, faults_left: u32) -> u64 {
    let mut names = Names::default();
    let peers = names.renamed(&of_peers(world, faults_left));
    let mut coordinator = names.renamed(&of_coordinator(world));
    SETS.iter().for_each(|set| coordinator = in_braces(&coordinator, set, sorted));
    coordinator = in_braces(&coordinator, HEARD, without_hearers);
    hash(&[peers, coordinator].concat())
}

/// What belongs to peers, as text, in their order.
fn of_peers(World { now, hosts, streams, joins, kept, watch, .. }: &World, faults_left: u32) -> String {
    let mut by_peer: Vec<(&StreamId, &Stream)> = streams.iter().collect();
    by_peer.sort_by_key(|(stream, open)| (open.peer, **stream));
    let mut asked: Vec<(Ticket, &Join)> =
        joins.iter().map(|(number, join)| (Ticket(*number), join)).collect();
    asked.sort_by_key(|(number, join)| (join.peer, *number));
    format!("{faults_left} {kept} {now:?} {hosts:?} {by_peer:?} {asked:?} {:?}", watch.newest())
}

/// The coordinator and its disk, as text.
fn of_coordinator(World { coordinator, .. }: &World) -> String {
    let Coordinator { journal, cluster, outlets, dies, ended } = coordinator;
    format!("{cluster:?} {dies:?} {ended:?} outlets: {outlets:?} {}", journal.in_any_order())
}

/// The names that have occurred so far, by kind, numbered as they did.
#[derive(Default)]
struct Names(HashMap<(char, String), usize>);

impl Names {
    /// The text with names numbered.
    fn renamed(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        let bytes = text.as_bytes();
        for at in 1..bytes.len() {
            if !bytes[at].is_ascii_digit() || at < copied || !matches!(bytes[at - 1], b'(' | b' ') {
                continue;
            }
            let Some((_, kind)) = NAMES.iter().find(|(marker, _)| text[..at].ends_with(marker)) else {
                continue;
            };
            let len = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let fresh = self.0.len();
            let number = self.0.entry((*kind, text[at..at + len].to_owned())).or_insert(fresh);
            write!(out, "{}{kind}{number}", &text[copied..at]).unwrap();
            copied = at + len;
        }
        out.push_str(&text[copied..]);
        out
    }
}

/// The text with something else in the braces that a marker opens.
fn in_braces(text: &str, marker: &str, change: fn(&str) -> String) -> String {
    let mut parts = text.split(marker);
    let mut out = String::with_capacity(text.len());
    out.push_str(parts.next().unwrap_or(""));
    for part in parts {
        let (inner, rest) = part.split_once('}').unwrap();
        write!(out, "{marker}{}}}{rest}", change(inner)).unwrap();
    }
    out
}

fn sorted(set: &str) -> String {
    let mut entries: Vec<&str> = set.split(", ").collect();
    entries.sort_unstable();
    entries.join(", ")
}

/// Of `source: (hearer, digest)` the source and the digest.
fn without_hearers(heard: &str) -> String {
    heard.split(", ").map(|part| part.split_once('(').map_or(part, |(source, _)| source)).collect()
}

fn hash(text: &str) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let all = words.chain(rest.iter().map(|byte| u64::from(*byte)));
    SplitMix64::new(all.fold(0x9E37_79B9_7F4A_7C15, mix)).next_u64()
}
