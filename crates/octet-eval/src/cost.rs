//! How long a verdict will take, from a short trial on this machine.

use crate::{
    Result, Side,
    health::{HealthOptions, MODES},
    reference,
    score::{Runner, per_row, rows_at_once},
    speed::{self, SpeedOptions},
    timing::Lane,
};
use octet_model::{Logits, Model, Sequence, Step};
use octet_runtime::{Sampler, SamplerConfig, draw_each};
use std::time::Instant;

/// Tokens of a piece of the trial's window.
const PIECE: usize = 448;

/// Seconds of a trial that is worth repeating.
const SOON: f64 = 0.1;

/// Steps of the trial's decoding that are timed; the fastest counts.
const TRIAL_STEPS: usize = 4;

/// Pace of a model in windows of text and in texts of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds a token of a window takes that nothing stands before.
    pub token: f64,
    /// How many more it takes for every token before it.
    pub depth: f64,
    /// Seconds a step takes in which all texts of the health check, of both modes, grow by a token, where they hold hardly any.
    pub step: f64,
    /// How many more it takes for every token that a text holds.
    pub held: f64,
}

/// What is timed of a model for [`Pace`].
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    /// Tokens of some text.
    pub ids: &'a [u32],
    /// Which side of a judgement it is.
    pub side: Side,
    /// How its texts are generated.
    pub health: &'a HealthOptions,
}

impl Pace {
    /// Times `model` for a second or less.
    ///
    /// # Errors
    /// If the model fails.
    pub fn of(model: &Model, trial: Trial<'_>) -> Result<Self> {
        // A piece of a window, then one that is followed by a second: what comes later in a window takes longer.
        let room = model.context().saturating_sub(TRIAL_STEPS) / 2;
        let piece = PIECE.min(rows_at_once(model, 1)).min(room).max(1);
        let text: Vec<u32> = trial.ids.iter().copied().cycle().take(2 * piece).collect();
        let mut fastest = [f64::INFINITY; 2];
        let mut runners = vec![];
        for pieces in 1..=2 {
            let mut runner = Runner::new(model);
            for (tokens, fastest) in text.chunks(piece).zip(&mut fastest).take(pieces) {
                let started = Instant::now();
                runner.forward(tokens)?;
                statistics(model, &runner, tokens.len(), trial.side);
                *fastest = fastest.min(started.elapsed().as_secs_f64());
            }
            runners.push(runner);
        }
        let [first, second] = fastest.map(|seconds| seconds / piece as f64);
        let depth = ((second - first) / piece as f64).max(0.0);
        let mut long: Vec<Sequence> = runners.into_iter().map(Runner::into_sequence).collect();
        let mut short: Vec<Sequence> = long.iter().map(|_| model.new_sequence()).collect();
        let holding = long.iter().map(Sequence::len).sum::<usize>() as f64;
        let (far, near) = (step(model, &text, &mut long, trial.health)?, step(model, &text, &mut short, trial.health)?);
        let held = ((far - near) / holding).max(0.0);
        drop((long, short));
        let mut texts: Vec<Sequence> = (0..sequences(trial.health)).map(|_| model.new_sequence()).collect();
        let step = step(model, &text, &mut texts, trial.health)?;
        Ok(Self { token: (first - depth * piece as f64 / 2.0).max(0.0), depth, step, held })
    }

    /// Seconds for windows of so many tokens each.
    fn windows(&self, lengths: &[usize]) -> f64 {
        lengths.iter().map(|&tokens| self.token * tokens as f64 + self.depth * (tokens * tokens) as f64 / 2.0).sum()
    }

    /// Seconds for the texts of the health check, if none of them ends before its time.
    fn texts(&self, health: &HealthOptions) -> f64 {
        let (texts, tokens) = (sequences(health) as f64, health.tokens as f64);
        let holding = texts * (health.prompt_tokens as f64 + tokens / 2.0);
        texts * health.prompt_tokens as f64 * self.token + tokens * (self.step + self.held * holding)
    }
}

fn sequences(health: &HealthOptions) -> usize {
    MODES.len() * health.prompts.max(1)
}

/// What is done with every row of logits.
fn statistics(model: &Model, runner: &Runner<'_>, rows: usize, side: Side) {
    let engine = model.engine();
    per_row(engine, rows, |row| match side {
        Side::Original => reference::rehearse(engine, runner.row(row)),
        Side::Variant => drop(std::hint::black_box(engine.logit_sums(runner.row(row)))),
    });
}

