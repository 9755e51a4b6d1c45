//! Second moments of inputs: Σ x·xᵀ over tokens, with mean and largest magnitudes.

use super::{BLOCK, EDGE, Line, PANELS, SymmetricMatrix, block, coordinates, tile::tile};
use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Op, Simd, unroll},
};

/// Tokens whose products are summed in f32 before the sums move to f64.
const CHUNK: usize = 512;

/// Tokens copied together: a few streams of reads, runs of whole cache lines written.
const TOKENS: usize = 8;

/// Gathers Σ x·xᵀ, Σ|x| and max|x| of inputs x, token by token.
///
/// The result depends on the tokens and their order, not on how they are cut into calls, the number of threads or the
/// instruction set: products of every 512 tokens are summed in f32, those sums in f64. It holds one triangle,
/// 4·K² bytes for K inputs, and 2,048·K bytes of tokens that wait for their chunk to fill.
#[derive(Clone, Debug)]
pub struct Gram {
    cols: usize,
    tokens: usize,
    /// Tokens of the chunk being filled, `[runs of sixteen inputs][CHUNK]`.
    chunk: Vec<Line>,
    filled: usize,
    sums: Vec<[f64; LANES]>,
    magnitudes: Vec<Magnitudes>,
}

/// Σ|x| and max|x| of sixteen inputs.
#[derive(Clone, Copy, Debug, Default)]
struct Magnitudes {
    sum: [f64; LANES],
    max: [f32; LANES],
}

/// What a [`Gram`] saw.
#[derive(Clone, Debug)]
pub struct InputMoments {
    /// Tokens seen.
    pub tokens: usize,
    /// Mean of x·xᵀ, in what the inputs are in, squared.
    pub second: SymmetricMatrix,
    /// Mean of |x| of every input.
    pub mean_abs: Vec<f32>,
    /// Largest |x| of every input.
    pub max_abs: Vec<f32>,
}

impl Gram {
    /// Nothing seen yet of `cols` inputs.
    pub fn new(cols: usize) -> Self {
        let (runs, edge) = (cols.div_ceil(LANES), cols.div_ceil(EDGE));
        Self {
            cols,
            tokens: 0,
            chunk: vec![Line::ZERO; runs * CHUNK],
            filled: 0,
            sums: vec![[0.0; LANES]; block(edge, 0) * BLOCK],
            magnitudes: vec![Magnitudes::default(); runs],
        }
    }

    /// Bytes it takes for `cols` inputs.
    pub fn bytes(cols: usize) -> usize {
        2 * SymmetricMatrix::bytes(cols) + cols.div_ceil(LANES) * (CHUNK * size_of::<Line>() + size_of::<Magnitudes>())
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Sees the tokens `x` `[tokens, cols]`.
    ///
    /// # Panics
    /// If `x` does not hold whole tokens.
    pub fn add(&mut self, engine: &Engine, x: &[f32]) {
        if self.cols == 0 {
            return;
        }
        assert!(x.len().is_multiple_of(self.cols), "{} values are no whole number of tokens of {}", x.len(), self.cols);
        let mut rest = x;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((CHUNK - self.filled) * self.cols));
            self.fill(engine, now);
            rest = later;
            if self.filled == CHUNK {
                self.flush(engine);
            }
        }
    }

    /// Copies tokens behind those already in the chunk, sixteen inputs a line.
    fn fill(&mut self, engine: &Engine, x: &[f32]) {
        let (cols, start) = (self.cols, self.filled);
        engine.each_rows(&mut self.chunk, CHUNK, 1, &|first, runs| {
            for (t, tokens) in x.chunks(TOKENS * cols).enumerate() {
                for (run, lines) in runs.chunks_exact_mut(CHUNK).enumerate() {
                    let column = (first + run) * LANES;
                    let width = LANES.min(cols - column);
                    for (token, line) in tokens.chunks_exact(cols).zip(&mut lines[start + t * TOKENS..]) {
                        match token[column..].first_chunk::<LANES>() {
                            Some(values) => line.0 = *values,
                            None => line.0[..width].copy_from_slice(&token[column..]),
                        }
                    }
                }
            }
        });
        self.filled += x.len() / cols;
        self.tokens += x.len() / cols;
    }

    /// Adds the products of the chunk to the sums.
    fn flush(&mut self, engine: &Engine) {
        let (chunk, depth, runs) = (&self.chunk, self.filled, self.cols.div_ceil(LANES));
        let shared = Shared::new(&mut self.sums);
        engine.run(block(runs.div_ceil(PANELS), 0), &|index| {
            // SAFETY: every task has a block of its own.
            let sums = unsafe { shared.part(index * BLOCK..(index + 1) * BLOCK) };
            engine.vectorize(Products { chunk, depth, runs, at: coordinates(index), sums });
        });
        engine.each_rows(&mut self.magnitudes, 1, CHUNK * LANES, &|first, magnitudes| {
            for (run, magnitudes) in magnitudes.iter_mut().enumerate() {
                engine.vectorize(Sizes { lines: &chunk[(first + run) * CHUNK..][..depth], magnitudes });
            }
        });
        self.filled = 0;
    }

    /// What was seen; zeros without a token.
    pub fn finish(mut self, engine: &Engine) -> InputMoments {
        if self.filled > 0 {
            self.flush(engine);
        }
        self.chunk = Vec::new();
        let count = self.tokens.max(1) as f64;
        let second = SymmetricMatrix::from_lower(engine, self.cols, &|r, c| (self.sums[super::line(r, c)][r % LANES] / count) as f32);
        let each = |of: &dyn Fn(&Magnitudes, usize) -> f32| -> Vec<f32> {
            (0..self.cols).map(|i| of(&self.magnitudes[i / LANES], i % LANES)).collect()
        };
        let mean_abs = each(&|m, lane| (m.sum[lane] / count) as f32);
        let max_abs = each(&|m, lane| m.max[lane]);
        InputMoments { tokens: self.tokens, second, mean_abs, max_abs }
    }
}

