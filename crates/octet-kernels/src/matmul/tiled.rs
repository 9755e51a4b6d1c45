//! Products of integer weights and int8 activations with AMX: sixteen tokens by sixteen rows in a register.
//!
//! The same sums as `int.rs` makes, rounded the same way: results are equal bit for bit. A block of packed weights is, as
//! it lies, what the instruction wants of its second operand; inputs are plain rows. Codes of less than a byte are
//! unpacked first, and their zero points taken off, so that sums need no correction.

use super::{
    Scratch,
    codes::{Codes, Nibbles, Planes, Points, Table, unpack},
    inputs::{CodeTile, Prepared},
    ints::Ints,
    layout::Line,
    output::Output,
};
use crate::simd::{
    LANES, Op, Simd,
    amx::{Amx, TILE, Tiles},
};
use std::ops::Range;

/// Tokens of a register tile: two AMX tiles.
pub(crate) const TOKENS: usize = 2 * TILE;
/// Blocks of a register tile.
pub(crate) const BLOCKS: usize = 2;

/// A product of some blocks of rows with some tokens.
pub(crate) struct TiledProduct<'a> {
    pub(crate) amx: Amx,
    pub(crate) ints: &'a Ints,
    /// Rows of codes ([`super::inputs::AS_ROWS`]).
    pub(crate) inputs: &'a Prepared,
    pub(crate) blocks: Range<usize>,
    /// From a multiple of [`TOKENS`] on.
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
    pub(crate) scratch: &'a mut Scratch,
}

impl Op for TiledProduct<'_> {
    type Output = ();
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (ints, count) = (self.ints, self.blocks.len());
        let (lines, segments) = (2 * ints.segments.all_octets(), ints.segments.count());
        let mut scratch = std::mem::take(&mut self.scratch.0);
        let unpacked = if ints.bits < 8 { count * lines } else { 0 };
        let need = unpacked + count * segments + 2 * SUMS;
        if scratch.len() < need {
            scratch.resize(need, Line::ZERO);
        }
        let (panels, rest) = scratch.split_at_mut(unpacked);
        let (scales, rest) = rest.split_at_mut(count * segments);
        for (i, scales) in scales.chunks_exact_mut(segments).enumerate() {
            for (segment, scale) in scales.iter_mut().enumerate() {
                s.store(ints.scales(s, ints.group_at(self.blocks.start + i, segment)), bytemuck::cast_mut(&mut scale.0));
            }
        }
        if let ([sums, rest @ ..], run) = (rest.as_chunks_mut::<SUMS>().0, ints.segments.common_run())
            && let Some(totals) = rest.first_mut()
        {
            if ints.bits < 8 {
                self.unpack(s, panels);
                Work { product: &self, panels, scales, run }.all::<S, true>(s, sums, totals);
            } else {
                Work { product: &self, panels: ints.lines(self.blocks.clone()), scales, run }.all::<S, false>(s, sums, totals);
            }
        }
        self.scratch.0 = scratch;
    }
}

/// Lines of the sums of a register tile.
const SUMS: usize = 2 * BLOCKS * TILE;

