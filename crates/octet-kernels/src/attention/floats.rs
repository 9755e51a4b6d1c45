//! A task over a cache of floats.

use super::{
    softmax::{RowState, seen_in, soften},
    task::{Attend, KEYS, KeyRun, Tile, ahead, write},
};
use crate::{
    matmul::{Line, tiles},
    simd::{LANES, Simd, unroll},
};
use std::ops::Range;

/// A cached element, sixteen of which make a vector.
pub(super) trait Cached: bytemuck::Pod {
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

/// Lines as vectors of elements.
#[inline(always)]
fn vectors<V: Cached>(lines: &[Line]) -> &[[V; LANES]] {
    bytemuck::cast_slice::<Line, V>(lines).as_chunks().0
}

/// Whether [`tiles`] never cuts tiles of `width` rows where the widest are `widest`.
const fn unused(width: usize, widest: usize) -> bool {
    width > widest || width == 6 && widest != 6
}

/// A task's buffers; a row is a token and a query head.
struct Rows<'a> {
    /// Queries times the scale, in tiles as [`tiles`] cuts the rows: `[tiles][dim][rows of the tile]`.
    q: &'a mut [f32],
    /// `[rows, KEYS]`: scores, then what values are weighed with.
    scores: &'a mut [[[f32; LANES]; KEYS / LANES]],
    /// `[rows, dim]`, dimensions padded to whole vectors: values weighed so far.
    acc: &'a mut [[f32; LANES]],
    state: &'a mut [RowState],
}

/// Runs a task.
#[inline(always)]
pub(super) fn attend<S: Simd, V: Cached>(s: S, task: Attend<'_>) {
    let Attend { tile, kv_head, tokens, keys, output, scratch } = task;
    let heads = tile.heads;
    let (count, chunks) = (tokens.len() * heads.group, heads.dim.div_ceil(LANES));
    let sizes = [count * heads.dim, count * KEYS, count * chunks * LANES, count * Tile::STATE];
    let [q, scores, acc, state] = scratch.floats(sizes);
    let mut rows =
        Rows { q, scores: bytemuck::cast_slice_mut(scores), acc: bytemuck::cast_slice_mut(acc), state: bytemuck::cast_slice_mut(state) };
    rows.acc.fill([0.0; LANES]);
    rows.state.fill(RowState::EMPTY);
    load_queries(tile, kv_head, &tokens, S::FLOAT_TILE.1, rows.q);
    // A loop, not a closure: closures are compiled without the instruction set.
    let mut next = KeyRun::first(tile.cache, kv_head, &keys);
    while !next.is_empty() {
        let run = &next;
        for (row, width) in tiles(count, S::FLOAT_TILE.1) {
            match width {
                12 => rows.score::<S, V, 2, 12>(s, run, row, heads.dim),
                8 => rows.score::<S, V, 2, 8>(s, run, row, heads.dim),
                6 => rows.score::<S, V, 2, 6>(s, run, row, heads.dim),
                4 => rows.score::<S, V, 4, 4>(s, run, row, heads.dim),
                2 => rows.score::<S, V, 4, 2>(s, run, row, heads.dim),
                _ => rows.score::<S, V, 4, 1>(s, run, row, heads.dim),
            }
        }
        for row in 0..count {
            let seen = seen_in(run.first..run.first + run.blocks() * LANES, &tile.seen(tokens.start + row / heads.group));
            soften(s, &mut rows.scores[row][..run.blocks()], &mut rows.state[row], seen, tile.soft_cap, None);
        }
        for (row, width) in tiles(count, S::FLOAT_TILE.1) {
            match width {
                12 => rows.weigh::<S, V, 2, 12>(s, run, row, chunks),
                8 => rows.weigh::<S, V, 2, 8>(s, run, row, chunks),
                6 => rows.weigh::<S, V, 2, 6>(s, run, row, chunks),
                4 => rows.weigh::<S, V, 4, 4>(s, run, row, chunks),
                2 => rows.weigh::<S, V, 4, 2>(s, run, row, chunks),
                _ => rows.weigh::<S, V, 4, 1>(s, run, row, chunks),
            }
        }
        next = next.next();
    }
    write(s, tile, kv_head, &tokens, rows.acc, rows.state, output);
}

/// Queries times the scale, in tiles of rows.
fn load_queries(tile: &Tile<'_>, kv_head: usize, tokens: &Range<usize>, widest: usize, out: &mut [f32]) {
    let (dim, scale) = (tile.heads.dim, tile.query_scale());
    for (first, width) in tiles(tokens.len() * tile.heads.group, widest) {
        for t in 0..width {
            let q = tile.query(kv_head, tokens, first + t);
            for (out, &q) in out[first * dim + t..].iter_mut().step_by(width).zip(q) {
                *out = q * scale;
            }
        }
    }
}

impl Rows<'_> {
    /// Scores of a run of keys for `T` rows from `row` on, `R` blocks of keys at a time where there are registers.
    #[inline(always)]
    fn score<S: Simd, V: Cached, const R: usize, const T: usize>(&mut self, s: S, run: &KeyRun<'_>, row: usize, dim: usize) {
        if const { unused(T, S::FLOAT_TILE.1) } {
            return;
        }
        if const { R * T <= S::FLOAT_TILE.0 * S::FLOAT_TILE.1 } {
            self.score_by::<S, V, R, T>(s, run, row, dim)
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
            let keys = at.map(|block| &vectors::<V>(run.cache.keys(run.kv_head, run.block(block)))[..dim]);
            let next = at.map(|block| run.after_keys(block));
            let mut acc = [[s.splat(0.0); T]; R];
            for d in 0..dim {
                let mut k = [s.splat(0.0); R];
                unroll!(r < R, {
                    k[r] = V::load(s, &keys[r][d]);
                    if const { ahead(T) } {
                        s.prefetch(next[r], d * LANES * size_of::<V>());
                    }
                });
                unroll!(t < T, {
                    let q = s.splat(q[d][t]);
                    unroll!(r < R, { acc[r][t] = s.fma(k[r], q, acc[r][t]) });
                });
            }
            unroll!(r < R, {
                unroll!(t < T, { s.store(acc[r][t], &mut self.scores[row + t][at[r]]) });
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
                for chunk in chunk..chunks.min(chunk + R) {
                    self.weigh_chunks::<S, V, 1, T>(s, run, row, chunk, chunks);
                }
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
            let decay = s.splat(self.state[row + t].decay);
            unroll!(r < R, { acc[r][t] = s.mul(s.load(&self.acc[(row + t) * chunks + at[r]]), decay) });
        });
        for block in 0..run.blocks() {
            let all = vectors::<V>(run.cache.values(run.kv_head, run.block(block)));
            let next = run.after_values(block);
            let keys = LANES.min(run.last - run.first - block * LANES);
            let mut weights = [&[0.0; LANES]; T];
            unroll!(t < T, { weights[t] = &self.scores[row + t][block] });
            for (key, values) in all.chunks_exact(chunks).take(keys).enumerate() {
                let mut v = [s.splat(0.0); R];
                unroll!(r < R, {
                    v[r] = V::load(s, &values[at[r]]);
                    if const { ahead(T) } {
                        s.prefetch(next, (key * chunks + at[r]) * LANES * size_of::<V>());
                    }
                });
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
