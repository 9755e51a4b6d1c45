//! The loops of weight quantization: errors of sixteen candidate scales at once, and encoding with the best.
//!
//! In the error loop candidates are the lanes, not weights, so that a group of any length costs the same and needs no
//! sums across lanes. Sums run in f32 over blocks of [`BLOCK`] weights and in f64 across blocks; multiplications and
//! additions are never fused. So every instruction set gives the same bits: the scales that are chosen, and the files
//! made from them, do not depend on the machine.

use crate::{
    Engine, lattice,
    simd::{LANES, Op, Simd},
};
use octet_tensor::{Alphabet, Table};

/// Candidates looked at in one pass.
pub const CANDIDATES: usize = LANES;

/// Weights summed in f32 before the sum moves to f64.
pub(crate) const BLOCK: usize = 128;

/// Sixteen candidates for representing a group: w ≈ scale · clamp(round(w · inverse), low, high).
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidates {
    /// 1 / scale (0 where everything becomes 0).
    pub inverse: [f32; CANDIDATES],
    /// The scales.
    pub scale: [f32; CANDIDATES],
    /// Smallest code minus zero point.
    pub low: [f32; CANDIDATES],
    /// Largest code minus zero point.
    pub high: [f32; CANDIDATES],
    /// What codes are: levels are the nearest, points the nearest of eight weights, whatever the range.
    pub alphabet: Alphabet,
}

/// One of [`Candidates`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate {
    /// 1 / scale (0 where everything becomes 0).
    pub inverse: f32,
    /// The scale.
    pub scale: f32,
    /// Smallest code minus zero point.
    pub low: f32,
    /// Largest code minus zero point.
    pub high: f32,
    /// What codes are: levels are the nearest, points the nearest of eight weights, whatever the range.
    pub alphabet: Alphabet,
}

/// Sums over a group with its codes fixed, for closed-form best scales (k: code minus zero point, h: importance).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodeMoments {
    /// Σ h
    pub h: f64,
    /// Σ h·k
    pub k: f64,
    /// Σ h·k²
    pub kk: f64,
    /// Σ h·w
    pub w: f64,
    /// Σ h·w·k
    pub wk: f64,
    /// Σ h·w²
    pub ww: f64,
}

impl CodeMoments {
    /// Adds the lanes of all six, in the order of the fields.
    #[inline(always)]
    pub(crate) fn gather<S: Simd>(&mut self, s: S, sums: [S::F; 6]) {
        let fields = [&mut self.h, &mut self.k, &mut self.kk, &mut self.w, &mut self.wk, &mut self.ww];
        for (field, sum) in fields.into_iter().zip(sums) {
            *field += total(s, sum);
        }
    }
}

/// What encoding a group left.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EncodeError {
    /// Σ (w − q)²
    pub error: f64,
    /// Σ w²
    pub weight: f64,
    /// Largest |w − q|.
    pub max: f32,
}

impl Engine {
    /// Σ h·(w − q)² of finite `weights` under each of sixteen candidates; `importance` h is empty (all ones) or as long
    /// as `weights`.
    pub fn candidate_errors(&self, weights: &[f32], importance: &[f32], candidates: &Candidates) -> [f64; CANDIDATES] {
        match candidates.alphabet {
            Alphabet::Even => self.vectorize(Errors::<false> { weights, importance, candidates }),
            Alphabet::Table(_) => self.vectorize(Errors::<true> { weights, importance, candidates }),
            Alphabet::Lattice => self.vectorize(lattice::Errors { weights, importance, candidates }),
        }
    }

    /// The moments of finite `weights` under one candidate; `importance` as in [`Engine::candidate_errors`].
    pub fn code_moments(&self, weights: &[f32], importance: &[f32], candidate: Candidate) -> CodeMoments {
        match candidate.alphabet {
            Alphabet::Even => self.vectorize(Moments::<false> { weights, importance, candidate }),
            Alphabet::Table(_) => self.vectorize(Moments::<true> { weights, importance, candidate }),
            Alphabet::Lattice => self.vectorize(lattice::Moments { weights, importance, candidate }),
        }
    }

