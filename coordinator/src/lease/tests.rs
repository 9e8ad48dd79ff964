//! The lease, step by step.

use super::*;

/// A lease of two members that hold a checkpoint of the same step.
fn fresh(begins_at: Step, total: Step) -> Lease {
    Lease::new(Tick(0), total, vec![Progress::new(begins_at, [begins_at]); 2], 0)
}

/// A lease of two members at the given pace, both reported up to `steps`.
fn paced(ms_per_step: u64, steps: u64, total: Step) -> Lease {
    let mut lease = fresh(0, total);
    for step in 0..steps {
        lease.renew();
        let now = Tick((step + 1) * ms_per_step);
        lease.report(now, 0, step).unwrap();
        lease.report(now, 1, step).unwrap();
    }
    lease
}

#[test]
fn the_first_grant_is_the_shortest_and_then_it_follows_the_pace() {
    let mut lease = fresh(5, 1000);
    assert_eq!(lease.renew(), Some(5 + LEASE_STEPS_MIN));
    assert_eq!(lease.renew(), None);
    let mut slow = paced(10_000, 3, 1000);
    assert_eq!(slow.renew(), Some(3 + LEASE_STEPS_MIN));
    let mut medium = paced(100, 1, 1000);
    assert_eq!(medium.renew(), Some(1 + 20));
    let mut fast = paced(0, 1, 1000);
    assert_eq!(fast.renew(), Some(1 + LEASE_STEPS_MAX));
}

#[test]
fn it_is_renewed_when_half_is_left_and_never_beyond_the_end() {
    let mut lease = paced(100, 1, 1000);
    assert_eq!(lease.renew(), Some(21));
    for step in 1..30 {
        for member in 0..2 {
            lease.report(Tick(100 * (step + 1)), member, step).unwrap();
        }
        if let Some(until) = lease.renew() {
            assert_eq!((step, until), (10, 31));
            break;
        }
    }
    let mut end = paced(0, 1, 10);
    assert_eq!(end.renew(), Some(10));
    assert_eq!(end.renew(), None);
}

#[test]
fn the_slowest_member_holds_the_lease() {
    let mut lease = paced(0, 1, 1000);
    let until = lease.renew().unwrap();
    for step in 1..until {
        lease.report(Tick(0), 0, step).unwrap();
    }
    assert_eq!(lease.renew(), None);
    assert_eq!(lease.report(Tick(0), 0, until), Err(OutOfOrder::BeyondLease { got: until, until }));
}

#[test]
fn steps_come_one_after_the_other() {
    let mut lease = paced(0, 2, 1000);
    lease.renew();
    assert_eq!(lease.report(Tick(0), 0, 1), Err(OutOfOrder::Doubled { got: 1, expected: 2 }));
    assert_eq!(lease.report(Tick(0), 0, 3), Err(OutOfOrder::Lost { got: 3, expected: 2 }));
    assert_eq!(lease.completed(0), 2);
}

#[test]
fn a_replay_is_told_again_and_then_new() {
    let mut lease = paced(0, 3, 1000);
    lease.renew();
    lease.resume(1, 1);
    assert_eq!(lease.report(Tick(0), 1, 2), Err(OutOfOrder::Lost { got: 2, expected: 1 }));
    assert_eq!(lease.report(Tick(0), 1, 1), Ok(Told::Again));
    assert_eq!(lease.report(Tick(0), 1, 1), Err(OutOfOrder::Doubled { got: 1, expected: 2 }));
    assert_eq!((lease.next(1), lease.completed(1)), (2, 3));
    assert_eq!(lease.report(Tick(0), 1, 2), Ok(Told::Again));
    assert_eq!(lease.report(Tick(0), 1, 3), Ok(Told::New));
    assert_eq!((lease.next(1), lease.completed(1)), (4, 4));
}

#[test]
fn all_go_back_together() {
    let mut lease = paced(0, 9, 1000);
    lease.renew();
    let until = lease.until();
    lease.holds(0, [4, 8], |_| true);
    lease.holds(1, [4, 6], |_| true);
    let both = BTreeSet::from([0, 1]);
    assert_eq!((lease.common_of(&both), lease.newest_until(1, 5), lease.newest_until(0, 3)), (4, 4, 0));
    lease.fall_back(Tick(0), &both, 4);
    assert_eq!((lease.completed(0), lease.next(1), lease.until(), lease.slowest()), (4, 4, until, 4));
    assert_eq!(lease.report(Tick(0), 0, 4), Ok(Told::New));
}

#[test]
fn the_log_is_kept_back_to_the_newest_common_checkpoint() {
    let mut lease = paced(0, 25, 1000);
    lease.renew();
    assert_eq!(lease.saved(0, 10, &[10], |_| true), Ok(None));
    assert_eq!(lease.saved(0, 20, &[10, 20], |_| true), Ok(None));
    assert_eq!(lease.saved(1, 10, &[10], |_| true), Ok(Some(10)));
    assert_eq!(lease.saved(1, 10, &[10], |_| true), Ok(None));
    assert_eq!(lease.saved(1, 20, &[10, 20], |_| true), Ok(Some(20)));
    assert!(lease.saved(1, 1000, &[], |_| true).is_err());
}

/// It was told to start before them, and says of its disk what it has still to remove.
#[test]
fn checkpoints_of_steps_that_a_member_has_before_it_do_not_count() {
    let mut lease = paced(0, 25, 1000);
    lease.starts(1, 10);
    let mut held = || {
        lease.saved(1, 20, &[10, 20], |_| true).unwrap();
        let held = lease.checkpoints(1).cloned();
        (10..20).for_each(|step| _ = lease.report(Tick(0), 1, step));
        held
    };
    assert_eq!(
        [held(), held()],
        [&[0, 10][..], &[0, 10, 20]].map(|held| Some(held.iter().copied().collect()))
    );
}

#[test]
fn a_member_that_saves_without_end_costs_no_memory() {
    let mut lease = paced(0, 2, 1 << 20);
    for step in 2..2 * CHECKPOINTS_MAX as u64 {
        lease.renew();
        let all: Vec<Step> = (0..step.min(lease.until())).collect();
        lease.saved(0, step.min(lease.until()), &all, |_| true).unwrap();
        lease.report(Tick(0), 0, step).unwrap();
        lease.report(Tick(0), 1, step).unwrap();
    }
    assert!(lease.members[0].checkpoints.len() <= CHECKPOINTS_MAX);
}
