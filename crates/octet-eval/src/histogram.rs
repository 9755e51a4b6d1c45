//! How divergence is spread over tokens, for drawing.

use crate::score::Comparison;
use serde::{Deserialize, Serialize};

/// Tokens whose divergence lies in one bin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// KL divergence in nats from which the bin reaches; the first reaches from zero.
    pub from: f64,
    /// KL divergence below which it ends; the last takes everything above.
    pub to: f64,
    /// Tokens in it.
    pub tokens: usize,
}

/// Bins a factor of ten.
const PER_DECADE: f64 = 2.0;

/// Decades shown: from a millionth of a nat to ten.
const DECADES: (i32, i32) = (-6, 1);

/// The divergences of a comparison in bins that are equally wide in logarithm.
pub fn kl_histogram(comparison: &Comparison) -> Vec<Bin> {
    let count = ((DECADES.1 - DECADES.0) as f64 * PER_DECADE) as usize;
    let edge = |i: usize| 10f64.powf(f64::from(DECADES.0) + i as f64 / PER_DECADE);
    let mut bins: Vec<Bin> = (0..count).map(|i| Bin { from: if i == 0 { 0.0 } else { edge(i) }, to: edge(i + 1), tokens: 0 }).collect();
    for &kl in &comparison.kl {
        let at = bins.partition_point(|bin| bin.to <= f64::from(kl)).min(count - 1);
        bins[at].tokens += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_bin() {
        let kl = vec![0.0, 2e-6, 0.02, 0.02, 5.0, 1e9, f32::INFINITY];
        let bins = kl_histogram(&Comparison { kl, ..Comparison::default() });
        assert_eq!((bins.len(), bins.iter().map(|b| b.tokens).sum::<usize>()), (14, 7));
        let holding: Vec<usize> = bins.iter().map(|b| b.tokens).filter(|&n| n > 0).collect();
        assert_eq!(holding, [2, 2, 3]);
        assert!(bins.windows(2).all(|pair| pair[0].to == pair[1].from));
    }
}
