//! Counting numbers that are not finite.

use octet_tensor::{Dtype, Tensor};

/// How many elements of a float tensor are infinite or not a number (0 for integer tensors).
pub fn count_non_finite(tensor: &Tensor) -> usize {
    count_non_finite_bytes(tensor.dtype(), tensor.bytes())
}

/// As [`count_non_finite`] for raw little-endian bytes, so that a caller can share a large tensor out among threads.
pub fn count_non_finite_bytes(dtype: Dtype, bytes: &[u8]) -> usize {
    match dtype {
        Dtype::F64 => count(bytes, |b| u64::from_le_bytes(b) << 1 >= 0x7ff << 53),
        Dtype::F32 => count(bytes, |b| u32::from_le_bytes(b) << 1 >= 0xff << 24),
        Dtype::F16 => count(bytes, |b| u16::from_le_bytes(b) << 1 >= 0x1f << 11),
        Dtype::Bf16 => count(bytes, |b| u16::from_le_bytes(b) << 1 >= 0xff << 8),
        // E4M3FN has no infinities and two NaNs; E5M2 follows IEEE 754.
        Dtype::F8E4m3 => count(bytes, |[b]| b << 1 == 0xfe),
        Dtype::F8E5m2 => count(bytes, |[b]| b << 1 >= 0xf8),
        _ => 0,
    }
}

/// Counts in short runs whose 16-bit sum cannot overflow, which the compiler turns into vector code.
fn count<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> usize {
    let runs = bytes.as_chunks::<N>().0.chunks(4096);
    runs.map(|run| usize::from(run.iter().map(|&b| u16::from(is_bad(b))).sum::<u16>())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_tensor::{Bytes, e4m3_to_f32};

    fn naive(dtype: Dtype, bytes: &[u8]) -> usize {
        let tensor = Tensor::new("t", dtype, vec![bytes.len() / dtype.size()], Bytes::new(bytes.to_vec())).unwrap();
        tensor.to_f32().unwrap().iter().filter(|v| !v.is_finite()).count()
    }

    #[test]
    fn every_16_and_8_bit_pattern_is_judged_as_its_value() {
        let all16: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            assert_eq!(count_non_finite_bytes(dtype, &all16), naive(dtype, &all16), "{dtype}");
        }
        let all8: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(count_non_finite_bytes(Dtype::F8E4m3, &all8), all8.iter().filter(|&&b| e4m3_to_f32(b).is_nan()).count());
        assert_eq!(count_non_finite_bytes(Dtype::F8E5m2, &all8), 8);
    }

    #[test]
    fn wide_floats_are_judged_at_their_edges() {
        let f32s = [0.0f32, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let bytes: Vec<u8> = f32s.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(count_non_finite_bytes(Dtype::F32, &bytes), 4);
        let bytes: Vec<u8> = f32s.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        assert_eq!(count_non_finite_bytes(Dtype::F64, &bytes), 4);
        let many = vec![0xffu8; 4 * 10_000];
        assert_eq!(count_non_finite_bytes(Dtype::F32, &many), 10_000);
        assert_eq!(count_non_finite_bytes(Dtype::I32, &many), 0);
    }
}
