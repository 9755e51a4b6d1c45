//! Blocks of 256 values with scales of their own for runs of 16 or 32 (`ggml-quants.c`: the K-quants, IQ4_XS).

use super::blocks::{IQ4, half_at};

/// Scale and offset of run j of eight, six bits each in twelve bytes (Q4_K, Q5_K).
fn scale_min(b: &[u8], j: usize) -> (u8, u8) {
    if j < 4 { (b[j] & 63, b[j + 4] & 63) } else { ((b[j + 4] & 15) | (b[j - 4] >> 6) << 4, b[j + 4] >> 4 | (b[j] >> 6) << 4) }
}

/// Q2_K: 16 bytes of scales and offsets, 64 of codes, two halves.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (run, out) in out.chunks_mut(16).enumerate() {
        let (half, shift, part) = (run / 8, run % 8 / 2 * 2, run % 2);
        let (scale, offset) = (d * f32::from(scales[run] & 15), dmin * f32::from(scales[run] >> 4));
        for (l, value) in out.iter_mut().enumerate() {
            let code = codes[32 * half + 16 * part + l] >> shift & 3;
            *value = scale * f32::from(code) - offset;
        }
    }
}

/// Q4_K: 12 bytes of scales and offsets, 128 of nibbles; runs 2k and 2k + 1 share 32 bytes.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, codes) = (half_at(block, 0), half_at(block, 2), &block[16..144]);
    for (run, out) in out.chunks_mut(32).enumerate() {
        let (scale, offset) = scale_min(&block[4..16], run);
        let (scale, offset) = (d * f32::from(scale), dmin * f32::from(offset));
        for (l, value) in out.iter_mut().enumerate() {
            let code = codes[run / 2 * 32 + l] >> (4 * (run % 2)) & 15;
            *value = scale * f32::from(code) - offset;
        }
    }
}

/// Q5_K: as Q4_K with 32 bytes of fifth bits.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, high, codes) = (half_at(block, 0), half_at(block, 2), &block[16..48], &block[48..176]);
    for (run, out) in out.chunks_mut(32).enumerate() {
        let (scale, offset) = scale_min(&block[4..16], run);
        let (scale, offset) = (d * f32::from(scale), dmin * f32::from(offset));
        for (l, value) in out.iter_mut().enumerate() {
            let code = codes[run / 2 * 32 + l] >> (4 * (run % 2)) & 15 | (high[l] >> run & 1) << 4;
            *value = scale * f32::from(code) - offset;
        }
    }
}

/// Q3_K: 32 bytes of third bits, 64 of the lower two, 12 of six-bit scales, less 32.
pub(super) fn q3_k(block: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    let (high, low, packed, d) = (&block[..32], &block[32..96], &block[96..108], half_at(block, 108));
    for (run, (codes, scale)) in codes.chunks_mut(16).zip(scales).enumerate() {
        let lower = if run < 8 { packed[run] & 15 } else { packed[run - 8] >> 4 };
        let upper = packed[8 + run % 4] >> (2 * (run / 4)) & 3;
        *scale = d * f32::from((lower | upper << 4) as i8 - 32);
        let (half, group, part) = (run / 8, run % 8 / 2, run % 2);
        for (l, code) in codes.iter_mut().enumerate() {
            let two = (low[32 * half + 16 * part + l] >> (2 * group) & 3) as i8;
            let third = high[16 * part + l] >> (4 * half + group) & 1;
            *code = if third == 1 { two } else { two - 4 };
        }
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 of upper bits, 16 signed scales.
pub(super) fn q6_k(block: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    let (low, high, packed, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (run, (codes, scale)) in codes.chunks_mut(16).zip(scales).enumerate() {
        *scale = d * f32::from(packed[run] as i8);
        let (half, group, part) = (run / 8, run % 8 / 2, run % 2);
        for (l, code) in codes.iter_mut().enumerate() {
            let l = 16 * part + l;
            let nibble = low[64 * half + 32 * (group % 2) + l] >> (4 * (group / 2)) & 15;
            let upper = high[32 * half + l] >> (2 * group) & 3;
            *code = (nibble | upper << 4) as i8 - 32;
        }
    }
}

/// IQ4_XS: 2 bytes of upper and 4 of lower bits of eight scales, less 32, and 128 of nibbles that index a table.
pub(super) fn iq4_xs(block: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    let (d, upper, lower, nibbles) = (half_at(block, 0), u16::from_le_bytes([block[2], block[3]]), &block[4..8], &block[8..136]);
    for (run, (codes, scale)) in codes.chunks_mut(32).zip(scales).enumerate() {
        let low = lower[run / 2] >> (4 * (run % 2)) & 15;
        let high = (upper >> (2 * run) & 3) as u8;
        *scale = d * f32::from((low | high << 4) as i8 - 32);
        for (i, code) in codes.iter_mut().enumerate() {
            let byte = nibbles[16 * run + i % 16];
            *code = IQ4[usize::from(if i < 16 { byte & 15 } else { byte >> 4 })];
        }
    }
}
