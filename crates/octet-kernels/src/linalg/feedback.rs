//! Rounding rows of weights column by column, each column making good what rounding the others did to the output.
//!
//! Both passes walk the columns from the last place to the first and ask at each for the value that leaves the least
//! output error given the errors of other columns, then round it. With the Cholesky factor the others are the columns
//! rounded before (GPTQ); with the matrix itself they are all others as they are at present (coordinate descent).

use super::{
    BLOCK, EDGE, Factor, Line, RowPanels, SymmetricMatrix, block,
    tile::{tile, tile_down},
};
use crate::{
    Candidate, Engine,
    lattice::EIGHT,
    search::{Levels, code, level},
    simd::{LANES, Op, Simd, unroll},
};
use octet_tensor::Alphabet;

/// How the codes of a group are to be read, for sixteen rows; all zeros round everything to 0.
#[derive(Clone, Copy, Debug)]
pub struct RowGrids {
    inverse: Line,
    scale: Line,
    low: Line,
    high: Line,
    zero: Line,
}

impl RowGrids {
    /// Grids that round everything to 0.
    pub const VOID: Self = Self { inverse: Line::ZERO, scale: Line::ZERO, low: Line::ZERO, high: Line::ZERO, zero: Line::ZERO };

    /// Sets the grid of row `lane` of sixteen; stored codes have `zero` added.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn set(&mut self, lane: usize, candidate: Candidate, zero: i8) {
        self.inverse.0[lane] = candidate.inverse;
        self.scale.0[lane] = candidate.scale;
        self.low.0[lane] = candidate.low;
        self.high.0[lane] = candidate.high;
        self.zero.0[lane] = f32::from(zero);
    }
}

/// Rows being rounded.
#[derive(Debug)]
pub struct Rounding<'a> {
    /// The weights, columns in the places of the factor or matrix.
    pub weights: &'a RowPanels,
    /// Weights minus rounded weights, in the same places.
    pub errors: &'a mut RowPanels,
    /// Codes, `[runs of sixteen rows][places]`.
    pub codes: &'a mut [[i8; LANES]],
    /// Grids `[runs of sixteen rows][groups]`.
    pub grids: &'a [RowGrids],
    /// The group of each place.
    pub group_of: &'a [u32],
    /// What codes are. The places of a point of the lattice are eight from a multiple of eight on, all of one group.
    pub alphabet: Alphabet,
}

impl Engine {
    /// Rounds every weight, writes codes and errors, and gives tr(E·(A + λ·I)·Eᵀ) of each row (rows that fill up a run
    /// included), on the calling thread. With `feedback` each column makes good the errors of those rounded before
    /// (GPTQ); without it every weight is rounded to nearest.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn round_rows(&self, factor: &Factor, rows: &mut Rounding<'_>, feedback: bool) -> Vec<f64> {
        rows.check(factor.order().len());
        let (levels, rows) = (Levels::new(rows.alphabet.table()), rows.reborrow());
        self.vectorize(Pass::<false> { lines: &factor.lines, diagonal: &factor.diagonal, damping: 0.0, feedback, rows, levels })
    }

    /// One pass of coordinate descent (of even steps and levels) over tr(E·(A + `damping`·I)·Eᵀ): replaces each code in turn by the best one given
    /// all others, and gives by how much that lowered the error of each row, on the calling thread.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn descend_rows(&self, matrix: &SymmetricMatrix, damping: f32, rows: &mut Rounding<'_>) -> Vec<f64> {
        rows.check(matrix.size());
        assert!(rows.alphabet != Alphabet::Lattice, "a coordinate of a point does not move by itself");
        let mut diagonal = matrix.diagonal();
        diagonal.resize(matrix.edge() * EDGE, 1.0);
        let (levels, rows) = (Levels::new(rows.alphabet.table()), rows.reborrow());
        self.vectorize(Pass::<true> { lines: &matrix.lines, diagonal: &diagonal, damping, feedback: true, rows, levels })
    }
}

