//! A cohort of three that goes on without the one it loses.

use super::*;

/// The coordinator of three peers that go on as long as so many are left.
fn of_three(least: usize, history: &History) -> World {
    let toml =
        TOML.replace("[policy]\n", &format!("[policy]\non_failure = \"continue\"\nmin_peers = {least}\n"));
    World::with(&format!("{toml}[[peer]]\nname = \"c\"\narch = \"resnet8\"\n"), history)
}

/// Three peers that go on as long as two are left.
pub(super) fn three() -> World {
    three_that_need(2)
}

/// Three peers that go on as long as so many are left.
pub(super) fn three_that_need(least: usize) -> World {
    let mut world = of_three(least, &history());
    for peer in ["a", "b", "c"] {
        world.join(peer).unwrap();
        world.attend(peer);
    }
    assert_eq!(world.cluster.phase(), Phase::Running);
    world
}

/// Their coordinator was started again: views of these members began at these steps after the first one, and so many steps
/// and these checkpoints of each are on record.
pub(super) fn found_of_three(
    least: usize,
    later_views: &[(Step, &[usize])],
    on_record: [(Step, &[Step]); 3],
    lease_until: Step,
) -> World {
    let before = three();
    let first = before.cluster.view().unwrap();
    let mut views = Views::from(first.clone());
    for (number, (begins_at, members)) in (2..).zip(later_views) {
        let members = members.iter().map(|index| first.members[*index].clone()).collect();
        views.insert(View { id: ViewId(number), begins_at: *begins_at, members });
    }
    let record = |(completed, held): (Step, &[Step])| PeerRecord {
        completed,
        checkpoints: held.to_vec(),
        said: vec![],
    };
    let (records, data) = (on_record.map(record).to_vec(), before.cluster.members().data());
    of_three(least, &History { starts: 1, views, data, lease_until, records, ..history() })
}

pub(super) fn report_in(view: u64, peer: &str, step: Step, others: &[&str]) -> FromPeer {
    let digest = |peer: &str| Digest::of(format!("{view}{peer}{step}"));
    let consumed = others.iter().map(|other| (name(other), digest(other))).collect();
    FromPeer::Report(StepReport {
        view: ViewId(view),
        own_digest: digest(peer),
        consumed,
        ..report(peer, step)
    })
}

