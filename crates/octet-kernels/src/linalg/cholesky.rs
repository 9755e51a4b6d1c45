//! Blocked Cholesky factorisation, on all threads.

use super::{BLOCK, EDGE, Line, PANELS, SymmetricMatrix, block, coordinates, tile::tile};
use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Op, Simd, unroll},
};

/// The Cholesky factor L of a symmetric matrix whose rows were put in an order: L·Lᵀ = P·(A + λ·I)·Pᵀ.
///
/// Rounding with feedback goes from the last place to the first. With H = A + λ·I in that order, what is rounded last
/// is where L begins, so that the feedback coefficients are columns of L themselves and no inverse is needed (the
/// "LDLQ" form of GPTQ: Chee et al., QuIP, section 3; Frantar et al., GPTQ). Blocks of 128 by 128 on the diagonal are
/// factored in f64, everything else is f32.
#[derive(Clone, Debug)]
pub struct Factor {
    /// What is at each place.
    order: Vec<u32>,
    damping: f32,
    /// Blocks as in [`SymmetricMatrix`]; above the diagonal zeros.
    pub(crate) lines: Vec<Line>,
    /// The diagonal of L, one for places that fill up the last block.
    pub(crate) diagonal: Vec<f32>,
}

impl Factor {
    /// Factors `matrix` + `damping`·I with place p held by row `order[p]`; `None` where it is not positive definite (or
    /// not finite).
    ///
    /// # Panics
    /// If `order` is not as long as there are rows.
    pub fn new(engine: &Engine, matrix: &SymmetricMatrix, order: &[u32], damping: f32) -> Option<Self> {
        let mut work = matrix.permuted(engine, order);
        for i in 0..work.size() {
            work.set(i, i, work.at(i, i) + damping);
        }
        let edge = work.edge();
        let mut lines = work.lines;
        let mut diagonal = vec![1f32; edge * EDGE];
        for m in 0..edge {
            let corner = block(m, m) * BLOCK;
            let diagonal = &mut diagonal[m * EDGE..(m + 1) * EDGE];
            factor_block(&mut lines[corner..corner + BLOCK], diagonal)?;
            let corner = lines[corner..corner + BLOCK].to_vec();
            let inverse: Vec<f32> = diagonal.iter().map(|d| 1.0 / d).collect();
            let shared = Shared::new(&mut lines);
            engine.run(edge - m - 1, &|i| {
                let index = block(m + 1 + i, m);
                // SAFETY: every task has a block of its own.
                let lines = unsafe { shared.part(index * BLOCK..(index + 1) * BLOCK) };
                engine.vectorize(Solve { corner: &corner, inverse: &inverse, lines });
            });
            let panels: Vec<Line> = (m + 1..edge).flat_map(|i| &lines[block(i, m) * BLOCK..][..BLOCK]).copied().collect();
            let panel = |i: usize| &panels[i * BLOCK..(i + 1) * BLOCK];
            let shared = Shared::new(&mut lines);
            engine.run(block(edge - m - 1, 0), &|task| {
                let (i, j) = coordinates(task);
                let index = block(m + 1 + i, m + 1 + j);
                // SAFETY: every task has a block of its own.
                let lines = unsafe { shared.part(index * BLOCK..(index + 1) * BLOCK) };
                engine.vectorize(Update { rows: panel(i), columns: panel(j), diagonal: i == j, lines });
            });
        }
        Some(Self { order: order.to_vec(), damping, lines, diagonal })
    }

    /// What is at each place; rounding goes from the last place to the first.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// What was added to the diagonal.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// Element (r, c) of L.
    ///
    /// # Panics
    /// If it lies outside.
    pub fn at(&self, r: usize, c: usize) -> f32 {
        assert!(r.max(c) < self.order.len(), "element ({r}, {c}) of {}", self.order.len());
        if c > r { 0.0 } else { self.lines[super::line(r, c)].0[r % LANES] }
    }
}

