//! NEON of AArch64: a vector is four registers. Plain Armv8.0, with the dot product of FEAT_DotProd, or with FEAT_I8MM.
//!
//! The dot products and the half-precision conversion are written as assembly, for their intrinsics are not stable.

use super::{LANES, Op, Simd};
use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    array::from_fn,
};

/// Products by widening multiplications (a Cortex-A72 has no others).
pub(crate) const BASE: u8 = 0;
/// `sdot`: four signed bytes by four signed bytes.
pub(crate) const DOTPROD: u8 = 1;
/// `usdot`: four unsigned bytes by four signed bytes, and `usmmla`: the same of eight, two rows by two tokens.
pub(crate) const I8MM: u8 = 2;

/// Proof that the CPU has NEON and what `LEVEL` names.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const LEVEL: u8>(());

impl<const LEVEL: u8> Neon<LEVEL> {
    pub(crate) fn detect() -> Option<Self> {
        let all = is_aarch64_feature_detected!("neon")
            && (LEVEL < DOTPROD || is_aarch64_feature_detected!("dotprod"))
            && (LEVEL < I8MM || is_aarch64_feature_detected!("i8mm"));
        all.then_some(Self(()))
    }
}

impl<const LEVEL: u8> Neon<LEVEL> {
    /// The same CPU, its dot products unused.
    pub(crate) fn without_dots(self) -> Neon<BASE> {
        Neon(())
    }
}

#[target_feature(enable = "neon")]
#[inline(never)]
fn enter<O: Op, const LEVEL: u8>(s: Neon<LEVEL>, op: O) -> O::Output {
    op.run(s)
}