/// All take steps in a view, saving every ten.
pub(super) fn train(world: &mut World, view: u64, peers: &[&'static str], steps: std::ops::Range<Step>) {
    for step in steps {
        for peer in peers {
            let others: Vec<&str> = peers.iter().copied().filter(|other| other != peer).collect();
            let actions = world.say(peer, report_in(view, peer, step, &others));
            assert_eq!(stops(&actions), vec![], "step {step} of {peer}");
            if (step + 1) % 10 == 0 {
                world.say(peer, FromPeer::CheckpointSaved { step: step + 1, held: vec![step + 1] });
            }
        }
    }
}

/// c is lost after twelve steps, and is to come in again at the step that is returned: the end of the lease.
pub(super) fn with_c_to_come_in(mut world: World) -> (World, Step) {
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    started_again(&mut world, "c", &[10]);
    let until = world.cluster.lease_until();
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
    (world, until)
}

pub(super) fn flushes(actions: &[Action]) -> Vec<(u64, Vec<&str>, usize)> {
    let flush = |action| match action {
        // Without a number nothing is asked: those who are named stand down.
        &Action::Send { ref streams, message: ToPeer::Flush { id, ref peers } } if id > 0 => {
            Some((id, peers.iter().map(PeerName::as_str).collect(), streams.len()))
        }
        _ => None,
    };
    actions.iter().filter_map(flush).collect()
}

pub(super) fn received(flush: u64, of: &[(&str, Step)]) -> FromPeer {
    FromPeer::Received { flush, of: of.iter().map(|(peer, step)| (name(peer), *step)).collect() }
}

pub(super) fn views(actions: &[Action]) -> Vec<(u64, Step, usize)> {
    let view = |action: &Action| match action {
        Action::Record(Entry::View { view, .. }) => Some((view.id.0, view.begins_at, view.members.len())),
        _ => None,
    };
    actions.iter().filter_map(view).collect()
}

/// The address of a member, by the last time that a view was said.
pub(super) fn said_address(actions: &[Action], view: u64, member: usize) -> String {
    let address = |action: &Action| match action {
        Action::Send { message: ToPeer::View(said), .. } if said.id.0 == view => {
            said.members.iter().find(|said| said.index == member).map(|member| member.address.clone())
        }
        _ => None,
    };
    actions.iter().filter_map(address).next_back().unwrap()
}

#[test]
fn the_survivors_begin_a_view_where_nobody_has_all_of_what_the_lost_one_said() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    let actions = world.wait(5_000, &["a", "b"]);
    assert_eq!(flushes(&actions), vec![(1, vec!["c"], 2)]);
    assert_eq!(views(&world.say("a", received(1, &[("c", 12)]))), vec![], "not before all have answered");
    let actions = world.say("b", received(1, &[("c", 13)]));
    assert_eq!(views(&actions), vec![(2, 13, 2)]);
    let durable = actions.iter().position(|action| matches!(action, Action::Record(Entry::View { .. })));
    let said = actions.iter().position(|a| matches!(a, Action::Send { message: ToPeer::View(_), .. }));
    assert!(durable < said, "{actions:?}");
    assert_eq!(said_address(&actions, 1, 2), "127.0.0.1:4098", "what a lacks of c it finds at b");
    train(&mut world, 2, &["a", "b"], 13..13);
    let step_12 = |peer, others: &[&str]| report_in(1, peer, 12, others);
    assert_eq!(stops(&world.say("a", step_12("a", &["b", "c"]))), vec![]);
    assert_eq!(stops(&world.say("b", step_12("b", &["a", "c"]))), vec![]);
    train(&mut world, 2, &["a", "b"], 13..20);
    assert_eq!(world.cluster.steps_done(0), 20);
    assert_eq!(world.cluster.message(world.now), "", "nobody is waited for");
}

#[test]
fn what_the_lost_one_told_of_steps_that_are_taken_anew_is_void() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..3);
    // It completed a step of which the others have not heard what it said.
    world.say("c", report_in(1, "c", 3, &["a", "b"]));
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 3)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 3)]))), vec![(2, 3, 2)]);
    assert_eq!(world.cluster.steps_done(2), 3);
    train(&mut world, 2, &["a", "b"], 3..8);
}

#[test]
fn another_death_asks_anew_and_too_few_wait() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["a"])), vec![], "one is fewer than min_peers");
    assert!(world.cluster.message(world.now).contains("waiting for b (given up"));
    // It comes back without a memory: both begin anew from a checkpoint, without c.
    let actions = started_again(&mut world, "b", &[10]);
    assert_eq!((views(&actions), starts(&actions)), (vec![(2, 10, 2)], vec![(10, 2)]));
    train(&mut world, 2, &["a", "b"], 10..15);
}

#[test]
fn it_comes_in_again_where_the_lease_ends() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    // Its new process shows that it is gone: nobody waits for the timeout.
    let actions = started_again(&mut world, "c", &[10]);
    assert_eq!(flushes(&actions), vec![], "that was done when it joined");
    let until = world.cluster.lease_until();
    world.say("a", received(1, &[("c", 12)]));
    let actions = world.say("b", received(1, &[("c", 12)]));
    assert_eq!(views(&actions), vec![(2, 12, 2), (3, until, 3)]);
    let start = Start { step: until, checkpoint: 10 };
    let told = Action::Send { streams: vec![world.streams["c"]], message: ToPeer::Start(start) };
    assert!(actions.contains(&told), "{actions:?}");
    world.say("c", FromPeer::CheckpointSaved { step: until, held: vec![10, until] });
    train(&mut world, 2, &["a", "b"], 12..until);
    train(&mut world, 3, &["a", "b", "c"], until..until + 3);
    assert_eq!(world.cluster.steps_done(2), until + 3);
}

