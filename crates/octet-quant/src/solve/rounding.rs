//! Scales as their storage type holds them.

use octet_kernels::CANDIDATES;
use octet_tensor::Dtype;

/// How scales become what their storage type holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// The storage type.
    pub(super) dtype: Dtype,
    /// Scales are given in units of 2 to this power.
    pub(super) exponent: i32,
}

impl Rounding {
    /// The nearest scales that can be stored, in the same units.
    pub(super) fn round(self, scales: [f32; CANDIDATES]) -> [f32; CANDIDATES] {
        match (self.dtype, self.exponent) {
            (Dtype::F32, 0) => scales,
            // The same as `Dtype::round` where numbers are finite, and vector work.
            (Dtype::Bf16, 0) => scales.map(|scale| {
                let bits = scale.to_bits();
                f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
            }),
            (dtype, 0) => scales.map(|scale| dtype.round(scale)),
            (dtype, exponent) => {
                let unit = 2f64.powi(exponent);
                scales.map(|scale| (f64::from(dtype.round((f64::from(scale) * unit) as f32)) / unit) as f32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_storage_type() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let plain = Rounding { dtype, exponent: 0 };
            let scaled = Rounding { dtype, exponent: -3 };
            for i in 0..1000u32 {
                let scales: [f32; CANDIDATES] = std::array::from_fn(|j| {
                    f32::from_bits(0x3c00_0000 + i * 79_190 + j as u32 * 7919) * if j % 2 == 0 { 1.0 } else { -1.0 }
                });
                assert_eq!(plain.round(scales), scales.map(|scale| dtype.round(scale)));
                assert_eq!(scaled.round(scales).map(|s| s / 8.0), scales.map(|scale| dtype.round(scale / 8.0)));
            }
        }
    }
}
