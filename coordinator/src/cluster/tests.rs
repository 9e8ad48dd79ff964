//! The machine by its lists of actions, then by random histories.

mod going_on;
mod finished;
mod found;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cohort_proto::control::{
    Checkpoints, FromPeer, RefusalReason, Standing, Start, StepReport, TensorDigest, Waiting,
};
use cohort_proto::id::{Digest, PeerName};
use cohort_proto::limits::{LEASE_STEPS_MIN, PROTOCOL_VERSION};
use proptest::prelude::*;

use super::*;
use crate::agreement::Said;
use crate::event::{DataFacts, StreamId, Ticket};

const TOML: &str = r#"
[run]
name = "test"
steps = 100
checkpoint_every = 10
[data]
dataset = "fashion-mnist"
batch = 8
[method]
name = "dml"
[policy]
failure_timeout_ms = 10000
[[peer]]
name = "a"
arch = "resnet8"
[[peer]]
name = "b"
arch = "wrn_16_1"
"#;

/// The machine with peers that do everything right unless a test makes them do otherwise.
struct World {
    cluster: Cluster,
    now: Tick,
    numbers: u64,
    sessions: BTreeMap<&'static str, u64>,
    streams: BTreeMap<&'static str, StreamId>,
}

fn history() -> History {
    History { run: RunId(7), starts: 0, views: Views::default(), data: None, lease_until: 0, records: vec![] }
}

fn name(name: &str) -> PeerName {
    PeerName::new(name).unwrap()
}

/// What a peer says in a step; the same for everyone who hears it.
fn digest(peer: &str, step: Step) -> Digest {
    Digest::of(format!("{peer}{step}"))
}

fn report(peer: &str, step: Step) -> StepReport {
    let other = if peer == "a" { "b" } else { "a" };
    StepReport {
        step,
        view: ViewId(1),
        epoch: 0,
        lr: 0.1,
        own_digest: digest(peer, step),
        consumed: vec![(name(other), digest(other, step))],
        terms: vec![],
        timings: vec![],
        images: 8,
        log_bytes: 0,
        said: vec![TensorDigest::of("logits", format!("{peer}{step}").as_bytes())],
    }
}

impl World {
    fn new() -> Self {
        Self::with(TOML, &history())
    }

    fn with(toml: &str, history: &History) -> Self {
        let spec = RunSpec::parse(toml).unwrap();
        let cluster = Cluster::new(Tick(0), spec, history);
        Self { cluster, now: Tick(0), numbers: 0, sessions: BTreeMap::new(), streams: BTreeMap::new() }
    }

    /// Both attend.
    fn running() -> Self {
        let mut world = Self::new();
        for peer in ["a", "b"] {
            world.join(peer).unwrap();
            world.attend(peer);
        }
        assert_eq!(world.cluster.phase(), Phase::Running);
        world
    }

    fn request(&self, peer: &str) -> JoinRequest {
        let spec = self.cluster.spec();
        JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            name: name(peer),
            spec_hash: spec.hash(),
            arch: spec.peer(&name(peer)).map_or("resnet8".into(), |(_, peer)| peer.arch.clone()),
            classes: 10,
            address: format!("127.0.0.1:{}", 4000 + u16::from(peer.as_bytes()[0])),
            schema: spec.contribution_schema(0).unwrap(),
            dataset_fingerprint: Digest::of("data"),
            total_steps: 100,
            checkpoints: None,
            standing: None,
        }
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.cluster.handle(self.now, event, &mut out);
        out.retain(|action| !matches!(action, Action::Note { .. }));
        out
    }

    fn present(&mut self, request: JoinRequest, remote: &str) -> Result<Accepted, Refusal> {
        self.present_and_look(request, remote).0
    }

    /// The answer, and all that is done.
    fn present_and_look(
        &mut self,
        request: JoinRequest,
        remote: &str,
    ) -> (Result<Accepted, Refusal>, Vec<Action>) {
        self.numbers += 1;
        let remote: Option<IpAddr> = Some(remote.parse().unwrap());
        let ticket = Ticket(self.numbers);
        let actions = self.event(Event::Join { ticket, remote, request: Box::new(request) });
        let answer = actions.iter().find_map(|action| match action {
            Action::Answer { ticket: answered, outcome } if *answered == ticket => Some(outcome.clone()),
            _ => None,
        });
        (answer.unwrap(), actions)
    }

    fn join(&mut self, peer: &'static str) -> Result<Accepted, Refusal> {
        let accepted = self.present(self.request(peer), "127.0.0.1")?;
        self.sessions.insert(peer, accepted.session);
        Ok(accepted)
    }

    /// One that joins with more to say than a fresh process has, and attends.
    fn come_back(&mut self, peer: &'static str, request: JoinRequest) -> Vec<Action> {
        let session = self.present(request, "127.0.0.1").unwrap().session;
        self.sessions.insert(peer, session);
        self.attend(peer)
    }

    fn attend(&mut self, peer: &'static str) -> Vec<Action> {
        self.numbers += 1;
        let stream = StreamId(self.numbers);
        self.streams.insert(peer, stream);
        let session = self.sessions[peer];
        self.event(Event::Hello { stream, run: RunId(7), name: name(peer), session })
    }

    fn say(&mut self, peer: &str, message: FromPeer) -> Vec<Action> {
        let stream = self.streams[peer];
        self.event(Event::Message { stream, message })
    }

    /// A peer completes its next steps.
    fn steps(&mut self, peer: &str, steps: std::ops::Range<Step>) -> Vec<Action> {
        steps.flat_map(|step| self.say(peer, FromPeer::Report(report(peer, step)))).collect()
    }

    fn hang_up(&mut self, peer: &str) -> Vec<Action> {
        let stream = self.streams[peer];
        self.event(Event::StreamClosed { stream, cause: "broke (reset)".into() })
    }

    /// Time passes, the machine is woken whenever it asked to be; those named go on sending heartbeats.
    fn wait(&mut self, ms: u64, alive: &[&str]) -> Vec<Action> {
        let end = self.now.plus(ms);
        let mut actions = Vec::new();
        let mut beat = self.now.plus(1000);
        loop {
            let wake = self.cluster.poll_timeout().unwrap_or(end).max(self.now);
            let next = wake.min(beat).min(end);
            self.now = next;
            if next == beat {
                alive.iter().for_each(|peer| actions.extend(self.say(peer, heartbeat())));
                beat = beat.plus(1000);
            } else if next == wake && next < end {
                actions.extend(self.event(Event::Timer));
            }
            if next == end {
                actions.extend(self.event(Event::Timer));
                return actions;
            }
        }
    }

    fn both(&self) -> Vec<StreamId> {
        vec![self.streams["a"], self.streams["b"]]
    }
}

