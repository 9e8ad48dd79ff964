//! What follows from a run spec alone, so that coordinator and peers cannot disagree about it: the batch plan, and
//! what every peer says in a step.

use super::{Length, LogitKd, MethodSpec, RunSpec, SamplerSpec, ScheduleSpec};
use crate::plan::{BatchPlan, LrSchedule, PlanError, PlanInputs, RunLength, Sampler};
use crate::schema::{DType, Schema, SchemaError, TensorSpec};

/// The factor at each milestone of a multistep schedule.
const MULTISTEP_FACTOR: f64 = 0.1;

impl RunSpec {
    /// The batch plan of this run over the labels of its training samples.
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
            lr0: self.optim.lr,
            schedule,
            warmup_epochs: self.optim.warmup_epochs,
        };
        BatchPlan::new(inputs, labels)
    }

    /// What each peer says in round 0 of a step: `logits` [batch, classes] where somebody learns from logits, and
    /// `embed.0` [batch, feat_dim], unit rows, where embeddings are contrasted. Empty if nobody listens.
    pub fn contribution_schema(&self) -> Result<Schema, SchemaError> {
        let (batch, classes) = (self.data.batch, self.data.dataset.classes());
        let tensor = |name: &str, width| TensorSpec {
            name: name.into(),
            dtype: DType::F32,
            shape: vec![batch, width],
        };
        let (logits, embedding) = match &self.method {
            _ if self.peers.len() < 2 => (false, None),
            MethodSpec::Alone => (false, None),
            MethodSpec::Dml(_) => (true, None),
            MethodSpec::Mcl(mcl) => {
                (mcl.logit_kd != LogitKd::Off, self.method.contrasts().then_some(mcl.feat_dim))
            }
        };
        let logits = logits.then(|| tensor("logits", classes));
        Schema::new(logits.into_iter().chain(embedding.map(|width| tensor("embed.0", width))).collect())
    }
}
