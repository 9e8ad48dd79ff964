//! The training thread, turn by turn: the loop of `Training::run`, the acts of a step that speak and listen, and the
//! inbox of `trainer::company`, with a number for the network.

use std::sync::Arc;

use cohort_peer::round::{Arrival, Permission};
use cohort_proto::contribution::{Contribution, Header, Position};
use cohort_proto::control::{Start, StepReport, Stop};
use cohort_proto::id::{Step, ViewId};
use cohort_proto::limits::RELAY_STEPS;

use crate::disk::Disk;
use crate::journal::RUN;
use crate::process::{At, Exchange, News, Process, Seat, Trail, Trainer, Word};
use crate::training::{Setting, after, digest, fresh, hear, of_all, word, word_of};
use crate::watch::Watch;
use crate::world::Planted;

/// What a turn needs besides the process.
pub(crate) struct Around<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) disk: &'a mut Disk,
    pub(crate) watch: &'a mut Watch,
    pub(crate) peer: usize,
    pub(crate) now: u64,
    pub(crate) planted: Planted,
}

impl Process {
    /// Whether the training thread has something to do.
    pub(crate) fn may_train(&self) -> bool {
        !matches!(self.trainer.at, At::Ended) && (!self.trainer.blocked || !self.words.is_empty())
    }

    /// Takes note of all words, then does one thing, or finds that it must wait.
    pub(crate) fn train(&mut self, around: &mut Around<'_>) {
        self.trainer.blocked = false;
        while let Some(word) = self.words.pop_front() {
            self.take(word, around);
        }
        match self.trainer.at.clone() {
            At::Rest => {
                self.answer(around);
                self.begin(around);
            }
            At::Listening(exchange) => self.listen(exchange, around),
            At::Ended => {}
        }
    }

    fn take(&mut self, word: Word, around: &mut Around<'_>) {
        let trainer = &mut self.trainer;
        let arrival = match word {
            Word::View(view) => {
                around.watch.viewed(around.peer, &view);
                Arrival::View(view)
            }
            Word::Lease(until) => Arrival::Lease(until),
            Word::Stop(stop) => Arrival::Stop(stop),
            Word::Start { start, epoch } => {
                trainer.epoch = epoch;
                self.free(|_| true);
                Arrival::Start(start)
            }
            Word::Flush { peers, .. } if peers.contains(around.setting.name(around.peer)) => {
                return trainer.rounds.stand_down();
            }
            Word::Flush { id, peers } => {
                trainer.flush = Some((id, peers));
                return;
            }
            Word::Heard { seat, epoch, .. } if epoch < trainer.epoch => return self.give_back(seat),
            Word::Heard { contribution, seat, .. } => {
                let header = contribution.header().clone();
                if around.setting.goes_on() && trainer.rounds.holds(&header) {
                    self.relay.0.record(&contribution);
                }
                let kept = trainer.rounds.arrived(Arrival::Heard(contribution)).unwrap_or_else(|stray| {
                    around.watch.fail(format!("peer {} ends: {stray}", around.peer));
                    false
                });
                if kept {
                    trainer.seats.push((header, seat));
                } else {
                    self.give_back(seat);
                }
                return;
            }
            Word::Common(step) => {
                trainer.common = trainer.common.max(step);
                return;
            }
        };
        let viewed = matches!(arrival, Arrival::View(_));
        if let Err(stray) = self.trainer.rounds.arrived(arrival) {
            around.watch.fail(format!("peer {} ends: {stray}", around.peer));
        }
        if viewed {
            self.relay.0.retain(|header| self.trainer.rounds.holds(header));
            let rounds = self.trainer.rounds.clone();
            self.free(|header| !rounds.holds(header));
        }
    }

    /// Frees places in inboxes.
    fn free(&mut self, over: impl Fn(&Header) -> bool) {
        let seats = std::mem::take(&mut self.trainer.seats).into_iter();
        let (gone, kept): (Vec<_>, Vec<_>) = seats.partition(|(header, _)| over(header));
        self.trainer.seats = kept;
        gone.into_iter().for_each(|(_, seat)| self.give_back(seat));
    }

    fn give_back(&mut self, seat: Seat) {
        if let Some(source) = self.sources.get_mut(&seat.source).filter(|source| source.inbox == seat.inbox) {
            source.taken -= 1;
        }
    }

    /// Answers a flush, if one was asked for.
    fn answer(&mut self, around: &Around<'_>) {
        let Some((flush, peers)) = self.trainer.flush.take() else { return };
        let (next, last) = (self.trainer.rounds.next_step(), around.setting.last_round());
        let mut of = Vec::new();
        for peer in peers {
            let step = self.relay.0.whole_until(&peer, next, last);
            self.trainer.rounds.forget(&peer, step);
            self.free(|header| header.source == peer && header.position.step >= step);
            of.push((peer, step + u64::from(around.planted == Planted::OneMore)));
        }
        self.news.push_back(News::Received { flush, of });
    }

    /// Between two steps.
    fn begin(&mut self, around: &mut Around<'_>) {
        match self.trainer.rounds.permission() {
            Permission::Leave(stop) => self.end(stop, around),
            Permission::Start(start) => self.start_at(start, around),
            Permission::Wait(_) => self.trainer.blocked = true,
            Permission::Go(view) => {
                let step = self.trainer.steps_done;
                around.watch.begins(around.peer, step, self.trainer.rounds.next_step());
                self.trainer.began_in = view;
                self.say(Exchange { at: Position::of(step), ..Exchange::default() }, around);
            }
        }
    }