fn heartbeat() -> FromPeer {
    FromPeer::Heartbeat(Waiting::default())
}

fn saved(step: Step) -> FromPeer {
    FromPeer::CheckpointSaved { step, held: vec![step.saturating_sub(10), step] }
}

fn starts(actions: &[Action]) -> Vec<(Step, usize)> {
    let start = |action: &Action| match action {
        Action::Send { streams, message: ToPeer::Start(start) } => Some((start.step, streams.len())),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn stops(actions: &[Action]) -> Vec<(StopKind, &str, usize)> {
    let stop = |action| match action {
        &Action::Send { ref streams, message: ToPeer::Stop(ref stop) } => {
            Some((stop.kind, stop.sentence.as_str(), streams.len()))
        }
        _ => None,
    };
    actions.iter().filter_map(stop).collect()
}

fn leases(actions: &[Action]) -> Vec<Step> {
    let lease = |action: &Action| match action {
        Action::Send { message: ToPeer::Lease(until), .. } => Some(*until),
        _ => None,
    };
    actions.iter().filter_map(lease).collect()
}

fn exit(actions: &[Action]) -> Option<Ended> {
    actions.iter().find_map(|action| if let Action::Exit(ended) = action { Some(*ended) } else { None })
}

/// That one stop, at once, to everyone who is left, whose sentence has all these parts.
fn check_stopped(actions: &[Action], parts: &[&str]) {
    let stops = stops(actions);
    let [(StopKind::AtOnce, sentence, _)] = stops[..] else { panic!("{actions:?}") };
    for part in parts {
        assert!(sentence.contains(part), "{sentence:?} should contain {part:?}");
    }
}

/// Steps are those of a generation, and a peer plans all of them.
#[test]
fn a_run_of_generations_has_its_steps_in_each() {
    let past = "[[edge]]\nfrom = \"a\"\nto = \"a\"\nterm = \"kd\"\n";
    let toml = TOML.replace("steps = 100", "steps = 100\ngenerations = 3") + past;
    for (planned, taken) in [(300, true), (100, false)] {
        let mut world = World::with(&toml, &history());
        let request = JoinRequest { total_steps: planned, ..world.request("a") };
        assert_eq!(world.present(request, "127.0.0.1").is_ok(), taken, "{planned}");
    }
}

#[test]
fn each_wrong_join_is_refused_with_its_reason() {
    type Case = (fn(&mut JoinRequest), RefusalReason, &'static [&'static str]);
    let cases: &[Case] = &[
        (|j| j.protocol_version = 99, RefusalReason::ProtocolVersion, &["version 99", "version 3", "update"]),
        (|j| j.name = name("c"), RefusalReason::UnknownName, &["no peer c", "a, b"]),
        (|j| j.spec_hash = Digest::of("x"), RefusalReason::SpecHash, &["run spec"]),
        (|j| j.arch = "resnet20".into(), RefusalReason::Arch, &["resnet20", "wrn_16_1"]),
        (|j| j.arch = "vit".into(), RefusalReason::Arch, &["\"vit\"", "not known", "resnet8"]),
        (|j| j.classes = 100, RefusalReason::Classes, &["100", "10", "fashion-mnist"]),
        (|j| j.total_steps = 99, RefusalReason::Dataset, &["99", "100"]),
        (|j| j.dataset_fingerprint = Digest::of("x"), RefusalReason::Dataset, &["fingerprint", "peer a"]),
        (|j| j.address = "127.0.0.1:4097".into(), RefusalReason::Address, &["127.0.0.1:4097", "peer a"]),
        (|j| j.address = "0.0.0.0:5".into(), RefusalReason::Address, &["0.0.0.0:5", "--advertise"]),
        (|j| j.schema = Default::default(), RefusalReason::Schema, &["logits", "dml"]),
        (
            |j| j.checkpoints = Some(Checkpoints { run: RunId(8), steps: vec![5] }),
            RefusalReason::Checkpoints,
            &["0000000000000008", "0000000000000007"],
        ),
    ];
    for (change, reason, parts) in cases {
        let mut world = World::new();
        world.join("a").unwrap();
        let mut request = world.request("b");
        change(&mut request);
        let refusal = world.present(request, "127.0.0.1").unwrap_err();
        assert_eq!(refusal.reason, *reason, "{refusal}");
        for part in *parts {
            assert!(refusal.sentence.contains(part), "{refusal} should contain {part:?}");
        }
        world.join("b").unwrap();
    }
}

#[test]
fn loopback_addresses_are_for_callers_on_loopback() {
    for address in ["127.0.0.1:5", "localhost:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
        let mut world = World::new();
        let request = JoinRequest { address: address.into(), ..world.request("a") };
        let refusal = world.present(request.clone(), "10.0.0.3").unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::Address);
        assert!(refusal.sentence.contains("10.0.0.3"), "{refusal}");
        world.present(request, "::ffff:127.0.0.1").unwrap();
    }
}

#[test]
fn a_log_that_would_not_fit_is_refused_with_advice() {
    let toml = TOML.replace("batch = 8", "batch = 4096").replace("= 10\n", "= 1000000\n");
    // A run that is over before then has a shorter log.
    assert!(World::with(&toml, &history()).join("a").is_ok());
    let toml = toml.replace("steps = 100", "epochs = 1000");
    let mut world = World::with(&toml, &history());
    let refusal = world.join("a").unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::Schema);
    assert!(refusal.sentence.contains("set checkpoint_every to 13043 or less"), "{refusal}");
}

