//! Products of float weights, read where the file is mapped: rows of F32, F16 or BF16 at any alignment.

use super::{
    Scratch,
    float::{self, Panels},
    inputs::Prepared,
    output::Output,
};
use crate::simd::{LANES, Op, Simd, unroll};
use half::{bf16, f16};
use octet_tensor::{Bytes, Dtype};
use std::ops::Range;

/// Float weights `[rows, cols]`, row-major.
pub(crate) struct Dense {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dtype: Dtype,
    pub(crate) bytes: Bytes,
}

impl Dense {
    /// Decodes row `row`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.row(row);
        match self.dtype {
            Dtype::F16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = f16::from_le_bytes(*b).to_f32()),
            Dtype::Bf16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = bf16::from_le_bytes(*b).to_f32()),
            _ => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b)),
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[u8] {
        let size = self.cols * self.dtype.size();
        &self.bytes[row * size..(row + 1) * size]
    }
}

/// An element type: how sixteen of them become lanes.
trait Element {
    /// Sixteen elements.
    type Chunk: Copy + AsRef<[u8]> + AsMut<[u8]>;
    const ZERO: Self::Chunk;
    fn chunks(row: &[u8]) -> (&[Self::Chunk], &[u8]);
    fn load<S: Simd>(s: S, chunk: &Self::Chunk) -> S::F;
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $load:ident) => {
        $(#[$doc])*
        struct $name;
        impl Element for $name {
            type Chunk = [u8; $bytes];
            const ZERO: Self::Chunk = [0; $bytes];
            #[inline(always)]
            fn chunks(row: &[u8]) -> (&[Self::Chunk], &[u8]) {
                row.as_chunks()
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, chunk: &Self::Chunk) -> S::F {
                s.$load(chunk)
            }
        }
    };
}

element!(/// binary32
    F32, 64, load_bytes);
element!(/// binary16
    F16, 32, load_f16);
element!(/// bfloat16
    Bf16, 32, load_bf16);

/// A product of some blocks of sixteen rows with some tokens.
pub(crate) struct DenseProduct<'a> {
    pub(crate) dense: &'a Dense,
    /// The inputs as they are, `[tokens, cols]`.
    pub(crate) x: &'a [f32],
    /// The inputs in tiles, when there are many tokens.
    pub(crate) inputs: Option<&'a Prepared>,
    pub(crate) blocks: Range<usize>,
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
    pub(crate) scratch: &'a mut Scratch,
}

/// Rows whose streams are read side by side.
const STREAMS: usize = 4;

impl DenseProduct<'_> {
    #[inline(always)]
    fn of<S: Simd, E: Element>(&mut self, s: S) {
        let Some(inputs) = self.inputs else { return self.direct::<S, E>(s) };
        let work = Panels { inputs, tokens: self.tokens.clone(), output: self.output };
        let padded = self.dense.cols.next_multiple_of(8);
        float::panels(s, work, self.blocks.clone(), padded, self.scratch, FillDense::<E>(self.dense, std::marker::PhantomData));
    }

    #[inline(always)]
    fn direct<S: Simd, E: Element>(&self, s: S) {
        for block in self.blocks.clone() {
            let rows = LANES.min(self.dense.rows - block * LANES);
            let mut token = self.tokens.start;
            while token < self.tokens.end {
                match self.tokens.end - token {
                    1 => self.one::<S, E, 1>(s, block, rows, token),
                    2 | 3 => self.one::<S, E, 2>(s, block, rows, token),
                    _ => self.one::<S, E, 4>(s, block, rows, token),
                }
                token += match self.tokens.end - token {
                    1 => 1,
                    2 | 3 => 2,
                    _ => 4,
                };
            }
        }
    }

    /// One block of rows by `T` tokens, a few rows at a time.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn one<S: Simd, E: Element, const T: usize>(&self, s: S, block: usize, rows: usize, token: usize) {
        let cols = self.dense.cols;
        let mut x = [&self.x[..0]; T];
        for t in 0..T {
            x[t] = &self.x[(token + t) * cols..(token + t + 1) * cols];
        }
        let mut out = [[0.0; LANES]; T];
        for first in (0..rows).step_by(STREAMS) {
            // Rows past the last repeat it: their results are not written.
            let mut weights = [&[][..]; STREAMS];
            for (r, weights) in weights.iter_mut().enumerate() {
                *weights = self.dense.row(block * LANES + (first + r).min(rows - 1));
            }
            let sums = dots::<S, E, T>(s, weights, x);
            for t in 0..T {
                out[t][first..first + STREAMS].copy_from_slice(&sums[t]);
            }
        }
        let mut values = [s.splat(0.0); T];
        for t in 0..T {
            values[t] = s.load(&out[t]);
        }
        // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
        unsafe { self.output.write_tile(s, token, [block], &[values]) };
    }
}

