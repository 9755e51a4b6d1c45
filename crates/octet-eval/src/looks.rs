//! Judging that may stop early: a first look at part of the text, a last one at all of it, and how wide their intervals must be
//! so that both together err no more often than one.

use crate::{gates::Gate, gates::Outcome, stats::Z_95};
use serde::{Deserialize, Serialize};

/// A look at the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// All of the text at once; nothing else was going to be looked at.
    #[default]
    Only,
    /// Every second window of each text. Where that decides, the others are not run.
    First,
    /// All of the text, after a first look that did not decide.
    Last,
}

impl Look {
    /// How many standard errors its intervals reach to either side.
    ///
    /// An error of 5 % is split over the looks: 1 % for the first, 4 % for the last (error spending, Lan and DeMets 1983; with
    /// the union bound for what both have in common). So the interval that is reported, whichever look it comes from, misses
    /// the truth in at most 5 % of all judgements.
    pub fn reach(self) -> f64 {
        match self {
            Self::Only => Z_95,
            Self::First => 2.575_829,
            Self::Last => 2.053_749,
        }
    }
}

/// How much of the text was looked at, where it might have been less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// The look that decided.
    pub look: Look,
    /// Predicted tokens of it.
    pub tokens: usize,
    /// Predicted tokens there were.
    pub of: usize,
}

/// Whether the gates on quality leave nothing open: one refuses, or all that apply pass.
pub fn is_decided(gates: &[Gate]) -> bool {
    let quality = || gates.iter().filter(|gate| gate.name == "quality" || gate.name.starts_with("quality."));
    quality().any(|gate| gate.outcome == Outcome::Failed) || quality().all(|gate| gate.outcome != Outcome::Undecided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        paired::{Decision, decide},
        stats::bootstrap_ratio,
    };
    use octet_runtime::Rng;

    /// A judgement as [`crate::Evaluation`] makes it: the interval that would be reported, and the look it comes from.
    fn judge(blocks: &[(f64, f64)], limit: f64, seed: u64) -> (crate::stats::Interval, Look) {
        let half: Vec<(f64, f64)> = blocks.iter().copied().step_by(2).collect();
        let first = bootstrap_ratio(&half, seed).unwrap().at(Look::First);
        if !matches!(decide(Some(first), limit, 1, 1), Decision::Undecided { .. }) {
            return (first, Look::First);
        }
        (bootstrap_ratio(blocks, seed).unwrap().at(Look::Last), Look::Last)
    }

    /// Shares of trials whose interval covers, that stopped at the first look, and that were decided wrongly, where the true
    /// figure is `truth` and the limit 0.02.
    fn trials(truth: f64, trials: u64) -> (f64, f64, f64) {
        let mut rng = Rng::new(7);
        let (mut covered, mut early, mut wrong) = (0, 0, 0);
        for trial in 0..trials {
            // Skewed blocks: an exponential shock a token.
            let blocks: Vec<(f64, f64)> = (0..200).map(|_| (200.0 * (truth + 0.05 * (-(1.0 - rng.unit()).ln() - 1.0)), 200.0)).collect();
            let (interval, look) = judge(&blocks, 0.02, trial);
            covered += u64::from(interval.low <= truth && truth <= interval.high);
            early += u64::from(look == Look::First);
            let decided = if truth < 0.02 { interval.low >= 0.02 } else { interval.high < 0.02 };
            wrong += u64::from(decided);
        }
        [covered, early, wrong].map(|n| n as f64 / trials as f64).into()
    }

    #[test]
    fn two_looks_err_no_more_often_than_one() {
        // At the limit itself, where a wrong decision is likeliest, and where half of the text just decides.
        for truth in [0.02, 0.01] {
            let (covered, early, wrong) = trials(truth, 600);
            assert!((0.94..=0.99).contains(&covered), "{truth}: {covered}");
            assert!(wrong <= 0.04, "{truth}: {wrong} decided wrongly, {early} early");
        }
        let (covered, early, wrong) = trials(0.0, 300);
        assert!(covered > 0.94 && early > 0.7 && wrong == 0.0, "{covered} {early} {wrong}");
    }
}