#[test]
fn one_that_was_cut_off_comes_in_again_like_one_that_died() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.wait(10_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![(2, 12, 2)]);
    let (session, view) = (world.sessions["c"], ViewId(1));
    let standing = Standing { session, steps_done: 12, log_from: 0, lease_until: 14, view };
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![10] });
    let request = JoinRequest { standing: Some(standing), checkpoints, ..world.request("c") };
    let accepted = world.present(request, "127.0.0.1").unwrap();
    assert_eq!(accepted.reported, Step::MAX, "nothing of what it remembers counts");
    world.sessions.insert("c", accepted.session);
    let actions = world.attend("c");
    let begins_at = world.cluster.view().unwrap().begins_at;
    assert_eq!(starts(&actions), vec![(begins_at, 1)]);
    // It completes a step of the view that it knew before it hears of all that.
    for step in [11, 12] {
        assert_eq!(world.say("c", report_in(1, "c", step, &["a", "b"])), vec![]);
    }
    assert_eq!(world.cluster.steps_done(2), begins_at);
    train(&mut world, 2, &["a", "b"], 12..begins_at);
    train(&mut world, 3, &["a", "b", "c"], begins_at..begins_at + 1);
}

/// All heartbeats arrive, but what c says does not.
#[test]
fn one_that_lives_and_is_not_heard_is_left_behind_for_a_while() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    let mut asked = vec![];
    for second in 1..=20 {
        world.now = world.now.plus(1_000);
        let waits = |peer: &str| Waiting { sources: vec![name(peer)], ms: 1_000 * second };
        for (peer, waits) in [("a", waits("c")), ("b", waits("c")), ("c", waits("a"))] {
            asked.extend(world.say(peer, FromPeer::Heartbeat(waits)));
        }
    }
    assert_eq!(flushes(&asked), vec![(1, vec!["c"], 2)]);
    world.say("a", received(1, &[("c", 12)]));
    let actions = world.say("b", received(1, &[("c", 12)]));
    assert_eq!(views(&actions), vec![(2, 12, 2)], "it does not come in at once");
    train(&mut world, 2, &["a", "b"], 12..13);
    assert_eq!(views(&world.wait(19_000, &["a", "b", "c"])), vec![]);
    assert_eq!(views(&world.wait(2_000, &["a", "b", "c"])).len(), 1);
}

/// Two are all that must be left, so that nobody may be lost: the run ends when it has not moved for too long.
#[test]
fn one_that_lives_and_is_not_heard_does_not_keep_a_run_that_needs_it() {
    let toml = TOML.replace("[policy]\n", "[policy]\non_failure = \"continue\"\nwait_timeout_ms = 60000\n");
    let mut world = World::with(&toml, &history());
    for peer in ["a", "b"] {
        world.join(peer).unwrap();
        world.attend(peer);
    }
    let mut said = vec![];
    for second in 1..=61 {
        world.now = world.now.plus(1_000);
        for (peer, other) in [("a", "b"), ("b", "a")] {
            let waits = Waiting { sources: vec![name(other)], ms: 1_000 * second };
            said.extend(world.say(peer, FromPeer::Heartbeat(waits)));
        }
        said.extend(world.event(Event::Timer));
    }
    assert!(!stops(&said).is_empty(), "it has not moved for a minute");
}

/// All die, and one of them for good: it is not where the run is, only since nobody has missed it yet.
#[test]
fn those_who_come_back_do_not_wait_for_one_that_died_with_them() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    for peer in ["a", "b", "c"] {
        world.hang_up(peer);
    }
    for peer in ["b", "c"] {
        started_again(&mut world, peer, &[10]);
    }
    let actions = world.wait(6_000, &["b", "c"]);
    assert!(views(&actions).iter().any(|(id, _, members)| *id == 2 && *members == 2), "{actions:?}");
}

