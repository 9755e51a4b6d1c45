//! Solving some rows.

use super::{super::RowsMut, Hessian, RowSolver, TensorJob, refine};
use crate::ErrorSums;
use octet_kernels::{Candidate, Engine, Factor, Rounding, RowGrids, RowPanels};
use octet_tensor::Alphabet;
use std::borrow::Cow;

/// Rows that are the lanes of a vector.
pub(super) const LANES: usize = 16;

/// What all rows of a tensor share.
pub(super) struct Work<'a> {
    job: TensorJob<'a>,
    hessian: &'a Hessian,
    factor: &'a Factor,
    refinements: usize,
    /// The group of each place of the factor, and of the matrix.
    factor_groups: Vec<u32>,
    matrix_groups: Vec<u32>,
    /// The place in the factor of each place of the matrix.
    in_factor: Vec<u32>,
}

/// Rows being solved, in the places of factor or matrix.
pub(super) struct State {
    pub(super) weights: RowPanels,
    pub(super) errors: RowPanels,
    pub(super) codes: Vec<[i8; LANES]>,
    /// What codes are.
    alphabet: Alphabet,
}

impl State {
    fn new(weights: RowPanels, alphabet: Alphabet) -> Self {
        let (rows, cols) = (weights.rows(), weights.cols());
        Self { errors: RowPanels::zeros(rows, cols), codes: vec![[0; LANES]; weights.runs() * cols], weights, alphabet }
    }