impl Rounding<'_> {
    /// Codes minus zero points, in the same places.
    pub fn steps(&self) -> RowPanels {
        let mut out = RowPanels::zeros(self.weights.rows(), self.weights.cols());
        self.each(|at, grid, codes, _| {
            let steps = codes.iter().zip(&grid.zero.0).map(|(&code, zero)| f32::from(code) - zero);
            out.lines[at].0.iter_mut().zip(steps).for_each(|(out, step)| *out = step);
        });
        out
    }

    /// Sets the errors to what codes and grids leave, after either was changed.
    pub fn settle(&mut self) {
        let mut errors = std::mem::take(&mut self.errors.lines);
        self.each(|at, grid, codes, weights| {
            let steps = codes.iter().zip(&grid.zero.0).map(|(&code, zero)| f32::from(code) - zero);
            let rounded = steps.zip(&grid.scale.0).map(|(step, scale)| scale * step);
            let left = rounded.zip(&weights.0).map(|(rounded, weight)| weight - rounded);
            errors[at].0.iter_mut().zip(left).for_each(|(error, left)| *error = left);
        });
        self.errors.lines = errors;
    }

    /// Calls `f` with every line's number, grid, codes and weights.
    fn each(&self, mut f: impl FnMut(usize, &RowGrids, &[i8; LANES], &Line)) {
        let (cols, padded) = (self.weights.cols(), self.weights.padded());
        let groups = self.grids.len() / self.weights.runs().max(1);
        for (run, codes) in self.codes.chunks_exact(cols.max(1)).enumerate() {
            for (place, (codes, &group)) in codes.iter().zip(self.group_of).enumerate() {
                let at = run * padded + place;
                f(at, &self.grids[run * groups + group as usize], codes, &self.weights.lines[at]);
            }
        }
    }

    fn check(&self, size: usize) {
        let runs = self.weights.runs();
        assert!(self.weights.cols() == size && self.errors.cols() == size && self.errors.rows() == self.weights.rows(), "the same columns");
        assert!(self.codes.len() == runs * size && self.group_of.len() == size, "a code and a group for every place");
        let groups = self.group_of.iter().max().map_or(0, |&last| last as usize + 1);
        assert!(runs == 0 || self.grids.len() >= runs * groups && self.grids.len().is_multiple_of(runs), "a grid for every group");
    }

    fn reborrow(&mut self) -> Rounding<'_> {
        let Rounding { weights, grids, group_of, alphabet, .. } = *self;
        Rounding { weights, errors: self.errors, codes: self.codes, grids, group_of, alphabet }
    }
}

/// Columns rounded between two products: the same on every instruction set, because the order of sums depends on it.
const FEW: usize = 4;

/// One walk over the columns: with the factor, or (`DESCENT`) with the matrix.
struct Pass<'a, const DESCENT: bool> {
    lines: &'a [Line],
    diagonal: &'a [f32],
    damping: f32,
    feedback: bool,
    rows: Rounding<'a>,
    levels: Levels,
}

impl<const DESCENT: bool> Op for Pass<'_, DESCENT> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Vec<f64> {
        let (runs, points) = (self.rows.weights.runs(), self.rows.alphabet == Alphabet::Lattice);
        let mut sums = vec![Line::ZERO; runs * EDGE];
        let mut losses = vec![0f64; runs * LANES];
        for j in (0..self.diagonal.len() / EDGE).rev() {
            let mut first = 0;
            while first < runs {
                first += if const { S::FLOAT_TILE.0 == 2 } {
                    match runs - first {
                        3.. => self.outside::<S, 3, 8>(s, j, first, &mut sums),
                        _ => self.outside::<S, 1, 8>(s, j, first, &mut sums),
                    }
                } else {
                    self.outside::<S, 1, 4>(s, j, first, &mut sums)
                };
            }
            let mut first = 0;
            while first < runs {
                first += if const { S::FLOAT_TILE.0 == 2 } {
                    match runs - first {
                        _ if points => self.inside::<S, 1, EIGHT>(s, j, first, &sums, &mut losses),
                        3.. => self.inside::<S, 3, FEW>(s, j, first, &sums, &mut losses),
                        _ => self.inside::<S, 1, FEW>(s, j, first, &sums, &mut losses),
                    }
                } else if points {
                    self.inside::<S, 1, EIGHT>(s, j, first, &sums, &mut losses)
                } else {
                    self.inside::<S, 1, FEW>(s, j, first, &sums, &mut losses)
                };
            }
        }
        losses
    }
}

