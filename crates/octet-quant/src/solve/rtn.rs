//! Round-to-nearest with a search for the scale that leaves the least error.

use super::{
    RowSolver, RowsMut, Solver, TensorJob,
    candidates::{Choice, Choices, Grid},
    quick::QuickRows,
    rounding::{Rounding, Stored},
};
use crate::{Error, ErrorSums};
use octet_kernels::{CANDIDATES, Engine, QUICK};
use octet_tensor::Alphabet;
use std::borrow::Cow;

/// Round-to-nearest with an error-minimising scale (and zero-point) search in each group.
///
/// Every candidate is rounded to the type scales are stored in before its error Σ hⱼ (wⱼ − qⱼ)² is measured, with hⱼ
/// the importance of input j (mean square of what flows in; 1 without statistics). Symmetric schemes try both signs
/// of the scale, because one end of the code range has one code more. The plain choices are among the candidates, so
/// the result is never worse than plain round-to-nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtn {
    /// Candidates of the first, coarse pass; rounded up to a multiple of sixteen.
    pub candidates: usize,
    /// Passes that solve for the best scale in closed form with the codes fixed and look around it.
    pub refinements: usize,
}

impl Rtn {
    /// The quick search: one pass. Symmetric groups without importance try eight scales only and step once to the closed-form best
    /// scale (`quick.rs`): several times as fast, and no worse (see the tests).
    pub const FAST: Self = Self { candidates: 8, refinements: 0 };

    /// The usual search: one pass and a look around; wider ones find less than 0.1 dB more (see the tests).
    pub const USUAL: Self = Self { candidates: 16, refinements: 1 };

    /// The search with so many candidates: eight and fewer is the quick one, which does not look around what it finds.
    pub fn with(candidates: Option<usize>) -> Self {
        match candidates {
            None => Self::USUAL,
            Some(candidates) if candidates <= 8 => Self { candidates, ..Self::FAST },
            Some(candidates) => Self { candidates, ..Self::USUAL },
        }
    }
}

impl Solver for Rtn {
    fn prepare<'a>(&'a self, job: TensorJob<'a>) -> Result<Box<dyn RowSolver + 'a>, Error> {
        let found = job.importance.map_or(job.shape.1, <[f32]>::len);
        if found != job.shape.1 {
            return Err(Error::Importance { module: job.module.into(), expected: job.shape.1, found });
        }
        let usual = RtnRows { job, grid: Grid::new(job.scheme, job.alphabet(), self.candidates), refinements: self.refinements };
        let quick = self.candidates <= QUICK
            && self.refinements == 0
            && job.importance.is_none()
            && !job.scheme.is_asymmetric()
            && job.alphabet() == Alphabet::Even
            && !job.scheme.has_whole_scales();
        Ok(if quick { Box::new(QuickRows::new(job, usual)) } else { Box::new(usual) })
    }
}

pub(super) struct RtnRows<'a> {
    job: TensorJob<'a>,
    grid: Grid,
    refinements: usize,
}

/// What a group of zeros, or one too small for its scale's type, is given beside codes of zero: a scale every
/// reader takes, exact in F16 and too small to stand out.
const ZERO_GROUP_SCALE: f32 = 1.0 / 16384.0;

/// The scale of a group of zeros in a table: the smallest that F16 holds.
const TABLE_ZERO_SCALE: f32 = 1.0 / 16_777_216.0;

/// Weights within 2^±40 are searched as they are; beyond, squares could leave the range of f32.
pub(super) const SAFE_EXPONENT: i32 = 40;

impl RowSolver for RtnRows<'_> {
    fn solve(&self, weights: &[f32], out: RowsMut<'_>) -> ErrorSums {
        let (cols, size) = (self.job.shape.1.max(1), self.job.group_size());
        let groups = cols.div_ceil(size);
        let mut sums = ErrorSums::default();
        let rows = weights.chunks_exact(cols).zip(out.codes.chunks_exact_mut(cols)).zip(out.scales.chunks_exact_mut(groups));
        for (row, ((weights, codes), scales)) in rows.enumerate() {
            let zeros = out.zeros.get_mut(row * groups..(row + 1) * groups).unwrap_or_default();
            if self.job.scheme.has_whole_scales() {
                self.whole_row(weights, codes, scales, zeros, &mut sums);
                continue;
            }
            for (group, (weights, codes)) in weights.chunks(size).zip(codes.chunks_mut(size)).enumerate() {
                let choice = self.group(weights, self.importance(group, weights.len()), codes, &mut sums);
                scales[group] = choice.scale;
                if let Some(zero) = zeros.get_mut(group) {
                    *zero = choice.zero as i8;
                }
            }
        }
        sums
    }
}

/// A group's weights in units in which their squares are safe in f32.
pub(super) struct Normal<'w> {
    weights: Cow<'w, [f32]>,
    limits: (f32, f32),
    /// Weights are in units of 2 to this power.
    pub(super) exponent: i32,
}

