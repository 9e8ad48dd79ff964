//! What the simulation has found: orders of events in which a cohort that goes on came to a halt, or apart.

use super::going_on::{
    flushes, found_of_three, received, report_in, three, three_that_need, train, views, with_c_to_come_in,
};
use super::*;

fn told_to_retain(actions: &[Action]) -> Vec<Step> {
    let retain = |action: &Action| match action {
        Action::Send { message: ToPeer::RetainFrom(step), .. } => Some(*step),
        _ => None,
    };
    actions.iter().filter_map(retain).collect()
}

/// What c would have to say of b begins where c comes in, and a lacks what b said before.
#[test]
fn one_that_has_still_to_come_in_is_put_out_with_another_that_is_lost() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    started_again(&mut world, "c", &[10]);
    let until = world.cluster.lease_until();
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![(2, 12, 2), (3, until, 3)]);
    train(&mut world, 2, &["a", "b"], 12..13);
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a", "c"])), vec![(2, vec!["b", "c"], 1)]);
    let actions = world.say("a", received(2, &[("b", 13), ("c", 13)]));
    assert_eq!(views(&actions)[0], (4, 13, 1));
    assert_eq!(views(&actions)[1].2, 2, "it comes in again: {actions:?}");
}

/// With two peers at the least there is nobody to go on with before c has come in.
#[test]
fn one_that_has_still_to_come_in_is_not_counted() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    started_again(&mut world, "c", &[10]);
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
    train(&mut world, 2, &["a", "b"], 12..13);
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a", "c"])), vec![]);
    assert!(world.cluster.message(world.now).contains("waiting for b (given up"));
    let actions = started_again(&mut world, "b", &[10]);
    assert_eq!((flushes(&actions), views(&actions)[0].1), (vec![], 10), "a and b begin anew");
}

/// What a reports last comes after b was given up: then c is where a is.
#[test]
fn one_that_was_waited_for_is_given_up_when_the_others_are_enough() {
    let (mut world, until) = with_c_to_come_in(three());
    train(&mut world, 2, &["a", "b"], 12..until - 1);
    world.say("b", report_in(2, "b", until - 1, &["a"]));
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a", "c"])), vec![]);
    let actions = world.say("a", report_in(2, "a", until - 1, &["b"]));
    assert_eq!(flushes(&actions), vec![(2, vec!["b"], 2)]);
}

/// b has what a lacks of c, and dies with it.
#[test]
fn what_was_to_be_relayed_by_one_that_is_lost_is_asked_for_again() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 13)]))), vec![(2, 13, 2)]);
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a"])), vec![(2, vec!["b", "c"], 1)]);
    let actions = world.say("a", received(2, &[("b", 13), ("c", 12)]));
    assert_eq!(views(&actions), vec![(3, 12, 1)], "nobody can complete step 12 of the first view");
}

/// A step that all have behind them needs nothing of those who were lost before it.
#[test]
fn those_who_were_lost_long_ago_are_not_asked_for() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
    train(&mut world, 2, &["a", "b"], 12..13);
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a"])), vec![(2, vec!["b"], 1)]);
}

/// After all fell back, what was saved before is of other weights until it is saved again.
#[test]
fn a_checkpoint_of_steps_that_are_taken_again_counts_when_it_is_saved_again() {
    let mut world = trained(25);
    world.hang_up("b");
    assert_eq!(starts(&started_again(&mut world, "b", &[10])), vec![(10, 2)]);
    let old = FromPeer::CheckpointSaved { step: 20, held: vec![10, 20] };
    let actions = world.say("a", old.clone());
    assert!(told_to_retain(&actions).is_empty());
    assert!(!actions.iter().any(|action| matches!(action, Action::Record(_))), "{actions:?}");
    for step in 10..20 {
        for peer in ["a", "b"] {
            world.say(peer, FromPeer::Report(StepReport { view: ViewId(2), ..report(peer, step) }));
        }
    }
    assert!(told_to_retain(&world.say("b", old.clone())).is_empty(), "a has the old one still");
    assert_eq!(told_to_retain(&world.say("a", old)), vec![20]);
}