#[test]
fn a_name_is_taken_by_a_stream_only() {
    let mut world = World::new();
    let first = world.join("a").unwrap();
    let second = world.join("a").unwrap();
    assert!(second.session > first.session);
    world.attend("a");
    assert_eq!(world.join("a").unwrap_err().reason, RefusalReason::TakenName);
    world.hang_up("a");
    world.join("a").unwrap();
    world.sessions.insert("a", second.session);
    let actions = world.attend("a");
    assert!(
        matches!(&actions[..], [Action::Close { error: Some(error), .. }] if error.contains("join again"))
    );
}

#[test]
fn the_first_peer_does_not_lock_others_out_once_it_has_gone() {
    let mut world = World::new();
    let wrong = JoinRequest { dataset_fingerprint: Digest::of("wrong"), ..world.request("a") };
    world.present(wrong, "127.0.0.1").unwrap();
    assert_eq!(world.join("b").unwrap_err().reason, RefusalReason::Dataset);
    world.wait(10_000, &[]);
    assert_eq!(world.cluster.members().data(), None);
    world.join("b").unwrap();
}

#[test]
fn data_of_earlier_views_hold() {
    let data = Some(DataFacts { fingerprint: Digest::of("other"), total_steps: 100 });
    let mut world = World::with(TOML, &History { starts: 1, data, ..history() });
    let refusal = world.join("a").unwrap_err();
    assert!(refusal.reason == RefusalReason::Dataset && refusal.sentence.contains("this run"), "{refusal}");
}

#[test]
fn the_view_is_recorded_before_it_is_sent_and_then_the_lease() {
    let mut world = World::with(TOML, &History { starts: 2, ..history() });
    let held = |steps: &[Step]| Some(Checkpoints { run: RunId(7), steps: steps.to_vec() });
    for (peer, checkpoints) in [("a", held(&[10, 20, 30])), ("b", held(&[10, 20]))] {
        let request = JoinRequest { checkpoints, ..world.request(peer) };
        let session = world.present(request, "127.0.0.1").unwrap().session;
        assert_eq!(session >> 32, 2);
        world.sessions.insert(peer, session);
    }
    assert_eq!(world.attend("a"), vec![]);
    let actions = world.attend("b");
    let view = world.cluster.view().unwrap().clone();
    assert_eq!((view.id, view.begins_at, view.members.len()), (ViewId(1), 20, 2));
    let data = DataFacts { fingerprint: Digest::of("data"), total_steps: 100 };
    let until = 20 + LEASE_STEPS_MIN;
    let entry = Entry::View { view: view.clone(), data };
    assert!(entry.must_be_durable());
    let expected = vec![
        Action::Record(entry),
        Action::Record(Entry::Phase(Phase::Running)),
        Action::Send { streams: world.both(), message: ToPeer::View(view) },
        Action::Send { streams: world.both(), message: ToPeer::Start(Start::at(20)) },
        Action::Record(Entry::Lease { until }),
        Action::Send { streams: world.both(), message: ToPeer::Lease(until) },
    ];
    assert_eq!(actions, expected);
}

#[test]
fn reports_renew_the_lease() {
    let mut world = World::running();
    assert_eq!(world.cluster.lease_until(), 2);
    world.now = Tick(500);
    let actions = world.steps("a", 0..1);
    let expected = Entry::Report { peer: name("a"), report: Box::new(report("a", 0)) };
    assert_eq!(actions, vec![Action::Record(expected)]);
    // Half a second a step: four steps fit the lease's span.
    assert_eq!(leases(&world.steps("b", 0..1)), vec![5]);
    assert_eq!(world.cluster.steps_done(1), 1);
}

#[test]
fn wrong_reports_stop_the_run() {
    type Case = (fn(&mut StepReport), &'static [&'static str]);
    let cases: &[Case] = &[
        (|r| r.step = 0, &["peer b", "step 0 again", "step 1"]),
        (|r| r.step = 99, &["peer b", "step 99", "lease"]),
        (|r| r.view = ViewId(2), &["peer b", "view 2", "view 1"]),
        (|r| r.consumed[0].1 = Digest::of("x"), &["step 1", "peer b consumed", "peer a", "itself"]),
        (|r| r.consumed[0].0 = name("z"), &["peer b", "not in the run"]),
    ];
    for (change, parts) in cases {
        let mut world = World::running();
        world.steps("a", 0..2);
        world.steps("b", 0..1);
        let mut wrong = report("b", 1);
        change(&mut wrong);
        check_stopped(&world.say("b", FromPeer::Report(wrong)), parts);
        assert_eq!(world.cluster.phase(), Phase::Stopping);
    }
    let mut world = World::running();
    check_stopped(
        &world.say("b", FromPeer::Report(report("b", 1))),
        &["peer b", "step 0 was never reported"],
    );
}

#[test]
fn a_disagreement_is_found_when_the_source_reports_later() {
    let mut world = World::running();
    let mut wrong = report("b", 0);
    wrong.consumed[0].1 = Digest::of("x");
    assert_eq!(stops(&world.say("b", FromPeer::Report(wrong))), vec![]);
    check_stopped(&world.steps("a", 0..1), &["step 0", "peer b consumed", "peer a"]);
}

#[test]
fn logs_are_kept_back_to_the_newest_common_checkpoint() {
    let only = |step| FromPeer::CheckpointSaved { step, held: vec![] };
    let mut world = World::running();
    for step in 0..20 {
        world.steps("a", step..step + 1);
        world.steps("b", step..step + 1);
    }
    assert_eq!(world.say("a", only(20)).len(), 1);
    assert_eq!(world.say("b", only(10)).len(), 1);
    let actions = world.say("b", saved(20));
    let retain = Action::Send { streams: world.both(), message: ToPeer::RetainFrom(20) };
    assert_eq!(actions[1], retain);
    assert_eq!(world.cluster.retain_from(), 20);
    check_stopped(&world.say("b", saved(1000)), &["peer b", "1000"]);
}

