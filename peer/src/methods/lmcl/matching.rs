//! Which stages are matched, and how strongly: λ of Yang et al. (TPAMI 2023), a weight for each pair of stages and each
//! sample.

use candle_core::{D, Result, Tensor};

use super::super::primitives::widen;
use super::super::{Heard, matching_name};
use super::{LMclParams, Matching};

/// A pair of stages of two networks, each named by its place among the tensors of a [`super::terms::Cohort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    /// The stage of the network that is looked at.
    pub(super) own: usize,
    /// The stage of another one.
    pub(super) other: usize,
}

/// The pairs of two networks whose stages lie at `own` and `other`, ascending.
pub(super) fn pairs(
    own: std::ops::Range<usize>,
    other: std::ops::Range<usize>,
    matching: Matching,
) -> Vec<Pair> {
    if matching == Matching::OneToOne {
        let both = own.len().min(other.len());
        let aligned = (own.end - both..own.end).zip(other.end - both..other.end);
        return aligned.map(|(own, other)| Pair { own, other }).collect();
    }
    own.flat_map(|own| other.clone().map(move |other| Pair { own, other })).collect()
}

/// `λ[n] = σ(⟨a[n], b[n]⟩)` `[B]`, how strongly two stages are matched for each sample, differentiable, in the dtype of
/// losses. `a` and `b` hold their unit matching features `[B, 128]`.
///
/// # Errors
/// Shapes that differ.
pub fn weight(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    learned(&[widen(a)?, widen(b)?], &[Pair { own: 0, other: 1 }])?.squeeze(0)
}

/// [`weight`] of every pair, `[P, B]`.
///
/// `features` holds the unit rows `[B, 128]` of all stages at the places that the pairs name.
pub(super) fn learned(features: &[Tensor], pairs: &[Pair]) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (own, other) = (&features[pair.own], &features[pair.other]);
        rows.push((own * other)?.sum(D::Minus1)?);
    }
    // Unit rows: the exponent is between -1 and 1.
    (Tensor::stack(&rows, 0)?.neg()?.exp()? + 1.0)?.recip()
}

/// How strongly a stage of the own network is matched with one of another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatchingWeight {
    /// The own stage, from 0.
    pub stage: usize,
    /// The index of the other network.
    pub source: usize,
    /// Its stage, from 0.
    pub source_stage: usize,
    /// λ, averaged over the batch.
    pub mean: f64,
}

/// The mean weight of every pair of an own stage, of which there are `stages`, and a stage of another network; 1 or 0
/// where matching is not learned. Ascending by source, own stage, source stage.
///
/// `own` and `heard` hold the unit matching features `[B, 128]` of every stage, where matching is learned.
///
/// # Errors
/// A matching feature missing, or shapes that differ.
pub fn matching_weights(
    own: &[Tensor],
    stages: usize,
    heard: &[Heard],
    params: &LMclParams,
) -> Result<Vec<MatchingWeight>> {
    let mut all = Vec::new();
    for other in heard {
        let theirs = other.embeddings.len();
        let matched = pairs(0..stages, stages..stages + theirs, params.matching);
        let means = match params.matching {
            Matching::Learned => learned_means(own, stages, other, &matched)?,
            Matching::Uniform | Matching::OneToOne => vec![1.0; matched.len()],
        };
        for pair in pairs(0..stages, stages..stages + theirs, Matching::Uniform) {
            let at = matched.iter().position(|candidate| *candidate == pair);
            let mean = at.and_then(|at| means.get(at)).copied().unwrap_or(0.0);
            let (stage, source_stage) = (pair.own, pair.other - stages);
            all.push(MatchingWeight { stage, source: other.index, source_stage, mean });
        }
    }
    Ok(all)
}

fn learned_means(own: &[Tensor], stages: usize, other: &Heard, pairs: &[Pair]) -> Result<Vec<f64>> {
    if own.len() != stages || other.matching.len() != other.embeddings.len() {
        candle_core::bail!(
            "{stages} stages here and {} of network {} need a {} each, but there are {} and {}",
            other.embeddings.len(),
            other.index,
            matching_name(0),
            own.len(),
            other.matching.len()
        );
    }
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let features = own.iter().chain(&other.matching).map(|u| widen(&u.detach()));
    let weights = learned(&features.collect::<Result<Vec<_>>>()?, pairs)?;
    weights.mean(1)?.to_dtype(candle_core::DType::F64)?.to_vec1()
}
