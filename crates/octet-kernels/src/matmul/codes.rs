//! The two ways codes lie in a line, as the kernels' inner loops see them: an octet of inputs at a time.

use super::layout::Line;
use crate::simd::{LANES, Simd, unroll};

/// How codes of sixteen rows are stored.
pub(crate) trait Codes {
    /// Eight consecutive inputs of sixteen rows.
    type Octet: Copy;
    /// Bytes of an octet.
    const BYTES: usize;
    /// Whether no code exceeds 127, however many bits it has.
    const SMALL: bool;

    /// Lines as octets.
    fn octets(lines: &[Line]) -> &[Self::Octet];
    /// The codes of inputs 0..4 and 4..8.
    fn load<S: Simd>(s: S, octet: &Self::Octet) -> [S::W; 2];
    /// A table of the values of four-bit codes; anything where codes are not looked up.
    fn table<S: Simd>(s: S, zero: Option<u8>) -> S::F;
    /// Code minus zero point of all inputs of the octet, `zero` being the same lanes where [`Codes::table`] has it not.
    fn values<S: Simd>(s: S, octet: &Self::Octet, table: S::F, zero: Option<S::F>) -> [S::F; 8];
    /// Asks for the octet `ahead` bytes on.
    fn prefetch<S: Simd>(s: S, octet: &Self::Octet, ahead: usize);
}

/// A code a byte; `SMALL` where none exceeds 127.
pub(crate) struct Bytes<const SMALL: bool>;
/// Two codes a byte.
pub(crate) struct Nibbles;

impl<const SMALL: bool> Codes for Bytes<SMALL> {
    type Octet = [Line; 2];
    const BYTES: usize = 128;
    const SMALL: bool = SMALL;

    #[inline(always)]
    fn octets(lines: &[Line]) -> &[Self::Octet] {
        lines.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, octet: &Self::Octet) -> [S::W; 2] {
        [s.codes(&octet[0].0), s.codes(&octet[1].0)]
    }
    #[inline(always)]
    fn table<S: Simd>(s: S, _: Option<u8>) -> S::F {
        s.splat(0.0)
    }
    #[inline(always)]
    fn values<S: Simd>(s: S, octet: &Self::Octet, _: S::F, zero: Option<S::F>) -> [S::F; 8] {
        let zero = zero.unwrap_or(s.splat(0.0));
        let mut out = [zero; 8];
        unroll!(j < 8, { out[j] = s.sub(s.code(s.codes(&octet[j / 4].0), j % 4), zero) });
        out
    }
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, octet: &Self::Octet, ahead: usize) {
        s.prefetch(&octet[0].0, ahead);
        s.prefetch(&octet[1].0, ahead);
    }
}

impl Codes for Nibbles {
    type Octet = Line;
    const BYTES: usize = 64;
    const SMALL: bool = true;

    #[inline(always)]
    fn octets(lines: &[Line]) -> &[Self::Octet] {
        lines
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, octet: &Self::Octet) -> [S::W; 2] {
        s.nibbles(&octet.0)
    }
    #[inline(always)]
    fn table<S: Simd>(s: S, zero: Option<u8>) -> S::F {
        let zero = f32::from(zero.unwrap_or(0));
        let mut table = [0.0; LANES];
        for (code, value) in table.iter_mut().enumerate() {
            *value = code as f32 - zero;
        }
        s.load(&table)
    }
    #[inline(always)]
    fn values<S: Simd>(s: S, octet: &Self::Octet, table: S::F, zero: Option<S::F>) -> [S::F; 8] {
        let raw = s.codes(&octet.0);
        let mut out = [table; 8];
        unroll!(j < 8, { out[j] = s.lookup(raw, j, table) });
        if let Some(zero) = zero {
            unroll!(j < 8, { out[j] = s.sub(out[j], zero) });
        }
        out
    }
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, octet: &Self::Octet, ahead: usize) {
        s.prefetch(&octet.0, ahead);
    }
}

/// Unpacks lines of two codes a byte into lines of one.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(s: S, packed: &[Line], out: &mut [Line]) {
    for (packed, out) in packed.iter().zip(out.as_chunks_mut::<2>().0) {
        let [low, high] = s.nibbles(&packed.0);
        s.store_codes(low, &mut out[0].0);
        s.store_codes(high, &mut out[1].0);
    }
}
