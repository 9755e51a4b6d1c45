//! Products of integer weights and int8 activations, or activations cut into int8 digits.
//!
//! y[row, token] = Σ over segments of scale(row) · scale(token) · (Σ code · a − zero · Σ a); what is in brackets is
//! exact in 32 bits, and the rest is written so that every instruction set rounds alike: results are equal bit for bit.

use super::{
    Scratch,
    codes::{Bytes, Codes, Nibbles, Planes, Points, Table, each_octet, unpack},
    digits::DIGITS,
    inputs::{CodeTile, Prepared, tiles},
    ints::Ints,
    layout::Line,
    output::Output,
};
use crate::simd::{LANES, Op, Simd, unroll};
use std::{hint::black_box, marker::PhantomData, ops::Range};

/// How far ahead of its use a weight is asked for. A loop that also computes hides the memory's latency only so.
const PREFETCH: usize = 6 * 1024;

/// One register tile: `R` blocks of rows by `N` tokens of `T / N` columns, `D` accumulators each (two where there are too few others
/// to hide the latency of a dot product).
#[inline(always)]
fn tile<S: Simd, C: Codes, const D: usize, const R: usize, const T: usize, const N: usize>(
    s: S,
    ints: &Ints,
    block: [usize; R],
    lines: [&[Line]; R],
    x: CodeTile<'_>,
) -> [[Lanes; N]; R] {
    let words = x.codes.as_chunks::<T>().0.as_chunks::<2>().0;
    let mut total = [[Lanes([0.0; LANES]); N]; R];
    let levels = s.table(&ints.levels);
    for segment in 0..ints.segments.count() {
        if const { R * T > IN_REGISTERS } {
            // Registers are for the integer sums: what would not fit beside them had better be in memory altogether.
            black_box(&mut total);
        }
        let range = ints.segments.octets(segment);
        let words = &words[range.clone()];
        let mut chunks = [&[][..]; R];
        let range = range.start / C::OCTETS..range.end / C::OCTETS;
        unroll!(r < R, { chunks[r] = &C::chunks(lines[r])[range.clone()][..words.len() / C::OCTETS] });
        let at = block.map(|block| ints.group_at(block, segment));
        let mut acc = [[[s.splat_i(0); T]; R]; D];
        acc[0] = minus_zeros::<S, C, R, T>(s, ints, at, &x.sums.as_chunks::<T>().0[segment]);
        if const { in_pairs::<S>(T) } {
            each_pair(&mut acc[0], |two| s.pair(two));
        }
        for (i, words) in words.chunks_exact(C::OCTETS).enumerate() {
            let mut chunk = [&chunks[0][i]; R];
            unroll!(r < R, { chunk[r] = &chunks[r][i] });
            each_octet!(C, octet, add_octet::<S, C, D, R, T>(s, &mut acc, chunk, &words[octet], (octet, levels)));
        }
        if const { in_pairs::<S>(T) } {
            each_pair(&mut acc[0], |two| s.unpair(two));
        }
        let mut sums = [[s.splat(0.0); T]; R];
        unroll!(r < R, {
            unroll!(t < T, {
                sums[r][t] = s.to_f(if const { D == 2 } { s.add_i(acc[0][r][t], acc[D - 1][r][t]) } else { acc[0][r][t] });
            });
        });
        let mut sums = together::<S, R, T, N>(s, &sums);
        if x.grouped {
            scale_tokens(s, &mut sums, &first_of_each::<T, N>(&x.scales.as_chunks::<T>().0[segment]));
        }
        unroll!(r < R, {
            let scales = ints.scales(s, at[r]);
            unroll!(t < N, { s.store(s.fma(sums[r][t], scales, s.load(&total[r][t].0)), &mut total[r][t].0) });
        });
    }
    total
}

/// Sums of tokens: those of columns, or what the three digits of each say together, in units of the lowest.
#[inline(always)]
fn together<S: Simd, const R: usize, const T: usize, const N: usize>(s: S, columns: &[[S::F; T]; R]) -> [[S::F; N]; R] {
    let mut tokens = [[s.splat(0.0); N]; R];
    unroll!(r < R, {
        unroll!(t < N, {
            tokens[r][t] = columns[r][t * (T / N)];
            if const { T > N } {
                // Where columns are tokens these do not exist, and are not looked at.
                let (middle, high) = (columns[r][(t * (T / N) + 1).min(T - 1)], columns[r][(t * (T / N) + 2).min(T - 1)]);
                tokens[r][t] = s.fma(high, s.splat(65536.0), s.fma(middle, s.splat(256.0), tokens[r][t]));
            }
        });
    });
    tokens
}

