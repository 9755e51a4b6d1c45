//! Small statistics: quantiles and the block bootstrap.

use crate::looks::Look;
use octet_runtime::Rng;
use serde::{Deserialize, Serialize};

/// Standard errors that a 95 % interval reaches to either side, where there are many blocks.
pub const Z_95: f64 = 1.959_964;

/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 1000;

/// Blocks from which an interval is good; with fewer it is approximate (and widened, see [`bootstrap_ratio`]).
pub const GOOD_BLOCKS: usize = 100;

/// Blocks below which there is no interval at all.
pub const LEAST_BLOCKS: usize = 8;

/// An estimate with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate from all data.
    pub estimate: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Independent blocks it rests on.
    pub blocks: usize,
}

impl Interval {
    /// The interval of `f` of the estimated figure, for an increasing `f`.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { estimate: f(self.estimate), low: f(self.low), high: f(self.high), ..self }
    }

    /// As wide as an interval of `look` must be.
    pub fn at(self, look: Look) -> Self {
        let wider = student(look.reach(), self.blocks - 1) / student(Z_95, self.blocks - 1);
        let end = |end: f64| self.estimate + wider * (end - self.estimate);
        Self { low: end(self.low), high: end(self.high), ..self }
    }

    /// Lower and upper end, as reports write them.
    pub fn ci95(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Whether it rests on too few blocks to be exact.
    pub fn is_approximate(&self) -> bool {
        self.blocks < GOOD_BLOCKS
    }
}

/// Estimates Σ numerator / Σ denominator over blocks with a 95 % percentile interval of the block bootstrap (Künsch 1989;
/// Efron and Tibshirani 1993, chapter 13): whole blocks are drawn with replacement, [`RESAMPLES`] times.
///
/// With few blocks the plain percentile interval is too narrow; it is widened about the estimate by
/// t(n − 1) / z · √(n / (n − 1)), the ratio of Student's interval to it for normal blocks. `None` with fewer than
/// [`LEAST_BLOCKS`] blocks or values that are not finite.
pub fn bootstrap_ratio(blocks: &[(f64, f64)], seed: u64) -> Option<Interval> {
    let n = blocks.len();
    let ratio = |sums: (f64, f64)| sums.0 / sums.1;
    let add = |sums: (f64, f64), block: &(f64, f64)| (sums.0 + block.0, sums.1 + block.1);
    let estimate = ratio(blocks.iter().fold((0.0, 0.0), add));
    if n < LEAST_BLOCKS || !estimate.is_finite() {
        return None;
    }
    let mut rng = Rng::new(seed);
    let mut resampled: Vec<f64> =
        (0..RESAMPLES).map(|_| ratio((0..n).fold((0.0, 0.0), |sums, _| add(sums, &blocks[rng.below(n)])))).collect();
    resampled.sort_by(f64::total_cmp);
    let wider = student(Z_95, n - 1) / Z_95 * (n as f64 / (n - 1) as f64).sqrt();
    let end = |p: f64| estimate + (quantile(&resampled, p) - estimate) * wider;
    Some(Interval { estimate, low: end(0.025), high: end(0.975), blocks: n })
}

/// The `p`-quantile of sorted values, linear between neighbours; NaN of nothing.
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = p.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) if a == b => *a,
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => f64::NAN,
    }
}

/// The quantile of Student's t where the normal distribution has `z` (Abramowitz and Stegun 1964, 26.7.5; up to z = 2.6 the
/// error is below 1 % from 7 degrees on).
fn student(z: f64, degrees: usize) -> f64 {
    let v = degrees as f64;
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    z + (z3 + z) / (4.0 * v)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * v * v)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * v.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A normal number (Box and Muller 1958).
    fn normal(rng: &mut Rng) -> f64 {
        (-2.0 * (1.0 - rng.unit()).ln()).sqrt() * (std::f64::consts::TAU * rng.unit()).cos()
    }

    /// Share of trials whose interval covers the true ratio, for skewed blocks of unequal weight.
    fn coverage(trials: usize, blocks: usize) -> f64 {
        let mut rng = Rng::new(20);
        let covered = (0..trials).filter(|&trial| {
            let data: Vec<(f64, f64)> = (0..blocks)
                .map(|_| {
                    let tokens = 200.0 + 100.0 * rng.unit();
                    // Exponential + normal noise a token: a skewed difference with mean 0.01.
                    let shock = 0.02 * (-(1.0 - rng.unit()).ln() - 1.0) + 0.02 * normal(&mut rng);
                    (tokens * (0.01 + shock), tokens)
                })
                .collect();
            bootstrap_ratio(&data, trial as u64).is_some_and(|i| i.low <= 0.01 && 0.01 <= i.high)
        });
        covered.count() as f64 / trials as f64
    }

    #[test]
    fn the_interval_covers_the_truth_19_times_in_20() {
        let share = coverage(2_000, 120);
        assert!((0.93..=0.97).contains(&share), "{share}");
    }

    #[test]
    fn few_blocks_widen_the_interval_enough() {
        let share = coverage(1_000, 12);
        assert!((0.92..=0.98).contains(&share), "{share}");
    }

    #[test]
    fn too_few_or_broken_blocks_give_no_interval() {
        assert_eq!(bootstrap_ratio(&[(1.0, 1.0); 7], 0), None);
        assert_eq!(bootstrap_ratio(&[(f64::NAN, 1.0); 20], 0), None);
        let same = bootstrap_ratio(&[(2.0, 4.0); 20], 0).unwrap();
        assert_eq!((same.low, same.estimate, same.high), (0.5, 0.5, 0.5));
    }

    #[test]
    fn quantiles_and_students_t() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
        for (degrees, t) in [(7, 2.364_6), (20, 2.086_0), (100, 1.984_0)] {
            assert!((student(Z_95, degrees) - t).abs() < 0.01, "{degrees}: {}", student(Z_95, degrees));
        }
        for (degrees, t) in [(7, 3.499_5), (20, 2.845_3), (100, 2.625_9)] {
            assert!((student(Look::First.reach(), degrees) / t - 1.0).abs() < 0.01, "{degrees}");
        }
    }
}
