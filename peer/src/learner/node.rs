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
    anisotropic, confidence_penalty, dkd, hypersphere, kd, kd_fn, kdcl, label_smoothing, one, ps_kd, tsd,
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
    /// Whether the networks of the run are weighed by their errors on held-out samples, whoever learns from that.
    pub weighs: bool,
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
    /// The weights of the networks in this epoch, if any are learned from by weight.
    pub weights: Option<&'a [f64]>,
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
        // What a discriminator says is no term of the loss: that is the adversary's.
        for edge in spec.edges_to(index).filter(|edge| !matches!(edge.term, TermSpec::Afd { .. })) {
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
            weighs: spec.weighs_by_held_out(),
            terms,
        }
    }

    /// Those whose networks it weighs by their errors on held-out samples, by ascending index without itself; none if it does
    /// not.
    pub fn weighed(&self) -> &[usize] {
        let general =
            |term: &&NodeTerm| matches!(term.term, TermSpec::Kdcl { target: KdclTarget::General, .. });
        self.terms.iter().find(general).map_or(&[], |term| &term.sources)
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
        for term in self.terms.iter().filter(|term| term.is_there(scene)) {
            let weight = term.weight * term.factor(scene);
            if weight > 0.0 {
                term.add_to(&mut terms, weight, scene)?;
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
            TermSpec::One { .. } => additions.gate = true,
            TermSpec::Afd { .. } => additions.map = spec.map_of(index).map(|[channels, ..]| channels),
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

    /// Whether there is anything to learn from at this moment. A source that has left the cohort is not heard.
    fn is_there(&self, scene: &Scene<'_>) -> bool {
        let heard = |source: &usize| scene.heard.iter().any(|heard| heard.index == *source);
        let generation = scene.generation;
        self.when.includes(generation)
            && (generation > 0 || !self.is_of_the_past())
            && (self.sources.is_empty() || self.sources.iter().any(heard))
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

    /// Adds what the term is at this moment. That of a gated ensemble is two: the divergence from it, which is ramped up, and
    /// the ensemble's own cross-entropy.
    fn add_to(&self, terms: &mut Vec<Named>, weight: f64, scene: &Scene<'_>) -> Result<()> {
        let mut name = self.name.clone();
        if let TermSpec::One { t, ramp } = self.term {
            let params = one::OneParams { t, ramp };
            let divergence = one::rows(&scene.own.logits, &self.ensemble(scene)?, &params)?;
            let ramped = weight * params.ramp_at(scene.epoch);
            terms.push((name.clone(), ramped, self.gated(&divergence, scene)?));
            name.push_str("_ensemble");
        }
        terms.push((name, weight, self.gated(&self.rows(scene)?, scene)?));
        Ok(())
    }

    /// The scalar that the gate makes of rows.
    fn gated(&self, rows: &Tensor, scene: &Scene<'_>) -> Result<Tensor> {
        let at = Moment { iteration: scene.step, iterations: scene.extent.steps };
        let source = match self.gate {
            Gate::Correct if !self.term.is_local() => Some(self.taught(scene)?),
            _ => None,
        };
        gated_mean(rows, self.gate, at, source, scene.labels)
    }

    /// The logits `[B, C]` of the gated ensemble of all members, through which the own logits and scores have a gradient.
    fn ensemble(&self, scene: &Scene<'_>) -> Result<Tensor> {
        let Some(score) = &scene.own.score else {
            candle_core::bail!("{}: the network has no gate", self.name);
        };
        let (place, logits) = self.of_all(scene, &scene.own.logits, |heard| heard.logits.as_ref())?;
        let (_, scores) = self.of_all(scene, score, |heard| heard.score.as_ref())?;
        one::ensemble(place, &logits, &scores)
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
                    KdclTarget::General => Target::General,
                    KdclTarget::Mean => Target::Mean,
                };
                let goal = kdcl::target(&self.logits_of_all(scene)?, labels, target, scene.weights)?;
                kdcl::rows(&own.logits, &goal, &KdclParams { t: *t, target })
            }
            TermSpec::One { .. } => one::ensemble_rows(&self.ensemble(scene)?, labels),
            TermSpec::Afd { .. } => candle_core::bail!("what a discriminator says is no term of the loss"),
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
        let own = scene.own.logits.detach();
        Ok(self.of_all(scene, &own, |heard| heard.logits.as_ref())?.1)
    }

    /// One's own tensor among those that the sources in the cohort said, in the order of the peers, and its place.
    fn of_all<'a>(
        &self,
        scene: &Scene<'a>,
        own: &Tensor,
        said: impl Fn(&'a Heard) -> Option<&'a Tensor>,
    ) -> Result<(usize, Vec<Tensor>)> {
        let mut all = Vec::with_capacity(self.sources.len() + 1);
        let mut place = 0;
        for heard in scene.heard.iter().filter(|heard| self.sources.contains(&heard.index)) {
            let Some(tensor) = said(heard) else {
                candle_core::bail!("{}: network {} did not say all that it needs", self.name, heard.index);
            };
            place += usize::from(heard.index < self.target);
            all.push(tensor.clone());
        }
        all.insert(place, own.clone());
        Ok((place, all))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn tensor(width: usize, seed: f64) -> Tensor {
        let values: Vec<f64> = (0..4 * width).map(|i| (seed + 1.7 * i as f64).sin()).collect();
        Tensor::from_vec(values, (4, width), &Device::Cpu).unwrap()
    }

    fn outputs() -> Outputs {
        Outputs {
            logits: tensor(10, 0.1),
            feature: tensor(8, 0.3),
            stage_logits: Vec::new(),
            embeddings: Vec::new(),
            matching: Vec::new(),
            aggregated: None,
            fn_logits: None,
            sphere_logits: None,
            score: Some(tensor(1, 0.2)),
            map: None,
        }
    }

    fn heard(index: usize) -> Heard {
        let seed = index as f64;
        Heard { logits: Some(tensor(10, seed)), score: Some(tensor(1, 5.0 + seed)), ..Heard::nothing(index) }
    }

    /// The terms of the second of some peers in a method, by what it heard of others.
    fn terms(method: &str, peers: &[&str], heard: &[Heard]) -> Vec<(String, f64, f64)> {
        let peers = peers.iter().map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n"));
        let text = format!(
            "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\nbatch = 4\n[method]\nname = \"{method}\"\n{}",
            peers.collect::<String>()
        );
        let node = Node::of(&RunSpec::parse(&text).unwrap(), 1);
        let own = outputs();
        let labels = Tensor::new(&[3u32, 1, 4, 1], &Device::Cpu).unwrap();
        let extent = Extent { steps: 9, epochs: 3 };
        let scene = Scene {
            generation: 0,
            step: 0,
            epoch: 0,
            extent,
            before: None,
            own: &own,
            heard,
            labels: &labels,
            past: None,
            weights: None,
        };
        let number = |value: Tensor| value.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        let terms = node.terms(&scene).unwrap().into_iter();
        terms.map(|(name, weight, value)| (name, weight, number(value))).collect()
    }

    /// Whoever has left the cohort is not heard: terms of it alone are absent, and ensembles are of those who are there.
    #[test]
    fn a_source_that_left_is_not_missed() {
        for method in ["kdcl", "one"] {
            let left = terms(method, &["a", "b", "c"], &[heard(0)]);
            assert_eq!(left, terms(method, &["a", "b"], &[heard(0)]), "{method}");
            assert_ne!(left, terms(method, &["a", "b", "c"], &[heard(0), heard(2)]), "{method}");
        }
        let ktg = terms("ktg", &["a", "b", "c"], &[heard(2)]);
        assert_eq!(ktg.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["ce", "kl.c"]);
        assert_eq!(terms("one", &["a", "b"], &[]).len(), 1, "alone there is nothing to gate");
    }

    /// At epoch 0 of a ramp of 80 the divergence has the weight exp(-5), the ensemble's cross-entropy its own.
    #[test]
    fn a_gated_ensemble_is_two_terms() {
        let terms = terms("one", &["a", "b"], &[heard(0)]);
        let weights: Vec<_> = terms.iter().map(|(name, weight, _)| (name.as_str(), *weight)).collect();
        assert_eq!(weights, [("ce", 1.0), ("one", (-5f64).exp()), ("one_ensemble", 1.0)]);
    }
}
