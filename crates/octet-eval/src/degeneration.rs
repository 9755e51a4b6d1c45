//! Figures that tell a degenerate text from a healthy one; of each, more is worse.

use flate2::{Compression, write::ZlibEncoder};
use serde::{Deserialize, Serialize};
use std::io::Write;

/// Longest period of a loop, in tokens.
const LONGEST_PERIOD: usize = 64;

/// Repetitions from which a repeated passage is a loop.
const LOOP_REPEATS: usize = 3;

/// Entropy in nats below which a step leaves the model no choice.
const ENTROPY_FLOOR: f32 = 0.05;

/// Steps in a row below the floor from which they count.
const FLOOR_RUN: usize = 32;

/// Figures of one generated text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextFigures {
    /// 1 − distinct 4-grams / 4-grams (Welleck et al. 2020, "Neural text generation with unlikelihood training", 5.2).
    pub repetition: f64,
    /// Share of the tokens in the longest loop: a passage of up to 64 tokens three times or more in a row.
    pub longest_loop: f64,
    /// 1 − compressed bytes / bytes, with zlib.
    pub redundancy: f64,
    /// Share of the steps in runs of 32 or more whose entropy is below 0.05 nats.
    pub entropy_floor: f64,
    /// 1 if the text did not stop by itself, else 0.
    pub never_stops: f64,
}

/// Names of the figures, in the order of [`TextFigures::values`].
pub const FIGURES: [&str; 5] = ["repetition", "longest_loop", "redundancy", "entropy_floor", "never_stops"];

impl TextFigures {
    /// The figures of a text, its tokens, the entropy in nats of each step, and whether it stopped by itself.
    pub fn of(text: &str, ids: &[u32], entropies: &[f32], stopped: bool) -> Self {
        Self {
            repetition: repetition(ids),
            longest_loop: longest_loop(ids) as f64 / ids.len().max(1) as f64,
            redundancy: redundancy(text.as_bytes()),
            entropy_floor: floor_steps(entropies) as f64 / entropies.len().max(1) as f64,
            never_stops: if stopped { 0.0 } else { 1.0 },
        }
    }

    /// All figures, in the order of [`FIGURES`].
    pub fn values(&self) -> [f64; 5] {
        [self.repetition, self.longest_loop, self.redundancy, self.entropy_floor, self.never_stops]
    }

    /// The mean of several texts' figures.
    pub fn mean(all: &[Self]) -> Self {
        let n = all.len().max(1) as f64;
        let mean = |f: fn(&Self) -> f64| all.iter().map(f).sum::<f64>() / n;
        Self {
            repetition: mean(|t| t.repetition),
            longest_loop: mean(|t| t.longest_loop),
            redundancy: mean(|t| t.redundancy),
            entropy_floor: mean(|t| t.entropy_floor),
            never_stops: mean(|t| t.never_stops),
        }
    }
}

fn repetition(ids: &[u32]) -> f64 {
    let all = ids.windows(4);
    let count = all.len();
    let distinct: std::collections::HashSet<&[u32]> = all.collect();
    if count == 0 { 0.0 } else { 1.0 - distinct.len() as f64 / count as f64 }
}

/// Tokens of the longest stretch with a period of up to [`LONGEST_PERIOD`] that holds at least [`LOOP_REPEATS`] of them.
fn longest_loop(ids: &[u32]) -> usize {
    let mut longest = 0;
    for period in 1..=LONGEST_PERIOD.min(ids.len() / LOOP_REPEATS) {
        let mut run = 0;
        for i in period..ids.len() {
            run = if ids[i] == ids[i - period] { run + 1 } else { 0 };
            if run + period >= LOOP_REPEATS * period {
                longest = longest.max(run + period);
            }
        }
    }
    longest
}

fn redundancy(text: &[u8]) -> f64 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let compressed = encoder.write_all(text).and_then(|()| encoder.finish());
    match compressed {
        Ok(bytes) if !text.is_empty() => (1.0 - bytes.len() as f64 / text.len() as f64).max(0.0),
        _ => 0.0,
    }
}

fn floor_steps(entropies: &[f32]) -> usize {
    let runs = entropies.split(|&e| e >= ENTROPY_FLOOR).map(<[f32]>::len);
    runs.filter(|&n| n >= FLOOR_RUN).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loops_are_found_with_their_length() {
        let tail =
            |period: usize, repeats: usize| -> Vec<u32> { (100..140).chain((0..period * repeats).map(|i| (i % period) as u32)).collect() };
        assert_eq!(longest_loop(&tail(5, 4)), 20);
        assert_eq!(longest_loop(&tail(5, 2)), 0);
        assert_eq!(longest_loop(&tail(64, 3)), 192);
        assert_eq!(longest_loop(&[7, 7, 7]), 3);
        assert_eq!(longest_loop(&(0..300).collect::<Vec<_>>()), 0);
        assert_eq!(longest_loop(&[]), 0);
    }

    #[test]
    fn healthy_and_degenerate_texts_differ_in_every_figure() {
        let ids: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(2_654_435_761) >> 20).collect();
        let words: String = ids.iter().map(|i| format!("{i:x} ")).collect();
        let healthy = TextFigures::of(&words, &ids, &[1.5; 200], true);
        let looping = TextFigures::of(&"the same ".repeat(100), &[5, 6].repeat(100), &[0.01; 200], false);
        for ((name, a), b) in FIGURES.iter().zip(healthy.values()).zip(looping.values()) {
            assert!(b > a + 0.3, "{name}: {a} {b}");
        }
        assert_eq!(looping.longest_loop, 1.0);
    }

    #[test]
    fn only_long_runs_below_the_floor_count() {
        let steps = |n: usize| vec![0.01; n];
        assert_eq!(floor_steps(&steps(31)), 0);
        assert_eq!(floor_steps(&[steps(32), vec![1.0], steps(10), vec![1.0], steps(40)].concat()), 72);
    }

    proptest! {
        #[test]
        fn figures_are_shares(ids in prop::collection::vec(0u32..6, 0..120), text in ".{0,80}", stopped: bool) {
            let entropies = vec![0.5; ids.len()];
            for value in TextFigures::of(&text, &ids, &entropies, stopped).values() {
                prop_assert!((0.0..=1.0).contains(&value));
            }
        }
    }
}
