//! Matrices of codes in blocks, as onnxruntime's `MatMulNBits` reads them.

/// A quantized matrix as `MatMulNBits` reads it, some rows of it.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Codes `[rows, blocks, block · bits / 8]`, unsigned, lowest bits first.
    pub codes: Vec<u8>,
    /// Scales `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// Zero points `[rows, ⌈blocks · bits / 8⌉]`; empty where all are the middle.
    pub zeros: Vec<u8>,
}

/// Width of a stored code: the next of 4 and 8 that holds it.
pub fn stored_bits(bits: octet_tensor::Bits) -> usize {
    if bits.get() <= 4 { 4 } else { 8 }
}

/// Rows in blocks of `block` inputs, which divide the groups; the last block of a row is padded with zeros.
pub fn blocks(q: &octet_tensor::QMatrix, block: usize) -> Blocks {
    let (cols, bits) = (q.cols(), stored_bits(q.scheme().bits));
    let (size, count, middle) = (q.scheme().group_size(cols), cols.div_ceil(block), 1i32 << (bits - 1));
    let mut out = Blocks::default();
    let row_bytes = count * block * bits / 8;
    out.codes.reserve(q.rows() * row_bytes);
    for row in 0..q.rows() {
        let codes = &q.codes()[row * cols..(row + 1) * cols];
        let end = out.codes.len() + row_bytes;
        match bits {
            4 => put_pairs(codes, &mut out.codes),
            _ => out.codes.extend(codes.iter().map(|&code| (i32::from(code) + middle) as u8)),
        }
        out.codes.resize(end, if bits == 4 { 0x88 } else { 0x80 });
        let groups = (0..count).map(|at| q.group(row, at * block / size));
        out.scales.extend(groups.clone().map(|(scale, _)| scale));
        if q.zeros().is_empty() {
            continue;
        }
        match bits {
            4 => put_pairs(&groups.map(|(_, zero)| zero as i8).collect::<Vec<i8>>(), &mut out.zeros),
            _ => out.zeros.extend(groups.map(|(_, zero)| (zero + middle) as u8)),
        }
    }
    out
}

/// Numbers that become a vector of nibbles.
const LOT: usize = 32;

/// Appends numbers from -8 to 7 as unsigned nibbles, the first in the low half; the middle fills up.
fn put_pairs(numbers: &[i8], out: &mut Vec<u8>) {
    let (lots, rest) = numbers.as_chunks::<LOT>();
    lots.iter().for_each(|lot| out.extend_from_slice(&nibbles(lot)));
    let (pairs, last) = rest.as_chunks::<2>();
    out.extend(pairs.iter().map(|&pair| nibble_pair(pair)));
    out.extend(last.iter().map(|&low| nibble_pair([low, 0])));
}

fn nibble_pair([low, high]: [i8; 2]) -> u8 {
    (low as u8 & 15 | (high as u8) << 4) ^ 0x88
}

/// Words of two numbers each, which the compiler shifts and narrows sixteen at a time.
fn nibbles(numbers: &[i8; LOT]) -> [u8; LOT / 2] {
    let word = |i: usize| u16::from_le_bytes([numbers[2 * i] as u8 & 15, numbers[2 * i + 1] as u8 & 15]);
    let words: [u16; LOT / 2] = std::array::from_fn(word);
    words.map(|word| (word | word >> 4) as u8 ^ 0x88)
}

