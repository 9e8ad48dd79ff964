//! Whose memory counts: one that was away may go on where it stands, or starts anew, and the others need not go back for it.

use super::going_on::{found_of_three, received, report_in, three, train, views, with_c_to_come_in};
use super::*;

/// One of three that has taken so many steps, the last of them in a view, and holds these checkpoints.
fn stands(world: &World, peer: &str, steps_done: Step, view: u64, held: &[Step]) -> JoinRequest {
    let session = world.cluster.members().peer(world.cluster.members().index(&name(peer)).unwrap());
    let session = session.and_then(|peer| peer.joined.as_ref()).map_or(4, |joined| joined.session);
    let view = ViewId(view);
    let standing = Some(Standing { session, steps_done, log_from: 10, lease_until: steps_done + 5, view });
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: held.to_vec() });
    JoinRequest { standing, checkpoints, ..world.request(peer) }
}

/// Who is made to stand down.
fn stood_down(actions: &[Action]) -> Vec<&str> {
    let named = |action| match action {
        &Action::Send { message: ToPeer::Flush { id: 0, ref peers }, .. } => Some(peers),
        _ => None,
    };
    actions.iter().filter_map(named).flatten().map(PeerName::as_str).collect()
}

fn recorded_views(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Record(Entry::View { .. }))).count()
}

/// A coordinator of three that was started again, after a and b took the steps from 20 on without c, which came in at 30.
/// Nothing that a and b took without it is on record.
fn found_where_views_begin() -> World {
    found_of_three(2, &[(20, &[0, 1]), (30, &[0, 1, 2])], [(20, &[10, 15]), (20, &[10]), (20, &[10])], 30)
}

/// No two of them hold the same checkpoint, so that all would begin with fresh weights if they went back together.
#[test]
fn those_who_stand_where_a_view_begins_go_on() {
    let mut world = found_where_views_begin();
    for (peer, steps_done, view, held) in [("a", 30, 2, 25), ("b", 20, 1, 15), ("c", 30, 3, 30)] {
        let request = stands(&world, peer, steps_done, view, &[held]);
        let actions = world.come_back(peer, request);
        assert_eq!((starts(&actions), recorded_views(&actions)), (vec![], 0), "{peer}");
        assert_eq!(stood_down(&actions), [""; 0], "{peer}");
    }
}

/// The same three; c had been put out, and did not hear that it came in.
#[test]
fn one_that_has_not_heard_where_it_comes_in_stands_down() {
    let mut world = found_where_views_begin();
    let request = stands(&world, "c", 20, 1, &[10]);
    assert_eq!(stood_down(&world.come_back("c", request)), ["c"]);
    for (peer, steps_done) in [("a", 25), ("b", 25)] {
        let request = stands(&world, peer, steps_done, 2, &[10]);
        let actions = world.come_back(peer, request);
        assert_eq!(starts(&actions), vec![], "{peer}");
    }
}

/// Both were told to go back to step 10. a was away, and b has heard of it.
fn one_misses_a_fall_back() -> World {
    let mut world = trained(25);
    world.hang_up("b");
    assert_eq!(starts(&started_again(&mut world, "b", &[10])), vec![(10, 2)]);
    world.hang_up("a");
    world
}

#[test]
fn one_that_missed_a_fall_back_starts_anew_alone() {
    let mut world = one_misses_a_fall_back();
    let request = stands(&world, "a", 25, 1, &[10, 20]);
    let accepted = world.present(request, "127.0.0.1").unwrap();
    assert_eq!(accepted.reported, Step::MAX, "nothing of what it remembers counts");
    world.sessions.insert("a", accepted.session);
    let actions = world.attend("a");
    let first = actions.iter().find(|action| matches!(action, Action::Send { .. }));
    let down = ToPeer::Flush { id: 0, peers: vec![name("a")] };
    assert_eq!(first, Some(&Action::Send { streams: vec![world.streams["a"]], message: down }));
    assert_eq!((starts(&actions), recorded_views(&actions)), (vec![(10, 1)], 0), "b is where it is to be");
    // What was under way says nothing.
    for message in [FromPeer::Report(report("a", 25)), FromPeer::CannotFollow("released".into())] {
        assert_eq!(world.say("a", message), vec![]);
    }
    for peer in ["a", "b"] {
        for step in 10..12 {
            world.say(peer, FromPeer::Report(StepReport { view: ViewId(2), ..report(peer, step) }));
        }
    }
    assert_eq!((world.cluster.steps_done(0), world.cluster.steps_done(1)), (12, 12));
}

