//! Layer-wise Mutual Contrastive Learning (Yang et al., "Online Knowledge Distillation via Mutual Contrastive Learning
//! for Visual Recognition", TPAMI 2023): every stage of a network is contrasted with every stage of the others, each
//! pair of stages weighted for each sample by how well a weight network says they match.
//!
//! With a = `v_ik`, b = `v_jz` the unit embeddings `[B, E]` of stage k of network i and stage z of network j, scores
//! `S_ab = a bᵀ / τ` and a weight λ `[B]` for each anchor, a pair of stages costs
//!
//! `ℓ = α[Con(S_aa; λ) + Con(S_bb; λ)] + γ[KL(S_aa ‖ S_bb; λ) + KL(S_bb ‖ S_aa; λ)]`
//! `  + β[Con(S_ab; λ) + Con(S_ba; λ)] + lam[KL(S_ab ‖ S_ba; λ) + KL(S_ba ‖ S_ab; λ)]`
//!
//! and the cohort the sum over ordered pairs of networks, in which each pair of stages occurs twice.
//!
//! | term | in the share of network i | in its inner objective |
//! | --- | --- | --- |
//! | VCL | `2 Σ Con(S_aa)` | `2 Σ Con(S_aa) + Con(S_bb)` |
//! | soft VCL | `2 Σ KL(S_aa ‖ S_bb)` | `2 Σ` both ways |
//! | ICL | `2 Σ Con(S_ab) + Con(S_ba)` | the same |
//! | soft ICL | `2 Σ KL(S_ab ‖ S_ba) + KL(S_ba ‖ S_ab)` | the same |
//!
//! with sums over j ≠ i and over k, z. In a training step λ is a constant, so the terms that hold nothing else of
//! network i are left to network j. In the inner objective of the meta-update λ carries a gradient, and they count.

mod logits;
mod matching;
mod terms;
mod rows;
mod stock;
mod fused;

#[cfg(test)]
mod tests;

pub use logits::{aggregate, mixture};
pub use matching::{MatchingWeight, matching_weights, weight};

use candle_core::{Result, Tensor};

use super::memory::{self, BankParams, MemoryParams, Recall, Remembered};
use super::primitives::zero;
use super::{Heard, Own, Weighted, embedding_name, matching_name};
use terms::{Cohort, Sides};

/// How strongly pairs of stages are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matching {
    /// Every stage with every stage, weighted for each sample by `σ(⟨u_ik, u_jz⟩)`.
    #[default]
    Learned,
    /// Every stage with every stage, with weight 1.
    Uniform,
    /// Each stage with the one at its place only, with weight 1. Places are counted from the last stage: of networks
    /// with unequal numbers of stages the first ones of the longer have no partner.
    OneToOne,
}

/// Hyper-parameters of Layer-wise Mutual Contrastive Learning.
#[derive(Debug, Clone, PartialEq)]
pub struct LMclParams {
    /// Weight of VCL, the contrastive term within a stage.
    pub alpha: f64,
    /// Weight of ICL, the contrastive term across networks.
    pub beta: f64,
    /// Weight of soft VCL.
    pub gamma: f64,
    /// Weight of soft ICL.
    pub lam: f64,
    /// Temperature τ of the scores.
    pub tau: f64,
    /// Temperature of the softened distributions, those of the logits included.
    pub kd_t: f64,
    /// Width E of the embeddings.
    pub feat_dim: usize,
    /// Width of the matching features.
    pub match_dim: usize,
    /// Whether the cross-entropy of the last stage's logits is among the terms; not where a term of labels stands in its
    /// place.
    pub final_ce: bool,
    /// Whether networks learn from the aggregated logits of all of them.
    pub kd: bool,
    /// Whether each pair of stages counts twice, as in the authors' code.
    pub double: bool,
    /// How pairs of stages are weighted.
    pub matching: Matching,
    /// Memory banks, if anchors are contrasted with them instead of with the batch.
    pub bank: Option<BankParams>,
}

impl Default for LMclParams {
    fn default() -> Self {
        Self {
            alpha: 0.1,
            beta: 0.1,
            gamma: 1.0,
            lam: 1.0,
            tau: 0.1,
            kd_t: 3.0,
            feat_dim: 128,
            match_dim: 128,
            final_ce: true,
            kd: true,
            double: true,
            matching: Matching::Learned,
            bank: None,
        }
    }
}

impl LMclParams {
    /// Whether any contrastive term has a weight, so that embeddings are worth computing.
    pub fn contrasts(&self) -> bool {
        [self.alpha, self.beta, self.gamma, self.lam].iter().any(|weight| *weight != 0.0)
    }

    /// How often a pair of stages counts.
    pub(super) fn multiplicity(&self) -> f64 {
        if self.double { 2.0 } else { 1.0 }
    }
}

/// The embeddings from which the teachers of an inner objective are made: those of all networks where the loss is
/// expanded. They stay when the networks are perturbed.
#[derive(Debug, Clone)]
pub struct Targets {
    own: Vec<Tensor>,
    heard: Vec<Vec<Tensor>>,
}

impl Targets {
    /// Takes the values that the own embeddings and the heard ones have now.
    pub fn of(own: &[Tensor], heard: &[Heard]) -> Self {
        let frozen = |tensors: &[Tensor]| tensors.iter().map(Tensor::detach).collect();
        Self { own: frozen(own), heard: heard.iter().map(|other| frozen(&other.embeddings)).collect() }
    }
}

