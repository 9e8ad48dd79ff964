//! Between acts 4 and 5 in the first step of an epoch, in runs that ask for it: every network says what it makes of the
//! samples that nobody trains on, in a further round of the step, and who learns from several weighs them by their errors.

use candle_core::{Device, Tensor};
use cohort_proto::contribution::Position;
use cohort_proto::id::{Digest, PeerName};
use cohort_proto::meta::{HELD_OUT, HELD_OUT_ROUND};

use super::listen::{Listened, from_wire};
use super::say::to_wire;
use super::{Company, Interruption};
use crate::data::loader::{Batch, HeldOut};
use crate::error::PeerError;
use crate::learner::{Learner, Scores};
use crate::methods::terms::kdcl::general;

/// What was said and heard, and what follows from it; all empty in other steps.
#[derive(Debug, Default)]
pub struct Weighed {
    /// The digest of what this peer said.
    pub said: Vec<Digest>,
    /// Those of what it heard, by source.
    pub consumed: Vec<Vec<(PeerName, Digest)>>,
    /// The weights of the networks of the epoch that begins, by ascending index, if this peer learns by weight.
    pub weights: Option<Vec<f64>>,
}

/// Says the logits of the held-out samples, by the network as it is before the step in evaluation mode, and hears everybody
/// else's.
///
/// # Errors
/// If the run stops meanwhile, it holds nothing out, or a device fails.
pub fn held_out(
    learner: &Learner,
    company: &mut dyn Company,
    batch: &Batch,
) -> Result<Weighed, Interruption> {
    if !learner.node.weighs || batch.position_in_epoch > 0 {
        return Ok(Weighed::default());
    }
    let Some(HeldOut { samples, normalisation }) = &batch.held_out else {
        return Err(PeerError::Internal("no training images are left to hold out for weights".into()).into());
    };
    let scores = Scores::of(&learner.model, samples, normalisation, &learner.device)?;
    let shape = (samples.labels.len(), learner.model.network.classes());
    let own = Tensor::from_vec(scores.logits, shape, &Device::Cpu)?;
    let at = Position { step: batch.step, round: HELD_OUT_ROUND };
    let said = company.say(at, batch.hash, vec![to_wire(HELD_OUT, &own)?])?;
    let heard = company.listen(at, batch.hash)?;
    let mut logits = vec![(learner.index, own)];
    for (index, contribution) in &heard {
        if let Some(theirs) = contribution.tensor(HELD_OUT) {
            logits.push((*index, from_wire(theirs, &Device::Cpu)?));
        }
    }
    let weights = weights(learner, logits, &samples.labels)?;
    Ok(Weighed { said: said.into_iter().collect(), consumed: vec![Listened::digests(&heard)], weights })
}

/// The weights of this network and of those that it learns from, by their logits on the same samples.
fn weights(
    learner: &Learner,
    mut logits: Vec<(usize, Tensor)>,
    labels: &[u8],
) -> candle_core::Result<Option<Vec<f64>>> {
    let sources = learner.node.weighed();
    if sources.is_empty() {
        return Ok(None);
    }
    logits.retain(|(index, _)| *index == learner.index || sources.contains(index));
    if logits.len() != sources.len() + 1 {
        candle_core::bail!("{} networks are weighed, but {} were heard", sources.len() + 1, logits.len());
    }
    logits.sort_by_key(|(index, _)| *index);
    let logits: Vec<Tensor> = logits.into_iter().map(|(_, logits)| logits).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    general::weights(&general::error_products(&logits, &labels)?).map(Some)
}
