//! What one peer may do next, arrival by arrival.

use super::*;
use cohort_proto::schema::Schema;
use cohort_proto::view::Member;

fn name(text: &str) -> PeerName {
    PeerName::new(text).unwrap()
}

fn view() -> View {
    let member = |index, text| Member {
        index,
        name: name(text),
        address: format!("127.0.0.1:{}", 4000 + index),
        schema: Schema::default(),
    };
    // The order of names is not that of indices.
    View { id: ViewId(1), begins_at: 2, members: vec![member(0, "c"), member(1, "b"), member(2, "a")] }
}

fn said(source: &str, step: Step) -> Arc<Contribution> {
    let header = Header {
        run: RunId(5),
        view: ViewId(1),
        position: Position::of(step),
        source: name(source),
        batch_hash: 0,
    };
    Arc::new(Contribution::seal(header, vec![], &Schema::default()).unwrap())
}

fn stop(kind: StopKind) -> Stop {
    Stop { kind, sentence: "asked".into() }
}

fn sources() -> BTreeSet<PeerName> {
    ["a", "c"].map(name).into()
}

fn peer_b() -> Rounds {
    let mut rounds = Rounds::new(name("b"), RunId(5), 10, sources());
    rounds.arrived(Arrival::View(view())).unwrap();
    rounds.arrived(Arrival::Start(Start::at(2))).unwrap();
    rounds.started();
    rounds.arrived(Arrival::Lease(4)).unwrap();
    rounds
}

#[test]
fn waits_for_view_then_lease_then_goes() {
    let mut rounds = Rounds::new(name("b"), RunId(5), 10, sources());
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View));
    rounds.arrived(Arrival::View(view())).unwrap();
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View), "nobody said where to start");
    rounds.arrived(Arrival::Start(Start::at(3))).unwrap();
    assert_eq!(rounds.permission(), Permission::Start(Start::at(3)));
    rounds.started();
    assert_eq!((rounds.next_step(), rounds.permission()), (3, Permission::Wait(WaitsFor::Lease)));
    rounds.arrived(Arrival::Lease(4)).unwrap();
    assert_eq!(rounds.permission(), Permission::Go(ViewId(1)));
}

#[test]
fn takes_in_the_order_of_indices_when_all_have_spoken() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Heard(said("a", 2))).unwrap();
    assert_eq!(rounds.missing(Position::of(2)), [name("c")]);
    assert!(rounds.take(Position::of(2)).is_none());
    rounds.arrived(Arrival::Heard(said("c", 2))).unwrap();
    let taken = rounds.take(Position::of(2)).unwrap();
    let order: Vec<_> = taken.iter().map(|(index, c)| (*index, c.header().source.as_str())).collect();
    assert_eq!(order, [(0, "c"), (2, "a")]);
}

#[test]
fn replayed_entries_are_skipped_and_strays_refused() {
    let mut rounds = peer_b();
    assert_eq!(rounds.arrived(Arrival::Heard(said("a", 1))), Ok(false), "an entry of the past is not kept");
    let far = rounds.arrived(Arrival::Heard(said("a", 6)));
    assert!(matches!(far, Err(Stray::Ahead { step: 6, expected: 2, .. })));
    assert!(matches!(rounds.arrived(Arrival::Heard(said("x", 2))), Err(Stray::Source(_))));
    let mut other = Rounds::new(name("b"), RunId(6), 10, sources());
    other.arrived(Arrival::View(view())).unwrap();
    assert!(matches!(other.arrived(Arrival::Heard(said("a", 2))), Err(Stray::Run { .. })));
}

#[test]
fn what_comes_twice_or_from_a_void_view_is_not_kept() {
    let mut rounds = peer_b();
    assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(true));
    assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(false));
    let newer = View { id: ViewId(2), begins_at: 3, ..view() };
    rounds.arrived(Arrival::View(newer)).unwrap();
    rounds.arrived(Arrival::Start(Start::at(3))).unwrap();
    assert!(rounds.restarts(ViewId(1)));
    rounds.started();
    assert_eq!(rounds.view().map(|view| view.id), Some(ViewId(2)));
    assert_eq!(rounds.missing(Position::of(3)).len(), 2, "what was heard before is void");
    assert_eq!(rounds.arrived(Arrival::Heard(said("a", 3))), Ok(false));
}

#[test]
fn one_that_comes_in_later_speaks_of_later_steps() {
    let mut rounds = peer_b();
    let without = View { id: ViewId(2), begins_at: 3, members: vec![view().members[1].clone()] };
    let again = View { id: ViewId(3), begins_at: 9, ..view() };
    rounds.arrived(Arrival::View(without)).unwrap();
    rounds.arrived(Arrival::View(again)).unwrap();
    let said = |step| {
        let header = said("a", step).header().clone();
        Arc::new(
            Contribution::seal(Header { view: ViewId(3), ..header }, vec![], &Schema::default()).unwrap(),
        )
    };
    rounds.completed();
    assert_eq!(rounds.arrived(Arrival::Heard(said(9))), Ok(true));
    assert!(matches!(rounds.arrived(Arrival::Heard(said(13))), Err(Stray::Ahead { expected: 9, .. })));
    assert!(rounds.missing(Position::of(3)).is_empty(), "in between nobody else is a member");
}

