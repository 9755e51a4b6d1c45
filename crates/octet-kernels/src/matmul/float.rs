//! The float product over panels: blocks of sixteen rows as f32, interleaved, read once a tile of tokens.

use super::{
    Scratch,
    inputs::{Prepared, tiles},
    layout::Line,
    output::Output,
};
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// Makes the panel of a block.
pub(crate) trait Fill {
    /// Writes the weights of block `block`, `[padded inputs]` of sixteen rows.
    fn fill<S: Simd>(&self, s: S, block: usize, out: &mut [[f32; LANES]]);
}

/// A product of some blocks of rows with some tokens.
pub(crate) struct Panels<'a> {
    pub(crate) inputs: &'a Prepared,
    pub(crate) blocks: Range<usize>,
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
}

/// Multiplies block by block; `inputs` is the padded number of inputs.
#[inline(always)]
pub(crate) fn panels<S: Simd>(s: S, work: Panels<'_>, inputs: usize, scratch: &mut Scratch, fill: impl Fill) {
    let mut block = work.blocks.start;
    let rows = S::FLOAT_TILE.0;
    // A line holds the sixteen rows of one input.
    scratch.0.resize(scratch.0.len().max(rows * inputs), Line::ZERO);
    while block < work.blocks.end {
        let count = rows.min(work.blocks.end - block);
        let panel: &mut [[f32; LANES]] = bytemuck::cast_slice_mut(&mut scratch.0[..count * inputs]);
        for r in 0..count {
            fill.fill(s, block + r, &mut panel[r * inputs..(r + 1) * inputs]);
        }
        if const { S::FLOAT_TILE.0 == 2 } && count == 2 {
            let (first, second) = panel.split_at(inputs);
            work.panel::<S, 2>(s, block, [first, second]);
        } else {
            work.panel::<S, 1>(s, block, [panel]);
        }
        block += count;
    }
}

impl Panels<'_> {
    #[inline(always)]
    fn panel<S: Simd, const R: usize>(&self, s: S, block: usize, weights: [&[[f32; LANES]]; R]) {
        for (start, width) in tiles(self.tokens.len(), S::FLOAT_TILE.1) {
            let token = self.tokens.start + start;
            match width {
                12 => self.one::<S, R, 12>(s, block, weights, token),
                8 => self.one::<S, R, 8>(s, block, weights, token),
                6 => self.one::<S, R, 6>(s, block, weights, token),
                4 => self.one::<S, R, 4>(s, block, weights, token),
                2 => self.one::<S, R, 2>(s, block, weights, token),
                _ => self.one::<S, R, 1>(s, block, weights, token),
            }
        }
    }

    #[inline(always)]
    fn one<S: Simd, const R: usize, const T: usize>(&self, s: S, block: usize, weights: [&[[f32; LANES]]; R], token: usize) {
        if const { T > S::FLOAT_TILE.1 } {
            return;
        }
        let values = tile::<S, R, T>(s, weights, self.inputs.float_tile(token, T).as_chunks::<T>().0);
        for (r, values) in values.into_iter().enumerate() {
            for (t, value) in values.into_iter().enumerate() {
                // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
                unsafe { self.output.write(s, token + t, block + r, value) };
            }
        }
    }
}

/// One register tile: `R` blocks of rows by `T` tokens.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(crate) fn tile<S: Simd, const R: usize, const T: usize>(s: S, weights: [&[[f32; LANES]]; R], x: &[[f32; T]]) -> [[S::F; T]; R] {
    let mut acc = [[s.splat(0.0); T]; R];
    let weights = weights.map(|w| &w[..x.len()]);
    for i in 0..x.len() {
        let mut w = [s.splat(0.0); R];
        for r in 0..R {
            w[r] = s.load(&weights[r][i]);
        }
        for t in 0..T {
            let x = s.splat(x[i][t]);
            for r in 0..R {
                acc[r][t] = s.fma(w[r], x, acc[r][t]);
            }
        }
    }
    acc
}
