//! What one peer minimises besides its share of the coupling: its own terms, and one for every edge that reaches it.

use std::collections::BTreeSet;

use candle_core::{Result, Tensor};
use cohort_proto::spec::{EdgeSpec, FnForm, KdclTarget, RunSpec, TermSpec, WeightSchedule, When};

use super::{Additions, Outputs};
use crate::methods::terms::gate::{Gate, Moment, gated_mean};
use crate::methods::terms::kd_fn::{Form, KdFnParams};
use crate::methods::terms::kdcl::{KdclParams, Target};
use crate::methods::terms::ps_kd::PsKdParams;
use crate::methods::terms::{
    anisotropic, confidence_penalty, dkd, hypersphere, kd, kd_fn, kdcl, label_smoothing, ps_kd, tsd,
};
use crate::methods::{Heard, cross_entropy};

/// One peer's place in the graph of a run.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Whether the plain cross-entropy with weight 1 is among its terms.
    pub plain_ce: bool,
    /// Those whose words enter its share of the coupling; all that are heard, if this is not said.
    pub coupled: Option<BTreeSet<usize>>,
    /// The names of what it says; whatever the method says, if this is not said.
    pub says: Option<BTreeSet<String>>,
    terms: Vec<NodeTerm>,
}

/// One term, with the edges that are it.
#[derive(Debug, Clone)]
struct NodeTerm {
    /// As reports call it: the term, and the source's name if there is one.
    name: String,
    /// The index of the peer itself.
    target: usize,
    /// By ascending index; none for a term of one's own.
    sources: Vec<usize>,
    term: TermSpec,
    weight: f64,
    schedule: WeightSchedule,
    gate: Gate,
    when: When,
}

/// How long a run is, or each of its generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its steps.
    pub steps: u64,
    /// Its epochs.
    pub epochs: u64,
}

/// The batch that a node looks at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The generation, from 0.
    pub generation: u64,
    /// The step of the generation, from 0.
    pub step: u64,
    /// The epoch of the generation, from 0.
    pub epoch: u64,
    /// Of the generation.
    pub extent: Extent,
    /// What the network of the generation before makes of the batch, without a graph.
    pub before: Option<&'a Outputs>,
    /// What the own network made of it, with its graph.
    pub own: &'a Outputs,
    /// What the sources said of it, by ascending index.
    pub heard: &'a [Heard],
    /// The classes `[B]`.
    pub labels: &'a Tensor,
    /// What the network said of these samples the last time `[B, C]`, if it remembers.
    pub past: Option<&'a Tensor>,
}

/// A term with its name, the factor that it has at this moment, and its scalar without that.
pub type Named = (String, f64, Tensor);

impl Node {
    /// A peer that has the plain cross-entropy, and says and hears whatever its method does.
    pub fn whole(plain_ce: bool) -> Self {
        Self { plain_ce, ..Self::default() }
    }

    /// The place of a peer in a run.
    pub fn of(spec: &RunSpec, index: usize) -> Self {
        let mut terms: Vec<NodeTerm> = Vec::new();
        for edge in spec.edges_to(index) {
            let ensemble = edge.term.is_of_ensembles();
            let known = terms.iter_mut().find(|known| ensemble && known.term == edge.term);
            match known {
                Some(known) => known.sources.push(edge.from),
                None => terms.push(NodeTerm::of(spec, edge)),
            }
        }
        let schema = spec.contribution_schema(index).unwrap_or_default();
        Self {
            plain_ce: spec.has_plain_ce(index),
            coupled: spec.links.as_ref().map(|_| spec.coupling_sources(index).into_iter().collect()),
            says: Some(schema.tensors().iter().map(|tensor| tensor.name.clone()).collect()),
            terms,
        }
    }

    /// Whether it says a tensor of a name that its network makes. `by_method`: whether the method by itself would.
    pub fn says(&self, name: &str, by_method: bool) -> bool {
        self.says.as_ref().map_or(by_method, |says| says.contains(name))
    }

    /// Whether a peer's words enter its share of the coupling.
    pub fn is_coupled_to(&self, index: usize) -> bool {
        self.coupled.as_ref().is_none_or(|coupled| coupled.contains(&index))
    }

    /// Whether it learns from the generation before.
    pub fn looks_back(&self) -> bool {
        self.terms.iter().any(NodeTerm::is_of_the_past)
    }

