//! What is seen of all peers while a world runs: whoever contradicts itself, another, or the undisturbed run, is noted.

use std::collections::{BTreeMap, VecDeque};

use cohort_proto::contribution::Position;
use cohort_proto::id::{Digest, Step, ViewId};

use crate::setting::Setting;

/// Lines that are kept for people.
const LINES: usize = 300;

/// A step that a peer completed, the last time that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) view: ViewId,
    pub(crate) before: u64,
    pub(crate) after: u64,
}

/// The witness.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// The first thing that went wrong.
    pub(crate) wrong: Option<String>,
    /// Virtual milliseconds.
    pub(crate) now: u64,
    /// What was said, by view, position and peer: as often as it is said in a view, it is the same.
    said: BTreeMap<(ViewId, Position, usize), Digest>,
    /// By peer and step.
    pub(crate) done: BTreeMap<(usize, Step), Done>,
    /// Where those who were left behind came in again, by peer: completed steps, and the state.
    pub(crate) came_in: BTreeMap<(usize, Step), u64>,
    /// Steps that were completed, replays included.
    pub(crate) steps_taken: u64,
    /// What people would read, the newest last.
    pub(crate) lines: VecDeque<String>,
    /// A digest of all lines until the first process ended by itself: a server that is shut down wakes its connections in
    /// an order that is left to chance.
    pub(crate) trace: u64,
    /// Whether one has.
    pub(crate) ended: bool,
}

impl Witness {
    pub(crate) fn note(&mut self, line: &str) {
        let line = format!("{:>9.3} s  {line}", self.now as f64 / 1000.0);
        if !self.ended {
            self.trace = cohort_proto::rng::fnv1a(self.trace.to_le_bytes().into_iter().chain(line.bytes()));
        }
        self.lines.push_back(line);
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.note(&format!("WRONG: {what}"));
        self.wrong.get_or_insert(what);
    }

    /// A peer starts at the checkpoint of `from` steps, with step `step`.
    pub(crate) fn starts(&mut self, peer: usize, (step, from): (Step, Step), state: u64, setting: &Setting) {
        self.note(&format!("{} starts at step {step} with checkpoint {from}", setting.name(peer)));
        if from < step {
            self.came_in.insert((peer, step), state);
        }
        if !setting.kind.goes_on && state != setting.state(peer, step) {
            let name = setting.name(peer);
            self.fail(format!(
                "{name} starts at {step} with other weights than the undisturbed run has there"
            ));
        }
    }

    /// A peer says something, or another hears it.
    pub(crate) fn says(&mut self, view: ViewId, at: Position, source: usize, words: Digest) {
        let known = *self.said.entry((view, at, source)).or_insert(words);
        if known != words {
            self.fail(format!("peer {source} contradicts itself at {at:?} in view {view}"));
        }
    }

    pub(crate) fn completed(&mut self, peer: usize, step: Step, done: Done, setting: &Setting) {
        self.steps_taken += 1;
        self.note(&format!("{} completes step {step} in view {}", setting.name(peer), done.view));
        self.done.insert((peer, step), done);
        if !setting.kind.goes_on && done.after != setting.state(peer, step + 1) {
            let name = setting.name(peer);
            self.fail(format!("after step {step} {name} has other weights than in the undisturbed run"));
        }
    }
}
