//! Mutual Contrastive Learning (Yang et al., "Mutual Contrastive Learning for Visual Representation Learning",
//! AAAI 2022): networks compare the samples of a batch within their own embedding and across each other's.
//!
//! With unit embeddings `v_i` `[B, E]` of network i and scores `S_ij = v_i v_jᵀ / τ` `[B, B]`, rows being the anchors of
//! network i:
//!
//! | term | sum over all networks | share of network i |
//! | --- | --- | --- |
//! | VCL | `Σ_i Con(S_ii)` | `Con(S_ii)` |
//! | soft VCL | `Σ_{i≠j} KL(S_ii ‖ S_jj)` | `Σ_{j≠i} KL(S_ii ‖ S_jj)` |
//! | ICL | `Σ_{i<j} Con(S_ij) + Con(S_ji)` | `Σ_{j≠i} Con(S_ij) + Con(S_ji)` |
//! | soft ICL | `Σ_{i<j} KL(S_ij ‖ S_ji) + KL(S_ji ‖ S_ij)` | `Σ_{j≠i}` of the same two |
//!
//! The share of network i holds every term that its embedding enters with a gradient, so its gradient for `v_i` is
//! that of the sum over all networks. The terms in which network j is the anchor belong to it: `v_i` is contrasted
//! with there. Nothing is counted twice, since each network differentiates with respect to its own embedding only.

use candle_core::{Result, Tensor};

use super::logit_kd::Students;
use super::memory::BankParams;
use super::primitives::{Positives, contrastive, soft_kl_of_logs, soften, widen, zero};

/// Hyper-parameters of Mutual Contrastive Learning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MclParams {
    /// Weight of VCL, the contrastive term within a network.
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
    /// Width E of the embedding.
    pub feat_dim: usize,
    /// Who learns from the ensemble of logits.
    pub logit_kd: Students,
    /// Memory banks, if anchors are contrasted with them instead of with the batch.
    pub bank: Option<BankParams>,
}

impl Default for MclParams {
    fn default() -> Self {
        Self {
            alpha: 0.1,
            beta: 0.1,
            gamma: 1.0,
            lam: 1.0,
            tau: 0.1,
            kd_t: 3.0,
            feat_dim: 128,
            logit_kd: Students::Last,
            bank: None,
        }
    }
}

impl MclParams {
    /// Whether any contrastive term has a weight, so that embeddings are worth computing.
    pub fn contrasts(&self) -> bool {
        [self.alpha, self.beta, self.gamma, self.lam].iter().any(|weight| *weight != 0.0)
    }
}

/// Score matrices of one batch, and over which of them the four terms run.
#[derive(Debug, Clone)]
pub struct Scores {
    /// `S_jj` of every network.
    intra: Vec<Tensor>,
    /// `S_ij` and its transpose `S_ji`.
    pairs: Vec<[Tensor; 2]>,
    /// Indices of the networks whose own terms are summed.
    students: std::ops::Range<usize>,
    positives: Positives,
    kd_t: f64,
}

impl Scores {
    /// For the share of network `me`: only `embeddings[me]` receives a gradient, the others are constants.
    ///
    /// `embeddings` holds the unit rows `[B, E]` of all networks in ascending order, `labels` the integers `[B]`.
    ///
    /// # Errors
    /// `me` outside the slice, or shapes that differ.
    pub fn share(me: usize, embeddings: &[Tensor], labels: &Tensor, params: &MclParams) -> Result<Self> {
        let Some(own) = embeddings.get(me) else {
            candle_core::bail!("network {me} of {} has no embedding", embeddings.len());
        };
        let own = widen(own)?;
        let held = |(j, v)| if j == me { Ok(own.clone()) } else { Ok(widen(v)?.detach()) };
        let held = embeddings.iter().enumerate().map(held).collect::<Result<Vec<Tensor>>>()?;
        let mut pairs = Vec::with_capacity(held.len().saturating_sub(1));
        for (_, other) in held.iter().enumerate().filter(|(j, _)| *j != me) {
            pairs.push(both_ways(&own, other, params.tau)?);
        }
        Self::new(&held, pairs, me..me + 1, labels, params)
    }

