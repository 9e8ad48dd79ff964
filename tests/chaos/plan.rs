//! What will happen: disturbances drawn from the seed, each with dice of its own for whatever remains to be chosen when
//! its moment comes (whom it hits, for how long).

use std::collections::VecDeque;
use std::time::Duration;

use cohort_proto::rng::SplitMix64;

/// A way to disturb a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// kill -9 of one peer.
    Peer,
    /// Of several at once.
    Several,
    /// Of the coordinator.
    Coordinator,
    /// Of all processes: a power cut.
    All,
    /// Of a peer that is writing a checkpoint.
    InCheckpoint,
    /// Of a peer, and again of its next process before or while that joins.
    InJoin,
    /// Of a peer in the middle of a meta-update.
    InMeta,
    /// SIGSTOP of a peer, SIGCONT some time later.
    PausePeer,
    /// The same of the coordinator.
    PauseCoordinator,
    /// SIGTERM, so that all stop with their state saved, and all are started again.
    Graceful,
    /// A peer's cable is pulled for a while.
    CutPeer,
    /// The coordinator's.
    CutCoordinator,
    /// Two peers lose sight of each other, not of the others.
    Part,
    /// Half of what a peer sends is lost.
    Lossy,
}

impl Kind {
    /// As the report spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Several => "several",
            Self::Coordinator => "coordinator",
            Self::All => "all",
            Self::InCheckpoint => "in_checkpoint",
            Self::InJoin => "in_join",
            Self::InMeta => "in_meta_update",
            Self::PausePeer => "pause_peer",
            Self::PauseCoordinator => "pause_coordinator",
            Self::Graceful => "graceful_stop",
            Self::CutPeer => "cut_peer",
            Self::CutCoordinator => "cut_coordinator",
            Self::Part => "part_two_peers",
            Self::Lossy => "lose_half",
        }
    }

    /// Whether something is killed.
    pub(crate) fn kills(self) -> bool {
        KILLS.iter().any(|(kind, _)| *kind == self)
    }
}

/// How often each kind lies in a deck of kills.
const KILLS: [(Kind, usize); 7] = [
    (Kind::Peer, 6),
    (Kind::Several, 3),
    (Kind::Coordinator, 3),
    (Kind::All, 2),
    (Kind::InCheckpoint, 3),
    (Kind::InJoin, 2),
    (Kind::InMeta, 3),
];

/// The same of what comes on top.
const OTHERS: [(Kind, usize); 7] = [
    (Kind::PausePeer, 3),
    (Kind::PauseCoordinator, 1),
    (Kind::Graceful, 3),
    (Kind::CutPeer, 1),
    (Kind::CutCoordinator, 1),
    (Kind::Part, 1),
    (Kind::Lossy, 1),
];

/// One in so many kills is followed by something that kills nobody.
const OTHERS_EVERY: u64 = 3;

/// One in so many disturbances comes a short time after the one before, wherever the run is, and so may hit what that
/// one has left.
const RUSHED_EVERY: u64 = 3;

/// The longest such time.
const RUSH_MS: u64 = 1000;

/// The part of all steps after which nothing more is done: what was done last must show before the end.
const LAST: f64 = 0.9;

/// What can be done to a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Possible {
    /// Whether it has meta-updates.
    pub(crate) meta: bool,
    /// Whether its processes have hosts of their own.
    pub(crate) partitions: bool,
}

impl Possible {
    fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::InMeta => self.meta,
            Kind::CutPeer | Kind::CutCoordinator | Kind::Part | Kind::Lossy => self.partitions,
            _ => true,
        }
    }
}

/// When it happens: whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moment {
    /// Once somebody has done so much of all steps.
    progress: f64,
    /// So long after the disturbance before.
    after: Option<Duration>,
}

/// As soon as possible.
pub(crate) const NOW: Moment = Moment { progress: 0.0, after: None };

/// One disturbance.
#[derive(Debug, Clone)]
pub(crate) struct Disturbance {
    pub(crate) kind: Kind,
    pub(crate) moment: Moment,
    /// Decides whatever depends on how the run then is.
    pub(crate) dice: SplitMix64,
}

/// All of them in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    coming: VecDeque<Disturbance>,
}

