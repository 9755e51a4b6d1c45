//! The quick search: eight scales a group, then one step to the closed-form best scale, a whole row at a time.

use super::{
    RowSolver, RowsMut, TensorJob,
    rounding::{Rounding, Stored},
    rtn::{RtnRows, SAFE_EXPONENT},
};
use crate::ErrorSums;
use octet_kernels::{CANDIDATES, GroupedRow, QUICK, ScaleFit};

/// Symmetric groups without importance; what is unusual (zeros, weights at the edge of f32) is left to the usual search.
pub(super) struct QuickRows<'a> {
    job: TensorJob<'a>,
    usual: RtnRows<'a>,
    rounding: Rounding,
    half: f32,
    /// Scales in units of extreme weight / 2^(bits − 1); the first that is positive is one of |extreme|.
    spans: [f32; QUICK],
    /// Whether a step to the closed-form scale is worth it: from seven bits on the scale's type is as coarse as the gain.
    refine: bool,
}

/// What a row's groups need in between, kept from row to row.
#[derive(Default)]
struct Scratch {
    ranges: Vec<(f32, f32)>,
    scales: Vec<[f32; QUICK]>,
    inverses: Vec<[f32; QUICK]>,
    errors: Vec<[f64; QUICK]>,
    fits: Vec<ScaleFit>,
    best: Vec<(f32, f64)>,
    trial: Vec<f32>,
    scale: Vec<f32>,
    inverse: Vec<f32>,
    usual: Vec<usize>,
    live: Vec<usize>,
    moved: Vec<usize>,
}

impl<'a> QuickRows<'a> {
    pub(super) fn new(job: TensorJob<'a>, usual: RtnRows<'a>) -> Self {
        let bits = job.scheme.bits;
        let half = -bits.min_code() as f32;
        let rounding = Rounding { stored: Stored::Float(job.scale_dtype), exponent: 0 };
        Self { job, usual, rounding, half, spans: spans(bits.get() as usize, half), refine: bits.get() <= 6 }
    }
}

/// The extreme weight at the longer end of the code range, the conventional |extreme| / (2^(b−1) − ½), and ever smaller scales that
/// clip it; at eight bits, where little is to be gained by clipping, also the extreme at the shorter end.
fn spans(bits: usize, half: f32) -> [f32; QUICK] {
    let smallest = super::candidates::SMALLEST_SPAN[bits];
    let plain = [-1.0, half / (half - 0.5), half / (half - 1.0)];
    let given = if bits >= 7 { 3 } else { 2 };
    let clipped = (QUICK - given) as f32;
    std::array::from_fn(|j| if j < given { plain[j] } else { -1.0 - (smallest - 1.0) * (j - given + 1) as f32 / clipped })
}

impl RowSolver for QuickRows<'_> {
    fn solve(&self, weights: &[f32], out: RowsMut<'_>) -> ErrorSums {
        let (cols, size) = (self.job.shape.1.max(1), self.job.group_size());
        let groups = cols.div_ceil(size);
        let (mut sums, mut scratch) = (ErrorSums::default(), Scratch::default());
        let rows = weights.chunks_exact(cols).zip(out.codes.chunks_exact_mut(cols)).zip(out.scales.chunks_exact_mut(groups));
        for ((weights, codes), scales) in rows {
            self.row(GroupedRow { weights, size, half: self.half }, codes, scales, &mut scratch, &mut sums);
        }
        sums
    }
}