    /// Smallest and largest of finite `weights` (0 and 0 of none).
    pub fn weight_range(&self, weights: &[f32]) -> (f32, f32) {
        self.vectorize(Range(weights))
    }

    /// Writes the codes of finite `weights` under one candidate, `zero` added, and says what error that leaves; `importance`, as in
    /// [`Engine::candidate_errors`], decides which points are the nearest.
    ///
    /// # Panics
    /// If `codes` is shorter than `weights`.
    pub fn encode_weights(&self, weights: &[f32], importance: &[f32], candidate: Candidate, zero: i8, codes: &mut [i8]) -> EncodeError {
        let codes = &mut codes[..weights.len()];
        match candidate.alphabet {
            Alphabet::Even => self.vectorize(Encode::<false> { weights, candidate, zero, codes }),
            Alphabet::Table(_) => self.vectorize(Encode::<true> { weights, candidate, zero, codes }),
            Alphabet::Lattice => self.vectorize(lattice::Encode { weights, importance, candidate, codes }),
        }
    }
}

/// Adding and subtracting 1.5 · 2^23 rounds a number below 2^22 half to even, on every instruction set at once.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Clamps and rounds half to even: clamped first, so that rounding meets small numbers only.
#[inline(always)]
pub(crate) fn code<S: Simd>(s: S, w: S::F, inverse: S::F, low: S::F, high: S::F) -> S::F {
    let clamped = s.min(s.max(s.mul(w, inverse), low), high);
    s.sub(s.add(clamped, s.splat(ROUND)), s.splat(ROUND))
}

/// The levels of a table, and where one ends and the next begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    first: f32,
    /// Of every other level: the middle between it and the one below, and itself.
    others: [(f32, f32); 15],
}

impl Levels {
    /// Those of `table`, or of none.
    pub(crate) fn new(table: Option<&Table>) -> Self {
        let levels = table.map_or([0.0; 16], |table| table.levels().map(f32::from));
        Self { first: levels[0], others: std::array::from_fn(|i| (0.5 * (levels[i] + levels[i + 1]), levels[i + 1])) }
    }
}

/// The level that is nearest.
#[inline(always)]
pub(crate) fn level<S: Simd>(s: S, w: S::F, inverse: S::F, levels: &Levels) -> S::F {
    let x = s.mul(w, inverse);
    let mut level = s.splat(levels.first);
    for &(bound, above) in &levels.others {
        level = s.select_less(s.splat(bound), x, s.splat(above), level);
    }
    level
}

/// What a value is rounded to: a whole number of a range, or a level.
#[derive(Clone, Copy)]
struct Steps<'a, S: Simd> {
    low: S::F,
    high: S::F,
    levels: &'a Levels,
}

/// [`code`] or [`level`].
#[inline(always)]
fn nearest<S: Simd, const TABLE: bool>(s: S, w: S::F, inverse: S::F, steps: Steps<'_, S>) -> S::F {
    if const { TABLE } { level(s, w, inverse, steps.levels) } else { code(s, w, inverse, steps.low, steps.high) }
}

#[inline(always)]
pub(crate) fn stored<S: Simd>(s: S, v: S::F) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    s.store(v, &mut out);
    out
}

/// Sixteen of `values`, or what is left of them and zeros.
#[inline(always)]
pub(crate) fn padded(values: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..values.len()].copy_from_slice(values);
    out
}

#[inline(always)]
pub(crate) fn total<S: Simd>(s: S, v: S::F) -> f64 {
    f64::from(s.sum(v))
}

struct Errors<'a, const TABLE: bool> {
    weights: &'a [f32],
    importance: &'a [f32],
    candidates: &'a Candidates,
}