impl<const DESCENT: bool> Pass<'_, DESCENT> {
    /// What the errors of other blocks of columns call for in block `j`; says for how many runs of rows.
    #[inline(always)]
    fn outside<S: Simd, const R: usize, const T: usize>(&self, s: S, j: usize, first: usize, sums: &mut [Line]) -> usize {
        let padded = self.rows.errors.padded();
        let edge = padded / EDGE;
        let sums = &mut sums[first * EDGE..(first + R) * EDGE];
        sums.fill(Line::ZERO);
        for i in if DESCENT { 0 } else { j + 1 }..edge {
            if i == j {
                continue;
            }
            let lanes = std::array::from_fn(|r| &self.rows.errors.lines[(first + r) * padded + i * EDGE..][..EDGE]);
            let lines = &self.lines[block(i.max(j), i.min(j)) * BLOCK..][..BLOCK];
            if i > j {
                for column in (0..EDGE).step_by(T) {
                    let mut acc = [[s.splat(0.0); T]; R];
                    tile_down(s, &mut acc, lanes, lines, column, 0..EDGE);
                    add::<S, R, T>(s, &acc, sums, column);
                }
            } else if const { DESCENT } {
                for (run, lines) in lines.chunks_exact(EDGE).enumerate() {
                    let column = run * LANES;
                    across::<S, R, T, 0>(s, lanes, lines, sums, column);
                    across::<S, R, T, 1>(s, lanes, lines, sums, column);
                    if const { T == 4 } {
                        across::<S, R, T, 2>(s, lanes, lines, sums, column);
                        across::<S, R, T, 3>(s, lanes, lines, sums, column);
                    }
                }
            }
        }
        R
    }

    /// Rounds the columns of block `j`, a few at a time, and adds to the losses.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn inside<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        j: usize,
        first: usize,
        sums: &[Line],
        losses: &mut [f64],
    ) -> usize {
        let (padded, cols) = (self.rows.errors.padded(), self.rows.errors.cols());
        let lines = &self.lines[block(j, j) * BLOCK..][..BLOCK];
        let mut loss = [s.splat(0.0); R];
        for column in (0..EDGE).step_by(T).rev() {
            // Places that only fill up the last block have no errors.
            if j * EDGE + column >= cols {
                continue;
            }
            let mut acc = [[s.splat(0.0); T]; R];
            for r in 0..R {
                for t in 0..T {
                    acc[r][t] = s.load(&sums[(first + r) * EDGE + column + t].0);
                }
            }
            let lanes = std::array::from_fn(|r| &self.rows.errors.lines[(first + r) * padded + j * EDGE..][..EDGE]);
            if const { DESCENT } {
                tile_down(s, &mut acc, lanes, lines, column, 0..column);
            }
            tile_down(s, &mut acc, lanes, lines, column, column + T..EDGE);
            if const { T == EIGHT } {
                self.eights::<S, R, T>(s, (j, column, first), lines, &acc, &mut loss);
            } else {
                self.few::<S, R, T>(s, (j, column, first), lines, &mut acc, &mut loss);
            }
        }
        for r in 0..R {
            let mut values = [0.0; LANES];
            s.store(loss[r], &mut values);
            for (total, value) in losses[(first + r) * LANES..].iter_mut().zip(values) {
                *total += f64::from(value);
            }
        }
        R
    }

    /// Rounds `T` columns, from the last, given what all columns outside of them call for.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn few<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        (j, column, first): (usize, usize, usize),
        lines: &[Line],
        acc: &mut [[S::F; T]; R],
        loss: &mut [S::F; R],
    ) {
        let (padded, cols) = (self.rows.errors.padded(), self.rows.errors.cols());
        let groups = self.rows.grids.len() / self.rows.weights.runs().max(1);
        let element = |r: usize, c: usize| lines[(column + r) / LANES * EDGE + column + c].0[(column + r) % LANES];
        if const { DESCENT } {
            for from in 0..T {
                for to in (0..T).filter(|&to| to != from) {
                    let h = s.splat(element(from, to));
                    for r in 0..R {
                        let error = s.load(&self.rows.errors.lines[(first + r) * padded + j * EDGE + column + from].0);
                        acc[r][to] = s.fma(error, h, acc[r][to]);
                    }
                }
            }
        }
        for t in (0..T).rev() {
            let place = j * EDGE + column + t;
            let Some(&group) = self.rows.group_of.get(place) else { continue };
            let diagonal = self.diagonal[place] + self.damping;
            let inverse = s.splat(1.0 / diagonal);
            // The loss is a sum of (diagonal · error)² with the factor, of diagonal · error² with the matrix.
            let share = s.splat(if DESCENT { diagonal } else { diagonal * diagonal });
            for r in 0..R {
                let at = (first + r) * padded + place;
                let grid = &self.rows.grids[(first + r) * groups + group as usize];
                let w = s.load(&self.rows.weights.lines[at].0);
                let wanted = s.add(w, s.mul(acc[r][t], inverse));
                let scale = s.load(&grid.scale.0);
                let value = if self.feedback { wanted } else { w };
                let of_grid = s.load(&grid.inverse.0);
                let k = match self.rows.alphabet {
                    Alphabet::Table(_) => level(s, value, of_grid, &self.levels),
                    _ => code(s, value, of_grid, s.load(&grid.low.0), s.load(&grid.high.0)),
                };
                s.round_codes(s.add(k, s.load(&grid.zero.0)), &mut self.rows.codes[(first + r) * cols + place]);
                let rounded = s.mul(scale, k);
                let error = s.sub(w, rounded);
                let missed = s.sub(wanted, rounded);
                let slot = &mut self.rows.errors.lines[at].0;
                let before = s.load(slot);
                s.store(error, slot);
                let passed_on = if const { DESCENT } {
                    let missed_before = s.sub(wanted, s.sub(w, before));
                    let gain = s.sub(s.mul(missed_before, missed_before), s.mul(missed, missed));
                    loss[r] = s.add(loss[r], s.mul(share, gain));
                    s.sub(error, before)
                } else {
                    loss[r] = s.add(loss[r], s.mul(share, s.mul(missed, missed)));
                    error
                };
                for to in 0..t {
                    acc[r][to] = s.fma(passed_on, s.splat(element(t, to)), acc[r][to]);
                }
            }
        }
    }
}

/// A tile of columns `column ..` added to `sums`.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn add<S: Simd, const R: usize, const T: usize>(s: S, acc: &[[S::F; T]; R], sums: &mut [Line], column: usize) {
    unroll!(r < R, {
        let lines = &mut sums[r * EDGE + column..][..T];
        unroll!(t < T, { s.store(s.add(s.load(&lines[t].0), acc[r][t]), &mut lines[t].0) });
    });
}

/// A tile of a block above the diagonal, which is stored as its mirror image.
#[inline(always)]
fn across<S: Simd, const R: usize, const T: usize, const H: usize>(
    s: S,
    lanes: [&[Line]; R],
    lines: &[Line],
    sums: &mut [Line],
    column: usize,
) {
    // Parts of a column that a wider tile has done already are not compiled.
    if const { H * T < LANES } {
        let acc = tile::<S, R, T, H>(s, lanes, lines);
        add::<S, R, T>(s, &acc, sums, column + H * T);
    }
}

mod eights;

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;
