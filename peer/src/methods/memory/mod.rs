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
//!
//! In the layer-wise form (Yang et al., TPAMI 2023) every stage of a network is an anchor at the one bank of each
//! network, and the terms, VCL included, are summed over pairs of stages, each weighted by λ for each sample. λ is a
//! constant in a share; in the inner objective of the meta-update it has a gradient, and the terms in which the other
//! network is the anchor count for it.

mod bank;
mod draws;
mod anchor;
mod inner;
mod ops;

pub use bank::{BANK_BYTES_MAX, Bank, Blended};
pub use draws::Draws;
pub use ops::{inner, share};

use candle_core::{Result, Tensor};

use super::{LMclParams, Matching, MclParams};
use anchor::TERMS;

/// What is drawn from banks, and how they remember.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BankParams {
    /// K+.
    pub positives: usize,
    /// K-.
    pub negatives: usize,
    /// How much of a row stays when its sample is seen again.
    pub momentum: f64,
    /// Whether both networks of a pair use the bank of the first within themselves, as in the authors' code of the
    /// layer-wise form (`imagenet_sup_layer_mcl_meta_loss.py` of winycg/L-MCL).
    pub bug: bool,
}

/// Which pairs of embeddings are compared, and how often they count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// One embedding a network.
    Networks,
    /// All stages of networks.
    Stages {
        /// How often a pair counts.
        multiplicity: f64,
        /// Whether a stage is paired with the one at its place only, counted from the last.
        one_to_one: bool,
        /// See [`BankParams::bug`].
        bug: bool,
    },
}

impl Form {
    /// How often a stage k of so many and a stage z of so many count.
    fn multiplicity(self, (k, stages): (usize, usize), (z, others): (usize, usize)) -> f64 {
        match self {
            Self::Networks => 1.0,
            Self::Stages { one_to_one: true, .. } if stages - k != others - z => 0.0,
            Self::Stages { multiplicity, .. } => multiplicity,
        }
    }

    fn confuses_banks(self) -> bool {
        matches!(self, Self::Stages { bug: true, .. })
    }
}

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
    /// What is compared.
    pub form: Form,
}

impl Default for MemoryParams {
    fn default() -> Self {
        Self { alpha: 0.1, beta: 0.1, gamma: 1.0, lam: 1.0, tau: 0.07, kd_t: 3.0, form: Form::Networks }
    }
}

impl MemoryParams {
    /// The parameters of MCL.
    pub fn of_mcl(params: &MclParams) -> Self {
        let MclParams { alpha, beta, gamma, lam, tau, kd_t, .. } = *params;
        Self { alpha, beta, gamma, lam, tau, kd_t, form: Form::Networks }
    }

    /// The parameters of the layer-wise form.
    pub fn of_l_mcl(params: &LMclParams, bank: &BankParams) -> Self {
        let LMclParams { alpha, beta, gamma, lam, tau, kd_t, .. } = *params;
        let one_to_one = params.matching == Matching::OneToOne;
        let form = Form::Stages { multiplicity: params.multiplicity(), one_to_one, bug: bank.bug };
        Self { alpha, beta, gamma, lam, tau, kd_t, form }
    }

    /// In the order of the terms.
    fn weights(&self) -> [f64; TERMS] {
        [self.alpha, self.gamma, self.beta, self.lam]
    }
}

/// A network: its bank as it was before the batch, and the unit rows `[B, E]` that it made of the batch, one for each
/// stage that takes part.
#[derive(Debug, Clone, Copy)]
pub struct Remembered<'a> {
    /// `[N, E]`.
    pub bank: &'a Bank,
    /// In ascending order.
    pub stages: &'a [Tensor],
}

/// What a peer remembers when it looks at a batch: the banks of all networks, and the keys.
#[derive(Debug, Clone)]
pub struct Recall<'a> {
    /// The own bank.
    pub own: &'a Bank,
    /// The banks of the others in ascending index.
    pub others: Vec<&'a Bank>,
    /// The keys.
    pub draws: Draws,
}

impl<'a> Recall<'a> {
    /// The other networks with their banks, given the embeddings of each in ascending index.
    ///
    /// # Errors
    /// Not as many as there are banks.
    pub(super) fn of(&self, stages: impl Iterator<Item = &'a [Tensor]>) -> Result<Vec<Remembered<'a>>> {
        let stages: Vec<&[Tensor]> = stages.collect();
        if stages.len() != self.others.len() {
            candle_core::bail!("{} other networks with {} banks", stages.len(), self.others.len());
        }
        let pairs = self.others.iter().zip(stages);
        Ok(pairs.map(|(bank, stages)| Remembered { bank, stages }).collect())
    }
}