/// The scale of the first column of each token.
#[inline(always)]
fn first_of_each<const T: usize, const N: usize>(scales: &[f32; T]) -> [f32; N] {
    let mut first = [0.0; N];
    unroll!(t < N, { first[t] = scales[t * (T / N)] });
    first
}

/// Whether an instruction set multiplies a tile of `tokens` columns two columns at a time.
const fn in_pairs<S: Simd>(tokens: usize) -> bool {
    S::PAIRS && tokens.is_multiple_of(2)
}

/// Replaces the sums of every two tokens.
#[inline(always)]
fn each_pair<I: Copy, const R: usize, const T: usize>(acc: &mut [[I; T]; R], f: impl Fn([I; 2]) -> [I; 2]) {
    unroll!(r < R, {
        for two in acc[r].as_chunks_mut::<2>().0 {
            *two = f(*two);
        }
    });
}

/// Sums in memory; a vector that crossed a cache line would cost twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; LANES]);

/// Sums of a tile that fit into registers beside its integer sums.
const IN_REGISTERS: usize = 8;

/// What integer sums start from: −zero · Σ a.
#[inline(always)]
fn minus_zeros<S: Simd, C: Codes, const R: usize, const T: usize>(s: S, ints: &Ints, at: [usize; R], sums: &[i32; T]) -> [[S::I; T]; R] {
    let bias = if const { C::SMALL } { 0 } else { S::BIAS };
    let mut start = [[s.splat_i(0); T]; R];
    if ints.is_symmetric() {
        let offset = i32::from(ints.offset) - bias;
        // A broadcast from memory takes no arithmetic unit; left alone, the compiler shuffles what it just computed.
        let minus = black_box(sums.map(|sum| -offset * sum));
        unroll!(t < T, { start[0][t] = s.splat_i(minus[t]) });
        return [start[0]; R];
    }
    unroll!(r < R, {
        let zeros = ints.zeros(at[r]).map_or(s.splat_i(0), |zeros| s.add_i(s.load_u8(zeros), s.splat_i(-bias)));
        unroll!(t < T, { start[r][t] = s.mul_i(zeros, s.splat_i(-sums[t])) });
    });
    start
}

/// Adds the products of one octet.
#[inline(always)]
fn add_octet<S: Simd, C: Codes, const D: usize, const R: usize, const T: usize>(
    s: S,
    acc: &mut [[[S::I; T]; R]; D],
    chunk: [&C::Chunk; R],
    words: &[[[i8; 4]; T]; 2],
    (octet, levels): (usize, S::W),
) {
    let mut w = [[s.codes(&Line::ZERO.0); 2]; R];
    unroll!(r < R, {
        w[r] = C::load(s, chunk[r], octet, levels);
        if const { R == 1 } {
            C::prefetch(s, chunk[r], octet, PREFETCH);
        }
    });
    if const { in_pairs::<S>(T) } {
        unroll!(r < R, { w[r] = s.pair_codes(w[r]) });
        let pairs = words.each_ref().map(|half| half.as_chunks::<2>().0);
        unroll!(r < R, {
            for (t, two) in acc[0][r].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let a = [pairs[0][t], pairs[1][t]];
                *two = if const { C::SMALL } { s.dot_paired::<true>(*two, w[r], a) } else { s.dot_paired::<false>(*two, w[r], a) };
            }
        });
        return;
    }
    if const { S::DOTS_IN_TWOS && C::SMALL } {
        unroll!(t < T, {
            let a = [s.quad(&words[0][t]), s.quad(&words[1][t])];
            unroll!(r < R, { acc[0][r][t] = s.dot_two(acc[0][r][t], w[r], a) });
        });
        return;
    }
    unroll!(half < 2, {
        unroll!(t < T, {
            let a = s.quad(&words[half][t]);
            unroll!(r < R, { acc[half % D][r][t] = dot::<S, C>(s, acc[half % D][r][t], w[r][half], a) });
        });
    });
}

