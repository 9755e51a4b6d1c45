//! Second moments of two different things: Σ a·bᵀ over tokens.

use super::{EDGE, Line, RowPanels, tile::tile};
use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Op, Simd, unroll},
};

/// Tokens whose products are summed in f32 before the sums move to f64.
const CHUNK: usize = 512;

/// Runs of sixteen columns a task has.
const TASK_RUNS: usize = 4;

/// Gathers Σ a·bᵀ of values a `[tokens, rows]` and b `[tokens, cols]`, token by token.
///
/// As with [`crate::Gram`] the result does not depend on calls, threads or instruction sets. It holds 8 bytes a product and
/// 2,048 bytes a row and column.
#[derive(Clone, Debug)]
pub struct CrossGram {
    rows: usize,
    cols: usize,
    tokens: usize,
    filled: usize,
    /// Tokens of the chunk being filled, `[runs of sixteen][CHUNK]`.
    a: Vec<Line>,
    b: Vec<Line>,
    /// `[runs of sixteen columns][rows]`, sixteen columns each.
    sums: Vec<[f64; LANES]>,
}

/// What a [`CrossGram`] saw.
#[derive(Clone, Debug)]
pub struct CrossMoments {
    rows: usize,
    cols: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// `[runs of sixteen columns][rows]`, sixteen columns each.
    lines: Vec<Line>,
}

impl CrossGram {
    /// Nothing seen yet.
    pub fn new(rows: usize, cols: usize) -> Self {
        let chunk = |width: usize| vec![Line::ZERO; width.div_ceil(LANES) * CHUNK];
        let sums = vec![[0.0; LANES]; cols.div_ceil(LANES) * rows];
        Self { rows, cols, tokens: 0, filled: 0, a: chunk(rows), b: chunk(cols), sums }
    }

    /// Bytes it takes.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        let runs = cols.div_ceil(LANES);
        runs * rows * LANES * size_of::<f64>() + (rows.div_ceil(LANES) + runs) * CHUNK * size_of::<Line>()
    }

    /// Sees the tokens `a` `[tokens, rows]` and `b` `[tokens, cols]`.
    ///
    /// # Panics
    /// If they do not hold the same whole number of tokens.
    pub fn add(&mut self, engine: &Engine, a: &[f32], b: &[f32]) {
        let (rows, cols) = (self.rows, self.cols);
        assert!(a.len() * cols == b.len() * rows, "{} values of {rows} and {} of {cols} a token", a.len(), b.len());
        if rows == 0 || cols == 0 {
            return;
        }
        for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(cols)) {
            put(a, &mut self.a, self.filled);
            put(b, &mut self.b, self.filled);
            self.filled += 1;
            self.tokens += 1;
            if self.filled == CHUNK {
                self.flush(engine);
            }
        }
    }

    /// Adds the products of the chunk to the sums.
    fn flush(&mut self, engine: &Engine) {
        let (rows, depth, runs) = (self.rows, self.filled, self.cols.div_ceil(LANES));
        let (a, b) = (&self.a, &self.b);
        let shared = Shared::new(&mut self.sums);
        engine.run(runs.div_ceil(TASK_RUNS), &|task| {
            let of = task * TASK_RUNS..runs.min((task + 1) * TASK_RUNS);
            // SAFETY: every task has runs of its own.
            let sums = unsafe { shared.part(of.start * rows..of.end * rows) };
            engine.vectorize(Products { a, b, depth, rows, of, sums });
        });
        self.filled = 0;
    }

    /// The means of what was seen; zeros without a token.
    pub fn finish(mut self, engine: &Engine) -> CrossMoments {
        if self.filled > 0 {
            self.flush(engine);
        }
        let count = self.tokens.max(1) as f64;
        let lines = self.sums.iter().map(|sums| Line(sums.map(|sum| (sum / count) as f32))).collect();
        CrossMoments { rows: self.rows, cols: self.cols, tokens: self.tokens, lines }
    }
}

