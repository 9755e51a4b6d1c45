//! One task of attention: some tokens, the query heads of one key-value head, all the keys they see.

use super::{KvCache, KvDtype};
use crate::{
    matmul::{Scratch, tiles},
    parallel::Shared,
    simd::{
        LANES, Op, Simd,
        math::{exp, tanh},
        unroll,
    },
};
use std::ops::Range;

/// Keys that are scored at a time: blocks of [`LANES`].
const KEYS: usize = 8 * LANES;

/// Query heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) all: usize,
    /// Query heads of a key-value head.
    pub(super) group: usize,
    pub(super) dim: usize,
}

/// What the tasks of a job share.
pub(super) struct Tile<'a> {
    pub(super) q: &'a [f32],
    pub(super) cache: &'a KvCache,
    pub(super) heads: Heads,
    /// Keys before the first query's own.
    pub(super) position: usize,
    pub(super) scale: f32,
    pub(super) window: usize,
    pub(super) soft_cap: Option<f32>,
}

impl Tile<'_> {
    /// The keys that token `token` sees.
    #[inline(always)]
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        end.saturating_sub(self.window)..end
    }
}

/// A cached element, sixteen of which make a vector.
trait Cached: bytemuck::Pod {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl Cached for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

impl Cached for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(bytemuck::cast_ref(from))
    }
}

/// A task.
pub(super) struct Attend<'a> {
    pub(super) tile: &'a Tile<'a>,
    pub(super) kv_head: usize,
    pub(super) tokens: Range<usize>,
    pub(super) out: &'a Shared<'a, f32>,
    pub(super) scratch: &'a mut Scratch,
}

impl Op for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.tile.cache.layout().dtype {
            KvDtype::F32 => self.over::<S, f32>(s),
            KvDtype::F16 => self.over::<S, u16>(s),
        }
    }
}

/// Whether [`tiles`] never cuts tiles of `width` rows where the widest are `widest`.
const fn unused(width: usize, widest: usize) -> bool {
    width > widest || width == 6 && widest != 6
}

/// A task's buffers; a row is a token and a query head.
struct Rows<'a> {
    /// Queries times the scale, in tiles as [`tiles`] cuts the rows: `[tiles][dim][rows of the tile]`.
    q: &'a mut [f32],
    /// `[rows, KEYS]`: scores, then what their exponentials weigh values with.
    scores: &'a mut [[[f32; LANES]; KEYS / LANES]],
    /// `[rows, dim]`, dimensions padded to whole vectors: values weighed so far.
    acc: &'a mut [[f32; LANES]],
    /// Per row: largest score so far, sum of exponentials so far, and what `acc` is to be multiplied by.
    state: &'a mut [[f32; 3]],
}

impl Attend<'_> {
    #[inline(always)]
    fn over<S: Simd, V: Cached>(self, s: S) {
        let Self { tile, kv_head, tokens, out, scratch } = self;
        let heads = tile.heads;
        let (count, chunks) = (tokens.len() * heads.group, heads.dim.div_ceil(LANES));
        let sizes = [count * heads.dim, count * KEYS, count * chunks * LANES, count * 3];
        let [q, scores, acc, state] = scratch.floats(sizes);
        let mut rows = Rows {
            q,
            scores: bytemuck::cast_slice_mut(scores),
            acc: bytemuck::cast_slice_mut(acc),
            state: bytemuck::cast_slice_mut(state),
        };
        rows.acc.fill([0.0; LANES]);
        rows.state.fill([f32::NEG_INFINITY, 0.0, 0.0]);
        load_queries(tile, kv_head, tokens.clone(), S::FLOAT_TILE.1, rows.q);

        let (seen_first, seen_last) = (tile.seen(tokens.start), tile.seen(tokens.end - 1));
        let mut first = seen_first.start / LANES * LANES;
        while first < seen_last.end {
            let last = seen_last.end.min(first + KEYS);
            let run = KeyRun { cache: tile.cache, first, last, kv_head };
            for (row, width) in tiles(count, S::FLOAT_TILE.1) {
                match width {
                    12 => rows.score::<S, V, 12>(s, &run, row, heads.dim),
                    8 => rows.score::<S, V, 8>(s, &run, row, heads.dim),
                    6 => rows.score::<S, V, 6>(s, &run, row, heads.dim),
                    4 => rows.score::<S, V, 4>(s, &run, row, heads.dim),
                    2 => rows.score::<S, V, 2>(s, &run, row, heads.dim),
                    _ => rows.score::<S, V, 1>(s, &run, row, heads.dim),
                }
            }
            for row in 0..count {
                let seen = tile.seen(tokens.start + row / heads.group);
                soften(s, &mut rows.scores[row], &mut rows.state[row], first..last, seen, tile.soft_cap);
            }
            for (row, width) in tiles(count, S::FLOAT_TILE.1) {
                match width {
                    12 => rows.weigh::<S, V, 2, 12>(s, &run, row, chunks),
                    8 => rows.weigh::<S, V, 2, 8>(s, &run, row, chunks),
                    6 => rows.weigh::<S, V, 2, 6>(s, &run, row, chunks),
                    4 => rows.weigh::<S, V, 2, 4>(s, &run, row, chunks),
                    2 => rows.weigh::<S, V, 4, 2>(s, &run, row, chunks),
                    _ => rows.weigh::<S, V, 4, 1>(s, &run, row, chunks),
                }
            }
            first = last.next_multiple_of(LANES);
        }
        write(tile, kv_head, &tokens, &rows, chunks, out);
    }
}

