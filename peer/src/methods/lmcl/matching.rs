//! Which stages are matched, and how strongly: λ of Yang et al. (TPAMI 2023), a weight for each pair of stages and each
//! sample.

use candle_core::{D, DType, Result, Tensor};

use super::super::Heard;
use super::super::primitives::widen;
use super::Matching;

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
    // σ(x) = (1 + tanh(x / 2)) / 2, which has a finite slope everywhere; for unit rows x is between -1 and 1.
    ((Tensor::stack(&rows, 0)? * 0.5)?.tanh()? * 0.5)? + 0.5
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

/// The mean weight of every pair of an own stage and a stage of another network, where matching is learned. Ascending by
/// source, own stage, source stage.
///
/// `own` and `heard` hold the unit matching features `[B, 128]` of every stage.
///
/// # Errors
/// Shapes that differ.
pub fn matching_weights(own: &[Tensor], heard: &[Heard]) -> Result<Vec<MatchingWeight>> {
    let own = own.iter().map(|u| widen(&u.detach())).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for other in heard {
        let theirs = other.matching.iter().map(widen).collect::<Result<Vec<_>>>()?;
        let (stages, features) = (own.len(), [own.as_slice(), &theirs].concat());
        let pairs = pairs(0..stages, stages..features.len(), Matching::Learned);
        if pairs.is_empty() {
            continue;
        }
        let means = learned(&features, &pairs)?.mean(1)?.to_dtype(DType::F64)?.to_vec1()?;
        all.extend(pairs.iter().zip(means).map(|(pair, mean)| MatchingWeight {
            stage: pair.own,
            source: other.index,
            source_stage: pair.other - stages,
            mean,
        }));
    }
    Ok(all)
}