#[test]
fn a_silent_peer_is_given_up_after_the_failure_timeout_and_awaited() {
    let mut world = World::running();
    assert_eq!(world.wait(9_999, &["a"]), vec![]);
    let actions = world.wait(1, &["a"]);
    assert!(
        matches!(&actions[..], [Action::Close { stream, error: Some(_) }] if *stream == world.streams["b"]),
        "{actions:?}"
    );
    assert_eq!(world.cluster.phase(), Phase::Running);
    let message = world.cluster.message(world.now.plus(2_000));
    assert_eq!(message, "waiting for b (given up 2.0 s ago: nothing was heard of it for 10.0 s)");
}

#[test]
fn a_peer_whose_stream_broke_has_half_of_the_time() {
    let given_up = |world: &World| world.cluster.message(world.now).contains("given up");
    let mut world = World::running();
    world.hang_up("b");
    world.wait(4_999, &["a"]);
    assert!(!given_up(&world));
    world.wait(1, &["a"]);
    assert!(given_up(&world));
    // It was silent before already: what is left of the timeout counts.
    let mut world = World::running();
    world.wait(8_000, &["a"]);
    world.hang_up("b");
    world.wait(1_999, &["a"]);
    assert!(!given_up(&world));
    world.wait(1, &["a"]);
    assert!(given_up(&world));
}

#[test]
fn a_run_that_does_not_move_stops_after_the_wait_timeout() {
    let toml = TOML.replace("[policy]\n", "[policy]\nwait_timeout_ms = 30000\n");
    let mut world = World::with(&toml, &history());
    for peer in ["a", "b"] {
        world.join(peer).unwrap();
        world.attend(peer);
    }
    world.wait(20_000, &["a", "b"]);
    world.steps("a", 0..1);
    world.hang_up("b");
    assert_eq!(stops(&world.wait(29_999, &["a"])), vec![]);
    check_stopped(&world.wait(1, &["a"]), &["30.0 s", "waiting for b (given up", "start the run again"]);
    let left = world.say("a", FromPeer::Leaving { steps_done: 1, finished: false, reason: String::new() });
    assert_eq!(exit(&left), Some(Ended::Stopped));
}

#[test]
fn a_peer_that_comes_back_in_time_is_told_everything() {
    let mut world = World::running();
    world.steps("b", 0..2);
    world.steps("a", 0..2);
    world.hang_up("b");
    world.wait(4_000, &["a"]);
    let standing = Standing {
        session: world.sessions["b"],
        steps_done: 3,
        log_from: 0,
        lease_until: 4,
        view: ViewId(1),
    };
    let again = JoinRequest { standing: Some(standing), ..world.request("b") };
    let accepted = world.present(again, "127.0.0.1").unwrap();
    assert_eq!(accepted.reported, 2, "of what it did meanwhile nothing is on record");
    world.sessions.insert("b", accepted.session);
    let actions = world.attend("b");
    let streams = vec![world.streams["b"]];
    let view = world.cluster.view().unwrap().clone();
    let until = world.cluster.lease_until();
    let said = [ToPeer::View(view), ToPeer::Lease(until), ToPeer::RetainFrom(0)];
    let expected = said.map(|message| Action::Send { streams: streams.clone(), message });
    assert_eq!(actions, expected, "it is not told where to start, for it stands somewhere");
    world.steps("b", 2..3);
    assert_eq!(world.cluster.steps_done(1), 3);
    check_stopped(&world.steps("b", 2..3), &["again"]);
}

#[test]
fn a_process_that_joins_anew_replaces_its_own_stream_and_no_other() {
    let mut world = World::running();
    let older = world.streams["b"];
    let standing =
        |session| Some(Standing { session, steps_done: 0, log_from: 0, lease_until: 2, view: ViewId(1) });
    let stranger = JoinRequest { standing: standing(99), ..world.request("b") };
    assert_eq!(world.present(stranger, "127.0.0.1").unwrap_err().reason, RefusalReason::TakenName);
    let same = JoinRequest { standing: standing(world.sessions["b"]), ..world.request("b") };
    let actions = world.event(Event::Join { ticket: Ticket(99), remote: None, request: Box::new(same) });
    assert!(matches!(&actions[0], Action::Close { stream, .. } if *stream == older), "{actions:?}");
    let Action::Answer { outcome: Ok(accepted), .. } = &actions[1] else { panic!("{actions:?}") };
    world.sessions.insert("b", accepted.session);
    world.attend("b");
    let closed = world.event(Event::StreamClosed { stream: older, cause: "broke (reset)".into() });
    assert_eq!(closed, vec![]);
    assert!(world.cluster.members().all_attend());
}

/// A process of a peer that lost its memory, with these checkpoints.
fn started_again(world: &mut World, peer: &'static str, held: &[Step]) -> Vec<Action> {
    let checkpoints = Some(Checkpoints { run: RunId(7), steps: held.to_vec() });
    let address = format!("127.0.0.1:{}", 5000 + u16::from(peer.as_bytes()[0]));
    let request = JoinRequest { checkpoints, address, ..world.request(peer) };
    let session = world.present(request, "127.0.0.1").unwrap().session;
    world.sessions.insert(peer, session);
    world.attend(peer)
}

/// Both have completed `steps`, with checkpoints every ten.
fn trained(steps: Step) -> World {
    let mut world = World::running();
    for step in 0..steps {
        for peer in ["a", "b"] {
            world.steps(peer, step..step + 1);
            if (step + 1) % 10 == 0 {
                let held = (0..=step + 1).step_by(10).collect();
                world.say(peer, FromPeer::CheckpointSaved { step: step + 1, held });
            }
        }
    }
    world
}