#[inline(always)]
fn dot<S: Simd, C: Codes>(s: S, acc: S::I, w: S::W, a: S::A) -> S::I {
    if const { C::SMALL } { s.dot::<true>(acc, w, a) } else { s.dot::<false>(acc, w, a) }
}

#[inline(always)]
fn scale_tokens<S: Simd, const R: usize, const T: usize>(s: S, sums: &mut [[S::F; T]; R], scales: &[f32; T]) {
    unroll!(t < T, {
        let scale = s.splat(scales[t]);
        unroll!(r < R, { sums[r][t] = s.mul(sums[r][t], scale) });
    });
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
    /// All tiles of blocks `blocks`, whose codes are `lines`: a tile's tokens stay in the first-level cache while the
    /// blocks pass, and what is written of a token lies together.
    #[inline(always)]
    fn panels<S: Simd, C: Codes, const R: usize>(&self, s: S, blocks: Range<usize>, lines: &[Line], next: &[Line]) {
        let mut panels = Panels { first: blocks.start, count: blocks.len(), lines, next: &[] };
        let digits = self.inputs.is_digits();
        let passes = tiles(self.tokens.len(), self.inputs.widest()).count().max(1);
        let mut ahead = next.chunks(next.len().div_ceil(passes).max(1));
        for (start, width) in tiles(self.tokens.len(), self.inputs.widest()) {
            panels.next = ahead.next().unwrap_or_default();
            let token = self.tokens.start + start;
            match width {
                4 if digits => self.pass::<S, C, 1, R, 12, 4>(s, &panels, token),
                2 if digits => self.pass::<S, C, 2, R, 6, 2>(s, &panels, token),
                _ if digits => self.pass::<S, C, 2, R, 3, 1>(s, &panels, token),
                12 => self.pass::<S, C, 1, R, 12, 12>(s, &panels, token),
                8 => self.pass::<S, C, 1, R, 8, 8>(s, &panels, token),
                6 => self.pass::<S, C, 1, R, 6, 6>(s, &panels, token),
                4 => self.pass::<S, C, 1, R, 4, 4>(s, &panels, token),
                2 => self.pass::<S, C, 2, R, 2, 2>(s, &panels, token),
                _ => self.pass::<S, C, 2, R, 1, 1>(s, &panels, token),
            }
        }
    }

    /// Entered anew, so that every kind of tile is compiled by itself: one function of them all takes minutes.
    #[inline(always)]
    fn pass<S: Simd, C: Codes, const D: usize, const R: usize, const T: usize, const N: usize>(
        &self,
        s: S,
        panels: &Panels<'_>,
        token: usize,
    ) {
        // Tiles that this instruction set never uses are not compiled for it.
        if const { is_used(S::INT_TILE, R, T, N) } {
            s.vectorize(Pass::<C, D, R, T, N> { product: self, panels, token, codes: PhantomData });
        }
    }

    #[inline(always)]
    fn direct<S: Simd, C: Codes>(&self, s: S) {
        self.panels::<S, C, 1>(s, self.blocks.clone(), self.ints.lines(self.blocks.clone()), &[]);
    }

    #[inline(always)]
    fn blocked<S: Simd, C: Codes>(&mut self, s: S) {
        let (mut scratch, blocks) = (std::mem::take(&mut self.scratch.0), self.blocks.clone());
        let mut lines = self.ints.lines(blocks.clone());
        let next = self.ints.lines(blocks.end..self.ints.blocks().min(blocks.end + blocks.len()));
        if self.ints.bits < 8 {
            let unpacked = 2 * blocks.len() * self.ints.segments.all_octets();
            scratch.resize(scratch.len().max(unpacked), Line::ZERO);
            self.unpack(s, lines, &mut scratch[..unpacked]);
            lines = &scratch[..unpacked];
        }
        if const { S::INT_TILE.0 == 2 } {
            self.panels::<S, C, 2>(s, blocks, lines, next);
        } else {
            self.panels::<S, C, 1>(s, blocks, lines, next);
        }
        self.scratch.0 = scratch;
    }

    /// Unpacks codes that do not take a byte; tiles are compiled once, whatever was unpacked.
    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, packed: &[Line], out: &mut [Line]) {
        let levels = &self.ints.levels;
        match self.ints.bits {
            2 => unpack::<S, Planes<2>>(s, levels, packed, out),
            3 => unpack::<S, Planes<3>>(s, levels, packed, out),
            4 if self.ints.table => unpack::<S, Table>(s, levels, packed, out),
            4 if self.ints.points => unpack::<S, Points>(s, levels, packed, out),
            4 => unpack::<S, Nibbles>(s, levels, packed, out),
            5 => unpack::<S, Planes<5>>(s, levels, packed, out),
            _ => unpack::<S, Planes<6>>(s, levels, packed, out),
        }
    }
}

