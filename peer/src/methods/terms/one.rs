//! Distillation from a gated ensemble (Zhu et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
//! equations 3 to 7), adapted to separate networks.
//!
//! In the paper M branches on a shared trunk have a gate that weighs their logits. Here each network is on its own and
//! makes a score of its last feature, `relu(BN(w·f + b))` `[B, 1]`; the softmax over the networks' scores is the gate:
//!
//! ```text
//! z^e = Σ_i g_i·z_i ,   g = softmax_i(score_i)
//! L   = Σ_i CE(z_i, y) + CE(z^e, y) + ω(e)·Σ_i KL_T(z_i ‖ sg z^e)       T = 3
//! ω(e) = exp(-5·(1 - min(e, 80)/80)²)                                     e from 0
//! ```
//!
//! `CE(z^e, y)` is one term of the whole cohort, through which all logits and scores get a gradient. Each
//! network evaluates it with its own tensors and those of the others as constants, which is its part of that gradient.
//! The authors add 1e-7 to every entry of the divergence's target; here it is exact.

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, positive};
use super::mean;
use crate::methods::cross_entropy;
use crate::methods::primitives::{check_alike, log_softmax, soft_kl_each, widen, zero};

/// Hyper-parameters of the gated ensemble.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneParams {
    /// Temperature of the divergence.
    pub t: f64,
    /// Epochs over which the divergence is ramped up; 0 for none.
    pub ramp: u64,
}

impl Default for OneParams {
    fn default() -> Self {
        Self { t: 3.0, ramp: 80 }
    }
}

impl OneParams {
    /// Whether the terms can be used, with any number of classes.
    ///
    /// # Errors
    /// A temperature that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)
    }

    /// ω of an epoch, counted from 0: the weight of the divergence.
    pub fn ramp_at(&self, epoch: u64) -> f64 {
        if epoch >= self.ramp {
            return 1.0;
        }
        let left = 1.0 - epoch as f64 / self.ramp as f64;
        (-5.0 * left * left).exp()
    }
}

/// `z^e` `[B, C]` as network `me` differentiates it: `logits` `[B, C]` and `scores` `[B, 1]` of all M networks in ascending
/// order, constants but for its own.
///
/// # Errors
/// A network without logits or without scores, or shapes that differ.
pub fn ensemble(me: usize, logits: &[Tensor], scores: &[Tensor]) -> Result<Tensor> {
    if me >= logits.len() {
        candle_core::bail!("network {me} of {} has no logits", logits.len());
    }
    let constant_but_own = |all: &[Tensor]| -> Vec<Tensor> {
        all.iter().enumerate().map(|(i, x)| if i == me { x.clone() } else { x.detach() }).collect()
    };
    combine(&constant_but_own(logits), &constant_but_own(scores))
}

/// `CE(z^e, y)` of each sample, `[B]`; `z^e` `[B, C]` as [`ensemble`] makes it.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn ensemble_rows(ensemble: &Tensor, labels: &Tensor) -> Result<Tensor> {
    cross_entropy::rows(ensemble, labels)
}

/// `KL_T(z_i ‖ sg z^e)` of each sample, `[B]`; both `[B, C]`.
///
/// # Errors
/// If the shapes differ.
pub fn rows(student: &Tensor, ensemble: &Tensor, params: &OneParams) -> Result<Tensor> {
    soft_kl_each(student, ensemble, params.t)
}

/// The loss of all networks together; scalar. Its gradient for network i is that of
/// `CE(z_i, y) + CE(z^e, y) + ramp·KL_T(z_i ‖ sg z^e)` with `z^e` as network i differentiates it.
///
/// # Errors
/// As [`ensemble`].
pub fn joint(
    logits: &[Tensor],
    scores: &[Tensor],
    labels: &Tensor,
    params: &OneParams,
    ramp: f64,
) -> Result<Tensor> {
    let ensemble = combine(logits, scores)?;
    let mut total = mean(&ensemble_rows(&ensemble, labels)?)?;
    for z in logits {
        let own = cross_entropy::cross_entropy(z, labels)?;
        total = ((total + own)? + (mean(&rows(z, &ensemble, params)?)? * ramp)?)?;
    }
    Ok(total)
}