#[test]
fn one_that_lost_its_memory_replays_from_what_the_others_still_hold() {
    let mut world = trained(25);
    world.hang_up("b");
    let actions = started_again(&mut world, "b", &[10, 20]);
    assert_eq!(starts(&actions), vec![(20, 1)]);
    let readdressed = |action: &Action| {
        matches!(action, Action::Send { streams, message: ToPeer::View(view) }
            if streams.len() == 2 && view.id == ViewId(1) && view.members[1].address.ends_with(":5098"))
    };
    assert!(actions.iter().any(readdressed), "{actions:?}");
    assert_eq!(world.steps("b", 20..25), vec![], "what is on record is not recorded again");
    assert_eq!(world.cluster.steps_done(1), 25);
    assert!(!world.steps("b", 25..26).is_empty());
}

#[test]
fn a_checkpoint_ahead_of_what_the_others_heard_is_not_used() {
    let mut world = trained(19);
    // It completed step 19 and saved; nobody can say whether the others heard what it said to that step.
    world.steps("b", 19..20);
    world.say("b", FromPeer::CheckpointSaved { step: 20, held: vec![10, 20] });
    world.hang_up("b");
    assert_eq!(starts(&started_again(&mut world, "b", &[10, 20])), vec![(10, 1)]);
}

#[test]
fn those_who_lost_their_memory_together_start_together() {
    let mut world = trained(25);
    world.hang_up("a");
    world.hang_up("b");
    assert_eq!(starts(&started_again(&mut world, "a", &[10, 20])), vec![], "the other may hold less");
    assert!(world.cluster.message(world.now).contains("waiting for b"));
    assert_eq!(starts(&started_again(&mut world, "b", &[10])), vec![(10, 2)]);
    // One has lost a checkpoint that counted as common: the logs may not reach back to the one before.
    assert_eq!(world.cluster.view().unwrap().id, ViewId(2));
    let mut world = trained(25);
    world.hang_up("a");
    world.hang_up("b");
    started_again(&mut world, "a", &[10, 20]);
    assert_eq!(starts(&started_again(&mut world, "b", &[10, 20])), vec![(20, 2)]);
    assert_eq!(world.cluster.view().unwrap().id, ViewId(1));
}

#[test]
fn with_a_damaged_checkpoint_all_fall_back_together() {
    let mut world = trained(25);
    world.hang_up("b");
    let actions = started_again(&mut world, "b", &[10]);
    assert_eq!(starts(&actions), vec![(10, 2)]);
    let view = world.cluster.view().unwrap();
    assert_eq!((view.id, view.begins_at, world.cluster.steps_done(0)), (ViewId(2), 10, 10));
    let granted = Action::Record(Entry::Lease { until: world.cluster.lease_until() });
    assert!(actions.contains(&granted), "what was granted stays granted, in the new view too");
    assert_eq!(world.steps("a", 25..26), vec![], "a step of the void view that was under way");
    for peer in ["a", "b"] {
        let report = StepReport { view: ViewId(2), ..report(peer, 10) };
        assert_eq!(stops(&world.say(peer, FromPeer::Report(report.clone()))), vec![]);
        // It stood there already when it heard of the view, before it heard that it is to start there.
        assert_eq!(stops(&world.say(peer, FromPeer::Report(report))), vec![]);
    }
    assert_eq!(world.cluster.steps_done(0), 11);
}

#[test]
fn a_cohort_does_not_fall_back_for_ever() {
    let mut world = trained(5);
    for fallen in 0..u64::from(cohort_proto::limits::FALLBACKS_MAX) {
        let actions = world.say("b", FromPeer::CannotFollow("it is gone".into()));
        assert_eq!(starts(&actions), vec![(0, 2)]);
        let again = world.say("b", FromPeer::CannotFollow("it is gone".into()));
        assert_eq!(again, vec![], "it has not heard of that yet");
        world.say("b", FromPeer::Report(StepReport { view: ViewId(fallen + 2), ..report("b", 0) }));
    }
    let last = world.say("b", FromPeer::CannotFollow("it is gone".into()));
    check_stopped(&last, &["16 times", "peer b cannot follow", "it is gone"]);
}

#[test]
fn a_replay_that_differs_is_said_or_stops_the_run() {
    for (policy, stopped) in [("warn", false), ("stop", true)] {
        let toml = TOML.replace("[policy]\n", &format!("[policy]\non_divergence = {policy:?}\n"));
        let mut world = World { cluster: World::with(&toml, &history()).cluster, ..World::new() };
        for peer in ["a", "b"] {
            world.join(peer).unwrap();
            world.attend(peer);
        }
        (0..3).for_each(|step| ["a", "b"].iter().for_each(|peer| _ = world.steps(peer, step..step + 1)));
        world.hang_up("b");
        started_again(&mut world, "b", &[]);
        world.steps("b", 0..1);
        let said = vec![TensorDigest::of("logits", b"other")];
        let other = StepReport { own_digest: Digest::of("other"), said, ..report("b", 1) };
        let mut out = Vec::new();
        let message = FromPeer::Report(other);
        world.cluster.handle(world.now, Event::Message { stream: world.streams["b"], message }, &mut out);
        let parts = ["peer b", "step 1", "\"logits\"", "first time"];
        if stopped {
            check_stopped(&out, &parts);
        } else {
            let [Action::Note { warn: true, sentence }] = &out[..] else { panic!("{out:?}") };
            assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence}");
        }
    }
}

/// What the journal would say of a run in which both completed `steps`.
fn of_a_run(steps: Step, held: &[Step]) -> History {
    let world = trained(1);
    let said = |peer: &str| {
        let said = |step| Said { digest: digest(peer, step), tensors: report(peer, step).said };
        (0..steps).map(|step| (step, said(step))).collect()
    };
    let record = |peer: &str| PeerRecord { completed: steps, checkpoints: held.to_vec(), said: said(peer) };
    History {
        starts: 1,
        views: world.cluster.view().unwrap().clone().into(),
        data: Some(DataFacts { fingerprint: Digest::of("data"), total_steps: 100 }),
        lease_until: steps + 5,
        records: vec![record("a"), record("b")],
        ..history()
    }
}

