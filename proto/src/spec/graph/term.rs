//! What an edge adds to the loss of its target, with hyper-parameters and defaults. The functions are the peer's:
//! `peer/src/methods` has a file for each, with paper and equations.

use serde::{Deserialize, Serialize};

use super::super::SpecError;
use super::super::method::{NOT_NEGATIVE, POSITIVE};
use super::super::section::{Section, unknown_word};

/// One term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "term")]
pub enum TermSpec {
    /// Cross-entropy with the labels.
    Ce,
    /// Cross-entropy with smoothed labels.
    LabelSmoothing {
        /// What is spread over all classes.
        epsilon: f64,
    },
    /// The same, with more for the classes of the label's group.
    AnisotropicLabelSmoothing {
        /// What is spread over all classes.
        epsilon1: f64,
        /// What is spread over the group.
        epsilon2: f64,
        /// The group of each class.
        groups: Vec<u32>,
    },
    /// The negative entropy of the prediction, beside its cross-entropy.
    ConfidencePenalty {
        /// The entropy from which on nothing is penalised, in the hinge form.
        hinge: Option<f64>,
    },
    /// Cross-entropy of features that are scaled to one norm.
    Hypersphere {
        /// That norm.
        radius: f64,
    },
    /// Cross-entropy with labels that are mixed with the network's own predictions of the epoch before.
    PsKd {
        /// Their part in the last epoch; it grows linearly up to that.
        alpha: f64,
    },
    /// The gap between the largest score and the next ones, for a teacher that is to be tolerant.
    Tolerant {
        /// How many scores are looked at.
        k: usize,
    },
    /// Softened KL divergence from a teacher's prediction.
    Kd {
        /// Temperature.
        t: f64,
    },
    /// The same under the name that it has between students.
    Kl {
        /// Temperature.
        t: f64,
    },
    /// Decoupled KD.
    Dkd {
        /// Weight of the target class's part.
        alpha: f64,
        /// Weight of the other classes' part.
        beta: f64,
        /// Temperature.
        t: f64,
        /// Epochs until both have their full weight.
        warmup: u64,
    },
    /// KD of logits whose features are normalised.
    KdFn {
        /// The norm.
        tau: f64,
        /// What happens to shorter features.
        form: FnForm,
    },
    /// KL divergence from the mean of the logits of all sources of this term and the target's own.
    LogitKd {
        /// Temperature.
        t: f64,
    },
    /// KL divergence from a target made of the logits of all sources of this term and the target's own.
    Kdcl {
        /// Temperature.
        t: f64,
        /// How it is made.
        target: KdclTarget,
    },
    /// Cross-entropy of an ensemble in which a gate of each member weighs its logits, one term of all members, and the KL
    /// divergence from it.
    One {
        /// Temperature of the divergence.
        t: f64,
        /// Epochs until the divergence has its full weight.
        ramp: u64,
    },
    /// Feature maps that a discriminator cannot tell from the source's.
    Afd {
        /// The common channels of all maps; the least that a network of the run has, if this is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
        /// The rate at which the network learns from the discriminator.
        lr_g: f64,
        /// That of the discriminator.
        lr_d: f64,
    },
}

/// What feature-normalised KD does to features shorter than the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FnForm {
    /// They stay as they are (official code).
    Clip,
    /// They are stretched (paper).
    Paper,
}

/// How KDCL makes its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KdclTarget {
    /// Each class's least logit above that of the label.
    MinLogit,
    /// For each sample the network with the least cross-entropy.
    Naive,
    /// For each sample the mixture with the least cross-entropy.
    Linear,
    /// One mixture for all samples of an epoch, by errors on held-out samples.
    General,
    /// The mean of the logits.
    Mean,
}

const UNIT: &str = "0 to 1";

