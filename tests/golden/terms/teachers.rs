//! Terms of a student and a source: logits `z_s` and `z_t` `[B, C]`, labels `y` `[B]`; `kd_fn` has the student's features `f`
//! `[B, D]`, its classifier's `w` `[C, D]` (and bias `b` `[C]`) and the teacher's normalised logits `z_t_fn` in their place. The
//! loss is the whole one, with cross-entropy where the paper has it; of `ktg_edge` it is the edge alone. `afd` has what a
//! discriminator said `d_other`, `d_own` `[B, 1]`; its loss is that of the discriminator, twice that of the generator and
//! that of the logits.

use anyhow::Result;
use candle_core::Tensor;
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::primitives::widen;
use cohort_peer::methods::terms::afd::{self, AfdParams};
use cohort_peer::methods::terms::dkd::{self, DkdParams, warm_up};
use cohort_peer::methods::terms::gate::{Gate, Moment};
use cohort_peer::methods::terms::kd::{self, KdParams};
use cohort_peer::methods::terms::kd_fn::{self, Form, KdFnParams};
use cohort_peer::methods::terms::ktg::{self, KtgParams};
use cohort_peer::methods::terms::mean;
use cohort_peer::methods::terms::tsd::TsdParams;

use crate::case::{Tensors, Trial};

struct Pair {
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
}

impl Pair {
    fn of(trial: &Trial<'_>) -> Result<Self> {
        let (student, teacher) = (trial.float("z_s")?, trial.float("z_t")?);
        Ok(Self { student, teacher, labels: trial.integers("y")? })
    }

    fn mixed(&self, w_ce: f64, w_kd: f64, params: &KdParams) -> Result<Tensors> {
        let term = mean(&kd::rows(&self.student, &self.teacher, params)?)?;
        Ok(super::loss(((cross_entropy(&self.student, &self.labels)? * w_ce)? + (term * w_kd)?)?))
    }
}

pub(super) fn kd(trial: &Trial<'_>) -> Result<Tensors> {
    let params = KdParams { t: trial.number("t", KdParams::default().t)? };
    Pair::of(trial)?.mixed(trial.number("w_ce", 0.1)?, trial.number("w_kd", 0.9)?, &params)
}

pub(super) fn tsd_student(trial: &Trial<'_>) -> Result<Tensors> {
    let lambda = trial.number("lambda", TsdParams::default().lambda)?;
    Pair::of(trial)?.mixed(lambda, 1.0 - lambda, &KdParams { t: 1.0 })
}

pub(super) fn dkd(trial: &Trial<'_>) -> Result<Tensors> {
    let Pair { student, teacher, labels } = Pair::of(trial)?;
    let default = DkdParams::default();
    let params = DkdParams {
        alpha: trial.number("alpha", default.alpha)?,
        beta: trial.number("beta", default.beta)?,
        t: trial.number("t", default.t)?,
    };
    let factor = warm_up(trial.number("epoch", 1.0)? as u64, trial.number("warmup", 20.0)? as u64);
    let ce = (cross_entropy(&student, &labels)? * trial.number("w_ce", 1.0)?)?;
    let term = mean(&dkd::rows(&student, &teacher, &labels, &params, factor)?)?;
    let parts = dkd::parts(&student, &teacher, &labels, params.t)?;
    let mut outputs = super::loss((ce + term)?);
    outputs.insert("tckd".to_owned(), mean(&parts.tckd)?);
    outputs.insert("nckd".to_owned(), mean(&parts.nckd)?);
    Ok(outputs)
}

pub(super) fn kd_fn(trial: &Trial<'_>) -> Result<Tensors> {
    let params = KdFnParams {
        tau: trial.number("tau", KdFnParams::default().tau)?,
        form: trial.choice("form", &[("clip", Form::Clip), ("paper", Form::Paper)])?,
    };
    let (f, w, b) = (trial.float("f")?, trial.float("w")?, trial.optional("b")?);
    let z_fn = kd_fn::logits(&f, &w, b.as_ref(), &params)?;
    let mut z = widen(&f)?.matmul(&widen(&w)?.t()?)?;
    if let Some(b) = &b {
        z = z.broadcast_add(&widen(b)?)?;
    }
    let term = (mean(&kd_fn::rows(&z_fn, &trial.float("z_t_fn")?)?)? * trial.number("lambda2", 9.0)?)?;
    let mut outputs = super::loss((cross_entropy(&z, &trial.integers("y")?)? + term)?);
    outputs.insert("z_fn".to_owned(), z_fn);
    Ok(outputs)
}

pub(super) fn ktg_edge(trial: &Trial<'_>) -> Result<Tensors> {
    let Pair { student, teacher, labels } = Pair::of(trial)?;
    let gates = [
        ("through", Gate::Through),
        ("cutoff", Gate::Cutoff),
        ("linear", Gate::Linear),
        ("negative_linear", Gate::NegativeLinear),
        ("correct", Gate::Correct),
    ];
    let params =
        KtgParams { t: trial.number("t", KtgParams::default().t)?, gate: trial.choice("gate", &gates)? };
    let at = Moment {
        iteration: trial.number("iteration", 0.0)? as u64,
        iterations: trial.number("iterations", 1.0)? as u64,
    };
    Ok(super::loss(ktg::edge(&student, &teacher, &labels, &params, at)?))
}

pub(super) fn afd(trial: &Trial<'_>) -> Result<Tensors> {
    let Pair { student, teacher, labels } = Pair::of(trial)?;
    let params = AfdParams { t: trial.number("t", AfdParams::default().t)? };
    let (of_other, of_own) = (trial.float("d_other")?, trial.float("d_own")?);
    let discriminator = mean(&afd::discriminator_rows(&of_other, &of_own)?)?;
    let generator = mean(&afd::generator_rows(&of_own)?)?;
    let distilled = mean(&afd::logit_rows(&student, &teacher, &params)?)?;
    let logit = (cross_entropy(&student, &labels)? + distilled)?;
    let mut outputs = super::loss(((&discriminator + (&generator * 2.0)?)? + &logit)?);
    for (name, value) in [("discriminator", discriminator), ("generator", generator), ("logit", logit)] {
        outputs.insert(name.to_owned(), value);
    }
    Ok(outputs)
}
