//! Points of a lattice as codes: what eight weights are nearest to, under sixteen candidate scales or of sixteen eights at once.
//!
//! The lattice is E8 in units of half a step ([`octet_tensor::Alphabet::Lattice`]): eight codes from −16 to 15, all even or all odd,
//! that add up to a multiple of four. Code v is 2·n + c − 16 with one c for all eight and n from 0 to 15, of which the sum is even. The nearest
//! point of either c is every weight rounded by itself, one weight the other way if the sum is odd (Conway and Sloane, 1982).

use crate::{
    search::{BLOCK, CANDIDATES, Candidate, Candidates, CodeMoments, EncodeError, ROUND, code, stored, total},
    simd::{LANES, Op, Simd},
};

/// Weights of a point.
pub(crate) const EIGHT: usize = 8;

/// What is taken off twice a number and the choice of even or odd codes.
pub(crate) const MIDDLE: f32 = 16.0;

/// The largest number.
const MOST: f32 = 15.0;

/// The number nearest to `y`, and how far beyond it `y` is.
#[inline(always)]
pub(crate) fn number<S: Simd>(s: S, y: S::F) -> (S::F, S::F) {
    let n = code(s, y, s.splat(1.0), s.splat(0.0), s.splat(MOST));
    (n, s.sub(y, n))
}

/// The step from number `n` to the one on the other side of what is `beyond` it; inwards from the ends.
#[inline(always)]
pub(crate) fn other_side<S: Simd>(s: S, n: S::F, beyond: S::F) -> S::F {
    let (down, up) = (s.splat(-1.0), s.splat(1.0));
    let step = s.select_less(beyond, s.splat(0.0), down, up);
    let step = s.select_less(n, s.splat(0.5), up, step);
    s.select_less(s.splat(MOST - 0.5), n, down, step)
}

/// `yes` where a sum of whole numbers is odd, else `no`.
#[inline(always)]
pub(crate) fn select_odd<S: Simd>(s: S, sum: S::F, yes: S::F, no: S::F) -> S::F {
    let half = s.mul(sum, s.splat(0.5));
    let whole = s.sub(s.add(half, s.splat(ROUND)), s.splat(ROUND));
    let rest = s.sub(half, whole);
    s.select_less(s.splat(0.125), s.mul(rest, rest), yes, no)
}

/// The point nearest to `units` (weights over their scale), and Σ h · distance² in units of a whole step.
#[inline(always)]
fn point<S: Simd>(s: S, units: [S::F; EIGHT], h: [S::F; EIGHT]) -> ([S::F; EIGHT], S::F) {
    let (one, two) = (s.splat(1.0), s.splat(2.0));
    let mut best = ([s.splat(0.0); EIGHT], s.splat(f32::INFINITY));
    for parity in [0.0, 1.0] {
        let shift = s.splat(MIDDLE - parity);
        let (mut sum, mut numbers, mut at) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        let mut least = s.splat(f32::INFINITY);
        let (mut n, mut step) = ([s.splat(0.0); EIGHT], [s.splat(0.0); EIGHT]);
        for i in 0..EIGHT {
            let (nearest, beyond) = number(s, s.mul(s.add(units[i], shift), s.splat(0.5)));
            n[i] = nearest;
            step[i] = other_side(s, nearest, beyond);
            sum = s.add(sum, s.mul(h[i], s.mul(beyond, beyond)));
            numbers = s.add(numbers, nearest);
            let dearer = s.mul(h[i], s.sub(one, s.mul(two, s.mul(step[i], beyond))));
            at = s.select_less(dearer, least, s.splat(i as f32), at);
            least = s.min(dearer, least);
        }
        let distance = select_odd(s, numbers, s.add(sum, least), sum);
        // Nowhere where the sum is even.
        let at = select_odd(s, numbers, at, s.splat(-1.0));
        for i in 0..EIGHT {
            let off = s.sub(at, s.splat(i as f32));
            let moved = s.select_less(s.mul(off, off), s.splat(0.25), s.add(n[i], step[i]), n[i]);
            let code = s.sub(s.mul(two, moved), shift);
            best.0[i] = s.select_less(distance, best.1, code, best.0[i]);
        }
        best.1 = s.min(distance, best.1);
    }
    best
}

/// Σ h·(w − q)² of points under sixteen candidates.
pub(crate) struct Errors<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) importance: &'a [f32],
    pub(crate) candidates: &'a Candidates,
}

