//! Act 9, the last: what the coordinator is told of the step.

use candle_core::DType;
use cohort_proto::control::{StepReport, Term};
use cohort_proto::id::{Digest, Step};

use super::meta::Exchanged;
use super::{Company, Interruption, diverged};
use crate::clock::Acts;
use crate::data::loader::Batch;
use crate::methods::Terms;

/// The loss terms as numbers, the whole share first as `loss`. Read before the update, so that a network whose loss
/// is no longer a number is not changed by it.
///
/// # Errors
/// If one of them is not finite, or the device fails.
pub fn terms(step: Step, loss: &Terms) -> Result<Vec<Term>, Interruption> {
    let all =
        std::iter::once(("loss", &loss.total)).chain(loss.named.iter().map(|(name, value)| (*name, value)));
    all.map(|(name, value)| {
        let value = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if value.is_finite() { Ok(Term { name: name.to_owned(), value }) } else { Err(diverged(step, name)) }
    })
    .collect()
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
    }
}