/// Intrinsics of the features that `self` proves.
macro_rules! intrinsic {
    ($e:expr) => {{
        // SAFETY: a value of Neon exists only where `detect` found every feature used here; loads and stores are of parts,
        // known to lie inside, of arrays that are borrowed; assembly touches the registers it names and nothing else.
        unsafe { $e }
    }};
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type W = [uint8x16_t; 4];

macro_rules! each {
    ($f:ident($($v:ident),+)) => { from_fn(|i| intrinsic!($f($($v[i]),+))) };
}

impl<const LEVEL: u8> Simd for Neon<LEVEL> {
    const INT_TILE: (usize, usize) = (1, 4);
    const FLOAT_TILE: (usize, usize) = (1, 6);
    const FAST_SMALL_CODES: bool = LEVEL < I8MM;
    // `sdot` and the widening multiplication take signed codes.
    const BIAS: i32 = if LEVEL < I8MM { 128 } else { 0 };
    const PAIRS: bool = LEVEL == I8MM;
    type F = F;
    type I = I;
    type W = W;
    type A = int8x16_t;

    #[inline]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        intrinsic!(enter(self, op))
    }
    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [intrinsic!(vdupq_n_f32(v)); 4]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        from_fn(|i| intrinsic!(vld1q_f32(from[4 * i..].as_ptr())))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> F {
        from_fn(|i| intrinsic!(vreinterpretq_f32_u8(vld1q_u8(from[16 * i..].as_ptr()))))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        from_fn(|i| {
            intrinsic!({
                let half = vld1_u8(from[8 * i..].as_ptr());
                let single: float32x4_t;
                asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) single, in(vreg) half, options(pure, nomem, nostack, preserves_flags));
                single
            })
        })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        from_fn(|i| {
            intrinsic!({
                let half = vreinterpret_u16_u8(vld1_u8(from[8 * i..].as_ptr()));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
            })
        })
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        for (i, v) in v.into_iter().enumerate() {
            intrinsic!(vst1q_f32(to[4 * i..].as_mut_ptr(), v));
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        self.select_less(a, b, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        self.select_less(b, a, a, b)
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        each!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn swapped<const STEP: usize>(self, a: F) -> F {
        match STEP {
            1 => each!(vrev64q_f32(a)),
            2 => a.map(|a| intrinsic!(vextq_f32::<2>(a, a))),
            _ => [a[1], a[0], a[3], a[2]],
        }
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        let power = n.map(|n| intrinsic!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127))))));
        self.mul(a, power)
    }
    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        from_fn(|i| intrinsic!(vbslq_f32(vcltq_f32(a[i], b[i]), yes[i], no[i])))
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        intrinsic!({
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        })
    }
    #[inline(always)]
    fn splat_i(self, v: i32) -> I {
        [intrinsic!(vdupq_n_s32(v)); 4]
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        intrinsic!({
            let raw = vld1q_u8(from.as_ptr());
            let halves = [vmovl_u8(vget_low_u8(raw)), vmovl_high_u8(raw)];
            from_fn(|i| {
                let half = halves[i / 2];
                vreinterpretq_s32_u32(if i % 2 == 0 { vmovl_u16(vget_low_u16(half)) } else { vmovl_high_u16(half) })
            })
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I {
        intrinsic!({
            let raw = vld1q_s8(from.as_ptr());
            let halves = [vmovl_s8(vget_low_s8(raw)), vmovl_high_s8(raw)];
            from_fn(|i| {
                let half = halves[i / 2];
                if i % 2 == 0 { vmovl_s16(vget_low_s16(half)) } else { vmovl_high_s16(half) }
            })
        })
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        each!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: I, b: I) -> I {
        each!(vmulq_s32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: I) -> F {
        each!(vcvtq_f32_s32(a))
    }
    #[inline(always)]
    fn round_codes(self, v: F, to: &mut [i8; LANES]) -> I {
        // Rounds half to even; the narrowings saturate.
        intrinsic!({
            let whole: I = v.map(|v| vcvtnq_s32_f32(v));
            let low = vqmovn_high_s32(vqmovn_s32(whole[0]), whole[1]);
            let high = vqmovn_high_s32(vqmovn_s32(whole[2]), whole[3]);
            let bytes = vqmovn_high_s16(vqmovn_s16(low), high);
            vst1q_s8(to.as_mut_ptr(), bytes);
            let halves = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
            from_fn(|i| {
                let half = halves[i / 2];
                if i % 2 == 0 { vmovl_s16(vget_low_s16(half)) } else { vmovl_high_s16(half) }
            })
        })
    }
    #[inline(always)]
    fn round_shorts(self, v: F, to: &mut [i16; LANES]) {
        // As above.
        intrinsic!({
            let whole: I = v.map(|v| vcvtnq_s32_f32(v));
            vst1q_s16(to.as_mut_ptr(), vqmovn_high_s32(vqmovn_s32(whole[0]), whole[1]));
            vst1q_s16(to[8..].as_mut_ptr(), vqmovn_high_s32(vqmovn_s32(whole[2]), whole[3]));
        });
    }
    #[inline(always)]
    fn codes(self, from: &[u8; 64]) -> W {
        from_fn(|i| intrinsic!(vld1q_u8(from[16 * i..].as_ptr())))
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8; 64]) -> [W; 2] {
        let raw = self.codes(from);
        [raw.map(|v| intrinsic!(vandq_u8(v, vdupq_n_u8(15)))), raw.map(|v| intrinsic!(vshrq_n_u8::<4>(v)))]
    }
    #[inline(always)]
    fn points(self, from: &[u8; 64]) -> [W; 2] {
        let raw = self.codes(from);
        let mut out = [raw; 2];
        for (i, raw) in raw.into_iter().enumerate() {
            intrinsic!({
                let words = |v: uint8x16_t| vreinterpretq_u32_u8(v);
                // Whether the lowest bits of the eight numbers add up to something odd: then the first one's own bit is to be turned over.
                let two = words(veorq_u8(raw, vshrq_n_u8::<4>(raw)));
                let four = veorq_u32(two, vshrq_n_u32::<16>(two));
                let eight = veorq_u32(four, vshrq_n_u32::<8>(four));
                let numbers = vreinterpretq_u8_u32(veorq_u32(words(raw), vandq_u32(eight, vdupq_n_u32(1))));
                let first: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
                let odd = vandq_u8(vqtbl1q_u8(raw, vld1q_u8(first.as_ptr())), vdupq_n_u8(1));
                let low = vandq_u8(vshlq_n_u8::<1>(numbers), vdupq_n_u8(30));
                let high = vandq_u8(vshrq_n_u8::<3>(raw), vdupq_n_u8(30));
                out[0][i] = vorrq_u8(low, odd);
                out[1][i] = vorrq_u8(high, odd);
            });
        }
        out
    }
    #[inline(always)]
    fn table(self, from: &[u8; 16]) -> W {
        [intrinsic!(vld1q_u8(from.as_ptr())); 4]
    }
    #[inline(always)]
    fn levels(self, w: W, table: W) -> W {
        each!(vqtbl1q_u8(table, w))
    }
    #[inline(always)]
    fn store_codes(self, w: W, to: &mut [u8; 64]) {
        for (i, w) in w.into_iter().enumerate() {
            intrinsic!(vst1q_u8(to[16 * i..].as_mut_ptr(), w));
        }
    }
    #[inline(always)]
    fn field(self, w: W, from: usize, to: usize, bits: usize) -> W {
        // A shift by a negative number of bits is one to the right.
        let (by, mask) = (to as i8 - from as i8, (((1u32 << bits) - 1) << to) as u8);
        w.map(|w| intrinsic!(vandq_u8(vshlq_u8(w, vdupq_n_s8(by)), vdupq_n_u8(mask))))
    }
    #[inline(always)]
    fn or(self, a: W, b: W) -> W {
        each!(vorrq_u8(a, b))
    }
    #[inline(always)]
    fn quad(self, from: &[i8; 4]) -> int8x16_t {
        intrinsic!(vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(from.map(|b| b as u8)))))
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, acc: I, w: W, a: int8x16_t) -> I {
        from_fn(|i| match LEVEL {
            I8MM => usdot(acc[i], w[i], a),
            DOTPROD => sdot(acc[i], signed::<SMALL>(w[i]), a),
            _ => widening::<SMALL>(acc[i], signed::<SMALL>(w[i]), a),
        })
    }
    // Paired, register i of eight belongs to rows 2 i and 2 i + 1: eight inputs of each, or sums of each by two tokens.
    #[inline(always)]
    fn pair_codes(self, w: [W; 2]) -> [W; 2] {
        let word = |half: usize, i: usize| intrinsic!(vreinterpretq_s32_u8(w[half][i]));
        let pair = |i: usize| {
            intrinsic!(vreinterpretq_u8_s32(match i % 2 {
                0 => vzip1q_s32(word(0, i / 2), word(1, i / 2)),
                _ => vzip2q_s32(word(0, i / 2), word(1, i / 2)),
            }))
        };
        [from_fn(pair), from_fn(|i| pair(4 + i))]
    }
    #[inline(always)]
    fn pair(self, acc: [I; 2]) -> [I; 2] {
        let pair = |i: usize| {
            intrinsic!(match i % 2 {
                0 => vzip1q_s32(acc[0][i / 2], acc[1][i / 2]),
                _ => vzip2q_s32(acc[0][i / 2], acc[1][i / 2]),
            })
        };
        [from_fn(pair), from_fn(|i| pair(4 + i))]
    }
    #[inline(always)]
    fn unpair(self, acc: [I; 2]) -> [I; 2] {
        let pair = |i: usize| acc[i / 4][i % 4];
        [
            from_fn(|i| intrinsic!(vuzp1q_s32(pair(2 * i), pair(2 * i + 1)))),
            from_fn(|i| intrinsic!(vuzp2q_s32(pair(2 * i), pair(2 * i + 1)))),
        ]
    }
    #[inline(always)]
    fn dot_paired<const SMALL: bool>(self, acc: [I; 2], w: [W; 2], a: [[[i8; 4]; 2]; 2]) -> [I; 2] {
        let a = intrinsic!({
            let words = a.map(|half| vld1_s8(half.as_flattened().as_ptr()));
            let words = words.map(|half| vreinterpretq_s32_s8(vcombine_s8(half, half)));
            vreinterpretq_s8_s32(vzip1q_s32(words[0], words[1]))
        });
        from_fn(|half| from_fn(|i| usmmla(acc[half][i], w[half][i], a)))
    }
    #[inline(always)]
    fn pairs(self, from: &[u8; 64]) -> I {
        self.codes(from).map(|v| intrinsic!(vreinterpretq_s32_u8(v)))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: I, a: I, b: I) -> I {
        from_fn(|i| {
            intrinsic!({
                let (a, b) = (vreinterpretq_s16_s32(a[i]), vreinterpretq_s16_s32(b[i]));
                let (low, high) = (vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
                vaddq_s32(acc[i], vpaddq_s32(low, high))
            })
        })
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        let at = at.as_ptr().wrapping_add(ahead);
        intrinsic!(asm!("prfm pldl2keep, [{0}]", in(reg) at, options(readonly, nostack, preserves_flags)));
    }
}

/// Codes as signed bytes: small ones as they are, others less [`Simd::BIAS`].
#[inline(always)]
fn signed<const SMALL: bool>(w: uint8x16_t) -> int8x16_t {
    intrinsic!(vreinterpretq_s8_u8(if SMALL { w } else { veorq_u8(w, vdupq_n_u8(128)) }))
}

/// acc + w · a over four inputs a lane, by multiplications that widen to 16 bits.
#[inline(always)]
fn widening<const SMALL: bool>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    intrinsic!({
        let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
        if SMALL {
            // Two products of codes up to 127 are below 2¹⁵.
            vpadalq_s16(acc, vpaddq_s16(low, high))
        } else {
            vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }
    })
}

#[inline(always)]
fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    intrinsic!(asm!(
        ".arch_extension dotprod",
        "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
        inout(vreg) acc, in(vreg) w, in(vreg) a,
        options(pure, nomem, nostack, preserves_flags)
    ));
    acc
}

#[inline(always)]
fn usdot(mut acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
    intrinsic!(asm!(
        ".arch_extension i8mm",
        "usdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
        inout(vreg) acc, in(vreg) w, in(vreg) a,
        options(pure, nomem, nostack, preserves_flags)
    ));
    acc
}

/// acc + two rows of eight codes times two tokens of eight inputs: row 0 by both, row 1 by both.
#[inline(always)]
fn usmmla(mut acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
    intrinsic!(asm!(
        ".arch_extension i8mm",
        "usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
        inout(vreg) acc, in(vreg) w, in(vreg) a,
        options(pure, nomem, nostack, preserves_flags)
    ));
    acc
}
