//! `sgd`: the parameters after each of K steps from `p0`, given their gradients `grads` `[K, …]`, at one step an epoch
//! of a learning-rate schedule.

use anyhow::Result;
use candle_core::{Device, Tensor};
use cohort_peer::models::{Init, Params};
use cohort_peer::optim::{Gradients, Sgd, SgdConfig};
use cohort_proto::plan::{BatchPlan, LrSchedule, PlanInputs, RunLength, Sampler};

use crate::case::{Tensors, Trial};

pub(super) fn sgd(trial: &Trial<'_>) -> Result<Tensors> {
    let (start, grads) = (trial.float("p0")?, trial.float("grads")?);
    let steps = grads.dim(0)?;
    let mut params = Params::new(0, "golden", trial.dtype, &Device::Cpu)?;
    let p = params.root().trainable("p", start.dims(), Init::Zeros)?;
    p.set(&start)?;
    let config = SgdConfig {
        momentum: trial.number("momentum", 0.9)?,
        nesterov: trial.flag("nesterov", true)?,
        weight_decay: trial.number("weight_decay", 5e-4)?,
        clip_norm: trial.number("clip_norm", 0.0)?,
    };
    let mut optimiser = Sgd::new(&params, config)?;
    let plan = schedule(trial, steps)?;
    let mut history = Vec::with_capacity(steps);
    for step in 0..steps {
        let gradients = Gradients::from([("p".to_owned(), grads.get(step)?)]);
        optimiser.step(&params, gradients, plan.lr(step as u64))?;
        history.push(p.as_tensor().copy()?);
    }
    Ok(Tensors::from([("params".to_owned(), Tensor::stack(&history, 0)?)]))
}

/// A plan over a single sample: an epoch is a step.
fn schedule(trial: &Trial<'_>, steps: usize) -> Result<BatchPlan> {
    let named = [("cosine", 0), ("multistep", 1), ("constant", 2)];
    let schedule = match trial.choice("schedule", &named)? {
        0 => LrSchedule::Cosine,
        1 => LrSchedule::Multistep {
            milestones: trial.list("milestones")?,
            factor: trial.number("factor", 0.1)?,
        },
        _ => LrSchedule::Constant,
    };
    let inputs = PlanInputs {
        generations: 1,
        seed: 0,
        sampler: Sampler::Shuffle,
        batch: 1,
        length: RunLength::Epochs(trial.number("epochs", steps as f64)? as u64),
        lr0: trial.number("lr0", 0.1)?,
        schedule,
        warmup_epochs: trial.number("warmup_epochs", 0.0)? as u64,
    };
    Ok(BatchPlan::new(inputs, &[0])?)
}