    fn start_at(&mut self, start: Start, around: &mut Around<'_>) {
        let Start { step, checkpoint: from } = start;
        let (state, trail) = match around.disk.load(from) {
            _ if from == 0 => (fresh(around.peer), Trail::new()),
            Some((state, trail)) => (state, trail.clone()),
            None if !self.trainer.held.contains(&from) => {
                self.trainer.rounds.stand_down();
                let newest = self.trainer.held.last().copied().unwrap_or(0);
                return self.tell_what_is_held(newest);
            }
            None => {
                let what = format!("peer {} was told to start at {from}, which is damaged", around.peer);
                return around.watch.fail(what);
            }
        };
        around.watch.starts(around.peer, start, (state, &trail), around.setting);
        let trainer = &mut self.trainer;
        if around.setting.goes_on() {
            around.disk.remove_after(step);
            trainer.held.retain(|held| *held <= step);
        }
        (trainer.state, trainer.trail, trainer.steps_done, trainer.saved) = (state, trail, step, from);
        self.log.0.restart_at(step);
        trainer.rounds.started();
        if from < step {
            self.save_and_tell(around);
        }
    }

    fn say(&mut self, mut exchange: Exchange, around: &mut Around<'_>) {
        let Exchange { at, heard, .. } = exchange;
        let tensor = around.setting.tensor(word(around.peer, self.trainer.state, at, heard));
        if at.round == 0 {
            exchange.said = vec![digest(&tensor)];
        }
        let view = self.trainer.rounds.view().map_or(ViewId(0), |view| view.id);
        let source = around.setting.name(around.peer).clone();
        let header = Header { run: RUN, view, position: at, source, batch_hash: at.step };
        let contribution = Contribution::seal(header, vec![tensor], &around.setting.schema).unwrap();
        around.watch.says(around.peer, &contribution);
        exchange.own.push(contribution.digest());
        if let Err(error) = self.log.0.append(Arc::new(contribution)) {
            around.watch.fail(format!("peer {} ends: {error}", around.peer));
        }
        self.trainer.at = At::Listening(exchange);
    }

    fn listen(&mut self, mut exchange: Exchange, around: &mut Around<'_>) {
        let Trainer { rounds, began_in, .. } = &self.trainer;
        if let Some(stop) = rounds.abandon().cloned() {
            return self.end(stop, around);
        }
        if rounds.restarts(*began_in) {
            return self.retakes();
        }
        self.answer(around);
        let at = exchange.at;
        let Some(said) = self.trainer.rounds.take(at) else {
            self.trainer.blocked = true;
            self.trainer.waits_since.get_or_insert(around.now);
            return;
        };
        self.trainer.waits_since = None;
        for (source, contribution) in said {
            exchange.heard = hear(exchange.heard, source, word_of(&contribution));
            let name = contribution.header().source.clone();
            exchange.consumed.entry(name).or_default().push(contribution.digest());
        }
        self.free(|header| header.position <= at);
        if at.round + 1 < around.setting.rounds(at.step) {
            return self.say(Exchange { at: at.following(), ..exchange }, around);
        }
        self.complete(exchange, around);
    }

    /// The step is given up: what was said to it is said again, in the view that holds now.
    fn retakes(&mut self) {
        let next = self.trainer.rounds.next_step();
        self.log.0.cut_from(next);
        (self.trainer.at, self.trainer.waits_since) = (At::Rest, None);
    }

    fn complete(&mut self, exchange: Exchange, around: &mut Around<'_>) {
        let Trainer { rounds, state, trail, steps_done, .. } = &mut self.trainer;
        let step = *steps_done;
        *state = after(*state, step, exchange.heard);
        *steps_done += 1;
        let done = *steps_done;
        let view = rounds.view().map_or(ViewId(0), |view| view.id);
        let others = rounds.view().map_or(0, |view| view.members.len() - 1);
        trail.insert(step, view);
        rounds.completed();
        around.watch.completed(around.peer, done, *state, around.setting);
        if exchange.consumed.len() != others {
            around
                .watch
                .fail(format!("peer {} completes step {step} without some of the others", around.peer));
        }
        self.free(|header| header.position.step < done);
        self.relay.0.retain_from(done.saturating_sub(RELAY_STEPS));
        let consumed = exchange.consumed.iter().map(|(name, digests)| (name.clone(), of_all(digests)));
        self.news.push_back(News::Step(StepReport {
            step,
            view,
            epoch: 0,
            lr: 0.1,
            own_digest: of_all(&exchange.own),
            consumed: consumed.collect(),
            terms: vec![],
            timings: vec![],
            images: 2,
            log_bytes: self.log.0.byte_len(),
            said: exchange.said,
        }));
        if done == around.setting.size.steps || done.is_multiple_of(around.setting.size.checkpoint_every) {
            self.save_and_tell(around);
        }
        self.trainer.at = At::Rest;
    }

    fn save_and_tell(&mut self, around: &mut Around<'_>) {
        self.save(around);
        self.tell_what_is_held(self.trainer.saved);
    }

    fn tell_what_is_held(&mut self, step: Step) {
        let held = self.trainer.held.iter().copied().collect();
        let epoch = self.trainer.epoch;
        self.news.push_back(News::Saved { step, held, epoch });
    }

    fn save(&mut self, around: &mut Around<'_>) {
        let Trainer { state, trail, steps_done, saved, held, common, .. } = &mut self.trainer;
        around.disk.save(*steps_done, *state, trail.clone(), *common);
        *saved = *steps_done;
        held.insert(*saved);
        held.retain(|step| around.disk.contains(*step));
    }

    fn end(&mut self, stop: Stop, around: &mut Around<'_>) {
        let steps_done = self.trainer.steps_done;
        if self.trainer.saved != steps_done {
            self.save(around);
        }
        let saved = steps_done > 0;
        self.news.push_back(News::Ended { steps_done, saved, stop });
        self.trainer.at = At::Ended;
    }
}
