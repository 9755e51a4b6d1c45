//! GPTQ inside blocks: scales and offsets by the search, codes rounded with feedback, then both refined in turn.

use super::{
    BlockJob, BlockSearch,
    rescale::{Rescaling, rescale},
};
use crate::{Error, ErrorSums, Hessian};
use octet_kernels::{Candidate, Factor, Rounding, RowGrids, RowPanels};
use octet_tensor::{Alphabet, BlockRows, Levels, Table};

/// Rows that share a vector.
pub(super) const LANES: usize = 16;

/// Passes of coordinate descent between two solutions for scales and offsets.
const DESCENTS: usize = 2;

/// Rounding with feedback through the Hessian of the input (as [`crate::Gptq`]), inside a block type.
///
/// What is taken off the values of a run is added to its weights first, so that codes are whole multiples of one scale.
pub(crate) struct BlockGptq<'a> {
    job: BlockJob<'a>,
    hessian: &'a Hessian,
    factor: &'a Factor,
    refinements: usize,
    search: BlockSearch,
    /// The run of each place of the factor, and of the matrix.
    factor_runs: Vec<u32>,
    matrix_runs: Vec<u32>,
    /// Where each place of the matrix is in the factor.
    in_factor: Vec<u32>,
}

/// Rows at work, columns in the matrix's places.
pub(super) struct State {
    pub(super) weights: RowPanels,
    pub(super) errors: RowPanels,
    pub(super) codes: Vec<[i8; LANES]>,
}

impl State {
    fn new(weights: RowPanels) -> Self {
        let (rows, cols) = (weights.rows(), weights.cols());
        Self { errors: RowPanels::zeros(rows, cols), codes: vec![[0; LANES]; weights.runs() * cols], weights }
    }

    fn reordered(&self, from: &[u32]) -> Self {
        let cols = self.weights.cols().max(1);
        let codes = self.codes.chunks_exact(cols).flat_map(|codes| from.iter().map(|&p| codes[p as usize])).collect();
        Self { weights: self.weights.reordered(from), errors: self.errors.reordered(from), codes }
    }

    fn copy_row(&mut self, row: usize, other: &Self) {
        self.errors.copy_row(row, &other.errors);
        let (cols, lane) = (self.weights.cols(), row % LANES);
        let range = row / LANES * cols..(row / LANES + 1) * cols;
        for (codes, other) in self.codes[range.clone()].iter_mut().zip(&other.codes[range]) {
            codes[lane] = other[lane];
        }
    }
}

impl<'a> BlockGptq<'a> {
    /// Made ready, or `None` where there is nothing to feed back with.
    pub(crate) fn new(job: &BlockJob<'a>, refinements: usize) -> Result<Option<Self>, Error> {
        let Some((hessian, factor)) = job.hessian.and_then(|hessian| Some((hessian, hessian.factor()?))) else { return Ok(None) };
        if hessian.size() != job.shape.1 || hessian.columns().is_some() {
            return Err(Error::Importance { module: job.module.into(), expected: job.shape.1, found: hessian.size() });
        }
        let mut in_factor = vec![0; factor.order().len()];
        for (place, &of) in factor.order().iter().enumerate() {
            in_factor[of as usize] = place as u32;
        }
        let run = job.code.run as u32;
        Ok(Some(Self {
            job: *job,
            hessian,
            factor,
            refinements,
            search: BlockSearch::new(&BlockJob { importance: Some(hessian.importance()), ..*job })?,
            factor_runs: factor.order().iter().map(|p| p / run).collect(),
            matrix_runs: (0..in_factor.len() as u32).map(|p| p / run).collect(),
            in_factor,
        }))
    }

    /// Solves finite `weights` of whole rows.
    pub(crate) fn solve(&self, weights: &[f32]) -> Result<(BlockRows, ErrorSums), Error> {
        let (mut rows, mut sums) = self.search.solve(weights)?;
        let mut grids = self.grids(&rows);
        let (mut state, losses) = self.round(weights, &rows, &grids, &mut sums);
        state = state.reordered(&self.in_factor);
        let mut loss: f64 = losses.iter().sum();
        for _ in 0..self.refinements {
            loss -= self.descend(&mut state, &grids, DESCENTS);
            for what in [Rescaling::Scales, Rescaling::Offsets] {
                let gain = rescale(self.job.engine, self.hessian, &mut rows, &state, what);
                if gain > 0.0 {
                    loss -= gain;
                    grids = self.grids(&rows);
                    if what == Rescaling::Offsets {
                        state.weights = RowPanels::from_rows(&shifted(weights, &rows), rows.cols, None);
                    }
                    self.rounding(&mut state, &grids, &self.matrix_runs).settle();
                }
            }
        }
        if self.refinements > 0 {
            loss -= self.descend(&mut state, &grids, 1);
        }
        for (row, codes) in rows.codes.chunks_exact_mut(rows.cols).enumerate() {
            let run = &state.codes[row / LANES * rows.cols..][..rows.cols];
            codes.iter_mut().zip(run).for_each(|(code, lanes)| *code = lanes[row % LANES]);
        }
        sums.error = state.errors.squares();
        sums.max_error = f64::from(state.errors.largest());
        sums.weighted_error = self.undamped(loss, &state);
        Ok((rows, sums))
    }