    /// Whether it learns from what it said of each sample the last time.
    pub fn remembers(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.term, TermSpec::PsKd { .. }))
    }

    /// All terms at one moment of the run; those that are as good as absent then are left out.
    ///
    /// # Errors
    /// A source that did not say what an edge needs; shapes or labels that do not fit.
    pub fn terms(&self, scene: &Scene<'_>) -> Result<Vec<Named>> {
        let mut terms = Vec::with_capacity(self.terms.len());
        for term in self.terms.iter().filter(|term| term.is_there(scene.generation)) {
            let weight = term.weight * term.factor(scene);
            if weight > 0.0 {
                terms.push((term.name.clone(), weight, term.value(scene)?));
            }
        }
        Ok(terms)
    }
}

/// What a network must make of its feature for the edges of a run.
pub(super) fn additions(spec: &RunSpec, index: usize, method: Additions) -> Additions {
    let mut additions = method;
    for edge in spec.edges_to(index).chain(spec.edges_from(index)) {
        match &edge.term {
            TermSpec::KdFn { tau, form } => {
                let form = match form {
                    FnForm::Clip => Form::Clip,
                    FnForm::Paper => Form::Paper,
                };
                additions.fn_norm = Some(KdFnParams { tau: *tau, form });
            }
            TermSpec::Hypersphere { radius } => additions.radius = Some(*radius),
            _ => {}
        }
    }
    additions
}

impl NodeTerm {
    fn of(spec: &RunSpec, edge: &EdgeSpec) -> Self {
        let source = spec.peers.get(edge.from).filter(|_| !edge.is_local() && !edge.term.is_of_ensembles());
        let term = edge.term.name().replace('-', "_");
        Self {
            name: source.map_or(term.clone(), |source| format!("{term}.{}", source.name)),
            target: edge.to,
            sources: if edge.is_local() { Vec::new() } else { vec![edge.from] },
            term: edge.term.clone(),
            weight: edge.weight,
            schedule: edge.schedule,
            when: edge.when,
            gate: match edge.gate {
                cohort_proto::spec::Gate::Through => Gate::Through,
                cohort_proto::spec::Gate::Cutoff => Gate::Cutoff,
                cohort_proto::spec::Gate::Linear => Gate::Linear,
                cohort_proto::spec::Gate::NegativeLinear => Gate::NegativeLinear,
                cohort_proto::spec::Gate::Correct => Gate::Correct,
            },
        }
    }

    /// Whether it learns from the generation before.
    fn is_of_the_past(&self) -> bool {
        self.sources.is_empty() && !self.term.is_local()
    }

    fn is_there(&self, generation: u64) -> bool {
        self.when.includes(generation) && (generation > 0 || !self.is_of_the_past())
    }

    /// What the schedule, and the warm-up of the term itself, make of the weight at this moment.
    fn factor(&self, scene: &Scene<'_>) -> f64 {
        let Extent { steps, epochs } = scene.extent;
        let reached = |done: u64, of: u64| (done + 1) as f64 / of.max(1) as f64;
        let scheduled = match self.schedule {
            WeightSchedule::Constant => 1.0,
            WeightSchedule::Linear => reached(scene.step, steps),
            WeightSchedule::WarmUp(epochs) => dkd::warm_up(scene.epoch + 1, epochs),
            WeightSchedule::Progressive => reached(scene.epoch, epochs),
        };
        match self.term {
            TermSpec::Dkd { warmup, .. } => scheduled * dkd::warm_up(scene.epoch + 1, warmup),
            _ => scheduled,
        }
    }

    fn value(&self, scene: &Scene<'_>) -> Result<Tensor> {
        let rows = self.rows(scene)?;
        let at = Moment { iteration: scene.step, iterations: scene.extent.steps };
        let source = match self.gate {
            Gate::Correct if !self.term.is_local() => Some(self.taught(scene)?),
            _ => None,
        };
        gated_mean(&rows, self.gate, at, source, scene.labels)
    }

