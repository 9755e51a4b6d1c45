//! How close the quantized model's predictions are to the original's.

use crate::{
    score::{Comparison, Stretch, TENTHS},
    stats::quantile,
};
use serde::{Deserialize, Serialize};

/// Distribution of KL(original ‖ quantized) over predicted tokens, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlFigures {
    /// Mean.
    #[serde(with = "crate::number")]
    pub mean: f64,
    /// Half of the tokens are below.
    #[serde(with = "crate::number")]
    pub median: f64,
    /// 99 of 100 tokens are below.
    #[serde(with = "crate::number")]
    pub p99: f64,
    /// The worst token.
    #[serde(with = "crate::number")]
    pub max: f64,
}

impl KlFigures {
    /// The figures of a comparison; `None` of an empty one.
    pub fn of(comparison: &Comparison) -> Option<Self> {
        let mut sorted: Vec<f64> = comparison.kl.iter().map(|&v| f64::from(v)).collect();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { mean, median: quantile(&sorted, 0.5), p99: quantile(&sorted, 0.99), max })
    }
}

/// Share of predicted tokens on which both models put the same token first; `None` without tokens.
pub fn same_top_share(comparison: &Comparison) -> Option<f64> {
    let tokens = comparison.tokens();
    (tokens > 0).then(|| comparison.same_top as f64 / tokens as f64)
}

/// Divergence along the context: one line a tenth of a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenth {
    /// Predicted tokens.
    pub tokens: usize,
    /// Mean KL divergence in nats.
    #[serde(with = "crate::number")]
    pub kl: f64,
    /// Perplexity of the quantized model over that of the original.
    #[serde(with = "crate::number")]
    pub ppl_ratio: f64,
}

/// The tenths of a comparison that hold tokens.
pub fn by_position(comparison: &Comparison) -> Vec<Tenth> {
    let sums = |tenth: usize| {
        comparison.tenths.iter().fold(Stretch::default(), |sum, window| Stretch {
            tokens: sum.tokens + window[tenth].tokens,
            kl: sum.kl + window[tenth].kl,
            delta: sum.delta + window[tenth].delta,
        })
    };
    let tenth = |sum: Stretch| {
        let n = sum.tokens as f64;
        Tenth { tokens: sum.tokens, kl: sum.kl / n, ppl_ratio: (sum.delta / n).exp() }
    };
    (0..TENTHS).map(sums).filter(|sum| sum.tokens > 0).map(tenth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_comparison() {
        let kl: Vec<f32> = (0..=100).map(|i| i as f32).collect();
        let comparison = Comparison { kl, same_top: 99, ..Comparison::default() };
        let figures = KlFigures::of(&comparison).unwrap();
        assert_eq!((figures.mean, figures.median, figures.p99, figures.max), (50.0, 50.0, 99.0, 100.0));
        assert_eq!(same_top_share(&comparison), Some(99.0 / 101.0));
        assert_eq!(KlFigures::of(&Comparison::default()), None);
    }

    #[test]
    fn one_infinite_token_shows() {
        let comparison = Comparison { kl: vec![0.0, f32::INFINITY], ..Comparison::default() };
        let figures = KlFigures::of(&comparison).unwrap();
        assert_eq!((figures.mean, figures.max), (f64::INFINITY, f64::INFINITY));
    }
}
