//! The two quantities that every contrastive term of L-MCL is a weighted sum of, sample by sample, for many score
//! matrices at once.

use candle_core::{Result, Tensor};

use super::super::primitives::Positives;
use super::{fused, stock};

/// The score matrix `S_ab = a bᵀ / τ` of two embeddings, each named by its place in [`Embeddings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scores {
    /// The rows.
    pub(super) anchors: usize,
    /// The columns.
    pub(super) contrasts: usize,
}

/// Unit rows `[B, E]` in the dtype of losses. The first `learning` of them may carry a graph, the others are constants.
#[derive(Debug, Clone)]
pub(super) struct Embeddings {
    pub(super) all: Vec<Tensor>,
    pub(super) learning: usize,
}

/// Which rows are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// The matrices of contrastive terms.
    pub(super) contrast: Vec<Scores>,
    /// Student and teacher of each divergence.
    pub(super) divergence: Vec<(Scores, Scores)>,
}

/// What the rows are computed with.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) positives: Positives,
    pub(super) tau: f64,
    pub(super) kd_t: f64,
}

/// Terms by anchor, in the order of [`Wanted`], means over the batch included: summed over B, a row is the term.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// `[contrastive terms, B]`.
    pub(super) contrast: Option<Tensor>,
    /// `[divergences, B]`.
    pub(super) divergence: Option<Tensor>,
}

/// Computes the rows; they carry the graph of the embeddings that learn, as anchors and as contrasts.
pub(super) fn rows(embeddings: &Embeddings, wanted: &Wanted, setting: &Setting) -> Result<Rows> {
    if fused::accepts(embeddings) {
        return fused::rows(embeddings, wanted, setting);
    }
    stock::rows(embeddings, wanted, setting)
}
