//! The two loops in which nearly all time is spent: a correlation and its gradient by the weights, both on
//! frames of channel blocks.
#![expect(unsafe_code, reason = "bounds are checked once per call instead of once per product")]

use super::lanes::{LANES, Lanes};

/// A correlation of stride 1 over a frame: `out[o][pixel] = sum over taps, channels of x w`.
pub(super) struct Correlation<'a> {
    /// Frame, from the origin of the first window.
    pub(super) x: &'a [f32],
    /// Floats between two blocks of channels, and between two rows of windows.
    pub(super) x_plane: usize,
    pub(super) x_row: usize,
    /// Channels that are summed over.
    pub(super) channels: usize,
    /// Offsets of the taps in floats.
    pub(super) taps: &'a [usize],
    /// Weights `[output block][channel block][tap][channel][lane]`.
    pub(super) w: &'a [f32],
    pub(super) out_blocks: usize,
    /// Windows along y and x.
    pub(super) count: (usize, usize),
    /// Where results go, from the first one; floats between blocks, rows and pixels.
    pub(super) out: &'a mut [f32],
    pub(super) out_plane: usize,
    pub(super) out_row: usize,
    pub(super) out_pixel: usize,
}

impl Correlation<'_> {
    /// Overwrites the results.
    #[inline(always)]
    pub(super) fn run<V: Lanes>(&mut self) {
        if self.count.0 == 0 || self.count.1 == 0 || self.out_blocks == 0 {
            return;
        }
        self.check();
        let mut block = 0;
        while block < self.out_blocks {
            if V::WIDE && block + 2 <= self.out_blocks {
                self.rows::<V, 2>(block);
                block += 2;
            } else {
                self.rows::<V, 1>(block);
                block += 1;
            }
        }
    }

    /// Every address that the tiles compute lies inside the slices.
    fn check(&self) {
        let (rows, cols) = self.count;
        let far_tap = self.taps.iter().copied().max().unwrap_or(0);
        let blocks = self.channels.div_ceil(LANES).max(1);
        let last = (blocks - 1) * self.x_plane + (rows - 1) * self.x_row + cols * LANES + far_tap;
        assert!(last <= self.x.len(), "the last window ends inside the frame");
        assert!(self.out_blocks * self.w_block() <= self.w.len(), "there are weights for every tap");
        let last = (self.out_blocks - 1) * self.out_plane + (rows - 1) * self.out_row;
        assert!(
            last + (cols - 1) * self.out_pixel + LANES <= self.out.len(),
            "the last result has its place"
        );
    }

    /// Floats of the weights of one output block.
    #[inline(always)]
    fn w_block(&self) -> usize {
        self.channels * self.taps.len() * LANES
    }

    #[inline(always)]
    fn rows<V: Lanes, const NB: usize>(&mut self, block: usize) {
        for y in 0..self.count.0 {
            let mut x = 0;
            while x < self.count.1 {
                let left = self.count.1 - x;
                // SAFETY: `check` has covered every window and every result of `count`, and each branch takes
                // no more windows than are left.
                x += unsafe {
                    if V::WIDE && NB == 1 && left >= 16 {
                        self.tile::<V, 16, NB>(block, y, x)
                    } else if V::WIDE && left >= 8 {
                        self.tile::<V, 8, NB>(block, y, x)
                    } else if left >= 4 {
                        self.tile::<V, 4, NB>(block, y, x)
                    } else if left >= 2 {
                        self.tile::<V, 2, NB>(block, y, x)
                    } else {
                        self.tile::<V, 1, NB>(block, y, x)
                    }
                };
            }
        }
    }

    /// `MR` windows of a row times `NB` output blocks, held in registers. Returns `MR`.
    ///
    /// # Safety
    /// `check` has passed, `block + NB <= out_blocks`, `y < count.0` and `x + MR <= count.1`.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const MR: usize, const NB: usize>(
        &mut self,
        block: usize,
        y: usize,
        x: usize,
    ) -> usize {
        let w_block = self.w_block();
        let mut sums = [[V::splat(0.0); NB]; MR];
        // SAFETY: under the contract above `check` bounds all three pointers.
        unsafe {
            let mut w = self.w.as_ptr().add(block * w_block);
            let mut plane = self.x.as_ptr().add(y * self.x_row + x * LANES);
            let mut channels = self.channels;
            while channels > 0 {
                let lanes = channels.min(LANES);
                for &tap in self.taps {
                    let pixel = plane.add(tap);
                    for lane in 0..lanes {
                        let mut weights = [V::splat(0.0); NB];
                        for (n, weight) in weights.iter_mut().enumerate() {
                            *weight = load(w.add(n * w_block));
                        }
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let value = V::splat(*pixel.add(m * LANES + lane));
                            for n in 0..NB {
                                sums[n] = sums[n].plus_product(value, weights[n]);
                            }
                        }
                        w = w.add(LANES);
                    }
                }
                channels -= lanes;
                plane = plane.wrapping_add(self.x_plane);
            }
            let out =
                self.out.as_mut_ptr().add(block * self.out_plane + y * self.out_row + x * self.out_pixel);
            for (m, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    store(*sum, out.add(n * self.out_plane + m * self.out_pixel));
                }
            }
        }
        MR
    }
}

/// The gradient of a correlation by its weights: `sums[o][channel, tap] += sum over pixels of x dy`.
pub(super) struct WeightGradient<'a> {
    /// Frame of the input, and of the output's gradient from its first pixel.
    pub(super) x: &'a [f32],
    pub(super) x_plane: usize,
    pub(super) x_row: usize,
    pub(super) channels: usize,
    pub(super) taps: &'a [usize],
    pub(super) dy: &'a [f32],
    pub(super) dy_plane: usize,
    pub(super) dy_row: usize,
    pub(super) out_blocks: usize,
    /// Output pixels along y and x.
    pub(super) count: (usize, usize),
    /// Sums in the layout of [`Correlation::w`].
    pub(super) sums: &'a mut [f32],
}

