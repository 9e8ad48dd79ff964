//! What L-MCL does with logits: every stage is a classifier, a learned mixture of the stages is another, and the last
//! stage learns from the mixtures of all networks (Yang et al., TPAMI 2023).

use candle_core::{Result, Tensor};

use super::super::cross_entropy::cross_entropy;
use super::super::primitives::{log_softmax, soft_kl_of_logs, soften, zero};
use super::super::{AGGREGATED, Heard, Own, Weighted};
use super::LMclParams;

/// The weights `π` `[B, S]` of the stages: the softmax of what an aggregator makes of a sample, `[B, S]`.
///
/// # Errors
/// If the device fails.
pub fn mixture(scores: &Tensor) -> Result<Tensor> {
    log_softmax(scores)?.exp()?.to_dtype(scores.dtype())
}

/// `a = Σ_k π[:, k] · z_k` `[B, C]`: the logits `[B, C]` of every stage, mixed for each sample by the weights `π` `[B, S]`
/// that an aggregator gives them.
///
/// # Errors
/// Shapes that do not fit.
pub fn aggregate(weights: &Tensor, stage_logits: &[Tensor]) -> Result<Tensor> {
    let (_, stages) = weights.dims2()?;
    if stages != stage_logits.len() || stages == 0 {
        candle_core::bail!("weights of {stages} stages for logits of {}", stage_logits.len());
    }
    let mut sum = stage_logits[0].broadcast_mul(&weights.narrow(1, 0, 1)?)?;
    for (k, z) in stage_logits.iter().enumerate().skip(1) {
        sum = (sum + z.broadcast_mul(&weights.narrow(1, k, 1)?)?)?;
    }
    Ok(sum)
}

/// `Σ_k CE(z_ik)` (of all stages, or of all but the last), `CE(a_i)` and `Σ_j KL(z_i ‖ a_j)`, the own aggregated logits included, for one network.
pub(super) fn terms(
    own: Own<'_>,
    heard: &[Heard],
    labels: &Tensor,
    params: &LMclParams,
) -> Result<Vec<Weighted>> {
    let aggregated = aggregated_of(own)?;
    let mut terms = vec![
        ("ce", 1.0, stage_cross_entropy(own, labels, params.final_ce)?),
        ("ce_aggregated", 1.0, cross_entropy(aggregated, labels)?),
    ];
    if params.kd {
        let mut teachers = vec![aggregated.clone()];
        for other in heard {
            let Some(theirs) = &other.aggregated else {
                candle_core::bail!("network {} did not say {AGGREGATED}", other.index);
            };
            let ours = own.logits.device();
            teachers.push(theirs.to_device(ours)?);
        }
        terms.push(("kl_aggregated", 1.0, distil(own.logits, &teachers, params.kd_t)?));
    }
    Ok(terms)
}

fn aggregated_of(own: Own<'_>) -> Result<&Tensor> {
    match own.aggregated {
        Some(aggregated) => Ok(aggregated),
        None => candle_core::bail!("the own network made no {AGGREGATED}"),
    }
}

fn stage_cross_entropy(own: Own<'_>, labels: &Tensor, with_last: bool) -> Result<Tensor> {
    let stages = own.stage_logits.len().saturating_sub(usize::from(!with_last));
    let Some((first, rest)) = own.stage_logits[..stages].split_first() else {
        candle_core::bail!("the own network made no logits of its stages");
    };
    let mut sum = cross_entropy(first, labels)?;
    for z in rest {
        sum = (sum + cross_entropy(z, labels)?)?;
    }
    Ok(sum)
}

/// `Σ_j KL_T(student ‖ teacher_j)`; no gradient reaches a teacher.
fn distil(student: &Tensor, teachers: &[Tensor], temperature: f64) -> Result<Tensor> {
    let mut sum = zero(student)?;
    let student = soften(student, temperature)?;
    for teacher in teachers {
        let teacher = soften(&teacher.detach(), temperature)?;
        sum = (sum + soft_kl_of_logs(&student, &teacher, temperature)?)?;
    }
    Ok(sum)
}
