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
    for row in 0..q.rows() {
        let codes = &q.codes()[row * cols..(row + 1) * cols];
        let mut unsigned: Vec<u8> = codes.iter().map(|&code| (i32::from(code) + middle) as u8).collect();
        unsigned.resize(count * block, middle as u8);
        let (mut zeros, pairs) =
            (vec![], |bytes: &[u8]| bytes.chunks(2).map(|p| p[0] | p.get(1).map_or(0, |high| high << 4)).collect::<Vec<u8>>());
        for at in 0..count {
            let (scale, zero) = q.group(row, at * block / size);
            out.scales.push(scale);
            zeros.push((zero + middle) as u8);
        }
        out.codes.extend(if bits == 4 { pairs(&unsigned) } else { unsigned });
        if !q.zeros().is_empty() {
            out.zeros.extend(if bits == 4 { pairs(&zeros) } else { zeros });
        }
    }
    out
}

/// The weights `[rows, cols]` that codes, scales `[rows, blocks]` and zero points (none: the middle) stand for.
pub fn decoded(codes: &[u8], scales: &[f32], zeros: &[u8], [rows, cols]: [usize; 2], bits: usize, block: usize) -> Vec<f32> {
    let (count, per_byte) = (cols.div_ceil(block), 8 / bits);
    let at = |bytes: &[u8], row: usize, row_bytes: usize, i: usize| {
        let byte = bytes.get(row * row_bytes + i / per_byte).copied().unwrap_or_default();
        i32::from(if bits == 4 { byte >> (4 * (i % 2)) & 15 } else { byte })
    };
    let mut out = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let group = col / block;
            let zero = if zeros.is_empty() { 1 << (bits - 1) } else { at(zeros, row, count.div_ceil(per_byte), group) };
            let code = at(codes, row, count * block / per_byte, col);
            out.push(scales.get(row * count + group).copied().unwrap_or(f32::NAN) * (code - zero) as f32);
        }
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
