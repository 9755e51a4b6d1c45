//! A task over a cache of integers: scores and weighed values are integer dot products.
//!
//! Queries are quantized a row at a time, weights a row of a run of keys at a time. With 16-bit codes one integer stands
//! for a number, and scales are chosen so that no sum of products leaves 32 bits. With 8-bit codes two integers do, high
//! and low part, each a row of the products, so that what is rounded is the cache alone.

use super::{
    append::{extent, load_part, short_scale},
    softmax::{RowState, seen_in, soften},
    task::{Attend, KEYS, KeyRun, Tile, ahead, write},
};
use crate::{
    matmul::{Line, tiles},
    simd::{LANES, Simd, unroll},
};
use std::ops::Range;

/// Bound of the sum of a run's weights as codes: times a value's largest code it fits 32 bits, the rounding of the weights included.
const LARGEST_SUM: f32 = 65_000.0;
/// Below that weights and values count as zero: their quotients would not be finite.
const LEAST: f32 = 1e-35;
/// Words that sixteen numbers become, all planes together.
const WORDS: usize = 8;
/// Words that the weights of a line are apart: one length for both widths, so that a tile's lines are one array.
const ROW: usize = KEYS / 2;

/// Codes of a cache and the integers they are multiplied by.
pub(super) trait Codes: Copy {
    /// Codes of a word of a line.
    const PACK: usize;
    /// Integers that stand for a query's element or a weight.
    const PLANES: usize;
    /// Sixteen words of codes.
    type Line<S: Simd>: Copy;
    /// A word of the other side, the same in every lane.
    type Word<S: Simd>: Copy;

    /// What codes are larger by where they are multiplied than they stand for.
    fn offset<S: Simd>() -> i32;
    fn line<S: Simd>(s: S, line: &Line) -> Self::Line<S>;
    fn word<S: Simd>(s: S, word: i32) -> Self::Word<S>;
    fn dot<S: Simd>(s: S, acc: S::I, line: Self::Line<S>, word: Self::Word<S>) -> S::I;
    /// Scale of a query from its largest magnitude and its length.
    fn query_scale(largest: f32, length: f32) -> f32;
    /// Scale of weights (times the scales of their values) from the largest and their sum.
    fn weight_scale(largest: f32, sum: f32) -> f32;
    /// Sixteen numbers in units of their scale as integers, `[planes][words]`, and each plane's lanes.
    fn split<S: Simd>(s: S, v: S::F) -> ([i32; WORDS], [S::I; 2]);
    /// What the sums of the planes stand for.
    fn value<S: Simd>(s: S, planes: &[S::I]) -> S::F;
}

/// 16-bit codes.
#[derive(Clone, Copy)]
pub(super) struct Shorts;

impl Codes for Shorts {
    const PACK: usize = 2;
    const PLANES: usize = 1;
    type Line<S: Simd> = S::I;
    type Word<S: Simd> = S::I;

    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        0
    }
    #[inline(always)]
    fn line<S: Simd>(s: S, line: &Line) -> S::I {
        s.pairs(&line.0)
    }
    #[inline(always)]
    fn word<S: Simd>(s: S, word: i32) -> S::I {
        s.splat_i(word)
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, line: S::I, word: S::I) -> S::I {
        s.dot_pairs(acc, line, word)
    }
    #[inline(always)]
    fn query_scale(largest: f32, length: f32) -> f32 {
        short_scale(largest, length)
    }
    #[inline(always)]
    fn weight_scale(largest: f32, sum: f32) -> f32 {
        let (by_largest, by_sum) = (largest / 32767.0, sum / LARGEST_SUM);
        // Not `max`, which would drop a NaN.
        if by_sum < by_largest { by_largest } else { by_sum }
    }
    #[inline(always)]
    fn split<S: Simd>(s: S, v: S::F) -> ([i32; WORDS], [S::I; 2]) {
        let mut codes = [0i16; LANES];
        s.round_shorts(v, &mut codes);
        (bytemuck::cast(codes), [s.splat_i(0); 2])
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, planes: &[S::I]) -> S::F {
        s.to_f(planes[0])
    }
}

/// 8-bit codes, stored unsigned.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

