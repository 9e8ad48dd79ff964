//! The inbox of one peer with one source that sends as far ahead as it may.

use std::sync::Arc;

use cohort_proto::limits::INBOX_PER_SOURCE;
use cohort_proto::view::{Member, View};
use tokio::sync::Semaphore;

use cohort_proto::contribution::Header;
use cohort_proto::id::{PeerName, RunId};
use cohort_proto::meta::Agenda;
use cohort_proto::schema::Schema;

use super::*;
use crate::log::ContributionLog;
use crate::net::follow::Delivery;
use crate::trainer::{Identity, Shared};

/// Steps of this run have the ten rounds of two inner steps.
const RUN: &str = "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\nbatch = 2\n[method]\nname = \"l-mcl\"\n\
                   [[peer]]\nname = \"a\"\narch = \"resnet8\"\n[[peer]]\nname = \"b\"\narch = \"resnet8\"\n";

fn name(text: &str) -> PeerName {
    PeerName::new(text).unwrap()
}

struct Inbox {
    live: Live,
    words: mpsc::Sender<Word>,
    places: Arc<Semaphore>,
}

/// Peer a, in a view that begins at step 2.
fn inbox() -> Inbox {
    let spec = cohort_proto::spec::RunSpec::parse(RUN).unwrap();
    let schema = spec.contribution_schema(0).unwrap();
    let agenda = Agenda::of(&spec);
    let sources = [name("b")].into();
    let identity =
        Identity { me: name("a"), run: RunId(1), schema, agenda, total_steps: 9, sources, relays: true };
    let (words, inbox) = mpsc::channel(64);
    let log = Arc::new(ContributionLog::new(2));
    let shared = Shared { log, relay: Arc::default(), waits: Arc::default() };
    let mut live = Live::new(Seat::new(identity, shared), inbox, mpsc::channel(4).0);
    let member =
        |index, text| Member { index, name: name(text), address: "h:1".into(), schema: Schema::default() };
    let view = View { id: ViewId(1), begins_at: 2, members: vec![member(0, "a"), member(1, "b")] };
    words.try_send(Word::View(view)).unwrap();
    words.try_send(Word::Start { start: cohort_proto::control::Start::at(2), epoch: 1 }).unwrap();
    live.drain().unwrap();
    live.started(2);
    live.seat.began_in = ViewId(1);
    Inbox { live, words, places: Arc::new(Semaphore::new(INBOX_PER_SOURCE)) }
}

impl Inbox {
    /// Peer b sends, if there is a place.
    fn send(&self, step: Step, round: u32) -> bool {
        self.send_in(1, step, round)
    }

    fn send_in(&self, view: u64, step: Step, round: u32) -> bool {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return false };
        let position = Position { step, round };
        let header = Header { run: RunId(1), view: ViewId(view), position, source: name("b"), batch_hash: 7 };
        let contribution = Arc::new(Contribution::seal(header, vec![], &Schema::default()).unwrap());
        self.words.try_send(Word::Heard(Delivery::new(contribution, 1, place))).unwrap();
        true
    }

    /// Another view of the same two.
    fn view(&self, id: u64, begins_at: Step) {
        let member = |index, text| Member {
            index,
            name: name(text),
            address: "h:1".into(),
            schema: Schema::default(),
        };
        let view = View { id: ViewId(id), begins_at, members: vec![member(0, "a"), member(1, "b")] };
        self.words.try_send(Word::View(view)).unwrap();
    }

    /// What is here of peer b for others.
    fn relayed(&self) -> Vec<(ViewId, Step)> {
        let entries = self.live.seat.shared.relay.entries(&name("b"), Position::default()).unwrap();
        entries.iter().map(|entry| (entry.header().view, entry.header().position.step)).collect()
    }

    fn free(&self) -> usize {
        self.places.available_permits()
    }

    fn listen(&mut self, step: Step, round: u32) {
        let said = self.live.listen(Position { step, round }, 7).unwrap();
        let positions: Vec<_> = said.iter().map(|(index, c)| (*index, c.header().position)).collect();
        assert_eq!(positions, [(1, Position { step, round })]);
    }
}

