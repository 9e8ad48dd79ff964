//! The stand-in for the training thread: a task behind the same channels, which does what `trainer::Training` does with
//! the real [`Seat`], but computes no more than [`Setting`] asks, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_peer::error::PeerError;
use cohort_peer::meta::among_peers::of_rounds;
use cohort_peer::round::Permission;
use cohort_peer::step::Interruption;
use cohort_peer::trainer::{Ending, Facts, Identity, Inputs, News, Said, Seat, Shared, Trainer, Word};
use cohort_proto::contribution::Position;
use cohort_proto::control::{Checkpoints, Start, StepReport, Stop, Term};
use cohort_proto::id::{Digest, PeerName, RunId, Step};
use cohort_proto::limits::{INBOX_PER_SOURCE, QUEUE_DEPTH};
use cohort_proto::rng::SplitMix64;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::disk::Disk;
use crate::setting::{STEPS, Setting, after, digests, fresh, heard_of, loss};
use crate::witness::{Done, Witness};

/// What a process is given that is no part of it.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) setting: Arc<Setting>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) witness: Arc<Mutex<Witness>>,
    pub(crate) peer: usize,
    /// Makes the times that it takes to compute its own.
    pub(crate) key: u64,
}

/// Starts it.
pub(crate) fn start(desk: Desk, inputs: &Inputs, shared: Shared) -> Trainer {
    let (words, inbox) = mpsc::channel(QUEUE_DEPTH + inputs.spec.peers.len() * INBOX_PER_SOURCE);
    let (outbox, news) = mpsc::channel(QUEUE_DEPTH);
    let peer = &inputs.spec.peers[inputs.index];
    let facts = Facts {
        spec_hash: inputs.spec_hash,
        arch: peer.arch.clone(),
        classes: inputs.spec.data.dataset.classes(),
        schema: desk.setting.schema(desk.peer).clone(),
        sources: desk.setting.sources(desk.peer),
        dataset_fingerprint: Digest::of("the same data"),
        total_steps: STEPS,
        checkpoints: found(&desk),
    };
    tokio::spawn(async move {
        let ending = train(desk, facts, shared, inbox, outbox.clone()).await;
        _ = outbox.send(News::Ended(ending)).await;
    });
    Trainer { words, news, thread: None }
}

fn found(desk: &Desk) -> Option<Checkpoints> {
    let held = desk.disk.lock().unwrap().verified();
    held.map(|(run, steps)| Checkpoints { run, steps })
}

struct Training {
    desk: Desk,
    seat: Seat,
    inbox: mpsc::Receiver<Word>,
    outbox: mpsc::Sender<News>,
    pace: SplitMix64,
    run: RunId,
    state: u64,
    steps_done: Step,
    saved: Step,
    held: BTreeSet<Step>,
}

async fn train(
    desk: Desk,
    facts: Facts,
    shared: Shared,
    mut inbox: mpsc::Receiver<Word>,
    outbox: mpsc::Sender<News>,
) -> Ending {
    let steps_of = |held: &Option<Checkpoints>| held.iter().flat_map(|held| held.steps.clone()).collect();
    let mut held: BTreeSet<Step> = steps_of(&facts.checkpoints);
    let not_joined = |cause| Ending { steps_done: 0, saved: false, cause };
    _ = outbox.send(News::Prepared(Box::new(facts))).await;
    let run = loop {
        match inbox.recv().await {
            Some(Word::Joined(run)) => break run,
            Some(Word::LookAgain) => {
                let found = found(&desk);
                held = steps_of(&found);
                _ = outbox.send(News::Found(found)).await;
            }
            Some(Word::Stop(stop)) => return not_joined(Ok(stop)),
            other => return not_joined(Err(PeerError::Internal(format!("not joined, but {other:?}")))),
        }
    };
    let identity = Identity {
        me: desk.setting.spec.peers[desk.peer].name.clone(),
        run,
        schema: desk.setting.schema(desk.peer).clone(),
        agenda: desk.setting.agenda(),
        total_steps: STEPS,
        sources: desk.setting.sources(desk.peer).into_keys().collect(),
        relays: desk.setting.kind.goes_on,
    };
    let seat = Seat::new(identity, shared);
    let (pace, state) = (SplitMix64::new(desk.key), fresh(desk.peer));
    let mut training =
        Training { desk, seat, inbox, outbox, pace, run, state, steps_done: 0, saved: 0, held };
    let cause = training.go().await;
    if training.saved != training.steps_done {
        training.save();
    }
    let Training { steps_done, saved, .. } = training;
    Ending { steps_done, saved: saved == steps_done && steps_done > 0, cause }
}

impl Training {
    async fn go(&mut self) -> Result<Stop, PeerError> {
        loop {
            self.drain()?;
            self.answer().await;
            match self.seat.permission() {
                Permission::Leave(stop) => return Ok(stop),
                Permission::Start(start) => self.start_at(start).await?,
                Permission::Wait(_) => self.wait().await?,
                Permission::Go(_) => match self.step().await {
                    Ok(report) => self.completed(report).await,
                    Err(Interruption::Stopped(stop)) => return Ok(stop),
                    Err(Interruption::Restarted) => self.seat.retakes(),
                    Err(Interruption::Failed(error)) => return Err(*error),
                },
            }
        }
    }

