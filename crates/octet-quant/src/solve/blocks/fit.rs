//! The numbers of one block: two floats of 16 bits, and whole multiples of them for its runs.

use super::runs::{Fit, Grid, WIDE, error, fit};
use octet_tensor::{BlockCode, Dtype, RunOffsets, RunScales};

/// What a block stores beside codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BlockFit {
    pub(super) d: f32,
    pub(super) m: f32,
    pub(super) scales: Vec<i8>,
    pub(super) offsets: Vec<u8>,
}

impl BlockFit {
    /// Scale and offset of a run.
    pub(super) fn run(&self, run: usize) -> Fit {
        let scale = self.scales.get(run).map_or(self.d, |&scale| self.d * f32::from(scale));
        let offset = self.offsets.get(run).map_or(self.m, |&offset| self.m * f32::from(offset));
        Fit { scale, offset }
    }
}

fn half(value: f32) -> f32 {
    // The largest number of 16 bits stands in for what is larger.
    Dtype::F16.round(value.clamp(-65504.0, 65504.0))
}

/// The largest magnitude; in lanes side by side, or each weight would wait for the one before.
fn most(weights: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [0f32; WIDE];
    for weights in weights.as_chunks::<WIDE>().0 {
        lanes = std::array::from_fn(|lane| larger(lanes[lane], weights[lane].abs()));
    }
    lanes.into_iter().fold(0.0, larger)
}

/// A block of a type whose runs have scales of their own.
struct Search<'a, G> {
    grid: G,
    code: &'a BlockCode,
    weights: &'a [f32],
    importance: &'a [f32],
}

/// The best numbers for a block.
pub(super) fn fit_block<G: Grid>(grid: G, code: &BlockCode, weights: &[f32], importance: &[f32]) -> BlockFit {
    if code.scales == RunScales::Float && code.range() == (-128, 127) {
        // Eight bits gain nothing from a search.
        return BlockFit { d: half(most(weights) / 127.0), ..BlockFit::default() };
    }
    let fits: Vec<Fit> = weights
        .chunks(code.run)
        .zip(importance.chunks(code.run))
        .map(|(weights, importance)| fit(grid, code, weights, importance))
        .collect();
    match code.scales {
        RunScales::Float => single(grid, weights, importance, fits[0]),
        RunScales::Multiples { low, high } => Search { grid, code, weights, importance }.block(&fits, (low, high)),
    }
}

/// A block that is one run: rounding its floats is all there is to do.
fn single<G: Grid>(grid: G, weights: &[f32], importance: &[f32], fit: Fit) -> BlockFit {
    let (d, m) = (half(fit.scale), half(fit.offset));
    // A scale of half the precision's step more or less costs next to nothing to try.
    let near = |value: f32| [value, half(value * (1.0 + 1.0 / 2048.0)), half(value * (1.0 - 1.0 / 2048.0))];
    let mut best = (f32::INFINITY, d);
    for d in near(d) {
        let error = error(grid, weights, importance, Fit { scale: d, offset: m });
        if error < best.0 {
            best = (error, d);
        }
    }
    BlockFit { d: best.1, m, scales: vec![], offsets: vec![] }
}