impl QuickRows<'_> {
    fn row(&self, row: GroupedRow<'_>, codes: &mut [i8], scales: &mut [f32], at: &mut Scratch, sums: &mut ErrorSums) {
        let (engine, groups) = (self.job.engine, row.groups());
        at.ranges.resize(groups, (0.0, 0.0));
        engine.group_ranges(row, &mut at.ranges);
        self.candidates(at);
        at.errors.resize(groups, [0.0; QUICK]);
        engine.scale_errors(row, &at.inverses, &mut at.errors);
        self.choose(at);
        if self.refine {
            self.refine(row, at);
        }
        scales.copy_from_slice(&at.scale);
        let found = engine.encode_groups(row, &at.live, scales, codes);
        let (error, weight) = (found.error, found.weight);
        sums.add(&ErrorSums {
            error,
            weight,
            weighted_error: error,
            weighted_weight: weight,
            nearest_error: error,
            max_error: f64::from(found.max),
        });
        for &group in &at.usual {
            let codes = &mut codes[group * row.size..][..row.group(group).len()];
            scales[group] = self.usual.group(row.group(group), &[], codes, sums).scale;
        }
    }

    /// The eight scales of every group as their type holds them, and which groups they serve.
    fn candidates(&self, at: &mut Scratch) {
        let groups = at.ranges.len();
        at.live.clear();
        at.usual.clear();
        at.scales.resize(groups.next_multiple_of(CANDIDATES / QUICK), [0.0; QUICK]);
        at.inverses.resize(groups, [0.0; QUICK]);
        for (&(low, high), scales) in at.ranges.iter().zip(&mut at.scales) {
            let unit = (if -low >= high { low } else { high }) / self.half;
            *scales = self.spans.map(|span| span * unit);
            // The conventional scale is positive whichever end the extreme is at.
            scales[1] = scales[1].abs();
        }
        for scales in at.scales.as_flattened_mut().as_chunks_mut::<CANDIDATES>().0 {
            *scales = self.rounding.round(*scales);
        }
        // Squares of weights within 2^±40 are safe in f32; a scale that its type cannot hold needs more care than there is here.
        let safe = 2f32.powi(-SAFE_EXPONENT)..2f32.powi(SAFE_EXPONENT);
        for (group, &(low, high)) in at.ranges.iter().enumerate() {
            let sound = at.scales[group].iter().all(|s| s.is_normal());
            let part = if safe.contains(&high.max(-low)) && sound { &mut at.live } else { &mut at.usual };
            part.push(group);
            at.inverses[group] = at.scales[group].map(|scale| 1.0 / scale);
        }
    }

    /// The scale with the least error in every group; the first of equals.
    fn choose(&self, at: &mut Scratch) {
        at.best.clear();
        at.scale.clear();
        at.inverse.clear();
        for ((scales, inverses), errors) in at.scales.iter().zip(&at.inverses).zip(&at.errors) {
            let mut best = (0, f64::INFINITY);
            for j in 0..QUICK {
                let error = errors[j] * f64::from(scales[j]) * f64::from(scales[j]);
                if error < best.1 {
                    best = (j, error);
                }
            }
            at.best.push((scales[best.0], best.1));
            at.scale.push(scales[best.0]);
            at.inverse.push(inverses[best.0]);
        }
    }

    /// Moves every group to the closed-form best scale of its codes where that lowers the error.
    fn refine(&self, row: GroupedRow<'_>, at: &mut Scratch) {
        let (engine, groups) = (self.job.engine, at.ranges.len());
        at.fits.resize(groups, ScaleFit::default());
        engine.scale_fits(row, &at.live, &at.inverse, &mut at.fits);
        at.trial.clear();
        at.trial.resize(groups.next_multiple_of(CANDIDATES), 0.0);
        for &group in &at.live {
            let fit = &at.fits[group];
            at.trial[group] = if fit.kk > 0.0 { (fit.wk / fit.kk) as f32 } else { 0.0 };
        }
        for scales in at.trial.as_chunks_mut::<CANDIDATES>().0 {
            *scales = self.rounding.round(*scales);
        }
        at.moved.clear();
        at.moved.extend(at.live.iter().filter(|&&group| at.trial[group].is_normal() && at.trial[group] != at.scale[group]));
        for &group in &at.moved {
            at.inverse[group] = 1.0 / at.trial[group];
        }
        engine.scale_fits(row, &at.moved, &at.inverse, &mut at.fits);
        for &group in &at.moved {
            let scale = f64::from(at.trial[group]);
            if at.fits[group].error * scale * scale < at.best[group].1 {
                at.scale[group] = at.trial[group];
            }
        }
    }
}
