//! Terms of one network: logits `z` `[B, C]` and labels `y` `[B]`; `anisotropic_label_smoothing` has the `groups` `[C]` of the
//! classes, `ps_kd` the `past` `[B, C]`, `hypersphere` features `f` `[B, D]` and the classifier's `w` `[C, D]` (and bias `b`
//! `[C]`) in place of logits. The loss is the whole one, with cross-entropy where the paper has it.

use anyhow::Result;
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::terms::anisotropic::{self, AnisotropicParams};
use cohort_peer::methods::terms::confidence_penalty::{self, ConfidencePenaltyParams};
use cohort_peer::methods::terms::hypersphere::{self, HypersphereParams};
use cohort_peer::methods::terms::label_smoothing::{self, LabelSmoothingParams};
use cohort_peer::methods::terms::mean;
use cohort_peer::methods::terms::ps_kd::{self, PsKdParams};
use cohort_peer::methods::terms::tsd::{self, TsdParams};

use crate::case::{Tensors, Trial};

pub(super) fn label_smoothing(trial: &Trial<'_>) -> Result<Tensors> {
    let params = LabelSmoothingParams { eps: trial.number("eps", LabelSmoothingParams::default().eps)? };
    let rows = label_smoothing::rows(&trial.float("z")?, &trial.integers("y")?, &params)?;
    Ok(super::loss(mean(&rows)?))
}

pub(super) fn anisotropic(trial: &Trial<'_>) -> Result<Tensors> {
    let groups = trial.integers("groups")?.to_vec1::<i64>()?;
    let groups = groups.into_iter().map(u32::try_from).collect::<Result<Vec<_>, _>>()?;
    let default = AnisotropicParams::new(groups);
    let params = AnisotropicParams {
        eps1: trial.number("eps1", default.eps1)?,
        eps2: trial.number("eps2", default.eps2)?,
        ..default
    };
    Ok(super::loss(mean(&anisotropic::rows(&trial.float("z")?, &trial.integers("y")?, &params)?)?))
}

pub(super) fn confidence_penalty(trial: &Trial<'_>) -> Result<Tensors> {
    let (z, y) = (trial.float("z")?, trial.integers("y")?);
    let params = ConfidencePenaltyParams { gamma: trial.optional_number("gamma")? };
    let penalty = mean(&confidence_penalty::rows(&z, &params)?)?;
    Ok(super::loss((cross_entropy(&z, &y)? + (penalty * trial.number("beta", 0.1)?)?)?))
}

pub(super) fn hypersphere(trial: &Trial<'_>) -> Result<Tensors> {
    let params = HypersphereParams { rho: trial.number("rho", HypersphereParams::default().rho)? };
    let bias = trial.optional("b")?;
    let z = hypersphere::logits(&trial.float("f")?, &trial.float("w")?, bias.as_ref(), &params)?;
    Ok(super::loss(mean(&hypersphere::rows(&z, &trial.integers("y")?)?)?))
}

pub(super) fn tsd_teacher(trial: &Trial<'_>) -> Result<Tensors> {
    let (z, y) = (trial.float("z")?, trial.integers("y")?);
    let default = TsdParams::default();
    let k = trial.number("k", default.k as f64)? as usize;
    let params = TsdParams { k, eta: trial.number("eta", default.eta)?, ..default };
    let gap = mean(&tsd::rows(&z, &params)?)?;
    let loss = ((cross_entropy(&z, &y)? * params.eta)? + (&gap * (1.0 - params.eta))?)?;
    let mut outputs = super::loss(loss);
    outputs.insert("gap".to_owned(), gap);
    Ok(outputs)
}

pub(super) fn ps_kd(trial: &Trial<'_>) -> Result<Tensors> {
    let params = PsKdParams { alpha: trial.number("alpha_t", PsKdParams::default().alpha)? };
    let (epoch, epochs) = (trial.number("epoch", 0.0)? as u64, trial.number("epochs", 1.0)? as u64);
    let (z, past, y) = (trial.float("z")?, trial.float("past")?, trial.integers("y")?);
    Ok(super::loss(mean(&ps_kd::rows(&z, &past, &y, params.alpha_at(epoch, epochs))?)?))
}