/// Copies a token behind those in a chunk.
fn put(values: &[f32], chunk: &mut [Line], at: usize) {
    for (values, lines) in values.chunks(LANES).zip(chunk.chunks_exact_mut(CHUNK)) {
        lines[at].0[..values.len()].copy_from_slice(values);
    }
}

impl CrossMoments {
    /// Mean of a\[row\] · b\[col\].
    ///
    /// # Panics
    /// If it lies outside.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        assert!(row < self.rows && col < self.cols, "element ({row}, {col}) of {} by {}", self.rows, self.cols);
        self.lines[col / LANES * self.rows + row].0[col % LANES]
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// What the tokens behind those of `part`, the first ones, gave.
    ///
    /// # Panics
    /// If shapes differ or `part` saw more.
    pub fn without(&self, part: &Self) -> Self {
        assert!(self.shape() == part.shape() && part.tokens <= self.tokens, "a part of the same moments");
        let rest = self.tokens - part.tokens;
        let (all, seen) = (self.tokens as f64 / rest.max(1) as f64, part.tokens as f64 / rest.max(1) as f64);
        let minus = |a: f32, b: f32| (f64::from(a) * all - f64::from(b) * seen) as f32;
        let lines = self.lines.iter().zip(&part.lines).map(|(a, b)| Line(std::array::from_fn(|i| minus(a.0[i], b.0[i])))).collect();
        Self { tokens: rest, lines, ..*self }
    }

    /// `weights` · these moments, `weights` having as many columns as there are rows; on the calling thread, adding to `out`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn times(&self, engine: &Engine, weights: &RowPanels, out: &mut RowPanels) {
        assert!(weights.cols() == self.rows && out.cols() == self.cols && out.rows() == weights.rows(), "products of fitting shapes");
        engine.vectorize(Times { moments: self, weights, out });
    }
}

/// The products of a chunk for some runs of columns.
struct Products<'a> {
    a: &'a [Line],
    b: &'a [Line],
    depth: usize,
    rows: usize,
    of: std::ops::Range<usize>,
    sums: &'a mut [[f64; LANES]],
}

impl Op for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let runs = self.of.len();
        let mut first = 0;
        while first < runs {
            first += match runs - first {
                4.. => self.runs::<S, 4>(s, first),
                2.. => self.runs::<S, 2>(s, first),
                _ => self.runs::<S, 1>(s, first),
            };
        }
    }
}

impl Products<'_> {
    /// `R` runs of columns against all rows; says how many.
    #[inline(always)]
    fn runs<S: Simd, const R: usize>(&mut self, s: S, first: usize) -> usize {
        for row in (0..self.rows).step_by(LANES) {
            self.tile::<S, R, 0>(s, first, row);
            self.tile::<S, R, 1>(s, first, row);
            self.tile::<S, R, 2>(s, first, row);
            self.tile::<S, R, 3>(s, first, row);
        }
        R
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const H: usize>(&mut self, s: S, first: usize, row: usize) {
        let lanes = std::array::from_fn(|r| &self.b[(self.of.start + first + r) * CHUNK..][..self.depth]);
        let acc = tile::<S, R, 4, H>(s, lanes, &self.a[row / LANES * CHUNK..][..self.depth]);
        for (r, acc) in acc.iter().enumerate() {
            let sums = &mut self.sums[(first + r) * self.rows..(first + r + 1) * self.rows];
            for (sums, acc) in sums[(row + 4 * H).min(self.rows)..].iter_mut().zip(acc) {
                let mut values = [0.0; LANES];
                s.store(*acc, &mut values);
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
    }
}

/// Rows of weights times moments.
struct Times<'a> {
    moments: &'a CrossMoments,
    weights: &'a RowPanels,
    out: &'a mut RowPanels,
}

impl Op for Times<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let runs = self.weights.runs();
        let mut first = 0;
        while first < runs {
            first += match runs - first {
                3.. => self.runs::<S, 3>(s, first),
                _ => self.runs::<S, 1>(s, first),
            };
        }
    }
}