/// Dot products of a few rows of weights with `T` rows of inputs.
#[inline(always)]
fn dots<S: Simd, E: Element, const T: usize>(s: S, weights: [&[u8]; STREAMS], x: [&[f32]; T]) -> [[f32; STREAMS]; T] {
    let mut acc = [[s.splat(0.0); STREAMS]; T];
    let chunks = weights.map(|w| E::chunks(w).0);
    let n = x[0].len() / LANES;
    let chunks = chunks.map(|c| &c[..n]);
    let inputs = x.map(|x| &x.as_chunks::<LANES>().0[..n]);
    let ahead = (STREAMS * weights[0].len()).clamp(2048, 8192);
    for i in 0..n {
        unroll!(r < STREAMS, {
            s.prefetch(chunks[r][i].as_ref(), ahead);
            let w = E::load(s, &chunks[r][i]);
            unroll!(t < T, { acc[t][r] = s.fma(w, s.load(&inputs[t][i]), acc[t][r]) });
        });
    }
    if !x[0].len().is_multiple_of(LANES) {
        unroll!(r < STREAMS, {
            let rest = E::chunks(weights[r]).1;
            let mut chunk = E::ZERO;
            chunk.as_mut()[..rest.len()].copy_from_slice(rest);
            let w = E::load(s, &chunk);
            unroll!(t < T, {
                let mut last = [0.0; LANES];
                last[..x[t].len() - n * LANES].copy_from_slice(&x[t][n * LANES..]);
                acc[t][r] = s.fma(w, s.load(&last), acc[t][r]);
            });
        });
    }
    let mut out = [[0.0; STREAMS]; T];
    unroll!(t < T, {
        unroll!(r < STREAMS, { out[t][r] = s.sum(acc[t][r]) });
    });
    out
}

struct FillDense<'a, E>(&'a Dense, std::marker::PhantomData<E>);

impl<E: Element> float::Fill for FillDense<'_, E> {
    /// Converts and transposes sixteen rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn fill<S: Simd>(&self, s: S, block: usize, out: &mut [[f32; LANES]]) {
        let rows = LANES.min(self.0.rows - block * LANES);
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let mut square = [[0.0; LANES]; LANES];
            for lane in 0..rows {
                let (chunks, rest) = E::chunks(self.0.row(block * LANES + lane));
                let mut last = E::ZERO;
                let chunk = chunks.get(i).unwrap_or_else(|| {
                    last.as_mut()[..rest.len()].copy_from_slice(rest);
                    &last
                });
                s.store(E::load(s, chunk), &mut square[lane]);
            }
            for (k, out) in out.iter_mut().enumerate() {
                for lane in 0..LANES {
                    out[lane] = square[lane][k];
                }
            }
        }
    }
}

impl Op for DenseProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.dense.dtype {
            Dtype::F16 => self.of::<S, F16>(s),
            Dtype::Bf16 => self.of::<S, Bf16>(s),
            _ => self.of::<S, F32>(s),
        }
    }
}
