//! Lanes in plain Rust: the specification.
//!
//! Every operation rounds as those of the other instruction sets do, a fused multiply-add once, and sums have one order, so
//! that what is computed here is computed to the bit everywhere.

use super::{LANES, Op, Simd};
use half::f16;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type F = [f32; LANES];

#[inline(always)]
fn map2(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// a · b + c, rounded once.
#[inline(always)]
fn fused(a: &F, b: &F, c: &F) -> F {
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

/// [`fused`] where the CPU has the instruction: without, every lane is a call of the system's library.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
#[inline(never)]
fn fused_fast(a: &F, b: &F, c: &F) -> F {
    fused(a, b, c)
}

impl Simd for Scalar {
    const INT_TILE: (usize, usize) = (1, 1);
    const FLOAT_TILE: (usize, usize) = (1, 1);
    const FAST_SMALL_CODES: bool = false;
    type F = F;
    type I = [i32; LANES];
    type W = [u8; 64];
    type A = [i8; 4];

    #[inline(never)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [v; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> F {
        std::array::from_fn(|i| f32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]]))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        std::array::from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        std::array::from_fn(|i| f32::from_le_bytes([0, 0, from[2 * i], from[2 * i + 1]]))
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the CPU was just seen to have the feature.
            return unsafe { fused_fast(&a, &b, &c) };
        }
        fused(&a, &b, &c)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn swapped<const STEP: usize>(self, a: F) -> F {
        std::array::from_fn(|i| a[i ^ STEP])
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        map2(a, n, |a, n| a * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I {
        [v; LANES]
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::I {
        from.map(i32::from)
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        from.map(i32::from)
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> F {
        a.map(|v| v as f32)
    }
    #[inline(always)]
    fn round_codes(self, v: F, to: &mut [i8; LANES]) -> Self::I {
        let codes = v.map(|v| octet_tensor::round_code(v, -128, 127));
        *to = codes.map(|c| c as i8);
        codes
    }
    #[inline(always)]
    fn round_shorts(self, v: F, to: &mut [i16; LANES]) {
        // A conversion with `as` saturates.
        *to = v.map(|v| v.round_ties_even() as i16);
    }
    #[inline(always)]
    fn codes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8; 64]) -> [[u8; 64]; 2] {
        [from.map(|b| b & 15), from.map(|b| b >> 4)]
    }
    #[inline(always)]
    fn points(self, from: &[u8; 64]) -> [[u8; 64]; 2] {
        let mut out = [[0; 64]; 2];
        let [low, high] = &mut out;
        for ((stored, low), high) in from.as_chunks().0.iter().zip(low.as_chunks_mut::<4>().0).zip(high.as_chunks_mut::<4>().0) {
            let codes = crate::matmul::point(*stored);
            low.copy_from_slice(&codes[..4]);
            high.copy_from_slice(&codes[4..]);
        }
        out
    }
    #[inline(always)]
    fn table(self, from: &[u8; 16]) -> [u8; 64] {
        std::array::from_fn(|i| from[i % 16])
    }
    #[inline(always)]
    fn levels(self, w: [u8; 64], table: [u8; 64]) -> [u8; 64] {
        w.map(|b| table[usize::from(b & 15)])
    }
    #[inline(always)]
    fn store_codes(self, w: [u8; 64], to: &mut [u8; 64]) {
        *to = w;
    }
    #[inline(always)]
    fn field(self, w: [u8; 64], from: usize, to: usize, bits: usize) -> [u8; 64] {
        w.map(|b| (b >> from & ((1u32 << bits) - 1) as u8) << to)
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn quad(self, from: &[i8; 4]) -> [i8; 4] {
        *from
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, mut acc: Self::I, w: [u8; 64], a: [i8; 4]) -> Self::I {
        for (acc, w) in acc.iter_mut().zip(w.as_chunks::<4>().0) {
            let dot: i32 = w.iter().zip(&a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
            *acc = acc.wrapping_add(dot);
        }
        acc
    }
    #[inline(always)]
    fn pairs(self, from: &[u8; 64]) -> Self::I {
        std::array::from_fn(|i| i32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]]))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let product = |a: i32, b: i32| i32::from(a as i16).wrapping_mul(i32::from(b as i16));
        std::array::from_fn(|i| acc[i].wrapping_add(product(a[i], b[i])).wrapping_add(product(a[i] >> 16, b[i] >> 16)))
    }
    #[inline(always)]
    fn prefetch(self, _: &[u8], _: usize) {}
}
