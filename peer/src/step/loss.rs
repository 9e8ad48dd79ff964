//! Act 5: the peer's share of the cohort's loss. The others' tensors are constants in it.

use candle_core::Result;

use super::forward::Forward;
use super::load::Input;
use crate::learner::{Contest, Learner, Named, Scene};
use crate::methods::cross_entropy::cross_entropy;
use crate::methods::{Heard, Method, Terms, Weighted};

/// Local terms, every term of the coupling that contains this peer's own tensors, and one for every edge that reaches it,
/// in this order.
///
/// # Errors
/// If what was heard does not fit, or the device fails.
pub fn loss(learner: &Learner, forward: &Forward, heard: &[Heard], input: &Input) -> Result<Terms> {
    let own = &forward.outputs;
    let mut terms: Vec<Named> = Vec::new();
    if learner.node.plain_ce {
        terms.push(("ce".to_owned(), 1.0, cross_entropy(&own.logits, &input.labels)?));
    }
    let coupling = coupling(learner, forward, heard, input)?;
    terms.extend(coupling.into_iter().map(|(name, weight, value)| (name.to_owned(), weight, value)));
    let past = match &learner.past {
        Some(past) => Some(past.rows(&input.indices)?),
        None => None,
    };
    let scene = Scene {
        generation: learner.generation,
        step: input.step % learner.extent.steps,
        epoch: input.epoch % learner.extent.epochs,
        extent: learner.extent,
        before: forward.before.as_ref(),
        own,
        heard,
        labels: &input.labels,
        past: past.as_ref(),
        weights: input.weights.as_deref(),
    };
    terms.extend(learner.node.terms(&scene)?);
    Terms::sum(terms, own.logits.dtype())
}

/// What the adversary makes of the batch, if there is one: no part of the share, but beside it among the named terms.
///
/// # Errors
/// As [`loss`](fn@loss).
pub fn contest(
    learner: &Learner,
    forward: &Forward,
    heard: &[Heard],
    terms: &mut Terms,
) -> Result<Option<Contest>> {
    let Some(adversary) = &learner.adversary else { return Ok(None) };
    let contest = adversary.contest(&forward.outputs, heard)?;
    if let Some(contest) = &contest {
        let named = [("afd_generator", &contest.generator), ("afd_discriminator", &contest.discriminator)];
        terms.named.extend(named.map(|(name, value)| (name.into(), value.detach())));
    }
    Ok(contest)
}

/// The share of the coupling with those who are coupled to this peer.
fn coupling(learner: &Learner, forward: &Forward, heard: &[Heard], input: &Input) -> Result<Vec<Weighted>> {
    if learner.method == Method::Alone {
        return Ok(Vec::new());
    }
    let coupled = heard.iter().filter(|other| learner.node.is_coupled_to(other.index));
    let heard: Vec<Heard> = coupled.cloned().collect();
    let (me, cohort) = (learner.index, heard.len() + 1);
    let recall = match &learner.memory {
        Some(memory) => Some(memory.recall(me, &heard, input.step, &input.indices)?),
        None => None,
    };
    let own = forward.outputs.own();
    learner.method.coupling(me, cohort, own, &heard, &input.labels, recall.as_ref())
}
