//! The rows of L-MCL in candle's own ops, one matrix after another: the path of devices other than the processor, and
//! the slow reference of the fast one.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::super::primitives::{contrastive_rows, soft_kl_rows, soften};
use super::rows::{Embeddings, Rows, Scores, Setting, Wanted};

/// See [`super::rows::rows`].
pub(super) fn rows(embeddings: &Embeddings, wanted: &Wanted, setting: &Setting) -> Result<Rows> {
    let mut matrices = Matrices { embeddings, setting, scores: BTreeMap::new(), soft: BTreeMap::new() };
    let mut contrast = Vec::with_capacity(wanted.contrast.len());
    for at in &wanted.contrast {
        contrast.push(contrastive_rows(&matrices.scores(*at)?, &setting.positives)?);
    }
    let mut divergence = Vec::with_capacity(wanted.divergence.len());
    for (student, teacher) in &wanted.divergence {
        let (student, teacher) = (matrices.soft(*student)?, matrices.soft(*teacher)?);
        divergence.push(soft_kl_rows(&student, &teacher, setting.kd_t)?);
    }
    let stacked = |rows: Vec<Tensor>| match rows.as_slice() {
        [] => Ok(None),
        rows => Tensor::stack(rows, 0).map(Some),
    };
    Ok(Rows { contrast: stacked(contrast)?, divergence: stacked(divergence)? })
}

/// Score matrices and their softened distributions, each computed once.
struct Matrices<'a> {
    embeddings: &'a Embeddings,
    setting: &'a Setting,
    scores: BTreeMap<Scores, Tensor>,
    soft: BTreeMap<Scores, Tensor>,
}

impl Matrices<'_> {
    fn scores(&mut self, at: Scores) -> Result<Tensor> {
        if let Some(scores) = self.scores.get(&at) {
            return Ok(scores.clone());
        }
        let (anchors, contrasts) = (&self.embeddings.all[at.anchors], &self.embeddings.all[at.contrasts]);
        let scores = (anchors.matmul(&contrasts.t()?)? / self.setting.tau)?;
        self.scores.insert(at, scores.clone());
        Ok(scores)
    }

    fn soft(&mut self, at: Scores) -> Result<Tensor> {
        if let Some(soft) = self.soft.get(&at) {
            return Ok(soft.clone());
        }
        let soft = soften(&self.scores(at)?, self.setting.kd_t)?;
        self.soft.insert(at, soft.clone());
        Ok(soft)
    }
}
