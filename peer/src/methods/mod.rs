//! Losses as pure functions of tensors, one file each: paper, equation, function.
//!
//! A method couples the networks of a cohort. Each peer minimises its *share*: every term of the sum over all
//! networks that its own tensors enter with a gradient, with the tensors of the others as constants. The gradient of
//! the share is exactly the peer's part of the gradient of the whole sum, because a partial derivative needs the other
//! arguments only by value. The value of a share is therefore not the peer's part of the cohort's loss: terms of a
//! pair are in the shares of both. Each file holds the whole sum as well, as `joint`, for whoever holds all networks.
//!
//! Sums over networks run in ascending index, so that every peer forms the same bits from the same contributions.
//! Nothing here knows a network's layers, a file, a clock or another process.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor};

pub mod primitives;
pub mod cross_entropy;
pub mod dml;
pub mod logit_kd;
pub mod mcl;
pub mod lmcl;
pub mod memory;
pub mod terms;

#[cfg(test)]
mod tests;

pub use dml::{DmlParams, Reduce, Target};
pub use lmcl::{LMclParams, Matching};
pub use logit_kd::Students;
pub use mcl::MclParams;

use cross_entropy::cross_entropy;
use mcl::Scores;
use memory::{BankParams, MemoryParams, Recall, Remembered};

/// The name under which a peer publishes its logits `[B, C]`.
pub const LOGITS: &str = "logits";

/// The name under which a peer publishes the logits `[B, C]` of its last features at one norm.
pub const FN_LOGITS: &str = "fn_logits";

/// The name under which a peer publishes the scores `[B, 1]` of its gate in an ensemble.
pub const SCORE: &str = "score";

/// The name under which a peer publishes its last feature maps `[B, channels, rows, columns]`.
pub const MAP: &str = "map";

/// The name under which a peer publishes the unit embedding `[B, E]` of the k-th stage that has one.
pub fn embedding_name(stage: usize) -> String {
    format!("embed.{stage}")
}

/// The name under which a peer publishes the logits `[B, C]` that its aggregator makes of all stages.
pub const AGGREGATED: &str = "aggregated";

/// The name under which a peer publishes the unit matching feature `[B, 128]` of a stage.
pub fn matching_name(stage: usize) -> String {
    format!("match.{stage}")
}

/// How the networks of a cohort learn from each other.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Not at all: cross-entropy.
    Alone,
    /// Deep Mutual Learning.
    Dml(DmlParams),
    /// Mutual Contrastive Learning.
    Mcl(MclParams),
    /// Layer-wise Mutual Contrastive Learning.
    LMcl(LMclParams),
}

/// What a peer's own network made of the batch, with the graph that made it.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// `[B, C]`.
    pub logits: &'a Tensor,
    /// Unit rows `[B, E]`, one for each stage that has an embedding; MCL uses the first.
    pub embeddings: &'a [Tensor],
    /// `[B, C]` of every stage, the last being `logits`; empty unless the method makes networks expose their stages.
    pub stage_logits: &'a [Tensor],
    /// Unit rows `[B, 128]` of every stage; empty unless the matching of stages is learned.
    pub matching: &'a [Tensor],
    /// `[B, C]`, the stages' logits as the network's aggregator weighs them.
    pub aggregated: Option<&'a Tensor>,
}

impl<'a> Own<'a> {
    /// What a network says that does not expose its stages.
    pub fn new(logits: &'a Tensor, embeddings: &'a [Tensor]) -> Self {
        Self { logits, embeddings, stage_logits: &[], matching: &[], aggregated: None }
    }
}

/// What another network said about the same batch; constants.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The network's index in the cohort.
    pub index: usize,
    /// `[B, C]`, where the method exchanges logits.
    pub logits: Option<Tensor>,
    /// Unit rows `[B, E]`, one for each stage that has an embedding.
    pub embeddings: Vec<Tensor>,
    /// Unit rows `[B, 128]` of every stage, where the matching of stages is learned.
    pub matching: Vec<Tensor>,
    /// `[B, C]`, where the method exchanges the aggregated logits.
    pub aggregated: Option<Tensor>,
    /// `[B, C]`, where somebody learns from the logits of features of one norm.
    pub fn_logits: Option<Tensor>,
    /// `[B, 1]`, where its logits enter a gated ensemble.
    pub score: Option<Tensor>,
    /// `[B, channels, rows, columns]`, where a discriminator compares its maps with others'.
    pub map: Option<Tensor>,
}

impl Heard {
    /// Of a network that has said nothing yet.
    pub fn nothing(index: usize) -> Self {
        Self {
            index,
            logits: None,
            embeddings: Vec::new(),
            matching: Vec::new(),
            aggregated: None,
            fn_logits: None,
            score: None,
            map: None,
        }
    }
}

