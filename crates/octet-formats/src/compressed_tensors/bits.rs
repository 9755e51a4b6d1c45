//! Dense streams of codes: little-endian 32-bit words, lowest bits first, codes offset to be unsigned.

use octet_tensor::Bits;

/// Words that `count` codes take.
pub(crate) fn words(count: usize, bits: Bits) -> usize {
    (count * bits.get() as usize).div_ceil(32)
}

/// Appends the codes as a stream padded with zero bits to whole words.
pub(crate) fn pack(codes: &[i8], bits: Bits, out: &mut Vec<u8>) {
    let end = out.len() + 4 * words(codes.len(), bits);
    match bits.get() {
        8 => out.extend(codes.iter().map(|&c| c as u8 ^ 0x80)),
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            out.extend(pairs.iter().map(|&[low, high]| (low as u8 & 15 | (high as u8) << 4) ^ 0x88));
            out.extend(rest.iter().map(|&c| (c as u8 & 15) ^ 8));
        }
        width => {
            let (mut stream, mut filled) = (0u32, 0);
            for &code in codes {
                stream |= offset(code, bits) << filled;
                filled += width;
                while filled >= 8 {
                    out.push(stream as u8);
                    (stream, filled) = (stream >> 8, filled - 8);
                }
            }
            if filled > 0 {
                out.push(stream as u8);
            }
        }
    }
    out.resize(end, 0);
}

/// Reads `out.len()` codes from the start of a stream that is long enough for them.
pub(crate) fn unpack(stream: &[u8], bits: Bits, out: &mut [i8]) {
    match bits.get() {
        8 => out.iter_mut().zip(stream).for_each(|(code, &byte)| *code = (byte ^ 0x80) as i8),
        4 => {
            let (pairs, last) = out.as_chunks_mut::<2>();
            let nibble = |byte: u8| (byte & 15) as i8 - 8;
            pairs.iter_mut().zip(stream).for_each(|(codes, &byte)| *codes = [nibble(byte), nibble(byte >> 4)]);
            last.iter_mut().zip(&stream[pairs.len().min(stream.len())..]).for_each(|(code, &byte)| *code = nibble(byte));
        }
        width => {
            // Eight codes end where a byte ends.
            let (eights, rest) = out.as_chunks_mut::<8>();
            for (codes, run) in eights.iter_mut().zip(stream.chunks_exact(width as usize)) {
                let mut held = [0u8; 8];
                held[..run.len()].copy_from_slice(run);
                let held = u64::from_le_bytes(held);
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = signed((held >> (i as u32 * width)) as u32, bits);
                }
            }
            let (mut held, mut filled, mut bytes) = (0u32, 0, stream[(eights.len() * width as usize).min(stream.len())..].iter());
            for code in rest {
                while filled < width {
                    held |= u32::from(bytes.next().copied().unwrap_or(0)) << filled;
                    filled += 8;
                }
                *code = signed(held, bits);
                (held, filled) = (held >> width, filled - width);
            }
        }
    }
}

/// A signed code as its unsigned bits.
pub(crate) fn offset(code: i8, bits: Bits) -> u32 {
    (i32::from(code) - bits.min_code()) as u32 & mask(bits)
}

/// The signed code in the lowest bits of `held`.
pub(crate) fn signed(held: u32, bits: Bits) -> i8 {
    ((held & mask(bits)) as i32 + bits.min_code()) as i8
}

fn mask(bits: Bits) -> u32 {
    (1 << bits.get()) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_words() {
        let mut out = vec![];
        // Inputs 0..8 of a 4-bit row: code c is stored as c + 8, the first in the lowest nibble.
        pack(&[-8, -7, -6, -5, -4, -3, -2, 7], Bits::B4, &mut out);
        assert_eq!(u32::from_le_bytes(out[..].try_into().unwrap()), 0xf654_3210);
        out.clear();
        pack(&[-4; 10], Bits::new(3).unwrap(), &mut out);
        assert_eq!(out, [0; 4]);
        out.clear();
        // The eleventh 3-bit code crosses from the first word into the second.
        pack(&[-4, -4, -4, -4, -4, -4, -4, -4, -4, -4, 3], Bits::new(3).unwrap(), &mut out);
        assert_eq!(out, [0, 0, 0, 0b1100_0000, 0b1, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn streams_round_trip(width in 2u32..=8, codes in prop::collection::vec(any::<i8>(), 0..70)) {
            let bits = Bits::new(width).unwrap();
            let codes: Vec<i8> = codes.iter().map(|&c| c >> (8 - width)).collect();
            let mut stream = vec![];
            pack(&codes, bits, &mut stream);
            prop_assert_eq!(stream.len(), 4 * words(codes.len(), bits));
            let mut back = vec![0; codes.len()];
            unpack(&stream, bits, &mut back);
            prop_assert_eq!(&back, &codes);
            // The definition: code i is the `width` bits from bit i · width on.
            for (i, &code) in codes.iter().enumerate() {
                let bit = |b: usize| u32::from(stream[b / 8] >> (b % 8) & 1);
                let value: u32 = (0..width as usize).map(|j| bit(i * width as usize + j) << j).sum();
                prop_assert_eq!(value as i32 - (1 << (width - 1)), i32::from(code));
            }
        }
    }
}
