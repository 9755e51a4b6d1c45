//! Random numbers: cheap, and the same on every machine (sums of integers, no mathematical library).

use half::bf16;
use octet_tensor::{Dtype, e4m3_to_f32};

/// Entries of a table of Gaussian values: 13 bits of a random number choose one. Twice 8 KiB stay in the first-level cache.
const ENTRIES: usize = 1 << 13;

/// Standard deviation of weights.
const WEIGHT_STD: f32 = 0.02;

/// Standard deviation of FP8 codes: a block of 128 × 128 Gaussian values reaches 4.2 deviations, which its scale maps to 448.
const CODE_STD: f32 = 448.0 / 4.2;

/// What a tensor is filled with.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fill {
    /// bfloat16, Gaussian around 0.
    Weight,
    /// bfloat16, Gaussian around 1 with the deviation of weights.
    Norm,
    /// FP8 E4M3 codes of a block-scaled weight.
    Fp8,
    /// bfloat16 scales of FP8 blocks: within 6 % of what gives weights their deviation.
    Fp8Scale,
}

impl Fill {
    /// Type of the elements.
    pub(crate) fn dtype(self) -> Dtype {
        if self == Self::Fp8 { Dtype::F8E4m3 } else { Dtype::Bf16 }
    }
}

/// A stream of random numbers (wyrand, by Wang Yi: a Weyl sequence through a folded 128-bit product).
pub(crate) struct Stream(u64);

impl Stream {
    /// The stream that belongs to a text (FNV-1a hash).
    pub(crate) fn new(seed: &str) -> Self {
        Self(seed.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (product >> 64) as u64 ^ product as u64
    }

    /// Four entries of a table.
    fn four<T: Copy>(&mut self, table: &[T; ENTRIES]) -> [T; 4] {
        let bits = self.next();
        [0, 13, 26, 39].map(|shift| table[(bits >> shift) as usize % ENTRIES])
    }
}

/// Tables of Gaussian values.
pub(crate) struct Noise {
    weights: [[u8; 2]; ENTRIES],
    norms: [[u8; 2]; ENTRIES],
    codes: [u8; ENTRIES],
    scales: [[u8; 2]; ENTRIES],
}

impl Noise {
    /// The tables, always the same.
    pub(crate) fn new() -> Self {
        let gauss = gaussian_values();
        let sorted_codes = finite_codes();
        let bytes = |value: f32| bf16::from_f32(value).to_le_bytes();
        Self {
            weights: gauss.map(|value| bytes(value * WEIGHT_STD)),
            norms: gauss.map(|value| bytes(1.0 + value * WEIGHT_STD)),
            codes: gauss.map(|value| nearest_code(&sorted_codes, value * CODE_STD)),
            scales: gauss.map(|value| bytes(WEIGHT_STD / CODE_STD * (1.0 + value / 100.0))),
        }
    }

    /// Fills `out` (whole elements) from the stream.
    pub(crate) fn fill(&self, fill: Fill, stream: &mut Stream, out: &mut [u8]) {
        match fill {
            Fill::Weight => fill_pairs(&self.weights, stream, out),
            Fill::Norm => fill_pairs(&self.norms, stream, out),
            Fill::Fp8Scale => fill_pairs(&self.scales, stream, out),
            Fill::Fp8 => {
                for chunk in out.chunks_mut(4) {
                    chunk.copy_from_slice(&stream.four(&self.codes)[..chunk.len()]);
                }
            }
        }
    }
}

fn fill_pairs(table: &[[u8; 2]; ENTRIES], stream: &mut Stream, out: &mut [u8]) {
    for chunk in out.chunks_mut(8) {
        chunk.copy_from_slice(&stream.four(table).as_flattened()[..chunk.len()]);
    }
}

/// Values of mean 0 (exactly: each comes with its negative) and deviation 1: sums of 12 uniform numbers (Irwin–Hall).
fn gaussian_values() -> [f32; ENTRIES] {
    let mut stream = Stream::new("gaussian values");
    let mut values = [0.0; ENTRIES];
    for pair in values.chunks_exact_mut(2) {
        let sum: u64 = (0..12).map(|_| stream.next() >> 44).sum();
        let value = (sum as f64 / (1u64 << 20) as f64 - 6.0) as f32;
        pair.copy_from_slice(&[value, -value]);
    }
    values
}

/// All finite FP8 E4M3 values with their codes, ascending.
fn finite_codes() -> Vec<(f32, u8)> {
    let mut codes: Vec<(f32, u8)> = (0..=255).map(|code| (e4m3_to_f32(code), code)).filter(|(value, _)| value.is_finite()).collect();
    codes.sort_by(|a, b| a.0.total_cmp(&b.0));
    codes
}

fn nearest_code(codes: &[(f32, u8)], value: f32) -> u8 {
    let at = codes.partition_point(|(code, _)| *code < value).clamp(1, codes.len() - 1);
    let (below, above) = (codes[at - 1], codes[at]);
    if value - below.0 < above.0 - value { below.1 } else { above.1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_nearest() {
        let codes = finite_codes();
        for (value, code) in [(1.0, 0x38), (448.0, 0x7e), (1e9, 0x7e), (-1e9, 0xfe), (1.06, 0x38), (1.07, 0x39)] {
            assert_eq!(nearest_code(&codes, value), code, "{value}");
        }
    }

    #[test]
    fn ends_of_buffers_do_not_matter_much() {
        let noise = Noise::new();
        let mut out = [0; 7];
        noise.fill(Fill::Fp8, &mut Stream::new("a"), &mut out);
        let mut same = [0; 7];
        noise.fill(Fill::Fp8, &mut Stream::new("a"), &mut same[..4]);
        assert_eq!(out[..4], same[..4]);
        assert_ne!(out, [0; 7]);
    }
}
