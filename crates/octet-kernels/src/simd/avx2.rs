//! AVX2, with or without the 256-bit dot product of AVX-VNNI: a vector is two registers.

use super::{LANES, Op, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C, and AVX-VNNI where `VNNI`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        all.then_some(Self(()))
    }
}

impl Avx2<true> {
    /// The same CPU, its AVX-VNNI unused.
    pub(crate) fn without_vnni(self) -> Avx2<false> {
        Avx2(())
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn enter<O: Op, const VNNI: bool>(s: Avx2<VNNI>, op: O) -> O::Output {
    op.run(s)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline(never)]
fn enter_vnni<O: Op, const VNNI: bool>(s: Avx2<VNNI>, op: O) -> O::Output {
    op.run(s)
}

/// Intrinsics of the features that `self` proves.
macro_rules! intrinsic {
    ($e:expr) => {{
        // SAFETY: a value of Avx2 exists only where `detect` found every feature used here (AVX-VNNI where VNNI); loads and
        // stores are of parts, known to lie inside, of arrays that are borrowed.
        unsafe { $e }
    }};
}

type F = [__m256; 2];
type I = [__m256i; 2];

macro_rules! each {
    ($f:ident($($v:ident),+)) => { intrinsic!([$f($($v[0]),+), $f($($v[1]),+)]) };
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const INT_TILE: (usize, usize) = (1, if VNNI { 6 } else { 4 });
    const FLOAT_TILE: (usize, usize) = (1, 6);
    const FAST_SMALL_CODES: bool = !VNNI;
    const DOTS_IN_TWOS: bool = !VNNI;
    type F = F;
    type I = I;
    type W = I;
    type A = __m256i;

    #[inline]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        if VNNI { intrinsic!(enter_vnni(self, op)) } else { intrinsic!(enter(self, op)) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [intrinsic!(_mm256_set1_ps(v)); 2]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        intrinsic!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> F {
        intrinsic!([_mm256_loadu_ps(from.as_ptr().cast()), _mm256_loadu_ps(from[32..].as_ptr().cast())])
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        intrinsic!({
            let raw = _mm256_loadu_si256(from.as_ptr().cast());
            [_mm256_cvtph_ps(_mm256_castsi256_si128(raw)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(raw))]
        })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        intrinsic!({
            let raw = _mm256_loadu_si256(from.as_ptr().cast());
            let low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(raw));
            let high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(raw));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        })
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        intrinsic!({
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), v[1]);
        });
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        intrinsic!([_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])])
    }
    #[inline(always)]
    fn swapped<const STEP: usize>(self, a: F) -> F {
        a.map(|a| {
            intrinsic!(match STEP {
                1 => _mm256_permute_ps::<0b10_11_00_01>(a),
                2 => _mm256_permute_ps::<0b01_00_11_10>(a),
                _ => _mm256_permute2f128_ps::<1>(a, a),
            })
        })
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        let power = n.map(|n| {
            intrinsic!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)))))
        });
        self.mul(a, power)
    }
    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        intrinsic!([
            _mm256_blendv_ps(no[0], yes[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(no[1], yes[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
        ])
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        intrinsic!({
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn splat_i(self, v: i32) -> I {
        [intrinsic!(_mm256_set1_epi32(v)); 2]
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I {
        intrinsic!({
            let raw = _mm_loadu_si128(from.as_ptr().cast());
            [_mm256_cvtepu8_epi32(raw), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(raw))]
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I {
        intrinsic!({
            let raw = _mm_loadu_si128(from.as_ptr().cast());
            [_mm256_cvtepi8_epi32(raw), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(raw))]
        })
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        each!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: I, b: I) -> I {
        each!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: I) -> F {
        each!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn round_codes(self, v: F, to: &mut [i8; LANES]) -> I {
        // The conversion rounds half to even (no code of this crate changes the rounding mode), the narrowings saturate.
        intrinsic!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        })
    }
    #[inline(always)]
    fn round_shorts(self, v: F, to: &mut [i16; LANES]) {
        // As above.
        intrinsic!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(words));
        });
    }
    #[inline(always)]
    fn codes(self, from: &[u8; 64]) -> I {
        intrinsic!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from[32..].as_ptr().cast())])
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8; 64]) -> [I; 2] {
        let raw = self.codes(from);
        intrinsic!({
            let low = _mm256_set1_epi8(15);
            let high = [_mm256_srli_epi16::<4>(raw[0]), _mm256_srli_epi16::<4>(raw[1])];
            [
                [_mm256_and_si256(raw[0], low), _mm256_and_si256(raw[1], low)],
                [_mm256_and_si256(high[0], low), _mm256_and_si256(high[1], low)],
            ]
        })
    }
    #[inline(always)]
    fn points(self, from: &[u8; 64]) -> [I; 2] {
        let raw = self.codes(from);
        intrinsic!({
            let first = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
            let twice = _mm256_set1_epi8(30);
            let mut out = [raw; 2];
            for (i, raw) in raw.into_iter().enumerate() {
                // Whether the lowest bits of the eight numbers add up to something odd: then the first one's own bit is to be turned over.
                let two = _mm256_xor_si256(raw, _mm256_srli_epi32::<4>(raw));
                let four = _mm256_xor_si256(two, _mm256_srli_epi32::<16>(two));
                let eight = _mm256_xor_si256(four, _mm256_srli_epi32::<8>(four));
                let numbers = _mm256_xor_si256(raw, _mm256_and_si256(eight, _mm256_set1_epi32(1)));
                let odd = _mm256_and_si256(_mm256_shuffle_epi8(raw, first), _mm256_set1_epi8(1));
                out[0][i] = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi32::<1>(numbers), twice), odd);
                out[1][i] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32::<3>(raw), twice), odd);
            }
            out
        })
    }
    #[inline(always)]
    fn table(self, from: &[u8; 16]) -> I {
        [intrinsic!(_mm256_broadcastsi128_si256(_mm_loadu_si128(from.as_ptr().cast()))); 2]
    }
    #[inline(always)]
    fn levels(self, w: I, table: I) -> I {
        each!(_mm256_shuffle_epi8(table, w))
    }
    #[inline(always)]
    fn store_codes(self, w: I, to: &mut [u8; 64]) {
        intrinsic!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), w[0]);
            _mm256_storeu_si256(to[32..].as_mut_ptr().cast(), w[1]);
        });
    }
    #[inline(always)]
    fn field(self, w: I, from: usize, to: usize, bits: usize) -> I {
        // What a shift carries from one byte to the next is masked away.
        let mask = (((1u32 << bits) - 1) << to) as u8;
        intrinsic!({
            let (left, right) = (_mm256_set1_epi32(to.saturating_sub(from) as i32), _mm256_set1_epi32(from.saturating_sub(to) as i32));
            w.map(|w| _mm256_and_si256(_mm256_srlv_epi32(_mm256_sllv_epi32(w, left), right), _mm256_set1_epi8(mask as i8)))
        })
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        each!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn quad(self, from: &[i8; 4]) -> __m256i {
        intrinsic!(_mm256_set1_epi32(i32::from_le_bytes(from.map(|b| b as u8))))
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, acc: I, w: I, a: __m256i) -> I {
        if VNNI {
            return intrinsic!([_mm256_dpbusd_avx_epi32(acc[0], w[0], a), _mm256_dpbusd_avx_epi32(acc[1], w[1], a)]);
        }
        intrinsic!({
            let mut acc = acc;
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = if SMALL {
                    _mm256_add_epi32(*acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)))
                } else {
                    _mm256_add_epi32(*acc, dot_wide(w, a))
                };
            }
            acc
        })
    }
    #[inline(always)]
    fn dot_two(self, acc: I, w: [I; 2], a: [__m256i; 2]) -> I {
        if VNNI {
            return self.dot::<true>(self.dot::<true>(acc, w[0], a[0]), w[1], a[1]);
        }
        intrinsic!([dot_small([w[0][0], w[1][0]], a, acc[0]), dot_small([w[0][1], w[1][1]], a, acc[1])])
    }
    #[inline(always)]
    fn pairs(self, from: &[u8; 64]) -> I {
        self.codes(from)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: I, a: I, b: I) -> I {
        if VNNI {
            return each!(_mm256_dpwssd_avx_epi32(acc, a, b));
        }
        intrinsic!([_mm256_add_epi32(acc[0], _mm256_madd_epi16(a[0], b[0])), _mm256_add_epi32(acc[1], _mm256_madd_epi16(a[1], b[1])),])
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        intrinsic!(_mm_prefetch::<_MM_HINT_T0>(at.as_ptr().wrapping_add(ahead).cast()));
    }
}

/// Products of codes up to 63 are added in fours in 16 bits, which 4 · 63 · 128 = 32,256 does not leave.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_small(w: [__m256i; 2], a: [__m256i; 2], acc: __m256i) -> __m256i {
    let sums = _mm256_add_epi16(_mm256_maddubs_epi16(w[0], a[0]), _mm256_maddubs_epi16(w[1], a[1]));
    _mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)))
}

/// Codes up to 255 are widened first, even and odd inputs apart: pairs of their products would saturate 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_wide(w: __m256i, a: __m256i) -> __m256i {
    let even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)));
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(a));
    _mm256_add_epi32(even, odd)
}