impl Codes for Bytes {
    const PACK: usize = 4;
    const PLANES: usize = 2;
    type Line<S: Simd> = S::W;
    type Word<S: Simd> = S::A;

    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        128 - S::BIAS
    }
    #[inline(always)]
    fn line<S: Simd>(s: S, line: &Line) -> S::W {
        s.codes(&line.0)
    }
    #[inline(always)]
    fn word<S: Simd>(s: S, word: i32) -> S::A {
        s.quad(&word.to_le_bytes().map(|byte| byte as i8))
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, line: S::W, word: S::A) -> S::I {
        s.dot::<false>(acc, line, word)
    }
    #[inline(always)]
    fn query_scale(largest: f32, _: f32) -> f32 {
        largest / 127.0
    }
    #[inline(always)]
    fn weight_scale(largest: f32, sum: f32) -> f32 {
        if sum.is_nan() { sum } else { largest / 127.0 }
    }
    #[inline(always)]
    fn split<S: Simd>(s: S, v: S::F) -> ([i32; WORDS], [S::I; 2]) {
        let mut codes = [[0i8; LANES]; 2];
        let high = s.round_codes(v, &mut codes[0]);
        let low = s.round_codes(s.mul(s.sub(v, s.to_f(high)), s.splat(256.0)), &mut codes[1]);
        (bytemuck::cast(codes), [high, low])
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, planes: &[S::I]) -> S::F {
        s.fma(s.to_f(planes[1]), s.splat(1.0 / 256.0), s.to_f(planes[0]))
    }
}

/// Rows of the widest register tile.
const fn widest<S: Simd, C: Codes>() -> usize {
    let rows = S::INT_TILE.1 / C::PLANES;
    if rows == 0 { 1 } else { rows }
}

/// Whether [`tiles`] never cuts tiles of so many rows, or they are not `planes` planes of whole rows.
const fn unused<S: Simd, C: Codes>(rows: usize, lanes: usize) -> bool {
    rows * C::PLANES != lanes || rows > widest::<S, C>() || rows == 6 && widest::<S, C>() != 6
}

/// A task's buffers; a row is a token and a query head, a line of a register tile is a plane of a row.
struct Rows<'a> {
    /// Queries, in tiles as [`tiles`] cuts the rows: `[tiles][words][lines of the tile]`.
    q: &'a mut [i32],
    /// Where sums of scores start, since codes are stored with an offset: `[tiles][key groups][lines of the tile]`.
    q_start: &'a mut [i32],
    /// Scales of the queries times the scale of the scores.
    q_scale: &'a mut [f32],
    /// `[rows, KEYS]`: scores, then weights.
    scores: &'a mut [[[f32; LANES]; KEYS / LANES]],
    /// Weights as integers, `[lines][ROW]`.
    weights: &'a mut [i32],
    /// Where sums of weighed values start, `[lines]`.
    start: &'a mut [i32],
    /// `[rows, dim]`, dimensions padded to whole vectors: values weighed so far.
    acc: &'a mut [[f32; LANES]],
    state: &'a mut [RowState],
}

/// How the dimensions of keys and values are laid out.
#[derive(Clone, Copy)]
struct Shape {
    /// Words of a key.
    words: usize,
    /// Words of a key that share a scale, and how many such groups there are.
    group: usize,
    groups: usize,
    /// Vectors of a value.
    chunks: usize,
}

