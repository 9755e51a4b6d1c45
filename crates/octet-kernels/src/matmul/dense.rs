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

/// Chunks that are read between two prefetches, and accumulators of a row.
const RUN: usize = 4;
/// How far ahead of its use a weight is asked for.
const PREFETCH: usize = 8 * 1024;

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

    /// One block of rows by `T` tokens, row after row: one stream from memory is faster than several.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn one<S: Simd, E: Element, const T: usize>(&self, s: S, block: usize, rows: usize, token: usize) {
        let cols = self.dense.cols;
        let x: [&[f32]; T] = std::array::from_fn(|t| &self.x[(token + t) * cols..(token + t + 1) * cols]);
        let mut out = [[0.0; LANES]; T];
        for row in 0..rows {
            let sums = dots::<S, E, T>(s, self.dense.row(block * LANES + row), x);
            unroll!(t < T, { out[t][row] = sums[t] });
        }
        let mut values = [s.splat(0.0); T];
        unroll!(t < T, { values[t] = s.load(&out[t]) });
        // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
        unsafe { self.output.write_tile(s, token, [block], &[values]) };
    }
}

/// Dot products of a row of weights with `T` rows of inputs.
#[inline(always)]
fn dots<S: Simd, E: Element, const T: usize>(s: S, weights: &[u8], x: [&[f32]; T]) -> [f32; T] {
    let mut acc = [[s.splat(0.0); RUN]; T];
    let (chunks, rest) = E::chunks(weights);
    let inputs = x.map(|x| &x.as_chunks::<LANES>().0[..chunks.len()]);
    let (runs, last) = chunks.as_chunks::<RUN>();
    let run_inputs = inputs.map(|x| &x.as_chunks::<RUN>().0[..runs.len()]);
    for (i, run) in runs.iter().enumerate() {
        unroll!(a < RUN, {
            if (a * size_of::<E::Chunk>()).is_multiple_of(64) {
                s.prefetch(run[a].as_ref(), PREFETCH);
            }
            let w = E::load(s, &run[a]);
            unroll!(t < T, { acc[t][a] = s.fma(w, s.load(&run_inputs[t][i][a]), acc[t][a]) });
        });
    }
    for (i, chunk) in last.iter().enumerate() {
        let w = E::load(s, chunk);
        unroll!(t < T, { acc[t][0] = s.fma(w, s.load(&inputs[t][runs.len() * RUN + i]), acc[t][0]) });
    }
    if !rest.is_empty() {
        let mut chunk = E::ZERO;
        chunk.as_mut()[..rest.len()].copy_from_slice(rest);
        let w = E::load(s, &chunk);
        unroll!(t < T, {
            let mut last = [0.0; LANES];
            let rest = &x[t][chunks.len() * LANES..];
            last[..rest.len()].copy_from_slice(rest);
            acc[t][1] = s.fma(w, s.load(&last), acc[t][1]);
        });
    }
    acc.map(|acc| s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]))))
}

struct FillDense<'a, E>(&'a Dense, std::marker::PhantomData<E>);

impl<E: Element> float::Fill for FillDense<'_, E> {
    /// Converts and transposes sixteen rows.
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, block: usize, out: &mut [[f32; LANES]]) {
        let rows = LANES.min(self.0.rows - block * LANES);
        let parts: [_; LANES] = std::array::from_fn(|lane| E::chunks(if lane < rows { self.0.row(block * LANES + lane) } else { &[] }));
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let mut square = [s.splat(0.0); LANES];
            for (square, (chunks, rest)) in square.iter_mut().zip(parts) {
                let mut last = E::ZERO;
                let chunk = chunks.get(i).unwrap_or_else(|| {
                    last.as_mut()[..rest.len()].copy_from_slice(rest);
                    &last
                });
                *square = E::load(s, chunk);
            }
            for (column, out) in s.transpose(square).into_iter().zip(out) {
                s.store(column, out);
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
