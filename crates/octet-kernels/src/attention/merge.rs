//! Attention cut along the keys: where the parts are kept, and how they become one.

use super::{
    softmax::RowState,
    task::{Tile, write_row},
};
use crate::{
    parallel::Shared,
    simd::{LANES, Op, Simd},
};
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Buffers of parts; kept by the engine, reused by every call.
#[derive(Default)]
pub(crate) struct Partials {
    floats: Vec<f32>,
    done: Vec<AtomicUsize>,
}

impl Partials {
    /// Makes room for jobs of so many floats and counters.
    pub(super) fn begin(&mut self, sizes: impl Iterator<Item = (usize, usize)>) {
        let (floats, counters) = sizes.fold((0, 0), |all, size| (all.0 + size.0, all.1 + size.1));
        if self.floats.len() < floats {
            self.floats.resize(floats, 0.0);
        }
        self.done.iter_mut().for_each(|done| *done.get_mut() = 0);
        if self.done.len() < counters {
            self.done.resize_with(counters, AtomicUsize::default);
        }
    }

    pub(super) fn places(&mut self) -> Places<'_> {
        Places { floats: Shared::new(&mut self.floats), done: &self.done }
    }
}

/// The buffers as the tasks of a region share them.
pub(super) struct Places<'a> {
    floats: Shared<'a, f32>,
    done: &'a [AtomicUsize],
}

impl Places<'_> {
    /// # Safety
    /// As [`Shared::part`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn floats(&self, range: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.floats.part(range) }
    }

    /// Counts a part of counter `at` as done; whether all `parts` are. What they wrote is then seen here.
    pub(super) fn is_last(&self, at: usize, parts: usize) -> bool {
        self.done[at].fetch_add(1, Ordering::AcqRel) + 1 == parts
    }
}

/// Merges the parts of one key-value head: `[parts][rows][state, then padded head_dim]`.
pub(super) struct Merge<'a> {
    pub(super) tile: &'a Tile<'a>,
    pub(super) kv_head: usize,
    pub(super) tokens: Range<usize>,
    pub(super) parts: &'a mut [f32],
    pub(super) out: &'a Shared<'a, f32>,
}

impl Op for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, kv_head, tokens, parts, out } = self;
        let width = tile.partial_width();
        let rows = tokens.len() * tile.heads.group;
        let (first, rest) = parts.split_at_mut(rows * width);
        for (row, all) in first.chunks_exact_mut(width).enumerate() {
            let (state, acc) = all.split_at_mut(Tile::STATE);
            let mut state: RowState = bytemuck::pod_read_unaligned(bytemuck::cast_slice(state));
            let acc = acc.as_chunks_mut::<LANES>().0;
            for other in rest.chunks_exact(rows * width) {
                let (theirs, values) = other[row * width..(row + 1) * width].split_at(Tile::STATE);
                let theirs: RowState = bytemuck::pod_read_unaligned(bytemuck::cast_slice(theirs));
                let largest = state.largest.max(theirs.largest);
                let (mine, their) = (RowState::decay(s, state.largest, largest), RowState::decay(s, theirs.largest, largest));
                state.sum = state.sum * mine + theirs.sum * their;
                state.largest = largest;
                for (acc, v) in acc.iter_mut().zip(values.as_chunks::<LANES>().0) {
                    s.store(s.fma(s.load(v), s.splat(their), s.mul(s.load(acc), s.splat(mine))), acc);
                }
            }
            write_row(s, tile, kv_head, &tokens, row, acc, state.sum, out);
        }
    }
}
