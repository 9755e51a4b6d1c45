//! The float product over panels: blocks of sixteen rows as f32, interleaved, read once a tile of tokens.

use super::{
    Scratch,
    inputs::{Prepared, tiles},
    layout::Line,
    output::Output,
};
use crate::simd::{LANES, Op, Simd, unroll};
use std::ops::Range;

/// Makes the panel of a block.
pub(crate) trait Fill {
    /// Writes the weights of block `block`, `[padded inputs]` of sixteen rows.
    fn fill<S: Simd>(&self, s: S, block: usize, out: &mut [[f32; LANES]]);
}

/// What all panels of a task are multiplied with, and where that goes.
pub(crate) struct Panels<'a> {
    pub(crate) inputs: &'a Prepared,
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
}

/// Multiplies blocks `blocks`, all of whose panels are made first; `inputs` is the padded number of inputs.
#[inline(always)]
pub(crate) fn panels<S: Simd>(s: S, work: Panels<'_>, blocks: Range<usize>, inputs: usize, scratch: &mut Scratch, fill: impl Fill) {
    // A line holds the sixteen rows of one input.
    let lines = blocks.len() * inputs;
    scratch.0.resize(scratch.0.len().max(lines), Line::ZERO);
    let panels: &mut [[f32; LANES]] = bytemuck::cast_slice_mut(&mut scratch.0[..lines]);
    for (block, panel) in blocks.clone().zip(panels.chunks_exact_mut(inputs.max(1))) {
        fill.fill(s, block, panel);
    }
    // Entered anew, so that tiles are compiled once and not for every way to fill a panel.
    s.vectorize(Multiply { work: &work, blocks, panels });
}

/// All tiles of some panels: a tile's tokens stay in a near cache while the blocks pass.
struct Multiply<'a> {
    work: &'a Panels<'a>,
    blocks: Range<usize>,
    panels: &'a [[f32; LANES]],
}

impl Op for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if const { S::FLOAT_TILE.0 == 2 } { self.tiles::<S, 2>(s) } else { self.tiles::<S, 1>(s) }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(&self, s: S) {
        for (start, width) in tiles(self.work.tokens.len(), S::FLOAT_TILE.1) {
            let token = self.work.tokens.start + start;
            match width {
                12 => self.pass::<S, R, 12>(s, token),
                8 => self.pass::<S, R, 8>(s, token),
                6 => self.pass::<S, R, 6>(s, token),
                4 => self.pass::<S, R, 4>(s, token),
                2 => self.pass::<S, R, 2>(s, token),
                _ => self.pass::<S, R, 1>(s, token),
            }
        }
    }

    /// The tiles of `T` tokens, `R` blocks each; a block past the last repeats it and is not written.
    #[inline(always)]
    fn pass<S: Simd, const R: usize, const T: usize>(&self, s: S, token: usize) {
        // Tiles that this instruction set never uses are not compiled for it.
        if const { T > S::FLOAT_TILE.1 || T == 6 && S::FLOAT_TILE.1 != 6 } {
            return;
        }
        let x = self.work.inputs.float_tile(token, T).as_chunks::<T>().0;
        let inputs = self.panels.len() / self.blocks.len();
        for first in (0..self.blocks.len()).step_by(R) {
            let of: [usize; R] = std::array::from_fn(|r| (first + r).min(self.blocks.len() - 1));
            let values = tile::<S, R, T>(s, of.map(|i| &self.panels[i * inputs..(i + 1) * inputs]), x);
            // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
            unsafe { self.work.output.write_tile(s, token, of.map(|i| self.blocks.start + i), &values) };
        }
    }
}

/// One register tile: `R` blocks of rows by `T` tokens.
#[inline(always)]
pub(crate) fn tile<S: Simd, const R: usize, const T: usize>(s: S, weights: [&[[f32; LANES]]; R], x: &[[f32; T]]) -> [[S::F; T]; R] {
    let mut acc = [[s.splat(0.0); T]; R];
    let weights = weights.map(|w| &w[..x.len()]);
    for i in 0..x.len() {
        let mut w = [s.splat(0.0); R];
        unroll!(r < R, { w[r] = s.load(&weights[r][i]) });
        unroll!(t < T, {
            let x = s.splat(x[i][t]);
            unroll!(r < R, { acc[r][t] = s.fma(w[r], x, acc[r][t]) });
        });
    }
    acc
}
