//! Solvers of block types: codes in runs whose scales are whole multiples of a number of their block.

mod fit;
mod gptq;
mod rescale;
mod runs;

pub(crate) use gptq::BlockGptq;

use crate::{Error, ErrorSums, Hessian};
use fit::{BlockFit, fit_block};
use octet_kernels::Engine;
use octet_tensor::{BlockCode, BlockRows};
use runs::{Grid, WIDE, inverse, with_grid};

/// What is known of a tensor whose rows are to be put in blocks.
#[derive(Clone, Copy)]
pub struct BlockJob<'a> {
    /// The tensor's module path, for errors.
    pub module: &'a str,
    /// Outputs and inputs of the whole tensor.
    pub shape: (usize, usize),
    /// The type of its blocks.
    pub code: BlockCode,
    /// Importance of each input, mean 1, or `None` without calibration.
    pub importance: Option<&'a [f32]>,
    /// Second moments of the input, for rounding with feedback.
    pub hessian: Option<&'a Hessian>,
    /// Kernels to solve with.
    pub engine: &'a Engine,
}

/// The search for scales and offsets that leave the least error Σ hⱼ (wⱼ − qⱼ)², with codes rounded to nearest.
#[derive(Debug)]
pub(crate) struct BlockSearch {
    code: BlockCode,
    importance: Vec<f32>,
}

impl BlockSearch {
    pub(crate) fn new(job: &BlockJob<'_>) -> Result<Self, Error> {
        let found = job.importance.map_or(job.shape.1, <[f32]>::len);
        if found != job.shape.1 {
            return Err(Error::Importance { module: job.module.into(), expected: job.shape.1, found });
        }
        Ok(Self { code: job.code, importance: job.importance.map_or_else(|| vec![1.0; job.shape.1], <[f32]>::to_vec) })
    }

    /// Solves finite `weights` of whole rows.
    pub(crate) fn solve(&self, weights: &[f32]) -> Result<(BlockRows, ErrorSums), Error> {
        let cols = self.importance.len();
        let mut out = BlockRows::zeros(self.code, weights.len() / cols.max(1), cols)?;
        let mut sums = ErrorSums::default();
        with_grid!(self.code, grid => self.rows(grid, weights, &mut out, &mut sums));
        Ok((out, sums))
    }

    fn rows<G: Grid>(&self, grid: G, weights: &[f32], out: &mut BlockRows, sums: &mut ErrorSums) {
        let (block, runs, blocks) = (self.code.block, self.code.runs(), self.importance.len() / self.code.block);
        let mut lanes = Lanes::default();
        for (at, (weights, codes)) in weights.chunks_exact(block).zip(out.codes.chunks_exact_mut(block)).enumerate() {
            let importance = &self.importance[at % blocks * block..][..block];
            let fit = fit_block(grid, &self.code, weights, importance);
            let runs_of = weights.chunks(self.code.run).zip(importance.chunks(self.code.run)).zip(codes.chunks_mut(self.code.run));
            for (run, ((weights, importance), codes)) in runs_of.enumerate() {
                encode_run(grid, fit.run(run), weights, importance, codes, &mut lanes);
            }
            // Sums of few enough weights to be kept in 32 bits; adding the lanes up costs as much as the weights of a block.
            if at % LOT == LOT - 1 {
                sums.add(&std::mem::take(&mut lanes).sums());
            }
            store(&fit, at, runs, &mut out.d, &mut out.m, &mut out.scales, &mut out.offsets);
        }
        sums.add(&lanes.sums());
    }
}

/// Blocks whose errors are added in lanes before they are added up.
const LOT: usize = 16;

/// Errors of some weights in lanes side by side.
#[derive(Default)]
struct Lanes {
    error: [f32; WIDE],
    weight: [f32; WIDE],
    weighted: [f32; WIDE],
    whole: [f32; WIDE],
    most: [f32; WIDE],
}

impl Lanes {
    fn sums(&self) -> ErrorSums {
        let add = |lanes: &[f32; WIDE]| f64::from(lanes.iter().sum::<f32>());
        ErrorSums {
            error: add(&self.error),
            weight: add(&self.weight),
            weighted_error: add(&self.weighted),
            weighted_weight: add(&self.whole),
            nearest_error: add(&self.weighted),
            max_error: self.most.iter().fold(0f32, |most, &left| most.max(left)).into(),
        }
    }
}

/// Puts the numbers of block `at` in their places.
fn store(fit: &BlockFit, at: usize, runs: usize, d: &mut [f32], m: &mut [f32], scales: &mut [i8], offsets: &mut [u8]) {
    d[at] = fit.d;
    if let Some(m) = m.get_mut(at) {
        *m = fit.m;
    }
    if !fit.scales.is_empty() {
        scales[at * runs..(at + 1) * runs].copy_from_slice(&fit.scales);
    }
    if !fit.offsets.is_empty() {
        offsets[at * runs..(at + 1) * runs].copy_from_slice(&fit.offsets);
    }
}

/// Rounds a run to its nearest codes and adds its errors. A function of its own, so that the compiler knows that codes and sums lie apart: inlined,
/// it took one weight at a time.
#[inline(never)]
#[allow(clippy::needless_range_loop, reason = "one lane of several vectors")]
fn encode_run<G: Grid>(grid: G, value: runs::Fit, weights: &[f32], importance: &[f32], codes: &mut [i8], sums: &mut Lanes) {
    let inverse = inverse(value.scale);
    let lots = weights.as_chunks::<WIDE>().0.iter().zip(importance.as_chunks::<WIDE>().0).zip(codes.as_chunks_mut::<WIDE>().0);
    for ((weights, importance), codes) in lots {
        for lane in 0..WIDE {
            let (w, h) = (weights[lane], importance[lane]);
            let q = grid.nearest((w + value.offset) * inverse);
            // The low byte of a whole number's bits at this height is the number: a cast would check every one.
            codes[lane] = (q + 12_582_912.0).to_bits() as i8;
            let left = w - (value.scale * q - value.offset);
            let (squared, whole) = (left * left, w * w);
            sums.error[lane] += squared;
            sums.weight[lane] += whole;
            sums.weighted[lane] += h * squared;
            sums.whole[lane] += h * whole;
            sums.most[lane] = if left.abs() > sums.most[lane] { left.abs() } else { sums.most[lane] };
        }
    }
}

#[cfg(test)]
mod tests;
