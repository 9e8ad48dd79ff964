//! `memory_bank`: unit embeddings `vI` `[B, E]` and banks `mI` `[N, E]` of each network, keys `pos` `[B, 1 + K+]` (the
//! anchor's own sample first) and `neg` `[B, K-]`; the four terms over all networks, their weighted sum, and the rows
//! `new_rows_I` that replace those of the anchors' samples.

use anyhow::Result;
use candle_core::{Device, Tensor};
use cohort_peer::methods::memory::{Bank, Draws, MemoryParams, Remembered, share};
use cohort_peer::methods::primitives::zero;

use crate::case::{Tensors, Trial};

pub(super) fn memory_bank(trial: &Trial<'_>) -> Result<Tensors> {
    let embeddings = trial.networks("v")?;
    let banks = trial.networks("m")?.iter().map(Bank::from_tensor).collect::<Result<Vec<_>, _>>()?;
    let banks: Vec<&Bank> = banks.iter().collect();
    let draws = Draws::from_tensors(&trial.integers("pos")?, &trial.integers("neg")?)?;
    let default = MemoryParams::default();
    let params = MemoryParams {
        alpha: trial.number("alpha", default.alpha)?,
        beta: trial.number("beta", default.beta)?,
        gamma: trial.number("gamma", default.gamma)?,
        lam: trial.number("lam", default.lam)?,
        tau: trial.number("tau", default.tau)?,
        kd_t: trial.number("kd_t", default.kd_t)?,
        ..default
    };
    let momentum = trial.number("momentum", 0.5)?;
    let mut outputs = super::loss(zero(&embeddings[0])?);
    let mut add = |name: &str, weight: f64, value: &candle_core::Tensor| -> Result<()> {
        let sum = match outputs.get(name) {
            Some(sum) => (sum + (value * weight)?)?,
            None => value.clone(),
        };
        outputs.insert(name.to_owned(), sum);
        Ok(())
    };
    let remembered = |i: usize| Remembered { bank: banks[i], stages: &embeddings[i..=i] };
    for me in 0..embeddings.len() {
        let others: Vec<_> = (0..embeddings.len()).filter(|j| *j != me).map(remembered).collect();
        for (name, weight, value) in share(remembered(me), &others, &draws, &params)? {
            add(name, 1.0, &value)?;
            add("loss", weight, &value)?;
        }
    }
    for (i, (bank, v)) in banks.iter().zip(&embeddings).enumerate() {
        let rows = bank.blended(&draws.anchors(), v, momentum)?.rows;
        outputs.insert(format!("new_rows_{i}"), Tensor::from_vec(rows, v.dims(), &Device::Cpu)?);
    }
    Ok(outputs)
}
