//! Sixteen f32 in one AVX-512 register or in two AVX registers.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "instructions that not every processor has")]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::lanes::{LANES, Lanes};

// Both types are named only by `isa::dispatch`, inside functions compiled for their set and after the
// processor was asked for it; that is the reason of every call below.

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX-512F is there, see above.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: AVX-512F is there, and the array holds the 16 values read.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: AVX-512F is there, and the array takes the 16 values written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512F is there, see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512F is there, see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512F is there, see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    fn zero_where_not_positive(self, y: Self) -> Self {
        // SAFETY: AVX-512F is there, see above.
        Self(unsafe {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(y.0, _mm512_setzero_ps()), self.0)
        })
    }

    #[inline(always)]
    fn transpose8(from: &[f32], from_step: usize, to: &mut [MaybeUninit<f32>], to_step: usize) {
        Avx2::transpose8(from, from_step, to, to_step);
    }
}

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX is there, see above.
        let v = unsafe { _mm256_set1_ps(x) };
        Self(v, v)
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: AVX is there, and the array holds the 16 values read.
        unsafe { Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: AVX is there, and the array takes the 16 values written.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: AVX is there, see above.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: AVX is there, see above.
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX and FMA are there, see above.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }

    #[inline(always)]
    fn zero_where_not_positive(self, y: Self) -> Self {
        // SAFETY: AVX is there, see above.
        unsafe {
            let positive = |y| _mm256_cmp_ps::<_CMP_NLE_UQ>(y, _mm256_setzero_ps());
            Self(_mm256_and_ps(positive(y.0), self.0), _mm256_and_ps(positive(y.1), self.1))
        }
    }

    #[inline(always)]
    fn transpose8(from: &[f32], from_step: usize, to: &mut [MaybeUninit<f32>], to_step: usize) {
        assert!(from.len() >= 7 * from_step + 8 && to.len() >= 7 * to_step + 8, "8 rows of 8 values");
        // SAFETY: AVX is there, and the assertion above covers every row read and written.
        unsafe {
            // Loops, since `array::from_fn` need not be inlined and would then run on the least set.
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.as_ptr().add(i * from_step));
            }
            let mut pairs = rows;
            for i in [0, 2, 4, 6] {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = pairs;
            for i in [0, 1, 4, 5] {
                let to = i / 4 * 4 + i % 4 * 2;
                fours[to] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                fours[to + 1] = _mm256_shuffle_ps::<0xEE>(pairs[i], pairs[i + 2]);
            }
            for i in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
                let high = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
                _mm256_storeu_ps(to.as_mut_ptr().cast::<f32>().add(i * to_step), low);
                _mm256_storeu_ps(to.as_mut_ptr().cast::<f32>().add((i + 4) * to_step), high);
            }
        }
    }
}