#[test]
fn a_peer_that_is_wrong_or_gives_up_is_left_behind() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..3);
    let wrong = report_in(9, "c", 3, &["a", "b"]);
    let actions = world.say("c", wrong);
    assert_eq!((flushes(&actions), stops(&actions)), (vec![(1, vec!["c"], 2)], vec![]));
    let mut world = three();
    let actions =
        world.say("c", FromPeer::Leaving { steps_done: 0, finished: false, reason: "disk full".into() });
    assert_eq!((flushes(&actions), stops(&actions)), (vec![(1, vec!["c"], 2)], vec![]));
}

#[test]
fn an_answer_from_a_stream_that_broke_does_not_count() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    world.hang_up("a");
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![]);
    let actions = world.attend("a");
    assert_eq!((flushes(&actions), views(&actions)), (vec![(1, vec!["c"], 1)], vec![]));
    assert_eq!(views(&world.say("a", received(1, &[("c", 13)]))), vec![(2, 13, 2)]);
}

#[test]
fn the_run_finishes_without_one_that_never_came_back() {
    let mut world = three();
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("c");
    world.wait(5_000, &["a", "b"]);
    world.say("a", received(1, &[("c", 12)]));
    world.say("b", received(1, &[("c", 12)]));
    train(&mut world, 2, &["a", "b"], 12..100);
    assert_eq!(world.cluster.phase(), Phase::Finished);
}

/// One with twelve steps that was given up, and lives.
fn back(world: &mut World, peer: &'static str) -> Vec<Action> {
    let (session, view) = (world.sessions[peer], ViewId(1));
    let standing = Some(Standing { session, steps_done: 12, log_from: 0, lease_until: 14, view });
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![10] });
    let request = JoinRequest { standing, checkpoints, ..world.request(peer) };
    world.come_back(peer, request)
}

/// A coordinator whose own cable was cut cannot tell those who live from those who died: whoever was given up shortly before
/// the end has the time to come back to hear it.
#[test]
fn one_that_was_given_up_hears_the_end() {
    let ended = |waited: u64| {
        let mut world = three();
        train(&mut world, 1, &["a", "b", "c"], 0..12);
        world.hang_up("c");
        world.wait(5_000 + waited, &["a", "b"]);
        world.say("a", received(1, &[("c", 12)]));
        world.say("b", received(1, &[("c", 12)]));
        train(&mut world, 2, &["a", "b"], 12..100);
        let leaving = || FromPeer::Leaving { steps_done: 100, finished: true, reason: String::new() };
        world.say("a", leaving());
        let last = exit(&world.say("b", leaving()));
        (world, last)
    };
    let (mut world, last) = ended(0);
    assert_eq!(last, None);
    assert_eq!(stops(&back(&mut world, "c")).len(), 1);
    let leaving = FromPeer::Leaving { steps_done: 12, finished: false, reason: "left behind".into() };
    assert_eq!(exit(&world.say("c", leaving)), Some(Ended::Finished));
    // If it died it is not waited for longer than until its next attempt, nor if that is over already.
    let (mut world, _) = ended(0);
    assert_eq!(exit(&world.wait(9_999, &[])), None);
    assert_eq!(exit(&world.wait(1, &[])), Some(Ended::Finished));
    assert_eq!(ended(10_000).1, Some(Ended::Finished));
    // Nor if its next process shows that it died.
    let (mut world, _) = ended(0);
    let (refused, actions) = world.present_and_look(world.request("c"), "127.0.0.1");
    assert_eq!(refused.unwrap_err().reason, RefusalReason::LeftBehind);
    assert_eq!(exit(&actions), Some(Ended::Finished));
    // Nor by who asks again to end.
    let (mut world, _) = ended(0);
    assert_eq!(exit(&world.event(Event::StopAsked { by: "SIGTERM".into() })), Some(Ended::Finished));
}