impl<G: Grid> Search<'_, G> {
    fn run(&self, run: usize) -> (&[f32], &[f32]) {
        let range = run * self.code.run..(run + 1) * self.code.run;
        (&self.weights[range.clone()], &self.importance[range])
    }

    fn block(&self, fits: &[Fit], (low, high): (i8, i8)) -> BlockFit {
        let most_offset = if let RunOffsets::Multiples(most) = self.code.offsets { f32::from(most) } else { 0.0 };
        let extreme = fits.iter().map(|fit| fit.scale).fold(0.0f32, |most, scale| if scale.abs() > most.abs() { scale } else { most });
        let largest = fits.iter().map(|fit| fit.offset).fold(0.0f32, f32::max);
        // The largest multiple has the sign that reaches further.
        let end = if low < 0 { f32::from(low) } else { f32::from(high) };
        let m = if most_offset > 0.0 { half(largest / most_offset) } else { 0.0 };
        let mut best = (f32::INFINITY, BlockFit::default());
        for t in 0..5 {
            let d = half(extreme / (end * (1.0 - 0.03 * t as f32)));
            let mut found = self.multiples(fits, d, m, (low, high), most_offset);
            let mut error = self.improve(&mut found, (low, high), most_offset);
            let before = (found.d, found.m);
            self.rescale(&mut found);
            if (found.d, found.m) != before {
                error = self.improve(&mut found, (low, high), most_offset);
            }
            if error < best.0 {
                best = (error, found);
            }
        }
        best.1
    }

    /// Whole multiples nearest to what the runs want.
    fn multiples(&self, fits: &[Fit], d: f32, m: f32, (low, high): (i8, i8), most_offset: f32) -> BlockFit {
        let whole = |value: f32, unit: f32, low: f32, high: f32| {
            let ratio = value / unit;
            if ratio.is_finite() { ratio.round().clamp(low, high) } else { 0.0 }
        };
        let scales = fits.iter().map(|fit| whole(fit.scale, d, low.into(), high.into()) as i8).collect();
        let offsets = match most_offset > 0.0 {
            true => fits.iter().map(|fit| whole(fit.offset, m, 0.0, most_offset) as u8).collect(),
            false => vec![],
        };
        BlockFit { d, m, scales, offsets }
    }

    /// Tries the neighbours of every run's multiples; gives the error of the block.
    #[allow(clippy::needless_range_loop, reason = "one number names a run in several lists")]
    fn improve(&self, fit: &mut BlockFit, (low, high): (i8, i8), most_offset: f32) -> f32 {
        let mut sum = 0.0;
        for run in 0..fit.scales.len() {
            let (weights, importance) = self.run(run);
            let (scale, offset) = (i32::from(fit.scales[run]), fit.offsets.get(run).map_or(0, |&offset| i32::from(offset)));
            let mut best = (f32::INFINITY, scale, offset);
            let reach = i32::from(!fit.offsets.is_empty());
            for scale in (scale - 1).max(low.into())..=(scale + 1).min(high.into()) {
                for offset in (offset - reach).max(0)..=(offset + reach).min(most_offset as i32) {
                    let value = Fit { scale: fit.d * scale as f32, offset: fit.m * offset as f32 };
                    let error = error(self.grid, weights, importance, value);
                    if error < best.0 {
                        best = (error, scale, offset);
                    }
                }
            }
            fit.scales[run] = best.1 as i8;
            if let Some(offset) = fit.offsets.get_mut(run) {
                *offset = best.2 as u8;
            }
            sum += best.0;
        }
        sum
    }

    /// The two floats that leave the least error with multiples and codes as they are.
    #[allow(clippy::needless_range_loop, reason = "one number names a run in several lists")]
    fn rescale(&self, fit: &mut BlockFit) {
        // Least squares of w = d·(scale·q) − m·offset.
        let (mut aa, mut ab, mut bb, mut aw, mut bw) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for run in 0..fit.scales.len() {
            let (weights, importance) = self.run(run);
            let value = fit.run(run);
            let inverse = super::runs::inverse(value.scale);
            let (scale, offset) = (f32::from(fit.scales[run]), fit.offsets.get(run).map_or(0.0, |&offset| f32::from(offset)));
            for (&w, &h) in weights.iter().zip(importance) {
                let a = scale * self.grid.nearest((w + value.offset) * inverse);
                let (h, w, a, b) = (f64::from(h), f64::from(w), f64::from(a), f64::from(-offset));
                aa += h * a * a;
                ab += h * a * b;
                bb += h * b * b;
                aw += h * a * w;
                bw += h * b * w;
            }
        }
        let determinant = aa * bb - ab * ab;
        let (d, m) = if determinant > 1e-9 * aa * bb && bb > 0.0 {
            ((aw * bb - bw * ab) / determinant, (bw * aa - aw * ab) / determinant)
        } else if aa > 0.0 {
            (aw / aa, f64::from(fit.m))
        } else {
            return;
        };
        // Offsets are taken off: a negative unit would add them.
        if d.is_finite() && m >= 0.0 {
            (fit.d, fit.m) = (half(d as f32), half(m as f32));
        }
    }
}
