//! `memory_bank`: unit embeddings `vI` `[B, E]` and banks `mI` `[N, E]` of each network, keys `pos` `[B, 1 + K+]` (the
//! anchor's own sample first) and `neg` `[B, K-]`; the four terms over all networks, their weighted sum, and the rows
//! `new_rows_I` that replace those of the anchors' samples. `lmcl_memory_bank`: the same of embeddings `vIK` of each stage K,
//! of which the last are remembered, weighted by matching features `uIK` if there are any.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use cohort_peer::methods::lmcl::weight;
use cohort_peer::methods::memory::{Bank, Draws, Form, MemoryParams, Remembered, share};
use cohort_peer::methods::primitives::zero;

use crate::case::{Tensors, Trial};

pub(super) fn memory_bank(trial: &Trial<'_>) -> Result<Tensors> {
    let stages: Vec<Vec<Tensor>> = trial.networks("v")?.into_iter().map(|v| vec![v]).collect();
    outputs(trial, &stages, &[], Form::Networks)
}

pub(super) fn layerwise(trial: &Trial<'_>) -> Result<Tensors> {
    let form = Form::Stages {
        multiplicity: if trial.flag("double", true)? { 2.0 } else { 1.0 },
        one_to_one: trial
            .choice("matching", &[("uniform", false), ("one-to-one", true), ("learned", false)])?,
        bug: trial.flag("bank_bug", false)?,
    };
    let learned =
        trial.choice("matching", &[("uniform", false), ("one-to-one", false), ("learned", true)])?;
    let features = if learned { trial.stages("u")? } else { Vec::new() };
    outputs(trial, &trial.stages("v")?, &features, form)
}

/// λ of all pairs of stages of a network and the others.
fn lambda(features: &[Vec<Tensor>], me: usize) -> Result<Option<Tensor>> {
    let Some(own) = features.get(me) else { return Ok(None) };
    let others = features.iter().enumerate().filter(|(j, _)| *j != me);
    let pairs =
        others.flat_map(|(_, theirs)| own.iter().flat_map(move |u| theirs.iter().map(move |v| (u, v))));
    let rows = pairs.map(|(u, v)| weight(u, v)).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Some(Tensor::stack(&rows, 0)?))
}

fn outputs(
    trial: &Trial<'_>,
    stages: &[Vec<Tensor>],
    features: &[Vec<Tensor>],
    form: Form,
) -> Result<Tensors> {
    let banks = trial.networks("m")?.iter().map(Bank::from_tensor).collect::<Result<Vec<_>, _>>()?;
    let draws = Draws::from_tensors(&trial.integers("pos")?, &trial.integers("neg")?)?;
    let default = MemoryParams::default();
    let params = MemoryParams {
        alpha: trial.number("alpha", default.alpha)?,
        beta: trial.number("beta", default.beta)?,
        gamma: trial.number("gamma", default.gamma)?,
        lam: trial.number("lam", default.lam)?,
        tau: trial.number("tau", default.tau)?,
        kd_t: trial.number("kd_t", default.kd_t)?,
        form,
    };
    let momentum = trial.number("momentum", 0.5)?;
    let mut outputs = super::loss(zero(&stages[0][0])?);
    let mut add = |name: &str, weight: f64, value: &candle_core::Tensor| -> Result<()> {
        let sum = match outputs.get(name) {
            Some(sum) => (sum + (value * weight)?)?,
            None => value.clone(),
        };
        outputs.insert(name.to_owned(), sum);
        Ok(())
    };
    let remembered = |i: usize| Remembered { bank: &banks[i], stages: &stages[i] };
    for me in 0..stages.len() {
        let others: Vec<_> = (0..stages.len()).filter(|j| *j != me).map(remembered).collect();
        let lambda = lambda(features, me)?;
        for (name, weight, value) in share(remembered(me), &others, &draws, &params, lambda.as_ref())? {
            add(name, 1.0, &value)?;
            add("loss", weight, &value)?;
        }
    }
    for (i, (bank, stages)) in banks.iter().zip(stages).enumerate() {
        let v = stages.last().context("a network without stages")?;
        let rows = bank.blended(&draws.anchors(), v, momentum)?.rows;
        outputs.insert(format!("new_rows_{i}"), Tensor::from_vec(rows, v.dims(), &Device::Cpu)?);
    }
    Ok(outputs)
}
