//! Memory that begins at the start of a cache line.

use std::ops::{Deref, DerefMut};

use super::lanes::LANES;

/// Zeros to be overwritten, the first at the start of a cache line: a vector of sixteen that reached over two lines would
/// be loaded and stored twice.
pub(super) struct Lines {
    values: Vec<f32>,
    /// Where the first line begins, and what lies behind the last value.
    start: usize,
    len: usize,
}

impl Lines {
    pub(super) fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + LANES - 1];
        let start = values.as_ptr().align_offset(LANES * size_of::<f32>()).min(LANES - 1);
        Self { values, start, len }
    }
}

impl Deref for Lines {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Lines {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}
