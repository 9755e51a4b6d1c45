//! Speed of a quantized model against its original on the same engine: paired, alternating repetitions.

use crate::{
    Error, Result,
    memory::available_memory,
    stats::{Interval, bootstrap_ratio, quantile},
    timing::{Lane, Reading, Rounds, alternate, steps_within},
};
use octet_kernels::{Engine, limits::ReadBuffer};
use octet_model::Model;
use serde::{Deserialize, Serialize};
use std::{ops::ControlFlow, time::Duration};

/// How speed is measured.
#[derive(Clone, Copy, Debug)]
pub struct SpeedOptions {
    /// Pairs of repetitions of decoding; the order within a pair alternates. Half as many of a prompt, which is not judged.
    pub pairs: usize,
    /// Tokens in the cache when decoding starts.
    pub prompt_tokens: usize,
    /// Tokens of one prefill repetition; half of them where that takes the original more than a tenth of a second.
    pub prefill_tokens: usize,
    /// Time one repetition of the original should take at least.
    pub repetition: Duration,
    /// Time for all of it, about; fewer pairs are made when it runs out (never fewer than 8).
    pub budget: Duration,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Default for SpeedOptions {
    fn default() -> Self {
        Self {
            pairs: 16,
            prompt_tokens: 64,
            prefill_tokens: 256,
            repetition: Duration::from_millis(25),
            budget: Duration::from_secs(20),
            seed: 0,
        }
    }
}

/// Steps of a repetition at most.
const MOST_STEPS: usize = 256;

/// Seconds above which a prompt is halved: its speed is reported and scored, but decides nothing.
const SLOW_PROMPT: f64 = 0.1;

/// Pairs below which no interval can be given (see [`bootstrap_ratio`]).
const LEAST_PAIRS: usize = 8;

/// Speed of both models in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSpeed {
    /// Tokens a second of the original (median over pairs).
    pub base_tok_s: f64,
    /// Tokens a second of the quantized model (median over pairs).
    pub quant_tok_s: f64,
    /// How many times as fast the quantized model is: exp of the mean log ratio over pairs, with its interval; `None`
    /// where there were too few pairs.
    pub ratio: Option<Interval>,
    /// How far the original's times spread: (90 % − median) ÷ median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_spread: Option<f64>,
    /// How far the quantized model's do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant_spread: Option<f64>,
}

/// Whether the original's weights come from cache: then their number hardly costs time and fewer bits cannot show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheCheck {
    /// Bytes of the original's weights in 16 bits.
    pub bytes: usize,
    /// GB/s of a streaming read of a buffer of that size; `None` where it was not measured.
    pub read_gb_s: Option<f64>,
    /// Bytes of the large buffer compared with.
    pub large_bytes: usize,
    /// GB/s of a streaming read of the large buffer; `None` where it was not measured.
    pub large_read_gb_s: Option<f64>,
    /// Whether the smaller read is faster by more than [`CACHE_FACTOR`].
    pub served_from_cache: bool,
}

/// A read this many times as fast as one from memory is served from cache.
pub const CACHE_FACTOR: f64 = 1.25;

/// Time for which each of the two reads is repeated at least.
const CACHE_TIME: Duration = Duration::from_millis(30);

/// A buffer that no cache of two threads holds, and the largest there may be: clearing fresh memory takes longer than reading it.
const LARGE_BUFFER: usize = 384 << 20;
const LARGEST_BUFFER: usize = 1 << 30;

/// Least size of the large buffer: below it, nothing can be said about memory.
const LEAST_LARGE_BUFFER: usize = 256 << 20;

/// Speed of a quantized model relative to its original.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// One token after another.
    pub decode: PhaseSpeed,
    /// A whole prompt at once.
    pub prefill: PhaseSpeed,
    /// Tokens of that prompt.
    #[serde(default = "usual_prompt")]
    pub prompt: usize,
    /// Threads of the engine.
    pub threads: usize,
    /// Instruction set of the engine.
    pub isa: String,
    /// Where the original's weights are read from.
    pub cache: CacheCheck,
}

