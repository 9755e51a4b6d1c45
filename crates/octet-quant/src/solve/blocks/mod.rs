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
use runs::{Grid, inverse, with_grid};

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
        for (at, (weights, codes)) in weights.chunks_exact(block).zip(out.codes.chunks_exact_mut(block)).enumerate() {
            let importance = &self.importance[at % blocks * block..][..block];
            let fit = fit_block(grid, &self.code, weights, importance);
            sums.add(&encode(grid, &fit, self.code.run, weights, importance, codes));
            store(&fit, at, runs, &mut out.d, &mut out.m, &mut out.scales, &mut out.offsets);
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

/// Rounds a block to its nearest codes.
fn encode<G: Grid>(grid: G, fit: &BlockFit, run: usize, weights: &[f32], importance: &[f32], codes: &mut [i8]) -> ErrorSums {
    let mut sums = ErrorSums::default();
    for (at, (weights, codes)) in weights.chunks(run).zip(codes.chunks_mut(run)).enumerate() {
        let value = fit.run(at);
        let inverse = inverse(value.scale);
        let (mut error, mut weight, mut weighted, mut whole, mut most) = (0f32, 0f32, 0f32, 0f32, 0f32);
        for ((&w, code), &h) in weights.iter().zip(codes).zip(&importance[at * run..]) {
            let q = grid.nearest((w + value.offset) * inverse);
            *code = q as i8;
            let left = w - (value.scale * q - value.offset);
            error += left * left;
            weight += w * w;
            weighted += h * left * left;
            whole += h * w * w;
            most = most.max(left.abs());
        }
        sums.add(&ErrorSums {
            error: error.into(),
            weight: weight.into(),
            weighted_error: weighted.into(),
            weighted_weight: whole.into(),
            nearest_error: weighted.into(),
            max_error: most.into(),
        });
    }
    sums
}

#[cfg(test)]
mod tests;
