//! `mcl`: unit embeddings `v0`, `v1`, … `[B, E]`, `labels` `[B]`; the four terms over all networks and their weighted sum,
//! without cross-entropy. `mcl_logit_kd`: logits `z0`, `z1`, … `[B, C]`; the divergence of the networks that have a
//! gradient, else of the last, from the ensemble.

use anyhow::Result;
use cohort_peer::methods::MclParams;
use cohort_peer::methods::logit_kd::ensemble_kl;
use cohort_peer::methods::mcl::Scores;
use cohort_peer::methods::primitives::zero;

use crate::case::{Tensors, Trial};

pub(super) fn mcl(trial: &Trial<'_>) -> Result<Tensors> {
    let default = MclParams::default();
    let params = MclParams {
        alpha: trial.number("alpha", default.alpha)?,
        beta: trial.number("beta", default.beta)?,
        gamma: trial.number("gamma", default.gamma)?,
        lam: trial.number("lam", default.lam)?,
        tau: trial.number("tau", default.tau)?,
        kd_t: trial.number("kd_t", default.kd_t)?,
        ..default
    };
    let scores = Scores::joint(&trial.networks("v")?, &trial.integers("labels")?, &params)?;
    let terms = [
        ("vcl", params.alpha, scores.vcl()?),
        ("soft_vcl", params.gamma, scores.soft_vcl()?),
        ("icl", params.beta, scores.icl()?),
        ("soft_icl", params.lam, scores.soft_icl()?),
    ];
    let mut total = terms[0].2.zeros_like()?;
    for (_, weight, term) in &terms {
        total = (total + (term * *weight)?)?;
    }
    let mut outputs = super::loss(total);
    outputs.extend(terms.into_iter().map(|(name, _, term)| (name.to_owned(), term)));
    Ok(outputs)
}

pub(super) fn mcl_logit_kd(trial: &Trial<'_>) -> Result<Tensors> {
    let logits = trial.networks("z")?;
    let t = trial.number("t", MclParams::default().kd_t)?;
    let mut total = zero(&logits[0])?;
    for me in trial.learners("z", logits.len(), logits.len() - 1) {
        total = (total + ensemble_kl(me, &logits, t)?)?;
    }
    Ok(super::loss(total))
}
