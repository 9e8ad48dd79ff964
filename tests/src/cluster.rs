//! A cluster in one process: every peer takes its steps by the recipe of `cohort_peer::step` in a thread of its own, and
//! what they say passes between them as sealed contributions, bytes and digests included. Only sockets and the
//! coordinator are missing, so a difference from the joint trainer is a difference of arithmetic.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use candle_core::Device;
use cohort_peer::checkpoint::{Checkpoint, Progress};
use cohort_peer::data::{self, loader::Loader};
use cohort_peer::learner::Learner;
use cohort_peer::models::{ImageShape, StateDict};
use cohort_peer::step::{self, Company, Interruption};
use cohort_proto::contribution::{Contribution, Header, Position, Tensor};
use cohort_proto::dataset::{self, Split};
use cohort_proto::id::{Digest, PeerName, RunId, ViewId};
use cohort_proto::meta::Agenda;
use cohort_proto::schema::Schema;
use cohort_proto::spec::RunSpec;

/// What was said, by position and index.
#[derive(Debug, Default)]
struct Board {
    said: Mutex<BTreeMap<(Position, usize), Arc<Contribution>>>,
    changed: Condvar,
}

/// One peer's place at the board.
struct Seat {
    board: Arc<Board>,
    index: usize,
    /// Those that it learns from, by ascending index, with their schemas and the names of the tensors that it does so by.
    sources: BTreeMap<usize, (Schema, BTreeSet<String>)>,
    name: PeerName,
    schema: Schema,
    agenda: Agenda,
}

impl Seat {
    /// A contribution as it travels to this peer: of what it does not learn from only digests.
    fn receive(
        &self,
        at: Position,
        index: usize,
        said: &Contribution,
    ) -> Result<(usize, Arc<Contribution>), Interruption> {
        let internal = |what: String| cohort_peer::error::PeerError::Internal(what);
        let (schema, wanted) =
            self.sources.get(&index).ok_or_else(|| internal(format!("no source {index}")))?;
        let schema = self.agenda.schema(schema, at.round);
        let schema = schema.ok_or_else(|| internal(format!("there is no round {}", at.round)))?;
        let parts = said.parts_for(|name| wanted.contains(name)).collect();
        let opened = Contribution::open(said.header().clone(), parts, said.digest(), &schema, wanted);
        Ok((index, Arc::new(opened.map_err(|error| internal(error.to_string()))?)))
    }
}

impl Company for Seat {
    fn view(&self) -> ViewId {
        ViewId(1)
    }

    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<Tensor>,
    ) -> Result<Option<Digest>, Interruption> {
        if self.schema.tensors().is_empty() {
            return Ok(None);
        }
        let (run, view, source) = (RunId(1), self.view(), self.name.clone());
        let header = Header { run, view, position: at, source, batch_hash };
        let internal = |what: String| cohort_peer::error::PeerError::Internal(what);
        let schema = self.agenda.schema(&self.schema, at.round);
        let schema = schema.ok_or_else(|| internal(format!("there is no round {}", at.round)))?;
        let sealed = Contribution::seal(header, tensors, &schema);
        let contribution = sealed.map_err(|error| internal(error.to_string()))?;
        let digest = contribution.digest();
        let mut said = self.board.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert((at, self.index), Arc::new(contribution));
        self.board.changed.notify_all();
        Ok(Some(digest))
    }

    fn listen(&mut self, at: Position, _: u64) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        let mut said = self.board.said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let heard = self.sources.keys().map(|index| Some((*index, said.get(&(at, *index))?.clone())));
            if let Some(heard) = heard.collect::<Option<Vec<_>>>() {
                return heard.into_iter().map(|(index, said)| self.receive(at, index, &said)).collect();
            }
            said = self.board.changed.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

/// A peer after a step: its parameters and buffers, and the state of its optimisers.
pub type State = (StateDict, StateDict);

/// Trains all peers of a run spec for some steps. Returns the weights of each, by index.
///
/// # Errors
/// If data or networks cannot be had, or a step fails.
pub fn train(spec: &RunSpec, folder: &Path, steps: usize) -> Result<Vec<StateDict>> {
    let peers = trace(spec, folder, steps)?.into_iter();
    peers.map(|states| Ok(last(states)?.0)).collect()
}