    /// Computes for a while; what arrives meanwhile waits.
    async fn compute(&mut self) {
        sleep(Duration::from_millis(2 + self.pace.below(30))).await;
    }

    fn drain(&mut self) -> Result<(), PeerError> {
        while let Ok(word) = self.inbox.try_recv() {
            self.seat.take(word)?;
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), PeerError> {
        match self.inbox.recv().await {
            Some(word) => self.seat.take(word),
            None => Err(PeerError::Internal("the network side of this peer is gone".into())),
        }
    }

    async fn answer(&mut self) {
        if let Some(answer) = self.seat.answer() {
            _ = self.outbox.send(answer).await;
        }
    }

    async fn start_at(&mut self, start: Start) -> Result<(), PeerError> {
        let Start { step, checkpoint: from } = start;
        self.compute().await;
        if from > 0 && !self.held.contains(&from) {
            self.seat.stand_down();
            self.tell_what_is_held(self.held.last().copied().unwrap_or(0)).await;
            return Ok(());
        }
        let loaded =
            if from == 0 { Some(fresh(self.desk.peer)) } else { self.desk.disk.lock().unwrap().load(from) };
        self.state = loaded.ok_or_else(|| PeerError::Internal(format!("no good checkpoint {from}")))?;
        if self.seat.goes_on() {
            self.desk.disk.lock().unwrap().remove_after(step);
            self.held.retain(|held| *held <= step);
        }
        (self.steps_done, self.saved) = (step, from);
        let Desk { witness, setting, peer, .. } = &self.desk;
        witness.lock().unwrap().starts(*peer, (step, from), self.state, setting);
        self.seat.started(step);
        if from < step {
            self.save_and_tell().await;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<StepReport, Interruption> {
        let (setting, step, before) = (self.desk.setting.clone(), self.steps_done, self.state);
        let (mut heard, mut own, mut said) = (0, Vec::new(), Vec::new());
        let mut consumed: BTreeMap<PeerName, Vec<Digest>> = BTreeMap::new();
        for round in 0..setting.rounds(step) {
            let at = Position { step, round };
            self.compute().await;
            let words = setting.words(self.desk.peer, before, at, heard);
            if round == 0 {
                said = digests(&words);
            }
            let content =
                Digest::of(words.iter().flat_map(|tensor| tensor.data.to_vec()).collect::<Vec<u8>>());
            let view = self.seat.view();
            own.extend(self.seat.say(at, step, words)?);
            self.desk.witness.lock().unwrap().says(view, at, self.desk.peer, content);
            for (source, contribution) in self.listen(at).await? {
                let data = contribution.tensors().flat_map(|tensor| tensor.data.to_vec());
                let content = Digest::of(data.collect::<Vec<u8>>());
                let header = contribution.header();
                self.desk.witness.lock().unwrap().says(header.view, header.position, source, content);
                heard = heard_of(heard, source, &contribution);
                consumed.entry(header.source.clone()).or_default().push(contribution.digest());
            }
        }
        self.compute().await;
        self.state = after(before, step, heard);
        let view = self.seat.view();
        let done = Done { view, before, after: self.state };
        self.desk.witness.lock().unwrap().completed(self.desk.peer, step, done, &setting);
        Ok(StepReport {
            step,
            view,
            epoch: 0,
            lr: 0.1,
            own_digest: of_rounds(own).unwrap_or_else(|| Digest::of([])),
            consumed: consumed.into_iter().map(|(name, of)| (name, of_rounds(of).unwrap())).collect(),
            terms: vec![Term { name: "loss".into(), value: loss(self.state) }],
            timings: vec![],
            images: 2,
            log_bytes: self.seat.log_bytes(),
            said,
        })
    }

    async fn listen(&mut self, at: Position) -> Result<Said, Interruption> {
        let said = self.hear_all(at).await;
        self.seat.waits_no_more();
        said
    }

    async fn hear_all(&mut self, at: Position) -> Result<Said, Interruption> {
        loop {
            self.drain()?;
            self.seat.interrupted()?;
            self.answer().await;
            if let Some(said) = self.seat.hear(at, at.step)? {
                return Ok(said);
            }
            self.wait().await?;
        }
    }

    async fn completed(&mut self, report: StepReport) {
        self.steps_done = report.step + 1;
        self.seat.completed();
        _ = self.outbox.send(News::Step(report)).await;
        if self.steps_done == STEPS
            || self.steps_done.is_multiple_of(self.desk.setting.spec.run.checkpoint_every)
        {
            self.compute().await;
            self.save_and_tell().await;
        }
    }

    async fn save_and_tell(&mut self) {
        self.save();
        self.tell_what_is_held(self.saved).await;
    }

    async fn tell_what_is_held(&mut self, step: Step) {
        let held = self.held.iter().copied().collect();
        let epoch = self.seat.epoch();
        _ = self.outbox.send(News::Saved { step, held, epoch }).await;
    }

    fn save(&mut self) {
        let mut disk = self.desk.disk.lock().unwrap();
        disk.save(self.run, self.steps_done, self.state, self.seat.common());
        self.saved = self.steps_done;
        self.held.insert(self.saved);
        self.held.retain(|step| disk.contains(*step));
    }
}
