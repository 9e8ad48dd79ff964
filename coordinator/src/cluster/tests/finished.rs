//! A coordinator that is started again and finds its run finished.

use super::going_on::found_of_three;
use super::*;
use crate::cluster::finished::returning_ms;

const FINISHED: &str = "the run is finished, and so is this peer";

/// A peer presents itself with these checkpoints. Returns whose calls are answered, and how.
fn present(world: &mut World, peer: &'static str, held: &[Step]) -> Vec<(Ticket, Result<u64, String>)> {
    world.numbers += 1;
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: held.to_vec() });
    let address = format!("127.0.0.1:{}", 5000 + u16::from(peer.as_bytes()[0]));
    let request = Box::new(JoinRequest { checkpoints, address, ..world.request(peer) });
    let actions = world.event(Event::Join { ticket: Ticket(world.numbers), remote: None, request });
    answers(&actions)
}

fn answers(actions: &[Action]) -> Vec<(Ticket, Result<u64, String>)> {
    let answer = |action: &Action| match action {
        Action::Answer { ticket, outcome: Ok(accepted) } => Some((*ticket, Ok(accepted.session))),
        Action::Answer { ticket, outcome: Err(refusal) } => Some((*ticket, Err(refusal.sentence.clone()))),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

/// Of two answers: that both hear that they are complete.
fn check_complete(answers: &[(Ticket, Result<u64, String>)], tickets: &[Ticket]) {
    let of: Vec<(Ticket, Result<u64, &str>)> = answers
        .iter()
        .map(|(ticket, said)| (*ticket, said.as_ref().map(|_| 0).map_err(String::as_str)))
        .collect();
    let expected: Vec<_> = tickets.iter().map(|ticket| (*ticket, Err(FINISHED))).collect();
    assert_eq!(of, expected);
}

#[test]
fn all_come_complete_and_hear_it_once_all_have() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    assert_eq!(present(&mut world, "a", &[90, 100]), []);
    let first = Ticket(world.numbers);
    let both = present(&mut world, "b", &[100]);
    check_complete(&both, &[first, Ticket(world.numbers)]);
    assert_eq!(exit(&world.wait(20_000, &[])), Some(Ended::Finished));
}

#[test]
fn one_that_comes_alone_hears_it_when_nobody_else_can_be_expected() {
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    assert_eq!(present(&mut world, "a", &[100]), []);
    let first = Ticket(world.numbers);
    // Its process was started again: who asked before is answered, since nobody else would.
    check_complete(&present(&mut world, "a", &[100]), &[first]);
    let second = Ticket(world.numbers);
    let timeout = returning_ms(world.cluster.spec());
    assert_eq!(world.cluster.poll_timeout(), Some(Tick(timeout)));
    assert_eq!(answers(&world.wait(timeout - 1, &[])), []);
    check_complete(&answers(&world.wait(1, &[])), &[second]);
    check_complete(&present(&mut world, "b", &[100]), &[Ticket(world.numbers)]);
}

#[test]
fn one_that_lost_its_last_checkpoint_is_served_whoever_comes_first() {
    for first in ["a", "b"] {
        let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
        let held = |peer| if peer == "a" { vec![90] } else { vec![90, 100] };
        let second = if first == "a" { "b" } else { "a" };
        let mut told = present(&mut world, first, &held(first));
        assert_eq!(told.len(), usize::from(first == "a"));
        told.extend(present(&mut world, second, &held(second)));
        let sessions: BTreeMap<Ticket, u64> =
            told.into_iter().map(|(of, said)| (of, said.unwrap())).collect();
        let mut started = Vec::new();
        for (peer, session) in [first, second].into_iter().zip(sessions.into_values()) {
            world.sessions.insert(peer, session);
            started = starts(&world.attend(peer));
        }
        assert_eq!(started, vec![(90, 2)], "{first} first");
        assert_eq!(world.cluster.phase(), Phase::Running);
    }
}

#[test]
fn those_who_stand_at_the_end_hear_it_once_all_are_back() {
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    let leaving = || FromPeer::Leaving { steps_done: 100, finished: true, reason: String::new() };
    let request = stands_at(&world, "a", 100, &[100]);
    assert_eq!(stops(&world.come_back("a", request)), [], "b may be on its way, with less");
    let request = stands_at(&world, "b", 100, &[100]);
    assert_eq!(stops(&world.come_back("b", request))[0].2, 2);
    assert_eq!(exit(&world.say("a", leaving())), None);
    assert_eq!(exit(&world.say("b", leaving())), Some(Ended::Finished));
    // If it does not come, it is not waited for longer than until its next attempt.
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    let request = stands_at(&world, "a", 100, &[100]);
    world.come_back("a", request);
    let timeout = returning_ms(world.cluster.spec());
    assert_eq!(stops(&world.wait(timeout - 1, &["a"])), []);
    assert_eq!(world.cluster.poll_timeout(), Some(Tick(timeout)));
    assert_eq!(stops(&world.wait(1, &["a"])).len(), 1);
    assert_eq!(exit(&world.say("a", leaving())), Some(Ended::Finished));
    // Nor if somebody asks the coordinator to stop: who is there is told first.
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    let request = stands_at(&world, "a", 100, &[100]);
    world.come_back("a", request);
    let stopped = world.event(Event::StopAsked { by: "SIGTERM".into() });
    assert_eq!((stops(&stopped).len(), exit(&stopped)), (1, Some(Ended::Finished)));
}

#[test]
fn what_a_peer_lost_is_on_record_before_it_is_answered() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![90] });
    let request = Box::new(JoinRequest { checkpoints, ..world.request("a") });
    let actions = world.event(Event::Join { ticket: Ticket(99), remote: None, request });
    let lost = Action::Record(Entry::Lost { peer: name("a"), after: 90 });
    let place = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    assert!(place(&|action| *action == lost) < place(&|action| matches!(action, Action::Answer { .. })));
}