/// What was consumed of a step of many rounds comes again when a later view makes this peer follow anew: it would take
/// the places of what is still to come.
#[test]
fn a_round_that_was_taken_is_wanted_again_in_another_view_only() {
    let mut rounds = peer_b();
    for source in ["a", "c"] {
        rounds.arrived(Arrival::Heard(said(source, 2))).unwrap();
    }
    rounds.take(Position::of(2)).unwrap();
    rounds.arrived(Arrival::View(View { id: ViewId(2), begins_at: 4, ..view() })).unwrap();
    assert_eq!(rounds.arrived(Arrival::Heard(said("a", 2))), Ok(false));
    rounds.arrived(Arrival::View(View { id: ViewId(3), begins_at: 2, ..view() })).unwrap();
    let header = Header { view: ViewId(3), ..said("a", 2).header().clone() };
    let again = Contribution::seal(header, vec![], &Schema::default()).unwrap();
    assert_eq!(rounds.arrived(Arrival::Heard(Arc::new(again))), Ok(true));
}

#[test]
fn one_that_is_to_go_back_waits_to_be_told_where() {
    let mut rounds = peer_b();
    (2..4).for_each(|_| rounds.completed());
    rounds.arrived(Arrival::Lease(9)).unwrap();
    rounds.arrived(Arrival::View(View { id: ViewId(2), begins_at: 4, ..view() })).unwrap();
    assert_eq!(rounds.permission(), Permission::Go(ViewId(2)), "nobody has to go back");
    rounds.arrived(Arrival::View(View { id: ViewId(3), begins_at: 2, ..view() })).unwrap();
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View));
    rounds.arrived(Arrival::Start(Start::at(2))).unwrap();
    rounds.started();
    assert_eq!(rounds.permission(), Permission::Go(ViewId(3)));
}

#[test]
fn a_view_that_is_said_again_changes_nothing_but_addresses() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Heard(said("a", 2))).unwrap();
    rounds.arrived(Arrival::View(view())).unwrap();
    assert_eq!(rounds.missing(Position::of(2)), [name("c")]);
}

#[test]
fn a_graceful_stop_runs_to_the_end_of_the_lease() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Stop(stop(StopKind::Graceful))).unwrap();
    assert_eq!(rounds.permission(), Permission::Go(ViewId(1)));
    assert!(rounds.abandon().is_none());
    rounds.completed();
    rounds.completed();
    assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::Graceful)));
}

#[test]
fn at_once_is_at_once_and_stays() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Stop(stop(StopKind::AtOnce))).unwrap();
    rounds.arrived(Arrival::Stop(stop(StopKind::Graceful))).unwrap();
    assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::AtOnce)));
    assert!(rounds.abandon().is_some());
}

#[test]
fn the_last_step_waits_for_the_others() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Lease(10)).unwrap();
    (2..10).for_each(|_| rounds.completed());
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::Finish));
    rounds.arrived(Arrival::Stop(stop(StopKind::Finished))).unwrap();
    assert_eq!(rounds.permission(), Permission::Leave(stop(StopKind::Finished)));
}

#[test]
fn one_who_does_not_listen_misses_nobody() {
    let mut rounds = Rounds::new(name("b"), RunId(5), 10, BTreeSet::new());
    rounds.arrived(Arrival::View(view())).unwrap();
    assert!(rounds.missing(Position::of(2)).is_empty());
    assert_eq!(rounds.take(Position::of(2)), Some(vec![]));
}

/// All go back, in a view that begins where it is.
#[test]
fn one_that_stands_down_does_not_begin_before_it_is_told_where() {
    let mut rounds = peer_b();
    rounds.arrived(Arrival::Start(Start::at(2))).unwrap();
    rounds.stand_down();
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View), "it is told anew");
    assert!(rounds.restarts(ViewId(1)), "the step under way is given up");
    rounds.arrived(Arrival::View(View { id: ViewId(2), begins_at: 2, ..view() })).unwrap();
    assert_eq!(rounds.permission(), Permission::Wait(WaitsFor::View));
    rounds.arrived(Arrival::Start(Start::at(2))).unwrap();
    rounds.started();
    assert_eq!(rounds.permission(), Permission::Go(ViewId(2)));
}

/// It was left behind at step 4, and still follows those with whom it has steps to take before.
#[test]
fn what_others_say_after_they_left_it_behind_is_not_for_it() {
    let mut rounds = peer_b();
    let without = View { id: ViewId(2), begins_at: 4, members: vec![view().members[2].clone()] };
    rounds.arrived(Arrival::View(without)).unwrap();
    let header = Header { view: ViewId(2), position: Position::of(9), ..said("a", 9).header().clone() };
    let far = Arc::new(Contribution::seal(header, vec![], &Schema::default()).unwrap());
    assert_eq!(rounds.arrived(Arrival::Heard(far)), Ok(false));
}

/// Nobody heard its last step, so the others take it without this peer: what it saved of it is no end of the run.
#[test]
fn a_step_that_the_others_take_without_it_is_none_of_its_own() {
    let mut rounds = peer_b();
    assert!(!rounds.is_left_behind_at(9));
    let without = View { id: ViewId(2), begins_at: 9, members: vec![view().members[2].clone()] };
    rounds.arrived(Arrival::View(without)).unwrap();
    assert!(rounds.is_left_behind_at(9) && !rounds.is_left_behind_at(8));
}