/// Divides what was weighed by the sums of the weights.
fn write(tile: &Tile<'_>, kv_head: usize, tokens: &Range<usize>, rows: &Rows<'_>, chunks: usize, out: &Shared<'_, f32>) {
    let heads = tile.heads;
    for (row, (acc, state)) in rows.acc.chunks_exact(chunks).zip(rows.state.iter()).enumerate() {
        let (token, head) = (tokens.start + row / heads.group, kv_head * heads.group + row % heads.group);
        let at = (token * heads.all + head) * heads.dim;
        // SAFETY: a token's output of a head belongs to the one task that has the token and the head's key-value head.
        let out = unsafe { out.part(at..at + heads.dim) };
        for (out, &v) in out.iter_mut().zip(acc.as_flattened()) {
            *out = v / state[1];
        }
    }
}

/// Keys `first..last` of a key-value head; `first` begins a block.
struct KeyRun<'a> {
    cache: &'a KvCache,
    first: usize,
    last: usize,
    kv_head: usize,
}

impl KeyRun<'_> {
    #[inline(always)]
    fn blocks(&self) -> usize {
        (self.last - self.first).div_ceil(LANES)
    }

    /// Keys of block `block` of the run.
    #[inline(always)]
    fn keys<V: Cached>(&self, block: usize) -> &[[V; LANES]] {
        self.cache.keys(self.kv_head, self.first / LANES + block)
    }

    /// Values of block `block` of the run.
    #[inline(always)]
    fn values<V: Cached>(&self, block: usize) -> &[[V; LANES]] {
        self.cache.values(self.kv_head, self.first / LANES + block)
    }
}

/// Queries times the scale, in tiles of rows.
fn load_queries(tile: &Tile<'_>, kv_head: usize, tokens: Range<usize>, widest: usize, out: &mut [f32]) {
    let Heads { all, group, dim } = tile.heads;
    for (first, width) in tiles(tokens.len() * group, widest) {
        for t in 0..width {
            let (token, head) = (tokens.start + (first + t) / group, kv_head * group + (first + t) % group);
            let q = &tile.q[(token * all + head) * dim..][..dim];
            for (out, &q) in out[first * dim + t..].iter_mut().step_by(width).zip(q) {
                *out = q * tile.scale;
            }
        }
    }
}

