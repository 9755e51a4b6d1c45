//! How fast models run and how near that is to what the machine can do: several models in alternation, the machine's
//! limits measured between their repetitions.

use crate::{
    Error, Result,
    energy::Rapl,
    stats::{bootstrap_ratio, quantile},
    timing::{Lane, Reading, Rounds, alternate, spread_id},
    work::Work,
};
use octet_kernels::limits::{self, ReadBuffer};
use octet_model::Model;
use serde::Serialize;
use std::{ops::ControlFlow, time::Duration};

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Prompt lengths.
    pub prefill: Vec<usize>,
    /// Contexts and batch sizes of decoding.
    pub decode: Vec<(usize, usize)>,
    /// Tokens a repetition of decoding makes of each sequence; `None`: as many as take [`BenchOptions::repetition`].
    pub steps: Option<usize>,
    /// Rounds at most.
    pub rounds: usize,
    /// Time a repetition of decoding should take.
    pub repetition: Duration,
    /// Time for a phase of one model, about; fewer rounds are made when it runs out (never fewer than three).
    pub budget: Duration,
}

/// Rounds that are made even when time runs out.
const LEAST_ROUNDS: usize = 3;

/// Most tokens that a repetition of decoding makes by itself.
pub const MOST_STEPS: usize = 128;

/// How long a limit is measured between two repetitions.
const PROBE: Duration = Duration::from_millis(40);

/// A model to measure.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model, ready to run.
    pub model: &'a Model,
    /// What a token costs it.
    pub work: &'a Work,
}

/// Speed of one phase of one model; medians over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Tokens a second, all sequences of a batch together.
    pub tok_s: f64,
    /// Lower and upper quartile of it.
    pub tok_s_quartiles: [f64; 2],
    /// Rounds it rests on.
    pub rounds: usize,
    /// Share of the limit that was measured right before each repetition (int8 arithmetic for prefill, a streaming read for decoding).
    pub share: f64,
    /// How many times as fast as the first model, paired by rounds; `None` for the first.
    pub ratio: Option<Ratio>,
    /// Processor milliseconds a token, all threads together; `None` where the system does not tell.
    pub cpu_ms_per_token: Option<f64>,
    /// Joules of the processor packages a token; `None` where they cannot be read.
    pub joules_per_token: Option<f64>,
}

/// A ratio of speeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The geometric mean over rounds.
    pub estimate: f64,
    /// Its 95 % interval; `None` with too few rounds.
    pub ci95: Option<[f64; 2]>,
}

/// Speed of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefillSpeed {
    /// Its tokens.
    pub tokens: usize,
    /// Billions of operations a second in the linears, the head counted once.
    pub gop_s: f64,
    /// Share of what AMX tiles can do, where the engine has them.
    pub tile_share: Option<f64>,
    /// Times.
    #[serde(flatten)]
    pub pace: Pace,
}

/// Speed of decoding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// Tokens each sequence held before.
    pub context: usize,
    /// Sequences that decode together.
    pub batch: usize,
    /// Tokens a repetition made of each.
    pub steps: usize,
    /// GB of weights, keys and values read a second.
    pub gb_s: f64,
    /// Billions of operations a second in the linears.
    pub gop_s: f64,
    /// Times.
    #[serde(flatten)]
    pub pace: Pace,
}

/// What the machine can do at most; medians over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// GB/s of a streaming read of as many bytes as a step of the model reads.
    pub read_gb_s: f64,
    /// Billions of int8 operations a second, of vectors.
    pub int8_gop_s: f64,
    /// Billions of int8 operations a second of AMX tiles, where the engine has them.
    pub int8_tile_gop_s: Option<f64>,
    /// Billions of f32 operations a second, the limit of what runs with exact activations.
    pub f32_gflop_s: f64,
}

/// Everything measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Prompts.
    pub prefill: Vec<PrefillSpeed>,
    /// Decoding.
    pub decode: Vec<DecodeSpeed>,
    /// The machine, measured between the repetitions.
    pub limits: Limits,
}