/// Factors a block on the diagonal in f64; `None` where a pivot is not a positive number.
fn factor_block(lines: &mut [Line], diagonal: &mut [f32]) -> Option<()> {
    // Column by column, so that the inner loop runs along memory.
    let mut columns: Vec<[f64; EDGE]> =
        (0..EDGE).map(|c| std::array::from_fn(|r| f64::from(lines[r / LANES * EDGE + c].0[r % LANES]))).collect();
    for c in 0..EDGE {
        let (column, rest) = columns[c..].split_first_mut()?;
        let pivot = column[c].sqrt();
        // A pivot that f32 holds as zero is as bad as one that is not positive; NaN fails too.
        if !(pivot as f32 > 0.0 && pivot.is_finite()) {
            return None;
        }
        column[..c].fill(0.0);
        column[c..].iter_mut().for_each(|v| *v /= pivot);
        for (i, other) in rest.iter_mut().enumerate() {
            let factor = column[c + 1 + i];
            for (other, value) in other[c..].iter_mut().zip(&column[c..]) {
                *other -= factor * value;
            }
        }
    }
    for (c, column) in columns.iter().enumerate() {
        diagonal[c] = column[c] as f32;
        for (r, &value) in column.iter().enumerate() {
            lines[r / LANES * EDGE + c].0[r % LANES] = value as f32;
        }
    }
    Some(())
}

/// X ← X · L⁻ᵀ for a block X below the block L on the diagonal.
struct Solve<'a> {
    corner: &'a [Line],
    inverse: &'a [f32],
    lines: &'a mut [Line],
}

impl Op for Solve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for rows in self.lines.chunks_exact_mut(EDGE) {
            for (run, corner) in self.corner.chunks_exact(EDGE).enumerate() {
                let first = run * LANES;
                four::<S, 0>(s, rows, corner, self.inverse, first);
                four::<S, 1>(s, rows, corner, self.inverse, first);
                four::<S, 2>(s, rows, corner, self.inverse, first);
                four::<S, 3>(s, rows, corner, self.inverse, first);
            }
        }
    }
}

/// Columns `first + 4·H ..` of sixteen rows, the columns before them being known.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn four<S: Simd, const H: usize>(s: S, rows: &mut [Line], corner: &[Line], inverse: &[f32], first: usize) {
    let at = first + 4 * H;
    let mut known = tile::<S, 1, 4, H>(s, [rows], &corner[..at]);
    unroll!(t < 4, {
        let x = s.mul(s.sub(s.load(&rows[at + t].0), known[0][t]), s.splat(inverse[at + t]));
        s.store(x, &mut rows[at + t].0);
        // What this column adds to those behind it.
        for u in t + 1..4 {
            known[0][u] = s.fma(x, s.splat(corner[at + t].0[4 * H + u]), known[0][u]);
        }
    });
}

/// C ← C − A·Bᵀ for blocks.
struct Update<'a> {
    rows: &'a [Line],
    columns: &'a [Line],
    /// On the diagonal, of which only the lower half is needed.
    diagonal: bool,
    lines: &'a mut [Line],
}

impl Op for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut row = 0;
        while row < PANELS {
            row += if const { S::FLOAT_TILE.0 == 2 } {
                if PANELS - row >= 3 { self.rows::<S, 3, 8>(s, row) } else { self.rows::<S, 2, 8>(s, row) }
            } else {
                self.rows::<S, 1, 4>(s, row)
            };
        }
    }
}

