//! Round-to-nearest with a search for the scale that leaves the least error.

use super::{
    RowSolver, RowsMut, Solver, TensorJob,
    candidates::{Choice, Choices, Grid},
    quick::QuickRows,
    rounding::Rounding,
};
use crate::{Error, ErrorSums};
use octet_kernels::QUICK;

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
        let usual = RtnRows { job, grid: Grid::new(job.scheme, self.candidates), refinements: self.refinements };
        let quick = self.candidates <= QUICK
            && self.refinements == 0
            && job.importance.is_none()
            && !job.scheme.is_asymmetric()
            && !job.scheme.is_table();
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

/// The level nearest to zero, and the scale of a group of zeros in a table: the smallest that F16 holds.
const SMALLEST_LEVEL: i8 = 1;
const TABLE_ZERO_SCALE: f32 = 1.0 / 16_777_216.0;

/// Weights within 2^±40 are searched as they are; beyond, squares could leave the range of f32.
pub(super) const SAFE_EXPONENT: i32 = 40;

impl RowSolver for RtnRows<'_> {
    fn solve(&self, weights: &[f32], out: RowsMut<'_>) -> ErrorSums {
        let (cols, size) = (self.job.shape.1.max(1), self.job.group_size());
        let groups = cols.div_ceil(size);
        let mut sums = ErrorSums::default();
        for (row, (weights, codes)) in weights.chunks_exact(cols).zip(out.codes.chunks_exact_mut(cols)).enumerate() {
            for (group, (weights, codes)) in weights.chunks(size).zip(codes.chunks_mut(size)).enumerate() {
                let importance = self.job.importance.map_or(&[][..], |h| &h[group * size..][..weights.len()]);
                let choice = self.group(weights, importance, codes, &mut sums);
                out.scales[row * groups + group] = choice.scale;
                if let Some(zero) = out.zeros.get_mut(row * groups + group) {
                    *zero = choice.zero as i8;
                }
            }
        }
        sums
    }
}

impl RtnRows<'_> {
    pub(super) fn group(&self, weights: &[f32], importance: &[f32], codes: &mut [i8], sums: &mut ErrorSums) -> Choice {
        let limits = self.job.engine.weight_range(weights);
        let extreme = limits.1.max(-limits.0);
        if extreme == 0.0 {
            return self.nothing(codes);
        }
        let exponent = exponent(extreme);
        if exponent == 0 {
            return self.normal_group(weights, importance, limits, 0, codes, sums);
        }
        // A power of two changes no mantissa, so this is the same search in other units.
        let unit = 2f64.powi(-exponent);
        let scaled = |v: f32| (f64::from(v) * unit) as f32;
        let weights: Vec<f32> = weights.iter().map(|&w| scaled(w)).collect();
        self.normal_group(&weights, importance, (scaled(limits.0), scaled(limits.1)), exponent, codes, sums)
    }

    fn normal_group(
        &self,
        weights: &[f32],
        importance: &[f32],
        limits: (f32, f32),
        exponent: i32,
        codes: &mut [i8],
        sums: &mut ErrorSums,
    ) -> Choice {
        let engine = self.job.engine;
        let (best, weighted_error) = self.search(weights, importance, limits, exponent);
        let found = engine.encode_weights(weights, best.candidate(&self.grid), best.zero as i8, codes);
        let unit = 2f64.powi(exponent);
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
    fn nothing(&self, codes: &mut [i8]) -> Choice {
        let table = self.job.scheme.is_table();
        codes.fill(if table { SMALLEST_LEVEL } else { 0 });
        Choice { scale: if table { TABLE_ZERO_SCALE } else { ZERO_GROUP_SCALE }, zero: 0.0 }
    }

    /// The choice with the least error, and that error; the first of equals.
    fn search(&self, weights: &[f32], importance: &[f32], limits: (f32, f32), exponent: i32) -> (Choice, f64) {
        let engine = self.job.engine;
        let rounding = Rounding { dtype: self.job.scale_dtype, exponent };
        let mut best = (Choice::default(), f64::INFINITY);
        let try_all = |choices: &Choices, best: &mut (Choice, f64)| {
            let errors = engine.candidate_errors(weights, importance, &choices.candidates(&self.grid));
            for (j, error) in errors.into_iter().enumerate() {
                if error < best.1 {
                    *best = (choices.at(j), error);
                }
            }
        };
        for choices in self.grid.choices(limits, rounding) {
            try_all(&choices, &mut best);
        }
        for _ in 0..self.refinements {
            let before = best.1;
            let moments = engine.code_moments(weights, importance, best.0.candidate(&self.grid));
            try_all(&self.grid.around(best.0, &moments, rounding), &mut best);
            if best.1 >= before {
                break;
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
