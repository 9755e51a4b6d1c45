//! Products of integer weights and float activations: codes become floats in registers, or, for many tokens, once in a panel.

use super::{
    Scratch,
    codes::{Bytes, Codes, Nibbles, Planes, each_octet, table},
    float::{self, Panels},
    inputs::{Prepared, tiles},
    ints::Ints,
    output::Output,
};
use crate::simd::{LANES, Op, Simd, unroll};
use std::ops::Range;

/// How far ahead of its use a weight is asked for.
const PREFETCH: usize = 4 * 1024;
/// Most tokens of a register tile of codes that become floats as they are read.
pub(crate) const WIDEST: usize = 4;

/// A product of some blocks of rows with some tokens.
pub(crate) struct ExactProduct<'a> {
    pub(crate) ints: &'a Ints,
    pub(crate) inputs: &'a Prepared,
    pub(crate) blocks: Range<usize>,
    pub(crate) tokens: Range<usize>,
    pub(crate) output: &'a Output<'a>,
    pub(crate) direct: bool,
    pub(crate) scratch: &'a mut Scratch,
}

/// One block of rows by `T` tokens, `D` accumulators each.
#[inline(always)]
fn tile<S: Simd, C: Codes, const D: usize, const T: usize>(s: S, ints: &Ints, block: usize, x: &[f32]) -> [S::F; T] {
    let chunks = C::chunks(ints.block(block));
    let inputs = x.as_chunks::<T>().0.as_chunks::<8>().0;
    let mut total = [s.splat(0.0); T];
    let (plain, centred, offset) = (table(s, 0), table(s, ints.offset), s.splat(f32::from(ints.offset)));
    for segment in 0..ints.segments.count() {
        let range = ints.segments.octets(segment);
        let at = ints.group_at(block, segment);
        let mut acc = [[s.splat(0.0); T]; D];
        let zeros = ints.zeros(at).map(|zeros| s.to_f(s.load_u8(zeros)));
        let chunks = &chunks[range.start / C::OCTETS..range.end / C::OCTETS];
        for (chunk, x) in chunks.iter().zip(inputs[range].chunks_exact(C::OCTETS)) {
            each_octet!(C, octet, {
                C::prefetch(s, chunk, octet, PREFETCH);
                let values = match zeros {
                    Some(zeros) => C::values(s, chunk, octet, plain, Some(zeros)),
                    // A table has the common zero point in it already.
                    None if C::TABLE => C::values(s, chunk, octet, centred, None),
                    None => C::values(s, chunk, octet, plain, Some(offset)),
                };
                unroll!(j < 8, {
                    unroll!(t < T, { acc[j % D][t] = s.fma(values[j], s.splat(x[octet][j][t]), acc[j % D][t]) });
                });
            });
        }
        let scales = ints.scales(s, at);
        unroll!(t < T, {
            unroll!(d < D, {
                total[t] = s.fma(acc[d][t], scales, total[t]);
            });
        });
    }
    total
}

/// The weights of a block as floats, `[padded inputs]` of sixteen rows.
#[inline(always)]
fn dequantize<S: Simd, C: Codes>(s: S, ints: &Ints, block: usize, out: &mut [[f32; LANES]]) {
    let chunks = C::chunks(ints.block(block));
    let (table, offset) = (table(s, 0), s.splat(f32::from(ints.offset)));
    for segment in 0..ints.segments.count() {
        let range = ints.segments.octets(segment);
        let at = ints.group_at(block, segment);
        let (scales, zeros) = (ints.scales(s, at), ints.zeros(at).map_or(offset, |zeros| s.to_f(s.load_u8(zeros))));
        let chunks = &chunks[range.start / C::OCTETS..range.end / C::OCTETS];
        for (chunk, out) in chunks.iter().zip(out.as_chunks_mut::<8>().0[range].chunks_exact_mut(C::OCTETS)) {
            each_octet!(C, octet, {
                for (value, out) in C::values(s, chunk, octet, table, Some(zeros)).into_iter().zip(&mut out[octet]) {
                    s.store(s.mul(value, scales), out);
                }
            });
        }
    }
}

impl ExactProduct<'_> {
    #[inline(always)]
    fn direct<S: Simd, C: Codes>(&self, s: S) {
        for block in self.blocks.clone() {
            for (start, width) in tiles(self.tokens.len(), S::FLOAT_TILE.1.min(WIDEST)) {
                let token = self.tokens.start + start;
                match width {
                    4 => self.one::<S, C, 1, 4>(s, block, token),
                    2 => self.one::<S, C, 2, 2>(s, block, token),
                    _ => self.one::<S, C, 4, 1>(s, block, token),
                }
            }
        }
    }

    #[inline(always)]
    fn one<S: Simd, C: Codes, const D: usize, const T: usize>(&self, s: S, block: usize, token: usize) {
        // Tiles that this instruction set never uses are not compiled for it.
        if const { T > S::FLOAT_TILE.1 } {
            return;
        }
        let values = tile::<S, C, D, T>(s, self.ints, block, self.inputs.float_tile(token, T));
        // SAFETY: a task has its blocks and tokens to itself (how products are cut into tasks).
        unsafe { self.output.write_tile(s, token, [block], &[values]) };
    }

    #[inline(always)]
    fn blocked<S: Simd, C: Codes>(&mut self, s: S) {
        let inputs = 8 * self.ints.segments.all_octets();
        let ints = self.ints;
        let work = Panels { inputs: self.inputs, tokens: self.tokens.clone(), output: self.output };
        float::panels(s, work, self.blocks.clone(), inputs, self.scratch, FillInts::<C>(ints, std::marker::PhantomData));
    }
}

struct FillInts<'a, C>(&'a Ints, std::marker::PhantomData<C>);

impl<C: Codes> float::Fill for FillInts<'_, C> {
    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, block: usize, out: &mut [[f32; LANES]]) {
        dequantize::<S, C>(s, self.0, block, out);
    }
}

impl Op for ExactProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match (self.direct, self.ints.bits) {
            (true, 2) => self.direct::<S, Planes<2>>(s),
            (true, 3) => self.direct::<S, Planes<3>>(s),
            (true, 4) => self.direct::<S, Nibbles>(s),
            (true, 5) => self.direct::<S, Planes<5>>(s),
            (true, 6) => self.direct::<S, Planes<6>>(s),
            (true, _) => self.direct::<S, Bytes<false>>(s),
            (false, 2) => self.blocked::<S, Planes<2>>(s),
            (false, 3) => self.blocked::<S, Planes<3>>(s),
            (false, 4) => self.blocked::<S, Nibbles>(s),
            (false, 5) => self.blocked::<S, Planes<5>>(s),
            (false, 6) => self.blocked::<S, Planes<6>>(s),
            (false, _) => self.blocked::<S, Bytes<false>>(s),
        }
    }
}