impl Plan {
    /// So many kills, and what comes on top.
    pub(crate) fn new(seed: u64, kills: u64, possible: Possible) -> Self {
        let mut dice = SplitMix64::keyed(&[seed, 0]);
        let (mut deck, mut others) = (Deck::new(&KILLS, possible), Deck::new(&OTHERS, possible));
        let mut kinds = Vec::new();
        for _ in 0..kills {
            kinds.extend(deck.draw(&mut dice));
            if dice.below(OTHERS_EVERY) == 0 {
                kinds.extend(others.draw(&mut dice));
            }
        }
        let count = kinds.len() as f64;
        let disturbance = |(i, kind): (usize, Kind)| {
            let mut dice = SplitMix64::keyed(&[seed, 1, i as u64]);
            let rushed = i > 0 && dice.below(RUSHED_EVERY) == 0;
            let after = rushed.then(|| Duration::from_millis(dice.below(RUSH_MS)));
            let progress = LAST * (i as f64 + dice.unit_f64()) / count;
            Disturbance { kind, moment: Moment { progress, after }, dice }
        };
        Self { coming: kinds.into_iter().enumerate().map(disturbance).collect() }
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.coming.len()
    }

    /// Puts one off that there was nobody for.
    pub(crate) fn again(&mut self, disturbance: Disturbance) {
        self.coming.push_front(Disturbance { moment: NOW, ..disturbance });
    }

    /// The next, if its moment has come.
    pub(crate) fn due(&mut self, progress: f64, since_last: Duration) -> Option<Disturbance> {
        let moment = self.coming.front()?.moment;
        let due = progress >= moment.progress || moment.after.is_some_and(|pause| since_last >= pause);
        if due { self.coming.pop_front() } else { None }
    }
}

/// Cards that are all drawn before any is drawn again, so that no kind is left out of a long plan.
struct Deck {
    cards: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    fn new(kinds: &[(Kind, usize)], possible: Possible) -> Self {
        let allowed = kinds.iter().filter(|(kind, _)| possible.allows(*kind));
        let cards = allowed.flat_map(|(kind, times)| std::iter::repeat_n(*kind, *times)).collect();
        Self { cards, left: Vec::new() }
    }

    fn draw(&mut self, dice: &mut SplitMix64) -> Option<Kind> {
        if self.left.is_empty() {
            self.left = self.cards.clone();
        }
        let place = dice.below(self.left.len() as u64) as usize;
        (place < self.left.len()).then(|| self.left.swap_remove(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Possible = Possible { meta: true, partitions: true };

    fn kinds(plan: Plan) -> Vec<(Kind, Moment)> {
        plan.coming.into_iter().map(|each| (each.kind, each.moment)).collect()
    }

    #[test]
    fn a_seed_means_one_plan() {
        assert_eq!(kinds(Plan::new(7, 40, EVERYTHING)), kinds(Plan::new(7, 40, EVERYTHING)));
        assert_ne!(kinds(Plan::new(7, 40, EVERYTHING)), kinds(Plan::new(8, 40, EVERYTHING)));
    }

    #[test]
    fn so_many_kills_and_every_kind_in_a_long_plan() {
        let plan = kinds(Plan::new(3, 200, EVERYTHING));
        assert_eq!(plan.iter().filter(|(kind, _)| kind.kills()).count(), 200);
        for (kind, _) in KILLS.iter().chain(&OTHERS) {
            assert!(plan.iter().any(|(each, _)| each == kind), "{kind:?}");
        }
        let plain = kinds(Plan::new(3, 200, Possible::default()));
        assert!(plain.iter().all(|(kind, _)| !matches!(kind, Kind::InMeta | Kind::Part | Kind::Lossy)));
        assert!(Plan::new(3, 0, EVERYTHING).coming.is_empty());
    }

    #[test]
    fn moments_come_in_order() {
        let mut plan = Plan::new(5, 9, EVERYTHING);
        let all = plan.len();
        assert!(plan.due(-1.0, Duration::ZERO).is_none());
        let mut seen = 0;
        while plan.due(LAST, Duration::ZERO).is_some() {
            seen += 1;
        }
        assert_eq!((seen, plan.len()), (all, 0));
        let rushed =
            kinds(Plan::new(5, 100, EVERYTHING)).iter().filter(|(_, moment)| moment.after.is_some()).count();
        assert!((20..60).contains(&rushed), "{rushed}");
    }
}