#[test]
fn a_coordinator_that_was_started_again_goes_on_with_those_who_stand() {
    let mut world = World::with(TOML, &of_a_run(25, &[10, 20]));
    assert_eq!((world.cluster.phase(), world.cluster.lease_until()), (Phase::Running, 30));
    let held = Some(Checkpoints { run: RunId(7), steps: vec![10, 20] });
    let standing =
        Some(Standing { session: 4, steps_done: 27, log_from: 20, lease_until: 30, view: ViewId(1) });
    let request = JoinRequest { checkpoints: held, standing, ..world.request("a") };
    let accepted = world.present(request, "127.0.0.1").unwrap();
    assert_eq!(accepted.reported, 25);
    world.sessions.insert("a", accepted.session);
    assert_eq!(starts(&world.attend("a")), vec![]);
    assert!(!world.steps("a", 25..27).is_empty());
    let actions = started_again(&mut world, "b", &[10, 20]);
    assert_eq!(starts(&actions), vec![(20, 1)]);
    world.steps("b", 20..25);
    let mut wrong = report("b", 25);
    wrong.consumed[0].1 = Digest::of("x");
    check_stopped(&world.say("b", FromPeer::Report(wrong)), &["step 25", "peer b consumed"]);
}

/// One that lives and is on its way back would wait for a coordinator that ended before it came.
#[test]
fn a_coordinator_that_was_started_again_ends_after_those_on_their_way_are_told() {
    let mut world = World::with(TOML, &of_a_run(25, &[10, 20]));
    started_again(&mut world, "a", &[10, 20]);
    check_stopped(&world.event(Event::StopAsked { by: "SIGTERM".into() }), &["SIGTERM"]);
    let leaving = FromPeer::Leaving { steps_done: 25, finished: false, reason: "SIGTERM".into() };
    assert_eq!(exit(&world.say("a", leaving)), None);
    let held = Some(Checkpoints { run: RunId(7), steps: vec![10, 20] });
    let standing =
        Some(Standing { session: 4, steps_done: 27, log_from: 20, lease_until: 30, view: ViewId(1) });
    let request = JoinRequest { checkpoints: held, standing, ..world.request("b") };
    check_stopped(&world.come_back("b", request), &["SIGTERM"]);
    let leaving = FromPeer::Leaving { steps_done: 27, finished: false, reason: "SIGTERM".into() };
    assert_eq!(exit(&world.say("b", leaving)), Some(Ended::Stopped));
    assert_eq!(world.cluster.poll_timeout(), None);
    // If one of them does not come, it is not waited for longer than it takes to notice a death.
    let mut world = World::with(TOML, &of_a_run(25, &[10, 20]));
    assert_eq!(exit(&world.event(Event::StopAsked { by: "SIGTERM".into() })), None);
    let timeout = super::finished::returning_ms(world.cluster.spec());
    assert_eq!(world.cluster.poll_timeout(), Some(Tick(timeout)));
    assert_eq!(exit(&world.wait(timeout - 1, &[])), None);
    assert_eq!(exit(&world.wait(1, &[])), Some(Ended::Stopped));
    // Nor if the run had not begun yet; but a first start has nobody to wait for.
    for (starts, ended) in [(0, Some(Ended::Stopped)), (1, None)] {
        let mut world = World::with(TOML, &History { starts, ..history() });
        assert_eq!(exit(&world.event(Event::StopAsked { by: "SIGTERM".into() })), ended);
    }
    // Asked again, it does not wait.
    let mut world = World::with(TOML, &of_a_run(25, &[10, 20]));
    assert_eq!(exit(&world.event(Event::StopAsked { by: "SIGTERM".into() })), None);
    assert_eq!(exit(&world.event(Event::StopAsked { by: "SIGTERM".into() })), Some(Ended::Stopped));
}

#[test]
fn a_finished_run_has_nothing_to_do_when_it_is_started_again() {
    let mut world = World::with(TOML, &of_a_run(100, &[100]));
    assert_eq!(world.cluster.phase(), Phase::Finished);
    assert_eq!(exit(&world.wait(15_000, &[])), Some(Ended::Finished));
}

#[test]
fn while_gathering_nobody_is_fatal() {
    let mut world = World::new();
    world.join("a").unwrap();
    world.attend("a");
    assert_eq!(world.cluster.message(world.now), "waiting for b");
    let wish = world.say("a", FromPeer::StopWish("Ctrl-C".into()));
    check_stopped(&wish, &["peer a", "Ctrl-C"]);
    world.say("a", FromPeer::Leaving { steps_done: 0, finished: false, reason: "asked".into() });
    assert_eq!(
        (world.cluster.phase(), world.cluster.message(world.now)),
        (Phase::Gathering, "waiting for a, b".into())
    );
    world.join("a").unwrap();
    world.attend("a");
    world.wait(20_000, &[]);
    assert_eq!(world.cluster.message(world.now), "waiting for a, b");
    for peer in ["a", "b"] {
        world.join(peer).unwrap();
        world.attend(peer);
    }
    assert_eq!(world.cluster.phase(), Phase::Running);
}

#[test]
fn people_are_told_who_is_missing() {
    let mut world = World::new();
    let mut out = Vec::new();
    world.cluster.handle(Tick(REMINDER_MS), Event::Timer, &mut out);
    assert_eq!(out, vec![Action::Note { warn: false, sentence: "waiting for a, b".into() }]);
    assert_eq!(world.cluster.poll_timeout(), Some(Tick(2 * REMINDER_MS)));
}

#[test]
fn a_graceful_stop_ends_with_the_lease() {
    let mut world = World::running();
    world.steps("a", 0..1);
    let actions = world.say("b", FromPeer::StopWish("Ctrl-C".into()));
    assert_eq!(stops(&actions), vec![(StopKind::Graceful, "peer b asked to stop: Ctrl-C", 2)]);
    let more = [world.steps("a", 1..2), world.steps("b", 0..2)].concat();
    assert_eq!((leases(&more), stops(&more)), (vec![], vec![]));
    let leaving = |steps_done| FromPeer::Leaving { steps_done, finished: false, reason: String::new() };
    assert_eq!(exit(&world.say("a", leaving(2))), None);
    assert_eq!(exit(&world.say("b", leaving(2))), Some(Ended::Stopped));
}