    fn rounding<'s>(&'s self, state: &'s mut State, grids: &'s [RowGrids], group_of: &'s [u32]) -> Rounding<'s> {
        let alphabet = if self.job.code.levels == Levels::Table { Alphabet::Table(Table::USUAL) } else { Alphabet::Even };
        Rounding { weights: &state.weights, errors: &mut state.errors, codes: &mut state.codes, grids, group_of, alphabet }
    }

    /// Rounds with feedback, and to nearest the rows that this leaves worse; also each row's error.
    fn round(&self, weights: &[f32], rows: &BlockRows, grids: &[RowGrids], sums: &mut ErrorSums) -> (State, Vec<f64>) {
        let engine = self.job.engine;
        let nothing = vec![RowGrids::VOID; grids.len()];
        let mut whole = State::new(RowPanels::from_rows(weights, rows.cols, Some(self.factor.order())));
        let losses = engine.round_rows(self.factor, &mut self.rounding(&mut whole, &nothing, &self.factor_runs), false);
        sums.weighted_weight = self.undamped(losses[..rows.rows].iter().sum(), &whole);
        let panels = RowPanels::from_rows(&shifted(weights, rows), rows.cols, Some(self.factor.order()));
        let mut nearest = State::new(panels.clone());
        let nearest_losses = engine.round_rows(self.factor, &mut self.rounding(&mut nearest, grids, &self.factor_runs), false);
        sums.nearest_error = self.undamped(nearest_losses[..rows.rows].iter().sum(), &nearest);
        let mut state = State::new(panels);
        let mut losses = engine.round_rows(self.factor, &mut self.rounding(&mut state, grids, &self.factor_runs), true);
        losses.truncate(rows.rows);
        for (row, loss) in losses.iter_mut().enumerate() {
            if loss.is_nan() || *loss > nearest_losses[row] {
                state.copy_row(row, &nearest);
                *loss = nearest_losses[row];
            }
        }
        (state, losses)
    }

    fn descend(&self, state: &mut State, grids: &[RowGrids], passes: usize) -> f64 {
        let (rows, damping) = (state.weights.rows(), self.hessian.damping() as f32);
        let mut rounding = self.rounding(state, grids, &self.matrix_runs);
        let engine = self.job.engine;
        (0..passes).map(|_| engine.descend_rows(self.hessian.matrix(), damping, &mut rounding)[..rows].iter().sum::<f64>()).sum()
    }

    /// An error with the damping's share taken out.
    fn undamped(&self, loss: f64, state: &State) -> f64 {
        (loss - f64::from(self.factor.damping()) * state.errors.squares()).max(0.0)
    }

    /// The scales of all runs as kernels want them.
    fn grids(&self, rows: &BlockRows) -> Vec<RowGrids> {
        let runs = rows.runs();
        let (low, high) = self.job.code.range();
        let mut grids = vec![RowGrids::VOID; rows.rows.div_ceil(LANES) * runs];
        for row in 0..rows.rows {
            for run in 0..runs {
                let (scale, _) = rows.run(row, run);
                let inverse = 1.0 / scale;
                let candidate = match inverse.is_finite() {
                    true => Candidate { inverse, scale, low: low.into(), high: high.into(), ..Candidate::default() },
                    false => Candidate::default(),
                };
                grids[row / LANES * runs + run].set(row % LANES, candidate, 0);
            }
        }
        grids
    }
}

/// Weights with what is taken off their values added.
fn shifted(weights: &[f32], rows: &BlockRows) -> Vec<f32> {
    let run = rows.code.run;
    let runs = rows.runs();
    let add = |(at, weights): (usize, &[f32])| {
        let offset = rows.run(at / runs, at % runs).1;
        weights.iter().map(|w| w + offset).collect::<Vec<f32>>()
    };
    weights.chunks(run).enumerate().flat_map(add).collect()
}