impl<const TABLE: bool> Op for Errors<'_, TABLE> {
    type Output = [f64; CANDIDATES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f64; CANDIDATES] {
        let Self { weights, importance, candidates } = self;
        let (inverse, scale) = (s.load(&candidates.inverse), s.load(&candidates.scale));
        let levels = Levels::new(candidates.alphabet.table());
        let steps = Steps::<S> { low: s.load(&candidates.low), high: s.load(&candidates.high), levels: &levels };
        let mut totals = [0f64; CANDIDATES];
        for (i, block) in weights.chunks(BLOCK).enumerate() {
            // Two chains of additions, or one would wait for itself.
            let (mut even, mut odd) = (s.splat(0.0), s.splat(0.0));
            let (pairs, rest) = block.as_chunks::<2>();
            if importance.is_empty() {
                for &[a, b] in pairs {
                    let (a, b) = (s.splat(a), s.splat(b));
                    let ea = s.sub(a, s.mul(scale, nearest::<S, TABLE>(s, a, inverse, steps)));
                    let eb = s.sub(b, s.mul(scale, nearest::<S, TABLE>(s, b, inverse, steps)));
                    even = s.add(even, s.mul(ea, ea));
                    odd = s.add(odd, s.mul(eb, eb));
                }
            } else {
                let h = &importance[i * BLOCK..][..block.len()];
                for (&[a, b], &[ha, hb]) in pairs.iter().zip(h.as_chunks::<2>().0) {
                    let (a, b) = (s.splat(a), s.splat(b));
                    let ea = s.sub(a, s.mul(scale, nearest::<S, TABLE>(s, a, inverse, steps)));
                    let eb = s.sub(b, s.mul(scale, nearest::<S, TABLE>(s, b, inverse, steps)));
                    even = s.add(even, s.mul(s.splat(ha), s.mul(ea, ea)));
                    odd = s.add(odd, s.mul(s.splat(hb), s.mul(eb, eb)));
                }
            }
            if let &[a] = rest {
                let h = importance.get(i * BLOCK + block.len() - 1).copied().unwrap_or(1.0);
                let a = s.splat(a);
                let e = s.sub(a, s.mul(scale, nearest::<S, TABLE>(s, a, inverse, steps)));
                even = s.add(even, s.mul(s.splat(h), s.mul(e, e)));
            }
            for (total, sum) in totals.iter_mut().zip(stored(s, s.add(even, odd))) {
                *total += f64::from(sum);
            }
        }
        totals
    }
}

struct Moments<'a, const TABLE: bool> {
    weights: &'a [f32],
    importance: &'a [f32],
    candidate: Candidate,
}

impl<const TABLE: bool> Op for Moments<'_, TABLE> {
    type Output = CodeMoments;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> CodeMoments {
        let Candidate { inverse, low, high, alphabet, .. } = self.candidate;
        let levels = Levels::new(alphabet.table());
        let (inverse, steps) = (s.splat(inverse), Steps::<S> { low: s.splat(low), high: s.splat(high), levels: &levels });
        let mut m = CodeMoments::default();
        for (i, block) in self.weights.chunks(BLOCK).enumerate() {
            let mut sums = [s.splat(0.0); 6];
            for (j, weights) in block.chunks(LANES).enumerate() {
                let at = i * BLOCK + j * LANES;
                // Padding has importance zero, so it is in no sum.
                let h = match self.importance.get(at..at + weights.len()) {
                    Some(h) => padded(h),
                    None => padded(&[1.0; LANES][..weights.len()]),
                };
                let (w, h) = (s.load(&padded(weights)), s.load(&h));
                let k = nearest::<S, TABLE>(s, w, inverse, steps);
                let (hk, hw) = (s.mul(h, k), s.mul(h, w));
                let [sh, sk, skk, sw, swk, sww] = sums;
                sums = [
                    s.add(sh, h),
                    s.add(sk, hk),
                    s.add(skk, s.mul(hk, k)),
                    s.add(sw, hw),
                    s.add(swk, s.mul(hw, k)),
                    s.add(sww, s.mul(hw, w)),
                ];
            }
            m.gather(s, sums);
        }
        m
    }
}

pub(crate) struct Range<'a>(pub(crate) &'a [f32]);

impl Op for Range<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let Some(&first) = self.0.first() else { return (0.0, 0.0) };
        let (mut low, mut high) = (s.splat(first), s.splat(first));
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for weights in whole {
            let w = s.load(weights);
            (low, high) = (s.min(low, w), s.max(high, w));
        }
        let low = stored(s, low).iter().chain(rest).fold(first, |a, &b| a.min(b));
        let high = stored(s, high).iter().chain(rest).fold(first, |a, &b| a.max(b));
        (low, high)
    }
}

