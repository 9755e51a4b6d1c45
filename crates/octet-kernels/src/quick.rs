//! The quick scale search of symmetric weights: whole rows of groups at once, weights as the lanes, eight scales a group.
//!
//! Errors are measured in units of the scale, Σ (w / scale − code)², which costs one multiplication less a weight than the
//! error itself; the caller multiplies by scale². As in `search.rs`, nothing is fused and the order of sums is fixed, so that every
//! instruction set gives the same bits.

use crate::{
    Candidate, EncodeError, Engine,
    search::{Encode, Range, code, padded},
    simd::{LANES, Op, Simd, unroll},
};

/// Scales of a group that are looked at in one pass.
pub const QUICK: usize = 8;

/// Scales side by side in the inner loop: as many as AVX2 has registers for.
const HALF: usize = QUICK / 2;

/// Weights summed in f32 before the sum moves to f64 (32 in a lane).
const RUN: usize = 32 * LANES;

/// A row of finite weights in groups of `size` (the last may be shorter), with codes from −`half` to `half` − 1.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRow<'a> {
    /// The weights.
    pub weights: &'a [f32],
    /// Weights that share a scale.
    pub size: usize,
    /// 2^(bits − 1).
    pub half: f32,
}

/// Sums over a group with its codes k fixed, for the closed-form best scale Σwk / Σk².
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScaleFit {
    /// Σ (w · inverse − k)²
    pub error: f64,
    /// Σ k²
    pub kk: f64,
    /// Σ w·k
    pub wk: f64,
}

impl Engine {
    /// Smallest and largest weight of every group.
    ///
    /// # Panics
    /// If `out` is not as long as there are groups; likewise below.
    pub fn group_ranges(&self, row: GroupedRow<'_>, out: &mut [(f32, f32)]) {
        self.vectorize(Ranges { row, out });
    }

    /// Σ (w · inverse − code)² of every group under each of eight scales, given as 1 / scale.
    pub fn scale_errors(&self, row: GroupedRow<'_>, inverses: &[[f32; QUICK]], out: &mut [[f64; QUICK]]) {
        self.vectorize(ScaleErrors { row, inverses, out });
    }

    /// The fits of the groups numbered `which` (of all groups, `inverses` and `out` have those of all).
    pub fn scale_fits(&self, row: GroupedRow<'_>, which: &[usize], inverses: &[f32], out: &mut [ScaleFit]) {
        self.vectorize(ScaleFits { row, which, inverses, out });
    }

    /// Writes the codes of the groups numbered `which` under their `scales` (those of all groups) into the row's `codes` and says
    /// what error that leaves.
    pub fn encode_groups(&self, row: GroupedRow<'_>, which: &[usize], scales: &[f32], codes: &mut [i8]) -> EncodeError {
        self.vectorize(EncodeGroups { row, which, scales, codes })
    }
}

impl<'a> GroupedRow<'a> {
    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.weights.len().div_ceil(self.size.max(1))
    }

    /// The weights of group `group`.
    #[inline(always)]
    pub fn group(&self, group: usize) -> &'a [f32] {
        let start = group * self.size;
        &self.weights[start..self.weights.len().min(start + self.size)]
    }
}

struct Ranges<'a> {
    row: GroupedRow<'a>,
    out: &'a mut [(f32, f32)],
}

impl Op for Ranges<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.out.len(), self.row.groups(), "a range a group");
        for (group, out) in self.out.iter_mut().enumerate() {
            *out = Range(self.row.group(group)).run(s);
        }
    }
}

/// Calls `$body` with every vector of `$weights`, one filled up with zeros (which have code 0 and no error) for what is left over.
/// That one comes first: after it nothing is called, and the loop keeps its sums in registers.
macro_rules! vectors {
    ($s:ident, $weights:expr, $w:ident, $body:block) => {{
        let (whole, rest) = $weights.as_chunks::<LANES>();
        if !rest.is_empty() {
            let $w = $s.load(&padded(rest));
            $body
        }
        for weights in whole {
            let $w = $s.load(weights);
            $body
        }
    }};
}

struct ScaleErrors<'a> {
    row: GroupedRow<'a>,
    inverses: &'a [[f32; QUICK]],
    out: &'a mut [[f64; QUICK]],
}

impl Op for ScaleErrors<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.row.groups();
        assert!(self.inverses.len() == groups && self.out.len() == groups, "eight scales and errors a group");
        let (low, high) = (s.splat(-self.row.half), s.splat(self.row.half - 1.0));
        for (group, (inverses, out)) in self.inverses.iter().zip(self.out).enumerate() {
            let mut totals = [0f64; QUICK];
            for run in self.row.group(group).chunks(RUN) {
                for (inverses, totals) in inverses.as_chunks::<HALF>().0.iter().zip(totals.as_chunks_mut::<HALF>().0) {
                    let mut inverse = [s.splat(0.0); HALF];
                    unroll!(j < HALF, { inverse[j] = s.splat(inverses[j]) });
                    let mut sums = [s.splat(0.0); HALF];
                    vectors!(s, run, w, {
                        unroll!(j < HALF, {
                            let t = s.mul(w, inverse[j]);
                            let e = s.sub(t, code(s, w, inverse[j], low, high));
                            sums[j] = s.add(sums[j], s.mul(e, e));
                        });
                    });
                    unroll!(j < HALF, { totals[j] += f64::from(s.sum(sums[j])) });
                }
            }
            *out = totals;
        }
    }
}

