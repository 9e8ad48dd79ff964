//! The objectives of L-MCL over a whole cohort in one graph (Yang et al., TPAMI 2023), written a second time: term by
//! term as the paper sums them, in candle's own operations. Nothing of `cohort_peer::methods::lmcl` computes here, so
//! that what is missing or doubled there shows.

use candle_core::{D, DType, Device, Result, Tensor};
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::primitives::{log_softmax, widen};
use cohort_peer::methods::{LMclParams, Matching, Own};

/// What L-MCL compares of one network.
#[derive(Debug, Clone)]
pub struct Stages {
    /// Unit rows `v_k` `[B, E]`.
    pub embeddings: Vec<Tensor>,
    /// Unit rows `u_k` `[B, D]`; empty unless matching is learned.
    pub matching: Vec<Tensor>,
}

impl Stages {
    /// In the dtype of losses, with their graph.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(embeddings: &[Tensor], matching: &[Tensor]) -> Result<Self> {
        let wide = |tensors: &[Tensor]| tensors.iter().map(widen).collect::<Result<Vec<_>>>();
        Ok(Self { embeddings: wide(embeddings)?, matching: wide(matching)? })
    }

    /// The same values without a graph.
    pub fn constant(&self) -> Self {
        let constant = |tensors: &[Tensor]| tensors.iter().map(Tensor::detach).collect();
        Self { embeddings: constant(&self.embeddings), matching: constant(&self.matching) }
    }
}

/// What all networks, given in ascending index, minimise in a training step: λ and the teachers are constants. Of the networks
/// in `relabelled` the cross-entropy of the last stage is left out.
///
/// # Errors
/// Outputs missing that the method makes; shapes that do not fit.
pub fn step(
    cohort: &[Own<'_>],
    labels: &Tensor,
    params: &LMclParams,
    relabelled: &[usize],
) -> Result<Tensor> {
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    let mut teachers = Vec::new();
    for (index, own) in cohort.iter().enumerate() {
        let Some(aggregated) = own.aggregated else { candle_core::bail!("a network aggregated nothing") };
        let last = usize::from(relabelled.contains(&index));
        let stages = own.stage_logits.iter().rev().skip(last).rev();
        for z in stages.chain([aggregated]) {
            total = (total + cross_entropy(z, labels)?.to_dtype(DType::F64)?)?;
        }
        teachers.push(widen(aggregated)?);
    }
    if params.kd {
        for own in cohort {
            let student = widen(own.logits)?;
            for teacher in &teachers {
                total = (total + divergence(&student, teacher, params.kd_t)?.mean(0)?)?;
            }
        }
    }
    let stages = cohort.iter().map(|own| Stages::of(own.embeddings, own.matching));
    let stages = stages.collect::<Result<Vec<_>>>()?;
    let teachers: Vec<Stages> = stages.iter().map(Stages::constant).collect();
    let students = stages.into_iter().zip(&teachers);
    let students: Vec<Stages> =
        students.map(|(own, same)| Stages { matching: same.matching.clone(), ..own }).collect();
    total + contrast(&students, &teachers, labels, params)?
}

/// `Σ_{i≠j} Σ_{k,z} ℓ(ik, jz)` over ordered pairs of networks, each pair of stages with all eight terms; KL targets
/// are made of `teachers`, λ has a gradient if the matching features have.
///
/// # Errors
/// Shapes that do not fit.
pub fn contrast(
    cohort: &[Stages],
    teachers: &[Stages],
    labels: &Tensor,
    params: &LMclParams,
) -> Result<Tensor> {
    let batch = Batch::new(labels, params)?;
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (i, j) in (0..cohort.len()).flat_map(|j| (0..j).map(move |i| (i, j))) {
        let (first, second) = (&cohort[i], &cohort[j]);
        for (k, a) in first.embeddings.iter().enumerate() {
            for (z, b) in second.embeddings.iter().enumerate() {
                let aligned = first.embeddings.len() - k == second.embeddings.len() - z;
                if params.matching == Matching::OneToOne && !aligned {
                    continue;
                }
                let lambda = match params.matching {
                    Matching::Learned => sigmoid(&(&first.matching[k] * &second.matching[z])?.sum(1)?)?,
                    Matching::Uniform | Matching::OneToOne => batch.ones()?,
                };
                let frozen = [&teachers[i].embeddings[k], &teachers[j].embeddings[z]];
                total = (total + batch.pair([a, b], frozen, &lambda)?)?;
            }
        }
    }
    // The sum over ordered pairs meets each pair twice.
    total * if params.double { 2.0 } else { 1.0 }
}

pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// `T² KL(teacher ‖ student)` `[B]` of softened rows; the teacher is a constant.
pub(crate) fn divergence(student: &Tensor, teacher: &Tensor, t: f64) -> Result<Tensor> {
    let (p, q) = (log_softmax(&(teacher.detach() / t)?)?, log_softmax(&(student / t)?)?);
    (p.exp()? * (&p - q)?)?.sum(D::Minus1)? * (t * t)
}

/// Who is whose positive in a batch.
struct Batch<'a> {
    /// `[B, B]`: 1 / (anchors that have positives · positives of the row) at positives, 0 elsewhere.
    share: Tensor,
    /// `[B, B]`: far below every score on the diagonal, 0 elsewhere.
    no_self: Tensor,
    params: &'a LMclParams,
}