/// Runs a task.
#[inline(always)]
pub(super) fn attend<S: Simd, C: Codes>(s: S, task: Attend<'_>) {
    let Attend { tile, kv_head, tokens, keys, output, scratch } = task;
    let (heads, layout) = (tile.heads, tile.cache.layout());
    let shape = Shape {
        words: layout.key_lines(),
        group: layout.key_group().div_ceil(C::PACK),
        groups: layout.key_groups(),
        chunks: heads.dim.div_ceil(LANES),
    };
    let count = tokens.len() * heads.group;
    let lines = count * C::PLANES;
    let sizes = [
        lines * shape.words,
        lines * shape.groups,
        count,
        count * KEYS,
        lines * ROW,
        lines,
        count * shape.chunks * LANES,
        count * Tile::STATE,
    ];
    let [q, q_start, q_scale, scores, weights, start, acc, state] = scratch.floats(sizes);
    let mut rows = Rows {
        q: bytemuck::cast_slice_mut(q),
        q_start: bytemuck::cast_slice_mut(q_start),
        q_scale,
        scores: bytemuck::cast_slice_mut(scores),
        weights: bytemuck::cast_slice_mut(weights),
        start: bytemuck::cast_slice_mut(start),
        acc: bytemuck::cast_slice_mut(acc),
        state: bytemuck::cast_slice_mut(state),
    };
    rows.acc.fill([0.0; LANES]);
    rows.state.fill(RowState::EMPTY);
    rows.load_queries::<S, C>(s, tile, kv_head, &tokens, shape);
    // A loop, not a closure: closures are compiled without the instruction set.
    let mut next = KeyRun::first(tile.cache, kv_head, &keys);
    while !next.is_empty() {
        let run = &next;
        for (row, width) in tiles(count, widest::<S, C>()) {
            match width {
                12 => rows.score::<S, C, 2, 12, 12>(s, run, row, shape),
                8 => rows.score::<S, C, 2, 8, 8>(s, run, row, shape),
                6 => rows.score_either::<S, C, 6, 12>(s, run, row, shape),
                4 => rows.score_either::<S, C, 4, 8>(s, run, row, shape),
                2 => rows.score_either::<S, C, 2, 4>(s, run, row, shape),
                _ => rows.score_either::<S, C, 1, 2>(s, run, row, shape),
            }
        }
        let scales = run.value_scales(shape.groups);
        for row in 0..count {
            let seen = seen_in(run.first..run.first + run.blocks() * LANES, &tile.seen(tokens.start + row / heads.group));
            let (scores, scales) = (&mut rows.scores[row][..run.blocks()], &scales[..run.blocks()]);
            let [largest, sum] = soften(s, scores, &mut rows.state[row], seen, tile.soft_cap, Some(scales));
            rows.quantize_weights::<S, C>(s, row, run.blocks(), C::weight_scale(largest, sum));
        }
        for (row, width) in tiles(count, widest::<S, C>()) {
            match width {
                12 => rows.weigh::<S, C, 2, 12, 12>(s, run, row, shape.chunks),
                8 => rows.weigh::<S, C, 2, 8, 8>(s, run, row, shape.chunks),
                6 => rows.weigh_either::<S, C, 6, 12>(s, run, row, shape.chunks),
                4 => rows.weigh_either::<S, C, 4, 8>(s, run, row, shape.chunks),
                2 => rows.weigh_either::<S, C, 2, 4>(s, run, row, shape.chunks),
                _ => rows.weigh_either::<S, C, 1, 2>(s, run, row, shape.chunks),
            }
        }
        next = next.next();
    }
    write(s, tile, kv_head, &tokens, rows.acc, rows.state, output);
}

impl KeyRun<'_> {
    /// The scales of a run's values, zeros after its last: memory that holds no key may hold anything.
    #[inline(always)]
    fn value_scales(&self, groups: usize) -> [[f32; LANES]; KEYS / LANES] {
        let mut scales = [[0.0; LANES]; KEYS / LANES];
        for (block, scales) in scales.iter_mut().enumerate().take(self.blocks()) {
            let keys = LANES.min(self.last - self.first - block * LANES);
            scales[..keys].copy_from_slice(&self.cache.scales(self.kv_head, self.block(block), groups)[..keys]);
        }
        scales
    }
}