impl Rows<'_> {
    /// Scores of a run of keys for `T` rows from `row` on, two blocks of keys at a time.
    #[inline(always)]
    fn score<S: Simd, V: Cached, const T: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, dim: usize) {
        if const { unused(T, S::FLOAT_TILE.1) } {
            return;
        }
        if const { S::FLOAT_TILE.0 == 2 } {
            self.score_by::<S, V, 2, T>(s, run, row, dim)
        } else {
            self.score_by::<S, V, 1, T>(s, run, row, dim)
        }
    }

    #[inline(always)]
    fn score_by<S: Simd, V: Cached, const R: usize, const T: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, dim: usize) {
        let blocks = run.blocks();
        let q = self.q[row * dim..(row + T) * dim].as_chunks::<T>().0;
        for first in (0..blocks).step_by(R) {
            // Blocks past the last repeat it: their scores are written twice.
            let at: [usize; R] = std::array::from_fn(|r| (first + r).min(blocks - 1));
            let scores = dot_tile::<S, V, R, T>(s, at.map(|block| run.keys(block)), q);
            unroll!(r < R, {
                unroll!(t < T, { s.store(scores[r][t], &mut self.scores[row + t][at[r]]) });
            });
        }
    }

    /// Adds a run of values, weighed, to `T` rows from `row` on, `R` vectors of dimensions at a time.
    #[inline(always)]
    fn weigh<S: Simd, V: Cached, const R: usize, const T: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, chunks: usize) {
        if const { unused(T, S::FLOAT_TILE.1) } {
            return;
        }
        for chunk in (0..chunks).step_by(R) {
            if const { R * T <= S::FLOAT_TILE.0 * S::FLOAT_TILE.1 } {
                self.weigh_chunks::<S, V, R, T>(s, run, row, chunk, chunks);
            } else {
                (chunk..chunks.min(chunk + R)).for_each(|chunk| self.weigh_chunks::<S, V, 1, T>(s, run, row, chunk, chunks));
            }
        }
    }

    #[inline(always)]
    fn weigh_chunks<S: Simd, V: Cached, const R: usize, const T: usize>(
        &mut self,
        s: S,
        run: &KeyRun<'_>,
        row: usize,
        chunk: usize,
        chunks: usize,
    ) {
        // Vectors past the last repeat it: they are written twice.
        let at: [usize; R] = std::array::from_fn(|r| (chunk + r).min(chunks - 1));
        let mut acc = [[s.splat(0.0); T]; R];
        unroll!(t < T, {
            let decay = s.splat(self.state[row + t][2]);
            unroll!(r < R, { acc[r][t] = s.mul(s.load(&self.acc[(row + t) * chunks + at[r]]), decay) });
        });
        for block in 0..run.blocks() {
            let all = run.values::<V>(block);
            let keys = LANES.min(run.last - run.first - block * LANES);
            let mut weights = [&[0.0; LANES]; T];
            unroll!(t < T, { weights[t] = &self.scores[row + t][block] });
            for (key, values) in all.chunks_exact(chunks).take(keys).enumerate() {
                let mut v = [s.splat(0.0); R];
                unroll!(r < R, { v[r] = V::load(s, &values[at[r]]) });
                unroll!(t < T, {
                    let weight = s.splat(weights[t][key]);
                    unroll!(r < R, { acc[r][t] = s.fma(v[r], weight, acc[r][t]) });
                });
            }
        }
        unroll!(t < T, {
            unroll!(r < R, { s.store(acc[r][t], &mut self.acc[(row + t) * chunks + at[r]]) });
        });
    }
}

/// Dot products of `T` queries with `R` blocks of sixteen keys.
#[inline(always)]
fn dot_tile<S: Simd, V: Cached, const R: usize, const T: usize>(s: S, keys: [&[[V; LANES]]; R], q: &[[f32; T]]) -> [[S::F; T]; R] {
    let mut acc = [[s.splat(0.0); T]; R];
    let keys = keys.map(|k| &k[..q.len()]);
    for d in 0..q.len() {
        let mut k = [s.splat(0.0); R];
        unroll!(r < R, { k[r] = V::load(s, &keys[r][d]) });
        unroll!(t < T, {
            let q = s.splat(q[d][t]);
            unroll!(r < R, { acc[r][t] = s.fma(k[r], q, acc[r][t]) });
        });
    }
    acc
}

/// Turns a row's scores of keys `keys` into weights, those not in `seen` into zero, and brings the row's state up to date.
#[inline(always)]
fn soften<S: Simd>(
    s: S,
    scores: &mut [[f32; LANES]; KEYS / LANES],
    state: &mut [f32; 3],
    keys: Range<usize>,
    seen: Range<usize>,
    soft_cap: Option<f32>,
) {
    let blocks = (keys.end - keys.start).div_ceil(LANES);
    let scores = &mut scores[..blocks];
    if let Some(cap) = soft_cap {
        for block in scores.iter_mut() {
            s.store(s.mul(s.splat(cap), tanh(s, s.div(s.load(block), s.splat(cap)))), block);
        }
    }
    let flat = scores.as_flattened_mut();
    let (from, to) = (seen.start.saturating_sub(keys.start).min(flat.len()), seen.end.saturating_sub(keys.start).min(flat.len()));
    flat[..from].fill(f32::NEG_INFINITY);
    flat[to..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(f32::NEG_INFINITY);
    for block in scores.iter() {
        largest = s.max(s.load(block), largest);
    }
    let mut lanes = [0.0; LANES];
    s.store(largest, &mut lanes);
    let old = state[0];
    let new = lanes.into_iter().fold(old, f32::max);
    // Nothing seen yet: any finite number keeps infinity minus infinity out.
    let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
    let mut sum = s.splat(0.0);
    for block in scores.iter_mut() {
        let weight = exp(s, s.sub(s.load(block), s.splat(shift)));
        sum = s.add(sum, weight);
        s.store(weight, block);
    }
    let decay = if old == f32::NEG_INFINITY { 0.0 } else { (old - new).exp() };
    *state = [new, state[1] * decay + s.sum(sum), decay];
}
