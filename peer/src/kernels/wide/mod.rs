//! Arithmetic in f64 in main memory, in which a meta-update is computed: convolutions as products of matrices, and batch
//! normalisation as one operation. candle's own ops, which do the rest, spend most of their time on these two, in loops
//! over single values.

pub(super) mod conv;
pub(super) mod batch_norm;

use candle_core::{DType, Tensor};

/// Whether this path takes maps: f64 in main memory, with something to compute.
pub(super) fn accepts(x: &Tensor) -> bool {
    x.dtype() == DType::F64 && x.device().is_cpu() && x.elem_count() > 0
}
