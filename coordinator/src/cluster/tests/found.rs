//! What the simulation has found: orders of events in which a cohort that goes on came to a halt, or apart.

use super::going_on::{flushes, received, report_in, three, train, views};
use super::*;

/// Three peers that go on as long as one is left.
fn three_that_need_nobody() -> World {
    let policy = "[policy]\non_failure = \"continue\"\nmin_peers = 1\n";
    let toml = TOML.replace("[policy]\n", policy);
    let mut world = World::with(&format!("{toml}[[peer]]\nname = \"c\"\narch = \"resnet8\"\n"), &history());
    for peer in ["a", "b", "c"] {
        world.join(peer).unwrap();
        world.attend(peer);
    }
    world
}

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
    let mut world = three_that_need_nobody();
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
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    started_again(&mut world, "c", &[10]);
    let until = world.cluster.lease_until();
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
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
    let mut world = three_that_need_nobody();
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
    let mut world = three_that_need_nobody();
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
        let standing = Some(Standing { session: 4, steps_done, log_from: 10, lease_until: 26 });
        let checkpoints = Some(Checkpoints { run: RunId(7), steps: held.clone() });
        let request = JoinRequest { standing, checkpoints, ..world.request(peer) };
        let session = world.present(request, "127.0.0.1").unwrap().session;
        world.sessions.insert(peer, session);
        told.extend(told_to_retain(&world.attend(peer)));
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
    let mut world = three_that_need_nobody();
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
        Some(Standing { session: world.sessions[peer], steps_done, log_from: 10, lease_until: 16 })
    };
    // It is back at the coordinator, from a replay of which that knew nothing.
    let request = JoinRequest { standing: standing("c", 11), ..world.request("c") };
    let session = world.present(request, "127.0.0.1").unwrap().session;
    world.sessions.insert("c", session);
    world.attend("c");
    assert_eq!(views(&started_again(&mut world, "a", &[10])), vec![]);
    let actions = world.say("c", report_in(1, "c", 11, &["a", "b"]));
    assert_eq!(views(&actions).len(), 1, "it comes in when c is in the view without it");
}

/// All fell back to step 0 and c was to come in at step 5, when the coordinator died. What it says now, a has not heard.
#[test]
fn one_that_did_not_hear_of_a_fall_back_before_another_view_is_told_again() {
    let toml = TOML.replace("[policy]\n", "[policy]\non_failure = \"continue\"\n");
    let before = three();
    let all = before.cluster.view().unwrap().members.clone();
    let without = View { id: ViewId(2), begins_at: 0, members: all[..2].to_vec() };
    let mut views = Views::from(without);
    views.insert(View { id: ViewId(3), begins_at: 5, members: all });
    let history = History {
        starts: 1,
        views,
        data: before.cluster.members().data(),
        lease_until: 5,
        records: vec![PeerRecord::default(); 3],
        ..history()
    };
    let mut world = World::with(&format!("{toml}[[peer]]\nname = \"c\"\narch = \"resnet8\"\n"), &history);
    let mut told = vec![];
    for (peer, steps_done) in [("a", 3), ("b", 0), ("c", 5)] {
        let standing = Some(Standing { session: 4, steps_done, log_from: 0, lease_until: 5 });
        let request = JoinRequest { standing, ..world.request(peer) };
        let session = world.present(request, "127.0.0.1").unwrap().session;
        world.sessions.insert(peer, session);
        told = starts(&world.attend(peer));
    }
    assert_eq!(told, vec![(0, 3)]);
}
