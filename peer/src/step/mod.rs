//! One step, act by act, in the order in which they happen. Each act is a file.
//!
//! Nothing is written to the network or the optimiser before [`update`], and what a [`meta`]-update follows is put back
//! if that fails, so a step that is given up half way leaves no trace and is simply taken again.

pub mod load;
pub mod forward;
pub mod say;
pub mod listen;
pub mod held_out;
pub mod loss;
pub mod backward;
pub mod update;
pub mod meta;
pub mod report;
pub mod teach;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use cohort_proto::contribution::{Contribution, Position, Tensor};
use cohort_proto::control::{StepReport, Stop};
use cohort_proto::id::{Digest, Step, ViewId};
use cohort_proto::spec::Role;

use crate::clock::Acts;
use crate::data::loader::Batch;
use crate::error::PeerError;
use crate::kernels::threads::compute;
use crate::learner::Learner;
use meta::Exchanged;
use update::Change;

/// The rest of the cohort, as a step sees it: somewhere to say things, and someone to listen to.
pub trait Company {
    /// The view that holds.
    fn view(&self) -> ViewId;

    /// Publishes what this peer says in a round. The tensors are in the order of the schema; it may be empty, and
    /// then nothing is published and nothing returned.
    ///
    /// # Errors
    /// If a value is not finite, or the log is full.
    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<Tensor>,
    ) -> Result<Option<Digest>, Interruption>;

    /// Waits for what all sources say in a round, by ascending index.
    ///
    /// # Errors
    /// [`Interruption::Stopped`] or [`Interruption::Restarted`] if it is not waited for any more.
    fn listen(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption>;

    /// Bytes that the contribution log holds.
    fn log_bytes(&self) -> u64;
}

/// Why a step was not completed.
#[derive(Debug)]
pub enum Interruption {
    /// The run ends before it can be.
    Stopped(Stop),
    /// Training starts elsewhere.
    Restarted,
    /// It went wrong.
    Failed(Box<PeerError>),
}

impl<E: Into<PeerError>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Takes one step: forward, exchange, loss, backward, update. Read this first. A teacher ends with the exchange: [`teach`].
///
/// # Errors
/// [`Interruption`]; the learner is then as it was before.
pub fn run(
    learner: &mut Learner,
    company: &mut dyn Company,
    batch: &Batch,
) -> Result<StepReport, Interruption> {
    if learner.role == Role::Teacher {
        return teach::teach(learner, company, batch);
    }
    let at = Position::of(batch.step);
    let mut acts = Acts::new();

    let mut input = load::load(batch, &learner.device)?;
    acts.done("load");
    let forward = compute(|| forward::forward(learner, &input))?;
    acts.done("forward");
    let said = say::say(learner, company, at, batch.hash, &forward)?;
    acts.done("say");
    let listen::Listened { consumed, heard } = listen::listen(company, at, batch.hash, &learner.device)?;
    acts.done("listen");
    let held_out = held_out::held_out(learner, company, batch)?;
    input.weights = held_out.weights.or_else(|| learner.weights.clone());
    if learner.node.weighs {
        acts.done("held_out");
    }
    let mut loss = compute(|| loss::loss(learner, &forward, &heard, &input))?;
    let contest = compute(|| loss::contest(learner, &forward, &heard, &mut loss))?;
    let matching = compute(|| report::matching(&forward, &heard, &consumed))?;
    acts.done("loss");
    let gradients = compute(|| backward::backward(learner, &loss))?;
    let moves = compute(|| backward::moves(learner, contest))?;
    acts.done("backward");
    let mut terms = report::terms(batch.step, &loss)?;
    terms.extend(matching);
    let schedule = meta::due(learner, batch, heard.len());
    let before = schedule.as_ref().map(|_| learner.before(&input.indices)).transpose()?;
    let change = Change { pass: forward.pass, gradients, lr: batch.lr, moves };
    compute(|| update::update_and_remember(learner, change, &forward.outputs, &heard, &input))?;
    acts.done("update");
    let mut exchanged = Exchanged { own: said.digest, tensors: said.tensors, consumed };
    exchanged.add(held_out.said, held_out.consumed);
    if let (Some(schedule), Some(before)) = (schedule, before) {
        match meta::meta(learner, company, &schedule, (batch, &input), &mut exchanged) {
            Ok(term) => terms.push(term),
            Err(interruption) => {
                let damaged = |error| PeerError::Internal(format!("a step cannot be taken back: {error}"));
                learner.put_back(&before).map_err(damaged)?;
                return Err(interruption);
            }
        }
        acts.done("meta");
    }
    Ok(report::report(batch, company, exchanged, terms, acts))
}

/// Takes a step without anybody: the loop of a single network.
///
/// # Errors
/// [`Interruption`]; the learner is then as it was before.
pub fn run_alone(learner: &mut Learner, batch: &Batch) -> Result<StepReport, Interruption> {
    run(learner, &mut Nobody, batch)
}

/// The company of one who trains alone.
#[derive(Debug)]
struct Nobody;

impl Company for Nobody {
    fn view(&self) -> ViewId {
        ViewId(0)
    }

    fn say(&mut self, _: Position, _: u64, _: Vec<Tensor>) -> Result<Option<Digest>, Interruption> {
        Ok(None)
    }

    fn listen(&mut self, _: Position, _: u64) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        Ok(Vec::new())
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

/// The number of a step in an error about numbers that are no longer finite.
fn diverged(step: Step, what: impl Into<String>) -> Interruption {
    Interruption::from(PeerError::Diverged { step, what: what.into() })
}
