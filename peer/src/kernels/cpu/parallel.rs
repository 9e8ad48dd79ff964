//! Work shared over rayon's threads in parts that the shape alone fixes, into fresh memory.
#![expect(unsafe_code, reason = "memory that is written before it is read")]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// Fills a vector of `len` values in units of `unit`, of which the last may be shorter: `write(state, index,
/// values)` per unit, each handed out as zeros.
///
/// A thread takes `together` consecutive units at a time. A `state` is memory that is used for many units;
/// which ones depends on timing, so `write` must not let one unit see what another left there.
pub(super) fn build<S: Send>(
    sizes: (usize, usize),
    together: usize,
    state: impl Fn() -> S + Sync + Send,
    write: impl Fn(&mut S, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let zeroed = |state: &mut S, i: usize, raw: &mut [MaybeUninit<f32>]| {
        raw.fill(MaybeUninit::new(0.0));
        // SAFETY: every value of `raw` was initialised in the line above.
        write(state, i, unsafe { &mut *(std::ptr::from_mut(raw) as *mut [f32]) });
    };
    // SAFETY: each unit is filled as a whole.
    unsafe { build_overwritten(sizes, together, state, zeroed) }
}

/// As [`build`], for units that are not even zeroed.
///
/// # Safety
/// `write` writes every value of every unit that it is given.
pub(super) unsafe fn build_overwritten<S: Send>(
    (len, unit): (usize, usize),
    together: usize,
    state: impl Fn() -> S + Sync + Send,
    write: impl Fn(&mut S, usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    if len == 0 {
        return values;
    }
    let together = together.max(1);
    let part = |state: &mut S, (p, chunk): (usize, &mut [MaybeUninit<f32>])| {
        for (i, unit) in chunk.chunks_mut(unit).enumerate() {
            write(state, p * together + i, unit);
        }
    };
    let states = Shelf::default();
    values.spare_capacity_mut()[..len]
        .par_chunks_mut(together * unit)
        .enumerate()
        .for_each(|chunk| states.with(&state, |state| part(state, chunk)));
    // SAFETY: the parts above cover all `len` values, and the caller promises that each writes all of its own.
    unsafe { values.set_len(len) };
    values
}

/// Sums over a batch: `parts` ranges of consecutive images go to `sum`, whose results are returned in order.
/// The state is as for [`build`].
pub(super) fn partial_sums<S: Send, T: Send>(
    batch: usize,
    parts: usize,
    state: impl Fn() -> S + Sync + Send,
    sum: impl Fn(&mut S, Range<usize>) -> T + Sync + Send,
) -> Vec<T> {
    let per_part = batch.div_ceil(parts.clamp(1, batch.max(1))).max(1);
    let ranges = batch.div_ceil(per_part);
    let states = Shelf::default();
    let part = |p: usize| p * per_part..((p + 1) * per_part).min(batch);
    (0..ranges).into_par_iter().map(|p| states.with(&state, |state| sum(state, part(p)))).collect()
}

/// States that no thread uses at the moment; there are never more than threads, while rayon would make one for every job.
struct Shelf<S>(Mutex<Vec<S>>);

impl<S> Default for Shelf<S> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<S> Shelf<S> {
    /// Runs `f` with a state from the shelf, or a new one.
    fn with<R>(&self, new: impl FnOnce() -> S, f: impl FnOnce(&mut S) -> R) -> R {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let mut state = taken.unwrap_or_else(new);
        let result = f(&mut state);
        free().push(state);
        result
    }
}