/// One block of the products of a chunk.
struct Products<'a> {
    chunk: &'a [Line],
    depth: usize,
    runs: usize,
    at: (usize, usize),
    sums: &'a mut [[f64; LANES]],
}

impl Op for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = PANELS.min(self.runs - self.at.0 * PANELS);
        let mut row = 0;
        while row < rows {
            row += if const { S::FLOAT_TILE.0 == 2 } {
                if rows - row >= 3 { self.rows::<S, 3, 8>(s, row) } else { self.rows::<S, 1, 8>(s, row) }
            } else {
                self.rows::<S, 1, 4>(s, row)
            };
        }
    }
}

impl Products<'_> {
    /// `R` runs of rows against all columns of the block; says how many runs.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const T: usize>(&mut self, s: S, row: usize) -> usize {
        let columns = PANELS.min(self.runs - self.at.1 * PANELS);
        // Above the diagonal nothing is needed.
        let columns = if self.at.0 == self.at.1 { columns.min(row + R) } else { columns };
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
        let run = |run: usize| &self.chunk[run * CHUNK..][..self.depth];
        let lanes = std::array::from_fn(|r| run(self.at.0 * PANELS + row + r));
        let columns = column * LANES + H * T..column * LANES + (H + 1) * T;
        for r in 0..R {
            for sums in &self.sums[(row + r) * EDGE + columns.start..][..T] {
                // A line of sums is two cache lines.
                s.prefetch(bytemuck::cast_slice(sums), 0);
                s.prefetch(bytemuck::cast_slice(sums), 64);
            }
        }
        let acc = tile::<S, R, T, H>(s, lanes, run(self.at.1 * PANELS + column));
        unroll!(r < R, {
            let lines = &mut self.sums[(row + r) * EDGE + columns.start..][..T];
            unroll!(t < T, {
                let mut values = [0.0; LANES];
                s.store(acc[r][t], &mut values);
                for (sum, value) in lines[t].iter_mut().zip(values) {
                    *sum += f64::from(value);
                }
            });
        });
    }
}

/// Magnitudes of sixteen inputs over a chunk.
struct Sizes<'a> {
    lines: &'a [Line],
    magnitudes: &'a mut Magnitudes,
}

impl Op for Sizes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(0.0);
        let (mut sum, mut max) = (zero, s.load(&self.magnitudes.max));
        for line in self.lines {
            let x = s.load(&line.0);
            let size = s.max(x, s.sub(zero, x));
            sum = s.add(sum, size);
            max = s.max(max, size);
        }
        let mut sums = [0.0; LANES];
        s.store(sum, &mut sums);
        s.store(max, &mut self.magnitudes.max);
        for (total, sum) in self.magnitudes.sum.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::num::NonZeroUsize;

    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn gather(isa: Isa, threads: usize, cols: usize, x: &[f32], calls: usize) -> InputMoments {
        let engine = Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap();
        let mut gram = Gram::new(cols);
        x.chunks(calls * cols).for_each(|x| gram.add(&engine, x));
        assert_eq!(gram.tokens() * cols, x.len());
        gram.finish(&engine)
    }

    #[test]
    fn moments_equal_their_definition() {
        for (cols, tokens) in [(1, 3), (16, 1), (40, 700), (130, 33), (172, 513)] {
            let x = numbers(tokens * cols);
            let found = gather(Isa::best(), 2, cols, &x, 100);
            let mean = |f: &dyn Fn(&[f32]) -> f64| x.chunks(cols).map(f).sum::<f64>() / tokens as f64;
            for i in 0..cols {
                for j in 0..=i {
                    let expected = mean(&|x| f64::from(x[i]) * f64::from(x[j]));
                    assert!((f64::from(found.second.at(i, j)) - expected).abs() < 1e-6, "{cols} {i} {j}");
                }
                assert!((f64::from(found.mean_abs[i]) - mean(&|x| f64::from(x[i].abs()))).abs() < 1e-6);
                assert_eq!(found.max_abs[i], x.chunks(cols).fold(0.0, |m: f32, x| m.max(x[i].abs())));
            }
        }
    }

    #[test]
    fn neither_calls_nor_threads_nor_instruction_sets_change_a_bit() {
        let (cols, tokens) = (150, 1100);
        let x = numbers(tokens * cols);
        let expected = gather(Isa::best(), 1, cols, &x, tokens);
        for (isa, threads, calls) in Isa::available().into_iter().zip([1, 2, 3, 2]).map(|(isa, n)| (isa, n, 97 * n)) {
            let found = gather(isa, threads, cols, &x, calls);
            assert_eq!(found.second.lines, expected.second.lines, "{isa}");
            assert_eq!((&found.mean_abs, &found.max_abs), (&expected.mean_abs, &expected.max_abs), "{isa}");
        }
    }

    #[test]
    fn a_value_that_is_not_finite_shows() {
        let mut x = numbers(60 * 20);
        x[333] = f32::NAN;
        assert!(gather(Isa::best(), 1, 20, &x, 60).second.at(13, 13).is_nan());
    }
}