#[test]
fn a_step_of_more_rounds_than_places_passes() {
    let mut inbox = inbox();
    let rounds = cohort_proto::meta::RoundPlan::new(2).rounds();
    assert!(rounds as usize > INBOX_PER_SOURCE);
    let mut sent = 0;
    for round in 0..rounds {
        // The source is as far ahead as it may be, never farther.
        while sent < rounds && inbox.send(2, sent) {
            sent += 1;
        }
        assert!((sent - round) as usize <= INBOX_PER_SOURCE);
        inbox.listen(2, round);
        assert_eq!(inbox.free(), INBOX_PER_SOURCE - (sent - round - 1) as usize, "round {round} is consumed");
    }
    inbox.live.completed();
    assert_eq!(inbox.free(), INBOX_PER_SOURCE);
}

#[test]
fn what_is_yet_to_be_consumed_keeps_its_place() {
    let mut inbox = inbox();
    for (step, round) in [(2, 0), (2, 1), (3, 0), (3, 1)] {
        assert!(inbox.send(step, round));
    }
    assert!(!inbox.send(4, 0), "there are four places");
    inbox.listen(2, 0);
    assert_eq!(inbox.free(), 1, "later rounds and steps keep theirs");
    // A step that has no second round for this peer: the place of what it does not take is free after it.
    inbox.live.completed();
    assert_eq!(inbox.free(), 2);
    inbox.listen(3, 0);
    inbox.listen(3, 1);
    assert_eq!(inbox.free(), 4);
}

#[test]
fn an_entry_of_the_past_takes_no_place_for_long() {
    let mut inbox = inbox();
    assert!(inbox.send(1, 0) && inbox.send(2, 0));
    inbox.listen(2, 0);
    assert_eq!(inbox.free(), INBOX_PER_SOURCE);
}

#[test]
fn a_source_on_another_batch_is_named() {
    let mut inbox = inbox();
    assert!(inbox.send(2, 3));
    let refused = inbox.live.listen(Position { step: 2, round: 3 }, 8).unwrap_err();
    let Interruption::Failed(error) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("peer b is on another batch at step 2"), "{error}");
}

#[test]
fn what_is_kept_for_others_holds() {
    let mut inbox = inbox();
    assert!(inbox.send(2, 0) && inbox.send(3, 0));
    inbox.live.drain().unwrap();
    assert_eq!(inbox.relayed(), [(ViewId(1), 2), (ViewId(1), 3)]);
    inbox.view(2, 3);
    assert!(inbox.send(3, 0), "what was under way when the view changed");
    inbox.live.drain().unwrap();
    assert_eq!(inbox.relayed(), [(ViewId(1), 2)], "step 3 is said again, and perhaps never");
    inbox.view(3, 2);
    assert!(inbox.send_in(3, 2, 0));
    inbox.live.drain().unwrap();
    inbox.live.retakes();
    assert_eq!(inbox.relayed(), [(ViewId(3), 2)], "what arrived before the step was given up is kept");
    assert_eq!(inbox.free(), INBOX_PER_SOURCE - 1, "and its place too, but none of what is void");
}

/// Of a step that may have more rounds one is here. Whoever says that it lacks the step must not complete it.
#[test]
fn what_is_not_counted_in_an_answer_is_not_used() {
    let mut inbox = inbox();
    assert!(inbox.send(2, 0));
    inbox.words.try_send(Word::Flush { id: 1, peers: vec![name("b")] }).unwrap();
    inbox.live.drain().unwrap();
    inbox.live.answer();
    assert_eq!(inbox.live.seat.rounds.missing(Position::of(2)), [name("b")]);
    assert_eq!(inbox.free(), INBOX_PER_SOURCE);
}
