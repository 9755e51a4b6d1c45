//! A paired sign-flip test: is one side's figure larger by more than chance?

use octet_runtime::Rng;

/// Pairs up to which every one of the 2^n sign patterns is tried.
const EXACT_PAIRS: usize = 16;

/// Random sign patterns for more pairs.
const PATTERNS: usize = 100_000;

/// One-sided p-value of "the differences are larger than zero" (Fisher 1935; Good 2005, chapter 3): the share of sign
/// patterns whose sum is at least the one observed. Exact for up to 16 pairs, else from 100,000 seeded patterns.
///
/// Under the null hypothesis that both sides come from the same source every difference is symmetric about zero, whatever
/// its distribution, so the level is kept without further assumptions.
pub fn sign_flip_p(differences: &[f64], seed: u64) -> f64 {
    let moving: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let observed: f64 = moving.iter().sum();
    let least = observed - 1e-9 * moving.iter().map(|d| d.abs()).sum::<f64>();
    if moving.is_empty() || observed.is_nan() {
        return if observed.is_nan() { 0.0 } else { 1.0 };
    }
    if moving.len() <= EXACT_PAIRS {
        let patterns = 1u32 << moving.len();
        let reached = (0..patterns).filter(|&signs| signed_sum(&moving, u64::from(signs)) >= least).count();
        return reached as f64 / f64::from(patterns);
    }
    let mut rng = Rng::new(seed);
    let mut random = || moving.chunks(64).map(|chunk| signed_sum(chunk, rng.next_u64())).sum::<f64>();
    let reached = (0..PATTERNS).filter(|_| random() >= least).count();
    (reached + 1) as f64 / (PATTERNS + 1) as f64
}

fn signed_sum(values: &[f64], signs: u64) -> f64 {
    values.iter().enumerate().map(|(i, v)| if signs >> i & 1 == 1 { -v } else { *v }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_p_values() {
        assert_eq!(sign_flip_p(&[1.0; 10], 0), 1.0 / 1024.0);
        assert_eq!(sign_flip_p(&[0.0; 10], 0), 1.0);
        assert_eq!(sign_flip_p(&[], 0), 1.0);
        assert_eq!(sign_flip_p(&[-1.0; 10], 0), 1.0);
        // Sums 2, 4, −4 and −2: two of four reach the observed 2.
        assert_eq!(sign_flip_p(&[3.0, -1.0], 0), 0.5);
        assert!(sign_flip_p(&[0.5; 40], 0) < 2e-5);
    }

    #[test]
    fn the_level_is_kept() {
        let mut rng = Rng::new(1);
        let mut rejected = |pairs: usize, trials: usize| {
            let rejections = (0..trials).filter(|_| {
                let differences: Vec<f64> = (0..pairs).map(|_| (rng.unit() - rng.unit()).powi(3)).collect();
                sign_flip_p(&differences, 3) <= 0.05
            });
            rejections.count() as f64 / trials as f64
        };
        let share = rejected(10, 2_000);
        assert!((0.03..=0.065).contains(&share), "{share}");
    }
}
