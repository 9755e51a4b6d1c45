//! What a row of logits amounts to: its largest, the logarithm of its sum of exponentials, its entropy.

use crate::{
    Engine,
    simd::{LANES, Op, Simd, math::exp},
};

/// A row of logits, summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitSums {
    /// Place of the largest, the first of equals.
    pub top: usize,
    /// ln Σ e^logit; not finite where a logit is NaN or +∞, or all are −∞.
    pub log_sum: f64,
    /// Entropy of the softmax in nats; not finite where `log_sum` is not.
    pub entropy: f64,
}

impl Engine {
    /// Sums up one row of logits, in the order of its vectors whatever the threads. May be called from a task of
    /// [`Engine::run`].
    pub fn logit_sums(&self, logits: &[f32]) -> LogitSums {
        let largest = self.vectorize(Largest(logits));
        let top = logits.iter().position(|&logit| logit == largest).unwrap_or(0);
        let (total, weighted) = self.vectorize(Exponentials { logits, largest });
        LogitSums { top, log_sum: f64::from(largest) + total.ln(), entropy: total.ln() - weighted / total }
    }
}

/// The values of a row that fill no vector, filled up with what adds nothing.
#[inline(always)]
fn last<S: Simd>(s: S, rest: &[f32]) -> S::F {
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    s.load(&last)
}

/// The largest value; what it gives for NaN does not matter, since [`Exponentials`] finds it.
struct Largest<'a>(&'a [f32]);

impl Op for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (whole, rest) = self.0.as_chunks::<LANES>();
        let mut largest = last(s, rest);
        for vector in whole {
            largest = s.max(largest, s.load(vector));
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Σ e^d and Σ d·e^d over the distances d of the logits from the largest.
struct Exponentials<'a> {
    logits: &'a [f32],
    largest: f32,
}

/// Vectors summed in f32 before the sum moves to f64.
const RUN: usize = 32;

impl Op for Exponentials<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let (mut total, mut weighted) = (0f64, 0f64);
        let shift = s.splat(self.largest);
        for run in self.logits.chunks(RUN * LANES) {
            let mut sums = [s.splat(0.0); 2];
            // In loops, not in a closure: one of this size stays a function, which is not compiled for the instruction set.
            let (whole, rest) = run.as_chunks::<LANES>();
            for vector in whole {
                sums = add(s, sums, s.load(vector), shift);
            }
            if !rest.is_empty() {
                sums = add(s, sums, last(s, rest), shift);
            }
            total += f64::from(s.sum(sums[0]));
            weighted += f64::from(s.sum(sums[1]));
        }
        (total, weighted)
    }
}

/// The sums with one more vector in them.
#[inline(always)]
fn add<S: Simd>(s: S, [sum, moment]: [S::F; 2], vector: S::F, shift: S::F) -> [S::F; 2] {
    // What is so far below the largest that it weighs nothing must not make 0 · ∞.
    let distance = s.max(s.splat(-1e4), s.sub(vector, shift));
    let weight = exp(s, distance);
    [s.add(sum, weight), s.fma(weight, distance, moment)]
}
