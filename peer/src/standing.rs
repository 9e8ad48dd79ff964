//! What a peer knows of its own place in the run, so that it can present itself again to a coordinator that was gone:
//! where it stands, what it holds, and the reports that may not be on record. Sans-IO.

use std::collections::VecDeque;

use cohort_proto::control::{Accepted, Refusal, RefusalReason, Standing, Start, StepReport, Stop, StopKind};
use cohort_proto::id::{Step, ViewId};
use cohort_proto::limits::{REPORTS_KEPT, SESSION_BITS};

/// The place of one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    session: u64,
    /// Steps it has completed; none while it has yet to be told where to start.
    steps_done: Option<Step>,
    /// Where it was told to start.
    start: Start,
    /// The view that held there: what was done in an older one does not count.
    since: ViewId,
    /// How often it was told where to start.
    epoch: u64,
    lease_until: Step,
    held: Vec<Step>,
    /// The newest, in order, without gaps.
    reports: VecDeque<StepReport>,
}

impl Place {
    /// A peer that was accepted, with these checkpoints on its disk.
    pub fn new(accepted: &Accepted, held: Vec<Step>) -> Self {
        let session = accepted.session;
        let (start, since, reports) = (Start::at(0), ViewId(0), VecDeque::new());
        Self { session, steps_done: None, start, since, epoch: 0, lease_until: 0, held, reports }
    }

    /// It was told where to start, and this view holds there: later checkpoints do not count before they are saved again.
    /// Returns the number of the epoch that begins.
    pub fn starts(&mut self, start: Start, view: ViewId) -> u64 {
        (self.steps_done, self.start, self.since) = (Some(start.step), start, view);
        self.reports.clear();
        self.held.retain(|held| *held <= start.step);
        self.epoch += 1;
        self.epoch
    }

    /// What it did so far counts no more: it is about to be told where to start.
    pub fn stands_down(&mut self) {
        self.steps_done = None;
        self.reports.clear();
    }

    /// Steps below this may be taken.
    pub fn granted(&mut self, until: Step) {
        self.lease_until = self.lease_until.max(until);
    }

    /// It completed a step; says whether that counts: one of before it stood down, or was told to start elsewhere, does not.
    pub fn completed(&mut self, report: StepReport) -> bool {
        if self.steps_done != Some(report.step) || report.view < self.since {
            return false;
        }
        self.steps_done = Some(report.step + 1);
        self.reports.push_back(report);
        if self.reports.len() > REPORTS_KEPT {
            self.reports.pop_front();
        }
        true
    }

    /// The first step that it may still have to take.
    pub fn next(&self) -> Step {
        self.steps_done.unwrap_or(0)
    }

    /// Whether a coordinator that accepts it was started anew since it accepted it last: sessions are numbered by start.
    pub fn is_another_start(&self, accepted: &Accepted) -> bool {
        accepted.session >> SESSION_BITS != self.session >> SESSION_BITS
    }

    /// These checkpoints are on its disk, as was found in an epoch; says whether that counts: what was saved before it was
    /// told to start elsewhere may have been removed.
    pub fn holds(&mut self, held: Vec<Step>, epoch: u64) -> bool {
        if epoch != self.epoch {
            return false;
        }
        self.held = held;
        if self.reports.is_empty() && !self.start.is_possible_with(&self.held) {
            // It was let go before it was told to start from it.
            self.stands_down();
        }
        true
    }

    /// The checkpoints on its disk.
    pub fn held(&self) -> &[Step] {
        &self.held
    }

    /// What it says of itself when it joins again; `None` if it has no memory of the run that counts.
    pub fn standing(&self, log_from: Step) -> Option<Standing> {
        let Self { session, lease_until, .. } = *self;
        // The log begins where it was told to start, be it that the training thread has still to hear so.
        let log_from = if self.reports.is_empty() { self.start.step } else { log_from };
        let view = self.reports.back().map_or(self.since, |report| report.view);
        self.steps_done.map(|steps_done| Standing { session, steps_done, log_from, lease_until, view })
    }

    /// It was accepted again; returns what it has to report again.
    pub fn accepted_again(&mut self, accepted: &Accepted) -> Vec<StepReport> {
        self.session = accepted.session;
        self.reports.iter().filter(|report| report.step >= accepted.reported).cloned().collect()
    }
}