/// The journal has all steps of a, but its process was going through them once more.
#[test]
fn a_coordinator_that_was_started_again_lets_nobody_forget_what_a_replay_needs() {
    let before = trained(25);
    let record = PeerRecord { completed: 25, checkpoints: vec![10, 20], said: vec![] };
    let history = History {
        starts: 1,
        views: before.cluster.view().unwrap().clone().into(),
        data: before.cluster.members().data(),
        lease_until: before.cluster.lease_until(),
        records: vec![record; 2],
        ..history()
    };
    let mut world = World::with(TOML, &history);
    let mut told = vec![];
    for (peer, steps_done, held) in [("b", 25, vec![10, 20]), ("a", 15, vec![10])] {
        let standing =
            Some(Standing { session: 4, steps_done, log_from: 10, lease_until: 26, view: ViewId(1) });
        let checkpoints = Some(Checkpoints { run: RunId(7), steps: held.clone() });
        let request = JoinRequest { standing, checkpoints, ..world.request(peer) };
        told.extend(told_to_retain(&world.come_back(peer, request)));
        let step = held[held.len() - 1];
        told.extend(told_to_retain(&world.say(peer, FromPeer::CheckpointSaved { step, held })));
    }
    assert_eq!(told, vec![0, 0, 10]);
}

/// c has come in since the last common checkpoint. When all die, the others need not begin from nothing.
#[test]
fn one_that_came_in_lately_does_not_cost_the_others_what_they_saved() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    started_again(&mut world, "c", &[]);
    let until = world.cluster.lease_until();
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
    world.say("c", FromPeer::CheckpointSaved { step: until, held: vec![until] });
    train(&mut world, 2, &["a", "b"], 12..until);
    train(&mut world, 3, &["a", "b", "c"], until..until + 1);
    for peer in ["a", "b", "c"] {
        world.hang_up(peer);
    }
    started_again(&mut world, "a", &[10]);
    assert_eq!(views(&started_again(&mut world, "c", &[until])), vec![]);
    let actions = started_again(&mut world, "b", &[10]);
    assert_eq!(views(&actions)[0], (4, 10, 2));
    assert_eq!(starts(&actions), vec![(10, 2)], "c comes in again later");
}

/// Both began anew before they had saved anything. One dies in the replay: more is on record than the other has.
#[test]
fn one_may_be_lost_while_all_replay() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..3);
    for peer in ["a", "b", "c"] {
        world.hang_up(peer);
    }
    for peer in ["a", "b", "c"] {
        started_again(&mut world, peer, &[]);
    }
    let view = world.cluster.view().unwrap().clone();
    assert_eq!((view.begins_at, view.members.len()), (0, 3));
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    let flush = flushes(&world.attend("a"))[0].0;
    for peer in ["a", "b"] {
        assert_eq!(stops(&world.say(peer, received(flush, &[("c", 0)]))), vec![]);
    }
    let view = world.cluster.view().unwrap().clone();
    assert_eq!((view.begins_at, view.members.len()), (0, 2));
    train(&mut world, view.id.0, &["a", "b"], 0..3);
    assert_eq!(world.cluster.steps_done(0), 3);
}

/// A step takes longer than the failure timeout, and nobody misses anybody: the machine does not ask to be woken all the
/// time.
#[test]
fn a_long_step_keeps_nobody_awake() {
    let mut world = three();
    for _ in 0..25 {
        world.now = world.now.plus(1_000);
        for peer in ["a", "b", "c"] {
            assert_eq!(world.say(peer, heartbeat()), vec![]);
        }
        world.event(Event::Timer);
        assert!(world.cluster.poll_timeout() > Some(world.now));
    }
}