impl Update<'_> {
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const T: usize>(&mut self, s: S, row: usize) -> usize {
        let columns = if self.diagonal { PANELS.min(row + R) } else { PANELS };
        for column in 0..columns {
            self.tile::<S, R, T, 0>(s, row, column);
            self.tile::<S, R, T, 1>(s, row, column);
            if const { T == 4 } {
                self.tile::<S, R, T, 2>(s, row, column);
                self.tile::<S, R, T, 3>(s, row, column);
            }
        }
        R
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize, const H: usize>(&mut self, s: S, row: usize, column: usize) {
        // Parts of a column that a wider tile has done already are not compiled.
        if const { H * T >= LANES } {
            return;
        }
        let lanes = std::array::from_fn(|r| &self.rows[(row + r) * EDGE..(row + r + 1) * EDGE]);
        let acc = tile::<S, R, T, H>(s, lanes, &self.columns[column * EDGE..(column + 1) * EDGE]);
        unroll!(r < R, {
            let lines = &mut self.lines[(row + r) * EDGE + column * LANES + H * T..][..T];
            unroll!(t < T, { s.store(s.sub(s.load(&lines[t].0), acc[r][t]), &mut lines[t].0) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gram, Isa};
    use std::num::NonZeroUsize;

    fn engine(isa: Isa, threads: usize) -> Engine {
        Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    /// The moments of correlated inputs.
    fn correlated(engine: &Engine, size: usize, tokens: usize) -> SymmetricMatrix {
        let mut state = 7u64;
        let mut x = Vec::new();
        for _ in 0..tokens {
            let mut last = 0f32;
            for i in 0..size {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                last = 0.9 * last + ((state >> 40) as f32 / (1 << 23) as f32 - 1.0);
                x.push(last * if i % 50 == 7 { 40.0 } else { 1.0 });
            }
        }
        let mut gram = Gram::new(size);
        gram.add(engine, &x);
        gram.finish(engine).second
    }

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        let engine = engine(Isa::best(), 2);
        for (size, tokens) in [(1, 5), (20, 40), (129, 300), (400, 300)] {
            let matrix = correlated(&engine, size, tokens);
            let order: Vec<u32> = (0..size as u32).rev().collect();
            let mean = matrix.diagonal().iter().sum::<f32>() / size as f32;
            let factor = Factor::new(&engine, &matrix, &order, 0.01 * mean).unwrap();
            for r in 0..size {
                for c in 0..=r {
                    let product: f64 = (0..=c).map(|k| f64::from(factor.at(r, k)) * f64::from(factor.at(c, k))).sum();
                    let (a, b) = (order[r] as usize, order[c] as usize);
                    let damped = |a: usize, b: usize| f64::from(matrix.at(a, b)) + f64::from(u8::from(a == b)) * 0.01 * f64::from(mean);
                    let bound = 2e-6 * (damped(a, a) * damped(b, b)).sqrt();
                    assert!((product - damped(a, b)).abs() < bound, "{size}: ({r}, {c}) {product} for {}", damped(a, b));
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        let engine = engine(Isa::best(), 1);
        let order: Vec<u32> = (0..200).collect();
        let mut matrix = SymmetricMatrix::from_lower(&engine, 200, &|r, c| f32::from(u8::from(r == c)));
        assert!(Factor::new(&engine, &matrix, &order, 0.0).is_some());
        matrix.set(150, 3, 1.5);
        assert!(Factor::new(&engine, &matrix, &order, 0.1).is_none());
        assert!(Factor::new(&engine, &matrix, &order, 1.0).is_some());
        matrix.set(150, 150, f32::NAN);
        assert!(Factor::new(&engine, &matrix, &order, 1.0).is_none());
    }

    #[test]
    fn neither_threads_nor_instruction_sets_change_a_bit() {
        let best = engine(Isa::best(), 1);
        let matrix = correlated(&best, 300, 400);
        let order: Vec<u32> = (0..300).map(|p| (p * 7) % 300).collect();
        let expected = Factor::new(&best, &matrix, &order, 0.5).unwrap();
        for (isa, threads) in Isa::available().into_iter().zip([3, 1, 2, 2]) {
            let found = Factor::new(&engine(isa, threads), &matrix, &order, 0.5).unwrap();
            assert!(found.lines == expected.lines && found.diagonal == expected.diagonal, "{isa}");
        }
    }
}