/// Trains all peers of a run spec for some steps. Returns what each was after every step, by index.
///
/// # Errors
/// If data or networks cannot be had, or a step fails.
pub fn trace(spec: &RunSpec, folder: &Path, steps: usize) -> Result<Vec<Vec<State>>> {
    trace_from(spec, folder, &[], steps)
}

/// Trains all peers of a run spec for some steps more, from checkpoints of all of them or, without any, from the start.
/// Returns a checkpoint of each, by index.
///
/// # Errors
/// If data or networks cannot be had, a checkpoint does not fit, or a step fails.
pub fn train_from(
    spec: &RunSpec,
    folder: &Path,
    checkpoints: &[Arc<Checkpoint>],
    steps: usize,
) -> Result<Vec<Checkpoint>> {
    let first = checkpoints.first().map_or(0, |checkpoint| checkpoint.progress.steps_done);
    let peers = trace_from(spec, folder, checkpoints, steps)?;
    let mut ends = Vec::with_capacity(peers.len());
    for (states, peer) in peers.into_iter().zip(&spec.peers) {
        let (model, optimizer) = last(states)?;
        let progress = Progress {
            steps_done: first + steps as u64,
            run: RunId(1),
            spec_hash: spec.hash(),
            peer: peer.name.to_string(),
            arch: peer.arch.clone(),
        };
        ends.push(Checkpoint { progress, model, optimizer });
    }
    Ok(ends)
}

fn last(mut states: Vec<State>) -> Result<State> {
    states.pop().context("no step was taken")
}

fn trace_from(
    spec: &RunSpec,
    folder: &Path,
    checkpoints: &[Arc<Checkpoint>],
    steps: usize,
) -> Result<Vec<Vec<State>>> {
    let board = Arc::new(Board::default());
    let threads: Vec<_> = (0..spec.peers.len())
        .map(|index| {
            let (spec, folder, board) = (spec.clone(), folder.to_owned(), board.clone());
            let checkpoint = checkpoints.get(index).cloned();
            std::thread::spawn(move || peer(&spec, &folder, index, board, (checkpoint, steps)))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a peer panicked"))?).collect()
}

fn peer(
    spec: &RunSpec,
    folder: &Path,
    index: usize,
    board: Arc<Board>,
    (checkpoint, steps): (Option<Arc<Checkpoint>>, usize),
) -> Result<Vec<State>> {
    let peer = spec.peers.get(index).context("a peer")?;
    let samples = dataset::load(folder, spec.data.dataset, Split::Train, spec.data.train_limit)?;
    let image = ImageShape::from(&samples.images);
    let labels = samples.labels.clone();
    let fresh = |generation| {
        let learner = Learner::of_generation(generation, spec, index, peer, image, Device::Cpu)?;
        learner.with_memory(spec, &labels)
    };
    let mut learner = fresh(0)?;
    let first = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.progress.steps_done);
    if let Some(checkpoint) = checkpoint {
        learner.restore(&checkpoint)?;
    }
    let mut loader = Loader::start(data::loader_inputs(spec, samples)?, first)?;
    let schema = spec.contribution_schema(index)?;
    let source = |from: usize| Ok((from, (spec.contribution_schema(from)?, spec.wanted(from, index)?)));
    let mut seat = Seat {
        board,
        index,
        sources: spec.sources(index).into_iter().map(source).collect::<Result<_>>()?,
        name: peer.name.clone(),
        schema,
        agenda: Agenda::of(spec),
    };
    let mut states = Vec::with_capacity(steps);
    for _ in 0..steps {
        let batch = loader.next_batch()?.context("the plan has ended")?;
        learner.enter(batch.step, &fresh)?;
        match step::run(&mut learner, &mut seat, &batch) {
            Ok(_) => states.push(learner.state()?),
            Err(Interruption::Failed(error)) => return Err((*error).into()),
            Err(Interruption::Stopped(stop)) => return Err(anyhow!(stop.sentence)),
            Err(Interruption::Restarted) => return Err(anyhow!("nobody restarts a peer here")),
        }
    }
    Ok(states)
}
