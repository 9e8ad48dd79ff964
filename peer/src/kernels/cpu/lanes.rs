//! Sixteen f32 at a time: what a kernel may ask of an instruction set, and the answer in plain Rust.

use std::mem::MaybeUninit;

/// Width of a vector and of a block of channels.
pub(super) const LANES: usize = 16;

/// Sixteen f32 that live in registers. The same kernel on two sets with fused multiplication gives equal
/// bits, since every lane sees the same operations.
pub(super) trait Lanes: Copy {
    /// Whether the set has 32 registers that hold all sixteen values, so that larger tiles pay.
    const WIDE: bool;

    fn splat(x: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// `self + a b`, rounded once where the set can.
    fn plus_product(self, a: Self, b: Self) -> Self;
    /// The lanes at which `y <= 0` become zero; where `y` is NaN they stay.
    fn zero_where_not_positive(self, y: Self) -> Self;

    /// Transposes 8 rows of 8 values: `to[j * to_step + i] = from[i * from_step + j]`.
    #[inline(always)]
    fn transpose8(from: &[f32], from_step: usize, to: &mut [MaybeUninit<f32>], to_step: usize) {
        for i in 0..8 {
            for j in 0..8 {
                to[j * to_step + i].write(from[i * from_step + j]);
            }
        }
    }

    /// Sum of the lanes, halves first: the same order on every set.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut v = [0.0; LANES];
        self.store(&mut v);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }
}

/// Plain Rust, which the compiler turns into whatever the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn zero_where_not_positive(self, y: Self) -> Self {
        self.zip(y, |v, y| if y <= 0.0 { 0.0 } else { v })
    }

    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        // Without the instruction `mul_add` is a call into the C library, a hundred times slower.
        const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
        let product =
            |i: usize| if FUSED { a.0[i].mul_add(b.0[i], self.0[i]) } else { self.0[i] + a.0[i] * b.0[i] };
        Self(std::array::from_fn(product))
    }
}
