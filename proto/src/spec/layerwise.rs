//! `[method] name = "l-mcl"`: Layer-wise Mutual Contrastive Learning (Yang et al., TPAMI 2023) and the meta-update that
//! learns how strongly its stages are matched.

use serde::{Deserialize, Serialize};

use super::bank::{BankSpec, read_bank};
use super::method::{NOT_NEGATIVE, POSITIVE};
use super::section::Section;
use super::{OptimSpec, SpecError};
use crate::schema::DType;

/// Width of the features by which stages are matched.
pub const MATCH_DIM: usize = 128;

/// Most inner steps of a meta-update: each costs four exchanges and keeps a copy of all weights until it is
/// differentiated.
const META_TIMES_MAX: u64 = 16;

/// Hyper-parameters of L-MCL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LMclSpec {
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
    /// Whether networks learn from everybody's aggregated logits.
    pub kd: bool,
    /// Whether each pair of stages counts twice, as in the official code.
    pub double: bool,
    /// How stages are matched.
    pub matching: MatchingSpec,
    /// Memory banks, if samples are contrasted with what is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank: Option<BankSpec>,
    /// How matching is learned.
    pub meta: MetaSpec,
}

/// How stages of two networks are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatchingSpec {
    /// All with all, each pair weighted for each sample by a weight network.
    Learned,
    /// All with all, with weight 1.
    Uniform,
    /// Each with the one at its place, counted from the last.
    OneToOne,
}

/// The bilevel update of the weight network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetaSpec {
    /// Steps from one meta-update of an epoch to the next; 0 = never.
    pub freq: u64,
    /// Inner steps, T.
    pub times: u32,
    /// Arithmetic of the meta-update.
    pub precision: MetaPrecision,
    /// Whether the official release's recursion is followed, which adds an adjoint where it should add its product with
    /// the weight decay.
    pub compat_a1: bool,
    /// What a meta-update leaves in the running statistics of batch normalisation.
    pub bn: MetaBatchNorm,
    /// Initial learning rate of the inner steps and of the weight network, under the schedule of `[optim]`.
    pub lr: f64,
    /// Momentum of both.
    pub momentum: f64,
    /// Weight decay of both.
    pub weight_decay: f64,
}

/// Arithmetic of the meta-update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetaPrecision {
    /// Single.
    F32,
    /// Double, which makes the hypergradient a thousand times more exact and its exchanges twice as large.
    F64,
}

impl MetaPrecision {
    /// The element type of what is exchanged in a meta-update.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

/// What a meta-update leaves in the running statistics of batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetaBatchNorm {
    /// One update more with the batch, as the official code does.
    Official,
    /// Nothing.
    None,
}

impl LMclSpec {
    /// Whether any contrastive term has a weight.
    pub fn contrasts(&self) -> bool {
        [self.alpha, self.beta, self.gamma, self.lam].iter().any(|&weight| weight > 0.0)
    }

    /// Whether stages are matched by a weight network, so that matching features are said.
    pub fn learns_matching(&self) -> bool {
        self.contrasts() && self.matching == MatchingSpec::Learned
    }
}

pub(super) fn read_l_mcl(section: &mut Section, optim: &OptimSpec) -> Result<LMclSpec, SpecError> {
    let mut weight = |key, default| -> Result<f64, SpecError> {
        Ok(section.number(key, NOT_NEGATIVE, |weight| weight >= 0.0)?.unwrap_or(default))
    };
    let (alpha, beta) = (weight("alpha", 0.1)?, weight("beta", 0.1)?);
    let (gamma, lam) = (weight("gamma", 1.0)?, weight("lam", 1.0)?);
    let matchings = [
        ("learned", MatchingSpec::Learned),
        ("uniform", MatchingSpec::Uniform),
        ("one-to-one", MatchingSpec::OneToOne),
    ];
    let matching = section.choice("matching", &matchings)?.unwrap_or(MatchingSpec::Learned);
    let contrasts = [alpha, beta, gamma, lam].iter().any(|&weight| weight > 0.0);
    let bank = read_bank(section, contrasts, true)?;
    Ok(LMclSpec {
        alpha,
        beta,
        gamma,
        lam,
        tau: section.number("tau", POSITIVE, |tau| tau > 0.0)?.unwrap_or(0.1),
        kd_t: section.number("kd_t", POSITIVE, |t| t > 0.0)?.unwrap_or(3.0),
        feat_dim: section.whole("feat_dim", 1..=65_536)?.unwrap_or(128) as usize,
        kd: section.flag("kd")?.unwrap_or(true),
        double: section.flag("double")?.unwrap_or(true),
        matching,
        bank,
        meta: read_meta(section, optim, (matching == MatchingSpec::Learned, contrasts))?,
    })
}

fn read_meta(
    section: &mut Section,
    optim: &OptimSpec,
    (learned, contrasts): (bool, bool),
) -> Result<MetaSpec, SpecError> {
    let freq = section.whole("meta_freq", 0..=1_000_000_000)?;
    let needs = match (learned, contrasts) {
        (false, _) => Some("matching = \"learned\""),
        (_, false) => Some("a contrastive weight above 0 (alpha, beta, gamma or lam)"),
        _ => None,
    };
    if let Some(needs) = needs.filter(|_| freq.is_some_and(|freq| freq > 0)) {
        let problem = format!("needs {needs}: without it there is nothing that a meta-update learns");
        return Err(section.error("meta_freq", problem));
    }
    let never = needs.or((freq == Some(0)).then_some("meta_freq above 0"));
    let others = [
        "meta_times",
        "meta_precision",
        "meta_compat_a1",
        "meta_bn",
        "meta_lr",
        "meta_momentum",
        "meta_weight_decay",
    ];
    let idle = others.into_iter().find(|key| section.has(key));
    if let (Some(key), Some(needs)) = (idle, never) {
        let problem = format!("is of meta-updates, of which there are none without {needs}; leave it out");
        return Err(section.error(key, problem));
    }
    let precisions = [("f32", MetaPrecision::F32), ("f64", MetaPrecision::F64)];
    let statistics = [("official", MetaBatchNorm::Official), ("none", MetaBatchNorm::None)];
    let lr = section.number("meta_lr", POSITIVE, |lr| lr > 0.0)?;
    let momentum = section.number("meta_momentum", "0 or greater, and less than 1", |momentum| {
        (0.0..1.0).contains(&momentum)
    })?;
    let weight_decay = section.number("meta_weight_decay", NOT_NEGATIVE, |decay| decay >= 0.0)?;
    Ok(MetaSpec {
        freq: freq.unwrap_or(if never.is_none() { 50 } else { 0 }),
        times: section.whole("meta_times", 1..=META_TIMES_MAX)?.unwrap_or(2) as u32,
        precision: section.choice("meta_precision", &precisions)?.unwrap_or(MetaPrecision::F64),
        compat_a1: section.flag("meta_compat_a1")?.unwrap_or(false),
        bn: section.choice("meta_bn", &statistics)?.unwrap_or(MetaBatchNorm::Official),
        lr: lr.unwrap_or(optim.lr),
        momentum: momentum.unwrap_or(optim.momentum),
        weight_decay: weight_decay.unwrap_or(optim.weight_decay),
    })
}
