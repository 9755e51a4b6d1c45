//! The paired comparison of two models on the same windows: ln(perplexity ratio), its interval, and what follows from it.

use crate::stats::{Interval, LEAST_BLOCKS, bootstrap_ratio};

/// Negative log-likelihoods of both models on one window, in nats, summed over its predicted tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedWindow {
    /// Predicted tokens.
    pub tokens: usize,
    /// Bytes of text they stand for.
    pub bytes: usize,
    /// Of the original.
    pub base_nll: f64,
    /// Of the quantized model.
    pub quant_nll: f64,
}

/// ln(perplexity of the quantized model / perplexity of the original), in nats a token, with a bootstrap interval over
/// windows; `None` with too few windows or figures that are not finite.
pub fn ln_perplexity_ratio(windows: &[PairedWindow], seed: u64) -> Option<Interval> {
    let blocks: Vec<(f64, f64)> = windows.iter().map(|w| (w.quant_nll - w.base_nll, w.tokens as f64)).collect();
    bootstrap_ratio(&blocks, seed)
}

/// Difference in bits a byte of text (comparable across tokenizers), with its interval.
pub fn delta_bits_per_byte(windows: &[PairedWindow], seed: u64) -> Option<Interval> {
    let ln2 = std::f64::consts::LN_2;
    let blocks: Vec<(f64, f64)> = windows.iter().map(|w| ((w.quant_nll - w.base_nll) / ln2, w.bytes as f64)).collect();
    bootstrap_ratio(&blocks, seed)
}

/// Where an interval lies against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its upper end is below the limit.
    Below,
    /// Its lower end is at or above the limit.
    Above,
    /// It straddles the limit, or there is none.
    Undecided {
        /// About how many more tokens would decide; `None` where no reasonable amount would.
        more_tokens: Option<usize>,
    },
}

/// More text than this many times what there is is not worth asking for.
const MOST: f64 = 100.0;

/// Decides an interval made from `tokens` tokens of windows of `context` against `limit`.
///
/// The half-width of an interval falls with the square root of the text, so the text needed for it to end at the limit
/// is (half-width / distance)² times the text there is.
pub fn decide(interval: Option<Interval>, limit: f64, tokens: usize, context: usize) -> Decision {
    let Some(i) = interval else {
        return Decision::Undecided { more_tokens: Some((LEAST_BLOCKS * context).saturating_sub(tokens).max(context)) };
    };
    if i.high < limit {
        return Decision::Below;
    }
    if i.low >= limit {
        return Decision::Above;
    }
    let half_width = if i.estimate < limit { i.high - i.estimate } else { i.estimate - i.low };
    let times = (half_width / (limit - i.estimate).abs()).powi(2);
    let more = (tokens as f64 * (times - 1.0)).ceil().max(1.0);
    Decision::Undecided { more_tokens: (times <= MOST).then_some(more as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_runtime::Rng;
    use proptest::prelude::*;

    fn windows(n: usize, mean: f64, spread: f64, seed: u64) -> Vec<PairedWindow> {
        let mut rng = Rng::new(seed);
        (0..n)
            .map(|_| {
                let base = 400.0 * (3.0 + rng.unit());
                let difference = 400.0 * (mean + spread * (rng.unit() - 0.5));
                PairedWindow { tokens: 400, bytes: 1200, base_nll: base, quant_nll: base + difference }
            })
            .collect()
    }

    #[test]
    fn the_interval_is_about_differences_not_levels() {
        let i = ln_perplexity_ratio(&windows(120, 0.01, 0.02, 1), 5).unwrap();
        assert!((i.estimate - 0.01).abs() < 0.002 && i.high - i.low < 0.003, "{i:?}");
        let bits = delta_bits_per_byte(&windows(120, 0.01, 0.02, 1), 5).unwrap();
        assert!((bits.estimate - i.estimate / std::f64::consts::LN_2 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn decisions() {
        let interval = |low, estimate, high| Some(Interval { estimate, low, high, blocks: 20 });
        assert_eq!(decide(interval(0.0, 0.01, 0.019), 0.02, 1000, 100), Decision::Below);
        assert_eq!(decide(interval(0.02, 0.03, 0.04), 0.02, 1000, 100), Decision::Above);
        // Half-width 0.02, distance 0.01: four times the text is needed.
        assert_eq!(decide(interval(-0.01, 0.01, 0.03), 0.02, 1000, 100), Decision::Undecided { more_tokens: Some(3000) });
        assert_eq!(decide(interval(0.0, 0.02, 0.04), 0.02, 1000, 100), Decision::Undecided { more_tokens: None });
        assert_eq!(decide(None, 0.02, 250, 100), Decision::Undecided { more_tokens: Some(550) });
    }

    proptest! {
        #[test]
        fn swapping_the_models_mirrors_the_estimate(n in 10usize..40, mean in -0.1f64..0.1, seed: u64) {
            let there = windows(n, mean, 0.05, seed);
            let back: Vec<PairedWindow> =
                there.iter().map(|w| PairedWindow { base_nll: w.quant_nll, quant_nll: w.base_nll, ..*w }).collect();
            let (a, b) = (ln_perplexity_ratio(&there, 1).unwrap(), ln_perplexity_ratio(&back, 1).unwrap());
            prop_assert!((a.estimate + b.estimate).abs() < 1e-9);
            prop_assert!((a.low + b.high).abs() < 1e-9 && (a.high + b.low).abs() < 1e-9);
            prop_assert!(a.low <= a.estimate && a.estimate <= a.high);
        }

        #[test]
        fn shifting_every_window_shifts_the_interval(n in 10usize..40, shift in -0.1f64..0.1, seed: u64) {
            let plain = windows(n, 0.0, 0.05, seed);
            let moved: Vec<PairedWindow> =
                plain.iter().map(|w| PairedWindow { quant_nll: w.quant_nll + shift * w.tokens as f64, ..*w }).collect();
            let (a, b) = (ln_perplexity_ratio(&plain, 1).unwrap(), ln_perplexity_ratio(&moved, 1).unwrap());
            prop_assert!((a.low + shift - b.low).abs() < 1e-9 && (a.high + shift - b.high).abs() < 1e-9);
        }
    }
}