impl TermSpec {
    /// All that an edge may name, the couplings apart.
    pub(super) const NAMES: [&str; 15] = [
        "ce",
        "label-smoothing",
        "anisotropic-label-smoothing",
        "confidence-penalty",
        "hypersphere",
        "ps-kd",
        "tolerant",
        "kd",
        "kl",
        "dkd",
        "kd-fn",
        "logit-kd",
        "kdcl",
        "one",
        "afd",
    ];

    /// Reads the hyper-parameters of a term from the table that names it.
    pub(super) fn read(name: &str, section: &mut Section) -> Result<Self, SpecError> {
        let positive = |section: &mut Section, key, default| -> Result<f64, SpecError> {
            Ok(section.number(key, POSITIVE, |x| x > 0.0)?.unwrap_or(default))
        };
        let unit = |section: &mut Section, key, default| -> Result<f64, SpecError> {
            Ok(section.number(key, UNIT, |x| (0.0..=1.0).contains(&x))?.unwrap_or(default))
        };
        let weight = |section: &mut Section, key, default| -> Result<f64, SpecError> {
            Ok(section.number(key, NOT_NEGATIVE, |x| x >= 0.0)?.unwrap_or(default))
        };
        Ok(match name {
            "ce" => Self::Ce,
            "label-smoothing" => Self::LabelSmoothing { epsilon: unit(section, "epsilon", 0.1)? },
            "anisotropic-label-smoothing" => {
                let (epsilon1, epsilon2) =
                    (unit(section, "epsilon1", 0.2)?, unit(section, "epsilon2", 0.02)?);
                if epsilon1 + epsilon2 > 1.0 {
                    let problem =
                        format!("is {epsilon2}; with epsilon1 = {epsilon1} it would be more than 1");
                    return Err(section.error("epsilon2", problem));
                }
                Self::AnisotropicLabelSmoothing { epsilon1, epsilon2, groups: read_groups(section)? }
            }
            "confidence-penalty" => {
                Self::ConfidencePenalty { hinge: section.number("hinge", POSITIVE, |x| x > 0.0)? }
            }
            "hypersphere" => Self::Hypersphere { radius: positive(section, "radius", 16.0)? },
            "ps-kd" => Self::PsKd { alpha: unit(section, "alpha", 0.8)? },
            "tolerant" => Self::Tolerant { k: section.whole("k", 2..=65_536)?.unwrap_or(5) as usize },
            "kd" => Self::Kd { t: positive(section, "t", 4.0)? },
            "kl" => Self::Kl { t: positive(section, "t", 1.0)? },
            "dkd" => Self::Dkd {
                alpha: weight(section, "alpha", 1.0)?,
                beta: weight(section, "beta", 8.0)?,
                t: positive(section, "t", 4.0)?,
                warmup: section.whole("warmup", 1..=1_000_000)?.unwrap_or(20),
            },
            "kd-fn" => {
                let form = section.choice("form", &[("clip", FnForm::Clip), ("paper", FnForm::Paper)])?;
                Self::KdFn { tau: positive(section, "tau", 2.0)?, form: form.unwrap_or(FnForm::Clip) }
            }
            "logit-kd" => Self::LogitKd { t: positive(section, "t", 3.0)? },
            "kdcl" => {
                let targets = [
                    ("minlogit", KdclTarget::MinLogit),
                    ("naive", KdclTarget::Naive),
                    ("linear", KdclTarget::Linear),
                    ("general", KdclTarget::General),
                    ("mean", KdclTarget::Mean),
                ];
                let target = section.choice("target", &targets)?.unwrap_or(KdclTarget::MinLogit);
                Self::Kdcl { t: positive(section, "t", 2.0)?, target }
            }
            "afd" => Self::Afd {
                channels: section.whole("channels", 1..=1024)?.map(|channels| channels as usize),
                lr_g: positive(section, "lr_g", 2e-5)?,
                lr_d: positive(section, "lr_d", 2e-4)?,
            },
            "one" => {
                let t = positive(section, "t", 3.0)?;
                Self::One { t, ramp: section.whole("ramp", 0..=1_000_000)?.unwrap_or(80) }
            }
            _ => return Err(unknown_term(section, name)),
        })
    }