#[test]
fn one_that_heard_of_a_fall_back_goes_on_after_it_was_away() {
    let mut world = one_misses_a_fall_back();
    let request = stands(&world, "a", 10, 2, &[10]);
    let actions = world.come_back("a", request);
    assert_eq!((starts(&actions), stood_down(&actions)), (vec![], vec![]));
    // It could not follow before.
    assert_eq!(starts(&world.say("a", FromPeer::CannotFollow("released".into()))), vec![(10, 2)]);
}

/// It stood just where all fell back to, and took another step before it heard of that.
#[test]
fn one_whose_step_is_taken_again_by_the_others_starts_anew() {
    let mut world = one_misses_a_fall_back();
    let request = stands(&world, "a", 10, 1, &[10]);
    assert_eq!(starts(&world.come_back("a", request)), vec![]);
    let actions = world.say("a", FromPeer::Report(report("a", 10)));
    assert_eq!((starts(&actions), stood_down(&actions)), (vec![(10, 1)], vec!["a"]));
    assert_eq!(world.say("a", FromPeer::Report(report("a", 11))), vec![], "it is told once");
}

/// The coordinator that told it so is gone, and the next one knows nothing of that.
#[test]
fn one_that_lacks_what_it_was_to_start_from_is_told_anew() {
    let mut world = World::with(TOML, &of_a_run(20, &[10, 20]));
    for peer in ["a", "b"] {
        let request = stands(&world, peer, 20, 1, &[10, 20]);
        assert_eq!(starts(&world.come_back(peer, request)), vec![]);
    }
    let actions = world.say("a", FromPeer::CheckpointSaved { step: 10, held: vec![10] });
    assert_eq!((stood_down(&actions), starts(&actions)), (vec!["a"], vec![(10, 1)]));
}

/// What is removed where one starts is not what a coordinator that is started again is to count on.
#[test]
fn one_that_starts_before_what_it_holds_is_not_on_record_with_it() {
    let mut world = trained(19);
    for peer in ["a", "b"] {
        world.steps(peer, 19..20);
    }
    world.say("b", FromPeer::CheckpointSaved { step: 20, held: vec![10, 20] });
    world.hang_up("a");
    world.hang_up("b");
    started_again(&mut world, "b", &[10, 20]);
    let actions = started_again(&mut world, "a", &[10]);
    assert_eq!(starts(&actions), vec![(10, 2)]);
    let lost = |peer| Action::Record(Entry::Lost { peer: name(peer), after: 10 });
    assert!(actions.contains(&lost("b")), "{actions:?}");
    let told =
        actions.iter().position(|action| matches!(action, Action::Send { message: ToPeer::Start(_), .. }));
    assert!(actions.iter().position(|action| *action == lost("b")) < told);
    // It says of its disk what it has still to hear of.
    world.say("b", FromPeer::CheckpointSaved { step: 20, held: vec![10, 20] });
    assert!(!world.cluster.training.as_ref().unwrap().lease.counts(1, 20));
}

