//! How long a verdict will take, from a short trial on this machine.

use crate::{
    Result,
    health::{HealthOptions, MODES},
    speed::SpeedOptions,
};
use octet_model::{Logits, Model, Sequence, Step};
use std::time::Instant;

/// Tokens of the trial's prompt.
const TRIAL_TOKENS: usize = 256;

/// Steps of the trial's decoding that are timed; the fastest counts.
const TRIAL_STEPS: usize = 4;

/// What the statistics of a token (its divergence, entropy, top tokens) cost beside the forward pass.
const STATISTICS: f64 = 1.05;

/// Pace of one model in the two phases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds a token of a window takes.
    pub token: f64,
    /// Seconds a step takes in which the texts of the health check, of both modes, all grow by a token.
    pub step: f64,
    /// Seconds a step takes with one sequence.
    pub single: f64,
}

impl Pace {
    /// Times `model` for a fraction of a second; from each of `prompts` prompts the health check generates in every mode.
    ///
    /// # Errors
    /// If the model fails.
    pub fn of(model: &Model, ids: &[u32], prompts: usize) -> Result<Self> {
        let prompt: Vec<u32> = ids.iter().copied().take(TRIAL_TOKENS.min(model.context() / 2)).collect();
        let mut out = vec![];
        let mut seconds = vec![];
        for _ in 0..2 {
            let mut sequence = model.new_sequence();
            let started = Instant::now();
            model.forward(&mut [Step { sequence: &mut sequence, tokens: &prompt, logits: Logits::All }], &mut out, None)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        let token = seconds.iter().copied().fold(f64::INFINITY, f64::min) / prompt.len().max(1) as f64;
        let mut steps = |count: usize| -> Result<f64> {
            let mut sequences: Vec<Sequence> = (0..count.max(1)).map(|_| model.new_sequence()).collect();
            let mut fastest = f64::INFINITY;
            for _ in 0..TRIAL_STEPS {
                let tokens = &prompt[..1.min(prompt.len())];
                let mut batch: Vec<Step<'_>> =
                    sequences.iter_mut().map(|sequence| Step { sequence, tokens, logits: Logits::Last }).collect();
                let started = Instant::now();
                model.forward(&mut batch, &mut out, None)?;
                // A step's entropies; and drawing costs about as much.
                for _ in 0..2 {
                    let entropies = out.chunks_exact(model.spec().vocab_size()).map(|row| model.engine().logit_sums(row).entropy);
                    std::hint::black_box(entropies.sum::<f64>());
                }
                fastest = fastest.min(started.elapsed().as_secs_f64());
            }
            Ok(fastest)
        };
        Ok(Self { token, step: steps(MODES.len() * prompts)?, single: steps(1)? })
    }

    /// Seconds for so many tokens of windows and the texts of the health check.
    fn judged(&self, tokens: usize, health: &HealthOptions) -> f64 {
        STATISTICS * (tokens as f64 * self.token + health.tokens as f64 * self.step)
    }
}

/// Seconds that judging a variant on so many `tokens` will take: its own passes, the original's where they are not stored, and
/// the paired measurement of speed.
pub fn forecast(original: &Pace, variant: &Pace, tokens: usize, health: &HealthOptions, speed: &SpeedOptions, stored: bool) -> f64 {
    let repetition = speed.repetition.as_secs_f64();
    let decode = repetition.max(original.single) * (1.0 + variant.single / original.single);
    let prefill = speed.prefill_tokens as f64 * (original.token + variant.token);
    let timed = |pairs: usize, pair: f64| (pairs as f64 * pair).min(speed.budget.as_secs_f64() / 2.0 + pair);
    let own = variant.judged(tokens, health);
    own + if stored { 0.0 } else { original.judged(tokens, health) } + timed(speed.pairs, decode) + timed(speed.pairs / 2, prefill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_not_forecast_again() {
        let pace = Pace { token: 1e-3, step: 0.01, single: 0.004 };
        let (health, speed) = (HealthOptions::default(), SpeedOptions::default());
        let both = forecast(&pace, &pace, 10_000, &health, &speed, false);
        let one = forecast(&pace, &pace, 10_000, &health, &speed, true);
        // 10,000 tokens at 1 ms and 256 steps at 10 ms, with 5 % for statistics.
        assert!((both - one - 1.05 * 12.56).abs() < 1e-9, "{both} {one}");
        let twice = forecast(&pace, &Pace { token: 2e-3, ..pace }, 10_000, &health, &speed, true);
        assert!(twice > one + 10.0);
    }
}
