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

/// Gives `f` the vectors of a row, the last one filled up with what adds nothing.
#[inline(always)]
fn each<S: Simd>(s: S, logits: &[f32], mut f: impl FnMut(S::F)) {
    let (whole, rest) = logits.as_chunks::<LANES>();
    for vector in whole {
        f(s.load(vector));
    }
    if !rest.is_empty() {
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        f(s.load(&last));
    }
}

/// The largest value; what it gives for NaN does not matter, since [`Exponentials`] finds it.
struct Largest<'a>(&'a [f32]);

impl Op for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut largest = s.splat(f32::NEG_INFINITY);
        each(s, self.0, |vector| largest = s.max(largest, vector));
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
        for run in self.logits.chunks(RUN * LANES) {
            let (mut sum, mut moment) = (s.splat(0.0), s.splat(0.0));
            each(s, run, |vector| {
                // What is so far below the largest that it weighs nothing must not make 0 · ∞.
                let distance = s.max(s.splat(-1e4), s.sub(vector, s.splat(self.largest)));
                let weight = exp(s, distance);
                sum = s.add(sum, weight);
                moment = s.fma(weight, distance, moment);
            });
            total += f64::from(s.sum(sum));
            weighted += f64::from(s.sum(moment));
        }
        (total, weighted)
    }
}