    /// What each sample contributes `[B]`.
    fn rows(&self, scene: &Scene<'_>) -> Result<Tensor> {
        let Scene { own, labels, .. } = scene;
        let taught = || self.taught(scene);
        match &self.term {
            TermSpec::Ce => cross_entropy::rows(&own.logits, labels),
            TermSpec::LabelSmoothing { epsilon } => {
                let params = label_smoothing::LabelSmoothingParams { eps: *epsilon };
                label_smoothing::rows(&own.logits, labels, &params)
            }
            TermSpec::AnisotropicLabelSmoothing { epsilon1, epsilon2, groups } => {
                let (eps1, eps2, groups) = (*epsilon1, *epsilon2, groups.clone());
                anisotropic::rows(&own.logits, labels, &anisotropic::AnisotropicParams { eps1, eps2, groups })
            }
            TermSpec::ConfidencePenalty { hinge } => {
                let params = confidence_penalty::ConfidencePenaltyParams { gamma: *hinge };
                confidence_penalty::rows(&own.logits, &params)
            }
            TermSpec::Hypersphere { .. } => match &own.sphere_logits {
                Some(logits) => hypersphere::rows(logits, labels),
                None => candle_core::bail!("the network makes no logits of features on a sphere"),
            },
            TermSpec::PsKd { alpha } => {
                let Some(past) = scene.past else {
                    candle_core::bail!("the network does not remember its past")
                };
                let alpha = PsKdParams { alpha: *alpha }.alpha_at(scene.epoch, scene.extent.epochs);
                ps_kd::rows(&own.logits, past, labels, alpha)
            }
            TermSpec::Tolerant { k } => {
                tsd::rows(&own.logits, &tsd::TsdParams { k: *k, ..tsd::TsdParams::default() })
            }
            TermSpec::Kd { t } | TermSpec::Kl { t } => {
                kd::rows(&own.logits, taught()?, &kd::KdParams { t: *t })
            }
            TermSpec::Dkd { alpha, beta, t, .. } => {
                let params = dkd::DkdParams { alpha: *alpha, beta: *beta, t: *t };
                // The warm-up is a factor of the whole term, like its weight.
                dkd::rows(&own.logits, taught()?, labels, &params, 1.0)
            }
            TermSpec::KdFn { .. } => {
                let teacher = match scene.before.filter(|_| self.is_of_the_past()) {
                    Some(before) => &before.fn_logits,
                    None => &self.heard(self.only_source()?, scene)?.fn_logits,
                };
                match (&own.fn_logits, teacher) {
                    (Some(own), Some(teacher)) => kd_fn::rows(own, teacher),
                    _ => candle_core::bail!("{}: logits of normalised features are missing", self.name),
                }
            }
            TermSpec::LogitKd { t } => {
                let target = kdcl::target(&self.logits_of_all(scene)?, labels, Target::Mean, None)?;
                kd::rows(&own.logits, &target, &kd::KdParams { t: *t })
            }
            TermSpec::Kdcl { t, target } => {
                let target = match target {
                    KdclTarget::MinLogit => Target::MinLogit,
                    KdclTarget::Naive => Target::Naive,
                    KdclTarget::Linear => Target::Linear,
                    KdclTarget::Mean => Target::Mean,
                };
                let goal = kdcl::target(&self.logits_of_all(scene)?, labels, target, None)?;
                kdcl::rows(&own.logits, &goal, &KdclParams { t: *t, target })
            }
        }
    }

    /// The logits of whom it learns from.
    fn taught<'a>(&self, scene: &Scene<'a>) -> Result<&'a Tensor> {
        match scene.before.filter(|_| self.is_of_the_past()) {
            Some(before) => Ok(&before.logits),
            None => self.logits_of(self.only_source()?, scene),
        }
    }

    fn only_source(&self) -> Result<usize> {
        match self.sources.as_slice() {
            [source] => Ok(*source),
            other => candle_core::bail!("{} has {} sources, not one", self.name, other.len()),
        }
    }

    fn heard<'a>(&self, source: usize, scene: &Scene<'a>) -> Result<&'a Heard> {
        match scene.heard.iter().find(|heard| heard.index == source) {
            Some(heard) => Ok(heard),
            None => candle_core::bail!("{}: network {source} was not heard", self.name),
        }
    }

    fn logits_of<'a>(&self, source: usize, scene: &Scene<'a>) -> Result<&'a Tensor> {
        match &self.heard(source, scene)?.logits {
            Some(logits) => Ok(logits),
            None => candle_core::bail!("{}: network {source} did not say its logits", self.name),
        }
    }

    /// The logits of all sources and one's own, constants all of them, in the order of the peers: every network forms the
    /// same bits of them.
    fn logits_of_all(&self, scene: &Scene<'_>) -> Result<Vec<Tensor>> {
        let theirs = self.sources.iter().map(|source| self.logits_of(*source, scene).cloned());
        let mut all = theirs.collect::<Result<Vec<_>>>()?;
        let place = self.sources.iter().filter(|source| **source < self.target).count();
        all.insert(place, scene.own.logits.detach());
        Ok(all)
    }
}
