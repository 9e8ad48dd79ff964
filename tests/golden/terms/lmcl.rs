//! `lmcl_step`, `lmcl_inner`: unit embeddings `vIK` and matching features `uIK` `[B, ·]` of stage K of network I,
//! `labels` `[B]`; the four terms over all pairs of stages, their weighted sum, and the weights `lambda_IK_JZ` `[B]` that
//! are asked for. In the first the weights are constants, in the second they have gradients.

use anyhow::{Context, Result};
use candle_core::Tensor;
use cohort_peer::methods::lmcl::{self, LMclParams, Matching};
use cohort_peer::methods::{Heard, Own, Weighted};

use crate::case::{Tensors, Trial};

type Joint = fn(&[(&[Tensor], &[Tensor])], &Tensor, &LMclParams) -> candle_core::Result<Vec<Weighted>>;

pub(super) fn step(trial: &Trial<'_>) -> Result<Tensors> {
    all_terms(trial, lmcl::contrast_joint)
}

pub(super) fn inner(trial: &Trial<'_>) -> Result<Tensors> {
    all_terms(trial, lmcl::inner_joint)
}

fn all_terms(trial: &Trial<'_>, joint: Joint) -> Result<Tensors> {
    let (embeddings, matching) = (trial.stages("v")?, trial.stages("u")?);
    let cohort = embeddings.iter().zip(&matching);
    let stages: Vec<(&[Tensor], &[Tensor])> = cohort.map(|(v, u)| (v.as_slice(), u.as_slice())).collect();
    let terms = joint(&stages, &trial.integers("labels")?, &params(trial)?)?;
    outputs(trial, terms, &matching)
}

fn params(trial: &Trial<'_>) -> Result<LMclParams> {
    let default = LMclParams::default();
    Ok(LMclParams {
        alpha: trial.number("alpha", default.alpha)?,
        beta: trial.number("beta", default.beta)?,
        gamma: trial.number("gamma", default.gamma)?,
        lam: trial.number("lam", default.lam)?,
        tau: trial.number("tau", default.tau)?,
        kd_t: trial.number("kd_t", default.kd_t)?,
        double: trial.flag("double", default.double)?,
        matching: trial.choice("matching", &MATCHINGS)?,
        ..default
    })
}

const MATCHINGS: [(&str, Matching); 3] =
    [("learned", Matching::Learned), ("uniform", Matching::Uniform), ("one-to-one", Matching::OneToOne)];

fn outputs(trial: &Trial<'_>, terms: Vec<Weighted>, matching: &[Vec<Tensor>]) -> Result<Tensors> {
    let mut outputs = Tensors::new();
    let mut total: Option<Tensor> = None;
    for (name, weight, value) in terms {
        let weighted = (&value * weight)?;
        total = Some(match total {
            None => weighted,
            Some(total) => (total + weighted)?,
        });
        outputs.insert(name.to_owned(), value);
    }
    outputs.insert("loss".to_owned(), total.context("no term has a weight")?);
    for name in trial.expected().filter(|name| name.starts_with("lambda_")) {
        let place = |text: &str| -> Option<Tensor> {
            let mut digits = text.chars().map(|digit| digit.to_digit(10));
            let (network, stage) = (digits.next()??, digits.next()??);
            matching.get(network as usize)?.get(stage as usize).cloned()
        };
        let stages = name.trim_start_matches("lambda_").split_once('_');
        let (a, b) = stages.with_context(|| format!("{name} names no two stages"))?;
        let stage = |text| place(text).with_context(|| format!("{name} names no stage that is there"));
        outputs.insert(name.clone(), lmcl::weight(&stage(a)?, &stage(b)?)?);
    }
    Ok(outputs)
}

/// `lmcl_logits`: logits `zK` `[B, C]` of stage K of network 0, its aggregated logits `a0` and those `aJ` of the others J,
/// labels `y`; the terms of network 0 that have nothing to do with embeddings, and their sum.
pub(super) fn logits(trial: &Trial<'_>) -> Result<Tensors> {
    let (stages, aggregated) = (trial.networks("z")?, trial.networks("a")?);
    let last = stages.last().context("no stage")?;
    let heard = aggregated.iter().enumerate().skip(1);
    let heard = heard.map(|(j, a)| Heard { aggregated: Some(a.clone()), ..Heard::nothing(j) });
    let own = Own { stage_logits: &stages, aggregated: aggregated.first(), ..Own::new(last, &[]) };
    let (alpha, beta, gamma, lam) = (0.0, 0.0, 0.0, 0.0);
    let params = LMclParams { alpha, beta, gamma, lam, ..params(trial)? };
    let terms = lmcl::share(0, own, &heard.collect::<Vec<_>>(), &trial.integers("y")?, &params)?;
    outputs(trial, terms, &[])
}

/// `aggregator`: pooled features `fK` `[B, d]` and logits `zK` `[B, C]` of stage K, the two layers `w0`, `b0`, `w2`, `b2` of
/// the network that weighs the stages, labels `y`; the aggregated logits `a` and their cross-entropy.
pub(super) fn aggregator(trial: &Trial<'_>) -> Result<Tensors> {
    let features = Tensor::cat(&trial.networks("f")?, 1)?;
    let hidden = linear(&features, &trial.float("w0")?, &trial.float("b0")?)?;
    let hidden = cohort_peer::kernels::relu(&hidden)?;
    let scores = linear(&hidden, &trial.float("w2")?, &trial.float("b2")?)?;
    let a = lmcl::aggregate(&lmcl::mixture(&scores)?, &trial.networks("z")?)?;
    let loss = cohort_peer::methods::cross_entropy::cross_entropy(&a, &trial.integers("y")?)?;
    Ok(Tensors::from([("a".to_owned(), a), ("loss".to_owned(), loss)]))
}

fn linear(x: &Tensor, w: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&w.t()?)?.broadcast_add(b)
}
