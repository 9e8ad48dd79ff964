//! A coordinator that is started again and finds its run finished.

use super::*;

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
    let timeout = world.cluster.spec().policy.failure_timeout_ms;
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
