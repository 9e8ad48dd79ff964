//! `metrics`: logits `z` `[N, C]`, labels `y` `[N]`. They are computed in double precision whatever the logits are.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use cohort_peer::evaluate::evaluate;

use crate::case::{Tensors, Trial};

pub(super) fn metrics(trial: &Trial<'_>) -> Result<Tensors> {
    let logits = trial.float("z")?.to_dtype(DType::F64)?;
    let (_, classes) = logits.dims2()?;
    let labels = trial.integers("y")?.to_vec1::<i64>()?;
    let labels = labels.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>()?;
    let metrics = evaluate(&logits.flatten_all()?.to_vec1()?, classes, &labels)?;
    let named = [
        ("top1", metrics.top1),
        ("top5", metrics.top5),
        ("nll", metrics.nll),
        ("ece15", metrics.ece),
        ("ece10", metrics.ece10),
        ("brier", metrics.brier),
        ("aurc", metrics.aurc),
        ("eaurc", metrics.e_aurc),
    ];
    named.into_iter().map(|(name, x)| Ok((name.to_owned(), Tensor::new(x, &Device::Cpu)?))).collect()
}