/// Seconds of the fastest of a few steps in which all sequences grow by a token, half of them greedily.
fn step(model: &Model, text: &[u32], sequences: &mut [Sequence], health: &HealthOptions) -> Result<f64> {
    let (engine, vocab, count) = (model.engine(), model.spec().vocab_size(), sequences.len());
    let config = |at: usize| {
        if 2 * at < count { SamplerConfig::greedy() } else { SamplerConfig::sampled(health.temperature, health.seed) }
    };
    let mut samplers = (0..count).map(|at| Ok(Sampler::new(config(at), &[])?)).collect::<Result<Vec<_>>>()?;
    let (mut fastest, mut out) = (f64::INFINITY, vec![]);
    let room = model.context() - sequences.iter().map(Sequence::len).max().unwrap_or(0);
    for at in 0..TRIAL_STEPS.min(text.len()).min(room) {
        let tokens = &text[at..at + 1];
        let mut batch: Vec<Step<'_>> = sequences.iter_mut().map(|sequence| Step { sequence, tokens, logits: Logits::Last }).collect();
        let started = Instant::now();
        model.forward(&mut batch, &mut out, None)?;
        for row in out.chunks_exact(vocab) {
            std::hint::black_box(engine.logit_sums(row).entropy);
        }
        let draws = samplers.iter_mut().zip(out.chunks_exact_mut(vocab)).map(|(sampler, row)| (sampler, at, row)).collect();
        for drawn in draw_each(engine, draws) {
            drawn?;
        }
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    Ok(if fastest.is_finite() { fastest } else { 0.0 })
}

/// How long a model's turns in the paired measurement of speed take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Seconds of a decoding step of one sequence.
    pub step: f64,
    /// Seconds a token of a prompt takes.
    pub token: f64,
}

impl Turn {
    /// Times `model` for a fraction of a second.
    ///
    /// # Errors
    /// If the model fails.
    pub fn of(model: &Model, ids: &[u32], options: &SpeedOptions) -> Result<Self> {
        let mut lane = Lane::new(model, None);
        let prompt: Vec<u32> = ids.iter().copied().cycle().take(options.prefill_tokens.clamp(1, model.context())).collect();
        // A second time where the first is over soon, and may have been spent on fresh memory.
        let mut fastest = lane.prefill(&prompt)?.seconds;
        if fastest < SOON {
            fastest = fastest.min(lane.prefill(&prompt)?.seconds);
        }
        let held = &prompt[..options.prompt_tokens.clamp(1, prompt.len().div_ceil(2))];
        let steps = TRIAL_STEPS.min(model.context() - held.len()).max(1);
        lane.decode(held, 1, 1)?;
        let decoded = lane.decode(held, 1, steps)?.seconds;
        Ok(Self { step: decoded / steps as f64, token: fastest / prompt.len() as f64 })
    }
}

/// What a judgement consists of, beside the models.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Tokens of each window.
    pub windows: &'a [usize],
    /// The texts both models write.
    pub health: &'a HealthOptions,
    /// Tokens read and written to answer questions, by both models where both have to.
    pub questions: (usize, usize),
    /// How speed is measured; `None` where it is not.
    pub speed: Option<&'a SpeedOptions>,
}

/// Seconds that judging a variant will take: its own passes, those of the original where it has to be run (`None` where
/// what it makes of the texts is known), and the paired measurement of speed.
pub fn forecast(original: Option<&Pace>, variant: &Pace, turns: [&Turn; 2], job: Job<'_>) -> f64 {
    let passes = |pace: &Pace| pace.windows(job.windows) + pace.texts(job.health);
    let [base, quant] = turns;
    let (read, written) = job.questions;
    let questions = variant.token * read as f64 + quant.step * written as f64;
    original.map_or(0.0, passes)
        + passes(variant)
        + questions
        + job.speed.map_or(0.0, |options| speed::seconds(options, [(base.step, base.token), (quant.step, quant.token)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { token: 1e-3, depth: 0.0, step: 0.01, held: 0.0 };
    const TURN: Turn = Turn { step: 0.004, token: 1e-3 };

    fn job(windows: &[usize]) -> Job<'_> {
        const HEALTH: &HealthOptions =
            &HealthOptions { prompts: 32, prompt_tokens: 24, tokens: 256, temperature: 0.8, seed: 0, family_error: 0.001 };
        Job { windows, health: HEALTH, questions: (0, 0), speed: None }
    }

    #[test]
    fn what_is_known_is_not_forecast_again() {
        let windows = [500; 20];
        let both = forecast(Some(&PACE), &PACE, [&TURN; 2], job(&windows));
        let one = forecast(None, &PACE, [&TURN; 2], job(&windows));
        // 10,000 tokens of windows and 64 prompts of 24 at 1 ms, 256 steps at 10 ms.
        assert!((one - 10.0 - 1.536 - 2.56).abs() < 1e-9 && (both - 2.0 * one).abs() < 1e-9, "{both} {one}");
        let asked = forecast(None, &PACE, [&TURN; 2], Job { questions: (1000, 50), ..job(&windows) });
        assert!((asked - one - 1.0 - 0.2).abs() < 1e-9, "{asked}");
    }

    #[test]
    fn long_windows_and_long_texts_cost_more() {
        let deep = Pace { depth: 1e-6, ..PACE };
        let of = |pace: &Pace, windows: &[usize]| forecast(None, pace, [&TURN; 2], job(windows));
        assert!((of(&PACE, &[2000]) - of(&PACE, &[1000; 2])).abs() < 1e-9);
        // ½ · 1e-6 · (2000² − 2 · 1000²)
        assert!((of(&deep, &[2000]) - of(&deep, &[1000; 2]) - 1.0).abs() < 1e-9);
        // 256 steps of 64 texts that hold 24 + 128 tokens on average.
        let held = Pace { held: 1e-7, ..PACE };
        assert!((of(&held, &[]) - of(&PACE, &[]) - 256.0 * 64.0 * 152.0 * 1e-7).abs() < 1e-9);
    }
}