impl Rows<'_> {
    /// Quantizes the queries.
    #[inline(always)]
    fn load_queries<S: Simd, C: Codes>(&mut self, s: S, tile: &Tile<'_>, kv_head: usize, tokens: &Range<usize>, shape: Shape) {
        let group_dims = shape.group * C::PACK;
        for (first, width) in tiles(self.q_scale.len(), widest::<S, C>()) {
            let lines = width * C::PLANES;
            for t in 0..width {
                let q = tile.query(kv_head, tokens, first + t);
                let (largest, length) = extent(s, q);
                let scale = C::query_scale(largest, length);
                self.q_scale[first + t] = scale * tile.query_scale();
                for (group, q) in q.chunks(group_dims).enumerate() {
                    let mut sums = [s.splat_i(0); 2];
                    for (part, q) in q.chunks(LANES).enumerate() {
                        // NaN goes the first way: the codes do not matter then, the scale speaks.
                        let v = if scale != 0.0 { s.div(load_part(s, q), s.splat(scale)) } else { s.splat(0.0) };
                        let (words, lanes) = C::split(s, v);
                        let word = group * shape.group + part * LANES / C::PACK;
                        for (plane, words) in words.chunks_exact(WORDS / C::PLANES).enumerate() {
                            sums[plane] = s.add_i(sums[plane], lanes[plane]);
                            // Counted by hand: an iterator with a step divides before it begins.
                            let mut at = first * C::PLANES * shape.words + word * lines + t * C::PLANES + plane;
                            for &word in &words[..q.len().div_ceil(C::PACK)] {
                                self.q[at] = word;
                                at += lines;
                            }
                        }
                    }
                    for (plane, sums) in sums.into_iter().enumerate().take(C::PLANES) {
                        // The sum of a key's codes is below 2²⁴, so every sum of lanes is exact.
                        let at = first * C::PLANES * shape.groups + group * lines + t * C::PLANES + plane;
                        self.q_start[at] = -C::offset::<S>() * s.sum(s.to_f(sums)) as i32;
                    }
                }
            }
        }
    }

    /// Turns the weights of a row into integers.
    #[inline(always)]
    fn quantize_weights<S: Simd, C: Codes>(&mut self, s: S, row: usize, blocks: usize, scale: f32) {
        // NaN is not below: the codes do not matter then, the scale speaks.
        let inverse = if scale < LEAST { 0.0 } else { 1.0 / scale };
        self.state[row].scale = scale;
        let mut sums = [s.splat_i(0); 2];
        let planes = WORDS / C::PLANES;
        for (block, weights) in self.scores[row][..blocks].iter().enumerate() {
            let (codes, lanes) = C::split(s, s.mul(s.load(weights), s.splat(inverse)));
            for (plane, codes) in codes.chunks_exact(planes).enumerate() {
                sums[plane] = s.add_i(sums[plane], lanes[plane]);
                self.weights[(row * C::PLANES + plane) * ROW + block * planes..][..planes].copy_from_slice(codes);
            }
        }
        for (plane, sums) in sums.into_iter().enumerate().take(C::PLANES) {
            self.start[row * C::PLANES + plane] = -C::offset::<S>() * s.sum(s.to_f(sums)) as i32;
        }
    }

    /// As [`Rows::score`], for row counts that both numbers of planes have tiles of.
    #[inline(always)]
    fn score_either<S: Simd, C: Codes, const N: usize, const TWICE: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, shape: Shape) {
        if const { C::PLANES == 1 } {
            if const { N < 6 } { self.score::<S, C, 4, N, N>(s, run, row, shape) } else { self.score::<S, C, 2, N, N>(s, run, row, shape) }
        } else if const { TWICE <= 4 } {
            self.score::<S, C, 4, N, TWICE>(s, run, row, shape)
        } else {
            self.score::<S, C, 2, N, TWICE>(s, run, row, shape)
        }
    }

    /// Scores of a run of keys for `N` rows (`T` lines) from `row` on, `R` blocks of keys at a time where there are registers.
    #[inline(always)]
    fn score<S: Simd, C: Codes, const R: usize, const N: usize, const T: usize>(
        &mut self,
        s: S,
        run: &KeyRun<'_>,
        row: usize,
        shape: Shape,
    ) {
        if const { unused::<S, C>(N, T) } {
            return;
        }
        if const { R * T <= S::INT_TILE.0 * S::INT_TILE.1 } {
            self.score_by::<S, C, R, N, T>(s, run, row, shape)
        } else {
            self.score_by::<S, C, 1, N, T>(s, run, row, shape)
        }
    }

    #[inline(always)]
    fn score_by<S: Simd, C: Codes, const R: usize, const N: usize, const T: usize>(
        &mut self,
        s: S,
        run: &KeyRun<'_>,
        row: usize,
        shape: Shape,
    ) {
        let blocks = run.blocks();
        let line = row * C::PLANES;
        let q = self.q[line * shape.words..(line + T) * shape.words].as_chunks::<T>().0;
        let starts = self.q_start[line * shape.groups..(line + T) * shape.groups].as_chunks::<T>().0;
        for first in (0..blocks).step_by(R) {
            // Blocks past the last repeat it: their scores are written twice.
            let at: [usize; R] = std::array::from_fn(|r| (first + r).min(blocks - 1));
            let keys = at.map(|block| &run.cache.keys(run.kv_head, run.block(block))[..shape.words]);
            let next = at.map(|block| run.after_keys(block));
            let mut scores = [[s.splat(0.0); N]; R];
            for (group, start) in starts.iter().enumerate() {
                let mut acc = [[s.splat_i(0); T]; R];
                unroll!(t < T, {
                    unroll!(r < R, { acc[r][t] = s.splat_i(start[t]) });
                });
                for word in group * shape.group..shape.words.min((group + 1) * shape.group) {
                    let mut lines = [C::line(s, &keys[0][word]); R];
                    unroll!(r < R, {
                        lines[r] = C::line(s, &keys[r][word]);
                        if const { ahead(T) } {
                            s.prefetch(next[r], word * size_of::<Line>());
                        }
                    });
                    unroll!(t < T, {
                        let q = C::word(s, q[word][t]);
                        unroll!(r < R, { acc[r][t] = C::dot(s, acc[r][t], lines[r], q) });
                    });
                }
                unroll!(r < R, {
                    let scales = s.load(run.cache.scales(run.kv_head, run.block(at[r]), group));
                    unroll!(n < N, {
                        let dots = C::value(s, &acc[r][n * C::PLANES..(n + 1) * C::PLANES]);
                        scores[r][n] = s.fma(dots, scales, scores[r][n]);
                    });
                });
            }
            unroll!(n < N, {
                let scale = s.splat(self.q_scale[row + n]);
                unroll!(r < R, { s.store(s.mul(scores[r][n], scale), &mut self.scores[row + n][at[r]]) });
            });
        }
    }

    /// As [`Rows::weigh`], for row counts that both numbers of planes have tiles of.
    #[inline(always)]
    fn weigh_either<S: Simd, C: Codes, const N: usize, const TWICE: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, chunks: usize) {
        if const { C::PLANES == 1 } {
            if const { N < 6 } {
                self.weigh::<S, C, 4, N, N>(s, run, row, chunks)
            } else {
                self.weigh::<S, C, 2, N, N>(s, run, row, chunks)
            }
        } else if const { TWICE <= 4 } {
            self.weigh::<S, C, 4, N, TWICE>(s, run, row, chunks)
        } else {
            self.weigh::<S, C, 2, N, TWICE>(s, run, row, chunks)
        }
    }

    /// Adds a run of values, weighed, to `N` rows (`T` lines) from `row` on, `R` vectors of dimensions at a time.
    #[inline(always)]
    fn weigh<S: Simd, C: Codes, const R: usize, const N: usize, const T: usize>(
        &mut self,
        s: S,
        run: &KeyRun<'_>,
        row: usize,
        chunks: usize,
    ) {
        if const { unused::<S, C>(N, T) } {
            return;
        }
        for chunk in (0..chunks).step_by(R) {
            if const { R * T <= S::INT_TILE.0 * S::INT_TILE.1 } {
                self.weigh_chunks::<S, C, R, N, T>(s, run, row, chunk, chunks);
            } else {
                for chunk in chunk..chunks.min(chunk + R) {
                    self.weigh_chunks::<S, C, 1, N, T>(s, run, row, chunk, chunks);
                }
            }
        }
    }

    #[inline(always)]
    fn weigh_chunks<S: Simd, C: Codes, const R: usize, const N: usize, const T: usize>(
        &mut self,
        s: S,
        run: &KeyRun<'_>,
        row: usize,
        chunk: usize,
        chunks: usize,
    ) {
        // Vectors past the last repeat it: they are added to one place, which is written last of all with the same sum.
        let at: [usize; R] = std::array::from_fn(|r| (chunk + r).min(chunks - 1));
        let line = row * C::PLANES;
        let Some(weights) = self.weights[line * ROW..].as_chunks::<ROW>().0.first_chunk::<T>() else { return };
        let mut acc = [[s.splat_i(0); T]; R];
        unroll!(t < T, {
            unroll!(r < R, { acc[r][t] = s.splat_i(self.start[line + t]) });
        });
        for block in 0..run.blocks() {
            let values = run.cache.values(run.kv_head, run.block(block));
            let next = run.after_values(block);
            let first = block * (LANES / C::PACK);
            for (word, values) in values.chunks_exact(chunks).take(LANES / C::PACK).enumerate() {
                let mut lines = [C::line(s, &values[at[0]]); R];
                unroll!(r < R, {
                    lines[r] = C::line(s, &values[at[r]]);
                    if const { ahead(T) } {
                        s.prefetch(next, (word * chunks + at[r]) * size_of::<Line>());
                    }
                });
                unroll!(t < T, {
                    let weight = C::word(s, weights[t][first + word]);
                    unroll!(r < R, { acc[r][t] = C::dot(s, acc[r][t], lines[r], weight) });
                });
            }
        }
        unroll!(n < N, {
            let state = &self.state[row + n];
            let (decay, scale) = (s.splat(state.decay), s.splat(state.scale));
            let mut sums = [s.splat(0.0); R];
            unroll!(r < R, {
                let weighed = s.mul(C::value(s, &acc[r][n * C::PLANES..(n + 1) * C::PLANES]), scale);
                sums[r] = s.fma(s.load(&self.acc[(row + n) * chunks + at[r]]), decay, weighed);
            });
            unroll!(r < R, { s.store(sums[r], &mut self.acc[(row + n) * chunks + at[r]]) });
        });
    }
}