/// Measures decode and prefill of both models in alternating pairs; `tokens` are any tokens of their vocabulary.
///
/// `base` should be the original in 16 bits (see [`crate::SixteenBit`]), `cache` where its weights are read from.
///
/// # Errors
/// If there are no tokens, a model fails, or `progress` breaks off.
pub fn measure(
    base: &Model,
    quant: &Model,
    tokens: &[u32],
    cache: CacheCheck,
    options: &SpeedOptions,
    progress: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Speed> {
    let needed = 2;
    if tokens.len() < needed {
        return Err(Error::TooShort { name: "the text for measuring speed".into(), tokens: tokens.len(), needed });
    }
    let context = base.context().min(quant.context());
    let repeat = |n: usize| -> Vec<u32> { tokens.iter().copied().cycle().take(n.clamp(1, context)).collect() };
    let prompt = repeat(options.prompt_tokens.min(context / 2));
    let mut lanes = [Lane::new(base, None), Lane::new(quant, None)];
    let steps = lanes[0].steps_for(&prompt, options.repetition, MOST_STEPS)?.min(context - prompt.len());
    let decode = paired(&mut lanes, options, progress, &|lane| lane.decode(&prompt, 1, steps))?;
    let trial = repeat(options.prefill_tokens / 2);
    let text = repeat(options.prompt(lanes[0].prefill(&trial)?.seconds / trial.len() as f64));
    let half = SpeedOptions { pairs: options.pairs / 2, ..*options };
    let prefill = paired(&mut lanes, &half, progress, &|lane| lane.prefill(&text))?;
    let engine = quant.engine();
    Ok(Speed {
        decode: phase(&decode, steps, options.seed),
        prefill: phase(&prefill, text.len(), options.seed),
        prompt: text.len(),
        threads: engine.threads(),
        isa: engine.isa().to_string(),
        cache,
    })
}

/// The prompt of reports that do not say.
fn usual_prompt() -> usize {
    SpeedOptions::default().prefill_tokens
}

impl SpeedOptions {
    /// Tokens of a prompt of which the original takes so many seconds a token.
    fn prompt(&self, token: f64) -> usize {
        if token * self.prefill_tokens as f64 > SLOW_PROMPT { self.prefill_tokens / 2 } else { self.prefill_tokens }
    }

    fn rounds(&self) -> Rounds {
        Rounds { most: self.pairs.max(LEAST_PAIRS), least: LEAST_PAIRS, budget: self.budget / 2 }
    }
}

/// Seconds that [`measure`] takes with models (the original first) whose steps of decoding, and tokens of a prompt, take so long.
pub fn seconds(options: &SpeedOptions, models: [(f64, f64); 2]) -> f64 {
    let [(step, token), _] = models;
    // Once to warm up, then as often as there is time for.
    let repeated = |pair: f64, options: &SpeedOptions| {
        let rounds = options.rounds();
        let within = (rounds.budget.as_secs_f64() / pair.max(1e-9)).ceil() as usize;
        (1 + within.clamp(rounds.least, rounds.most)) as f64 * pair
    };
    let steps = steps_within(step, options.repetition, MOST_STEPS) as f64;
    let decode: f64 = models.iter().map(|(step, _)| steps * step).sum();
    let prompts: f64 = models.iter().map(|(_, token)| options.prompt_tokens as f64 * token).sum();
    let prefill: f64 = models.iter().map(|(_, token)| options.prompt(models[0].1) as f64 * token).sum();
    let trial = (options.prefill_tokens / 2) as f64 * token;
    let half = SpeedOptions { pairs: options.pairs / 2, ..*options };
    prompts + 3.0 * step + repeated(decode, options) + trial + repeated(prefill, &half)
}

/// Seconds of (original, quantized) in alternation, warm-up left out.
fn paired(
    lanes: &mut [Lane<'_>; 2],
    options: &SpeedOptions,
    progress: &mut dyn FnMut() -> ControlFlow<()>,
    time: &dyn Fn(&mut Lane<'_>) -> Result<Reading>,
) -> Result<Vec<(f64, f64)>> {
    lanes.iter_mut().try_for_each(|lane| time(lane).map(drop))?;
    let rounds = options.rounds();
    let mut turns = 0;
    let mut once_a_pair = || {
        turns += 1;
        if turns % 2 == 0 { progress() } else { ControlFlow::Continue(()) }
    };
    let all = alternate(2, rounds, &mut once_a_pair, &mut |model| time(&mut lanes[model]).map(|reading| reading.seconds))?;
    Ok(all.iter().map(|pair| (pair[0], pair[1])).collect())
}

fn phase(pairs: &[(f64, f64)], tokens: usize, seed: u64) -> PhaseSpeed {
    let logs: Vec<(f64, f64)> = pairs.iter().map(|(base, quant)| ((base / quant).ln(), 1.0)).collect();
    let rate = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        tokens as f64 / quantile(&seconds, 0.5)
    };
    let spread = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        let median = quantile(&seconds, 0.5);
        Some((quantile(&seconds, 0.9) - median) / median).filter(|spread| spread.is_finite())
    };
    PhaseSpeed {
        base_tok_s: rate(pairs.iter().map(|p| p.0).collect()),
        quant_tok_s: rate(pairs.iter().map(|p| p.1).collect()),
        ratio: bootstrap_ratio(&logs, seed).map(|interval| interval.map(f64::exp)),
        base_spread: spread(pairs.iter().map(|p| p.0).collect()),
        quant_spread: spread(pairs.iter().map(|p| p.1).collect()),
    }
}

/// Measures whether a buffer as large as the original's weights is read faster than one no cache holds.
pub fn check_cache(engine: &Engine, bytes: usize) -> CacheCheck {
    let room = available_memory().map_or(usize::MAX, |free| (free / 4) as usize);
    let large_bytes = (2 * bytes).clamp(LARGE_BUFFER, LARGEST_BUFFER).min(room);
    let unmeasured = CacheCheck { bytes, read_gb_s: None, large_bytes, large_read_gb_s: None, served_from_cache: false };
    if bytes == 0 || bytes > large_bytes / 2 || large_bytes < LEAST_LARGE_BUFFER {
        return unmeasured;
    }
    let buffer = ReadBuffer::new(large_bytes);
    let [read, large] = [bytes, large_bytes].map(|bytes| buffer.gb_s(engine, bytes, CACHE_TIME));
    CacheCheck { read_gb_s: Some(read), large_read_gb_s: Some(large), served_from_cache: read > CACHE_FACTOR * large, ..unmeasured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_paired_and_multiplicative() {
        // The machine slows down threefold in the middle of the run; the ratio does not notice.
        let pairs: Vec<(f64, f64)> = (0..12)
            .map(|i| {
                let load = if i < 6 { 1.0 } else { 3.0 };
                (load * 0.2, load * (0.1 + 0.001 * f64::from(i % 3)))
            })
            .collect();
        let speed = phase(&pairs, 10, 0);
        let ratio = speed.ratio.unwrap();
        assert!((ratio.estimate - 1.98).abs() < 0.01 && ratio.high - ratio.low < 0.05, "{speed:?}");
        // Median of 0.2 s and 0.6 s.
        assert!((speed.base_tok_s - 25.0).abs() < 1e-9);
        assert_eq!(phase(&pairs[..5], 10, 0).ratio, None);
    }

    #[test]
    fn what_is_slow_is_measured_more_briefly() {
        let options = SpeedOptions::default();
        assert_eq!((options.prompt(1e-4), options.prompt(1e-3)), (256, 128));
        let [quick, slow, slowest] = [1e-3, 0.1, 1.0].map(|step| seconds(&options, [(step, 1e-4), (step, 1e-4)]));
        // 16 pairs of 25 steps and one to warm up; of 0.8 s 13 pairs fit into half of the budget; 8 there are always.
        assert!((quick - 17.0 * 0.05 - 0.003 - 0.0128 - 0.0128 - 9.0 * 0.0512).abs() < 1e-9, "{quick}");
        assert!((slow - 14.0 * 0.8 - 0.3 - 0.4864).abs() < 1e-9, "{slow}");
        assert!((slowest - 9.0 * 8.0 - 3.0 - 0.4864).abs() < 1e-9, "{slowest}");
    }
}
