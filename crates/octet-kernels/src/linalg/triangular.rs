//! Solving with a Cholesky factor, sixteen rows the lanes of a vector.

use super::{
    BLOCK, EDGE, Factor, Line, RowPanels, block,
    tile::{tile, tile_down},
};
use crate::{
    Engine,
    simd::{LANES, Op, Simd, unroll},
};

/// Columns solved between two products.
const FEW: usize = 4;

impl Factor {
    /// Replaces rows t, columns in the places of the factor, by t·(A + λ·I)⁻¹, on the calling thread.
    ///
    /// # Panics
    /// If the rows have another number of columns.
    pub fn solve_rows(&self, engine: &Engine, rows: &mut RowPanels) {
        assert_eq!(rows.cols(), self.order().len(), "the same columns");
        engine.vectorize(Substitute { factor: self, rows });
    }
}

/// t·(L·Lᵀ)⁻¹: forward through L, then back.
struct Substitute<'a> {
    factor: &'a Factor,
    rows: &'a mut RowPanels,
}

impl Op for Substitute<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let runs = self.rows.runs();
        let mut first = 0;
        while first < runs {
            first += match runs - first {
                3.. => self.runs::<S, 3>(s, first),
                _ => self.runs::<S, 1>(s, first),
            };
        }
    }
}

impl Substitute<'_> {
    /// `R` runs of rows; says how many.
    #[inline(always)]
    fn runs<S: Simd, const R: usize>(&mut self, s: S, first: usize) -> usize {
        let edge = self.factor.diagonal.len() / EDGE;
        for i in 0..edge {
            for run in 0..EDGE / LANES {
                self.forward::<S, R, 0>(s, first, i, run);
                self.forward::<S, R, 1>(s, first, i, run);
                self.forward::<S, R, 2>(s, first, i, run);
                self.forward::<S, R, 3>(s, first, i, run);
            }
        }
        for i in (0..edge).rev() {
            for column in (0..EDGE).step_by(FEW).rev() {
                self.back::<S, R>(s, first, edge, i, column);
            }
        }
        R
    }

    fn block(&self, i: usize, j: usize) -> &[Line] {
        &self.factor.lines[block(i, j) * BLOCK..][..BLOCK]
    }

    /// Block `j` of the columns of `R` runs of rows.
    #[inline(always)]
    fn lanes<const R: usize>(&self, first: usize, j: usize) -> [&[Line]; R] {
        let padded = self.rows.padded();
        std::array::from_fn(|r| &self.rows.lines[(first + r) * padded + j * EDGE..][..EDGE])
    }

    /// Four columns of z with z·Lᵀ = t.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn forward<S: Simd, const R: usize, const H: usize>(&mut self, s: S, first: usize, i: usize, run: usize) {
        let at = run * LANES + FEW * H;
        let mut known = [[s.splat(0.0); FEW]; R];
        for j in 0..=i {
            let lines = self.block(i, j);
            let depth = if j == i { at } else { EDGE };
            let lanes = self.lanes::<R>(first, j).map(|lanes| &lanes[..depth]);
            let part = tile::<S, R, FEW, H>(s, lanes, &lines[run * EDGE..][..depth]);
            unroll!(r < R, { unroll!(t < FEW, { known[r][t] = s.add(known[r][t], part[r][t]) }) });
        }
        let padded = self.rows.padded();
        for t in 0..FEW {
            let inverse = s.splat(1.0 / self.factor.diagonal[i * EDGE + at + t]);
            for r in 0..R {
                let slot = (first + r) * padded + i * EDGE + at + t;
                let z = s.mul(s.sub(s.load(&self.rows.lines[slot].0), known[r][t]), inverse);
                s.store(z, &mut self.rows.lines[slot].0);
                for u in t + 1..FEW {
                    let l = self.block(i, i)[run * EDGE + at + t].0[FEW * H + u];
                    known[r][u] = s.fma(z, s.splat(l), known[r][u]);
                }
            }
        }
    }

    /// Four columns of y with y·L = z.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn back<S: Simd, const R: usize>(&mut self, s: S, first: usize, edge: usize, i: usize, column: usize) {
        let mut known = [[s.splat(0.0); FEW]; R];
        for k in i..edge {
            let rows = if k == i { column + FEW..EDGE } else { 0..EDGE };
            tile_down(s, &mut known, self.lanes::<R>(first, k), self.block(k, i), column, rows);
        }
        let padded = self.rows.padded();
        let element = |r: usize, c: usize| self.block(i, i)[(column + r) / LANES * EDGE + column + c].0[(column + r) % LANES];
        let corner: [[f32; FEW]; FEW] = std::array::from_fn(|r| std::array::from_fn(|c| element(r, c)));
        for t in (0..FEW).rev() {
            let inverse = s.splat(1.0 / self.factor.diagonal[i * EDGE + column + t]);
            for r in 0..R {
                let slot = (first + r) * padded + i * EDGE + column + t;
                let y = s.mul(s.sub(s.load(&self.rows.lines[slot].0), known[r][t]), inverse);
                s.store(y, &mut self.rows.lines[slot].0);
                for u in 0..t {
                    known[r][u] = s.fma(y, s.splat(corner[t][u]), known[r][u]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, SymmetricMatrix};
    use std::num::NonZeroUsize;

    fn engine(isa: Isa) -> Engine {
        Engine::new(isa, NonZeroUsize::MIN).unwrap()
    }

    /// A well-conditioned matrix with everything different from zero.
    fn matrix(engine: &Engine, size: usize) -> SymmetricMatrix {
        let value = |r: usize, c: usize| ((r * 31 + c * 17) % 23) as f32 / 23.0 - 0.5;
        SymmetricMatrix::from_lower(engine, size, &|r, c| if r == c { size as f32 } else { value(r, c) })
    }

    #[test]
    fn what_is_solved_times_the_matrix_is_what_was_given() {
        let best = engine(Isa::best());
        for (rows, size) in [(1, 1), (16, 20), (50, 129), (65, 300)] {
            let matrix = matrix(&best, size);
            let order: Vec<u32> = (0..size as u32).map(|p| (p * 7 + 3) % size as u32).collect();
            let order = if size % 7 == 0 { (0..size as u32).rev().collect() } else { order };
            let factor = Factor::new(&best, &matrix, &order, 0.25).unwrap();
            let given: Vec<f32> = (0..rows * size).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
            let mut solved = RowPanels::from_rows(&given, size, Some(&order));
            factor.solve_rows(&best, &mut solved);
            for isa in Isa::available() {
                let mut again = RowPanels::from_rows(&given, size, Some(&order));
                factor.solve_rows(&engine(isa), &mut again);
                assert!(again == solved, "{isa}");
            }
            for n in 0..rows {
                for c in 0..size {
                    let product: f64 = (0..size)
                        .map(|p| {
                            let a = order[p] as usize;
                            let damped = matrix.at(a, c) + if a == c { 0.25 } else { 0.0 };
                            f64::from(solved.at(n, p)) * f64::from(damped)
                        })
                        .sum();
                    assert!((product - f64::from(given[n * size + c])).abs() < 1e-4, "{rows} {size}: {product}");
                }
            }
        }
    }
}
