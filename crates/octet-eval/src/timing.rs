//! Timing a model: one repetition of a prompt or of decoding, and several models in alternation.
//!
//! The speed gate and `octet bench` are both made of this.

use crate::{Error, Result, energy::Rapl};
use octet_model::{Logits, Model, Sequence, Step};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// What a repetition took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    /// Seconds by the clock.
    pub(crate) seconds: f64,
    /// Seconds of processor time, all threads together; `None` where the system does not tell.
    pub(crate) cpu_seconds: Option<f64>,
    /// Joules of the processor packages; `None` where they are not counted.
    pub(crate) joules: Option<f64>,
}

/// A model with the sequences it is timed on.
pub(crate) struct Lane<'a> {
    pub(crate) model: &'a Model,
    energy: Option<&'a Rapl>,
    sequences: Vec<Sequence>,
    logits: Vec<f32>,
}

impl<'a> Lane<'a> {
    /// Takes a model up; `energy` is read around every repetition.
    pub(crate) fn new(model: &'a Model, energy: Option<&'a Rapl>) -> Self {
        Self { model, energy, sequences: vec![], logits: vec![] }
    }

    /// Runs a whole prompt through the model.
    pub(crate) fn prefill(&mut self, prompt: &[u32]) -> Result<Reading> {
        self.hold(&[], 1)?;
        self.time(|lane| lane.feed(0, prompt))
    }

    /// Decodes `steps` tokens of `batch` sequences together, each of which holds `prompt` before.
    pub(crate) fn decode(&mut self, prompt: &[u32], batch: usize, steps: usize) -> Result<Reading> {
        self.hold(prompt, batch)?;
        self.time(|lane| {
            (0..steps).try_for_each(|_| {
                // Any token will do, as long as they differ.
                let token = [spread_id(lane.model, lane.sequences[0].len())];
                let step = |sequence| Step { sequence, tokens: &token, logits: Logits::Last };
                let mut steps: Vec<Step<'_>> = lane.sequences[..batch].iter_mut().map(step).collect();
                Ok(lane.model.forward(&mut steps, &mut lane.logits, None)?)
            })
        })
    }

    /// Steps after which decoding from `prompt` has taken about `time`, between 4 and `most`.
    pub(crate) fn steps_for(&mut self, prompt: &[u32], time: Duration, most: usize) -> Result<usize> {
        self.decode(prompt, 1, 1)?;
        let step = self.decode(prompt, 1, 2)?.seconds / 2.0;
        Ok(steps_within(step, time, most))
    }

    /// Makes `batch` sequences hold `prompt`; what they already hold of it is kept.
    fn hold(&mut self, prompt: &[u32], batch: usize) -> Result<()> {
        while self.sequences.len() < batch {
            self.sequences.push(self.model.new_sequence());
        }
        for index in 0..batch {
            let sequence = &mut self.sequences[index];
            let same = sequence.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
            sequence.truncate(same);
            if same < prompt.len() {
                self.feed(index, &prompt[same..])?;
            }
        }
        Ok(())
    }

    fn feed(&mut self, index: usize, tokens: &[u32]) -> Result<()> {
        let step = Step { sequence: &mut self.sequences[index], tokens, logits: Logits::Last };
        Ok(self.model.forward(&mut [step], &mut self.logits, None)?)
    }

    fn time(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<Reading> {
        let energy = self.energy.and_then(Rapl::read);
        let (started, cpu) = (Instant::now(), cpu_time());
        work(self)?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu_seconds = cpu.zip(cpu_time()).map(|(before, after)| after.saturating_sub(before).as_secs_f64());
        let joules = self.energy.zip(energy).and_then(|(rapl, before)| rapl.joules_since(&before));
        Ok(Reading { seconds, cpu_seconds, joules })
    }
}

/// Steps of so many seconds each that take about `time`, between 4 and `most`.
pub(crate) fn steps_within(step: f64, time: Duration, most: usize) -> usize {
    ((time.as_secs_f64() / step.max(1e-7)).ceil() as usize).clamp(4, most.max(4))
}

/// A token for a position: ids that differ from one another, as those of a text do.
pub(crate) fn spread_id(model: &Model, position: usize) -> u32 {
    ((position * 7919 + 13) % model.spec().vocab_size()) as u32
}

/// Processor time of this process, all its threads together.
fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
    }
    #[cfg(not(unix))]
    None
}

/// How often something is repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    /// Rounds at most.
    pub(crate) most: usize,
    /// Rounds at least, whatever time they take.
    pub(crate) least: usize,
    /// Time after which no further round starts.
    pub(crate) budget: Duration,
}

/// Repeats `step` for each of `count` subjects in rounds; every second round goes through them backwards, so that what
/// comes first changes. The results are rounds of subjects in their own order.
pub(crate) fn alternate<T>(
    count: usize,
    rounds: Rounds,
    progress: &mut dyn FnMut() -> ControlFlow<()>,
    step: &mut dyn FnMut(usize) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let started = Instant::now();
    let mut all: Vec<Vec<T>> = vec![];
    while all.len() < rounds.least.min(rounds.most) || (all.len() < rounds.most && started.elapsed() < rounds.budget) {
        let backwards = all.len() % 2 == 1;
        let mut round = Vec::with_capacity(count);
        for turn in 0..count {
            round.push(step(if backwards { count - 1 - turn } else { turn })?);
            if progress().is_break() {
                return Err(Error::Interrupted);
            }
        }
        if backwards {
            round.reverse();
        }
        all.push(round);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

    #[test]
    fn rounds_alternate_and_end_in_time() {
        let mut order = vec![];
        let rounds = Rounds { most: 3, least: 2, budget: Duration::from_secs(60) };
        let all = alternate(3, rounds, &mut || CONTINUE, &mut |i| {
            order.push(i);
            Ok(10 * i)
        });
        assert_eq!(order, [0, 1, 2, 2, 1, 0, 0, 1, 2]);
        assert_eq!(all.unwrap(), vec![vec![0, 10, 20]; 3]);

        let short = Rounds { budget: Duration::ZERO, ..rounds };
        assert_eq!(alternate(1, short, &mut || CONTINUE, &mut |_| Ok(())).unwrap().len(), 2);
        let few = Rounds { most: 1, ..rounds };
        assert_eq!(alternate(1, few, &mut || CONTINUE, &mut |_| Ok(())).unwrap().len(), 1);
        let stopped = alternate(1, rounds, &mut || ControlFlow::Break(()), &mut |_| Ok(()));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }

    #[cfg(unix)]
    #[test]
    fn processor_time_passes() {
        let before = cpu_time().unwrap();
        let sum = (0..5_000_000u64).fold(0, |sum, i| std::hint::black_box(sum ^ i));
        std::hint::black_box(sum);
        assert!(cpu_time().unwrap() > before);
    }
}