/// b and c go through the steps from 10 on once more, in a view without a: what a said to them is at others still.
#[test]
fn nobody_comes_in_while_others_replay_what_it_said() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("a");
    world.wait(5_000, &["b", "c"]);
    world.say("b", received(1, &[("a", 12)]));
    assert_eq!(views(&world.say("c", received(1, &[("a", 12)]))), vec![(2, 12, 2)]);
    train(&mut world, 2, &["b", "c"], 12..15);
    let standing = |peer: &str, steps_done| {
        let session = world.sessions[peer];
        Some(Standing { session, steps_done, log_from: 10, lease_until: 16, view: ViewId(1) })
    };
    // It is back at the coordinator, from a replay of which that knew nothing.
    let request = JoinRequest { standing: standing("c", 11), ..world.request("c") };
    world.come_back("c", request);
    assert_eq!(views(&started_again(&mut world, "a", &[10])), vec![]);
    let actions = world.say("c", report_in(1, "c", 11, &["a", "b"]));
    assert_eq!(views(&actions).len(), 1, "it comes in when c is in the view without it");
}

/// All fell back to step 0 and c was to come in at step 5, when the coordinator died. What it says now, a has not heard.
#[test]
fn one_that_did_not_hear_of_a_fall_back_before_another_view_is_told_again() {
    let mut world = found_of_three(2, &[(0, &[0, 1]), (5, &[0, 1, 2])], [(0, &[]); 3], 5);
    let mut told = vec![];
    for (peer, steps_done) in [("a", 3), ("b", 0), ("c", 5)] {
        let standing =
            Some(Standing { session: 4, steps_done, log_from: 0, lease_until: 5, view: ViewId(1) });
        let request = JoinRequest { standing, ..world.request(peer) };
        told = starts(&world.come_back(peer, request));
    }
    assert_eq!(told, vec![(0, 3)]);
}

/// A coordinator of three that was started again, after c had left them at step 12. So many steps of a and b are on record,
/// and b has taken so many.
fn found_again(recorded: Step, b: Step) -> (World, Vec<Action>) {
    let on_record = [(recorded, &[10][..]), (recorded, &[10]), (12, &[10])];
    let mut world = found_of_three(1, &[(12, &[0, 1])], on_record, 16);
    let mut told = vec![];
    for (peer, steps_done) in [("a", recorded), ("b", b)] {
        let view = ViewId(if steps_done > 12 { 2 } else { 1 });
        let standing = Some(Standing { session: 4, steps_done, log_from: 10, lease_until: 16, view });
        let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![10] });
        let request = JoinRequest { standing, checkpoints, ..world.request(peer) };
        told = world.come_back(peer, request);
    }
    (world, told)
}

/// b has what c said to step 11, which a still waits for, and only the last start of the coordinator knew that.
#[test]
fn a_coordinator_that_was_started_again_finds_out_who_relays() {
    let (mut world, told) = found_again(11, 12);
    let flush = flushes(&told)[0].clone();
    assert_eq!((flush.1, flush.2), (vec!["c"], 2));
    world.say("a", received(flush.0, &[("c", 11)]));
    let actions = world.say("b", received(flush.0, &[("c", 12)]));
    assert_eq!(views(&actions), vec![(3, 16, 2)], "nothing is taken again");
    assert_eq!(going_on::said_address(&actions, 1, 2), "127.0.0.1:4098");
    assert_eq!(flushes(&found_again(13, 13).1), vec![], "nobody lacks anything");
}

/// What is asked for is behind all of them when the last answer comes, and a has gone on.
#[test]
fn an_answer_about_one_who_left_long_ago_stops_nobody() {
    let (mut world, told) = found_again(11, 12);
    let (id, ..) = flushes(&told)[0];
    for (peer, other) in [("a", "b"), ("b", "a")] {
        assert_eq!(stops(&world.say(peer, report_in(1, peer, 11, &[other, "c"]))), vec![]);
    }
    train(&mut world, 2, &["a", "b"], 12..14);
    for peer in ["a", "b"] {
        world.say(peer, FromPeer::CheckpointSaved { step: 14, held: vec![14] });
        assert_eq!(stops(&world.say(peer, received(id, &[("c", 12)]))), vec![]);
    }
    assert_eq!(world.cluster.phase(), Phase::Running);
}

