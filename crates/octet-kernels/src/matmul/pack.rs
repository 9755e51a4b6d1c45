//! Interleaving the codes of sixteen rows into lines.

use super::{
    codes::{place, planes},
    layout::{Line, Segments},
};
use crate::simd::{LANES, Op, Simd};

/// Packs a block: sixteen rows.
pub(crate) struct PackBlock<'a> {
    /// The signed codes of the rows; there are none of rows past the matrix's end.
    pub(crate) rows: [&'a [i8]; LANES],
    pub(crate) segments: Segments,
    /// Bits a code takes in memory.
    pub(crate) bits: usize,
    /// What makes a code unsigned: its highest bit.
    pub(crate) offset: u8,
    /// Where to; all zero before.
    pub(crate) lines: &'a mut [Line],
}

impl Op for PackBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.bits {
            2 => self.planes::<S, 2, 8>(s),
            3 => self.planes::<S, 3, 8>(s),
            4 => self.planes::<S, 4, 2>(s),
            5 => self.planes::<S, 5, 8>(s),
            6 => self.planes::<S, 6, 8>(s),
            _ => self.planes::<S, 8, 2>(s),
        }
    }
}

impl PackBlock<'_> {
    /// Packs `WORDS` words (runs of four inputs) at a time.
    #[inline(always)]
    fn planes<S: Simd, const BITS: usize, const WORDS: usize>(self, s: S) {
        let step = BITS * WORDS / 8;
        for segment in 0..self.segments.count() {
            let (inputs, octets) = (self.segments.inputs(segment), self.segments.octets(segment));
            let lines = &mut self.lines[octets.start * BITS / 4..octets.end * BITS / 4];
            for (i, lines) in lines.chunks_exact_mut(step).enumerate() {
                let first = inputs.start + 4 * WORDS * i;
                let words = transpose::<WORDS>(&self.rows, first..inputs.end, self.offset);
                for (word, from) in words.iter().enumerate() {
                    let from = s.codes(&from.0);
                    for &(first, bits) in const { planes(BITS) } {
                        let (line, bit) = place(first, bits, word);
                        let part = s.field(from, first, bit, bits);
                        s.store_codes(s.or(s.codes(&lines[line].0), part), &mut lines[line].0);
                    }
                }
            }
        }
    }
}

/// `WORDS` words of every row, unsigned, from the start of `inputs` on; what lies past its end, or past the last row, is zero.
///
/// A signed code of b bits with its highest bit flipped is the unsigned one in its lowest b bits.
#[inline(always)]
fn transpose<const WORDS: usize>(rows: &[&[i8]; LANES], inputs: std::ops::Range<usize>, offset: u8) -> [Line; WORDS] {
    let mut words = [Line::ZERO; WORDS];
    let unsigned = |codes: u32| (codes ^ u32::from_ne_bytes([offset; 4])) & u32::from_ne_bytes([offset | (offset - 1); 4]);
    for (lane, row) in rows.iter().enumerate() {
        if let Some(codes) = row.get(inputs.start..inputs.start + 4 * WORDS)
            && inputs.start + 4 * WORDS <= inputs.end
        {
            for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
                let codes: [u8; 4] = bytemuck::cast(*codes);
                word.0.as_chunks_mut::<4>().0[lane] = unsigned(u32::from_ne_bytes(codes)).to_ne_bytes();
            }
        } else if let Some(codes) = row.get(inputs.clone()) {
            for (k, &code) in codes.iter().enumerate() {
                words[k / 4].0[lane * 4 + k % 4] = (code as u8 ^ offset) & (offset | (offset - 1));
            }
        }
    }
    words
}
