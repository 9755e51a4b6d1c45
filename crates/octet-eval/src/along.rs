//! Quality along the context: some bad models are good at the beginning of a text and break later.

use crate::{
    fidelity::{Tenth, by_position},
    score::{Comparison, Stretch, TENTHS},
    stats::{Interval, bootstrap_ratio},
};
use serde::{Deserialize, Serialize};

/// Ten tenths are looked at, so that the interval of each is this many times as wide as that of a single figure: about
/// 99.7 % instead of 95 %, which keeps all ten together at 97 %.
const WIDER: f64 = 1.5;

/// Divergence and perplexity ratio along windows of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Along {
    /// Tokens of a window.
    pub context: usize,
    /// Windows.
    pub windows: usize,
    /// From the first tenth of the window to the last.
    pub tenths: Vec<Tenth>,
    /// The tenth that is most surely worse than the others; `None` with too few windows.
    pub worst: Option<Worst>,
}

/// A tenth of the context against all others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Which one, counted from 1.
    pub tenth: usize,
    /// Its perplexity ratio (quantized over original) over that of the rest of the window, with an interval that holds for
    /// all ten tenths at once.
    pub excess: Interval,
}

impl Along {
    /// The curve of a comparison on windows of `context` tokens.
    pub fn of(comparison: &Comparison, context: usize, seed: u64) -> Self {
        let excesses = (0..TENTHS).filter_map(|tenth| Some(Worst { tenth: tenth + 1, excess: excess(&comparison.tenths, tenth, seed)? }));
        Self {
            context,
            windows: comparison.tenths.len(),
            tenths: by_position(comparison),
            worst: excesses.max_by(|a, b| a.excess.low.total_cmp(&b.excess.low)),
        }
    }

    /// First and last position of a tenth, counted from 1.
    pub fn positions(&self, tenth: usize) -> (usize, usize) {
        let end = |tenth: usize| (tenth * self.context).div_ceil(TENTHS);
        (end(tenth.saturating_sub(1)) + 1, end(tenth))
    }
}

/// Mean difference of a tenth less that of the rest of the same window, over windows that reach so far; as a ratio.
fn excess(windows: &[[Stretch; TENTHS]], tenth: usize, seed: u64) -> Option<Interval> {
    let difference = |window: &[Stretch; TENTHS]| {
        let here = window[tenth];
        let rest = window.iter().enumerate().filter(|(i, _)| *i != tenth);
        let (tokens, delta) = rest.fold((0, 0.0), |sum, (_, stretch)| (sum.0 + stretch.tokens, sum.1 + stretch.delta));
        (here.tokens > 0 && tokens > 0).then(|| (here.delta / here.tokens as f64 - delta / tokens as f64, 1.0))
    };
    let blocks: Vec<(f64, f64)> = windows.iter().filter_map(difference).collect();
    let plain = bootstrap_ratio(&blocks, seed)?;
    let wide = |end: f64| plain.estimate + WIDER * (end - plain.estimate);
    Some(Interval { low: wide(plain.low), high: wide(plain.high), ..plain }.map(f64::exp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gates::{self, Thresholds},
        score::TokenFigures,
    };
    use octet_runtime::Rng;

    /// Windows of 100 tokens with noise, whose tokens from `late` on are worse by `by` nats.
    fn comparison(windows: usize, late: usize, by: f64, seed: u64) -> Comparison {
        worsened(windows, seed, |position| if position >= late { by } else { 0.0 })
    }

    fn worsened(windows: usize, seed: u64, by: impl Fn(usize) -> f64) -> Comparison {
        let mut rng = Rng::new(seed);
        let mut all = Comparison::default();
        for _ in 0..windows {
            all.begin(99, 300);
            for position in 0..99 {
                let noise = 0.2 * (rng.unit() + rng.unit() - 1.0);
                let delta = noise + by(position);
                all.add(TokenFigures { base_nll: 3.0, quant_nll: 3.0 + delta, kl: delta.abs(), same_top: true }, position, 100);
            }
        }
        all
    }

    #[test]
    fn a_late_break_is_found_where_it_is() {
        let along = Along::of(&comparison(40, 90, 0.3, 1), 100, 1);
        let worst = along.worst.unwrap();
        assert_eq!((worst.tenth, along.positions(10), along.positions(1), along.tenths.len()), (10, (91, 100), (1, 10), 10));
        assert!(worst.excess.low > 1.2 && (worst.excess.estimate - 0.3f64.exp()).abs() < 0.05, "{worst:?}");
    }

    #[test]
    fn a_tenth_is_not_refused_because_the_rest_improved() {
        let gate = |by: fn(usize) -> f64| gates::position(&Along::of(&worsened(40, 1, by), 100, 1), &Thresholds::default());
        assert_eq!(gate(|position| if position >= 90 { 0.0 } else { -0.1 }).pass, Some(true));
        assert_eq!(gate(|position| if position >= 90 { 0.1 } else { 0.0 }).pass, Some(false));
    }

    #[test]
    fn even_damage_is_no_late_break() {
        for seed in 0..40 {
            let worst = Along::of(&comparison(40, 0, 0.1, seed), 100, 1).worst.unwrap();
            assert!(worst.excess.low < 1.02, "seed {seed}: {worst:?}");
        }
        assert_eq!(Along::of(&comparison(5, 0, 0.0, 1), 100, 1).worst, None);
    }
}
