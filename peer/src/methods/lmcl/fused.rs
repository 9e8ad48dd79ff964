//! The rows of L-MCL on the processor, as one operation over all embeddings that learn: each score matrix and each
//! softmax is computed once, and on the way back there is one gradient for each matrix, whatever number of terms it
//! has. In candle's own ops the same takes several times as long, nearly all of it in passes over `[B, B]` matrices.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::rows::{Embeddings, Rows, Scores, Setting, Wanted};

/// Whether [`rows`] can compute with these.
pub(super) fn accepts(embeddings: &Embeddings) -> bool {
    let fits = |v: &Tensor| v.device().is_cpu() && v.dtype() == DType::F64 && v.rank() == 2;
    embeddings.learning > 0 && embeddings.all.iter().all(fits)
}

/// See [`super::rows::rows`].
pub(super) fn rows(embeddings: &Embeddings, wanted: &Wanted, setting: &Setting) -> Result<Rows> {
    let learning = Tensor::stack(&embeddings.all[..embeddings.learning], 0)?;
    let (_, batch, _) = learning.dims3()?;
    let field = Field {
        embeddings: embeddings.all.iter().map(Tensor::detach).collect(),
        learning: embeddings.learning,
        batch,
        wanted: wanted.clone(),
        tau: setting.tau,
        kd_t: setting.kd_t,
        matrices: BTreeMap::new(),
    };
    let (contrast, divergence) = (wanted.contrast.len(), wanted.divergence.len());
    if contrast + divergence == 0 {
        return Ok(Rows { contrast: None, divergence: None });
    }
    let rows = learning.apply_op1(field.computed(setting)?)?;
    let part = |from: usize, count: usize| match count {
        0 => Ok(None),
        _ => rows.narrow(0, from, count).map(Some),
    };
    Ok(Rows { contrast: part(0, contrast)?, divergence: part(contrast, divergence)? })
}

/// What the terms need of one score matrix; all `[B, B]`, row by row.
#[derive(Default)]
struct Matrix {
    /// Logarithms of the softened distribution, and the distribution.
    soft: Option<(Vec<f64>, Vec<f64>)>,
    /// The contrastive row `[B]`, and its derivative by the scores.
    contrast: Option<(Vec<f64>, Vec<f64>)>,
}

/// All matrices of a computation, kept for the way back.
struct Field {
    embeddings: Vec<Tensor>,
    learning: usize,
    batch: usize,
    wanted: Wanted,
    tau: f64,
    kd_t: f64,
    matrices: BTreeMap<Scores, Matrix>,
}

/// The operation: the rows are known when it is made.
struct Computed {
    field: Field,
    rows: Vec<f64>,
}

impl Field {
    fn computed(mut self, setting: &Setting) -> Result<Computed> {
        let mut needs: BTreeMap<Scores, (bool, bool)> = BTreeMap::new();
        for at in &self.wanted.contrast {
            needs.entry(*at).or_default().0 = true;
        }
        for at in self.wanted.divergence.iter().flat_map(|(student, teacher)| [student, teacher]) {
            needs.entry(*at).or_default().1 = true;
        }
        let ordered = |at: Scores| (at.anchors.min(at.contrasts), at.anchors.max(at.contrasts));
        let mut products: BTreeMap<(usize, usize), Vec<f64>> =
            needs.keys().map(|at| (ordered(*at), Vec::new())).collect();
        products.par_iter_mut().try_for_each(|((a, b), scores)| -> Result<()> {
            let product = (self.embeddings[*a].matmul(&self.embeddings[*b].t()?)? / self.tau)?;
            *scores = product.flatten_all()?.to_vec1()?;
            Ok(())
        })?;
        let weights = setting.positives.weights().flatten_all()?.to_vec1::<f64>()?;
        let batch = self.batch;
        let matrix = |(at, (contrast, soft)): (&Scores, &(bool, bool))| {
            let product = &products[&ordered(*at)];
            let turned = (at.anchors > at.contrasts).then(|| transposed(product, batch));
            let scores = turned.as_ref().unwrap_or(product);
            let matrix = Matrix {
                contrast: contrast.then(|| contrast_rows(scores, &weights, batch)),
                soft: soft.then(|| softened(scores, self.kd_t, batch)),
            };
            (*at, matrix)
        };
        self.matrices = needs.par_iter().map(matrix).collect();
        let rows = self.rows();
        Ok(Computed { field: self, rows })
    }

    /// `[contrastive terms + divergences, B]`.
    fn rows(&self) -> Vec<f64> {
        let contrast = self.wanted.contrast.iter().filter_map(|at| self.matrices[at].contrast.as_ref());
        let mut rows: Vec<f64> = contrast.flat_map(|(values, _)| values).copied().collect();
        let scale = self.kd_t * self.kd_t / self.batch as f64;
        let divergence = self.wanted.divergence.par_iter().map(|(student, teacher)| {
            let (Some((student, _)), Some((teacher, p))) =
                (&self.matrices[student].soft, &self.matrices[teacher].soft)
            else {
                return Vec::new();
            };
            let by_row = p.chunks(self.batch).zip(teacher.chunks(self.batch)).zip(student.chunks(self.batch));
            let of_row = |((p, t), s): ((&[f64], &[f64]), &[f64])| {
                p.iter().zip(t).zip(s).map(|((p, t), s)| p * (t - s)).sum::<f64>() * scale
            };
            by_row.map(of_row).collect()
        });
        rows.extend(divergence.collect::<Vec<Vec<f64>>>().into_iter().flatten());
        rows
    }

