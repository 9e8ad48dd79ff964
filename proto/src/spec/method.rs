//! `[method]`: a preset and its hyper-parameters. Those of L-MCL are in [`super::layerwise`].

use serde::{Deserialize, Serialize};

use super::bank::{BankSpec, read_bank};
use super::layerwise::{LMclSpec, read_l_mcl};
use super::section::Section;
use super::{OptimSpec, SpecError};

/// `[method]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum MethodSpec {
    /// Each by itself: cross-entropy.
    Alone,
    /// Deep Mutual Learning.
    Dml(DmlSpec),
    /// Mutual Contrastive Learning.
    Mcl(MclSpec),
    /// Layer-wise Mutual Contrastive Learning.
    LMcl(LMclSpec),
}

/// Hyper-parameters of DML (Zhang et al., CVPR 2018).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DmlSpec {
    /// Temperature of the KL terms.
    pub t: f64,
    /// How the terms of several sources combine.
    pub reduce: DmlReduce,
    /// What a network is pulled to.
    pub target: DmlTarget,
}

/// How DML's terms of several sources combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DmlReduce {
    /// Their mean, as in the paper.
    Mean,
    /// Their sum, as in the official code.
    Sum,
}

/// What a DML network is pulled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DmlTarget {
    /// Each of the others.
    Each,
    /// The mean of the others' probabilities.
    Ensemble,
}

/// Hyper-parameters of MCL (Yang et al., AAAI 2022).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MclSpec {
    /// Weight of VCL.
    pub alpha: f64,
    /// Weight of ICL.
    pub beta: f64,
    /// Weight of soft VCL.
    pub gamma: f64,
    /// Weight of soft ICL.
    pub lam: f64,
    /// Contrastive temperature.
    pub tau: f64,
    /// Temperature of the KL terms.
    pub kd_t: f64,
    /// Width of the embeddings.
    pub feat_dim: usize,
    /// Who learns from the ensemble of logits.
    pub logit_kd: LogitKd,
    /// Memory banks, if samples are contrasted with what is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank: Option<BankSpec>,
}

/// Who learns from the ensemble of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogitKd {
    /// Nobody.
    Off,
    /// As the official code: both of two networks, the last of more.
    Last,
    /// Every network.
    All,
}

impl MethodSpec {
    /// Reads the keys of a coupling; `None` if the name is of none.
    pub(super) fn read(
        name: &str,
        section: &mut Section,
        optim: &OptimSpec,
    ) -> Result<Option<Self>, SpecError> {
        Ok(Some(match name {
            "alone" => Self::Alone,
            "dml" => Self::Dml(read_dml(section)?),
            "mcl" => Self::Mcl(read_mcl(section)?),
            "l-mcl" => Self::LMcl(read_l_mcl(section, optim)?),
            _ => return Ok(None),
        }))
    }

    /// What run.toml calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Dml(_) => "dml",
            Self::Mcl(_) => "mcl",
            Self::LMcl(_) => "l-mcl",
        }
    }

    /// Whether it contrasts embeddings.
    pub fn contrasts(&self) -> bool {
        match self {
            Self::Alone | Self::Dml(_) => false,
            Self::Mcl(mcl) => [mcl.alpha, mcl.beta, mcl.gamma, mcl.lam].iter().any(|&weight| weight > 0.0),
            Self::LMcl(l_mcl) => l_mcl.contrasts(),
        }
    }

    /// Whether it contrasts the samples of a batch with each other, and so needs several of a class in it.
    pub fn contrasts_in_batches(&self) -> bool {
        let remembers = match self {
            Self::Alone | Self::Dml(_) => false,
            Self::Mcl(mcl) => mcl.bank.is_some(),
            Self::LMcl(l_mcl) => l_mcl.bank.is_some(),
        };
        self.contrasts() && !remembers
    }
}

pub(super) const POSITIVE: &str = "greater than 0";
pub(super) const NOT_NEGATIVE: &str = "0 or greater";

fn read_dml(section: &mut Section) -> Result<DmlSpec, SpecError> {
    let reduce = section.choice("reduce", &[("mean", DmlReduce::Mean), ("sum", DmlReduce::Sum)])?;
    let target = section.choice("target", &[("each", DmlTarget::Each), ("ensemble", DmlTarget::Ensemble)])?;
    if reduce.is_some() && target == Some(DmlTarget::Ensemble) {
        let problem = "combines the terms of several sources, and with target = \"ensemble\" there is one; leave it out";
        return Err(section.error("reduce", problem));
    }
    Ok(DmlSpec {
        t: section.number("t", POSITIVE, |t| t > 0.0)?.unwrap_or(1.0),
        reduce: reduce.unwrap_or(DmlReduce::Mean),
        target: target.unwrap_or(DmlTarget::Each),
    })
}

fn read_mcl(section: &mut Section) -> Result<MclSpec, SpecError> {
    let mut weight = |key, default| -> Result<f64, SpecError> {
        Ok(section.number(key, NOT_NEGATIVE, |weight| weight >= 0.0)?.unwrap_or(default))
    };
    let (alpha, beta) = (weight("alpha", 0.1)?, weight("beta", 0.1)?);
    let (gamma, lam) = (weight("gamma", 1.0)?, weight("lam", 1.0)?);
    let contrasts = [alpha, beta, gamma, lam].iter().any(|&weight| weight > 0.0);
    let bank = read_bank(section, contrasts, false)?;
    let choices = [("off", LogitKd::Off), ("last", LogitKd::Last), ("all", LogitKd::All)];
    Ok(MclSpec {
        alpha,
        beta,
        gamma,
        lam,
        tau: section.number("tau", POSITIVE, |tau| tau > 0.0)?.unwrap_or(0.1),
        kd_t: section.number("kd_t", POSITIVE, |t| t > 0.0)?.unwrap_or(3.0),
        feat_dim: section.whole("feat_dim", 1..=65_536)?.unwrap_or(128) as usize,
        logit_kd: section.choice("logit_kd", &choices)?.unwrap_or(LogitKd::Last),
        bank,
    })
}
