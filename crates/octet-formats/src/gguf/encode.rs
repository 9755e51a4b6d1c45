//! Blocks to bytes: what `blocks` and `kquants` read, the other way round.

use super::BlockType;
use half::f16;
use octet_tensor::{BlockRows, LEVELS};

/// The bytes of rows of blocks, row after row.
pub fn encode(rows: &BlockRows) -> Vec<u8> {
    let code = &rows.code;
    let kind = BlockType::named(code.name).unwrap_or(BlockType::F32);
    let mut out = vec![0u8; rows.d.len() * code.bytes];
    for (at, (bytes, codes)) in out.chunks_exact_mut(code.bytes).zip(rows.codes.chunks_exact(code.block)).enumerate() {
        let runs = at * code.runs()..(at + 1) * code.runs();
        let block = Block {
            codes,
            d: half(rows.d[at]),
            m: rows.m.get(at).copied().unwrap_or_default(),
            scales: rows.scales.get(runs.clone()).unwrap_or_default(),
            offsets: rows.offsets.get(runs).unwrap_or_default(),
        };
        block.write(kind, bytes);
    }
    out
}

/// A block to be written into zeros.
struct Block<'a> {
    codes: &'a [i8],
    d: [u8; 2],
    m: f32,
    scales: &'a [i8],
    offsets: &'a [u8],
}

fn half(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

impl Block<'_> {
    fn write(&self, kind: BlockType, out: &mut [u8]) {
        match kind {
            BlockType::Q6_K => out[208..210].copy_from_slice(&self.d),
            BlockType::Q2_K => out[80..82].copy_from_slice(&self.d),
            BlockType::Q3_K => out[108..110].copy_from_slice(&self.d),
            _ => out[..2].copy_from_slice(&self.d),
        }
        match kind {
            BlockType::Q8_0 => out[2..].iter_mut().zip(self.codes).for_each(|(byte, &code)| *byte = code as u8),
            BlockType::Q4_0 => nibbles(&mut out[2..], self.codes, |code| (code + 8) as u8),
            BlockType::IQ4_NL => nibbles(&mut out[2..], self.codes, index),
            BlockType::Q4_1 => {
                // What is added here is what is taken off there.
                out[2..4].copy_from_slice(&half(-self.m));
                nibbles(&mut out[4..], self.codes, |code| code as u8);
            }
            BlockType::Q5_0 => five(&mut out[2..], self.codes, 16),
            BlockType::Q5_1 => {
                out[2..4].copy_from_slice(&half(-self.m));
                five(&mut out[4..], self.codes, 0);
            }
            BlockType::Q2_K => self.q2_k(out),
            BlockType::Q3_K => self.q3_k(out),
            BlockType::Q4_K | BlockType::Q5_K => self.q45_k(kind == BlockType::Q5_K, out),
            BlockType::Q6_K => self.q6_k(out),
            BlockType::IQ4_XS => self.iq4_xs(out),
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => {}
        }
    }

    fn q2_k(&self, out: &mut [u8]) {
        out[82..84].copy_from_slice(&half(self.m));
        for (run, codes) in self.codes.chunks(16).enumerate() {
            out[run] = self.scales[run] as u8 | self.offsets[run] << 4;
            let (half, shift, part) = (run / 8, run % 8 / 2 * 2, run % 2);
            for (l, &code) in codes.iter().enumerate() {
                out[16 + 32 * half + 16 * part + l] |= (code as u8) << shift;
            }
        }
    }

    fn q3_k(&self, out: &mut [u8]) {
        for (run, codes) in self.codes.chunks(16).enumerate() {
            let scale = (self.scales[run] + 32) as u8;
            out[96 + run % 8] |= (scale & 15) << (4 * (run / 8));
            out[104 + run % 4] |= (scale >> 4) << (2 * (run / 4));
            let (half, group, part) = (run / 8, run % 8 / 2, run % 2);
            for (l, &code) in codes.iter().enumerate() {
                let code = (code + 4) as u8;
                out[32 + 32 * half + 16 * part + l] |= (code & 3) << (2 * group);
                out[16 * part + l] |= (code >> 2) << (4 * half + group);
            }
        }
    }

    /// Q4_K, and with 32 bytes of fifth bits before the nibbles Q5_K.
    fn q45_k(&self, fifth: bool, out: &mut [u8]) {
        out[2..4].copy_from_slice(&half(self.m));
        let packed = &mut out[4..16];
        for (run, (&scale, &offset)) in self.scales.iter().zip(self.offsets).enumerate() {
            let scale = scale as u8;
            if run < 4 {
                packed[run] |= scale;
                packed[run + 4] |= offset;
            } else {
                packed[run + 4] |= scale & 15 | (offset & 15) << 4;
                packed[run - 4] |= (scale >> 4) << 6;
                packed[run] |= (offset >> 4) << 6;
            }
        }
        let low = if fifth { 48 } else { 16 };
        for (run, codes) in self.codes.chunks(32).enumerate() {
            for (l, &code) in codes.iter().enumerate() {
                out[low + run / 2 * 32 + l] |= (code as u8 & 15) << (4 * (run % 2));
                if fifth {
                    out[16 + l] |= (code as u8 >> 4) << run;
                }
            }
        }
    }

    fn q6_k(&self, out: &mut [u8]) {
        for (run, codes) in self.codes.chunks(16).enumerate() {
            out[192 + run] = self.scales[run] as u8;
            let (half, group, part) = (run / 8, run % 8 / 2, run % 2);
            for (l, &code) in codes.iter().enumerate() {
                let (l, code) = (16 * part + l, (code + 32) as u8);
                out[64 * half + 32 * (group % 2) + l] |= (code & 15) << (4 * (group / 2));
                out[128 + 32 * half + l] |= (code >> 4) << (2 * group);
            }
        }
    }

    fn iq4_xs(&self, out: &mut [u8]) {
        let mut upper = 0u16;
        for (run, codes) in self.codes.chunks(32).enumerate() {
            let scale = (self.scales[run] + 32) as u8;
            out[4 + run / 2] |= (scale & 15) << (4 * (run % 2));
            upper |= u16::from(scale >> 4) << (2 * run);
            nibbles(&mut out[8 + 16 * run..8 + 16 * (run + 1)], codes, index);
        }
        out[2..4].copy_from_slice(&upper.to_le_bytes());
    }
}

/// Where a level of the table is in it.
fn index(level: i8) -> u8 {
    LEVELS.iter().position(|&known| known == level).unwrap_or_default() as u8
}

/// The low nibbles of sixteen bytes are values 0 to 15, the high ones 16 to 31.
fn nibbles(out: &mut [u8], codes: &[i8], code: impl Fn(i8) -> u8) {
    let (low, high) = codes.split_at(16);
    for (byte, (&low, &high)) in out.iter_mut().zip(low.iter().zip(high)) {
        *byte = code(low) | code(high) << 4;
    }
}

/// Four bytes of fifth bits, then the nibbles.
fn five(out: &mut [u8], codes: &[i8], add: i8) {
    let high = codes.iter().enumerate().fold(0u32, |high, (i, &code)| high | u32::from((code + add) as u8 >> 4) << i);
    out[..4].copy_from_slice(&high.to_le_bytes());
    nibbles(&mut out[4..], codes, |code| (code + add) as u8 & 15);
}
