//! The cohort as a directed graph: an edge carries knowledge from a source peer to a target peer through one term of the
//! target's loss, with a weight, a schedule and a gate. An edge from a peer to itself is a local term.
//!
//! Most methods are nothing but edges. Three are more than the sum of theirs and stay whole, as the *coupling* of a run:
//! `dml`, `mcl` and `l-mcl` ([`MethodSpec`]), of which a peer minimises its share with the sources that it has in the
//! coupling. Presets expand into edges ([`preset`]), `[[edge]]` tables replace or extend them ([`read`]), what makes no
//! sense is refused ([`check`]), and the result can be shown ([`show`]). Whoever needs to know what travels where asks
//! here: what a peer says follows from the edges that leave it, whom it follows from those that reach it.

mod term;
mod read;
mod preset;
mod topology;
mod check;
mod show;

pub use preset::Preset;
pub use show::{EdgeView, GraphView};
pub use term::{FN_LOGITS, FnForm, KdclTarget, LOGITS, MAP, SCORE, TermSpec};
pub use topology::Topology;

pub(super) use read::{Couplings, read_graph};

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{MethodSpec, Role, RunSpec, last_map_of};
use crate::meta::HELD_OUT;

/// One edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EdgeSpec {
    /// The index of the peer that is learned from; of the target itself for a local term.
    pub from: usize,
    /// The index of the peer that learns.
    pub to: usize,
    /// What it adds to the target's loss.
    #[serde(flatten)]
    pub term: TermSpec,
    /// The factor of the term.
    pub weight: f64,
    /// How the factor changes while the run goes on.
    pub schedule: WeightSchedule,
    /// Which samples' terms pass.
    pub gate: Gate,
    /// In which generations it is there.
    #[serde(default, skip_serializing_if = "When::is_always")]
    pub when: When,
}

/// In which generations an edge is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// In all.
    #[default]
    Always,
    /// In the first, which has no teacher from before.
    First,
    /// In all but the first.
    Later,
}

impl When {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_always(&self) -> bool {
        *self == Self::Always
    }

    /// Whether that is so in a generation, counted from 0.
    pub fn includes(self, generation: u64) -> bool {
        match self {
            Self::Always => true,
            Self::First => generation == 0,
            Self::Later => generation > 0,
        }
    }
}

/// How the weight of an edge changes while the run goes on. Steps k and epochs e count from 0, K and E are their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightSchedule {
    /// Not at all.
    Constant,
    /// (k + 1) / K.
    Linear,
    /// min((e + 1) / epochs, 1).
    WarmUp(u64),
    /// (e + 1) / E.
    Progressive,
}

/// What passes an edge (Knowledge Transfer Graph, Minami et al., ACCV 2020, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Everything.
    Through,
    /// Nothing: the edge is as good as absent.
    Cutoff,
    /// Everything, times (k + 1) / K.
    Linear,
    /// Everything, times 1 - (k + 1) / K.
    NegativeLinear,
    /// The samples that the source classifies correctly; the divisor stays the whole batch.
    Correct,
}

impl EdgeSpec {
    /// An edge with weight 1 that lets everything pass at all times.
    pub fn plain(from: usize, to: usize, term: TermSpec) -> Self {
        let (schedule, gate, when) = (WeightSchedule::Constant, Gate::Through, When::Always);
        Self { from, to, term, weight: 1.0, schedule, gate, when }
    }

    /// The same with another weight.
    pub fn weighing(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    /// The same in some generations only.
    pub fn only(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// Whether it comes from the target itself: a term of its own, or one of its past.
    pub fn is_local(&self) -> bool {
        self.from == self.to
    }

    /// The tensors that the source says for it: those of its term, the logits by which a gate goes, and those of held-out
    /// samples. None if it is closed, or its two ends are one.
    pub fn says(&self) -> Vec<&'static str> {
        if !self.is_open() || self.is_local() {
            return Vec::new();
        }
        let mut names = self.term.says().to_vec();
        let gated = self.gate == Gate::Correct && !matches!(self.term, TermSpec::Afd { .. });
        names.extend((gated && !names.contains(&LOGITS)).then_some(LOGITS));
        let weighs = matches!(self.term, TermSpec::Kdcl { target: KdclTarget::General, .. });
        names.extend(weighs.then_some(HELD_OUT));
        names
    }

    /// Whether the target learns from what it was in the generation before.
    pub fn is_of_the_past(&self) -> bool {
        self.is_local() && !self.term.is_local()
    }

    /// Whether anything ever passes it.
    pub fn is_open(&self) -> bool {
        self.gate != Gate::Cutoff && self.weight > 0.0
    }
}

impl RunSpec {
    /// Whether a peer takes part in the coupling, as a source or as a target.
    pub fn is_coupled(&self, index: usize) -> bool {
        match &self.links {
            _ if self.method == MethodSpec::Alone => false,
            None => index < self.peers.len(),
            Some(links) => links.iter().any(|(from, to)| *from == index || *to == index),
        }
    }

