//! Act 9, the last: what the coordinator is told of the step.

use std::collections::BTreeMap;
use std::sync::Once;

use candle_core::DType;
use cohort_proto::control::{MATCHING_TERM, StepReport, Term};
use cohort_proto::id::{Digest, PeerName, Step};
use cohort_proto::limits::REPORT_ENTRIES_MAX;

use super::forward::Forward;
use super::meta::Exchanged;
use super::{Company, Interruption, diverged};
use crate::clock::Acts;
use crate::data::loader::Batch;
use crate::methods::lmcl::{MatchingWeight, matching_weights};
use crate::methods::{Heard, Terms};

/// Weights of pairs of stages in one report; the rest of it is for terms of the loss.
const PAIRS_MAX: usize = REPORT_ENTRIES_MAX - 64;

/// The loss terms as numbers, the whole share first as `loss`. Read before the update, so that a network whose loss
/// is no longer a number is not changed by it.
///
/// # Errors
/// If one of them is not finite, or the device fails.
pub fn terms(step: Step, loss: &Terms) -> Result<Vec<Term>, Interruption> {
    let all = std::iter::once(("loss", &loss.total))
        .chain(loss.named.iter().map(|(name, value)| (name.as_ref(), value)));
    all.map(|(name, value)| {
        let value = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if value.is_finite() { Ok(Term { name: name.to_owned(), value }) } else { Err(diverged(step, name)) }
    })
    .collect()
}

/// The mean weights with which the stages of the own network and of the others were matched in this step, as terms
/// `lambda.K.SOURCE.Z`: K is the own stage, Z that of the peer SOURCE. None if matching is not learned, or if there are
/// more than a report may hold, which is said once.
///
/// # Errors
/// If what was heard does not fit, or the device fails.
pub fn matching(
    forward: &Forward,
    heard: &[Heard],
    consumed: &[(PeerName, Digest)],
) -> candle_core::Result<Vec<Term>> {
    static SAID: Once = Once::new();
    let own = &forward.outputs.matching;
    let pairs = own.len() * heard.iter().map(|other| other.matching.len()).sum::<usize>();
    if pairs > PAIRS_MAX {
        SAID.call_once(|| {
            tracing::warn!("the weights of {pairs} pairs of stages are not reported: more than {PAIRS_MAX}");
        });
        return Ok(Vec::new());
    }
    let weights = matching_weights(own, heard)?.into_iter();
    let names = heard.iter().zip(consumed).map(|(other, (name, _))| (other.index, name));
    let names: BTreeMap<usize, &PeerName> = names.collect();
    let term = |weight: MatchingWeight| {
        let MatchingWeight { stage, source, source_stage, mean } = weight;
        let name = format!("{MATCHING_TERM}{stage}.{}.{source_stage}", names.get(&source)?);
        Some(Term { name, value: mean })
    };
    Ok(weights.filter_map(term).collect())
}

/// Puts the report together.
pub fn report(
    batch: &Batch,
    company: &dyn Company,
    exchanged: Exchanged,
    terms: Vec<Term>,
    acts: Acts,
) -> StepReport {
    StepReport {
        step: batch.step,
        view: company.view(),
        epoch: batch.epoch,
        lr: batch.lr,
        // One who says nothing is known by the digest of nothing.
        own_digest: exchanged.own.unwrap_or_else(|| Digest::of([])),
        consumed: exchanged.consumed,
        terms,
        timings: acts.into_timings(),
        images: batch.indices.len() as u64,
        log_bytes: company.log_bytes(),
        said: exchanged.tensors,
    }
}