/// Whether an instruction set with register tiles `tile` uses tiles of `blocks` blocks and `columns` columns for `tokens` tokens.
const fn is_used(tile: (usize, usize), blocks: usize, columns: usize, tokens: usize) -> bool {
    if columns > tokens {
        return columns == DIGITS || columns <= tile.1 && (columns < 12 || blocks == tile.0);
    }
    columns <= tile.1 && (columns != 6 || tile.1 == 6) && (columns < 12 || blocks == tile.0)
}

/// Blocks of rows and their codes, a block after the other.
struct Panels<'a> {
    first: usize,
    count: usize,
    lines: &'a [Line],
    /// Part of the weights that the next task will read: asked for while this one computes, as they come from memory.
    next: &'a [Line],
}

/// The tiles of `N` tokens, `T` columns and `R` blocks each; a block past the last repeats it and is not written.
struct Pass<'a, C, const D: usize, const R: usize, const T: usize, const N: usize> {
    product: &'a IntProduct<'a>,
    panels: &'a Panels<'a>,
    token: usize,
    codes: PhantomData<C>,
}

impl<C: Codes, const D: usize, const R: usize, const T: usize, const N: usize> Op for Pass<'_, C, D, R, T, N> {
    type Output = ();
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { product, panels, token, .. } = self;
        let x = product.inputs.code_tile(token * (T / N), T);
        let n = panels.lines.len() / panels.count;
        let mut ahead = panels.next.chunks(panels.next.len().div_ceil(panels.count.div_ceil(R)).max(1));
        for first in (0..panels.count).step_by(R) {
            for line in ahead.next().unwrap_or_default() {
                s.prefetch(&line.0, 0);
            }
            let of: [usize; R] = std::array::from_fn(|r| (first + r).min(panels.count - 1));
            let block = of.map(|i| panels.first + i);
            let total = tile::<S, C, D, R, T, N>(s, product.ints, block, of.map(|i| &panels.lines[i * n..(i + 1) * n]), x);
            let mut values = [[s.splat(0.0); N]; R];
            unroll!(r < R, {
                unroll!(t < N, { values[r][t] = s.load(&total[r][t].0) });
            });
            unroll!(r < R, {
                if let Some(units) = product.ints.units(block[r]) {
                    let units = s.load(units);
                    unroll!(t < N, { values[r][t] = s.mul(values[r][t], units) });
                }
            });
            if !x.grouped {
                scale_tokens(s, &mut values, &x.scales.as_chunks::<N>().0[0]);
            }
            // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
            unsafe { product.output.write_tile(s, token, block, &values) };
        }
    }
}

impl Op for IntProduct<'_> {
    type Output = ();
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.ints.bits {
            2 if self.direct => return self.direct::<S, Planes<2>>(s),
            3 if self.direct => return self.direct::<S, Planes<3>>(s),
            4 if self.direct && self.ints.table => return self.direct::<S, Table>(s),
            4 if self.direct && self.ints.points => return self.direct::<S, Points>(s),
            4 if self.direct => return self.direct::<S, Nibbles>(s),
            5 if self.direct => return self.direct::<S, Planes<5>>(s),
            6 if self.direct => return self.direct::<S, Planes<6>>(s),
            _ => {}
        }
        if const { S::FAST_SMALL_CODES } && self.ints.small {
            return if self.direct { self.direct::<S, Bytes<true>>(s) } else { self.blocked::<S, Bytes<true>>(s) };
        }
        if self.direct { self.direct::<S, Bytes<false>>(s) } else { self.blocked::<S, Bytes<false>>(s) }
    }
}
