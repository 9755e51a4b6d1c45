//! Blocks of 32 values and what they mean (`ggml-quants.c`).

use super::{BlockType, kquants};
use half::f16;
use octet_tensor::{Bits, Dtype, Granularity, Symmetry, WeightScheme};
use std::num::NonZeroUsize;

/// The table of IQ4_NL and IQ4_XS: whole numbers, so that both are codes of eight bits.
pub(super) use octet_tensor::LEVELS as IQ4;

/// How kernels run blocks whose values are a scale times a whole number: scheme and type of the scales. `None` for types
/// whose values also have an offset, and for floats.
pub(super) fn scheme(kind: BlockType) -> Option<(WeightScheme, Dtype)> {
    // Codes of 3 to 6 bits are kept in runs of 32 inputs: smaller groups take a byte a code, exactly as well.
    let (bits, group, scales) = match kind {
        BlockType::Q4_0 => (4, 32, Dtype::F16),
        BlockType::Q5_0 => (5, 32, Dtype::F16),
        BlockType::Q8_0 | BlockType::IQ4_NL => (8, 32, Dtype::F16),
        BlockType::IQ4_XS => (8, 32, Dtype::F32),
        BlockType::Q3_K | BlockType::Q6_K => (8, 16, Dtype::F32),
        _ => return None,
    };
    let granularity = Granularity::Group(NonZeroUsize::new(group)?);
    Some((WeightScheme::floats(Bits::new(bits)?, Symmetry::Symmetric, granularity), scales))
}

/// A 16-bit float at byte `at`.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibble i of sixteen bytes: the low ones are values 0 to 15, the high ones 16 to 31.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }
}

/// The fifth bit of value i.
fn high(bytes: &[u8], i: usize) -> u8 {
    (bytes[i / 8] >> (i % 8) & 1) << 4
}

/// Codes and scales of a block of a type that has a [`scheme`].
pub(super) fn codes(kind: BlockType, block: &[u8], codes: &mut [i8], scales: &mut [f32]) {
    let each = |codes: &mut [i8], code: &dyn Fn(usize) -> i8| codes.iter_mut().enumerate().for_each(|(i, c)| *c = code(i));
    match kind {
        BlockType::Q4_0 => each(codes, &|i| nibble(&block[2..], i) as i8 - 8),
        BlockType::Q5_0 => each(codes, &|i| (nibble(&block[6..], i) | high(&block[2..], i)) as i8 - 16),
        BlockType::Q8_0 => each(codes, &|i| block[2 + i] as i8),
        BlockType::IQ4_NL => each(codes, &|i| IQ4[usize::from(nibble(&block[2..], i))]),
        BlockType::IQ4_XS => return kquants::iq4_xs(block, codes, scales),
        BlockType::Q3_K => return kquants::q3_k(block, codes, scales),
        _ => return kquants::q6_k(block, codes, scales),
    }
    scales[0] = half_at(block, 0);
}

/// Values of a block of a type whose values have an offset.
pub(super) fn values(kind: BlockType, block: &[u8], out: &mut [f32]) {
    let (scale, offset) = (half_at(block, 0), half_at(block, 2));
    let each = |out: &mut [f32], code: &dyn Fn(usize) -> u8| {
        out.iter_mut().enumerate().for_each(|(i, value)| *value = scale * f32::from(code(i)) + offset);
    };
    match kind {
        BlockType::Q4_1 => each(out, &|i| nibble(&block[4..], i)),
        BlockType::Q5_1 => each(out, &|i| nibble(&block[8..], i) | high(&block[4..], i)),
        BlockType::Q2_K => kquants::q2_k(block, out),
        BlockType::Q4_K => kquants::q4_k(block, out),
        _ => kquants::q5_k(block, out),
    }
}
