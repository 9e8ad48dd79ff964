//! The step of a teacher: it says what its network makes of the batch and hears what the others say, in the same rounds
//! as everybody. Nothing of its network changes, so there is no loss, no update, and nothing to put back; and if it keeps
//! what it said of each sample, a batch of known ones does not pass through the network again.

use cohort_proto::contribution::Position;
use cohort_proto::control::StepReport;

use super::listen::Listened;
use super::meta::{self, Exchanged};
use super::{Company, Interruption, forward, held_out, load, report, say};
use crate::clock::Acts;
use crate::data::loader::Batch;
use crate::kernels::threads::compute;
use crate::learner::Learner;

/// Takes one step of a teacher: forward and exchange, and the exchanges of the meta-update if one follows. It listens so
/// that all peers are at most a step apart, and so that its report shows that it heard what the others did.
///
/// # Errors
/// [`Interruption`].
pub fn teach(
    learner: &mut Learner,
    company: &mut dyn Company,
    batch: &Batch,
) -> Result<StepReport, Interruption> {
    let at = Position::of(batch.step);
    let mut acts = Acts::new();
    let input = load::load(batch, &learner.device)?;
    acts.done("load");
    let known = learner.cache.as_ref().and_then(|cache| cache.recall(&batch.indices));
    let is_new = known.is_none();
    let words = match known {
        Some(words) => words,
        None => say::words(learner, &compute(|| forward::forward(learner, &input))?.outputs)?,
    };
    acts.done("forward");
    let own = say::publish(company, at, batch.hash, words.clone())?;
    if let Some(cache) = learner.cache.as_mut().filter(|_| is_new) {
        cache.keep(&batch.indices, &words)?;
    }
    acts.done("say");
    let consumed = Listened::digests(&company.listen(at, batch.hash)?);
    acts.done("listen");
    let held_out = held_out::held_out(learner, company, batch)?;
    if learner.node.weighs {
        acts.done("held_out");
    }
    let mut exchanged = Exchanged { own: own.digest, tensors: own.tensors, consumed };
    exchanged.add(held_out.said, held_out.consumed);
    let mut terms = Vec::new();
    if let Some(schedule) = meta::due(learner, batch, exchanged.consumed.len()) {
        terms.push(meta::meta(learner, company, &schedule, (batch, &input), &mut exchanged)?);
        acts.done("meta");
    }
    Ok(report::report(batch, company, exchanged, terms, acts))
}