    /// The gradient for a score matrix, given that for the rows.
    fn for_scores(&self, at: Scores, dy: &[f64]) -> Vec<f64> {
        let batch = self.batch;
        let mut gradient = vec![0f64; batch * batch];
        for (c, _) in self.wanted.contrast.iter().enumerate().filter(|(_, of)| **of == at) {
            let Some((_, slope)) = &self.matrices[&at].contrast else { continue };
            let of_rows = &dy[c * batch..][..batch];
            for ((g, slope), dy) in gradient.chunks_mut(batch).zip(slope.chunks(batch)).zip(of_rows) {
                g.iter_mut().zip(slope).for_each(|(g, slope)| *g += dy * slope);
            }
        }
        let first = self.wanted.contrast.len();
        let scale = self.kd_t / batch as f64;
        for (e, (_, teacher)) in self.wanted.divergence.iter().enumerate().filter(|(_, (of, _))| *of == at) {
            let (Some((_, q)), Some((_, p))) = (&self.matrices[&at].soft, &self.matrices[teacher].soft)
            else {
                continue;
            };
            let of_rows = &dy[(first + e) * batch..][..batch];
            let rows = gradient.chunks_mut(batch).zip(q.chunks(batch)).zip(p.chunks(batch)).zip(of_rows);
            for (((g, q), p), dy) in rows {
                let factor = dy * scale;
                g.iter_mut().zip(q).zip(p).for_each(|((g, q), p)| *g += factor * (q - p));
            }
        }
        gradient
    }

    /// The gradient `[learning, B, E]` for the embeddings that learn.
    fn for_embeddings(&self, dy: &[f64]) -> Result<Tensor> {
        let students = self.wanted.contrast.iter().chain(self.wanted.divergence.iter().map(|(s, _)| s));
        let learns = |at: &&Scores| at.anchors.min(at.contrasts) < self.learning;
        let mut parts: BTreeMap<Scores, Vec<(usize, Tensor)>> =
            students.filter(learns).map(|at| (*at, Vec::new())).collect();
        parts.par_iter_mut().try_for_each(|(at, parts)| -> Result<()> {
            let shape = (self.batch, self.batch);
            let scores = Tensor::from_vec(self.for_scores(*at, dy), shape, self.embeddings[0].device())?;
            if at.anchors < self.learning {
                parts.push((at.anchors, scores.matmul(&self.embeddings[at.contrasts])?));
            }
            if at.contrasts < self.learning {
                parts.push((at.contrasts, scores.t()?.matmul(&self.embeddings[at.anchors])?));
            }
            Ok(())
        })?;
        let mut sums: Vec<Option<Tensor>> = vec![None; self.learning];
        for (place, part) in parts.into_values().flatten() {
            let sum = sums[place].take();
            sums[place] = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let all = sums.into_iter().zip(&self.embeddings);
        let all = all.map(|(sum, v)| sum.map_or_else(|| v.zeros_like(), Ok)).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&all, 0)? / self.tau
    }
}

impl CustomOp1 for Computed {
    fn name(&self) -> &'static str {
        "cohort-layerwise-rows"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let batch = self.field.batch;
        let shape = Shape::from((self.rows.len() / batch.max(1), batch));
        Ok((CpuStorage::F64(self.rows.clone()), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.field.for_embeddings(&dy.flatten_all()?.to_vec1::<f64>()?).map(Some)
    }
}

fn transposed(matrix: &[f64], side: usize) -> Vec<f64> {
    (0..side * side).map(|at| matrix[at % side * side + at / side]).collect()
}

/// Logarithms and probabilities of the rows' softmax at a temperature.
fn softened(scores: &[f64], temperature: f64, batch: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut logs, mut probabilities) = (vec![0f64; scores.len()], vec![0f64; scores.len()]);
    let rows = scores.chunks(batch).zip(logs.chunks_mut(batch)).zip(probabilities.chunks_mut(batch));
    for ((scores, logs), probabilities) in rows {
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for ((score, log), p) in scores.iter().zip(&mut *logs).zip(&mut *probabilities) {
            *log = (score - top) / temperature;
            *p = log.exp();
            sum += *p;
        }
        let log_sum = sum.ln();
        logs.iter_mut().for_each(|log| *log -= log_sum);
        probabilities.iter_mut().for_each(|p| *p /= sum);
    }
    (logs, probabilities)
}

/// The contrastive rows and their derivative by the scores, for the weights `[B, B]` of the positives.
fn contrast_rows(scores: &[f64], weights: &[f64], batch: usize) -> (Vec<f64>, Vec<f64>) {
    let mut slope = vec![0f64; scores.len()];
    let rows = scores.chunks(batch).zip(weights.chunks(batch)).zip(slope.chunks_mut(batch));
    let values = rows.enumerate().map(|(n, ((scores, weights), slope))| {
        let total: f64 = weights.iter().sum();
        if total == 0.0 {
            return 0.0;
        }
        let others = scores.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, score)| *score);
        let top = others.fold(f64::NEG_INFINITY, f64::max);
        slope.iter_mut().zip(scores).for_each(|(share, score)| *share = (score - top).exp());
        slope[n] = 0.0;
        let sum: f64 = slope.iter().sum();
        slope.iter_mut().zip(weights).for_each(|(share, weight)| *share = total * *share / sum - weight);
        let log_sum = sum.ln();
        scores.iter().zip(weights).map(|(score, weight)| weight * (log_sum - (score - top))).sum()
    });
    (values.collect(), slope)
}