impl TiledProduct<'_> {
    /// Unpacks the codes of all blocks and takes their zero points off.
    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, out: &mut [Line]) {
        let lines = out.len() / self.blocks.len();
        for (block, out) in self.blocks.clone().zip(out.chunks_exact_mut(lines)) {
            match self.ints.bits {
                2 => self.unpack_block::<S, Planes<2>>(s, block, out),
                3 => self.unpack_block::<S, Planes<3>>(s, block, out),
                4 if self.ints.table => self.unpack_block::<S, Table>(s, block, out),
                4 if self.ints.points => self.unpack_block::<S, Points>(s, block, out),
                4 => self.unpack_block::<S, Nibbles>(s, block, out),
                5 => self.unpack_block::<S, Planes<5>>(s, block, out),
                _ => self.unpack_block::<S, Planes<6>>(s, block, out),
            }
        }
    }

    #[inline(always)]
    fn unpack_block<S: Simd, C: Codes>(&self, s: S, block: usize, out: &mut [Line]) {
        let (ints, packed) = (self.ints, self.ints.block(block));
        let lines_of = |octets: usize| octets * packed.len() / ints.segments.all_octets();
        for segment in 0..ints.segments.count() {
            let octets = ints.segments.octets(segment);
            let out = &mut out[2 * octets.start..2 * octets.end];
            unpack::<S, C>(s, &ints.levels, &packed[lines_of(octets.start)..lines_of(octets.end)], out);
            let mut zeros = [ints.offset; 4 * LANES];
            if let Some(of_rows) = ints.zeros(ints.group_at(block, segment)) {
                zeros = std::array::from_fn(|i| of_rows[i / 4]);
            }
            for line in out {
                // By reference: an array that is consumed is copied for every line and walked byte by byte.
                for (code, zero) in line.0.iter_mut().zip(&zeros) {
                    *code = code.wrapping_sub(*zero);
                }
            }
        }
    }
}

/// What all register tiles of a task share.
struct Work<'a> {
    product: &'a TiledProduct<'a>,
    /// Codes of a byte, a block after the other.
    panels: &'a [Line],
    /// `[blocks, segments]` of f32.
    scales: &'a [Line],
    /// Inputs of a step.
    run: usize,
}

/// A segment of a register tile.
#[derive(Clone, Copy)]
struct Unit {
    token: usize,
    /// The first block, counted from the task's.
    block: usize,
    segment: usize,
}

impl Unit {
    /// The one after it: the next segment, else the next blocks, else the next tokens; `None` after the last.
    #[inline(always)]
    fn next(self, segments: usize, blocks: usize, end: usize) -> Option<Self> {
        let Self { token, block, segment } = self;
        if segment + 1 < segments {
            return Some(Self { segment: segment + 1, ..self });
        }
        if block + BLOCKS < blocks {
            return Some(Self { block: block + BLOCKS, segment: 0, ..self });
        }
        (token + TOKENS < end).then_some(Self { token: token + TOKENS, block: 0, segment: 0 })
    }
}

