//! What follows from a run spec alone, so that coordinator and peers cannot disagree about it: the batch plan, and
//! what every peer says in a step.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{FN_LOGITS, KdclTarget, LOGITS, MAP, SCORE, TermSpec};
use super::{
    FailurePolicy, Length, LogitKd, MATCH_DIM, MetaSpec, MethodSpec, RunSpec, SamplerSpec, ScheduleSpec,
    SpecError, stages_of,
};
use crate::id::PeerName;
use crate::meta::{HELD_OUT, NORMS, RoundPlan};
use crate::plan::{BatchPlan, LrSchedule, PlanError, PlanInputs, RunLength, Sampler};
use crate::schema::{DType, Schema, SchemaError, TensorSpec};

/// The factor at each milestone of a multistep schedule.
const MULTISTEP_FACTOR: f64 = 0.1;

impl RunSpec {
    /// Of the labels of the training samples as they are loaded, those that are not held out for validation.
    ///
    /// # Errors
    /// If none is left.
    pub fn trained_on<'a>(&self, labels: &'a [u8]) -> Result<&'a [u8], SpecError> {
        let held_out = self.data.validation;
        let kept = labels.len().saturating_sub(held_out);
        if kept == 0 && held_out > 0 {
            let problem = format!(
                "is {held_out}, but there are only {} training images, so that none is left",
                labels.len()
            );
            return Err(SpecError::value("[data]", "validation", problem));
        }
        Ok(labels.get(..kept).unwrap_or_default())
    }

    /// The batch plan of this run over the labels of the samples that it trains on.
    pub fn batch_plan(&self, labels: &[u8]) -> Result<BatchPlan, PlanError> {
        let sampler = match self.data.sampler {
            SamplerSpec::Shuffle => Sampler::Shuffle,
            SamplerSpec::PerClass(per_class) => Sampler::PerClass { per_class },
        };
        let length = match self.run.length {
            Length::Epochs(epochs) => RunLength::Epochs(epochs),
            Length::Steps(steps) => RunLength::Steps(steps),
        };
        let schedule = match &self.optim.schedule {
            ScheduleSpec::Cosine => LrSchedule::Cosine,
            ScheduleSpec::Multistep(milestones) => {
                LrSchedule::Multistep { milestones: milestones.clone(), factor: MULTISTEP_FACTOR }
            }
            ScheduleSpec::Constant => LrSchedule::Constant,
        };
        let inputs = PlanInputs {
            seed: self.run.seed,
            sampler,
            batch: self.data.batch,
            length,
            generations: self.run.generations,
            lr0: self.optim.lr,
            schedule,
            warmup_epochs: self.optim.warmup_epochs,
        };
        BatchPlan::new(inputs, labels)
    }

    /// The steps of all generations together, if the run says how many a generation has. One of so many epochs has as many
    /// as its data give.
    pub fn steps_asked(&self) -> Option<u64> {
        match self.run.length {
            Length::Steps(steps) => Some(steps.saturating_mul(self.run.generations)),
            Length::Epochs(_) => None,
        }
    }

    /// What a peer says in round 0 of a step: what the edges that leave it need, and nothing if nobody learns from it. In
    /// this order:
    ///
    /// - `logits` [batch, classes] where somebody learns from them, `fn_logits` [batch, classes] where somebody learns from
    ///   those of normalised features, `score` [batch, 1] where its logits enter a gated ensemble, `map` [batch,
    ///   channels, rows, columns] where a discriminator sees it, `aggregated` [batch, classes] where L-MCL distils
    /// - `embed.k` [batch, feat_dim], unit rows, where embeddings are contrasted: one for MCL, one for each stage of the
    ///   peer's architecture for L-MCL
    /// - `match.k` [batch, 128], unit rows, for each stage where L-MCL learns how stages match
    ///
    /// # Errors
    /// No peer of that index; more than one contribution may have.
    pub fn contribution_schema(&self, index: usize) -> Result<Schema, SchemaError> {
        let peer = self.peers.get(index).ok_or(SchemaError::NoPeer(index))?;
        let (batch, classes) = (self.data.batch, self.data.dataset.classes());
        let coupled = self.is_coupling_source(index);
        let on_edges = |name: &str| self.edges_from(index).any(|edge| edge.says().contains(&name));
        let tensor = |name: String, width| TensorSpec { name, dtype: DType::F32, shape: vec![batch, width] };
        let distils = match &self.method {
            MethodSpec::Alone | MethodSpec::LMcl(_) => false,
            MethodSpec::Dml(_) => true,
            MethodSpec::Mcl(mcl) => mcl.logit_kd != LogitKd::Off,
        };
        let mut tensors = Vec::new();
        tensors.extend(((coupled && distils) || on_edges(LOGITS)).then(|| tensor(LOGITS.into(), classes)));
        tensors.extend(on_edges(FN_LOGITS).then(|| tensor(FN_LOGITS.into(), classes)));
        tensors.extend(on_edges(SCORE).then(|| tensor(SCORE.into(), 1)));
        if let Some([channels, rows, columns]) = self.map_of(index).filter(|_| on_edges(MAP)) {
            let shape = vec![batch, channels, rows, columns];
            tensors.push(TensorSpec { name: MAP.into(), dtype: DType::F32, shape });
        }
        match &self.method {
            _ if !coupled => {}
            MethodSpec::Alone | MethodSpec::Dml(_) => {}
            MethodSpec::Mcl(mcl) => {
                tensors.extend(self.method.contrasts().then(|| tensor("embed.0".into(), mcl.feat_dim)));
            }
            MethodSpec::LMcl(l_mcl) => {
                let stages = stages_of(&peer.arch);
                tensors.extend(l_mcl.kd.then(|| tensor("aggregated".into(), classes)));
                if l_mcl.contrasts() {
                    tensors.extend((0..stages).map(|k| tensor(format!("embed.{k}"), l_mcl.feat_dim)));
                }
                if l_mcl.learns_matching() {
                    tensors.extend((0..stages).map(|k| tensor(format!("match.{k}"), MATCH_DIM)));
                }
            }
        }
        Schema::new(tensors)
    }

    /// The names of what a peer learns from of what another says, in all rounds of a step: those of its edges from it and of
    /// the coupling, and the few numbers that all need. In a run whose peers may go on without one another it is
    /// everything, since whoever stays hands on what it heard.
    ///
    /// # Errors
    /// As [`RunSpec::contribution_schema`].
    pub fn wanted(&self, source: usize, target: usize) -> Result<BTreeSet<String>, SchemaError> {
        let schema = self.contribution_schema(source)?;
        let hands_on = self.policy.on_failure == FailurePolicy::Continue;
        // A teacher has no terms, and its part in a meta-update needs nobody's words.
        let learns = self.is_student(target);
        let coupled = learns && self.coupling_sources(target).contains(&source);
        let on_edge = |name: &str| {
            let mut edges = self.edges_from(source).filter(|edge| edge.to == target);
            edges.any(|edge| edge.says().contains(&name))
        };
        let wants = |name: &str| hands_on || (coupled && self.couples_by(name, target)) || on_edge(name);
        let names = schema.tensors().iter().map(|tensor| tensor.name.as_str()).filter(|name| wants(name));
        let held_out = on_edge(HELD_OUT).then_some(HELD_OUT);
        Ok(names.chain([NORMS]).chain(held_out).map(str::to_owned).collect())
    }

    /// The peers that a peer learns from, and of each what it learns from: [`RunSpec::sources`] and [`RunSpec::wanted`].
    ///
    /// # Errors
    /// As [`RunSpec::contribution_schema`].
    pub fn wanted_by(&self, target: usize) -> Result<BTreeMap<PeerName, BTreeSet<String>>, SchemaError> {
        let of = |source: usize| {
            let peer = self.peers.get(source).ok_or(SchemaError::NoPeer(source))?;
            Ok((peer.name.clone(), self.wanted(source, target)?))
        };
        self.sources(target).into_iter().map(of).collect()
    }

    /// Whether the coupling of a peer learns from tensors of this name.
    pub(in crate::spec) fn couples_by(&self, name: &str, target: usize) -> bool {
        match &self.method {
            MethodSpec::Alone => false,
            MethodSpec::Dml(_) => name == LOGITS,
            MethodSpec::Mcl(mcl) => {
                let sources = self.coupling_sources(target);
                let distils = match mcl.logit_kd {
                    LogitKd::Off => false,
                    LogitKd::All => true,
                    // Both of two, else the last of those who are coupled with each other.
                    LogitKd::Last => sources.len() == 1 || sources.iter().all(|source| *source < target),
                };
                name.starts_with("embed.") || (name == LOGITS && distils)
            }
            MethodSpec::LMcl(_) => {
                name == "aggregated" || name.starts_with("embed.") || name.starts_with("match.")
            }
        }
    }

    /// The meta-update of this run, if there ever is one.
    pub fn meta(&self) -> Option<&MetaSpec> {
        match &self.method {
            MethodSpec::LMcl(l_mcl) if self.peers.len() > 1 && l_mcl.learns_matching() => {
                (l_mcl.meta.freq > 0).then_some(&l_mcl.meta)
            }
            _ => None,
        }
    }

    /// Whether networks are weighed by their errors on held-out samples, once an epoch.
    pub fn weighs_by_held_out(&self) -> bool {
        let general = |term: &TermSpec| matches!(term, TermSpec::Kdcl { target: KdclTarget::General, .. });
        self.edges.iter().any(|edge| edge.is_open() && general(&edge.term))
    }

    /// Bytes of tensor data that a peer with this schema says in so many steps in a row, meta-updates and held-out samples
    /// included. How many of these there are depends on the steps of an epoch, which without a `train_limit` are taken to be many.
    ///
    /// # Errors
    /// If a further round would exceed what a contribution may have.
    pub fn contributed_bytes(&self, schema: &Schema, steps: u64) -> Result<u64, SchemaError> {
        let in_steps = (schema.byte_len() as u64).saturating_mul(steps);
        let samples = self.data.train_limit.unwrap_or(usize::MAX).saturating_sub(self.data.validation);
        let per_epoch = (samples / self.data.batch.max(1)).max(1) as u64;
        // Every epoch begins with one; the steps may touch one epoch more than they fill.
        let epochs = (steps / per_epoch).saturating_add(2);
        if self.weighs_by_held_out() {
            let each = schema.for_held_out((self.data.validation, self.data.dataset.classes()))?;
            return Ok(in_steps.saturating_add((each.byte_len() as u64).saturating_mul(epochs)));
        }
        let Some(meta) = self.meta() else { return Ok(in_steps) };
        let updates = (steps / meta.freq).saturating_add(epochs).min(steps);
        let each = RoundPlan::new(meta.times).meta_bytes(schema, meta.precision.dtype())?;
        Ok(in_steps.saturating_add(each.saturating_mul(updates)))
    }
}