    /// What a run.toml calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::LabelSmoothing { .. } => "label-smoothing",
            Self::AnisotropicLabelSmoothing { .. } => "anisotropic-label-smoothing",
            Self::ConfidencePenalty { .. } => "confidence-penalty",
            Self::Hypersphere { .. } => "hypersphere",
            Self::PsKd { .. } => "ps-kd",
            Self::Tolerant { .. } => "tolerant",
            Self::Kd { .. } => "kd",
            Self::Kl { .. } => "kl",
            Self::Dkd { .. } => "dkd",
            Self::KdFn { .. } => "kd-fn",
            Self::LogitKd { .. } => "logit-kd",
            Self::Kdcl { .. } => "kdcl",
            Self::One { .. } => "one",
            Self::Afd { .. } => "afd",
        }
    }

    /// Whether it is a term of the target alone.
    pub fn is_local(&self) -> bool {
        self.is_of_labels() || matches!(self, Self::Tolerant { .. } | Self::ConfidencePenalty { .. })
    }

    /// Whether it is a cross-entropy with labels of some form, and so stands in the place of the plain one.
    pub fn is_of_labels(&self) -> bool {
        match self {
            Self::Ce
            | Self::LabelSmoothing { .. }
            | Self::AnisotropicLabelSmoothing { .. }
            | Self::Hypersphere { .. }
            | Self::PsKd { .. } => true,
            Self::ConfidencePenalty { .. }
            | Self::Tolerant { .. }
            | Self::Kd { .. }
            | Self::Kl { .. }
            | Self::Dkd { .. }
            | Self::KdFn { .. }
            | Self::LogitKd { .. }
            | Self::Kdcl { .. }
            | Self::One { .. }
            | Self::Afd { .. } => false,
        }
    }

    /// Whether all edges of this term into a peer are one term of its loss.
    pub fn is_of_ensembles(&self) -> bool {
        matches!(self, Self::LogitKd { .. } | Self::Kdcl { .. } | Self::One { .. })
    }

    /// Whether it can be learned from the generation before.
    pub(super) fn looks_back(&self) -> bool {
        matches!(self, Self::Kd { .. } | Self::Kl { .. } | Self::Dkd { .. } | Self::KdFn { .. })
    }

    /// The weight that an edge has unless it says another: the published one.
    pub(super) fn default_weight(&self) -> f64 {
        match self {
            Self::ConfidencePenalty { .. } => 0.1,
            Self::KdFn { .. } => 9.0,
            _ => 1.0,
        }
    }

    /// The tensors that the source says for it.
    pub fn says(&self) -> &'static [&'static str] {
        match self {
            _ if self.is_local() => &[],
            Self::KdFn { .. } => &[FN_LOGITS],
            Self::One { .. } => &[LOGITS, SCORE],
            Self::Afd { .. } => &[MAP],
            _ => &[LOGITS],
        }
    }
}

/// The name of logits `[B, C]` in contributions.
pub const LOGITS: &str = "logits";
/// The name of the logits `[B, C]` of features of one norm, which feature-normalised KD learns from.
pub const FN_LOGITS: &str = "fn_logits";
/// The name of the scores `[B, 1]` that a network's gate gives it in an ensemble.
pub const SCORE: &str = "score";
/// The name of the last feature maps `[B, channels, rows, columns]` at the common number of channels.
pub const MAP: &str = "map";

fn read_groups(section: &mut Section) -> Result<Vec<u32>, SpecError> {
    let hint = "write the group of each class, such as groups = [0, 0, 1, 1]";
    section.wholes("groups")?.ok_or_else(|| section.missing("groups", hint))
}

/// Says that no term is called that.
fn unknown_term(section: &Section, name: &str) -> SpecError {
    let names: Vec<&str> = TermSpec::NAMES.iter().copied().chain(super::read::COUPLINGS).collect();
    section.error("term", unknown_word(name, &names))
}