/// The weights `[rows, cols]` that codes, scales `[rows, blocks]` and zero points (none: the middle) stand for.
pub fn decoded(codes: &[u8], scales: &[f32], zeros: &[u8], [rows, cols]: [usize; 2], bits: usize, block: usize) -> Vec<f32> {
    let (count, per_byte) = (cols.div_ceil(block), 8 / bits);
    let zero_of = |row: usize, group: usize| {
        let byte = zeros.get(row * count.div_ceil(per_byte) + group / per_byte).copied();
        byte.map_or(1 << (bits - 1), |byte| i32::from(if bits == 4 { byte >> (4 * (group % 2)) & 15 } else { byte }))
    };
    // What has no bytes is no number.
    let mut out = vec![f32::NAN; rows * cols];
    let groups =
        out.chunks_mut(cols.max(1)).enumerate().flat_map(|(row, out)| out.chunks_mut(block).enumerate().map(move |(g, o)| (row, g, o)));
    for (row, group, out) in groups {
        let (zero, scale) = (zero_of(row, group), scales.get(row * count + group).copied().unwrap_or(f32::NAN));
        let from = (row * count + group) * block / per_byte;
        let bytes = codes.get(from..from + out.len().div_ceil(per_byte)).unwrap_or_default();
        let weight = |code: u8| scale * (i32::from(code) - zero) as f32;
        if bits == 8 {
            out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = weight(byte));
            continue;
        }
        let (pairs, last) = out.as_chunks_mut::<2>();
        pairs.iter_mut().zip(bytes).for_each(|(pair, &byte)| *pair = [weight(byte & 15), weight(byte >> 4)]);
        last.iter_mut().zip(bytes.last()).for_each(|(out, &byte)| *out = weight(byte & 15));
    }
    out
}

/// Whether codes, scales and zero points of blocks are those of the matrix `q`, as [`decoded`] reads them, compared as they are stored.
pub fn holds(codes: &[u8], scales: &[f32], zeros: &[u8], q: &octet_tensor::QMatrix, block: usize) -> bool {
    let (cols, bits) = (q.cols(), stored_bits(q.scheme().bits));
    let (size, count, middle) = (q.scheme().group_size(cols), cols.div_ceil(block), 1i32 << (bits - 1));
    let (row_bytes, zero_bytes) = (count * block * bits / 8, (count * bits).div_ceil(8));
    let lengths = [(codes.len(), q.rows() * row_bytes), (scales.len(), q.rows() * count)];
    if lengths.iter().any(|(found, expected)| found != expected) || (zeros.len() != q.rows() * zero_bytes) != q.zeros().is_empty() {
        return false;
    }
    (0..q.rows()).all(|row| {
        let expected = &q.codes()[row * cols..(row + 1) * cols];
        let groups = (0..count).map(|at| q.group(row, at * block / size));
        let zero = |at: usize| match zeros.get(row * zero_bytes + at * bits / 8) {
            Some(byte) if bits == 4 => i32::from(byte >> (4 * (at % 2)) & 15) - middle,
            Some(&byte) => i32::from(byte) - middle,
            None => 0,
        };
        let found = &codes[row * row_bytes..(row + 1) * row_bytes];
        let same_groups =
            groups.zip(&scales[row * count..]).enumerate().all(|(at, ((scale, of), &found))| scale == found && of == zero(at));
        same_groups && if bits == 4 { same_pairs(found, expected) } else { same_bytes(found, expected) }
    })
}

/// Whether nibbles are these codes, less eight each.
fn same_pairs(found: &[u8], expected: &[i8]) -> bool {
    let (lots, rest) = expected.as_chunks::<LOT>();
    let (lots_found, rest_found) = (found.as_chunks::<{ LOT / 2 }>().0, found.get(lots.len() * LOT / 2..).unwrap_or_default());
    // A code beyond a nibble is none that nibbles hold; all are looked at, which the compiler turns into vector code.
    let differ = |lot: &[i8; LOT], found: &[u8; LOT / 2]| {
        let beyond = lot.iter().fold(0, |bits, &code| bits | (code as u8).wrapping_add(8) & 0xf0);
        nibbles(lot).iter().zip(found).fold(beyond, |bits, (a, b)| bits | (a ^ b))
    };
    let whole = lots.iter().zip(lots_found).fold(0, |bits, (lot, found)| bits | differ(lot, found));
    let code = |i: usize| rest_found.get(i / 2).map(|byte| (byte >> (4 * (i % 2)) & 15).wrapping_sub(8) as i8);
    whole == 0 && rest.iter().enumerate().all(|(i, &expected)| code(i) == Some(expected))
}

