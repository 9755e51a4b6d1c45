//! Rotary position embeddings (Su et al. 2021) and their scalings.

use std::f64::consts::PI;

/// A rotary embedding: dimensions i and i + `dims`/2 of a head turn by position · frequency i.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base θ of the frequencies θ^(−2i/dims).
    pub base: f32,
    /// How many of a head's first dimensions turn; the rest pass through.
    pub dims: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for contexts longer than those of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor` (Chen et al. 2023, position interpolation).
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, a linear blend between (Llama 3.1).
    Llama3 {
        /// The divisor.
        factor: f32,
        /// Wavelengths above original / low are divided.
        low: f32,
        /// Wavelengths below original / high are kept.
        high: f32,
        /// Context of pre-training.
        original: f32,
    },
    /// A ramp over dimensions between interpolation and none, and a factor on cosines and sines (Peng et al. 2023).
    Yarn {
        /// The divisor.
        factor: f32,
        /// Turns over the original context above which a frequency is kept.
        beta_fast: f32,
        /// Turns below which it is divided.
        beta_slow: f32,
        /// Whether the ramp's ends are rounded outwards to whole dimensions.
        truncate: bool,
        /// Context of pre-training.
        original: f32,
        /// Factor on cosines and sines.
        attention: f32,
    },
    /// A divisor for every frequency, one set up to the original context and one beyond it (Ding et al. 2024).
    LongRope {
        /// Divisors for sequences within the original context.
        short: Vec<f32>,
        /// Divisors for longer ones.
        long: Vec<f32>,
        /// Context of pre-training.
        original: usize,
        /// Factor on cosines and sines.
        attention: f32,
    },
}

impl Rope {
    /// The frequencies for a sequence that will be `total` tokens long: `dims` / 2 values, radians a token.
    pub fn frequencies(&self, total: usize) -> Vec<f32> {
        let exponents = (0..self.dims / 2).map(|i| (2 * i) as f32 / self.dims as f32);
        let plain = exponents.map(|e| self.base.powf(e));
        match &self.scaling {
            RopeScaling::Default => plain.map(|p| 1.0 / p).collect(),
            RopeScaling::Linear { factor } => plain.map(|p| 1.0 / p / factor).collect(),
            &RopeScaling::Llama3 { factor, low, high, original } => {
                plain.map(|p| llama3_frequency(1.0 / p, factor, low, high, original)).collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_ramp();
                let ramp = |i: usize| ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                plain.enumerate().map(|(i, p)| ramp(i) / (factor * p) + (1.0 - ramp(i)) / p).collect()
            }
            RopeScaling::LongRope { short, long, original, .. } => {
                let divisors = if total > *original { long } else { short };
                plain.zip(divisors).map(|(p, d)| 1.0 / (d * p)).collect()
            }
        }
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => attention,
            _ => 1.0,
        }
    }

    /// Length above which all positions turn by other frequencies than below it.
    pub fn switches_at(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    /// Appends, for each of `positions`, cos then sin of `dims` / 2 angles.
    pub fn append_table(&self, frequencies: &[f32], positions: std::ops::Range<usize>, table: &mut Vec<f32>) {
        let factor = self.attention_factor();
        for position in positions {
            table.extend(frequencies.iter().map(|f| (position as f32 * f).cos() * factor));
            table.extend(frequencies.iter().map(|f| (position as f32 * f).sin() * factor));
        }
    }

    /// First and last dimension of YaRN's ramp (Peng et al. 2023, section 3.2).
    fn yarn_ramp(&self) -> (f32, f32) {
        let &RopeScaling::Yarn { beta_fast, beta_slow, truncate, original, .. } = &self.scaling else { return (0.0, 1.0) };
        let dims = self.dims as f64;
        let corrected = |turns: f32| dims * (f64::from(original) / (f64::from(turns) * 2.0 * PI)).ln() / (2.0 * f64::from(self.base).ln());
        let (mut low, mut high) = (corrected(beta_fast), corrected(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        (low as f32, high as f32)
    }
}

fn llama3_frequency(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * PI as f32 / frequency;
    if wavelength < original / high {
        return frequency;
    }
    if wavelength > original / low {
        return frequency / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_and_divides_slow_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let rope = Rope { base: 500_000.0, dims: 64, scaling };
        let plain = Rope { scaling: RopeScaling::Default, ..rope.clone() }.frequencies(0);
        let scaled = rope.frequencies(0);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0));
    }

    #[test]
    fn longrope_switches_sets_by_total_length() {
        let scaling = RopeScaling::LongRope { short: vec![1.0, 2.0], long: vec![4.0, 8.0], original: 16, attention: 1.5 };
        let rope = Rope { base: 100.0, dims: 4, scaling };
        assert_eq!(rope.frequencies(16)[0], 1.0);
        assert_eq!(rope.frequencies(17)[0], 0.25);
        let mut table = Vec::new();
        rope.append_table(&rope.frequencies(1), 0..1, &mut table);
        assert_eq!(table, [1.5, 1.5, 0.0, 0.0]);
    }
}
