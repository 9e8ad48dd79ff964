//! What must hold at every event, whatever was broken. Where peers wait for each other: the replay invariant, one step
//! after the other, and nobody rolled back unless all were told to fall back. Where they go on without one that is lost:
//! nobody ever says two things in one round of a view, views agree and only grow in number, and whoever starts has the
//! weights of the views that hold.

use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::contribution::{Contribution, Position};
use cohort_proto::control::Start;
use cohort_proto::id::{Digest, Step};
use cohort_proto::view::{View, Views};

use crate::process::Trail;
use crate::training::Setting;

/// The witness.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    /// The first thing that was wrong.
    pub(crate) wrong: Option<String>,
    /// The newest view that the process of a peer was told.
    newest: BTreeMap<usize, u64>,
    /// How often it was told to start, and how often a newer view than before.
    starts: BTreeMap<usize, u64>,
    announced: BTreeMap<usize, u64>,
    /// Of each view: where it begins, and with whom.
    begins: BTreeMap<u64, (Step, Vec<usize>)>,
    /// The views that hold, by the coordinator.
    pub(crate) views: Views,
    /// Logs reached back to this before the event under way.
    pub(crate) retained: Step,
    /// Who was ever put out of a view: of its last steps before, not everything may be on record.
    pub(crate) put_out: BTreeSet<usize>,
    /// Everything that was ever said: by whom, in which view and round.
    said: BTreeMap<(usize, u64, Position), Digest>,
    /// The view that has too few members, and up to where they may go.
    too_few: Option<(u64, Step)>,
    /// How often the run was given up for the time being.
    pub(crate) stops: u64,
    /// Steps taken in this world, replays counted again.
    pub(crate) steps_taken: u64,
    /// Starts of peers that had a memory: they went back together with all others.
    pub(crate) rollbacks: u64,
}

impl Watch {
    pub(crate) fn fail(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// What of this decides whether later events are right.
    pub(crate) fn newest(&self) -> impl std::fmt::Debug {
        (&self.newest, &self.starts, &self.announced, self.retained)
    }

    /// A process of a peer begins, and has been told nothing.
    pub(crate) fn born(&mut self, peer: usize) {
        [&mut self.newest, &mut self.starts, &mut self.announced]
            .into_iter()
            .for_each(|of| _ = of.remove(&peer));
    }

    pub(crate) fn viewed(&mut self, peer: usize, view: &View) {
        self.check_view(view);
        let newest = self.newest.entry(peer).or_insert(view.id.0);
        if view.id.0 > *newest {
            *newest = view.id.0;
            *self.announced.entry(peer).or_insert(0) += 1;
        }
    }

    fn check_view(&mut self, view: &View) {
        let members = view.members.iter().map(|member| member.index).collect();
        let now = (view.begins_at, members);
        let first = self.begins.entry(view.id.0).or_insert(now.clone());
        if *first != now {
            let what = format!("view {} is two views: {first:?} and {now:?}", view.id);
            self.fail(what);
        }
    }

    /// The coordinator decides on a view, and lets nobody need what was let go.
    pub(crate) fn decided(&mut self, view: &View, damaged: bool, setting: &Setting) {
        let retain_from = self.retained;
        if self.views.last().is_some_and(|last| last.id >= view.id) {
            self.fail(format!("view {} comes after view {}", view.id, self.views.len()));
        }
        if view.begins_at < retain_from && !damaged {
            let what = format!("view {} begins at {}, below {retain_from}", view.id, view.begins_at);
            self.fail(what);
        }
        let out = |peer: &usize| view.members.iter().all(|member| member.index != *peer);
        self.put_out.extend((0..setting.size.peers).filter(out));
        self.check_view(view);
        self.views.insert(view.clone());
    }

    /// The coordinator has done all that follows from an event: fewer than are needed go no further than they were granted
    /// before, since others come in there.
    pub(crate) fn settled(&mut self, view: &View, lease_until: Step, setting: &Setting) {
        let too_few = setting.size.min_peers.is_some_and(|least| view.members.len() < least);
        let known = self.too_few.filter(|(alone, _)| *alone == view.id.0);
        let (alone, granted) = known.unwrap_or((view.id.0, lease_until));
        self.too_few = too_few.then_some((alone, granted));
        if too_few && (granted < lease_until || lease_until >= setting.size.steps) {
            self.fail(format!("view {} has too few members", view.id));
        }
    }

    /// A peer says something. Said again in the same view, it must be the same.
    pub(crate) fn says(&mut self, peer: usize, contribution: &Contribution) {
        let header = contribution.header();
        let first =
            *self.said.entry((peer, header.view.0, header.position)).or_insert_with(|| contribution.digest());
        if first != contribution.digest() {
            let what =
                format!("peer {peer} says two things to {:?} of view {}", header.position, header.view);
            self.fail(what);
        }
    }

    /// A peer starts, the first time in its life or again.
    pub(crate) fn starts(
        &mut self,
        peer: usize,
        start: Start,
        (state, trail): (u64, &Trail),
        setting: &Setting,
    ) {
        let Start { step, checkpoint } = start;
        if !setting.goes_on() && (checkpoint != step || state != setting.state(peer, step)) {
            self.fail(format!(
                "peer {peer} starts at {step} with other weights than the undisturbed run has there"
            ));
        }
        // What was decided since is still on its way to it, and will tell it where to start instead.
        let newest = self.views.last().map(|view| view.id.0);
        let is_told = self.newest.get(&peer).copied() >= newest;
        if checkpoint == step
            && is_told
            && let Some(what) = self.strays(peer, step, trail)
        {
            self.fail(format!("peer {peer} starts at {step} with weights that do not count: {what}"));
        }
        let starts = self.starts.entry(peer).or_insert(0);
        *starts += 1;
        let announced = *self.announced.entry(peer).or_insert(0);
        self.rollbacks += u64::from(*starts > 1);
        if *starts > 1 + announced {
            self.fail(format!("peer {peer} is rolled back to {step}, though no new view was announced"));
        }
    }

    /// What is wrong with weights that were made in these views: since the peer came in last, every step counts.
    pub(crate) fn strays(&self, peer: usize, steps: Step, trail: &Trail) -> Option<String> {
        for step in (0..steps).rev() {
            let holds = self.views.at(step)?;
            if holds.members.iter().all(|member| member.index != peer) {
                return None;
            }
            match trail.get(&step) {
                Some(view) if *view == holds.id => {}
                Some(view) => return Some(format!("step {step} was taken in view {view}, not {}", holds.id)),
                None => return Some(format!("step {step} was not taken")),
            }
        }
        None
    }

    pub(crate) fn begins(&mut self, peer: usize, step: Step, next: Step) {
        if step != next {
            self.fail(format!("peer {peer} has completed {step} steps, but its next step is {next}"));
        }
    }

    pub(crate) fn completed(&mut self, peer: usize, done: Step, state: u64, setting: &Setting) {
        self.steps_taken += 1;
        if !setting.goes_on() && state != setting.state(peer, done) {
            self.fail(format!(
                "after {done} steps peer {peer} has other weights than in the undisturbed run"
            ));
        }
    }
}
