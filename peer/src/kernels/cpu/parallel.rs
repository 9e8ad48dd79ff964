//! Work shared over rayon's threads in parts that the shape alone fixes, writing fresh memory once.
#![expect(unsafe_code, reason = "memory that is written before it is read")]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

/// Parts that a pass over a batch is cut into: enough for the threads of a large machine to even out.
const PARTS_MAX: usize = 64;

/// Fills a vector of `units` times `unit` values: `write(state, index, values)` per unit, each handed out as zeros,
/// with a `state` made once per part of consecutive units.
pub(super) fn build<S>(
    units: usize,
    unit: usize,
    state: impl Fn() -> S + Sync,
    write: impl Fn(&mut S, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let len = units * unit;
    let mut values = Vec::with_capacity(len);
    if len == 0 {
        return values;
    }
    let per_part = units.div_ceil(PARTS_MAX);
    let part = |(p, chunk): (usize, &mut [MaybeUninit<f32>])| {
        let mut state = state();
        for (i, raw) in chunk.chunks_mut(unit).enumerate() {
            // Zeroed here, where the unit is about to be written, it costs the first-level cache only.
            raw.fill(MaybeUninit::new(0.0));
            // SAFETY: every value of `raw` was initialised in the line above.
            let unit = unsafe { &mut *(std::ptr::from_mut(raw) as *mut [f32]) };
            write(&mut state, p * per_part + i, unit);
        }
    };
    values.spare_capacity_mut()[..len].par_chunks_mut(per_part * unit).enumerate().for_each(part);
    // SAFETY: the parts above cover all `len` values, and each initialises all of its own.
    unsafe { values.set_len(len) };
    values
}

/// Sums over a batch: `parts` ranges of consecutive images go to `sum`, whose results are returned in order.
pub(super) fn partial_sums<T: Send>(
    batch: usize,
    parts: usize,
    sum: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    let per_part = batch.div_ceil(parts.clamp(1, batch.max(1))).max(1);
    let ranges = batch.div_ceil(per_part);
    (0..ranges).into_par_iter().map(|p| sum(p * per_part..((p + 1) * per_part).min(batch))).collect()
}