/// c was where a is when b was lost. Then a comes back from a replay of which the coordinator knew nothing.
#[test]
fn one_that_turns_out_to_be_ahead_of_the_others_is_put_out_too() {
    let (mut world, until) = with_c_to_come_in(three_that_need(1));
    train(&mut world, 2, &["a", "b"], 12..until);
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a", "c"])), vec![(2, vec!["b"], 2)]);
    world.say("c", received(2, &[("b", until)]));
    world.hang_up("a");
    let (session, view) = (world.sessions["a"], ViewId(2));
    let standing = Some(Standing { session, steps_done: 13, log_from: 10, lease_until: until, view });
    let request = JoinRequest { standing, ..world.request("a") };
    world.come_back("a", request);
    let actions = world.say("a", received(2, &[("b", 13)]));
    assert_eq!((views(&actions), flushes(&actions)), (vec![], vec![(3, vec!["b", "c"], 1)]));
    let actions = world.say("a", received(3, &[("b", 13), ("c", until)]));
    assert_eq!(views(&actions)[0], (4, 13, 1));
}

/// b has what c said to step 11 and a lacks, and is lost too.
#[test]
fn who_had_left_before_the_coordinator_died_is_asked_for_as_well() {
    let (mut world, told) = found_again(11, 12);
    let (id, ..) = flushes(&told)[0];
    world.say("a", received(id, &[("c", 11)]));
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a"])), vec![(id + 1, vec!["b", "c"], 1)]);
    let actions = world.say("a", received(id + 1, &[("b", 12), ("c", 11)]));
    assert_eq!(views(&actions), vec![(3, 11, 1)], "a takes step 11 alone");
}

/// A peer dies, is started again with these checkpoints, and comes in again; all take a step together. Returns since when.
fn comes_in(world: &mut World, peer: &'static str, held: &[Step], others: [&'static str; 2]) -> Step {
    let view = world.cluster.view().unwrap().id.0;
    let (flush, done) = (world.cluster.flushes + 1, world.cluster.steps_done(0));
    world.hang_up(peer);
    started_again(world, peer, held);
    for other in others {
        world.say(other, received(flush, &[(peer, done)]));
    }
    let begins_at = world.cluster.view().unwrap().begins_at;
    let held = held.iter().copied().chain([begins_at]).collect();
    world.say(peer, FromPeer::CheckpointSaved { step: begins_at, held });
    slowly(world, view + 1, &others, done..begins_at);
    slowly(world, view + 2, &["a", "b", "c"], begins_at..begins_at + 1);
    begins_at
}

