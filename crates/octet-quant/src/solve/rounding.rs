//! Scales as they are stored.

use octet_kernels::CANDIDATES;
use octet_tensor::{Dtype, RowFactor};

/// What the scales of a row can be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stored {
    /// Numbers of a floating-point type.
    Float(Dtype),
    /// Whole multiples of what the row has.
    Whole(RowFactor),
}

impl Stored {
    /// The nearest scale that can be stored.
    pub(super) fn round(self, scale: f32) -> f32 {
        match self {
            Self::Float(dtype) => dtype.round(scale),
            Self::Whole(factor) => factor.round(scale),
        }
    }
}

/// How scales become what can be stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// What can be stored.
    pub(super) stored: Stored,
    /// Scales are given in units of 2 to this power.
    pub(super) exponent: i32,
}

impl Rounding {
    /// The nearest scales that can be stored, in the same units.
    pub(super) fn round(self, scales: [f32; CANDIDATES]) -> [f32; CANDIDATES] {
        match (self.stored, self.exponent) {
            (Stored::Float(Dtype::F32), 0) => scales,
            // The same as `Dtype::round` where numbers are finite, and vector work.
            (Stored::Float(Dtype::Bf16), 0) => scales.map(|scale| {
                let bits = scale.to_bits();
                f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
            }),
            (stored, 0) => scales.map(|scale| stored.round(scale)),
            (stored, exponent) => {
                let unit = 2f64.powi(exponent);
                scales.map(|scale| (f64::from(stored.round((f64::from(scale) * unit) as f32)) / unit) as f32)
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
            let plain = Rounding { stored: Stored::Float(dtype), exponent: 0 };
            let scaled = Rounding { exponent: -3, ..plain };
            for i in 0..1000u32 {
                let scales: [f32; CANDIDATES] = std::array::from_fn(|j| {
                    f32::from_bits(0x3c00_0000 + i * 79_190 + j as u32 * 7919) * if j % 2 == 0 { 1.0 } else { -1.0 }
                });
                assert_eq!(plain.round(scales), scales.map(|scale| dtype.round(scale)));
                assert_eq!(scaled.round(scales).map(|s| s / 8.0), scales.map(|scale| dtype.round(scale / 8.0)));
            }
        }
    }

    #[test]
    fn whole_scales_are_rounded_in_any_units() {
        let stored = Stored::Whole(RowFactor::new(0.5));
        let scales = std::array::from_fn(|j| 0.037 * j as f32 - 0.3);
        let plain = Rounding { stored, exponent: 0 }.round(scales);
        assert!(plain.iter().zip(scales).all(|(rounded, scale)| (rounded - scale).abs() <= 0.5 / 256.0));
        assert_eq!(Rounding { stored, exponent: 2 }.round(scales.map(|scale| scale / 4.0)).map(|scale| scale * 4.0), plain);
    }
}