impl WeightGradient<'_> {
    /// Adds the pixels of this image to the sums.
    #[inline(always)]
    pub(super) fn run<V: Lanes>(&mut self) {
        if self.count.0 == 0 || self.count.1 == 0 || self.out_blocks == 0 {
            return;
        }
        self.check();
        let mut block = 0;
        while block < self.out_blocks {
            if V::WIDE && block + 2 <= self.out_blocks {
                self.channels_of::<V, 2>(block);
                block += 2;
            } else {
                self.channels_of::<V, 1>(block);
                block += 1;
            }
        }
    }

    fn check(&self) {
        let (rows, cols) = self.count;
        let far_tap = self.taps.iter().copied().max().unwrap_or(0);
        let blocks = self.channels.div_ceil(LANES).max(1);
        let last = (blocks - 1) * self.x_plane + (rows - 1) * self.x_row + cols * LANES + far_tap;
        assert!(last <= self.x.len(), "the last window ends inside the frame");
        let last = (self.out_blocks - 1) * self.dy_plane + (rows - 1) * self.dy_row + cols * LANES;
        assert!(last <= self.dy.len(), "the last gradient lies inside its frame");
        assert!(self.out_blocks * self.sums_block() <= self.sums.len(), "there is a sum for every weight");
    }

    #[inline(always)]
    fn sums_block(&self) -> usize {
        self.channels * self.taps.len() * LANES
    }

    #[inline(always)]
    fn channels_of<V: Lanes, const NB: usize>(&mut self, block: usize) {
        let taps = self.taps.len();
        let mut first = 0;
        while first < self.channels {
            let lanes = LANES.min(self.channels - first);
            let (x, sum) = (first / LANES * self.x_plane, first * taps * LANES);
            if lanes.is_multiple_of(8) {
                for t in 0..taps {
                    let (x, sum) = (x + self.taps[t], sum + t * lanes * LANES);
                    self.factors::<V, NB>(block, lanes, sum, |lane| x + lane);
                }
            } else {
                // Few channels fill a tile together with those of the next taps.
                let of_taps = self.taps;
                self.factors::<V, NB>(block, taps * lanes, sum, |i| x + of_taps[i / lanes] + i % lanes);
            }
            first += lanes;
        }
    }

    /// The sums of `count` factors of each gradient, which lie `at(i)` from the origin.
    #[inline(always)]
    fn factors<V: Lanes, const NB: usize>(
        &mut self,
        block: usize,
        count: usize,
        sum: usize,
        at: impl Fn(usize) -> usize,
    ) {
        let mut i = 0;
        while i < count {
            let left = count - i;
            let (at, sum) = (|r| at(i + r), sum + i * LANES);
            // SAFETY: `check` has covered every pixel and every sum; each branch takes no more factors than are
            // left.
            i += unsafe {
                if V::WIDE && left >= 8 {
                    self.tile::<V, 8, NB>(block, at, sum)
                } else if left >= 4 {
                    self.tile::<V, 4, NB>(block, at, sum)
                } else if left >= 2 {
                    self.tile::<V, 2, NB>(block, at, sum)
                } else {
                    self.tile::<V, 1, NB>(block, at, sum)
                }
            };
        }
    }

    /// `R` factors times `NB` output blocks, summed over all pixels. Returns `R`.
    ///
    /// # Safety
    /// `check` has passed, `block + NB <= out_blocks`, each `at(r)` is a channel at a tap, and `sum` is where the sum
    /// of the first of them lies.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const NB: usize>(
        &mut self,
        block: usize,
        at: impl Fn(usize) -> usize,
        sum: usize,
    ) -> usize {
        let sums_block = self.sums_block();
        let mut from = [0; R];
        for (r, from) in from.iter_mut().enumerate() {
            *from = at(r);
        }
        // SAFETY: under the contract above `check` bounds all pointers.
        unsafe {
            let place = self.sums.as_mut_ptr().add(block * sums_block + sum);
            let mut sums = [[V::splat(0.0); NB]; R];
            for y in 0..self.count.0 {
                let mut pixel = self.x.as_ptr().add(y * self.x_row);
                let mut dy = self.dy.as_ptr().add(block * self.dy_plane + y * self.dy_row);
                for _ in 0..self.count.1 {
                    let mut gradients = [V::splat(0.0); NB];
                    for (n, gradient) in gradients.iter_mut().enumerate() {
                        *gradient = load(dy.add(n * self.dy_plane));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let value = V::splat(*pixel.add(from[r]));
                        for n in 0..NB {
                            sums[n] = sums[n].plus_product(value, gradients[n]);
                        }
                    }
                    pixel = pixel.wrapping_add(LANES);
                    dy = dy.wrapping_add(LANES);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, image) in sums.iter().enumerate() {
                    let total = place.add(n * sums_block + r * LANES);
                    store(load::<V>(total).add(*image), total);
                }
            }
        }
        R
    }
}

/// # Safety
/// Sixteen values lie at `from`.
#[inline(always)]
unsafe fn load<V: Lanes>(from: *const f32) -> V {
    // SAFETY: the caller's promise.
    V::load(unsafe { &*from.cast::<[f32; LANES]>() })
}

/// # Safety
/// Sixteen values have their place at `to`, which nothing else refers to.
#[inline(always)]
unsafe fn store<V: Lanes>(v: V, to: *mut f32) {
    // SAFETY: the caller's promise.
    v.store(unsafe { &mut *to.cast::<[f32; LANES]>() });
}
