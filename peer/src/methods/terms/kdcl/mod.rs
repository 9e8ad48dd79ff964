//! Collaborative learning (Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section
//! 3.2): all networks learn from one target that is made of everybody's logits.
//!
//! `L_i = CE(z_i, y) + λ·KL_T(z_i ‖ sg z^t)` with λ = 1, T = 2 and, for the class c = y_n of sample n,
//!
//! * **naive**: the logits of the network with the smallest cross-entropy; of equal ones the first network's;
//! * **minlogit**: `z^t[k] = min_i (z_i[k] - z_i[c])`;
//! * **linear**: `Σ α_i·z_i` with α in the simplex, minimising the cross-entropy, sample by sample ([`linear`]);
//! * **general**: `Σ w_i·z_i` with one w for all samples, from errors on held-out data ([`general`]);
//! * **mean**: the mean of the logits, as in published re-implementations.
//!
//! The target is a constant.

use candle_core::{DType, Result, Tensor};

use super::checks::{ParamsError, positive};
use crate::methods::primitives::{check_alike, classes_of, constant, one_hot, soft_kl_each, widen, zero};

pub mod general;
pub mod linear;

/// What the target is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// The smallest of what each says above the label.
    #[default]
    MinLogit,
    /// The best network of each sample.
    Naive,
    /// The best convex combination for each sample.
    Linear,
    /// One combination for all samples.
    General,
    /// The mean.
    Mean,
}

/// Hyper-parameters of collaborative learning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KdclParams {
    /// Temperature.
    pub t: f64,
    /// What the target is made by.
    pub target: Target,
}

impl Default for KdclParams {
    fn default() -> Self {
        Self { t: 2.0, target: Target::MinLogit }
    }
}

impl KdclParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A temperature that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)
    }
}

/// `z^t` `[B, C]`, a constant in the dtype of losses: `logits` `[B, C]` of all M networks in ascending order, labels `[B]`;
/// `weights` `[M]` for [`Target::General`], else none.
///
/// # Errors
/// No networks, logits of different shapes, a label that is no class, weights missing or of another number.
pub fn target(logits: &[Tensor], labels: &Tensor, target: Target, weights: Option<&[f64]>) -> Result<Tensor> {
    let Some(first) = logits.first() else {
        candle_core::bail!("a cohort needs at least one network");
    };
    let mut wide = Vec::with_capacity(logits.len());
    for z in logits {
        check_alike(first, z)?;
        wide.push(widen(&z.detach().to_device(first.device())?)?);
    }
    match target {
        Target::MinLogit => min_logit(&wide, labels),
        Target::Naive => {
            by_sample(&wide, labels, |rows, class| linear::vertex(linear::best(rows, class), rows))
        }
        Target::Linear => by_sample(&wide, labels, linear::weights),
        Target::Mean => combination(&wide, &vec![1.0 / wide.len() as f64; wide.len()]),
        Target::General => match weights {
            Some(weights) => combination(&wide, weights),
            None => candle_core::bail!("the general target needs the weights of the networks"),
        },
    }
}

/// `KL_T(z_i ‖ z^t)` of each sample, `[B]`; both `[B, C]`, the target a constant.
///
/// # Errors
/// If the shapes differ.
pub fn rows(student: &Tensor, target: &Tensor, params: &KdclParams) -> Result<Tensor> {
    soft_kl_each(student, target, params.t)
}

fn min_logit(logits: &[Tensor], labels: &Tensor) -> Result<Tensor> {
    let onehot = one_hot(labels, &logits[0])?;
    let above = |z: &Tensor| z.broadcast_sub(&(z * &onehot)?.sum_keepdim(1)?);
    let mut least = above(&logits[0])?;
    for z in &logits[1..] {
        least = least.minimum(&above(z)?)?;
    }
    Ok(least)
}

fn combination(logits: &[Tensor], weights: &[f64]) -> Result<Tensor> {
    if weights.len() != logits.len() {
        candle_core::bail!("{} weights for {} networks", weights.len(), logits.len());
    }
    let mut total = zero(&logits[0])?.broadcast_as(logits[0].shape())?;
    for (z, weight) in logits.iter().zip(weights) {
        total = (total + (z * *weight)?)?;
    }
    Ok(total)
}

/// The combination of each sample's rows with weights `[M]` of its own.
fn by_sample(
    logits: &[Tensor],
    labels: &Tensor,
    weigh: impl Fn(&[&[f64]], usize) -> Vec<f64>,
) -> Result<Tensor> {
    let (batch, classes) = logits[0].dims2()?;
    let labels = classes_of(labels, &logits[0])?;
    let rows = logits.iter().map(|z| z.to_dtype(DType::F64)?.to_vec2::<f64>());
    let rows: Vec<Vec<Vec<f64>>> = rows.collect::<Result<_>>()?;
    let mut target = Vec::with_capacity(batch * classes);
    for (n, class) in labels.into_iter().enumerate() {
        let of_sample: Vec<&[f64]> = rows.iter().map(|z| z[n].as_slice()).collect();
        let weights = weigh(&of_sample, class);
        target.extend((0..classes).map(|k| linear::weighted(&of_sample, &weights, k)));
    }
    constant(target, (batch, classes), &logits[0])
}

#[cfg(test)]
mod tests;
