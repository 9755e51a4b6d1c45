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

/// Appends numbers from -8 to 7 as unsigned nibbles, the first in the low half; the middle fills up.
fn put_pairs(numbers: &[i8], out: &mut Vec<u8>) {
    let (pairs, last) = numbers.as_chunks::<2>();
    out.extend(pairs.iter().map(|&[low, high]| (low as u8 & 15 | (high as u8) << 4) ^ 0x88));
    out.extend(last.iter().map(|&low| (low as u8 & 15) ^ 0x88));
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