/// A peer's share of the loss: scalars in f64 for logits in f64, else in f32, computed in more digits than that.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The scalar to differentiate.
    pub total: Tensor,
    /// The terms of the share as they are before their weights, each a scalar: `ce` always; `kl` for DML; `vcl`,
    /// `soft_vcl`, `icl`, `soft_icl` for MCL as far as their weight is not 0; `logit_kd` on the peers that learn from
    /// the ensemble. For L-MCL `ce` is the sum over the stages, `ce_aggregated` and `kl_aggregated` concern the
    /// aggregated logits, and the four contrastive terms are sums over pairs of stages.
    pub named: Vec<(Cow<'static, str>, Tensor)>,
}

impl Method {
    /// The share of network `me` in a cohort of `cohort` networks, for labels `[B]` of any integer dtype.
    ///
    /// `heard` holds the other `cohort - 1` networks in ascending index. Means over the cohort and the choice of the
    /// last network go by these networks. With `cohort = 1` the terms that need another network are absent. `recall` is what
    /// a method with memory banks remembers.
    ///
    /// # Errors
    /// Networks missing, doubled or out of order; a tensor missing that the method exchanges; shapes
    /// that differ from the own ones; labels that are no class; memory banks that the method asks for and are not given, or
    /// that it does not have.
    pub fn loss(
        &self,
        me: usize,
        cohort: usize,
        own: Own<'_>,
        heard: &[Heard],
        labels: &Tensor,
        recall: Option<&Recall<'_>>,
    ) -> Result<Terms> {
        let mut terms = Vec::new();
        if !self.stages() {
            terms.push(("ce", 1.0, cross_entropy(own.logits, labels)?));
        }
        terms.extend(self.coupling(me, cohort, own, heard, labels, recall)?);
        Terms::sum(terms, own.logits.dtype())
    }

    /// The terms of the share that couple network `me` to the others, and, for a method that makes networks expose their
    /// stages, its cross-entropies as well: everything but the plain cross-entropy.
    ///
    /// # Errors
    /// As [`Method::loss`].
    pub fn coupling(
        &self,
        me: usize,
        cohort: usize,
        own: Own<'_>,
        heard: &[Heard],
        labels: &Tensor,
        recall: Option<&Recall<'_>>,
    ) -> Result<Vec<Weighted>> {
        let position = position(me, cohort, heard)?;
        if self.bank().is_some() != recall.is_some() {
            candle_core::bail!("memory banks are for the methods that have them, and for these always");
        }
        Ok(match self {
            Self::Alone => Vec::new(),
            Self::Dml(_) if cohort < 2 => Vec::new(),
            Self::Dml(params) => {
                let logits = logits_of_all(position, own, heard)?;
                vec![("kl", 1.0, dml::mimicry(position, &logits, params)?)]
            }
            Self::Mcl(params) => {
                let mut terms = Vec::new();
                if let Some(recall) = recall {
                    terms.extend(share_of_memory(own, heard, params, recall)?);
                } else if params.contrasts() {
                    let embeddings = embeddings_of_all(position, own, heard, 0)?;
                    terms.extend(Scores::share(position, &embeddings, labels, params)?.terms(params)?);
                }
                if params.logit_kd.include(position, cohort) {
                    let logits = logits_of_all(position, own, heard)?;
                    terms.push(("logit_kd", 1.0, logit_kd::ensemble_kl(position, &logits, params.kd_t)?));
                }
                terms
            }
            Self::LMcl(params) => match recall {
                Some(recall) => lmcl::share_of_memory(position, own, heard, labels, params, recall)?,
                None => lmcl::share(position, own, heard, labels, params)?,
            },
        })
    }

    /// The memory banks of the method, if it has any.
    pub fn bank(&self) -> Option<BankParams> {
        match self {
            Self::Alone | Self::Dml(_) => None,
            Self::Mcl(params) => params.bank,
            Self::LMcl(params) => params.bank,
        }
    }

    /// Whether somebody learns from logits, so that every peer must publish them.
    pub fn says_logits(&self) -> bool {
        match self {
            Self::Alone | Self::LMcl(_) => false,
            Self::Dml(_) => true,
            Self::Mcl(params) => params.logit_kd != Students::Off,
        }
    }

    /// Whether the network must expose its stages: logits and feature of each, and the aggregation of the logits.
    pub fn stages(&self) -> bool {
        matches!(self, Self::LMcl(_))
    }

    /// Whether somebody learns from aggregated logits, so that every peer must publish them.
    pub fn says_aggregated(&self) -> bool {
        matches!(self, Self::LMcl(params) if params.kd)
    }

