//! Terms of a whole cohort: logits `z0`, `z1`, … `[B, C]`, labels `y` `[B]`; `one` has the scores `s0`, `s1`, … `[B, 1]` of the
//! gate. The loss is that of the first network that has a gradient, with its cross-entropy.

use anyhow::Result;
use candle_core::DType;
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::terms::kdcl::{self, KdclParams, Target};
use cohort_peer::methods::terms::mean;
use cohort_peer::methods::terms::one::{self, OneParams};

use crate::case::{Tensors, Trial};

pub(super) fn kdcl(trial: &Trial<'_>) -> Result<Tensors> {
    let (logits, labels) = (trial.networks("z")?, trial.integers("y")?);
    let targets = [
        ("minlogit", Target::MinLogit),
        ("naive", Target::Naive),
        ("linear", Target::Linear),
        ("general", Target::General),
        ("mean", Target::Mean),
    ];
    let params = KdclParams {
        t: trial.number("t", KdclParams::default().t)?,
        target: trial.choice("target", &targets)?,
    };
    let weights = trial.optional("w")?.map(|w| w.to_dtype(DType::F64)?.to_vec1::<f64>()).transpose()?;
    let me = trial.learners("z", logits.len(), 0)[0];
    let target = kdcl::target(&logits, &labels, params.target, weights.as_deref())?;
    let term = mean(&kdcl::rows(&logits[me], &target, &params)?)?;
    let ce = cross_entropy(&logits[me], &labels)?;
    Ok(super::loss((ce + (term * trial.number("lambda", 1.0)?)?)?))
}

pub(super) fn one(trial: &Trial<'_>) -> Result<Tensors> {
    let (logits, labels) = (trial.networks("z")?, trial.integers("y")?);
    let default = OneParams::default();
    let ramp = trial.number("ramp", default.ramp as f64)? as u64;
    let params = OneParams { t: trial.number("t", default.t)?, ramp };
    let me = trial.learners("z", logits.len(), 0)[0];
    let ensemble = one::ensemble(me, &logits, &trial.networks("s")?)?;
    let of_ensemble = mean(&one::ensemble_rows(&ensemble, &labels)?)?;
    let distilled = mean(&one::rows(&logits[me], &ensemble, &params)?)?;
    let omega = params.ramp_at(trial.number("epoch", 0.0)? as u64);
    let loss = ((cross_entropy(&logits[me], &labels)? + of_ensemble)? + (distilled * omega)?)?;
    let mut outputs = super::loss(loss);
    outputs.insert("z_e".to_owned(), ensemble);
    Ok(outputs)
}