pub(crate) struct Encode<'a, const TABLE: bool> {
    pub(crate) weights: &'a [f32],
    pub(crate) candidate: Candidate,
    pub(crate) zero: i8,
    pub(crate) codes: &'a mut [i8],
}

impl<const TABLE: bool> Op for Encode<'_, TABLE> {
    type Output = EncodeError;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> EncodeError {
        let Candidate { inverse, scale, low, high, alphabet } = self.candidate;
        let levels = Levels::new(alphabet.table());
        let steps = Steps::<S> { low: s.splat(low), high: s.splat(high), levels: &levels };
        let (inverse, scale) = (s.splat(inverse), s.splat(scale));
        let mut found = EncodeError::default();
        let (zeros, mut max) = (s.splat(0.0), s.splat(0.0));
        for (block, codes) in self.weights.chunks(BLOCK).zip(self.codes.chunks_mut(BLOCK)) {
            let (mut error, mut weight) = (zeros, zeros);
            let ((whole, rest), (codes, last)) = (block.as_chunks::<LANES>(), codes.as_chunks_mut::<LANES>());
            // A macro, since a closure is not compiled for the instruction set.
            macro_rules! one {
                ($weights:expr) => {{
                    let w = s.load($weights);
                    let k = nearest::<S, TABLE>(s, w, inverse, steps);
                    let e = s.sub(w, s.mul(scale, k));
                    error = s.add(error, s.mul(e, e));
                    weight = s.add(weight, s.mul(w, w));
                    max = s.max(max, s.max(e, s.sub(zeros, e)));
                    bytes(stored(s, k), self.zero)
                }};
            }
            for (weights, codes) in whole.iter().zip(codes) {
                *codes = one!(weights);
            }
            if !rest.is_empty() {
                // Padding with zeros adds nothing to any sum, unless no level is zero.
                let before = (error, max);
                last.copy_from_slice(&one!(&padded(rest))[..rest.len()]);
                if const { TABLE } {
                    (error, max) = before;
                    for (&w, &level) in rest.iter().zip(&*last) {
                        let e = w - self.candidate.scale * f32::from(level);
                        found.error += f64::from(e * e);
                        found.max = found.max.max(e.abs());
                    }
                }
            }
            found.error += total(s, error);
            found.weight += total(s, weight);
        }
        found.max = stored(s, max).into_iter().fold(found.max, f32::max);
        found
    }
}

