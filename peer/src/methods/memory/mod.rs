//! The memory-bank form of Mutual Contrastive Learning (Yang et al., AAAI 2022, for ImageNet): instead of with the
//! other samples of its batch, an anchor is contrasted with remembered embeddings of a few samples of its class and many
//! of others.
//!
//! With the bank `m_j` `[N, E]` of network j, `pos` the anchor's own sample and K+ drawn ones of its class, and `neg` drawn
//! ones of other classes:
//!
//! | scores | keys | positives |
//! | --- | --- | --- |
//! | `Q_i = ⟨m_i[keys], v_i⟩ / τ` | `pos` without the own sample, `neg` | K+ |
//! | `R_ij = ⟨m_j[keys], v_i⟩ / τ` | `pos`, `neg` | K+ + 1 |
//!
//! A share is `α Con(Q_i) + γ Σ_j KL(Q_i ‖ Q_j) + β Σ_j Con(R_ij) + lam Σ_j KL(R_ij ‖ R_ji)`. Banks have no gradient, so
//! the terms that network i enters are those in which it is the anchor. Every peer keeps a replica of each bank in step
//! from what the networks say of each batch.

mod bank;
mod draws;

pub use bank::{BANK_BYTES_MAX, Bank};
pub use draws::{Classes, Draws};

use candle_core::{D, Result, Tensor};

use super::Weighted;
use super::primitives::{log_softmax, soft_kl_of_logs, soften, widen, zero};

/// Hyper-parameters of the memory-bank form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryParams {
    /// Weight of VCL.
    pub alpha: f64,
    /// Weight of ICL.
    pub beta: f64,
    /// Weight of soft VCL.
    pub gamma: f64,
    /// Weight of soft ICL.
    pub lam: f64,
    /// Temperature τ of the scores.
    pub tau: f64,
    /// Temperature of the softened distributions.
    pub kd_t: f64,
}

impl Default for MemoryParams {
    fn default() -> Self {
        Self { alpha: 0.1, beta: 0.1, gamma: 1.0, lam: 1.0, tau: 0.07, kd_t: 3.0 }
    }
}

/// `Con(Z)`, the mean over anchors and over the first `positives` columns of `-ls(Z)` `[B, K]`; scalar. Positives stay in
/// the denominator.
///
/// # Errors
/// More positives than columns, or none.
pub fn contrastive(scores: &Tensor, positives: usize) -> Result<Tensor> {
    if positives == 0 || positives > scores.dim(D::Minus1)? {
        candle_core::bail!("{positives} positives among {} keys", scores.dim(D::Minus1)?);
    }
    let shares = log_softmax(scores)?.narrow(1, 0, positives)?;
    let anchors = scores.dim(0)?.max(1);
    shares.sum_all()?.neg()? / (anchors * positives) as f64
}

/// The share of network `me`: `vcl`, `soft_vcl`, `icl`, `soft_icl`, unweighted scalars.
///
/// `embeddings` holds the unit rows `[B, E]` of all networks in ascending index and `banks` their banks as they were
/// before this batch. Only `embeddings[me]` receives a gradient.
///
/// # Errors
/// Not as many banks as networks; shapes that differ; draws of samples that the banks do not hold.
pub fn share(
    me: usize,
    embeddings: &[Tensor],
    banks: &[&Bank],
    draws: &Draws,
    params: &MemoryParams,
) -> Result<Vec<Weighted>> {
    let Some(own) = embeddings.get(me).filter(|_| embeddings.len() == banks.len()) else {
        candle_core::bail!("network {me} of {} with {} banks", embeddings.len(), banks.len());
    };
    let own = widen(own)?;
    let scores = |v: &Tensor, bank: &Bank, keys: &[Vec<u32>]| -> Result<Tensor> {
        let rows = bank.rows(keys, &own)?;
        rows.matmul(&v.unsqueeze(2)?)?.squeeze(2)? / params.tau
    };
    let (intra, all) = (draws.intra(), draws.all());
    let positives = draws.positives();
    let mine = scores(&own, banks[me], &intra)?;
    let soft_mine = soften(&mine, params.kd_t)?;
    let (mut soft_vcl, mut icl, mut soft_icl) = (zero(&own)?, zero(&own)?, zero(&own)?);
    for (j, other) in embeddings.iter().enumerate().filter(|(j, _)| *j != me) {
        let theirs = widen(other)?.to_device(own.device())?.detach();
        let teacher = soften(&scores(&theirs, banks[j], &intra)?, params.kd_t)?;
        soft_vcl = (soft_vcl + soft_kl_of_logs(&soft_mine, &teacher, params.kd_t)?)?;
        let across = scores(&own, banks[j], &all)?;
        icl = (icl + contrastive(&across, positives + 1)?)?;
        let back = soften(&scores(&theirs, banks[me], &all)?, params.kd_t)?;
        soft_icl = (soft_icl + soft_kl_of_logs(&soften(&across, params.kd_t)?, &back, params.kd_t)?)?;
    }
    Ok(vec![
        ("vcl", params.alpha, contrastive(&mine, positives)?),
        ("soft_vcl", params.gamma, soft_vcl),
        ("icl", params.beta, icl),
        ("soft_icl", params.lam, soft_icl),
    ])
}