impl<'w> Normal<'w> {
    /// `None` where all are zero.
    pub(super) fn of(engine: &Engine, weights: &'w [f32]) -> Option<Self> {
        let limits = engine.weight_range(weights);
        let extreme = limits.1.max(-limits.0);
        if extreme == 0.0 {
            return None;
        }
        let exponent = exponent(extreme);
        if exponent == 0 {
            return Some(Self { weights: weights.into(), limits, exponent });
        }
        // A power of two changes no mantissa, so this is the same search in other units.
        let unit = 2f64.powi(-exponent);
        let scaled = |v: f32| (f64::from(v) * unit) as f32;
        let weights = weights.iter().map(|&w| scaled(w)).collect();
        Some(Self { weights, limits: (scaled(limits.0), scaled(limits.1)), exponent })
    }
}

impl<'a> RtnRows<'a> {
    pub(super) fn job(&self) -> &TensorJob<'a> {
        &self.job
    }

    /// The importance of the inputs of a group of `len`.
    pub(super) fn importance(&self, group: usize, len: usize) -> &'a [f32] {
        self.job.importance.map_or(&[][..], |h| &h[group * self.job.group_size()..][..len])
    }

    /// Solves a group whose scale is a float.
    pub(super) fn group(&self, weights: &[f32], importance: &[f32], codes: &mut [i8], sums: &mut ErrorSums) -> Choice {
        let Some(normal) = Normal::of(self.job.engine, weights) else { return self.nothing(codes) };
        let rounding = Rounding { stored: Stored::Float(self.job.scale_dtype), exponent: normal.exponent };
        let best = self.search(&normal, importance, rounding);
        self.encode(&normal, importance, best, codes, sums)
    }

    /// Writes the codes of a choice that leaves so much error, and gives it in the units of the weights as they are.
    pub(super) fn encode(
        &self,
        group: &Normal<'_>,
        importance: &[f32],
        (best, weighted_error): (Choice, f64),
        codes: &mut [i8],
        sums: &mut ErrorSums,
    ) -> Choice {
        let (engine, weights) = (self.job.engine, &*group.weights);
        let found = engine.encode_weights(weights, importance, best.candidate(&self.grid), best.zero as i8, codes);
        let unit = 2f64.powi(group.exponent);
        let (weighted_error, weighted_weight) = if importance.is_empty() {
            (found.error, found.weight)
        } else {
            (weighted_error, engine.code_moments(weights, importance, best.candidate(&self.grid)).ww)
        };
        sums.add(&ErrorSums {
            error: found.error * unit * unit,
            weight: found.weight * unit * unit,
            weighted_error: weighted_error * unit * unit,
            weighted_weight: weighted_weight * unit * unit,
            nearest_error: weighted_error * unit * unit,
            max_error: f64::from(found.max) * unit,
        });
        if best.is_void() {
            return self.nothing(codes);
        }
        Choice { scale: (f64::from(best.scale) * unit) as f32, zero: best.zero }
    }

    /// What stands for zeros. A table has no level of zero, but a smallest one and a scale that makes nothing of it.
    pub(super) fn nothing(&self, codes: &mut [i8]) -> Choice {
        let alphabet = self.job.alphabet();
        let least = alphabet.table().and_then(|table| table.levels().iter().copied().min_by_key(|level| level.unsigned_abs()));
        codes.fill(least.unwrap_or(0));
        let scale = match least {
            _ if self.job.scheme.has_whole_scales() => 0.0,
            Some(_) => TABLE_ZERO_SCALE,
            None => ZERO_GROUP_SCALE,
        };
        Choice { scale, zero: 0.0 }
    }

    /// The choice with the least error, and that error; the first of equals.
    pub(super) fn search(&self, group: &Normal<'_>, importance: &[f32], rounding: Rounding) -> (Choice, f64) {
        let mut best = (Choice::default(), f64::INFINITY);
        for choices in self.grid.choices(group.limits, rounding) {
            best = self.least(group, importance, &choices, best);
        }
        for _ in 0..self.refinements {
            let before = best.1;
            let moments = self.job.engine.code_moments(&group.weights, importance, best.0.candidate(&self.grid));
            best = self.least(group, importance, &self.grid.around(best.0, &moments, rounding), best);
            if best.1 >= before {
                break;
            }
        }
        best
    }

    /// The error of every choice.
    pub(super) fn errors(&self, group: &Normal<'_>, importance: &[f32], choices: &Choices) -> [f64; CANDIDATES] {
        self.job.engine.candidate_errors(&group.weights, importance, &choices.candidates(&self.grid))
    }

    /// The choice with less error than `best`, if there is one.
    pub(super) fn least(&self, group: &Normal<'_>, importance: &[f32], choices: &Choices, mut best: (Choice, f64)) -> (Choice, f64) {
        for (j, error) in self.errors(group, importance, choices).into_iter().enumerate() {
            if error < best.1 {
                best = (choices.at(j), error);
            }
        }
        best
    }
}

/// 0 where squares of weights up to `extreme` are safe in f32, otherwise the exponent to divide out.
fn exponent(extreme: f32) -> i32 {
    let exponent = f64::from(extreme).log2().floor() as i32;
    if exponent.abs() <= SAFE_EXPONENT { 0 } else { exponent }
}