/// Whole numbers as bytes, `zero` added. Adding [`ROUND`] leaves a small whole number in the low bits of the mantissa
/// (two's complement), which is cheaper than a checked conversion.
#[inline(always)]
fn bytes(k: [f32; LANES], zero: i8) -> [i8; LANES] {
    let mut out = [0i8; LANES];
    for (out, k) in out.iter_mut().zip(k) {
        *out = ((k + ROUND).to_bits() as i8).wrapping_add(zero);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use octet_tensor::round_code;
    use std::num::NonZeroUsize;

    fn weights(count: usize) -> Vec<f32> {
        (0..count as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0) * 3.0).collect()
    }

    fn candidates() -> Candidates {
        let scale: [f32; CANDIDATES] = std::array::from_fn(|j| (0.2 + 0.03 * j as f32) * if j % 2 == 0 { 1.0 } else { -1.0 });
        Candidates { scale, inverse: scale.map(|s| 1.0 / s), low: [-8.0; CANDIDATES], high: [7.0; CANDIDATES], alphabet: Alphabet::Even }
    }

    fn one(all: &Candidates, j: usize) -> Candidate {
        Candidate { inverse: all.inverse[j], scale: all.scale[j], low: all.low[j], high: all.high[j], alphabet: all.alphabet }
    }

    fn engines() -> impl Iterator<Item = Engine> {
        Isa::available().into_iter().map(|isa| Engine::new(isa, NonZeroUsize::MIN).unwrap())
    }

    #[test]
    fn errors_codes_and_moments_agree_with_the_definition() {
        for count in [1, 2, 15, 16, 17, 127, 128, 129, 300] {
            let (w, all) = (weights(count), candidates());
            let h: Vec<f32> = weights(count).iter().map(|v| v.abs() + 0.1).collect();
            for engine in engines() {
                let (plain, weighted) = (engine.candidate_errors(&w, &[], &all), engine.candidate_errors(&w, &h, &all));
                for j in 0..CANDIDATES {
                    let codes: Vec<i32> = w.iter().map(|v| round_code(v * all.inverse[j], -8, 7)).collect();
                    let square = |i: usize| f64::from(w[i] - all.scale[j] * codes[i] as f32).powi(2);
                    let expected: f64 = (0..count).map(square).sum();
                    let expected_weighted: f64 = (0..count).map(|i| f64::from(h[i]) * square(i)).sum();
                    assert!((plain[j] - expected).abs() <= 1e-5 * expected, "{} {count}", engine.isa());
                    assert!((weighted[j] - expected_weighted).abs() <= 1e-5 * expected_weighted, "{} {count}", engine.isa());

                    let mut found = vec![0i8; count];
                    let encoded = engine.encode_weights(&w, &[], one(&all, j), 3, &mut found);
                    assert!(found.iter().zip(&codes).all(|(f, c)| i32::from(*f) == c + 3));
                    assert!((encoded.error - expected).abs() <= 1e-5 * expected);

                    let m = engine.code_moments(&w, &h, one(&all, j));
                    let wk: f64 = (0..count).map(|i| f64::from(h[i]) * f64::from(w[i]) * f64::from(codes[i])).sum();
                    let kk: f64 = (0..count).map(|i| f64::from(h[i]) * f64::from(codes[i]).powi(2)).sum();
                    assert!((m.wk - wk).abs() <= 1e-5 * wk.abs() && (m.kk - kk).abs() <= 1e-5 * kk);
                }
                let range = w.iter().fold((w[0], w[0]), |(a, b), &v| (a.min(v), b.max(v)));
                assert_eq!(engine.weight_range(&w), range);
            }
        }
    }

    #[test]
    fn levels_are_the_nearest_of_the_table() {
        let own: [i8; 16] = std::array::from_fn(|i| (i * i / 2) as i8 + i as i8 - 60);
        for table in [Table::USUAL, Table::new(own).unwrap()] {
            levels_are_the_nearest(table);
        }
    }

    fn levels_are_the_nearest(table: Table) {
        let scale: [f32; CANDIDATES] = std::array::from_fn(|j| (0.01 + 0.003 * j as f32) * if j % 2 == 0 { 1.0 } else { -1.0 });
        let all = Candidates { scale, inverse: scale.map(|s| 1.0 / s), alphabet: Alphabet::Table(table), ..Candidates::default() };
        let w = weights(200);
        for engine in engines() {
            let errors = engine.candidate_errors(&w, &[], &all);
            for j in 0..CANDIDATES {
                let nearest = |w: f32| table.levels().iter().map(|l| (w - scale[j] * f32::from(*l)).abs()).fold(f32::INFINITY, f32::min);
                let expected: f64 = w.iter().map(|&w| f64::from(nearest(w)).powi(2)).sum();
                assert!((errors[j] - expected).abs() <= 1e-5 * expected, "{}", engine.isa());
                let mut codes = vec![0; w.len()];
                let found = engine.encode_weights(&w, &[], one(&all, j), 0, &mut codes);
                assert!((found.error - expected).abs() <= 1e-5 * expected, "{}", engine.isa());
                assert!(codes.iter().all(|code| table.levels().contains(code)));
                let kk: f64 = codes.iter().map(|&c| f64::from(c).powi(2)).sum();
                assert!((engine.code_moments(&w, &[], one(&all, j)).kk - kk).abs() <= 1e-5 * kk);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (w, all) = (weights(1000), candidates());
        let h: Vec<f32> = w.iter().map(|v| v.abs()).collect();
        let run = |engine: &Engine| {
            let mut codes = vec![0i8; w.len()];
            let encoded = engine.encode_weights(&w, &[], one(&all, 3), 0, &mut codes);
            let errors = [engine.candidate_errors(&w, &[], &all), engine.candidate_errors(&w, &h, &all)];
            (errors.map(|e| e.map(f64::to_bits)), engine.code_moments(&w, &h, one(&all, 2)), encoded, codes)
        };
        let all: Vec<_> = engines().map(|engine| run(&engine)).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
