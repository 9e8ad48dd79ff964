//! How long peers that were killed took to be where they had been.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::watch::{Member, Seen};

/// A peer that was killed, and what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    pub(crate) peer: String,
    /// The checkpoint that it went on from.
    pub(crate) from: u64,
    /// The steps that it had completed when it was killed.
    pub(crate) reached: u64,
    /// From its start until it had joined, and until it was there again.
    pub(crate) joined_ms: f64,
    pub(crate) caught_up_ms: f64,
    /// How long the lost steps took the first time, everything that held them up included.
    pub(crate) first_ms: f64,
    /// Whether nobody else was disturbed meanwhile.
    pub(crate) alone: bool,
}

/// One that is not back yet.
#[derive(Debug)]
struct Open {
    from: u64,
    reached: u64,
    joins: u64,
    restarted: Option<Instant>,
    /// When another process of it had joined, and how many reports had been seen by then.
    joined: Option<(Instant, u64)>,
    alone: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    open: BTreeMap<String, Open>,
    pub(crate) done: Vec<Recovery>,
}

impl Recoveries {
    /// A process was killed. If it was on its way back, it begins again.
    pub(crate) fn killed(&mut self, name: &str, seen: &Seen) {
        self.open.values_mut().for_each(|open| open.alone = false);
        let Some(member) = seen.members.get(name) else { return };
        let alone = self.open.is_empty();
        let open = Open {
            from: 0,
            reached: member.reached,
            joins: member.joins,
            restarted: None,
            joined: None,
            alone,
        };
        self.open.insert(name.to_owned(), open);
    }

    /// It was started again, to go on from a checkpoint.
    pub(crate) fn restarted(&mut self, name: &str, from: u64) {
        if let Some(open) = self.open.get_mut(name) {
            (open.from, open.restarted, open.joined) = (from, Some(Instant::now()), None);
        }
    }

    /// Finds who is back. `calm`: whether nothing is being done to anybody.
    pub(crate) fn look(&mut self, seen: &Seen, calm: bool) {
        let mut back = Vec::new();
        for (name, open) in &mut self.open {
            let (Some(member), Some(restarted)) = (seen.members.get(name), open.restarted) else { continue };
            let joined = member.joins > open.joins;
            let (joined_at, reports) = match open.joined {
                None if joined => *open.joined.insert((Instant::now(), member.reports)),
                None => continue,
                Some(joined) => joined,
            };
            open.alone &= calm;
            let steps = member.report_step.map_or(0, |step| step + 1);
            if member.reports > reports && steps >= open.reached {
                back.push((name.clone(), open.recovery(name, restarted, joined_at, member)));
            }
        }
        for (name, recovery) in back {
            self.open.remove(&name);
            self.done.push(recovery);
        }
    }
}

impl Open {
    fn recovery(&self, name: &str, restarted: Instant, joined: Instant, member: &Member) -> Recovery {
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        let first = |step: u64| member.first_at.range(step..).next().map(|(_, at)| *at);
        let first_ms = first(self.from).zip(first(self.reached)).map_or(0.0, |(from, to)| ms(from, to));
        Recovery {
            peer: name.to_owned(),
            from: self.from,
            reached: self.reached,
            joined_ms: ms(restarted, joined),
            caught_up_ms: ms(restarted, Instant::now()),
            first_ms,
            alone: self.alone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tests::answer;

    #[test]
    fn a_peer_is_back_when_its_next_process_reports_where_the_last_one_was() {
        let (mut seen, mut recoveries) = (Seen::default(), Recoveries::default());
        seen.hear(answer("h:1", 5, 7));
        recoveries.killed("a", &seen);
        recoveries.look(&seen, true);
        recoveries.restarted("a", 3);
        // What is still known of the process before.
        recoveries.look(&seen, true);
        // The next one joins, and what the last one said is still the last.
        seen.hear(answer("h:2", 5, 7));
        recoveries.look(&seen, true);
        seen.hear(answer("h:2", 4, 7));
        recoveries.look(&seen, true);
        assert!(recoveries.done.is_empty());
        seen.hear(answer("h:2", 6, 7));
        recoveries.look(&seen, true);
        let [recovery] = recoveries.done.as_slice() else { panic!("{:?}", recoveries.done) };
        assert_eq!((recovery.from, recovery.reached, recovery.alone), (3, 5, true));
        assert!(recovery.caught_up_ms >= recovery.joined_ms);
    }

    #[test]
    fn one_that_is_killed_again_begins_again() {
        let (mut seen, mut recoveries) = (Seen::default(), Recoveries::default());
        seen.hear(answer("h:1", 5, 7));
        recoveries.killed("a", &seen);
        recoveries.restarted("a", 3);
        seen.hear(answer("h:2", 4, 7));
        recoveries.look(&seen, true);
        recoveries.killed("a", &seen);
        recoveries.restarted("a", 3);
        seen.hear(answer("h:2", 6, 7));
        recoveries.look(&seen, true);
        assert!(recoveries.done.is_empty(), "that was the process before");
        seen.hear(answer("h:3", 6, 7));
        recoveries.look(&seen, true);
        seen.hear(answer("h:3", 7, 7));
        recoveries.look(&seen, true);
        assert_eq!(recoveries.done.len(), 1);
    }
}