/// a and b took the steps from 20 on without c, which came in at 30. All die before they hold a checkpoint in common, and a
/// has none of what b has. Two are needed, and only b has what all of before had.
#[test]
fn one_goes_back_alone_rather_than_all_to_fresh_weights() {
    let later_views: [(Step, &[usize]); 3] = [(20, &[1, 2]), (30, &[0, 1, 2]), (32, &[0, 1])];
    let mut world = found_of_three(2, &later_views, [(33, &[30]), (33, &[10, 20]), (33, &[10, 20])], 40);
    started_again(&mut world, "a", &[30]);
    let actions = started_again(&mut world, "b", &[10, 20]);
    let said: Vec<_> = views(&actions).into_iter().filter(|(id, ..)| *id > 4).collect();
    assert!(said.contains(&(5, 20, 1)) && said.contains(&(6, 40, 2)), "{said:?}");
    assert_eq!(starts(&actions), vec![(20, 1), (40, 1)], "a comes in where the lease ends");
}

/// One that was put out, and had not heard of it, is not one that stands where the others are.
#[test]
fn one_that_was_put_out_does_not_stand_where_it_comes_in() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![(2, 12, 2)]);
    let until = world.cluster.lease_until();
    let request = stands(&world, "c", 12, 1, &[10]);
    assert_eq!(starts(&world.come_back("c", request)), vec![(until, 1)]);
    // It is in the view now, and has lost its connection before it heard so.
    world.hang_up("c");
    let request = stands(&world, "c", 12, 1, &[10]);
    let actions = world.come_back("c", request);
    assert_eq!(stood_down(&actions), ["c"]);
    assert_eq!(world.say("c", report_in(1, "c", 12, &["a", "b"])), vec![]);
}

/// It was told where to come in, and another left before anyone took that step: the view in which it started is none any
/// more, and nothing that it did is void.
#[test]
fn one_that_stands_where_another_view_begins_goes_on() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    let before = world.cluster.training.clone();
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![(2, 12, 2)]);
    let training = world.cluster.training.as_ref().unwrap();
    let stands = |steps_done, view| Standing {
        session: 4,
        steps_done,
        log_from: 12,
        lease_until: 14,
        view: ViewId(view),
    };
    assert!(training.remembers(&name("a"), &stands(12, 1)) && training.remembers(&name("a"), &stands(13, 2)));
    assert!(!training.remembers(&name("a"), &stands(13, 1)), "it took step 12 with c");
    assert!(!training.remembers(&name("c"), &stands(12, 1)));
    assert!(before.unwrap().remembers(&name("c"), &stands(13, 1)));
    // As if view 2 had taken the place of another that began there.
    let mut training = world.cluster.training.clone().unwrap();
    training.views.insert(View { id: ViewId(4), ..training.views.last().unwrap().clone() });
    assert!(
        training.remembers(&name("a"), &stands(12, 3)) && !training.remembers(&name("a"), &stands(13, 3))
    );
}

/// It was killed while it came in, and its checkpoints are of before the views in which it is a member.
#[test]
fn one_that_is_lost_while_it_comes_in_comes_in_with_what_is_on_its_disk() {
    let (mut world, until) = with_c_to_come_in(three());
    for step in 12..until {
        // Not so fast that the lease reaches the end.
        world.now = world.now.plus(1_000);
        train(&mut world, 2, &["a", "b"], step..step + 1);
    }
    world.hang_up("c");
    started_again(&mut world, "c", &[10]);
    let id = world.cluster.flushes;
    world.say("a", received(id, &[("c", until)]));
    let actions = world.say("b", received(id, &[("c", until)]));
    let told = |action: &Action| match action {
        Action::Send { message: ToPeer::Start(start), .. } => Some(start.checkpoint),
        _ => None,
    };
    assert_eq!(actions.iter().find_map(told), Some(10), "{actions:?}");
}

/// It was told to come in with a checkpoint that it let go of meanwhile, when it saved that of where it came in before.
#[test]
fn one_that_lacks_what_it_was_to_come_in_with_is_told_anew() {
    let (mut world, until) = with_c_to_come_in(three());
    let saved = FromPeer::CheckpointSaved { step: until - 1, held: vec![until - 1] };
    assert_eq!(stood_down(&world.say("c", saved)), ["c"]);
}