/// A step takes a second, so that leases are short.
fn slowly(world: &mut World, view: u64, peers: &[&'static str], steps: std::ops::Range<Step>) {
    for step in steps {
        world.now = world.now.plus(1_000);
        train(world, view, peers, step..step + 1);
    }
}

/// First c comes in, with nothing, then b, which still has what it had saved with a. Then a and c die.
#[test]
fn one_that_came_in_again_goes_back_to_what_it_saved_before() {
    let mut world = three();
    slowly(&mut world, 1, &["a", "b", "c"], 0..12);
    let since = comes_in(&mut world, "c", &[], ["a", "b"]);
    comes_in(&mut world, "b", &[10], ["a", "c"]);
    world.hang_up("a");
    world.hang_up("c");
    started_again(&mut world, "a", &[10]);
    let actions = started_again(&mut world, "c", &[since]);
    let view = views(&actions)[0];
    assert_eq!((view.1, view.2), (10, 2), "{actions:?}");
    assert_eq!(starts(&actions)[0], (10, 2), "c comes in again later");
}

/// c has completed a step that a and b took without it, and has saved that: of 20 steps they have other weights.
#[test]
fn a_checkpoint_of_steps_that_were_taken_without_its_owner_does_not_count() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..19);
    world.hang_up("c");
    started_again(&mut world, "c", &[10, 20]);
    world.say("a", received(1, &[("c", 19)]));
    let actions = world.say("b", received(1, &[("c", 19)]));
    let begins_at = world.cluster.view().unwrap().begins_at;
    // It is as good as any to come in with.
    let start = Start { step: begins_at, checkpoint: 20 };
    assert!(
        actions.iter().any(
            |action| matches!(action, Action::Send { message: ToPeer::Start(told), .. } if *told == start)
        )
    );
    world.say("c", FromPeer::CheckpointSaved { step: begins_at, held: vec![10, 20, begins_at] });
    train(&mut world, 2, &["a", "b"], 19..begins_at);
    train(&mut world, 3, &["a", "b", "c"], begins_at..begins_at + 1);
    ["a", "b", "c"].iter().for_each(|peer| _ = world.hang_up(peer));
    for (peer, held) in [("a", &[10, 20][..]), ("c", &[10, 20, begins_at]), ("b", &[10, 20])] {
        let actions = started_again(&mut world, peer, held);
        if peer == "b" {
            assert_eq!((views(&actions)[0].1, starts(&actions)), (10, vec![(10, 3)]));
        }
    }
}

/// As many as must be are a and b, but only a has what all held once: b was not there.
#[test]
fn one_that_is_needed_comes_in_where_the_others_go_back_to() {
    let mut world = three();
    slowly(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("b");
    world.wait(5_000, &["a", "c"]);
    world.say("a", received(1, &[("b", 12)]));
    world.say("c", received(1, &[("b", 12)]));
    slowly(&mut world, 2, &["a", "c"], 12..21);
    started_again(&mut world, "b", &[10]);
    let since = world.cluster.view().unwrap().begins_at;
    world.say("b", FromPeer::CheckpointSaved { step: since, held: vec![10, since] });
    slowly(&mut world, 2, &["a", "c"], 21..since);
    slowly(&mut world, 3, &["a", "b", "c"], since..since + 1);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(2, &[("c", since + 1)]));
    assert_eq!(views(&world.say("b", received(2, &[("c", since + 1)]))), vec![(4, since + 1, 2)]);
    world.hang_up("a");
    let actions = started_again(&mut world, "a", &[20]);
    assert_eq!(views(&actions)[0], (5, 20, 2));
    let told = |action: &Action| match action {
        Action::Send { message: ToPeer::Start(start), streams } => Some((*start, streams[0])),
        _ => None,
    };
    let expected = [
        // Its checkpoint of step 10 is of before all that is retained, and that of where it came in is of later.
        (Start { step: 20, checkpoint: 10 }, world.streams["b"]),
        (Start { step: 20, checkpoint: 20 }, world.streams["a"]),
    ];
    assert_eq!(actions.iter().filter_map(told).collect::<Vec<_>>(), expected);
}

/// All fall back to where a may be: it must not go on from there by itself, and then once more when it is told to.
#[test]
fn all_stand_down_before_they_hear_of_the_view_in_which_they_fall_back() {
    let mut world = trained(25);
    world.hang_up("b");
    let actions = started_again(&mut world, "b", &[10]);
    let place = |wanted: fn(&ToPeer) -> bool| {
        actions.iter().position(|action| matches!(action, Action::Send { message, .. } if wanted(message)))
    };
    let named = ToPeer::Flush { id: 0, peers: vec![name("a"), name("b")] };
    assert!(actions.contains(&Action::Send { streams: world.both(), message: named }), "{actions:?}");
    let view = place(|message| matches!(message, ToPeer::View(view) if view.id == ViewId(2)));
    let flush = place(|message| matches!(message, ToPeer::Flush { .. }));
    assert!(flush < view && view < place(|message| matches!(message, ToPeer::Start(_))), "{actions:?}");
}

