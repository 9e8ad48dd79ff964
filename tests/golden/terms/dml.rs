//! `dml`: logits `z0`, `z1`, … `[B, C]`, labels `y` `[B]`; the loss of the networks that have a gradient, else of
//! network 0.

use anyhow::Result;
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::dml::mimicry;
use cohort_peer::methods::primitives::zero;
use cohort_peer::methods::{DmlParams, Reduce, Target};

use crate::case::{Tensors, Trial};

pub(super) fn dml(trial: &Trial<'_>) -> Result<Tensors> {
    let (logits, labels) = (trial.networks("z")?, trial.integers("y")?);
    let params = DmlParams {
        t: trial.number("t", DmlParams::default().t)?,
        reduce: trial.choice("reduce", &[("mean", Reduce::Mean), ("sum", Reduce::Sum)])?,
        target: trial.choice("target", &[("each", Target::Each), ("ensemble", Target::Ensemble)])?,
    };
    let mut total = zero(&logits[0])?;
    for me in trial.learners("z", logits.len(), 0) {
        let own = (cross_entropy(&logits[me], &labels)? + mimicry(me, &logits, &params)?)?;
        total = (total + own)?;
    }
    Ok(super::loss(total))
}