#[test]
fn a_graceful_stop_that_hangs_becomes_one_at_once_and_that_ends() {
    let mut world = World::running();
    let actions = world.event(Event::StopAsked { by: "SIGINT".into() });
    assert!(matches!(stops(&actions)[..], [(StopKind::Graceful, _, 2)]));
    check_stopped(&world.wait(15_000, &["a", "b"]), &["SIGINT", "too long"]);
    let actions = world.wait(15_000, &["a", "b"]);
    assert_eq!(exit(&actions), Some(Ended::Stopped));
    assert_eq!(world.cluster.poll_timeout(), None);
}

#[test]
fn each_further_signal_is_harder() {
    let mut world = World::running();
    let mut signal = || world.event(Event::StopAsked { by: "SIGTERM".into() });
    assert!(matches!(stops(&signal())[..], [(StopKind::Graceful, ..)]));
    check_stopped(&signal(), &["at once"]);
    assert_eq!(exit(&signal()), Some(Ended::Stopped));
    let mut world = World::new();
    let actions = world.event(Event::StopAsked { by: "SIGTERM".into() });
    assert_eq!(exit(&actions), Some(Ended::Stopped), "nobody is here who would have to save anything");
}

#[test]
fn a_graceful_stop_is_one_at_once_if_somebody_is_missing() {
    let mut world = World::running();
    world.hang_up("b");
    check_stopped(&world.event(Event::StopAsked { by: "SIGINT".into() }), &["SIGINT"]);
}

#[test]
fn a_death_or_an_early_leave_breaks_a_graceful_stop_off() {
    let mut world = World::running();
    world.event(Event::StopAsked { by: "SIGINT".into() });
    world.hang_up("b");
    check_stopped(&world.wait(5_000, &["a"]), &["peer b died"]);
    let mut world = World::running();
    world.event(Event::StopAsked { by: "SIGINT".into() });
    let leaving = FromPeer::Leaving { steps_done: 1, finished: false, reason: "NaN".into() };
    check_stopped(&world.say("b", leaving), &["peer b left after 1 steps", "NaN"]);
}

#[test]
fn a_peer_that_gives_up_stops_the_others_with_its_reason() {
    let mut world = World::running();
    let leaving = FromPeer::Leaving { steps_done: 1, finished: false, reason: "the loss is NaN".into() };
    let actions = world.say("b", leaving.clone());
    check_stopped(&actions, &["peer b left after 1 steps", "the loss is NaN"]);
    assert_eq!(actions[0], Action::Close { stream: world.streams["b"], error: None });
    // It says that it finished, but it did not.
    let mut world = World::running();
    check_stopped(
        &world.say("b", FromPeer::Leaving { steps_done: 100, finished: true, reason: "".into() }),
        &["peer b"],
    );
}

/// All steps are reported and saved.
fn finished() -> World {
    let mut world = trained(99);
    for peer in ["a", "b"] {
        assert_eq!(stops(&world.steps(peer, 99..100)), vec![]);
    }
    world.say("a", saved(100));
    let actions = world.say("b", saved(100));
    assert_eq!(stops(&actions), vec![(StopKind::Finished, "all 100 steps are complete", 2)]);
    world
}

#[test]
fn a_finished_run_is_over_when_all_have_left() {
    let mut world = finished();
    let leaving = || FromPeer::Leaving { steps_done: 100, finished: true, reason: String::new() };
    assert_eq!(exit(&world.say("a", leaving())), None);
    assert_eq!(exit(&world.say("b", leaving())), Some(Ended::Finished));
}

#[test]
fn a_run_is_not_finished_before_its_last_checkpoints_are() {
    let mut world = trained(99);
    for peer in ["a", "b"] {
        world.steps(peer, 99..100);
    }
    world.say("a", saved(100));
    world.hang_up("b");
    assert_eq!(world.cluster.phase(), Phase::Running);
    assert_eq!(starts(&started_again(&mut world, "b", &[90])), vec![(90, 1)]);
    world.steps("b", 90..100);
    assert!(matches!(stops(&world.say("b", saved(100)))[..], [(StopKind::Finished, _, 2)]));
}

#[test]
fn a_peer_that_dies_after_the_end_is_waited_for_in_case_it_lives() {
    let mut world = finished();
    world.say("a", FromPeer::Leaving { steps_done: 100, finished: true, reason: String::new() });
    world.hang_up("b");
    assert_eq!(exit(&world.wait(14_999, &[])), None);
    assert_eq!(exit(&world.wait(1, &[])), Some(Ended::Finished));
}

#[test]
fn a_run_that_was_finished_before_finishes_again_at_once() {
    let mut world = World::new();
    for peer in ["a", "b"] {
        let checkpoints = Some(Checkpoints { run: RunId(7), steps: vec![100] });
        let session =
            world.present(JoinRequest { checkpoints, ..world.request(peer) }, "127.0.0.1").unwrap().session;
        world.sessions.insert(peer, session);
    }
    world.attend("a");
    assert!(matches!(stops(&world.attend("b"))[..], [(StopKind::Finished, _, 2)]));
}

#[test]
fn being_held_up_is_not_the_peers_silence() {
    let mut world = World::running();
    world.now = Tick(60_000);
    assert_eq!(world.event(Event::Timer).len(), 0);
    assert_eq!(world.cluster.phase(), Phase::Running);
    world.wait(8_000, &["a", "b"]);
    assert_eq!(world.cluster.phase(), Phase::Running);
}