#[test]
fn one_that_comes_again_with_less_takes_its_own_place() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    assert_eq!(present(&mut world, "a", &[90, 100]), []);
    let first = Ticket(world.numbers);
    let second = present(&mut world, "a", &[90]);
    check_complete(&second[..1], &[first]);
    assert!(second[1].1.is_ok() && world.cluster.phase() == Phase::Running);
    assert_eq!(answers(&world.wait(20_000, &[])), [], "nobody is answered twice");
}

#[test]
fn one_that_stays_away_from_a_run_that_was_opened_again_is_given_up_like_any_other() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    present(&mut world, "a", &[90]);
    let failure_timeout_ms = world.cluster.spec().policy.failure_timeout_ms;
    assert_eq!(world.cluster.absent_until, Some(Tick(2 * failure_timeout_ms)));
}

#[test]
fn a_stranger_opens_nothing() {
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    let stranger = |request: JoinRequest| JoinRequest { name: PeerName::new("z").unwrap(), ..request };
    let old = |request: JoinRequest| JoinRequest { protocol_version: 0, ..request };
    let (stranger, old) = (stranger(world.request("a")), old(world.request("a")));
    for request in [stranger, old] {
        world.present(request, "127.0.0.1").unwrap_err();
        assert_eq!(world.cluster.phase(), Phase::Finished);
    }
    present(&mut world, "a", &[100]);
    let waits = Ticket(world.numbers);
    let stopped = world.event(Event::StopAsked { by: "SIGTERM".into() });
    check_complete(&answers(&stopped), &[waits]);
    assert_eq!(exit(&stopped), Some(Ended::Finished));
}

/// One that stands before the end, since the last steps were being taken again when the coordinator went.
fn stands_at(world: &World, peer: &'static str, steps_done: Step, held: &[Step]) -> JoinRequest {
    let held = Some(Checkpoints { run: RunId(7), steps: held.to_vec() });
    let standing = Some(Standing { session: 4, steps_done, log_from: 90, lease_until: 100, view: ViewId(1) });
    JoinRequest { checkpoints: held, standing, ..world.request(peer) }
}

#[test]
fn last_steps_that_were_being_taken_again_are_taken_to_the_end() {
    for (first, second) in [(("a", 95), ("b", 100)), (("b", 100), ("a", 95))] {
        let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
        for (peer, steps_done) in [first, second] {
            let held: &[Step] = if peer == "a" { &[90] } else { &[90, 100] };
            let request = stands_at(&world, peer, steps_done, held);
            assert_eq!(stops(&world.come_back(peer, request)), [], "{peer}");
        }
        assert_eq!(world.cluster.phase(), Phase::Running);
        // The journal says that all is complete: what a says itself counts.
        world.steps("a", 95..100);
        assert_eq!(world.cluster.phase(), Phase::Running);
        let saved = world.say("a", FromPeer::CheckpointSaved { step: 100, held: vec![90, 100] });
        assert_eq!(stops(&saved).len(), 1, "all hear the end");
        assert_eq!(world.cluster.phase(), Phase::Finished);
    }
}

/// The journal may not know of a replay under way: nobody is told the end before all have said where they are.
#[test]
fn a_run_that_was_opened_again_ends_when_all_have_come() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    let request = stands_at(&world, "a", 95, &[90, 100]);
    assert_eq!(stops(&world.come_back("a", request)), []);
    world.steps("a", 95..100);
    assert_eq!(world.cluster.phase(), Phase::Running, "b may stand before the end, and need a");
    let request = stands_at(&world, "b", 100, &[100]);
    assert_eq!(stops(&world.come_back("b", request)).len(), 1);
}

#[test]
fn who_is_not_taken_in_opens_nothing() {
    let mut world = World::with(TOML, &of_a_run(100, &[90, 100]));
    let request = JoinRequest { dataset_fingerprint: Digest::of("other"), ..world.request("a") };
    world.present(request, "127.0.0.1").unwrap_err();
    assert_eq!(world.cluster.phase(), Phase::Finished);
    assert_eq!(world.cluster.absent_until, None);
}

/// c took the last step, and nobody heard it: a and b took it without c.
#[test]
fn one_whose_last_step_does_not_count_is_left_behind() {
    let on_record: [(Step, &[Step]); 3] = [(100, &[90, 100]), (100, &[90, 100]), (99, &[90, 99])];
    let mut world = found_of_three(1, &[(99, &[0, 1])], on_record, 100);
    let request = world.request("c");
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![90, 100] });
    let refusal = world.present(JoinRequest { checkpoints, ..request }, "127.0.0.1").unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::LeftBehind, "{refusal}");
    assert_eq!(present(&mut world, "a", &[90, 100]), [], "a waits for b");
    let first = Ticket(world.numbers);
    let both = present(&mut world, "b", &[90, 100]);
    check_complete(&both, &[first, Ticket(world.numbers)]);
}
