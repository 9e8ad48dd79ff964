//! `ce`: logits `z` `[B, C]`, labels `y` `[B]`.

use anyhow::Result;
use cohort_peer::methods::cross_entropy::cross_entropy;

use crate::case::{Tensors, Trial};

pub(super) fn ce(trial: &Trial<'_>) -> Result<Tensors> {
    Ok(super::loss(cross_entropy(&trial.float("z")?, &trial.integers("y")?)?))
}
