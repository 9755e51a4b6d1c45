//! Products of integer weights and int8 activations.
//!
//! y[row, token] = Σ over segments of scale(row) · scale(token) · (Σ code · a − zero · Σ a); what is in brackets is
//! exact in 32 bits, and the rest is written so that every instruction set rounds alike: results are equal bit for bit.

use super::{
    Scratch,
    codes::{Bytes, Codes, Nibbles, unpack},
    inputs::{CodeTile, Prepared, tiles},
    ints::Ints,
    layout::Line,
    output::Output,
};
use crate::simd::{Op, Simd};
use std::ops::Range;

/// How far ahead of its use a weight is asked for. A loop that also computes hides the memory's latency only so.
const PREFETCH: usize = 6 * 1024;

/// One register tile: `R` blocks of rows by `T` tokens, `D` accumulators each (two where there are too few others to
/// hide the latency of a dot product).
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn tile<S: Simd, C: Codes, const D: usize, const R: usize, const T: usize>(
    s: S,
    ints: &Ints,
    block: usize,
    lines: [&[Line]; R],
    x: CodeTile<'_>,
    prefetch: bool,
) -> [[S::F; T]; R] {
    let words = x.codes.as_chunks::<T>().0.as_chunks::<2>().0;
    let mut total = [[s.splat(0.0); T]; R];
    for segment in 0..ints.segments.count() {
        let range = ints.segments.octets(segment);
        let sums = &x.sums[segment * T..(segment + 1) * T];
        let mut acc = [[[s.splat_i(0); T]; R]; D];
        for r in 0..R {
            match ints.zeros(ints.group_at(block + r, segment)) {
                None => (0..T).for_each(|t| acc[0][r][t] = s.splat_i(-(i32::from(ints.offset)) * sums[t])),
                Some(zeros) => {
                    let zeros = s.load_u8(zeros);
                    (0..T).for_each(|t| acc[0][r][t] = s.mul_i(zeros, s.splat_i(-sums[t])));
                }
            }
        }
        let words = &words[range.clone()];
        let mut octets = [&[][..]; R];
        for r in 0..R {
            octets[r] = &C::octets(lines[r])[range.clone()];
            assert_eq!(octets[r].len(), words.len(), "weights and inputs have the same octets");
        }
        for i in 0..words.len() {
            let mut w = [[s.codes(&Line::ZERO.0); 2]; R];
            for r in 0..R {
                w[r] = C::load(s, &octets[r][i]);
                if prefetch {
                    C::prefetch(s, &octets[r][i], PREFETCH);
                }
            }
            for half in 0..2 {
                let d = half % D;
                for t in 0..T {
                    let a = s.quad(&words[i][half][t]);
                    for r in 0..R {
                        acc[d][r][t] = if C::SMALL { s.dot::<true>(acc[d][r][t], w[r][half], a) } else { s.dot::<false>(acc[d][r][t], w[r][half], a) };
                    }
                }
            }
        }
        for r in 0..R {
            let scales = ints.scales(s, ints.group_at(block + r, segment));
            for t in 0..T {
                let sum = if D == 2 { s.add_i(acc[0][r][t], acc[D - 1][r][t]) } else { acc[0][r][t] };
                let mut sum = s.to_f(sum);
                if x.grouped {
                    sum = s.mul(sum, s.splat(x.scales[segment * T + t]));
                }
                total[r][t] = s.fma_exact(sum, scales, total[r][t]);
            }
        }
    }
    if !x.grouped {
        for r in 0..R {
            for t in 0..T {
                total[r][t] = s.mul(total[r][t], s.splat(x.scales[t]));
            }
        }
    }
    total
}

/// A product of some blocks of rows with some tokens.
pub(crate) struct IntProduct<'a> {
    pub(crate) ints: &'a Ints,
    pub(crate) inputs: &'a Prepared,
    pub(crate) blocks: Range<usize>,
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
    /// Whether codes are read once, straight from memory (few tokens), or unpacked first and read many times.
    pub(crate) direct: bool,
    pub(crate) scratch: &'a mut Scratch,
}

impl IntProduct<'_> {
    /// All tiles of `R` blocks from `block` on.
    #[inline(always)]
    fn panel<S: Simd, C: Codes, const R: usize>(&self, s: S, block: usize, lines: [&[Line]; R]) {
        let first = self.tokens.start;
        for (start, width) in tiles(self.tokens.len(), S::INT_TILE.1) {
            let token = first + start;
            match width {
                12 => self.one::<S, C, 1, R, 12>(s, block, lines, token),
                8 => self.one::<S, C, 1, R, 8>(s, block, lines, token),
                6 => self.one::<S, C, 1, R, 6>(s, block, lines, token),
                4 => self.one::<S, C, 1, R, 4>(s, block, lines, token),
                2 => self.one::<S, C, 2, R, 2>(s, block, lines, token),
                _ => self.one::<S, C, 2, R, 1>(s, block, lines, token),
            }
        }
    }

    #[inline(always)]
    fn one<S: Simd, C: Codes, const D: usize, const R: usize, const T: usize>(&self, s: S, block: usize, lines: [&[Line]; R], token: usize) {
        if const { T > S::INT_TILE.1 } {
            return;
        }
        let values = tile::<S, C, D, R, T>(s, self.ints, block, lines, self.inputs.code_tile(token, T), self.direct);
        for (r, values) in values.into_iter().enumerate() {
            for (t, value) in values.into_iter().enumerate() {
                // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
                unsafe { self.output.write(s, token + t, block + r, value) };
            }
        }
    }

    #[inline(always)]
    fn direct<S: Simd, C: Codes>(&self, s: S) {
        for block in self.blocks.clone() {
            self.panel::<S, C, 1>(s, block, [self.ints.block(block)]);
        }
    }

    #[inline(always)]
    fn blocked<S: Simd, C: Codes>(&mut self, s: S) {
        let mut block = self.blocks.start;
        let lines = 2 * self.ints.segments.all_octets();
        let mut scratch = std::mem::take(&mut self.scratch.0);
        while block < self.blocks.end {
            let count = S::INT_TILE.0.min(self.blocks.end - block);
            if self.ints.nibbles {
                scratch.resize(scratch.len().max(count * lines), Line::ZERO);
                for r in 0..count {
                    unpack(s, self.ints.block(block + r), &mut scratch[r * lines..(r + 1) * lines]);
                }
            }
            let panel = |r: usize| if self.ints.nibbles { &scratch[r * lines..(r + 1) * lines] } else { self.ints.block(block + r) };
            if const { S::INT_TILE.0 == 2 } && count == 2 {
                self.panel::<S, C, 2>(s, block, [panel(0), panel(1)]);
            } else {
                self.panel::<S, C, 1>(s, block, [panel(0)]);
            }
            block += count;
        }
        self.scratch.0 = scratch;
    }
}

impl Op for IntProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if self.direct && self.ints.nibbles {
            return self.direct::<S, Nibbles>(s);
        }
        if const { S::FAST_SMALL_CODES } && self.ints.small {
            return if self.direct { self.direct::<S, Bytes<true>>(s) } else { self.blocked::<S, Bytes<true>>(s) };
        }
        if self.direct { self.direct::<S, Bytes<false>>(s) } else { self.blocked::<S, Bytes<false>>(s) }
    }
}