/// a let go of checkpoint 10, since all had one of 20, while b came back with that one damaged.
#[test]
fn one_that_no_longer_holds_what_all_go_back_to_is_told_anew() {
    let mut world = trained(25);
    world.hang_up("b");
    assert_eq!(starts(&started_again(&mut world, "b", &[10])), vec![(10, 2)]);
    let actions = world.say("a", FromPeer::CheckpointSaved { step: 20, held: vec![20] });
    assert_eq!(starts(&actions), vec![(0, 2)]);
    let other = world.say("a", FromPeer::CheckpointSaved { step: 20, held: vec![20] });
    assert_eq!(starts(&other), vec![], "everybody has fresh weights");
}

/// A coordinator of three that was started again: a and b took the steps from 20 to 50 without c, which came in there.
fn found_after_one_came_in() -> World {
    let on_record: [(Step, &[Step]); 3] = [(55, &[15, 30, 45]), (55, &[15, 30, 45]), (55, &[15, 50])];
    found_of_three(2, &[(20, &[0, 1]), (50, &[0, 1, 2])], on_record, 60)
}

#[test]
fn one_that_came_in_lately_costs_nobody_the_checkpoints_of_before() {
    let mut world = found_after_one_came_in();
    started_again(&mut world, "c", &[15, 50]);
    started_again(&mut world, "a", &[30, 45]);
    let actions = started_again(&mut world, "b", &[30, 45]);
    assert_eq!((views(&actions)[0], starts(&actions)[0]), ((4, 45, 2), (45, 2)), "a and b go back together");
}

/// One of three that has taken 55 steps and has all from 45 on.
fn stands(world: &World, peer: &'static str) -> JoinRequest {
    let view = world.cluster.view().unwrap().id;
    let standing = Some(Standing { session: 4, steps_done: 55, log_from: 45, lease_until: 60, view });
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![30, 45] });
    JoinRequest { standing, checkpoints, ..world.request(peer) }
}

/// c may have asked to join before them, and attend after them.
#[test]
fn those_who_stand_are_not_rolled_back_for_one_that_came_in_lately() {
    for attends_late in [false, true] {
        let mut world = found_after_one_came_in();
        let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![15, 50] });
        let request = JoinRequest { checkpoints, ..world.request("c") };
        let session = world.present(request, "127.0.0.1").unwrap().session;
        world.sessions.insert("c", session);
        if !attends_late {
            assert_eq!(starts(&world.attend("c")), vec![]);
        }
        let mut told = vec![];
        for peer in ["a", "b"] {
            told = world.come_back(peer, stands(&world, peer));
            assert_eq!((views(&told), starts(&told)), (vec![], vec![]));
        }
        let flush = flushes(&told)[0].clone();
        assert_eq!((flush.1, flush.2), (vec!["c"], 1), "b is asked as a was before");
        if attends_late {
            let actions = world.attend("c");
            assert_eq!((views(&actions), starts(&actions)), (vec![], vec![]));
        }
        world.say("a", received(flush.0, &[("c", 55)]));
        let actions = world.say("b", received(flush.0, &[("c", 55)]));
        assert_eq!(views(&actions)[0], (4, 55, 2), "nothing is taken again");
        assert!(starts(&actions).iter().all(|(_, peers)| *peers == 1), "{:?}", starts(&actions));
    }
}

/// Two of three lost their memory, and two must be left: they replay what c has said.
#[test]
fn one_who_stands_is_not_rolled_back_for_as_many_as_are_needed() {
    let mut world = found_of_three(2, &[], [(55, &[30, 45]); 3], 60);
    started_again(&mut world, "a", &[30, 45]);
    started_again(&mut world, "b", &[30, 45]);
    let told = world.come_back("c", stands(&world, "c"));
    assert_eq!((starts(&told), flushes(&told)), (vec![(45, 2)], vec![]), "a and b alone");
    assert!(
        told.iter().all(|action| !matches!(action, Action::Record(Entry::View { .. }))),
        "in the same view"
    );
}