fn combine(logits: &[Tensor], scores: &[Tensor]) -> Result<Tensor> {
    let Some(first) = logits.first() else {
        candle_core::bail!("a cohort needs at least one network");
    };
    if scores.len() != logits.len() {
        candle_core::bail!("{} networks with logits, but {} with scores", logits.len(), scores.len());
    }
    let batch = first.dim(0)?;
    if let Some(odd) = scores.iter().find(|score| score.dims() != [batch, 1]) {
        candle_core::bail!("the scores of a network are {:?}, expected {:?}", odd.dims(), [batch, 1]);
    }
    let wide = scores.iter().map(widen).collect::<Result<Vec<_>>>()?;
    let gates = log_softmax(&Tensor::cat(&wide, 1)?)?.exp()?;
    let mut total = zero(first)?.broadcast_as(first.shape())?;
    for (i, z) in logits.iter().enumerate() {
        check_alike(first, z)?;
        total = (total + widen(z)?.broadcast_mul(&gates.narrow(1, i, 1)?)?)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::methods::tests::*;

    /// `relu(f_i[:,0] - 0.8)`.
    fn score_of(i: usize) -> Result<Tensor> {
        (feature_of(i)?.narrow(1, 0, 1)? - 0.8)?.relu()
    }

    fn share(me: usize, z: &[Tensor], scores: &[Tensor], ramp: f64) -> Result<Tensor> {
        let y = labels(&LABELS)?;
        let ensemble = ensemble(me, z, scores)?;
        let own = cross_entropy::cross_entropy(&z[me], &y)?;
        let kl = mean(&rows(&z[me], &ensemble, &OneParams::default())?)?;
        (own + mean(&ensemble_rows(&ensemble, &y)?)?)? + (kl * ramp)?
    }

    #[test]
    fn has_the_printed_values() {
        let (z, scores) = (all(3, logits_of).unwrap(), all(3, score_of).unwrap());
        let ensemble = ensemble(0, &z, &scores).unwrap();
        let ce = mean(&ensemble_rows(&ensemble, &labels(&LABELS).unwrap()).unwrap()).unwrap();
        close(value(&ce), 2.640992499520, 1e-12);
        let kl = mean(&rows(&z[0], &ensemble, &OneParams::default()).unwrap()).unwrap();
        close(value(&kl), 0.695972124707, 1e-12);
    }

    #[test]
    fn shares_have_the_gradients_of_the_whole() {
        let (vz, z) = variables(&all(3, logits_of).unwrap()).unwrap();
        let (vs, scores) = variables(&all(3, score_of).unwrap()).unwrap();
        let whole = joint(&z, &scores, &labels(&LABELS).unwrap(), &OneParams::default(), 0.3).unwrap();
        for me in 0..3 {
            let mine = share(me, &z, &scores, 0.3).unwrap();
            for v in [&vz[me], &vs[me]] {
                let (got, expected) = (gradient(&mine, v), gradient(&whole, v));
                assert!(frobenius(&expected) > 1e-3);
                assert!(largest_difference(&got, &expected) < 1e-15);
            }
            let other = (me + 1) % 3;
            assert!(gradient(&mine, &vz[other]).iter().all(|g| *g == 0.0));
            assert!(gradient(&mine, &vs[other]).iter().all(|g| *g == 0.0));
        }
    }

    #[test]
    fn through_the_own_logits_and_the_own_score_the_slopes_are_those_of_the_value() {
        let (z, scores) = (all(3, logits_of).unwrap(), all(3, score_of).unwrap());
        let at = |me: usize, all: &[Tensor], own: &Tensor| {
            let mut all = all.to_vec();
            all[me] = own.clone();
            all
        };
        let ce = |z: &[Tensor], s: &[Tensor]| mean(&ensemble_rows(&ensemble(1, z, s)?, &labels(&LABELS)?)?);
        check_gradient(&z[1], |own| ce(&at(1, &z, own), &scores));
        check_gradient(&scores[1], |own| ce(&z, &at(1, &scores, own)));
    }

    #[test]
    fn the_ramp_ends_at_one() {
        let params = OneParams::default();
        close(params.ramp_at(0), (-5f64).exp(), 1e-15);
        close(params.ramp_at(40), (-1.25f64).exp(), 1e-15);
        assert_eq!([80, 300].map(|epoch| params.ramp_at(epoch)), [1.0, 1.0]);
        assert_eq!(OneParams { ramp: 0, ..params }.ramp_at(0), 1.0);
    }

    #[test]
    fn stays_finite() {
        check_finite(|s, t, y| {
            let score = Tensor::full(1e4f32, (s.dim(0)?, 1), s.device())?.to_dtype(s.dtype())?;
            let of = |scores: [Tensor; 2]| {
                let ensemble = ensemble(0, &[s.clone(), t.clone()], &scores)?;
                ensemble_rows(&ensemble, y)? + rows(s, &ensemble, &OneParams::default())?
            };
            of([score.clone(), score.neg()?])? + of([score.neg()?, score.clone()])?
        });
    }

    #[test]
    fn refuses_who_is_missing() {
        let (z, scores) = (all(2, logits_of).unwrap(), all(2, score_of).unwrap());
        assert!(ensemble(2, &z, &scores).is_err());
        assert!(ensemble(0, &z, &scores[..1]).is_err());
        assert!(ensemble(0, &[], &[]).is_err());
        assert!(ensemble(0, &z, &z).is_err());
        assert!(ensemble(0, &[z[0].clone(), z[1].narrow(1, 0, 4).unwrap()], &scores).is_err());
        assert_eq!(ensemble(0, &z, &scores).unwrap().dtype(), DType::F64);
        assert!(OneParams { t: 0.0, ramp: 80 }.check(10).is_err() && OneParams::default().check(2).is_ok());
    }
}
