//! The ways codes lie in memory, as the kernels' inner loops see them: an octet of inputs (eight) at a time.
//!
//! Four octets of sixteen rows with codes of b bits take b lines of 64 bytes. Codes of a byte (seven and eight bits) are
//! two lines an octet, those of four bits one. Other widths are cut into planes, as [`planes`] says: the low four (or
//! two) bits of all codes first, the one or two bits above them in lines of their own, merged in registers.
//!
//! Points of the lattice are nibbles, an octet of a row its own four bytes, of which [`Codes::load`] makes codes with 16 added.
//! Levels of a table are nibbles that [`Codes::load`] sends through a byte shuffle; they are unsigned with 128 added.

use super::layout::Line;
use crate::simd::{Simd, unroll};
use octet_tensor::Alphabet;
use std::marker::PhantomData;

/// Octets that are stored together where codes are cut into planes.
pub(crate) const CHUNK: usize = 4;

/// Bits a code of `bits` bits takes in memory: codes of seven bits take a byte.
pub(crate) fn stored_bits(bits: u32) -> usize {
    if bits == 7 { 8 } else { bits as usize }
}

/// Inputs that a run of codes of so many stored bits is filled up to: a chunk where codes are cut into planes, else an octet.
pub(crate) fn unit(bits: usize) -> usize {
    if matches!(bits, 4 | 8) { 8 } else { 8 * CHUNK }
}

/// The planes that codes of so many stored bits are cut into: the first bit, and the number of bits, of each.
pub(crate) const fn planes(bits: usize) -> &'static [(usize, usize)] {
    match bits {
        2 => &[(0, 2)],
        3 => &[(0, 2), (2, 1)],
        4 => &[(0, 4)],
        5 => &[(0, 4), (4, 1)],
        6 => &[(0, 4), (4, 2)],
        _ => &[(0, 8)],
    }
}

/// Where a plane that starts at bit `first` and has `bits` bits holds word `word` (four inputs) of a row's codes: the
/// line, counted from the first of its chunk, and the bit of each byte. Planes of a chunk follow each other.
#[inline(always)]
pub(crate) const fn place(first: usize, bits: usize, word: usize) -> (usize, usize) {
    (first + word * bits / 8, word * bits % 8)
}

/// Runs a body for every octet of a chunk, unrolled.
macro_rules! each_octet {
    ($codes:ident, $octet:ident, $body:expr) => {{
        {
            let $octet = 0;
            $body
        }
        if const { $codes::OCTETS > 1 } {
            const { assert!($codes::OCTETS == 1 || $codes::OCTETS == 4) };
            {
                let $octet = 1;
                $body
            }
            {
                let $octet = 2;
                $body
            }
            {
                let $octet = 3;
                $body
            }
        }
    }};
}
pub(crate) use each_octet;

/// How codes of sixteen rows are stored.
pub(crate) trait Codes {
    /// Some octets (eight consecutive inputs of sixteen rows) that are stored together.
    type Chunk: Copy;
    /// How many octets that is.
    const OCTETS: usize;
    /// Whether no code exceeds 63, however many bits it takes.
    const SMALL: bool;

    /// Lines as chunks.
    fn chunks(lines: &[Line]) -> &[Self::Chunk];
    /// The codes of inputs 0..4 and 4..8 of octet `octet` of the chunk; what is stored are numbers of `levels` where codes are some.
    fn load<S: Simd>(s: S, chunk: &Self::Chunk, octet: usize, levels: S::W) -> [S::W; 2];
    /// Asks for octet `octet` of the chunk `ahead` bytes on.
    fn prefetch<S: Simd>(s: S, chunk: &Self::Chunk, octet: usize, ahead: usize);
}

/// A code a byte; `SMALL` where none exceeds 63.
pub(crate) struct Bytes<const SMALL: bool>;
/// Four bits a code, an octet a line, that `F` makes codes of.
pub(crate) struct Halves<F>(PhantomData<F>);
/// Two codes a byte.
pub(crate) type Nibbles = Halves<Plain>;
/// Two numbers of levels a byte.
pub(crate) type Table = Halves<Levels>;
/// Points of the lattice, four bytes each.
pub(crate) type Points = Halves<Lattice>;
/// What is added to levels to make them unsigned.
pub(crate) const LEVEL_OFFSET: u8 = 128;
/// What is added to codes of the lattice to make them unsigned.
pub(crate) const POINT_OFFSET: u8 = 16;

/// The codes of a stored point, unsigned: inputs 0..4 are the low halves of its bytes, inputs 4..8 the high ones.
pub(crate) fn point(stored: [u8; 4]) -> [u8; 8] {
    let mut codes: [i8; 8] = std::array::from_fn(|i| (stored[i % 4] >> (4 * (i / 4)) & 15) as i8 - 8);
    Alphabet::Lattice.read(&mut codes);
    codes.map(|code| code.wrapping_add(POINT_OFFSET as i8) as u8)
}

