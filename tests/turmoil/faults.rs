//! What a seed does to a cohort, and when.

use cohort_proto::rng::SplitMix64;

/// Something that goes wrong. Hosts are numbered: peers, and the coordinator after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Processes are killed; the system closes their connections.
    Kill(Vec<usize>),
    /// A host loses power: nobody is told.
    PowerCut(usize),
    /// A host loses power, and a bit of its newest checkpoint flips.
    Damage(usize),
    /// Nothing passes between two hosts; what is sent is lost.
    Partition(usize, usize),
    /// As much, in one direction.
    OneWay(usize, usize),
    /// A host is cut off from all others.
    Isolate(usize),
    /// What is sent between two hosts waits.
    Hold(usize, usize),
    /// What is sent between two hosts takes up to a second.
    Slow(usize, usize),
    /// One message in so many is lost, and with it all that is under way.
    Lossy(u64),
    /// Somebody asks the coordinator to stop.
    Stop,
}

/// A fault with its time, in milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) at: u64,
    pub(crate) lasts: u64,
    pub(crate) fault: Fault,
}

/// Everything that a seed does, by ascending time.
pub(crate) fn plan(seed: u64, peers: usize) -> Vec<Planned> {
    let mut chance = SplitMix64::keyed(&[7, seed]);
    let mut below = |bound: usize| chance.below(bound as u64) as usize;
    let (mut at, mut planned) = (300, Vec::new());
    for _ in 0..3 + below(6) {
        at += 50 + below(1500) as u64;
        let any = below(peers + 1);
        let other = (any + 1 + below(peers)) % (peers + 1);
        let fault = match below(12) {
            0 | 1 => Fault::Kill(vec![any]),
            2 => Fault::Kill(vec![any, other]),
            3 => Fault::Kill((0..=peers).collect()),
            4 => Fault::PowerCut(any),
            5 => Fault::Damage(below(peers)),
            6 => Fault::Partition(any, other),
            7 => Fault::OneWay(any, other),
            8 => Fault::Isolate(any),
            9 => Fault::Hold(any, other),
            10 => Fault::Slow(any, other),
            _ if below(3) == 0 => Fault::Stop,
            _ => Fault::Lossy(20 + below(200) as u64),
        };
        // Most are over soon, some outlast every timeout.
        let lasts = if below(4) == 0 { 2000 + below(14_000) } else { 50 + below(2000) };
        planned.push(Planned { at, lasts: lasts as u64, fault });
    }
    planned
}