#[test]
fn without_a_journal_the_run_stops() {
    let mut world = World::running();
    check_stopped(
        &world.event(Event::JournalFailed { cause: "disk full".into() }),
        &["journal", "disk full"],
    );
    for (peer, ended) in [("a", None), ("b", Some(Ended::JournalFailed))] {
        let leaving = FromPeer::Leaving { steps_done: 0, finished: false, reason: String::new() };
        assert_eq!(exit(&world.say(peer, leaving)), ended);
    }
}

/// What was to be said with what could not be written is said once more.
#[test]
fn without_a_journal_all_hear_that_the_run_has_ended() {
    let mut world = finished();
    let actions = world.event(Event::JournalFailed { cause: "disk full".into() });
    assert!(matches!(stops(&actions)[..], [(StopKind::Finished, _, 2)]), "{actions:?}");
    let mut world = World::running();
    world.hang_up("b");
    world.event(Event::StopAsked { by: "SIGTERM".into() });
    let actions = world.event(Event::JournalFailed { cause: "disk full".into() });
    assert!(matches!(stops(&actions)[..], [(StopKind::AtOnce, _, 1)]), "{actions:?}");
}

/// One thing that peers, people or the world do, right or wrong.
#[derive(Debug, Clone)]
enum Deed {
    Join(bool),
    Attend,
    Wrong(u64),
    Step,
    Report(Step, u8),
    Saved(Step),
    Wish,
    Leave(bool),
    HangUp,
    Ask,
    Fail,
    Wait(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => any::<bool>().prop_map(Deed::Join),
        4 => Just(Deed::Attend),
        1 => (0u64..4).prop_map(Deed::Wrong),
        40 => Just(Deed::Step),
        1 => (0u64..120, 0u8..3).prop_map(|(step, wrong)| Deed::Report(step, wrong)),
        2 => (0u64..120).prop_map(Deed::Saved),
        1 => Just(Deed::Wish),
        1 => any::<bool>().prop_map(Deed::Leave),
        2 => Just(Deed::HangUp),
        1 => Just(Deed::Ask),
        1 => Just(Deed::Fail),
        6 => (0u64..4000).prop_map(Deed::Wait),
    ]
}

impl World {
    fn perform(&mut self, peer: &'static str, deed: &Deed) -> Vec<Action> {
        let index = self.cluster.members().index(&name(peer)).unwrap();
        let next = self.cluster.steps_done(index);
        let attends = self.streams.contains_key(peer);
        match *deed {
            Deed::Join(right) => {
                let mut request = self.request(peer);
                if !right {
                    request.dataset_fingerprint = Digest::of("wrong");
                }
                let (answer, actions) = self.present_and_look(request, "127.0.0.1");
                if let Ok(accepted) = answer {
                    self.sessions.insert(peer, accepted.session);
                }
                actions
            }
            Deed::Attend if self.sessions.contains_key(peer) => self.attend(peer),
            Deed::Wrong(session) => self.event(Event::Hello {
                stream: StreamId(u64::MAX),
                run: RunId(7),
                name: name(peer),
                session,
            }),
            Deed::Step if attends => self.steps(peer, next..next + 1),
            Deed::Report(step, wrong) if attends => {
                let mut report = report(peer, step);
                match wrong {
                    0 => report.own_digest = Digest::of("wrong"),
                    1 => report.view = ViewId(9),
                    _ => {}
                }
                self.say(peer, FromPeer::Report(report))
            }
            Deed::Saved(step) if attends => self.say(peer, saved(step.min(next))),
            Deed::Wish if attends => self.say(peer, FromPeer::StopWish("enough".into())),
            Deed::Leave(finished) if attends => {
                self.say(peer, FromPeer::Leaving { steps_done: next, finished, reason: String::new() })
            }
            Deed::HangUp if attends => self.hang_up(peer),
            Deed::Ask => self.event(Event::StopAsked { by: "SIGINT".into() }),
            Deed::Fail => self.event(Event::JournalFailed { cause: "disk full".into() }),
            Deed::Wait(ms) => self.wait(ms, &[]),
            _ => vec![],
        }
    }
}

/// What must hold of all actions of a history together.
#[derive(Default)]
struct Laws {
    view: u64,
    recorded: BTreeSet<u64>,
    lease: Step,
    stopped: bool,
    exited: bool,
}

impl Laws {
    fn check(&mut self, actions: &[Action]) {
        for action in actions {
            assert!(!self.exited || !matches!(action, Action::Exit(_)), "a run is over once");
            match action {
                Action::Record(Entry::View { view, .. }) => {
                    assert!(view.id.0 > self.view, "views are numbered upwards");
                    self.view = view.id.0;
                    self.lease = self.lease.min(view.begins_at);
                    self.recorded.insert(view.id.0);
                }
                Action::Send { message: ToPeer::View(view), .. } => {
                    assert!(self.recorded.contains(&view.id.0), "a view is recorded before it is sent");
                }
                Action::Record(Entry::Lease { until }) => {
                    assert!(*until <= 100 && *until > self.lease, "{until} after {}", self.lease);
                    assert!(!self.stopped, "no lease is renewed after a stop");
                    self.lease = *until;
                }
                Action::Send { message: ToPeer::Lease(until), .. } => assert!(*until <= 100),
                Action::Send { streams, message: ToPeer::Stop(stop) } => {
                    assert!(!stop.sentence.is_empty() && !streams.is_empty());
                    // A peer that is not in a run yet may be sent home alone.
                    self.stopped |= self.view > 0;
                }
                Action::Exit(_) => self.exited = true,
                _ => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn laws_hold_in_every_history(deeds in proptest::collection::vec((any::<bool>(), deed()), 0..200)) {
        let mut world = World::new();
        let mut laws = Laws::default();
        for (first, deed) in &deeds {
            let actions = world.perform(if *first { "a" } else { "b" }, deed);
            laws.check(&actions);
        }
        // Whatever happened, whoever is asked to stop and waits long enough is done.
        for _ in 0..3 {
            laws.check(&world.event(Event::StopAsked { by: "SIGINT".into() }));
        }
        laws.check(&world.wait(60_000, &[]));
        prop_assert!(laws.exited);
    }
}
