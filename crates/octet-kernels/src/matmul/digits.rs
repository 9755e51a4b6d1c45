//! Float inputs as int8 digits: what makes products of integer weights and float activations integer products too.
//!
//! An input is rounded to 24 bits relative to the largest of its segment, x ≈ s · (d₀ + 256 d₁ + 65536 d₂) with digits in
//! −128..=127, about what a float's mantissa holds. A token so becomes three columns, whose sums are put together,
//! in units of the lowest, before they are scaled by s. Three integer dot products take fewer instructions than four conversions and multiplications
//! in floating point (decoding runs at the speed of memory instead of two thirds of it), and they are exact.

use crate::simd::{LANES, Op, Simd};

use super::layout::Segments;

/// Digits of an input.
pub(crate) const DIGITS: usize = 3;
/// Inputs that share a scale where all weights of a row do.
pub(crate) const GROUP: usize = 128;
/// What the largest input of a segment becomes: a little less than three digits hold (127 · 65793 = 8,355,711), for the
/// rounding of the quotient.
const LARGEST: f32 = 8_355_000.0;

/// Cuts a token of a tile of `width` columns (three a token) into digits; outputs begin at the token's first column.
pub(crate) struct Digits<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) segments: Segments,
    pub(crate) width: usize,
    pub(crate) codes: &'a mut [[i8; 4]],
    pub(crate) sums: &'a mut [i32],
    pub(crate) scales: &'a mut [f32],
}

impl Op for Digits<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, segments, width, codes, sums, scales } = self;
        for segment in 0..segments.count() {
            let x = &x[segments.inputs(segment)];
            let scale = scale_of(x);
            let octets = segments.octets(segment);
            let out = &mut codes[2 * octets.start * width..];
            let words = out.len().min(2 * octets.len() * width);
            let total = cut(s, x, scale, &mut out[..words], width);
            for digit in 0..DIGITS {
                scales[segment * width + digit] = scale;
                sums[segment * width + digit] = total[digit];
            }
        }
    }
}

/// The scale of a segment, NaN where a value is not finite, and zero where all are too small for a normal scale.
#[inline(always)]
fn scale_of(x: &[f32]) -> f32 {
    let bits = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(bits);
    match largest / LARGEST {
        _ if !largest.is_finite() => f32::NAN,
        scale if scale < f32::MIN_POSITIVE => 0.0,
        scale => scale,
    }
}

/// Writes the digits of `x`, words of four inputs of one digit, a column a digit, and returns the sum of each digit.
#[inline(always)]
fn cut<S: Simd>(s: S, x: &[f32], scale: f32, out: &mut [[i8; 4]], width: usize) -> [i32; DIGITS] {
    let mut total = [0; DIGITS];
    let live = scale > 0.0;
    for (i, out) in out.chunks_mut(width * LANES / 4).enumerate() {
        let mut quotients = [0.0; LANES];
        if live && let Some(x) = x.get(i * LANES..) {
            let x = &x[..x.len().min(LANES)];
            let mut padded = [0.0; LANES];
            padded[..x.len()].copy_from_slice(x);
            s.store(s.round(s.div(s.load(&padded), s.splat(scale))), &mut quotients);
        }
        let mut digits = [[0i8; LANES]; DIGITS];
        for lane in 0..LANES {
            let mut rest = quotients[lane] as i32;
            for digit in &mut digits {
                digit[lane] = rest as i8;
                rest = (rest - i32::from(digit[lane])) >> 8;
            }
        }
        for (digit, codes) in digits.iter().enumerate() {
            total[digit] += codes.iter().map(|&c| i32::from(c)).sum::<i32>();
            for (out, word) in out.iter_mut().skip(digit).step_by(width).zip(codes.as_chunks::<4>().0) {
                *out = *word;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, Isa};
    use std::num::NonZeroUsize;

    fn digits(isa: Isa, x: &[f32], segments: Segments) -> (Vec<[i8; 4]>, Vec<i32>, Vec<f32>) {
        let engine = Engine::new(isa, NonZeroUsize::MIN).unwrap();
        let mut codes = vec![[0; 4]; 2 * segments.all_octets() * DIGITS];
        let (mut sums, mut scales) = (vec![0; DIGITS * segments.count()], vec![0.0; DIGITS * segments.count()]);
        engine.vectorize(Digits { x, segments, width: DIGITS, codes: &mut codes, sums: &mut sums, scales: &mut scales });
        (codes, sums, scales)
    }

    #[test]
    fn digits_give_inputs_back_to_24_bits_of_the_largest() {
        let mut x: Vec<f32> = (0..77).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 0.37).collect();
        x[41] = 1e4;
        let segments = Segments::new(77, 40);
        for isa in Isa::available() {
            let (codes, sums, scales) = digits(isa, &x, segments);
            for segment in 0..segments.count() {
                let part = &x[segments.inputs(segment)];
                let largest = part.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let mut total = [0; DIGITS];
                for (k, &v) in segments.inputs(segment).zip(part) {
                    let p = segments.position(k);
                    let digit = |d: usize| codes[p / 4 * DIGITS + d][p % 4];
                    (0..DIGITS).for_each(|d| total[d] += i32::from(digit(d)));
                    let value: f64 =
                        (0..DIGITS).map(|d| f64::from(digit(d)) * 256f64.powi(d as i32) * f64::from(scales[segment * DIGITS])).sum();
                    assert!((value - f64::from(v)).abs() <= f64::from(largest) / 1.6e7, "{isa}: {v} became {value}");
                }
                assert_eq!(total, sums[segment * DIGITS..][..DIGITS]);
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_nothing_is_defined() {
        for isa in Isa::available() {
            for (x, scale) in [([1.0, f32::NAN], f32::NAN), ([f32::INFINITY, 0.0], f32::NAN), ([0.0, 0.0], 0.0), ([1e-41, 0.0], 0.0)] {
                let (codes, sums, scales) = digits(isa, &x, Segments::new(2, 2));
                assert!(codes.iter().all(|c| *c == [0; 4]) && sums == [0; DIGITS]);
                assert!(scales.iter().all(|s| s.to_bits() == scale.to_bits() || s.is_nan() && scale.is_nan()));
            }
        }
    }
}
