//! AVX-512 with VNNI: a vector is one register.

use super::{LANES, Op, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
fn enter<O: Op>(s: Avx512, op: O) -> O::Output {
    op.run(s)
}

/// Intrinsics of the features that `self` proves.
macro_rules! intrinsic {
    ($e:expr) => {{
        // SAFETY: a value of Avx512 exists only where `detect` found every feature used here; loads and stores are of
        // whole arrays that are borrowed.
        unsafe { $e }
    }};
}

impl Simd for Avx512 {
    const INT_TILE: (usize, usize) = (2, 12);
    const FLOAT_TILE: (usize, usize) = (2, 12);
    const FAST_SMALL_CODES: bool = false;
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type A = __m512i;

    #[inline]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        intrinsic!(enter(self, op))
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        intrinsic!(_mm512_set1_ps(v))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        intrinsic!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> __m512 {
        intrinsic!(_mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        intrinsic!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> __m512 {
        intrinsic!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast())))))
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        intrinsic!(_mm512_storeu_ps(to.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsic!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        intrinsic!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn swapped<const STEP: usize>(self, a: __m512) -> __m512 {
        intrinsic!(match STEP {
            1 => _mm512_permute_ps::<0b10_11_00_01>(a),
            2 => _mm512_permute_ps::<0b01_00_11_10>(a),
            _ => _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a),
        })
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        intrinsic!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        intrinsic!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        intrinsic!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        intrinsic!({
            // Four rows at a time: quarter q of part j holds column 4 q + j of them.
            let mut parts = [[rows[0]; 4]; 4];
            for (part, four) in parts.iter_mut().zip(rows.as_chunks::<4>().0) {
                let (a, b) = (_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
                let (c, d) = (_mm512_unpacklo_ps(four[2], four[3]), _mm512_unpackhi_ps(four[2], four[3]));
                let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
                let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
                *part = [low(a, c), high(a, c), low(b, d), high(b, d)];
            }
            let mut out = rows;
            for j in 0..4 {
                let [a, b, c, d] = parts.map(|part| part[j]);
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even2, odd2) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                out[j] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
            out
        })
    }
    #[inline(always)]
    fn splat_i(self, v: i32) -> __m512i {
        intrinsic!(_mm512_set1_epi32(v))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512i {
        intrinsic!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512i {
        intrinsic!(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        intrinsic!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        intrinsic!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: __m512i) -> __m512 {
        intrinsic!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn round_codes(self, v: __m512, to: &mut [i8; LANES]) -> __m512i {
        // The conversion rounds half to even (no code of this crate changes the rounding mode), the narrowing saturates.
        intrinsic!({
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
            _mm512_cvtepi8_epi32(bytes)
        })
    }
    #[inline(always)]
    fn round_shorts(self, v: __m512, to: &mut [i16; LANES]) {
        // As above.
        intrinsic!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v))));
    }
    #[inline(always)]
    fn codes(self, from: &[u8; 64]) -> __m512i {
        intrinsic!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8; 64]) -> [__m512i; 2] {
        let raw = self.codes(from);
        intrinsic!({
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(raw, low), _mm512_and_si512(_mm512_srli_epi16::<4>(raw), low)]
        })
    }
    #[inline(always)]
    fn points(self, from: &[u8; 64]) -> [__m512i; 2] {
        let raw = self.codes(from);
        intrinsic!({
            // The lowest bits of the eight numbers, added up: that sum is odd where the first one's own bit is to be turned over.
            let both = _mm512_xor_si512(raw, _mm512_srli_epi32::<4>(raw));
            let sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), both, _mm512_set1_epi8(1));
            // a ^ (b & c)
            let numbers = _mm512_ternarylogic_epi32::<0x78>(raw, sum, _mm512_set1_epi32(1));
            let first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
            let odd = _mm512_and_si512(_mm512_shuffle_epi8(raw, first), _mm512_set1_epi8(1));
            let twice = _mm512_set1_epi8(30);
            // (a & b) | c
            [
                _mm512_ternarylogic_epi32::<0xea>(_mm512_slli_epi32::<1>(numbers), twice, odd),
                _mm512_ternarylogic_epi32::<0xea>(_mm512_srli_epi32::<3>(raw), twice, odd),
            ]
        })
    }
    #[inline(always)]
    fn table(self, from: &[u8; 16]) -> __m512i {
        intrinsic!(_mm512_broadcast_i32x4(_mm_loadu_si128(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn levels(self, w: __m512i, table: __m512i) -> __m512i {
        intrinsic!(_mm512_shuffle_epi8(table, w))
    }
    #[inline(always)]
    fn store_codes(self, w: __m512i, to: &mut [u8; 64]) {
        intrinsic!(_mm512_storeu_si512(to.as_mut_ptr().cast(), w));
    }
    #[inline(always)]
    fn field(self, w: __m512i, from: usize, to: usize, bits: usize) -> __m512i {
        // What a shift carries from one byte to the next is masked away.
        let mask = (((1u32 << bits) - 1) << to) as u8;
        intrinsic!({
            let moved = if from < to {
                _mm512_sllv_epi32(w, _mm512_set1_epi32((to - from) as i32))
            } else {
                _mm512_srlv_epi32(w, _mm512_set1_epi32((from - to) as i32))
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        intrinsic!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn quad(self, from: &[i8; 4]) -> __m512i {
        intrinsic!(_mm512_set1_epi32(i32::from_le_bytes(from.map(|b| b as u8))))
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
        intrinsic!(_mm512_dpbusd_epi32(acc, w, a))
    }
    #[inline(always)]
    fn pairs(self, from: &[u8; 64]) -> __m512i {
        self.codes(from)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        intrinsic!(_mm512_dpwssd_epi32(acc, a, b))
    }
    #[inline(always)]
    fn prefetch(self, at: &[u8], ahead: usize) {
        // Into the second level: with the first as target its few fill buffers are what bounds a stream from memory
        // (decoding 4-bit codes: 85 % of a streaming read against 98 %).
        intrinsic!(_mm_prefetch::<_MM_HINT_T1>(at.as_ptr().wrapping_add(ahead).cast()));
    }
}