    /// Whether any peer has another's words in its share of the coupling.
    pub fn is_coupling_source(&self, source: usize) -> bool {
        match &self.links {
            _ if self.method == MethodSpec::Alone => false,
            None => self.peers.len() > 1 && source < self.peers.len(),
            Some(links) => links.iter().any(|(from, to)| *from == source && *to != source),
        }
    }

    /// Whether every peer has the words of every other in its share of the coupling.
    pub(in crate::spec) fn couples_all(&self) -> bool {
        let peers = self.peers.len();
        let whole = |links: &BTreeSet<(usize, usize)>| {
            links.iter().filter(|(from, to)| from != to).count() == peers * peers.saturating_sub(1)
        };
        peers < 2 || (self.method != MethodSpec::Alone && self.links.as_ref().is_none_or(whole))
    }

    /// The indices of the peers whose words enter a peer's share of the coupling, ascending.
    pub fn coupling_sources(&self, target: usize) -> Vec<usize> {
        let others = || (0..self.peers.len()).filter(|source| *source != target);
        match (&self.method, &self.links) {
            (MethodSpec::Alone, _) => Vec::new(),
            (_, None) => others().collect(),
            (_, Some(links)) => others().filter(|source| links.contains(&(*source, target))).collect(),
        }
    }

    /// The open edges that reach a peer, those of its own terms included.
    pub fn edges_to(&self, target: usize) -> impl Iterator<Item = &EdgeSpec> {
        self.into(target).iter().filter(|edge| edge.is_open())
    }

    /// All edges that reach a peer: they stand together.
    fn into(&self, target: usize) -> &[EdgeSpec] {
        let from = self.edges.partition_point(|edge| edge.to < target);
        let until = self.edges.partition_point(|edge| edge.to <= target);
        self.edges.get(from..until).unwrap_or_default()
    }

    /// The open edges that leave a peer for others.
    pub fn edges_from(&self, source: usize) -> impl Iterator<Item = &EdgeSpec> {
        self.edges.iter().filter(move |edge| edge.from == source && !edge.is_local() && edge.is_open())
    }

    /// The indices of all peers that a peer learns from, ascending: whose logs it follows, and whom it waits for.
    pub fn sources(&self, target: usize) -> BTreeSet<usize> {
        let edges = self.edges_to(target).filter(|edge| !edge.is_local()).map(|edge| edge.from);
        edges.chain(self.coupling_sources(target)).collect()
    }

    /// Whether every peer learns from every other, or nobody from anybody: then all wait for the same peers.
    pub fn is_uniform(&self) -> bool {
        let count = |target| self.sources(target).len();
        let all = |wanted: usize| (0..self.peers.len()).all(|target| count(target) == wanted);
        all(0) || all(self.peers.len().saturating_sub(1))
    }

    /// Channels, rows and columns of the maps that a peer says or learns from others' maps by, if it does: its own last map,
    /// through a layer to the common number of channels unless it has that. That is the least of all such peers, or what
    /// the edges say.
    pub fn map_of(&self, index: usize) -> Option<[usize; 3]> {
        let of = |index: usize| {
            let arch = self.peers.get(index).map_or("", |peer| peer.arch.as_str());
            last_map_of(arch, self.data.dataset.side())
        };
        let edges = || {
            let open = self.edges.iter().filter(|edge| edge.is_open());
            open.filter(|edge| matches!(edge.term, TermSpec::Afd { .. }))
        };
        edges().find(|edge| edge.from == index || edge.to == index)?;
        let said = edges().find_map(|edge| match edge.term {
            TermSpec::Afd { channels, .. } => channels,
            _ => None,
        });
        let least = edges().flat_map(|edge| [edge.from, edge.to]).map(|index| of(index).0).min()?;
        let side = of(index).1;
        Some([said.unwrap_or(least), side, side])
    }

    /// Whether a peer learns at all.
    pub(in crate::spec) fn is_student(&self, index: usize) -> bool {
        self.peers.get(index).is_some_and(|peer| peer.role == Role::Student)
    }

    /// Whether a peer has the plain cross-entropy with weight 1 without an edge that says so: none of its edges is of
    /// labels, and its coupling has no cross-entropies of its own.
    pub fn has_plain_ce(&self, target: usize) -> bool {
        self.is_student(target) && !matches!(self.method, MethodSpec::LMcl(_)) && !self.is_relabelled(target)
    }

    /// Whether a term of labels stands in the place of a peer's cross-entropy.
    pub fn is_relabelled(&self, target: usize) -> bool {
        self.edges.iter().any(|edge| edge.to == target && edge.term.is_of_labels())
    }

    /// What people call the method.
    pub fn method_name(&self) -> &'static str {
        self.preset.map_or(self.method.name(), Preset::name)
    }
}