/// Of a run that stops all is started again, so that it waits only for those of whom nothing was heard.
#[test]
fn a_run_that_stops_waits_for_those_who_fell_silent() {
    for silent in [false, true] {
        let mut world = three();
        train(&mut world, 1, &["a", "b", "c"], 0..12);
        if !silent {
            world.hang_up("c");
        }
        world.wait(10_000, &["a", "b"]);
        world.say("a", received(1, &[("c", 12)]));
        world.say("b", received(1, &[("c", 12)]));
        world.event(Event::StopAsked { by: "SIGTERM".into() });
        let leaving = || FromPeer::Leaving { steps_done: 12, finished: false, reason: String::new() };
        world.say("a", leaving());
        let last = exit(&world.say("b", leaving()));
        assert_eq!(last, (!silent).then_some(Ended::Stopped));
        if silent {
            let mut asked_again = World { cluster: world.cluster.clone(), ..World::new() };
            asked_again.now = world.now;
            let actions = asked_again.event(Event::StopAsked { by: "SIGTERM".into() });
            assert_eq!(exit(&actions), Some(Ended::Stopped));
            assert_eq!(exit(&world.wait(9_999, &[])), None);
            assert_eq!(exit(&world.wait(1, &[])), Some(Ended::Stopped));
        }
    }
}

/// The only one who was to answer dies with its answer; those who were given up live.
#[test]
fn nobody_waits_for_ever_for_an_answer() {
    let mut world = three_that_need(1);
    train(&mut world, 1, &["a", "b", "c"], 0..12);
    world.hang_up("a");
    world.hang_up("b");
    assert_eq!(flushes(&world.wait(5_000, &["c"])).last(), Some(&(2, vec!["a", "b"], 1)));
    world.hang_up("c");
    world.wait(5_000, &[]);
    back(&mut world, "a");
    assert_eq!(views(&world.wait(1_000, &["a"])), vec![]);
    back(&mut world, "b");
    assert_eq!(views(&world.wait(9_999, &["a", "b"])), vec![], "c may be on its way back");
    let actions = world.wait(1, &["a", "b"]);
    assert_eq!((views(&actions), starts(&actions)), (vec![(2, 10, 2)], vec![(10, 2)]));
    train(&mut world, 2, &["a", "b"], 10..12);
    // It did not die: what it did since the others were given up does not count.
    let actions = back(&mut world, "c");
    assert_eq!(views(&actions), vec![(3, world.cluster.lease_until(), 3)]);
}

#[test]
fn a_coordinator_that_was_started_again_does_not_wait_for_ever() {
    let mut world = found_of_three(2, &[], [(12, &[10]); 3], 14);
    for peer in ["a", "b"] {
        let standing =
            Some(Standing { session: 4, steps_done: 12, log_from: 10, lease_until: 14, view: ViewId(1) });
        let request = JoinRequest { standing, ..world.request(peer) };
        world.come_back(peer, request);
    }
    assert_eq!(flushes(&world.wait(19_999, &["a", "b"])), vec![]);
    assert_eq!(flushes(&world.wait(1, &["a", "b"])), vec![(1, vec!["c"], 2)]);
    world.say("a", received(1, &[("c", 12)]));
    assert_eq!(views(&world.say("b", received(1, &[("c", 12)]))), vec![(2, 12, 2)]);
}

/// What it would have said begins where it comes in, and nobody has waited for it yet.
#[test]
fn one_that_is_lost_again_before_it_came_in() {
    let (mut world, until) = with_c_to_come_in(three());
    train(&mut world, 2, &["a", "b"], 12..14);
    world.hang_up("c");
    assert_eq!(flushes(&world.wait(5_000, &["a", "b"])), vec![(2, vec!["c"], 2)]);
    world.say("a", received(2, &[("c", 15)]));
    let actions = world.say("b", received(2, &[("c", 14)]));
    assert_eq!(views(&actions), vec![(4, until, 2)]);
    train(&mut world, 2, &["a", "b"], 14..until);
    train(&mut world, 4, &["a", "b"], until..until + 2);
}
