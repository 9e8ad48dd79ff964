//! Deep Mutual Learning (Zhang et al., CVPR 2018): every network learns from the softened answers of the others.

use candle_core::{Result, Tensor};

use super::cross_entropy::cross_entropy;
use super::primitives::{soft_kl_of_logs, soften, zero};

/// How the divergences from several others become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduce {
    /// Their mean, as in the paper (equation 8).
    #[default]
    Mean,
    /// Their sum, as in the authors' TensorFlow code.
    Sum,
}

/// What a network is drawn towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// Each of the others, one divergence apiece (DML).
    #[default]
    Each,
    /// One divergence from the mean of the others' softmax (the paper's DML_e); [`Reduce`] has nothing to act on.
    Ensemble,
}

/// Hyper-parameters of Deep Mutual Learning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DmlParams {
    /// Temperature.
    pub t: f64,
    /// How several divergences are combined.
    pub reduce: Reduce,
    /// What the divergence is taken from.
    pub target: Target,
}

impl Default for DmlParams {
    fn default() -> Self {
        Self { t: 1.0, reduce: Reduce::Mean, target: Target::Each }
    }
}

/// The mimicry loss of network `me`: `1/(M-1) Σ_{j≠me} KL_T(z_me ‖ z_j)` with the default parameters; scalar.
///
/// `logits` holds the `[B, C]` of all M networks in ascending order. Only `logits[me]` receives a gradient: it is a
/// student in these terms and a constant teacher in everybody else's. 0 for M = 1.
pub fn mimicry(me: usize, logits: &[Tensor], params: &DmlParams) -> Result<Tensor> {
    let Some(own) = logits.get(me) else {
        candle_core::bail!("network {me} of {} has no logits", logits.len());
    };
    let others = logits.iter().enumerate().filter(|(j, _)| *j != me).map(|(_, z)| z.detach());
    let others: Vec<Tensor> = others.collect();
    let mut total = zero(own)?;
    if others.is_empty() {
        return Ok(total);
    }
    let student = soften(own, params.t)?;
    if params.target == Target::Ensemble {
        return soft_kl_of_logs(&student, &log_mean_softmax(&others, params.t)?, params.t);
    }
    for teacher in &others {
        total = (total + soft_kl_of_logs(&student, &soften(teacher, params.t)?, params.t)?)?;
    }
    match params.reduce {
        Reduce::Sum => Ok(total),
        Reduce::Mean => total / others.len() as f64,
    }
}

/// The loss of all networks together, `Σ_i CE(z_i, y) + mimicry_i`; scalar.
///
/// Its gradient for network i equals that of `CE(z_i, y) + mimicry(i)`.
pub fn joint(logits: &[Tensor], labels: &Tensor, params: &DmlParams) -> Result<Tensor> {
    let Some(first) = logits.first() else {
        candle_core::bail!("a cohort needs at least one network");
    };
    let mut total = zero(first)?;
    for (i, z) in logits.iter().enumerate() {
        total = ((total + cross_entropy(z, labels)?)? + mimicry(i, logits, params)?)?;
    }
    Ok(total)
}

/// Logarithm of the mean of the softened distributions, `[B, C]`; a class that all of them rule out stays finite.
fn log_mean_softmax(logits: &[Tensor], temperature: f64) -> Result<Tensor> {
    let logs = logits.iter().map(|z| soften(z, temperature)).collect::<Result<Vec<_>>>()?;
    let logs = Tensor::stack(&logs, 0)?;
    let top = logs.max_keepdim(0)?;
    let sum = logs.broadcast_sub(&top)?.exp()?.sum_keepdim(0)?;
    ((top + sum.log()?)? - (logits.len() as f64).ln())?.squeeze(0)
}