/// Codes of two, three, five or six bits.
pub(crate) struct Planes<const BITS: usize>;

impl<const SMALL: bool> Codes for Bytes<SMALL> {
    type Chunk = [Line; 2];
    const OCTETS: usize = 1;
    const SMALL: bool = SMALL;

    #[inline(always)]
    fn chunks(lines: &[Line]) -> &[Self::Chunk] {
        lines.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, chunk: &Self::Chunk, _: usize, _: S::W) -> [S::W; 2] {
        [s.codes(&chunk[0].0), s.codes(&chunk[1].0)]
    }
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, chunk: &Self::Chunk, _: usize, ahead: usize) {
        s.prefetch(&chunk[0].0, ahead);
        s.prefetch(&chunk[1].0, ahead);
    }
}

/// What the codes of a line of nibbles are.
pub(crate) trait Four {
    /// As [`Codes::SMALL`].
    const SMALL: bool;

    /// The codes of inputs 0..4 and 4..8.
    fn codes<S: Simd>(s: S, line: &Line, levels: S::W) -> [S::W; 2];
}

/// They themselves.
pub(crate) struct Plain;
/// The levels they are the numbers of.
pub(crate) struct Levels;
/// The point that all eight say together.
pub(crate) struct Lattice;

impl Four for Plain {
    const SMALL: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(s: S, line: &Line, _: S::W) -> [S::W; 2] {
        s.nibbles(&line.0)
    }
}

impl Four for Levels {
    const SMALL: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(s: S, line: &Line, levels: S::W) -> [S::W; 2] {
        s.nibbles(&line.0).map(|numbers| s.levels(numbers, levels))
    }
}

impl Four for Lattice {
    const SMALL: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(s: S, line: &Line, _: S::W) -> [S::W; 2] {
        s.points(&line.0)
    }
}

impl<F: Four> Codes for Halves<F> {
    type Chunk = Line;
    const OCTETS: usize = 1;
    const SMALL: bool = F::SMALL;

    #[inline(always)]
    fn chunks(lines: &[Line]) -> &[Self::Chunk] {
        lines
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, chunk: &Self::Chunk, _: usize, levels: S::W) -> [S::W; 2] {
        F::codes(s, chunk, levels)
    }
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, chunk: &Self::Chunk, _: usize, ahead: usize) {
        s.prefetch(&chunk.0, ahead);
    }
}

/// The bits of word `word` that are in one plane, where they belong.
#[inline(always)]
fn part<S: Simd>(s: S, chunk: &[Line], (first, bits): (usize, usize), word: usize) -> S::W {
    let (line, bit) = place(first, bits, word);
    s.field(s.codes(&chunk[line].0), bit, first, bits)
}

impl<const BITS: usize> Codes for Planes<BITS> {
    type Chunk = [Line; BITS];
    const OCTETS: usize = CHUNK;
    const SMALL: bool = true;

    #[inline(always)]
    fn chunks(lines: &[Line]) -> &[Self::Chunk] {
        lines.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, chunk: &Self::Chunk, octet: usize, _: S::W) -> [S::W; 2] {
        let planes = const { planes(BITS) };
        let mut words = [s.codes(&Line::ZERO.0); 2];
        unroll!(half < 2, {
            words[half] = part(s, chunk, planes[0], 2 * octet + half);
            if planes.len() > 1 {
                words[half] = s.or(words[half], part(s, chunk, planes[1], 2 * octet + half));
            }
        });
        words
    }
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, chunk: &Self::Chunk, octet: usize, ahead: usize) {
        // A chunk's lines are shared out among its octets.
        unroll!(i < 2, {
            if octet + i * CHUNK < BITS {
                s.prefetch(&chunk[octet + i * CHUNK].0, ahead);
            }
        });
    }
}

/// Unpacks codes into lines of one a byte.
#[inline(always)]
pub(crate) fn unpack<S: Simd, C: Codes>(s: S, levels: &[u8; 16], packed: &[Line], out: &mut [Line]) {
    let levels = s.table(levels);
    for (chunk, out) in C::chunks(packed).iter().zip(out.chunks_exact_mut(2 * C::OCTETS)) {
        each_octet!(C, octet, {
            let [low, high] = C::load(s, chunk, octet, levels);
            s.store_codes(low, &mut out[2 * octet].0);
            s.store_codes(high, &mut out[2 * octet + 1].0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_use_every_bit_of_a_chunk_once() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let mut used = vec![0u8; bits];
            let mut covered = 0;
            for &(first, width) in planes(bits) {
                assert_eq!(first, covered);
                covered += width;
                for word in 0..2 * CHUNK {
                    let (line, bit) = place(first, width, word);
                    let mask = ((1u32 << width) - 1) << bit;
                    assert_eq!(u32::from(used[line]) & mask, 0);
                    used[line] |= mask as u8;
                }
            }
            assert_eq!(covered, bits);
            assert!(used.iter().all(|&bits| bits == 255));
        }
    }
}
