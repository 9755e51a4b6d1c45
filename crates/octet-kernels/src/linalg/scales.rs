//! The normal equations of a row's scales with its codes fixed.

use super::{
    BLOCK, EDGE, LANES, Line, RowPanels, SymmetricMatrix, block,
    tile::{tile, tile_down},
};
use crate::{
    Engine,
    simd::{Op, Simd, unroll},
};
use std::ops::Range;

/// For each row, with Kg its codes (minus zero point) in group g and zeros elsewhere, E its errors and H the damped matrix:
/// Kgᵀ·H·Kh for h ≤ g, and Kgᵀ·H·E. Adding δ with (Kᵀ·H·K)·δ = Kᵀ·H·E to its scales lowers its error the most.
#[derive(Clone, Debug)]
pub struct ScaleEquations {
    groups: usize,
    /// `[runs][pairs of groups]`
    products: Vec<Line>,
    /// `[runs][groups]`
    sides: Vec<Line>,
}

impl ScaleEquations {
    /// Kgᵀ·H·Kh of a row, for `h` ≤ `g`.
    pub fn product(&self, row: usize, g: usize, h: usize) -> f32 {
        self.products[row / LANES * block(self.groups, 0) + block(g, h)].0[row % LANES]
    }

    /// Kgᵀ·H·E of a row.
    pub fn side(&self, row: usize, g: usize) -> f32 {
        self.sides[row / LANES * self.groups + g].0[row % LANES]
    }
}

impl Engine {
    /// Sets up the equations of rows with errors `errors` and codes (minus zero point) `codes`, on the calling thread. Groups
    /// are runs of `group` places.
    ///
    /// # Panics
    /// If shapes differ, or `group` is neither a multiple of sixteen nor the whole row.
    pub fn scale_equations(
        &self,
        matrix: &SymmetricMatrix,
        damping: f32,
        errors: &RowPanels,
        codes: &RowPanels,
        group: usize,
    ) -> ScaleEquations {
        let cols = matrix.size();
        assert!(errors.cols() == cols && codes.cols() == cols && errors.rows() == codes.rows(), "errors and codes of the same rows");
        assert!(group > 0 && (group.is_multiple_of(LANES) || group >= cols), "a group of {group} places");
        let (groups, runs) = (cols.div_ceil(group), codes.runs());
        let mut out =
            ScaleEquations { groups, products: vec![Line::ZERO; runs * block(groups, 0)], sides: vec![Line::ZERO; runs * groups] };
        self.vectorize(SetUp { matrix, damping, errors, codes, group, out: &mut out });
        out
    }
}

struct SetUp<'a> {
    matrix: &'a SymmetricMatrix,
    damping: f32,
    errors: &'a RowPanels,
    codes: &'a RowPanels,
    group: usize,
    out: &'a mut ScaleEquations,
}

impl Op for SetUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let runs = self.codes.runs();
        let mut first = 0;
        while first < runs {
            first += if const { S::FLOAT_TILE.0 == 2 } {
                match runs - first {
                    3.. => self.rows::<S, 3, 8>(s, first),
                    _ => self.rows::<S, 1, 8>(s, first),
                }
            } else {
                self.rows::<S, 1, 4>(s, first)
            };
        }
    }
}

impl SetUp<'_> {
    /// `R` runs of rows; says how many.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const T: usize>(&mut self, s: S, first: usize) -> usize {
        let edge = self.matrix.edge();
        for g in 0..self.out.groups {
            let places = g * self.group..((g + 1) * self.group).min(self.matrix.size());
            self.damp::<S, R>(s, first, g, places.clone());
            for i in places.start / EDGE..places.end.div_ceil(EDGE) {
                let piece = places.start.max(i * EDGE) - i * EDGE..places.end.min((i + 1) * EDGE) - i * EDGE;
                for j in 0..edge {
                    self.block::<S, R, T>(s, first, (g, i, j), piece.clone());
                }
            }
        }
        R
    }

    /// What the damping adds.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn damp<S: Simd, const R: usize>(&mut self, s: S, first: usize, g: usize, places: Range<usize>) {
        let (padded, damping) = (self.codes.padded(), s.splat(self.damping));
        for run in first..first + R {
            let (mut square, mut side) = (s.splat(0.0), s.splat(0.0));
            for place in run * padded + places.start..run * padded + places.end {
                let (k, e) = (s.load(&self.codes.lines[place].0), s.load(&self.errors.lines[place].0));
                square = s.fma(k, k, square);
                side = s.fma(k, e, side);
            }
            s.store(s.mul(square, damping), &mut self.out.products[run * block(self.out.groups, 0) + block(g, g)].0);
            s.store(s.mul(side, damping), &mut self.out.sides[run * self.out.groups + g].0);
        }
    }

    /// What rows `piece` (of group `g`) of block (i, j) of the matrix contribute.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        first: usize,
        (g, i, j): (usize, usize, usize),
        piece: Range<usize>,
    ) {
        let padded = self.codes.padded();
        let matrix = self.matrix;
        let codes = self.codes;
        let lines = &matrix.lines[block(i.max(j), i.min(j)) * BLOCK..][..BLOCK];
        let lanes: [&[Line]; R] = std::array::from_fn(|r| &codes.lines[(first + r) * padded + i * EDGE..][..EDGE]);
        // What fills up the last block has codes and errors of zero.
        for column in (0..EDGE.min(matrix.size() - j * EDGE)).step_by(LANES) {
            if i >= j {
                for half in (column..column + LANES).step_by(T) {
                    let mut acc = [[s.splat(0.0); T]; R];
                    tile_down(s, &mut acc, lanes, lines, half, piece.clone());
                    self.take(s, &acc, first, (g, i, j), half);
                }
            } else {
                let lanes = lanes.map(|lines| &lines[piece.clone()]);
                let x = &lines[column / LANES * EDGE..][piece.clone()];
                self.take(s, &tile::<S, R, T, 0>(s, lanes, x), first, (g, i, j), column);
                self.take(s, &tile::<S, R, T, 1>(s, lanes, x), first, (g, i, j), column + T);
                if const { T == 4 } {
                    self.take(s, &tile::<S, R, T, 2>(s, lanes, x), first, (g, i, j), column + 2 * T);
                    self.take(s, &tile::<S, R, T, 3>(s, lanes, x), first, (g, i, j), column + 3 * T);
                }
            }
        }
    }

    /// Adds a tile of Kgᵀ·H to the sums; its columns are of one group, because groups start at multiples of sixteen.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn take<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        acc: &[[S::F; T]; R],
        first: usize,
        (g, i, j): (usize, usize, usize),
        column: usize,
    ) {
        let (padded, groups) = (self.codes.padded(), self.out.groups);
        let place = j * EDGE + column;
        let h = place / self.group;
        unroll!(r < R, {
            let run = first + r;
            let side = &mut self.out.sides[run * groups + g].0;
            let mut sum = s.load(side);
            let errors = &self.errors.lines[run * padded + place..][..T];
            unroll!(t < T, { sum = s.fma(acc[r][t], s.load(&errors[t].0), sum) });
            s.store(sum, side);
            if i >= j && h <= g {
                let product = &mut self.out.products[run * block(groups, 0) + block(g, h)].0;
                let mut sum = s.load(product);
                // Twice where the block on the other side of the diagonal is in this group too.
                let times = s.splat(if h == g && i != j { 2.0 } else { 1.0 });
                let codes = &self.codes.lines[run * padded + place..][..T];
                unroll!(t < T, { sum = s.fma(acc[r][t], s.mul(s.load(&codes[t].0), times), sum) });
                s.store(sum, product);
            }
        });
    }
}
