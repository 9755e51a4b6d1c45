//! Scales in two steps: a whole number of eight bits for every group, times a factor of the row.

use crate::Dtype;

/// What turns the whole numbers of a row into its scales: scale = factor · whole / 128, whole numbers from −127 to 127.
///
/// The factor is about as large as the row's largest scale, so that it needs no more range than scales do. A product of
/// a 16-bit factor and a whole number is exact in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowFactor {
    /// What one whole number more adds to a scale.
    unit: f32,
}

/// The largest whole number.
const MOST: i8 = 127;
/// Parts of a factor.
const PARTS: f32 = 128.0;

impl RowFactor {
    /// The factor of a row of zeros.
    pub const ZERO: Self = Self { unit: 0.0 };

    /// The stored factor `factor`.
    pub fn new(factor: f32) -> Self {
        Self { unit: factor / PARTS }
    }

    /// The factor of type `dtype` whose largest scale is closest to `largest`.
    pub fn reaching(largest: f32, dtype: Dtype) -> Self {
        let factor = stored(largest.abs() * (PARTS / f32::from(MOST)), dtype);
        if factor.is_finite() { Self::new(factor) } else { Self::ZERO }
    }

    /// A factor of type `dtype` that all of `scales` are whole multiples of, or `None` where there is none. Where several
    /// are it is the smallest, so that it depends on nothing but the scales.
    pub fn of(scales: &[f32], dtype: Dtype) -> Option<Self> {
        let largest = scales.iter().fold(0.0f32, |most, scale| most.max(scale.abs()));
        if largest == 0.0 {
            return scales.iter().all(|&scale| scale == 0.0).then_some(Self::ZERO);
        }
        (1..=MOST).rev().find_map(|whole| {
            let factor = stored(largest * PARTS / f32::from(whole), dtype);
            let found = Self::new(factor);
            (factor.is_finite() && scales.iter().all(|&scale| found.scale(found.whole(scale)) == scale)).then_some(found)
        })
    }

    /// The factor as it is stored.
    pub fn factor(self) -> f32 {
        self.unit * PARTS
    }

    /// What a whole number of one stands for.
    pub fn unit(self) -> f32 {
        self.unit
    }

    /// The whole number closest to a scale.
    pub fn whole(self, scale: f32) -> i8 {
        if self.unit == 0.0 { 0 } else { self.steps(scale) as i8 }
    }

    /// The scale that a whole number stands for.
    pub fn scale(self, whole: i8) -> f32 {
        self.unit * f32::from(whole)
    }

    /// The closest scale that can be stored.
    pub fn round(self, scale: f32) -> f32 {
        if self.unit == 0.0 { 0.0 } else { self.unit * self.steps(scale) }
    }

    /// The scale as a number of units.
    fn steps(self, scale: f32) -> f32 {
        // Adding and taking off 1.5 · 2²³ rounds a small number half to even, without a call.
        const MAGIC: f32 = 12_582_912.0;
        let most = f32::from(MOST);
        ((scale / self.unit).clamp(-most, most) + MAGIC) - MAGIC
    }
}

/// The factor as it is stored: of one of 32 bits no more of the mantissa than leaves products exact.
fn stored(factor: f32, dtype: Dtype) -> f32 {
    if dtype == Dtype::F32 { f32::from_bits(factor.to_bits() & !0xff) } else { dtype.round(factor) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scales_without_a_common_factor_have_none() {
        assert_eq!(RowFactor::of(&[0.0, -0.0], Dtype::F16), Some(RowFactor::ZERO));
        assert_eq!(RowFactor::of(&[1.0, f32::NAN], Dtype::F16), None);
        assert_eq!(RowFactor::of(&[1.0, std::f32::consts::E / 3.0], Dtype::F16), None);
        // Only 127 and 128 parts: the second is not stored.
        let factor = RowFactor::new(1.5);
        assert_eq!(RowFactor::of(&[factor.scale(127), factor.unit() * 128.0], Dtype::F16), None);
        assert_eq!(RowFactor::reaching(f32::MAX, Dtype::F16).round(1.0), 0.0);
    }

    /// Half a step of a mantissa, relative to the smallest number.
    const BF16_STEP: f32 = 1.0 / 256.0;
    const F16_STEP: f32 = 1.0 / 2048.0;

    proptest! {
        #[test]
        fn what_is_rounded_is_stored(largest in 1e-4f32..100.0, shares in prop::collection::vec(-1.2f32..1.2, 1..40),
                                     dtype in prop::sample::select(vec![Dtype::F16, Dtype::Bf16, Dtype::F32])) {
            let factor = RowFactor::reaching(largest, dtype);
            prop_assert_eq!(dtype.round(factor.factor()), factor.factor());
            let step = if dtype == Dtype::Bf16 { BF16_STEP } else { F16_STEP };
            prop_assert!((factor.scale(127) / largest - 1.0).abs() <= step);
            let scales: Vec<f32> = shares.iter().map(|share| factor.round(share * largest)).collect();
            for (&scale, share) in scales.iter().zip(&shares) {
                prop_assert_eq!(factor.scale(factor.whole(scale)), scale);
                let wanted = (share * largest).clamp(-factor.scale(127), factor.scale(127));
                prop_assert!((scale - wanted).abs() <= factor.unit() * 0.5001);
            }
            let found = RowFactor::of(&scales, dtype).unwrap();
            prop_assert!(scales.iter().all(|&scale| found.scale(found.whole(scale)) == scale));
            let again: Vec<f32> = scales.iter().map(|&scale| found.scale(found.whole(scale))).collect();
            prop_assert_eq!(RowFactor::of(&again, dtype), Some(found));
        }
    }
}
