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
//! network, and the terms, VCL included, are summed over pairs of stages.

mod bank;
mod draws;
mod anchor;

pub use bank::{BANK_BYTES_MAX, Bank, Blended};
pub use draws::Draws;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::primitives::zero;
use super::{LMclParams, Matching, MclParams, Weighted};
use anchor::{Problem, Remembering, TERMS};

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
    /// The weight of a stage k of so many and a stage z of so many.
    fn weight(self, (k, stages): (usize, usize), (z, others): (usize, usize)) -> f64 {
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
    ///
    /// # Errors
    /// If the matching is learned: it is not known here.
    pub fn of_l_mcl(params: &LMclParams, bank: &BankParams) -> Result<Self> {
        if params.matching == Matching::Learned {
            candle_core::bail!("stages are not matched by a learned weight at memory banks");
        }
        let LMclParams { alpha, beta, gamma, lam, tau, kd_t, .. } = *params;
        let one_to_one = params.matching == Matching::OneToOne;
        let form = Form::Stages { multiplicity: params.multiplicity(), one_to_one, bug: bank.bug };
        Ok(Self { alpha, beta, gamma, lam, tau, kd_t, form })
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

/// The share of a network: `vcl`, `soft_vcl`, `icl`, `soft_icl` as far as they have a weight, unweighted scalars.
///
/// `others` holds the other networks in ascending index. Only the own stages receive a gradient. Computed on the
/// processor, wherever the embeddings are.
///
/// # Errors
/// Shapes that differ; draws of samples that the banks do not hold.
pub fn share(
    own: Remembered<'_>,
    others: &[Remembered<'_>],
    draws: &Draws,
    params: &MemoryParams,
) -> Result<Vec<Weighted>> {
    let Some(first) = own.stages.first() else {
        candle_core::bail!("a network without embeddings has nothing to contrast with memory");
    };
    let zero = zero(first)?;
    let here = |v: &Tensor| v.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let stages = own.stages.iter().map(here).collect::<Result<Vec<_>>>()?;
    let problem = Problem {
        own: remembering(own, draws)?,
        others: others.iter().map(|other| remembering(*other, draws)).collect::<Result<_>>()?,
        draws,
        params,
    };
    let terms = Tensor::stack(&stages, 0)?.apply_op1(computed(&problem)?)?;
    let named = ["vcl", "soft_vcl", "icl", "soft_icl"].into_iter().zip(params.weights()).enumerate();
    let named = named.filter(|(_, (_, weight))| *weight != 0.0);
    let scalar = |t: usize| terms.get(t)?.to_dtype(zero.dtype())?.to_device(zero.device());
    named.map(|(t, (name, weight))| Ok((name, weight, scalar(t)?))).collect()
}

fn remembering<'a>(network: Remembered<'a>, draws: &Draws) -> Result<Remembering<'a>> {
    let mut stages = Vec::with_capacity(network.stages.len());
    for v in network.stages {
        if v.dims() != [draws.batch(), network.bank.width()] {
            let (batch, width) = (draws.batch(), network.bank.width());
            candle_core::bail!("embeddings {:?} of {batch} anchors at a bank of width {width}", v.dims());
        }
        stages.push(v.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?);
    }
    Ok(Remembering { bank: network.bank, stages })
}

/// The terms `[4]` as an operation on the own embeddings `[S, B, E]`; both are known when it is made.
struct Computed {
    values: [f64; TERMS],
    gradients: Vec<Tensor>,
}

fn computed(problem: &Problem<'_>) -> Result<Computed> {
    let batch = problem.draws.batch();
    let (stages, width) = (problem.own.stages.len(), problem.own.bank.width());
    let found = (0..batch).into_par_iter().map(|n| problem.anchor(n)).collect::<Result<Vec<_>>>()?;
    let mut values = [0.0; TERMS];
    let mut gradients = [(); TERMS].map(|()| Vec::with_capacity(stages * batch * width));
    for (t, (value, gradient)) in values.iter_mut().zip(&mut gradients).enumerate() {
        *value = found.iter().map(|anchor| anchor.values[t]).sum();
        for stage in 0..stages {
            found.iter().for_each(|anchor| gradient.extend_from_slice(&anchor.gradients[t][stage]));
        }
    }
    let tensor = |gradient| Tensor::from_vec(gradient, (stages, batch, width), &Device::Cpu);
    Ok(Computed { values, gradients: gradients.into_iter().map(tensor).collect::<Result<_>>()? })
}

impl CustomOp1 for Computed {
    fn name(&self) -> &'static str {
        "cohort-memory-terms"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F64(self.values.to_vec()), Shape::from(TERMS)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.to_vec1::<f64>()?;
        let mut sum: Option<Tensor> = None;
        for (dy, gradient) in dy.iter().zip(&self.gradients) {
            let part = (gradient * *dy)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok(sum)
    }
}