/// Whether bytes are these codes, less 128 each.
fn same_bytes(found: &[u8], expected: &[i8]) -> bool {
    expected.iter().zip(found).fold(true, |same, (&code, &byte)| same & (byte ^ 0x80 == code as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_tensor::{Dtype, QMatrix, Scheme};

    #[test]
    fn blocks_decode_to_the_matrix() {
        for (scheme, cols, block) in
            [("w4a16-g32", 96, 32), ("w4a16-g32-asym", 96, 16), ("w3a16-g64-asym", 80, 32), ("w8a16", 40, 16), ("w5a16-g32-asym", 64, 32)]
        {
            let scheme = scheme.parse::<Scheme>().unwrap().weights;
            let (rows, groups) = (5, scheme.groups(cols));
            let (low, width) = (scheme.bits.min_code(), 1 << scheme.bits.get());
            let number = |i: usize| (low + (i * 7 + i / 3) as i32 % width) as i8;
            let codes = (0..rows * cols).map(number).collect();
            let scales = (0..rows * groups).map(|i| 0.5 - 0.03125 * i as f32).collect();
            let zeros = if scheme.is_asymmetric() { (0..rows * groups).map(|i| number(3 * i + 1)).collect() } else { vec![] };
            let q = QMatrix::new(rows, cols, scheme, codes, scales, Dtype::F32, zeros).unwrap();
            let stored = blocks(&q, block);
            let bits = stored_bits(scheme.bits);
            assert_eq!(stored.codes.len(), rows * cols.div_ceil(block) * block * bits / 8);
            assert_eq!(decoded(&stored.codes, &stored.scales, &stored.zeros, [rows, cols], bits, block), q.dequantize(), "{scheme}");
            assert!(holds(&stored.codes, &stored.scales, &stored.zeros, &q, block), "{scheme}");
            // Anything that decodes to another number is seen: every bit of every code that counts, every scale, every zero point.
            let row_bytes = cols.div_ceil(block) * block * bits / 8;
            for bit in (0..8 * stored.codes.len()).filter(|bit| bit % (8 * row_bytes) < cols * bits) {
                let mut codes = stored.codes.clone();
                codes[bit / 8] ^= 1 << (bit % 8);
                assert!(!holds(&codes, &stored.scales, &stored.zeros, &q, block), "{scheme}: bit {bit}");
            }
            let blocks_of_row = cols.div_ceil(block);
            for at in 0..stored.scales.len() {
                let mut scales = stored.scales.clone();
                scales[at] = -scales[at];
                assert!(!holds(&stored.codes, &scales, &stored.zeros, &q, block), "{scheme}: scale {at}");
                if !stored.zeros.is_empty() {
                    let (row, group) = (at / blocks_of_row, at % blocks_of_row);
                    let mut zeros = stored.zeros.clone();
                    zeros[row * (blocks_of_row * bits).div_ceil(8) + group * bits / 8] ^= 1 << (group * bits % 8);
                    assert!(!holds(&stored.codes, &stored.scales, &zeros, &q, block), "{scheme}: zero point {at}");
                }
            }
            assert!(!holds(&stored.codes[1..], &stored.scales, &stored.zeros, &q, block));
        }
    }

    #[test]
    fn the_first_code_is_in_the_low_half() {
        let scheme = "w4a16-g32".parse::<Scheme>().unwrap().weights;
        let mut codes = vec![0; 32];
        (codes[0], codes[1]) = (-8, 7);
        let q = QMatrix::new(1, 32, scheme, codes, vec![1.0], Dtype::F32, vec![]).unwrap();
        assert_eq!(blocks(&q, 32).codes[..2], [0xf0, 0x88]);
    }
}