/// How one that comes back is to stop when it is refused because the run ends; `None` if it is refused for itself.
pub fn too_late(refusal: &Refusal) -> Option<Stop> {
    let kind = match refusal.reason {
        RefusalReason::Closed => StopKind::AtOnce,
        // What it was doing again is complete by other processes, and by its own before it.
        // Or the others went on without it, which it finds out by what it holds.
        RefusalReason::Finished | RefusalReason::LeftBehind => StopKind::Finished,
        _ => return None,
    };
    Some(Stop { kind, sentence: refusal.sentence.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_proto::id::{Digest, RunId};

    fn report(step: Step) -> StepReport {
        StepReport {
            step,
            view: ViewId(1),
            epoch: 0,
            lr: 0.1,
            own_digest: Digest::of("x"),
            consumed: vec![],
            terms: vec![],
            timings: vec![],
            images: 8,
            log_bytes: 0,
            said: vec![],
        }
    }

    fn accepted(session: u64, reported: Step) -> Accepted {
        Accepted { run: RunId(1), session, heartbeat_ms: 1000, reported }
    }

    #[test]
    fn what_is_not_on_record_is_reported_again() {
        let mut place = Place::new(&accepted(1, 0), vec![4]);
        assert_eq!(place.standing(0), None, "it was not told where to start");
        place.starts(Start::at(4), ViewId(1));
        place.granted(9);
        assert!((4..8).all(|step| place.completed(report(step))));
        assert!(
            !place.completed(report(2)),
            "it still says what it did before it was told to start elsewhere"
        );
        let standing = Standing { session: 1, steps_done: 8, log_from: 4, lease_until: 9, view: ViewId(1) };
        assert_eq!(place.standing(4), Some(standing));
        let again = place.accepted_again(&accepted(2, 6));
        assert_eq!(again.iter().map(|report| report.step).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(place.standing(4).map(|standing| standing.session), Some(2));
        assert!(place.is_another_start(&accepted(1 << SESSION_BITS, 0)));
        assert!(!place.is_another_start(&accepted(9, 0)));
        assert!(place.holds(vec![4, 8], 1));
        assert_eq!(place.starts(Start::at(4), ViewId(1)), 2);
        assert!(!place.holds(vec![4, 8], 1), "8 was removed when it started anew");
        assert_eq!((place.next(), place.held()), (4, &[4][..]));
        assert_eq!(place.accepted_again(&accepted(3, 0)), [], "those of before the start are void");
        place.starts(Start::at(4), ViewId(2));
        assert!(!place.completed(report(4)), "it was completed before all went back to where it stood");
        assert!(place.completed(StepReport { view: ViewId(2), ..report(4) }));
    }

    /// Whoever is to be told where to start has no memory that counts, whatever its training thread still says.
    #[test]
    fn one_that_stands_down_stands_nowhere() {
        let mut place = Place::new(&accepted(1, 0), vec![4]);
        place.starts(Start::at(4), ViewId(2));
        assert_eq!(
            place.standing(0).map(|standing| standing.log_from),
            Some(4),
            "it is about to begin there"
        );
        assert!(place.completed(StepReport { view: ViewId(3), ..report(4) }));
        assert_eq!(place.standing(4).map(|standing| standing.view), Some(ViewId(3)), "of its last step");
        place.stands_down();
        assert!(!place.completed(StepReport { view: ViewId(3), ..report(5) }));
        assert_eq!((place.standing(4), place.next()), (None, 0));
        assert_eq!(place.accepted_again(&accepted(2, 0)), []);
        place.starts(Start::at(4), ViewId(4));
        assert_eq!(place.standing(4).map(|standing| standing.view), Some(ViewId(4)));
    }

    #[test]
    fn one_that_lacks_what_it_is_to_start_from_stands_nowhere() {
        let told = |checkpoint, held: &[Step]| {
            let mut place = Place::new(&accepted(1, 0), vec![4, 8]);
            let epoch = place.starts(Start { step: 8, checkpoint }, ViewId(2));
            assert!(place.holds(held.to_vec(), epoch));
            place
        };
        assert_eq!(told(8, &[4]).standing(0), None);
        assert!(told(8, &[8]).standing(0).is_some() && told(0, &[4]).standing(0).is_some());
        assert!(told(4, &[8]).standing(0).is_some(), "it came in, and let go of what it came in with");
        let mut place = told(8, &[4, 8]);
        assert!(place.completed(StepReport { view: ViewId(2), ..report(8) }));
        assert!(place.holds(vec![9], 1) && place.standing(0).is_some(), "it has gone on from there");
    }

    #[test]
    fn one_that_comes_back_too_late_stops_as_the_run_does() {
        let stop = |reason| {
            let refusal = Refusal { reason, sentence: "all is done".into() };
            too_late(&refusal).map(|stop| stop.kind)
        };
        assert_eq!(stop(RefusalReason::Finished), Some(StopKind::Finished));
        assert_eq!(stop(RefusalReason::Closed), Some(StopKind::AtOnce));
        assert_eq!(stop(RefusalReason::UnknownName), None);
    }

    #[test]
    fn reports_are_bounded() {
        let mut place = Place::new(&accepted(1, 0), vec![]);
        place.starts(Start::at(0), ViewId(1));
        (0..2 * REPORTS_KEPT as Step).for_each(|step| _ = place.completed(report(step)));
        assert_eq!(place.accepted_again(&accepted(2, 0)).len(), REPORTS_KEPT);
    }
}