/// Told the phase, and repetitions done and planned; may break off.
pub type BenchProgress<'a> = &'a mut dyn FnMut(&str, usize, usize) -> ControlFlow<()>;

/// Measures models (on one engine) in alternation.
///
/// # Errors
/// If a prompt or context is longer than a model's, a model fails, or `progress` breaks off.
pub fn run(subjects: &[Subject<'_>], options: &BenchOptions, progress: BenchProgress<'_>) -> Result<Vec<Measured>> {
    let Some(first) = subjects.first() else { return Ok(vec![]) };
    let energy = Rapl::open();
    let engine = first.model.engine().clone();
    let largest = subjects.iter().map(|s| options.decode.iter().map(|&(c, b)| s.work.decode_bytes(b, c, 1)).fold(0.0, f64::max));
    let buffer = ReadBuffer::new(largest.fold(0.0, f64::max) as usize);
    let mut run = Run {
        subjects,
        options,
        lanes: subjects.iter().map(|s| Lane::new(s.model, energy.as_ref())).collect(),
        read: &|bytes| buffer.gb_s(&engine, bytes as usize, PROBE),
        int8: &|| limits::int8_gop_s_within(&engine, PROBE),
        done: 0,
        progress,
    };
    let mut all: Vec<Measured> = vec![];
    let none = Limits {
        read_gb_s: f64::NAN,
        int8_gop_s: f64::NAN,
        int8_tile_gop_s: limits::int8_tile_gop_s(&engine),
        f32_gflop_s: limits::f32_gflop_s(&engine),
    };
    all.resize(subjects.len(), Measured { prefill: vec![], decode: vec![], limits: none });
    let (mut int8, mut reads) = (vec![], vec![vec![]; subjects.len()]);
    for &tokens in &options.prefill {
        let phase = run.prefill(tokens)?;
        for (model, (measured, pace)) in all.iter_mut().zip(phase.paces(tokens)).enumerate() {
            let gop_s = run.subjects[model].work.prefill_ops(tokens) / phase.seconds(model) / 1e9;
            let tile_share = measured.limits.int8_tile_gop_s.map(|limit| gop_s / limit);
            measured.prefill.push(PrefillSpeed { tokens, gop_s, tile_share, pace });
        }
        int8.extend(phase.limits.into_iter().flatten());
    }
    // The longest context first: what the last prompt left in the caches serves it.
    let mut order: Vec<usize> = (0..options.decode.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(options.decode[i].0));
    let mut rows: Vec<Vec<(usize, DecodeSpeed)>> = vec![vec![]; subjects.len()];
    for index in order {
        let (context, batch) = options.decode[index];
        let (phase, steps) = run.decode(context, batch)?;
        for (model, pace) in phase.paces(batch * steps).into_iter().enumerate() {
            let (work, step) = (run.subjects[model].work, phase.seconds(model) / steps as f64);
            let gb_s = work.decode_bytes(batch, context, steps) / step / 1e9;
            let gop_s = work.decode_ops(batch) / step / 1e9;
            rows[model].push((index, DecodeSpeed { context, batch, steps, gb_s, gop_s, pace }));
            reads[model].extend(phase.limits.iter().map(|round| round[model]));
        }
    }
    for (model, measured) in all.iter_mut().enumerate() {
        rows[model].sort_by_key(|(index, _)| *index);
        measured.decode = rows[model].drain(..).map(|(_, speed)| speed).collect();
        let bytes = subjects[model].work.weight_bytes(1);
        let or = |values: &[f64], measure: &dyn Fn() -> f64| if values.is_empty() { measure() } else { median(values.to_vec()) };
        measured.limits.int8_gop_s = or(&int8, run.int8);
        measured.limits.read_gb_s = or(&reads[model], &|| (run.read)(bytes));
    }
    Ok(all)
}

/// Runs a prompt of `tokens` tokens once, as whoever waits for a first token does.
///
/// # Errors
/// If the model fails.
pub fn first_token(model: &Model, tokens: usize) -> Result<()> {
    let prompt: Vec<u32> = (0..tokens.max(1)).map(|i| spread_id(model, i)).collect();
    Lane::new(model, None).prefill(&prompt).map(drop)
}

/// Measures the limit, then times the model of a number.
type Timer<'a> = &'a mut dyn FnMut(&mut Lane<'_>, usize) -> Result<(Reading, f64)>;

struct Run<'a, 'p> {
    subjects: &'a [Subject<'a>],
    options: &'a BenchOptions,
    lanes: Vec<Lane<'a>>,
    /// GB/s of a streaming read of so many bytes.
    read: &'p dyn Fn(f64) -> f64,
    int8: &'p dyn Fn() -> f64,
    done: usize,
    progress: BenchProgress<'p>,
}

impl Run<'_, '_> {
    fn prefill(&mut self, tokens: usize) -> Result<Phase> {
        let prompts = self.prompts(tokens);
        for (lane, prompt) in self.lanes.iter_mut().zip(&prompts) {
            // The first prompt of a length is the one for which the system hands out buffers and caches; no repetition pays for it.
            lane.prefill(prompt)?;
        }
        let int8 = self.int8;
        self.rounds(&format!("prefill {tokens}"), &mut |lane, model| {
            let limit = int8();
            let reading = lane.prefill(&prompts[model])?;
            Ok((reading, limit))
        })
        .map(|phase| phase.of(|model, seconds| self.subjects[model].work.prefill_ops(tokens) / seconds / 1e9))
    }

    fn decode(&mut self, context: usize, batch: usize) -> Result<(Phase, usize)> {
        let prompts = self.prompts(context);
        let room = self.lanes.iter().map(|lane| lane.model.context().saturating_sub(context)).min().unwrap_or(0);
        let steps = match self.options.steps {
            Some(steps) => steps,
            None => self.lanes[0].steps_for(&prompts[0], self.options.repetition, MOST_STEPS)?.min(room),
        };
        for (lane, prompt) in self.lanes.iter_mut().zip(&prompts) {
            lane.decode(prompt, batch, steps.min(2))?;
        }
        let (read, subjects) = (self.read, self.subjects);
        let bytes = |model: usize| subjects[model].work.decode_bytes(batch, context, steps);
        let name = format!("decode at {context} x{batch}");
        let phase = self.rounds(&name, &mut |lane, model| {
            let limit = read(bytes(model));
            Ok((lane.decode(&prompts[model], batch, steps)?, limit))
        })?;
        Ok((phase.of(|model, seconds| bytes(model) * steps as f64 / seconds / 1e9), steps))
    }

    /// Token ids of a prompt for each model.
    fn prompts(&self, tokens: usize) -> Vec<Vec<u32>> {
        self.lanes.iter().map(|lane| (0..tokens).map(|i| spread_id(lane.model, i)).collect()).collect()
    }

    fn rounds(&mut self, name: &str, time: Timer<'_>) -> Result<Phase> {
        let (count, options) = (self.lanes.len(), self.options);
        let rounds = Rounds { most: options.rounds, least: LEAST_ROUNDS, budget: options.budget * count as u32 };
        let total = (options.prefill.len() + options.decode.len()) * options.rounds * count;
        let (lanes, progress, mut done) = (&mut self.lanes, &mut *self.progress, self.done);
        if progress(name, done, total).is_break() {
            return Err(Error::Interrupted);
        }
        let mut step = || {
            done += 1;
            progress(name, done, total)
        };
        let all = alternate(count, rounds, &mut step, &mut |model| time(&mut lanes[model], model))?;
        self.done += options.rounds * count;
        let (readings, limits) = all.into_iter().map(|round| round.into_iter().unzip()).unzip();
        Ok(Phase { readings, limits, shares: vec![] })
    }
}

/// Repetitions of one phase: rounds of models.
struct Phase {
    readings: Vec<Vec<Reading>>,
    limits: Vec<Vec<f64>>,
    /// Median share of the limit, for each model.
    shares: Vec<f64>,
}

impl Phase {
    /// Fills in the shares; `rate` is what a model reached that took so many seconds, in the limit's unit.
    fn of(mut self, rate: impl Fn(usize, f64) -> f64) -> Self {
        let share = |model: usize| {
            let pairs = self.readings.iter().zip(&self.limits);
            median(pairs.map(|(readings, limits)| rate(model, readings[model].seconds) / limits[model]).collect())
        };
        self.shares = (0..self.readings.first().map_or(0, Vec::len)).map(share).collect();
        self
    }

    /// Median seconds of a repetition of a model.
    fn seconds(&self, model: usize) -> f64 {
        median(self.readings.iter().map(|round| round[model].seconds).collect())
    }

    /// Speeds of all models when a repetition makes so many tokens.
    fn paces(&self, tokens: usize) -> Vec<Pace> {
        (0..self.shares.len()).map(|model| self.pace(model, tokens as f64)).collect()
    }

    fn pace(&self, model: usize, tokens: f64) -> Pace {
        let mut seconds: Vec<f64> = self.readings.iter().map(|round| round[model].seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let each = |what: &dyn Fn(&Reading) -> Option<f64>| {
            let values: Option<Vec<f64>> = self.readings.iter().map(|round| what(&round[model])).collect();
            values.map(|values| median(values) / tokens)
        };
        let logs = self.readings.iter().map(|round| ((round[0].seconds / round[model].seconds).ln(), 1.0)).collect::<Vec<_>>();
        Pace {
            tok_s: tokens / self.seconds(model),
            // Of the times, so that the median lies between them.
            tok_s_quartiles: [0.75, 0.25].map(|part| tokens / quantile(&seconds, part)),
            rounds: seconds.len(),
            share: self.shares[model],
            ratio: (model > 0).then(|| ratio(&logs)),
            cpu_ms_per_token: each(&|r| r.cpu_seconds.map(|s| 1e3 * s)),
            joules_per_token: each(&|r| r.joules),
        }
    }
}

fn ratio(logs: &[(f64, f64)]) -> Ratio {
    let mean = logs.iter().map(|(log, _)| log).sum::<f64>() / logs.len().max(1) as f64;
    Ratio { estimate: mean.exp(), ci95: bootstrap_ratio(logs, 0).map(|interval| interval.map(f64::exp).ci95()) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: f64) -> Reading {
        Reading { seconds, cpu_seconds: Some(2.0 * seconds), joules: None }
    }

    #[test]
    fn shares_and_ratios_are_paired() {
        // Machine and models are three times as slow in two rounds of eight.
        let load = |round: usize| if round == 2 || round == 5 { 3.0 } else { 1.0 };
        let phase = Phase {
            readings: (0..8).map(|r| vec![reading(0.4 * load(r)), reading(0.1 * load(r))]).collect(),
            limits: (0..8).map(|r| vec![50.0 / load(r); 2]).collect(),
            shares: vec![],
        };
        let phase = phase.of(|model, seconds| [4.0, 3.0][model] / seconds);
        let paces = phase.paces(20);
        assert!((paces[0].share - 0.2).abs() < 1e-9 && (paces[1].share - 0.6).abs() < 1e-9, "{paces:?}");
        assert_eq!((paces[0].tok_s, paces[1].tok_s, paces[1].rounds), (50.0, 200.0, 8));
        assert!(paces[1].tok_s_quartiles[0] > 130.0 && (paces[1].tok_s_quartiles[1] - 200.0).abs() < 1e-9);
        assert_eq!((paces[0].ratio, paces[0].joules_per_token), (None, None));
        let Ratio { estimate, ci95: Some([low, high]) } = paces[1].ratio.unwrap() else { panic!("{paces:?}") };
        assert!((estimate - 4.0).abs() < 1e-9 && (low - 4.0).abs() < 1e-9 && (high - 4.0).abs() < 1e-9);
        assert!((paces[1].cpu_ms_per_token.unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(ratio(&[(0.5, 1.0); 3]).ci95, None);
    }
}