impl Op for Errors<'_> {
    type Output = [f64; CANDIDATES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f64; CANDIDATES] {
        let (inverse, scale) = (s.load(&self.candidates.inverse), s.load(&self.candidates.scale));
        // A whole step is two of a code.
        let unit = s.mul(s.splat(4.0), s.mul(scale, scale));
        let mut totals = [0f64; CANDIDATES];
        for (i, block) in self.weights.chunks(BLOCK).enumerate() {
            let mut sum = s.splat(0.0);
            for (j, weights) in block.chunks(EIGHT).enumerate() {
                let (w, h) = eight(weights, self.importance, i * BLOCK + j * EIGHT);
                let (mut units, mut importance) = ([s.splat(0.0); EIGHT], [s.splat(0.0); EIGHT]);
                for i in 0..EIGHT {
                    (units[i], importance[i]) = (s.mul(s.splat(w[i]), inverse), s.splat(h[i]));
                }
                sum = s.add(sum, point(s, units, importance).1);
            }
            // Where everything becomes 0 the scale is 0 and the error that of dropping all.
            let mut dropped = 0.0;
            for (j, weights) in block.chunks(EIGHT).enumerate() {
                let (w, h) = eight(weights, self.importance, i * BLOCK + j * EIGHT);
                dropped += w.iter().zip(h).map(|(w, h)| h * (w * w)).sum::<f32>();
            }
            let error = s.select_less(s.splat(0.0), unit, s.mul(unit, sum), s.splat(dropped));
            for (total, error) in totals.iter_mut().zip(stored(s, error)) {
                *total += f64::from(error);
            }
        }
        totals
    }
}

/// Eight weights, zeros where there are fewer, and their importance, 1 where it is not given and 0 for what is filled up.
#[inline(always)]
fn eight(weights: &[f32], importance: &[f32], at: usize) -> ([f32; EIGHT], [f32; EIGHT]) {
    let (mut w, mut h) = ([0.0; EIGHT], [0.0; EIGHT]);
    w[..weights.len()].copy_from_slice(weights);
    match importance.get(at..at + weights.len()) {
        Some(importance) => h[..weights.len()].copy_from_slice(importance),
        None => h[..weights.len()].fill(1.0),
    }
    (w, h)
}

/// Sixteen eights, lane by lane: of each weights and importance.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn eights<S: Simd>(s: S, weights: &[f32], importance: &[f32], at: usize) -> ([S::F; EIGHT], [S::F; EIGHT]) {
    let mut lanes = [[[0.0; LANES]; EIGHT]; 2];
    for (lane, weights) in weights.chunks(EIGHT).enumerate() {
        let (w, h) = eight(weights, importance, at + lane * EIGHT);
        for i in 0..EIGHT {
            (lanes[0][i][lane], lanes[1][i][lane]) = (w[i], h[i]);
        }
    }
    let mut out = ([s.splat(0.0); EIGHT], [s.splat(0.0); EIGHT]);
    for i in 0..EIGHT {
        (out.0[i], out.1[i]) = (s.load(&lanes[0][i]), s.load(&lanes[1][i]));
    }
    out
}

/// The points of sixteen eights.
#[inline(always)]
fn points<S: Simd>(s: S, w: &[S::F; EIGHT], h: &[S::F; EIGHT], inverse: f32) -> [S::F; EIGHT] {
    let mut units = [s.splat(0.0); EIGHT];
    for i in 0..EIGHT {
        units[i] = s.mul(w[i], s.splat(inverse));
    }
    point(s, units, *h).0
}

/// Sums over a group with its points fixed.
pub(crate) struct Moments<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) importance: &'a [f32],
    pub(crate) candidate: Candidate,
}

impl Op for Moments<'_> {
    type Output = CodeMoments;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> CodeMoments {
        let mut m = CodeMoments::default();
        for (i, block) in self.weights.chunks(BLOCK).enumerate() {
            let (w, h) = eights(s, block, self.importance, i * BLOCK);
            let k = points(s, &w, &h, self.candidate.inverse);
            let mut sums = [s.splat(0.0); 6];
            for i in 0..EIGHT {
                let (hk, hw) = (s.mul(h[i], k[i]), s.mul(h[i], w[i]));
                let terms = [h[i], hk, s.mul(hk, k[i]), hw, s.mul(hw, k[i]), s.mul(hw, w[i])];
                for (sum, term) in sums.iter_mut().zip(terms) {
                    *sum = s.add(*sum, term);
                }
            }
            m.gather(s, sums);
        }
        m
    }
}

/// Writes the codes of the nearest points.
pub(crate) struct Encode<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) importance: &'a [f32],
    pub(crate) candidate: Candidate,
    pub(crate) codes: &'a mut [i8],
}