    /// The width of the matching feature that the network must make of every stage's feature, if any.
    pub fn needs_matching(&self) -> Option<usize> {
        match self {
            Self::LMcl(params) if params.contrasts() && params.matching == Matching::Learned => {
                Some(params.match_dim)
            }
            _ => None,
        }
    }

    /// The width of the embedding that the network must make of its last feature, or of every stage's if it exposes
    /// its stages.
    pub fn needs_embedding(&self) -> Option<usize> {
        match self {
            Self::Alone | Self::Dml(_) => None,
            Self::Mcl(params) => params.contrasts().then_some(params.feat_dim),
            Self::LMcl(params) => params.contrasts().then_some(params.feat_dim),
        }
    }
}

/// A term with its name, its weight and its unweighted scalar.
pub type Weighted = (&'static str, f64, Tensor);

impl Terms {
    /// The weighted sum of named terms, for logits of a type.
    ///
    /// # Errors
    /// No terms, or the device fails.
    pub fn sum<N: Into<Cow<'static, str>>>(
        terms: impl IntoIterator<Item = (N, f64, Tensor)>,
        logits: DType,
    ) -> Result<Self> {
        let dtype = if logits == DType::F64 { DType::F64 } else { DType::F32 };
        let (mut total, mut named) = (None, Vec::new());
        for (name, weight, value) in terms {
            let weighted = (&value * weight)?;
            total = Some(match total {
                Some(sum) => (sum + weighted)?,
                None => weighted,
            });
            named.push((name.into(), value.to_dtype(dtype)?));
        }
        let Some(total) = total else { candle_core::bail!("a loss needs at least one term") };
        Ok(Self { total: total.to_dtype(dtype)?, named })
    }
}

/// The contrastive terms of MCL at memory banks.
fn share_of_memory(
    own: Own<'_>,
    heard: &[Heard],
    params: &MclParams,
    recall: &Recall<'_>,
) -> Result<Vec<Weighted>> {
    let first = |stages: &'_ [Tensor]| stages.len().min(1);
    let theirs = recall.of(heard.iter().map(|other| &other.embeddings[..first(&other.embeddings)]))?;
    let own = Remembered { bank: recall.own, stages: &own.embeddings[..first(own.embeddings)] };
    memory::share(own, &theirs, &recall.draws, &MemoryParams::of_mcl(params), None)
}

/// The place of network `me` among all of them, after checking that the others are who they should be.
fn position(me: usize, cohort: usize, heard: &[Heard]) -> Result<usize> {
    if heard.len() + 1 != cohort {
        candle_core::bail!(
            "a cohort of {cohort} networks needs {} others, heard {}",
            cohort.max(1) - 1,
            heard.len()
        );
    }
    if let Some(pair) = heard.windows(2).find(|pair| pair[0].index >= pair[1].index) {
        candle_core::bail!("network {} was heard after network {}", pair[1].index, pair[0].index);
    }
    if heard.iter().any(|other| other.index == me) {
        candle_core::bail!("network {me} heard itself");
    }
    Ok(heard.iter().filter(|other| other.index < me).count())
}

/// Everybody's logits in ascending index, the own ones with their graph.
fn logits_of_all(position: usize, own: Own<'_>, heard: &[Heard]) -> Result<Vec<Tensor>> {
    let others = heard.iter().map(|other| (other.index, other.logits.as_ref()));
    in_order(position, own.logits, others, LOGITS)
}

/// Everybody's embedding of one stage in ascending index, the own one with its graph.
fn embeddings_of_all(position: usize, own: Own<'_>, heard: &[Heard], stage: usize) -> Result<Vec<Tensor>> {
    let name = embedding_name(stage);
    let Some(mine) = own.embeddings.get(stage) else {
        candle_core::bail!("the own network made no {name}");
    };
    let others = heard.iter().map(|other| (other.index, other.embeddings.get(stage)));
    in_order(position, mine, others, &name)
}

fn in_order<'a>(
    position: usize,
    own: &Tensor,
    others: impl Iterator<Item = (usize, Option<&'a Tensor>)>,
    name: &str,
) -> Result<Vec<Tensor>> {
    let mut all = Vec::new();
    for (index, tensor) in others {
        let Some(tensor) = tensor else {
            candle_core::bail!("network {index} did not say {name}");
        };
        if tensor.dims() != own.dims() {
            candle_core::bail!(
                "{name} of network {index} is {:?}, the own is {:?}",
                tensor.dims(),
                own.dims()
            );
        }
        all.push(tensor.to_device(own.device())?.detach());
    }
    all.insert(position, own.clone());
    Ok(all)
}