    pub(super) fn rounding<'a>(&'a mut self, grids: &'a [RowGrids], group_of: &'a [u32]) -> Rounding<'a> {
        Rounding { weights: &self.weights, errors: &mut self.errors, codes: &mut self.codes, grids, group_of, alphabet: self.alphabet }
    }

    /// Takes a row from `other`, which has the same places.
    fn copy_row(&mut self, row: usize, other: &Self) {
        self.errors.copy_row(row, &other.errors);
        let (cols, lane) = (self.weights.cols(), row % LANES);
        let range = row / LANES * cols..(row / LANES + 1) * cols;
        for (codes, other) in self.codes[range.clone()].iter_mut().zip(&other.codes[range]) {
            codes[lane] = other[lane];
        }
    }

    /// The same rows with place p holding what is at place `from[p]`.
    fn reordered(&self, from: &[u32]) -> Self {
        let cols = self.weights.cols().max(1);
        let codes = self.codes.chunks_exact(cols).flat_map(|codes| from.iter().map(|&p| codes[p as usize])).collect();
        Self { weights: self.weights.reordered(from), errors: self.errors.reordered(from), codes, alphabet: self.alphabet }
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(job: TensorJob<'a>, hessian: &'a Hessian, factor: &'a Factor, refinements: usize) -> Self {
        let size = job.group_size() as u32;
        let mut in_factor = vec![0; factor.order().len()];
        for (place, &of) in factor.order().iter().enumerate() {
            in_factor[of as usize] = place as u32;
        }
        Self {
            job,
            hessian,
            factor,
            refinements,
            factor_groups: factor.order().iter().map(|p| p / size).collect(),
            matrix_groups: (0..in_factor.len() as u32).map(|p| p / size).collect(),
            in_factor,
        }
    }

    pub(super) fn cols(&self) -> usize {
        self.job.shape.1
    }

    pub(super) fn groups(&self) -> usize {
        self.job.scheme.groups(self.cols())
    }

    pub(super) fn engine(&self) -> &'a Engine {
        self.job.engine
    }

    pub(super) fn job(&self) -> &TensorJob<'a> {
        &self.job
    }

    pub(super) fn hessian(&self) -> &'a Hessian {
        self.hessian
    }

    pub(super) fn matrix_groups(&self) -> &[u32] {
        &self.matrix_groups
    }

    /// Solves `weights` `[rows, cols]`; scales and zero points are those of `search`, unless refined.
    pub(super) fn solve(&self, weights: &[f32], mut out: RowsMut<'_>, search: &dyn RowSolver) -> ErrorSums {
        let weights = self.by_place(weights);
        let searched = RowsMut { codes: &mut *out.codes, scales: &mut *out.scales, zeros: &mut *out.zeros };
        let mut sums = search.solve(&weights, searched);
        let mut grids = self.grids(&out);
        let panels = RowPanels::from_rows(&weights, self.cols(), Some(self.factor.order()));
        let (mut state, losses) = self.round(panels, &grids, &mut sums);
        state = state.reordered(&self.in_factor);
        let mut loss: f64 = losses.iter().sum();
        if self.refinements > 0 {
            loss -= refine::refine(self, &mut state, &mut grids, &mut out, self.refinements);
        }
        self.finish(&state, loss, &mut out, &mut sums);
        sums
    }

    /// The weights in the places of the matrix.
    fn by_place<'w>(&self, weights: &'w [f32]) -> Cow<'w, [f32]> {
        match self.hessian.columns() {
            None => Cow::Borrowed(weights),
            Some(columns) => {
                let rows = weights.chunks_exact(self.cols());
                Cow::Owned(rows.flat_map(|row| columns.iter().map(|&c| row[c as usize])).collect())
            }
        }
    }

    /// Rounds with feedback, and to nearest the rows that this leaves worse; also each row's error. Sums get the errors of
    /// rounding to nearest and of dropping the weights.
    fn round(&self, weights: RowPanels, grids: &[RowGrids], sums: &mut ErrorSums) -> (State, Vec<f64>) {
        let (engine, rows) = (self.engine(), weights.rows());
        let mut state = State::new(weights.clone(), self.job.alphabet());
        let nothing = vec![RowGrids::VOID; grids.len()];
        let whole = engine.round_rows(self.factor, &mut state.rounding(&nothing, &self.factor_groups), true);
        sums.weighted_weight = self.undamped(whole[..rows].iter().sum(), &state);
        let mut nearest = State::new(weights, self.job.alphabet());
        let nearest_losses = engine.round_rows(self.factor, &mut nearest.rounding(grids, &self.factor_groups), false);
        sums.nearest_error = self.undamped(nearest_losses[..rows].iter().sum(), &nearest);
        let mut losses = engine.round_rows(self.factor, &mut state.rounding(grids, &self.factor_groups), true);
        losses.truncate(rows);
        for (row, loss) in losses.iter_mut().enumerate() {
            if loss.is_nan() || *loss > nearest_losses[row] {
                state.copy_row(row, &nearest);
                *loss = nearest_losses[row];
            }
        }
        (state, losses)
    }

    /// An error with the damping's share taken out.
    fn undamped(&self, loss: f64, state: &State) -> f64 {
        (loss - f64::from(self.factor.damping()) * state.errors.squares()).max(0.0)
    }

    /// Scales and zero points as kernels want them.
    fn grids(&self, out: &RowsMut<'_>) -> Vec<RowGrids> {
        let groups = self.groups();
        let mut grids = vec![RowGrids::VOID; (out.scales.len() / groups.max(1)).div_ceil(LANES) * groups];
        for (i, &scale) in out.scales.iter().enumerate() {
            let (row, group) = (i / groups, i % groups);
            let zero = out.zeros.get(i).copied().unwrap_or_default();
            grids[row / LANES * groups + group].set(row % LANES, self.candidate(scale, zero), zero);
        }
        grids
    }

    /// What codes and a scale mean; a scale too small to have an inverse means zeros.
    pub(super) fn candidate(&self, scale: f32, zero: i8) -> Candidate {
        let (inverse, (low, high), zero) = (1.0 / scale, self.job.scheme.range(), f32::from(zero));
        match inverse.is_finite() {
            true => Candidate { inverse, scale, low: low as f32 - zero, high: high as f32 - zero, alphabet: self.job.alphabet() },
            false => Candidate { alphabet: self.job.alphabet(), ..Candidate::default() },
        }
    }

    /// Writes the codes where their inputs are, and the sums of errors.
    fn finish(&self, state: &State, loss: f64, out: &mut RowsMut<'_>, sums: &mut ErrorSums) {
        let cols = self.cols();
        for (row, codes) in out.codes.chunks_exact_mut(cols).enumerate() {
            let run = &state.codes[row / LANES * cols..][..cols];
            match self.hessian.columns() {
                None => codes.iter_mut().zip(run).for_each(|(code, lanes)| *code = lanes[row % LANES]),
                Some(columns) => columns.iter().zip(run).for_each(|(&input, lanes)| codes[input as usize] = lanes[row % LANES]),
            }
        }
        sums.error = state.errors.squares();
        sums.max_error = f64::from(state.errors.largest());
        sums.weighted_error = self.undamped(loss, state);
    }
}