impl Times<'_> {
    #[inline(always)]
    fn runs<S: Simd, const R: usize>(&mut self, s: S, first: usize) -> usize {
        for run in 0..self.moments.cols.div_ceil(LANES) {
            self.tile::<S, R, 0>(s, first, run);
            self.tile::<S, R, 1>(s, first, run);
            self.tile::<S, R, 2>(s, first, run);
            self.tile::<S, R, 3>(s, first, run);
        }
        R
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn tile<S: Simd, const R: usize, const H: usize>(&mut self, s: S, first: usize, run: usize) {
        let (rows, padded, out) = (self.moments.rows, self.weights.padded(), self.out.padded());
        let lanes = std::array::from_fn(|r| &self.weights.lines[(first + r) * padded..][..rows]);
        let acc = tile::<S, R, 4, H>(s, lanes, &self.moments.lines[run * rows..][..rows]);
        unroll!(r < R, {
            let lines = &mut self.out.lines[(first + r) * out + run * LANES + 4 * H..][..4];
            unroll!(t < 4, { s.store(s.add(s.load(&lines[t].0), acc[r][t]), &mut lines[t].0) });
        });
    }
}

const _: () = assert!(EDGE.is_multiple_of(LANES), "panels end with whole runs");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::num::NonZeroUsize;

    fn engine(isa: Isa, threads: usize) -> Engine {
        Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    fn numbers(count: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn moments_and_products_equal_their_definition() {
        let engine = engine(Isa::best(), 2);
        for (rows, cols, tokens) in [(1, 3, 5), (40, 16, 700), (17, 130, 513), (65, 172, 30)] {
            let (a, b) = (numbers(tokens * rows, 1), numbers(tokens * cols, 2));
            let mut cross = CrossGram::new(rows, cols);
            let mut first = None;
            for (part, (a, b)) in a.chunks(7 * rows).zip(b.chunks(7 * cols)).enumerate() {
                cross.add(&engine, a, b);
                first = first.or_else(|| (part == 1).then(|| cross.clone().finish(&engine)));
            }
            let found = cross.finish(&engine);
            let mean = |r: usize, c: usize, of: std::ops::Range<usize>| {
                of.clone().map(|t| f64::from(a[t * rows + r]) * f64::from(b[t * cols + c])).sum::<f64>() / of.len() as f64
            };
            let near = |moments: &CrossMoments, of: std::ops::Range<usize>| {
                (0..rows).all(|r| (0..cols).all(|c| (f64::from(moments.at(r, c)) - mean(r, c, of.clone())).abs() < 2e-6))
            };
            assert!(near(&found, 0..tokens), "{rows} {cols}");
            if let Some(first) = first {
                assert!(near(&found.without(&first), 14..tokens), "{rows} {cols}");
            }
            let weights = numbers(19 * rows, 3);
            let mut out = RowPanels::zeros(19, cols);
            found.times(&engine, &RowPanels::from_rows(&weights, rows, None), &mut out);
            for n in 0..19 {
                for c in 0..cols {
                    let expected: f64 = (0..rows).map(|r| f64::from(weights[n * rows + r]) * f64::from(found.at(r, c))).sum();
                    assert!((f64::from(out.at(n, c)) - expected).abs() < 1e-5, "{rows} {cols}");
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_instruction_sets_change_a_bit() {
        let (rows, cols, tokens) = (33, 100, 600);
        let (a, b) = (numbers(tokens * rows, 4), numbers(tokens * cols, 5));
        let gather = |engine: &Engine| {
            let mut cross = CrossGram::new(rows, cols);
            cross.add(engine, &a, &b);
            let moments = cross.finish(engine);
            let mut out = RowPanels::zeros(50, cols);
            moments.times(engine, &RowPanels::from_rows(&numbers(50 * rows, 6), rows, None), &mut out);
            (moments.lines, out)
        };
        let expected = gather(&engine(Isa::best(), 1));
        for (isa, threads) in Isa::available().into_iter().zip([3, 2, 1, 2]) {
            assert!(gather(&engine(isa, threads)) == expected, "{isa}");
        }
    }
}