impl Op for Encode<'_> {
    type Output = EncodeError;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> EncodeError {
        let scale = s.splat(self.candidate.scale);
        let mut found = EncodeError::default();
        let (zeros, mut max) = (s.splat(0.0), s.splat(0.0));
        for (i, (block, codes)) in self.weights.chunks(BLOCK).zip(self.codes.chunks_mut(BLOCK)).enumerate() {
            let (w, h) = eights(s, block, self.importance, i * BLOCK);
            let k = points(s, &w, &h, self.candidate.inverse);
            let (mut error, mut weight) = (zeros, zeros);
            for i in 0..EIGHT {
                let e = s.sub(w[i], s.mul(scale, k[i]));
                error = s.add(error, s.mul(e, e));
                weight = s.add(weight, s.mul(w[i], w[i]));
                max = s.max(max, s.max(e, s.sub(zeros, e)));
                let mut lanes = [0; LANES];
                s.round_codes(k[i], &mut lanes);
                for (codes, &code) in codes.chunks_mut(EIGHT).zip(&lanes) {
                    if let Some(to) = codes.get_mut(i) {
                        *to = code;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, Isa};
    use octet_tensor::Alphabet;
    use std::num::NonZeroUsize;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0) * 3.0).collect()
    }

    /// Every point of the lattice within one step of a coordinate.
    fn around(units: &[f32]) -> impl Iterator<Item = Vec<i8>> {
        let near: Vec<Vec<i8>> = units
            .iter()
            .map(|&unit| (-16..=15).filter(|&code| (f32::from(code) - unit.clamp(-16.0, 15.0)).abs() <= 3.0).collect())
            .collect();
        let count: usize = near.iter().map(Vec::len).product();
        (0..count).map(move |mut which| {
            near.iter()
                .map(|codes| {
                    let code = codes[which % codes.len()];
                    which /= codes.len();
                    code
                })
                .collect()
        })
    }

    #[test]
    fn points_are_the_nearest_there_are() {
        let all =
            Candidates { scale: [0.25; CANDIDATES], inverse: [4.0; CANDIDATES], alphabet: Alphabet::Lattice, ..Candidates::default() };
        let candidate = Candidate { inverse: 4.0, scale: 0.25, alphabet: Alphabet::Lattice, ..Candidate::default() };
        let (w, h) = (numbers(16), numbers(16).iter().map(|v| v.abs() + 0.1).collect::<Vec<f32>>());
        let w: Vec<f32> = w.iter().enumerate().map(|(i, w)| if i == 5 { 9.0 } else { *w }).collect();
        for (w, h) in w.chunks(8).zip(h.chunks(8)) {
            let error = |codes: &[i8]| -> f64 {
                let one = |((w, h), code): ((&f32, &f32), &i8)| f64::from(*h) * f64::from(w - 0.25 * f32::from(*code)).powi(2);
                w.iter().zip(h).zip(codes).map(one).sum()
            };
            let units: Vec<f32> = w.iter().map(|w| 4.0 * w).collect();
            let best = around(&units).filter(|codes| Alphabet::Lattice.holds(codes)).map(|codes| error(&codes)).fold(f64::MAX, f64::min);
            for isa in Isa::available() {
                let engine = Engine::new(isa, NonZeroUsize::MIN).unwrap();
                let mut codes = [0; 8];
                let found = engine.encode_weights(w, h, candidate, 0, &mut codes);
                assert!(Alphabet::Lattice.holds(&codes));
                assert!(error(&codes) <= best * 1.0001, "{} where {best} is possible, {isa}", error(&codes));
                let errors = engine.candidate_errors(w, h, &all);
                assert!((errors[3] - best).abs() <= 1e-4 * best, "{} {best}", errors[3]);
                let plain: f64 = w.iter().zip(&codes).map(|(w, &code)| f64::from(w - 0.25 * f32::from(code)).powi(2)).sum();
                assert!((found.error - plain).abs() <= 1e-5 * plain);
                let moments = engine.code_moments(w, h, candidate);
                let kk: f64 = codes.iter().zip(h).map(|(&k, &h)| f64::from(h) * f64::from(k).powi(2)).sum();
                assert!((moments.kk - kk).abs() <= 1e-5 * kk);
            }
        }
    }

    #[test]
    fn instruction_sets_agree_on_any_length_and_on_nothing() {
        let scalar = Engine::new(Isa::Scalar, NonZeroUsize::MIN).unwrap();
        for (count, inverse) in [(8, 3.0), (24, 5.0), (128, 2.0), (200, 7.0), (64, 0.0)] {
            let candidate = Candidate {
                inverse,
                scale: if inverse == 0.0 { 0.0 } else { 1.0 / inverse },
                alphabet: Alphabet::Lattice,
                ..Candidate::default()
            };
            let w = numbers(count);
            let run = |engine: &Engine| {
                let mut codes = vec![9; count];
                let error = engine.encode_weights(&w, &[], candidate, 0, &mut codes);
                let mut all = Candidates { alphabet: Alphabet::Lattice, ..Candidates::default() };
                (all.inverse[2], all.scale[2]) = (inverse, candidate.scale);
                (codes, error, engine.candidate_errors(&w, &[], &all), engine.code_moments(&w, &[], candidate))
            };
            let expected = run(&scalar);
            assert!(Alphabet::Lattice.holds(&expected.0));
            assert!(inverse != 0.0 || expected.0.iter().all(|&code| code == 0));
            assert!((expected.2[2] - expected.1.error).abs() <= 1e-4 * expected.1.error, "{expected:?}");
            for isa in Isa::available() {
                assert_eq!(run(&Engine::new(isa, NonZeroUsize::MIN).unwrap()), expected, "{isa}");
            }
        }
    }
}