/// The terms that the tensors of one network enter with a gradient: `ce` (of all stages), `ce_aggregated`,
/// `kl_aggregated`, then `vcl`, `soft_vcl`, `icl`, `soft_icl` as far as they have a weight; unweighted scalars.
///
/// `position` is the place of the network among all of them, `heard` holds the others in ascending index. λ is a
/// constant. Without others the contrastive terms are absent.
///
/// # Errors
/// A tensor missing that the method exchanges; shapes that do not fit; labels that are no class.
pub fn share(
    position: usize,
    own: Own<'_>,
    heard: &[Heard],
    labels: &Tensor,
    params: &LMclParams,
) -> Result<Vec<Weighted>> {
    let mut terms = logits::terms(own, heard, labels, params)?;
    if params.contrasts() && !heard.is_empty() {
        let cohort = Cohort::around(position, own.embeddings, own.matching, heard, params)?;
        terms.extend(cohort.terms(&cohort.weights()?.detach(), Sides::Own, None, labels)?);
    }
    Ok(terms)
}

/// The terms of [`share`] with the contrastive ones at memory banks: the last stage of a network fills its one bank, and
/// all stages are anchors.
///
/// # Errors
/// As [`share`]; a method without banks, or not as many banks as networks.
pub(super) fn share_of_memory(
    position: usize,
    own: Own<'_>,
    heard: &[Heard],
    labels: &Tensor,
    params: &LMclParams,
    recall: &Recall<'_>,
) -> Result<Vec<Weighted>> {
    let Some(bank) = &params.bank else { candle_core::bail!("this method has no memory banks") };
    let mut terms = logits::terms(own, heard, labels, params)?;
    if params.contrasts() && !heard.is_empty() {
        let cohort = Cohort::around(position, own.embeddings, own.matching, heard, params)?;
        let lambda = match params.matching {
            Matching::Learned => Some(cohort.weights()?.detach()),
            Matching::Uniform | Matching::OneToOne => None,
        };
        let theirs = recall.of(heard.iter().map(|other| other.embeddings.as_slice()))?;
        let own = Remembered { bank: recall.own, stages: own.embeddings };
        let params = MemoryParams::of_l_mcl(params, bank);
        terms.extend(memory::share(own, &theirs, &recall.draws, &params, lambda.as_ref())?);
    }
    Ok(terms)
}

/// What is compared of one network: the embeddings and the matching features of its stages.
pub type Stages<'a> = (&'a [Tensor], &'a [Tensor]);

/// The four contrastive terms of [`share`] summed over all networks, given in ascending index; every tensor receives its
/// gradient, but λ and the teachers are constants. Both sides of each pair are in it.
///
/// # Errors
/// As [`share`].
pub fn contrast_joint(cohort: &[Stages<'_>], labels: &Tensor, params: &LMclParams) -> Result<Vec<Weighted>> {
    let cohort = Cohort::of_all(cohort, params)?;
    cohort.terms(&cohort.weights()?.detach(), Sides::Both, None, labels)
}

/// What the weight network is learned for: the part of the inner objective of the meta-update that the tensors of one
/// network enter, `2 Σ_{j≠i} Σ_{k,z} ℓ(ik, jz)` with all eight terms; scalar in the dtype of losses.
///
/// λ carries a gradient into the own matching features. The teachers are those of `targets`, which makes the function
/// smooth around the point where they were taken, with the value and gradient of the original there.
///
/// # Errors
/// As [`share`]; targets of another cohort.
pub fn inner(
    position: usize,
    embeddings: &[Tensor],
    matching: &[Tensor],
    heard: &[Heard],
    targets: &Targets,
    labels: &Tensor,
    params: &LMclParams,
) -> Result<Tensor> {
    let (Some(own), true) = (embeddings.first(), params.contrasts() && !heard.is_empty()) else {
        return zero(labels);
    };
    let cohort = Cohort::around(position, embeddings, matching, heard, params)?;
    let frozen = cohort.frozen(targets)?;
    let terms = cohort.terms(&cohort.weights()?, Sides::Both, Some(&frozen), labels)?;
    let mut total = zero(own)?;
    for (_, weight, value) in terms {
        total = (total + (value * weight)?)?;
    }
    Ok(total)
}

/// [`inner`] at memory banks.
///
/// # Errors
/// As [`inner`]; a method without banks, or not as many banks as networks.
pub fn inner_of_memory(
    position: usize,
    (embeddings, matching): Stages<'_>,
    heard: &[Heard],
    targets: &Targets,
    params: &LMclParams,
    recall: &Recall<'_>,
) -> Result<Tensor> {
    let Some(bank) = &params.bank else { candle_core::bail!("this method has no memory banks") };
    let lambda = Cohort::around(position, embeddings, matching, heard, params)?.weights()?;
    let theirs = recall.of(heard.iter().map(|other| other.embeddings.as_slice()))?;
    let own = Remembered { bank: recall.own, stages: embeddings };
    let frozen = (&targets.own[..], &targets.heard[..]);
    memory::inner(own, &theirs, frozen, &recall.draws, &MemoryParams::of_l_mcl(params, bank), &lambda)
}

/// The terms of the inner objective summed over all networks, given in ascending index; λ and all tensors receive
/// gradients, the teachers are constants.
///
/// # Errors
/// As [`share`].
pub fn inner_joint(cohort: &[Stages<'_>], labels: &Tensor, params: &LMclParams) -> Result<Vec<Weighted>> {
    let cohort = Cohort::of_all(cohort, params)?;
    cohort.terms(&cohort.weights()?, Sides::Both, None, labels)
}
