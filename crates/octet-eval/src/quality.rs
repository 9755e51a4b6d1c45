//! How good a loaded model is, in a few numbers and quickly: what a search over variants calls again and again.

use crate::{
    Progress, Reference, Result,
    fidelity::{KlFigures, same_top_share},
    paired::ln_perplexity_ratio,
    score::Comparison,
    stats::Interval,
};
use octet_model::Model;

/// A variant against its original on one text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// ln(perplexity of the variant / perplexity of the original), in nats a token; infinite where a number was not finite.
    pub ln_ratio: f64,
    /// The same with its paired 95 % interval; `None` with fewer than 8 windows.
    pub interval: Option<Interval>,
    /// KL(original ‖ variant) in nats.
    pub kl: KlFigures,
    /// Share of tokens on which both put the same one first.
    pub top1: f64,
    /// Predicted tokens it rests on.
    pub tokens: usize,
}

impl Quality {
    /// Runs `variant` over the windows of `reference` ([`Reference::first`] makes a quicker, coarser one) and compares.
    ///
    /// Same model, reference and seed give the same figures, with any number of threads.
    ///
    /// # Errors
    /// If the vocabularies differ, the model fails or `progress` breaks off; numbers that are not finite are no error.
    pub fn measure(reference: &Reference, variant: &Model, seed: u64, progress: Progress<'_>) -> Result<Self> {
        Ok(Self::of(&reference.compare(variant, progress)?, seed))
    }

    /// The figures of a comparison.
    pub fn of(comparison: &Comparison, seed: u64) -> Self {
        let sum = |f: fn(&crate::paired::PairedWindow) -> f64| comparison.windows.iter().map(f).sum::<f64>();
        let tokens = comparison.tokens();
        let ln_ratio = (sum(|w| w.quant_nll) - sum(|w| w.base_nll)) / tokens.max(1) as f64;
        let broken = comparison.non_finite > 0 || !ln_ratio.is_finite();
        Self {
            ln_ratio: if broken { f64::INFINITY } else { ln_ratio },
            interval: if broken { None } else { ln_perplexity_ratio(&comparison.windows, seed) },
            kl: KlFigures::of(comparison).unwrap_or(KlFigures { mean: f64::NAN, median: f64::NAN, p99: f64::NAN, max: f64::NAN }),
            top1: same_top_share(comparison).unwrap_or(f64::NAN),
            tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::TokenFigures;

    #[test]
    fn figures_of_a_comparison_and_of_a_broken_one() {
        let mut comparison = Comparison::default();
        for window in 0..20 {
            comparison.begin(4, 10);
            for position in 0..4 {
                let shift = 0.01 * f64::from(window % 3);
                comparison.add(TokenFigures { base_nll: 2.0, quant_nll: 2.0 + shift, kl: 0.02, same_top: position > 0 }, position, 4);
            }
        }
        let quality = Quality::of(&comparison, 1);
        assert!((quality.ln_ratio - 0.0095).abs() < 1e-9 && (quality.kl.mean - 0.02).abs() < 1e-6, "{quality:?}");
        assert!(quality.top1 == 0.75 && quality.tokens == 80 && quality.interval.is_some_and(|i| i.low < i.estimate));
        comparison.add(TokenFigures::BROKEN, 3, 4);
        let broken = Quality::of(&comparison, 1);
        assert!(broken.ln_ratio.is_infinite() && broken.interval.is_none() && broken.kl.max.is_infinite());
    }
}