struct ScaleFits<'a> {
    row: GroupedRow<'a>,
    which: &'a [usize],
    inverses: &'a [f32],
    out: &'a mut [ScaleFit],
}

impl Op for ScaleFits<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = (s.splat(-self.row.half), s.splat(self.row.half - 1.0));
        for &group in self.which {
            let inverse = s.splat(self.inverses[group]);
            let mut fit = ScaleFit::default();
            for run in self.row.group(group).chunks(RUN) {
                let (mut error, mut kk, mut wk) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
                vectors!(s, run, w, {
                    let k = code(s, w, inverse, low, high);
                    let e = s.sub(s.mul(w, inverse), k);
                    error = s.add(error, s.mul(e, e));
                    kk = s.add(kk, s.mul(k, k));
                    wk = s.add(wk, s.mul(w, k));
                });
                fit.error += f64::from(s.sum(error));
                fit.kk += f64::from(s.sum(kk));
                fit.wk += f64::from(s.sum(wk));
            }
            self.out[group] = fit;
        }
    }
}

struct EncodeGroups<'a> {
    row: GroupedRow<'a>,
    which: &'a [usize],
    scales: &'a [f32],
    codes: &'a mut [i8],
}

impl Op for EncodeGroups<'_> {
    type Output = EncodeError;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> EncodeError {
        let mut found = EncodeError::default();
        for &group in self.which {
            let weights = self.row.group(group);
            let (scale, half) = (self.scales[group], self.row.half);
            let candidate = Candidate { inverse: 1.0 / scale, scale, low: -half, high: half - 1.0, ..Candidate::default() };
            let codes = &mut self.codes[group * self.row.size..][..weights.len()];
            let one = Encode::<false> { weights, candidate, zero: 0, codes }.run(s);
            found.error += one.error;
            found.weight += one.weight;
            found.max = found.max.max(one.max);
        }
        found
    }
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

    type Found = (Vec<(f32, f32)>, Vec<[f64; QUICK]>, Vec<ScaleFit>, EncodeError, Vec<i8>);

    /// Everything the four loops give for a row, on one engine.
    fn all(engine: &Engine, row: GroupedRow<'_>) -> Found {
        let groups = row.groups();
        let scales: Vec<f32> = (0..groups).map(|g| if g % 2 == 0 { 0.4 } else { -0.3 }).collect();
        let inverses: Vec<[f32; QUICK]> = scales.iter().map(|s| std::array::from_fn(|j| 1.0 / (s * (1.0 + 0.1 * j as f32)))).collect();
        let first: Vec<f32> = inverses.iter().map(|i| i[0]).collect();
        let (mut ranges, mut errors, mut fits) = (vec![(0.0, 0.0); groups], vec![[0.0; QUICK]; groups], vec![ScaleFit::default(); groups]);
        let (which, mut codes): (Vec<usize>, _) = ((0..groups).collect(), vec![0; row.weights.len()]);
        engine.group_ranges(row, &mut ranges);
        engine.scale_errors(row, &inverses, &mut errors);
        engine.scale_fits(row, &which, &first, &mut fits);
        let encoded = engine.encode_groups(row, &which, &scales, &mut codes);
        (ranges, errors, fits, encoded, codes)
    }

    #[test]
    fn loops_agree_with_the_definition_and_with_each_other() {
        for (count, size) in [(1, 1), (31, 32), (100, 32), (513, 128), (1200, 1200), (64, 64)] {
            let w = weights(count);
            let row = GroupedRow { weights: &w, size, half: 8.0 };
            let (ranges, errors, fits, encoded, codes) = all(&Engine::new(Isa::Scalar, NonZeroUsize::MIN).unwrap(), row);
            let mut total = 0.0;
            for group in 0..row.groups() {
                let (w, scale) = (row.group(group), if group % 2 == 0 { 0.4f32 } else { -0.3 });
                assert_eq!(ranges[group], w.iter().fold((w[0], w[0]), |(a, b), &v| (a.min(v), b.max(v))));
                let k: Vec<i32> = w.iter().map(|v| round_code(v * (1.0 / scale), -8, 7)).collect();
                assert!(codes[group * size..].iter().zip(&k).all(|(&c, &k)| i32::from(c) == k));
                let sum = |f: &dyn Fn(f64, f64) -> f64| w.iter().zip(&k).map(|(&w, &k)| f(f64::from(w), f64::from(k))).sum::<f64>();
                let inverse = f64::from(1.0 / scale);
                let error = sum(&|w, k| (w * inverse - k).powi(2));
                total += error * f64::from(scale).powi(2);
                for (found, expected) in [
                    (errors[group][0], error),
                    (fits[group].error, error),
                    (fits[group].kk, sum(&|_, k| k * k)),
                    (fits[group].wk, sum(&|w, k| w * k)),
                ] {
                    assert!((found - expected).abs() <= 1e-4 * expected.abs() + 1e-5, "{count}/{size}: {found} is {expected}");
                }
            }
            assert!((encoded.error - total).abs() <= 1e-4 * total);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for (count, size) in [(1000, 128), (1000, 32), (2000, 2000), (37, 64)] {
            let w = weights(count);
            let row = GroupedRow { weights: &w, size, half: 8.0 };
            let runs: Vec<_> = Isa::available().into_iter().map(|isa| all(&Engine::new(isa, NonZeroUsize::MIN).unwrap(), row)).collect();
            assert!(runs.windows(2).all(|pair| pair[0] == pair[1]), "{count}/{size}");
        }
    }
}