    /// For the sum over all networks: every embedding receives its gradient.
    pub fn joint(embeddings: &[Tensor], labels: &Tensor, params: &MclParams) -> Result<Self> {
        let held = embeddings.iter().map(widen).collect::<Result<Vec<_>>>()?;
        let mut pairs = Vec::with_capacity(held.len() * held.len().saturating_sub(1) / 2);
        for (i, first) in held.iter().enumerate() {
            for second in &held[i + 1..] {
                pairs.push(both_ways(first, second, params.tau)?);
            }
        }
        Self::new(&held, pairs, 0..held.len(), labels, params)
    }

    fn new(
        embeddings: &[Tensor],
        pairs: Vec<[Tensor; 2]>,
        students: std::ops::Range<usize>,
        labels: &Tensor,
        params: &MclParams,
    ) -> Result<Self> {
        let Some(first) = embeddings.first() else {
            candle_core::bail!("a cohort needs at least one network");
        };
        let intra = embeddings.iter().map(|v| scores(v, v, params.tau)).collect::<Result<_>>()?;
        let positives = Positives::new(labels, first)?;
        Ok(Self { intra, pairs, students, positives, kd_t: params.kd_t })
    }

    /// VCL, the vanilla contrastive term within a network (equations 2 and 3); scalar.
    pub fn vcl(&self) -> Result<Tensor> {
        let mut total = zero(&self.intra[0])?;
        for own in &self.intra[self.students.clone()] {
            total = (total + contrastive(own, &self.positives)?)?;
        }
        Ok(total)
    }

    /// Soft VCL: a network's distribution over the batch is drawn towards that of each other one; scalar.
    ///
    /// The distributions include the anchor itself, as in the authors' code.
    pub fn soft_vcl(&self) -> Result<Tensor> {
        let mut total = zero(&self.intra[0])?;
        if self.intra.len() < 2 {
            return Ok(total);
        }
        let logs = self.intra.iter().map(|s| soften(s, self.kd_t)).collect::<Result<Vec<_>>>()?;
        for i in self.students.clone() {
            for (_, teacher) in logs.iter().enumerate().filter(|(j, _)| *j != i) {
                total = (total + soft_kl_of_logs(&logs[i], teacher, self.kd_t)?)?;
            }
        }
        Ok(total)
    }

    /// ICL, the interactive contrastive term across networks, both directions of each pair; scalar.
    pub fn icl(&self) -> Result<Tensor> {
        let mut total = zero(&self.intra[0])?;
        for scores in self.pairs.iter().flatten() {
            total = (total + contrastive(scores, &self.positives)?)?;
        }
        Ok(total)
    }

    /// Soft ICL: the two directions of each pair are drawn towards each other; scalar.
    pub fn soft_icl(&self) -> Result<Tensor> {
        let mut total = zero(&self.intra[0])?;
        for [ij, ji] in &self.pairs {
            let (ij, ji) = (soften(ij, self.kd_t)?, soften(ji, self.kd_t)?);
            total = (total + soft_kl_of_logs(&ij, &ji, self.kd_t)?)?;
            total = (total + soft_kl_of_logs(&ji, &ij, self.kd_t)?)?;
        }
        Ok(total)
    }

    /// The terms that have a weight, in the order VCL, soft VCL, ICL, soft ICL: name, weight, unweighted scalar.
    pub fn terms(&self, params: &MclParams) -> Result<Vec<(&'static str, f64, Tensor)>> {
        type Term = fn(&Scores) -> Result<Tensor>;
        let all: [(&'static str, f64, Term); 4] = [
            ("vcl", params.alpha, Self::vcl),
            ("soft_vcl", params.gamma, Self::soft_vcl),
            ("icl", params.beta, Self::icl),
            ("soft_icl", params.lam, Self::soft_icl),
        ];
        let weighted = all.into_iter().filter(|(_, weight, _)| *weight != 0.0);
        weighted.map(|(name, weight, term)| Ok((name, weight, term(self)?))).collect()
    }
}

/// `S_ij = v_i v_jᵀ / τ` `[B, B]`.
fn scores(anchors: &Tensor, contrasts: &Tensor, tau: f64) -> Result<Tensor> {
    anchors.matmul(&contrasts.t()?)? / tau
}

/// `S_ij` and its transpose: the second product would hold the same numbers.
fn both_ways(first: &Tensor, second: &Tensor, tau: f64) -> Result<[Tensor; 2]> {
    let ij = scores(first, second, tau)?;
    let ji = ij.t()?.contiguous()?;
    Ok([ij, ji])
}