impl<'a> Batch<'a> {
    fn new(labels: &Tensor, params: &'a LMclParams) -> Result<Self> {
        let y = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let b = y.len();
        let positive = |n: usize, m: usize| n != m && y[n] == y[m];
        let counts: Vec<usize> = (0..b).map(|n| (0..b).filter(|m| positive(n, *m)).count()).collect();
        let anchors = counts.iter().filter(|count| **count > 0).count();
        let share = |n: usize, m: usize| {
            if positive(n, m) { 1.0 / (anchors * counts[n]) as f64 } else { 0.0 }
        };
        let square = |f: &dyn Fn(usize, usize) -> f64| {
            let cells = (0..b).flat_map(|n| (0..b).map(move |m| (n, m)));
            Tensor::from_vec(cells.map(|(n, m)| f(n, m)).collect(), (b, b), &Device::Cpu)
        };
        let no_self = square(&|n, m| if n == m { -1e30 } else { 0.0 })?;
        Ok(Self { share: square(&share)?, no_self, params })
    }

    fn ones(&self) -> Result<Tensor> {
        Tensor::ones(self.share.dim(0)?, DType::F64, &Device::Cpu)
    }

    /// The supervised contrast of scores `[B, B]`, anchors weighted by λ `[B]`.
    fn con(&self, scores: &Tensor, lambda: &Tensor) -> Result<Tensor> {
        let rows = (log_softmax(&(scores + &self.no_self)?)? * &self.share)?.sum(D::Minus1)?;
        (rows * lambda)?.sum_all()?.neg()
    }

    /// `ℓ` of two embeddings, its teachers made of `frozen`.
    fn pair(&self, [a, b]: [&Tensor; 2], [fa, fb]: [&Tensor; 2], lambda: &Tensor) -> Result<Tensor> {
        let score = |x: &Tensor, y: &Tensor| x.matmul(&y.t()?)? / self.params.tau;
        let (aa, bb, ab, ba) = (score(a, a)?, score(b, b)?, score(a, b)?, score(b, a)?);
        let (taa, tbb, tab, tba) = (score(fa, fa)?, score(fb, fb)?, score(fa, fb)?, score(fb, fa)?);
        let con = |scores: &Tensor| self.con(scores, lambda);
        let kl = |student: &Tensor, teacher: &Tensor| {
            (divergence(student, teacher, self.params.kd_t)? * lambda)?.mean(0)
        };
        let LMclParams { alpha, beta, gamma, lam, .. } = *self.params;
        let vcl = ((con(&aa)? + con(&bb)?)? * alpha)?;
        let icl = ((con(&ab)? + con(&ba)?)? * beta)?;
        let soft_vcl = ((kl(&aa, &tbb)? + kl(&bb, &taa)?)? * gamma)?;
        let soft_icl = ((kl(&ab, &tba)? + kl(&ba, &tab)?)? * lam)?;
        ((vcl + icl)? + soft_vcl)? + soft_icl
    }
}
