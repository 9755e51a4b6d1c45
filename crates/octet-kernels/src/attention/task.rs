//! One task of attention: some tokens, the query heads of one key-value head, the keys they see or a part of them.

use super::{
    KvCache, KvDtype, floats,
    ints::{self, Bytes, Shorts},
    softmax::RowState,
};
use crate::{
    matmul::Scratch,
    parallel::Shared,
    simd::{LANES, Op, Simd},
};
use std::ops::Range;

/// Keys that are scored at a time: blocks of [`LANES`].
pub(super) const KEYS: usize = 8 * LANES;

/// Whether a register tile of so many lines asks for memory ahead of its use: with the widest arithmetic is the bound, and
/// what reads on in order finds it without being asked.
pub(super) const fn ahead(lines: usize) -> bool {
    lines < 12
}

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
    /// Floats of a row's state.
    pub(super) const STATE: usize = size_of::<RowState>() / size_of::<f32>();

    /// The keys that token `token` sees.
    #[inline(always)]
    pub(super) fn seen(&self, token: usize) -> Range<usize> {
        let end = self.position + token + 1;
        end.saturating_sub(self.window)..end
    }

    /// The keys that some tokens see, from the start of a block on.
    pub(super) fn keys(&self, tokens: Range<usize>) -> Range<usize> {
        self.seen(tokens.start).start / LANES * LANES..self.seen(tokens.end - 1).end
    }

    /// Floats that a part keeps of a row: its state and what it weighed.
    pub(super) fn partial_width(&self) -> usize {
        Self::STATE + self.heads.dim.next_multiple_of(LANES)
    }

    /// What queries are multiplied by: scores are then in units of ln 2, but natural where they are capped first.
    pub(super) fn query_scale(&self) -> f32 {
        if self.soft_cap.is_some() { self.scale } else { self.scale * std::f32::consts::LOG2_E }
    }

    /// The query of row `row` (token times query head) of a task.
    pub(super) fn query(&self, kv_head: usize, tokens: &Range<usize>, row: usize) -> &[f32] {
        let Heads { all, group, dim } = self.heads;
        let (token, head) = (tokens.start + row / group, kv_head * group + row % group);
        &self.q[(token * all + head) * dim..][..dim]
    }
}

/// Where a task's result goes.
pub(super) enum Output<'a> {
    /// The output of the job.
    Whole(&'a Shared<'a, f32>),
    /// A part to be merged: `[rows][state, then padded head_dim]`.
    Part(&'a mut [f32]),
}

/// A task.
pub(super) struct Attend<'a> {
    pub(super) tile: &'a Tile<'a>,
    pub(super) kv_head: usize,
    pub(super) tokens: Range<usize>,
    /// The keys looked at, from the start of a block on.
    pub(super) keys: Range<usize>,
    pub(super) output: Output<'a>,
    pub(super) scratch: &'a mut Scratch,
}

impl Op for Attend<'_> {
    type Output = ();
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.tile.cache.layout().dtype {
            KvDtype::F32 => floats::attend::<S, f32>(s, self),
            KvDtype::F16 => floats::attend::<S, u16>(s, self),
            KvDtype::Int16 => ints::attend::<S, Shorts>(s, self),
            KvDtype::Int8 => ints::attend::<S, Bytes>(s, self),
        }
    }
}

/// Keys `first..last` of a key-value head; `first` begins a block.
pub(super) struct KeyRun<'a> {
    pub(super) cache: &'a KvCache,
    pub(super) first: usize,
    pub(super) last: usize,
    /// End of the keys of the task.
    pub(super) end: usize,
    pub(super) kv_head: usize,
}

impl<'a> KeyRun<'a> {
    /// The first run of a task's keys.
    #[inline(always)]
    pub(super) fn first(cache: &'a KvCache, kv_head: usize, keys: &Range<usize>) -> Self {
        Self { cache, first: keys.start, last: keys.end.min(keys.start + KEYS), end: keys.end, kv_head }
    }

    /// The run after this one, empty after the last.
    #[inline(always)]
    pub(super) fn next(self) -> Self {
        Self { first: self.last, last: self.end.min(self.last + KEYS), ..self }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.last
    }

    #[inline(always)]
    pub(super) fn blocks(&self) -> usize {
        (self.last - self.first).div_ceil(LANES)
    }

    /// Block `block` of the run as the cache counts them.
    #[inline(always)]
    pub(super) fn block(&self, block: usize) -> usize {
        self.first / LANES + block
    }

    /// The start of the values of a block: what is read next after its keys.
    #[inline(always)]
    pub(super) fn after_keys(&self, block: usize) -> &[u8] {
        bytemuck::cast_slice(self.cache.values(self.kv_head, self.block(block)))
    }

    /// The keys at the same place in the next run: what is read next after the values of a block; those of the block
    /// itself where the task has no further run.
    #[inline(always)]
    pub(super) fn after_values(&self, block: usize) -> &[u8] {
        let next = self.block(block) + KEYS / LANES;
        let next = if next * LANES < self.end { next } else { self.block(block) };
        bytemuck::cast_slice(self.cache.keys(self.kv_head, next))
    }
}

/// Hands out what a task weighed: divided by the sums of the weights, or as a part.
#[inline(always)]
pub(super) fn write<S: Simd>(
    s: S,
    tile: &Tile<'_>,
    kv_head: usize,
    tokens: &Range<usize>,
    acc: &[[f32; LANES]],
    state: &[RowState],
    output: Output<'_>,
) {
    let rows = acc.chunks_exact(acc.len() / state.len()).zip(state);
    match output {
        Output::Whole(out) => {
            for (row, (acc, state)) in rows.enumerate() {
                write_row(s, tile, kv_head, tokens, row, acc, state.sum, out);
            }
        }
        Output::Part(part) => {
            for (part, (acc, state)) in part.chunks_exact_mut(tile.partial_width()).zip(rows) {
                part[..Tile::STATE].copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(state)));
                part[Tile::STATE..].copy_from_slice(acc.as_flattened());
            }
        }
    }
}

/// Writes a row's output.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_row<S: Simd>(
    s: S,
    tile: &Tile<'_>,
    kv_head: usize,
    tokens: &Range<usize>,
    row: usize,
    acc: &[[f32; LANES]],
    sum: f32,
    out: &Shared<'_, f32>,
) {
    let Heads { all, group, dim } = tile.heads;
    let (token, head) = (tokens.start + row / group, kv_head * group + row % group);
    let at = (token * all + head) * dim;
    // SAFETY: a token's output of a head belongs to the one task that has the token and the head's key-value head.
    let out = unsafe { out.part(at..at + dim) };
    for (out, acc) in out.chunks_mut(LANES).zip(acc) {
        let v = s.div(s.load(acc), s.splat(sum));
        if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
            s.store(v, out);
        } else {
            let mut last = [0.0; LANES];
            s.store(v, &mut last);
            out.copy_from_slice(&last[..out.len()]);
        }
    }
}