impl Work<'_> {
    /// All register tiles. What is done with a segment's sums follows the products of the next, which keep the tiles
    /// busy meanwhile.
    #[inline(always)]
    fn all<S: Simd, const SIGNED: bool>(&self, s: S, sums: &mut [Line; SUMS], totals: &mut [Line; SUMS]) {
        let TiledProduct { amx, ints, inputs, blocks, tokens, .. } = self.product;
        let rows = inputs.code_rows();
        // Loops, not closures: closures are compiled without the instruction set.
        let tiles = amx.tiles(self.run);
        let mut next = (!tokens.is_empty()).then_some(Unit { token: tokens.start, block: 0, segment: 0 });
        let mut before = None;
        loop {
            if let Some(unit) = next {
                self.multiply::<SIGNED>(&tiles, unit, &rows);
            }
            if let Some(unit) = before {
                self.finish::<S, SIGNED>(s, unit, &rows, sums, totals);
            }
            let Some(unit) = next else { break };
            tiles.store(sums);
            (before, next) = (next, unit.next(ints.segments.count(), blocks.len(), tokens.end));
        }
    }

    #[inline(always)]
    fn multiply<const SIGNED: bool>(&self, tiles: &Tiles, unit: Unit, rows: &CodeTile<'_>) {
        let TiledProduct { ints, blocks, tokens, .. } = self.product;
        let (octets, lines) = (ints.segments.octets(unit.segment), 2 * ints.segments.all_octets());
        let stride = 4 * lines;
        // A block past the last repeats it and is not written.
        let panels = [unit.block, (unit.block + 1).min(blocks.len() - 1)].map(|block| &self.panels[block * lines + 2 * octets.start..]);
        let x: &[i8] = &rows.codes.as_flattened()[unit.token * stride + 8 * octets.start..];
        let steps = 8 * octets.len() / self.run;
        tiles.clear();
        if unit.token + TILE < tokens.end {
            tiles.multiply::<SIGNED, true>(steps, x, stride, panels);
        } else {
            tiles.multiply::<SIGNED, false>(steps, x, stride, panels);
        }
    }

    /// Scales the sums of a segment and adds them to those of the segments before; after the last they are written.
    #[inline(always)]
    fn finish<S: Simd, const SIGNED: bool>(&self, s: S, unit: Unit, rows: &CodeTile<'_>, sums: &[Line; SUMS], totals: &mut [Line; SUMS]) {
        let (count, end, segments) = (self.product.blocks.len(), self.product.tokens.end, self.product.ints.segments.count());
        for (i, (sums, totals)) in sums.as_chunks::<TILE>().0.iter().zip(totals.as_chunks_mut::<TILE>().0).enumerate() {
            let part = Unit { token: unit.token + i / BLOCKS * TILE, block: unit.block + i % BLOCKS, ..unit };
            if part.token >= end || part.block >= count {
                continue;
            }
            let live = TILE.min(end - part.token);
            let (sums, totals) = (&sums[..live], &mut totals[..live]);
            match (unit.segment == 0, unit.segment + 1 == segments) {
                (true, true) => self.finish_tile::<S, SIGNED, true, true>(s, part, rows, sums, totals),
                (true, false) => self.finish_tile::<S, SIGNED, true, false>(s, part, rows, sums, totals),
                (false, true) => self.finish_tile::<S, SIGNED, false, true>(s, part, rows, sums, totals),
                (false, false) => self.finish_tile::<S, SIGNED, false, false>(s, part, rows, sums, totals),
            }
        }
    }

    #[inline(always)]
    fn finish_tile<S: Simd, const SIGNED: bool, const FIRST: bool, const LAST: bool>(
        &self,
        s: S,
        Unit { token, block, segment }: Unit,
        rows: &CodeTile<'_>,
        sums: &[Line],
        totals: &mut [Line],
    ) {
        let TiledProduct { ints, blocks, output, .. } = self.product;
        let segments = ints.segments.count();
        let scales = s.load(bytemuck::cast_ref(&self.scales[block * segments + segment].0));
        let block = blocks.start + block;
        let units = ints.units(block).map(|units| s.load(units));
        let zeros = match ints.zeros(ints.group_at(block, segment)) {
            Some(zeros) if const { !SIGNED } => Some(s.load_u8(zeros)),
            _ => None,
        };
        for (t, (sum, total)) in sums.iter().zip(totals).enumerate() {
            let token = token + t;
            let mut sum = s.words(&sum.0);
            if const { !SIGNED } {
                let inputs = rows.sums[token * segments + segment];
                let correction = match zeros {
                    Some(zeros) => s.mul_i(zeros, s.splat_i(-inputs)),
                    None => s.splat_i(-i32::from(ints.offset) * inputs),
                };
                sum = s.add_i(sum, correction);
            }
            let mut value = s.to_f(sum);
            if rows.grouped {
                value = s.mul(value, s.splat(rows.scales[token * segments + segment]));
            }
            let start = if const { FIRST } { s.splat(0.0) } else { s.load(bytemuck::cast_ref(&total.0)) };
            let mut value = s.fma(value, scales, start);
            if const { !LAST } {
                s.store(value, bytemuck::cast_mut(&mut total.0));
                continue;
            }
            if let Some(units) = units {
                value = s.mul(value, units);
            }
            if !rows.grouped {
                value = s.mul(value, s.splat(rows.scales[token]));
            }
            // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
            unsafe { output.write_tile(s, token, [block], &[[value]]) };
        }
    }
}
