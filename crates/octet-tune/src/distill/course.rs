//! How far a distillation is, and how it is put down and taken up again.

use super::{Distiller, QuantParam, Rebuilt, Small};
use crate::{TuneError, quant::State};

/// What is learnt from, and what is checked on.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Windows to learn from.
    pub windows: &'a [&'a [u32]],
    /// Windows to check on, none of which is learnt from.
    pub held: &'a [&'a [u32]],
}

/// Where a distillation stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The block that learns by itself, where one does; losses are then squared errors of what it leaves, relative.
    pub block: Option<usize>,
    /// Steps that are finished.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// Mean divergence of the last step's windows, in nats a token.
    pub loss: f64,
    /// Divergence on the held-out windows at the last check.
    pub held: f64,
}

/// Told of every step.
pub trait Watch {
    /// Where the distillation stands.
    fn progress(&mut self, at: Progress);

    /// May keep a state that [`Distiller::resume`] takes up, and should where it is the `last`; `state` makes it.
    fn save(&mut self, last: bool, state: &mut dyn FnMut() -> Vec<u8>) {
        let _ = (last, state);
    }
}

/// The best so far.
pub(super) struct Best {
    pub(super) held: f64,
    pub(super) step: usize,
    pub(super) state: Snapshot,
}

pub(super) struct Snapshot {
    quants: Vec<State>,
    smalls: Vec<Vec<f32>>,
}

/// What a distillation that is put down needs to go on, beside what learns and its moments.
pub(super) struct Course {
    pub(super) done: usize,
    pub(super) before: f64,
    pub(super) held: f64,
    pub(super) best: Best,
    pub(super) order: Order,
}

/// The order in which windows are taken: all of them by turns, shuffled anew every time.
pub(super) struct Order {
    random: u64,
    order: Vec<usize>,
    at: usize,
}

impl Order {
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { random: seed, order: (0..count).collect(), at: count }
    }

    pub(super) fn count(&self) -> usize {
        self.order.len()
    }

    /// The next windows of so many tokens, about.
    pub(super) fn batch(&mut self, windows: &[&[u32]], tokens: usize) -> Vec<usize> {
        let (mut chosen, mut have) = (vec![], 0);
        while have < tokens {
            let window = self.next();
            have += windows[window].len().max(1);
            chosen.push(window);
        }
        chosen
    }

    fn next(&mut self) -> usize {
        if self.at >= self.order.len() {
            self.at = 0;
            for last in (1..self.order.len()).rev() {
                let other = (self.bits() % (last as u64 + 1)) as usize;
                self.order.swap(last, other);
            }
        }
        self.at += 1;
        self.order[self.at - 1]
    }

    /// SplitMix64 (Steele et al. 2014).
    fn bits(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Runs of windows of at most so many tokens, one window at least.
pub(super) fn batches(windows: &[&[u32]], tokens: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let mut have = 0;
        let fits = |&window: &usize| {
            have += windows[window].len();
            have <= tokens || have == windows[window].len()
        };
        let now: Vec<usize> = (next..windows.len()).take_while(fits).collect();
        next += now.len();
        (!now.is_empty()).then_some(now)
    })
}

/// Marks a state of this form.
const MAGIC: &[u8; 8] = b"octune02";

impl Distiller<'_> {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            quants: self.quants.iter().map(|quant| quant.state().clone()).collect(),
            smalls: self.smalls.iter().map(|small| small.exact.clone()).collect(),
        }
    }

    pub(super) fn restore(&mut self, from: Snapshot) {
        self.quants.iter_mut().zip(from.quants).for_each(|(quant, state)| quant.set_state(state));
        self.smalls.iter_mut().zip(from.smalls).for_each(|(small, exact)| small.exact = exact);
        self.write();
    }

    /// Everything that blocks which have learnt by themselves need to go on, as bytes.
    pub(super) fn state_of_blocks(&mut self) -> Vec<u8> {
        let mut bytes = self.head(false);
        let runs = self.quants.iter_mut().flat_map(QuantParam::runs_mut);
        runs.for_each(|run| bytes.extend_from_slice(bytemuck::cast_slice(run)));
        bytes
    }

    /// Everything that a distillation needs to go on, as bytes.
    pub(super) fn state(&mut self, course: &Course) -> Vec<u8> {
        let mut bytes = self.head(true);
        let numbers = [course.done as u64, course.before.to_bits(), course.held.to_bits(), course.best.held.to_bits()];
        let order = [course.best.step as u64, course.order.random, course.order.at as u64, course.order.order.len() as u64];
        let windows = course.order.order.iter().map(|&window| window as u64);
        bytes.extend(numbers.into_iter().chain(order).chain(windows).flat_map(u64::to_le_bytes));
        let mut floats = |run: &[f32]| bytes.extend_from_slice(bytemuck::cast_slice(run));
        for quant in &mut self.quants {
            quant.runs_mut().into_iter().for_each(|run| floats(run));
        }
        for Small { exact, adam, .. } in &self.smalls {
            [exact, &adam.first, &adam.second].into_iter().for_each(|run| floats(run));
        }
        for state in &course.best.state.quants {
            [&state.scales, &state.latents, &state.zeros].into_iter().for_each(|run| floats(run));
        }
        course.best.state.smalls.iter().for_each(|run| floats(run));
        bytes
    }

    /// What a state begins with: the version, whether all blocks that learn by themselves have, and what came of it.
    fn head(&self, finished: bool) -> Vec<u8> {
        let Rebuilt { done, before, after, .. } = &self.rebuilt;
        let figure = |figure: &Option<f64>| figure.unwrap_or(f64::NAN).to_bits();
        let numbers = [u64::from(finished), *done as u64, figure(before), figure(after)];
        MAGIC.iter().copied().chain(numbers.into_iter().flat_map(u64::to_le_bytes)).collect()
    }

    /// Takes up how far blocks are; whether all have learnt that are to.
    fn resume_blocks(&mut self, reader: &mut Reader<'_>) -> Result<bool, TuneError> {
        let [finished, done, before, after] = [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
        let figure = |bits| Some(f64::from_bits(bits)).filter(|figure| figure.is_finite());
        let done = usize::try_from(done).ok().filter(|&done| done <= self.network.blocks.len());
        let done = done.ok_or_else(|| bad("its blocks are others"))?;
        let first = if finished == 0 { Some(self.snapshot()) } else { None };
        let rebuilt = Rebuilt { done, before: figure(before), after: figure(after), first };
        if finished == 0 {
            if self.settings.block_steps == 0 || rebuilt.before.is_none() {
                return Err(bad("its blocks are others"));
            }
            for quant in &mut self.quants {
                quant.runs_mut().into_iter().try_for_each(|run| reader.floats(run))?;
                quant.round(self.engine);
            }
            if !reader.0.is_empty() {
                return Err(bad("it is longer"));
            }
            self.write();
        }
        self.rebuilt = rebuilt;
        Ok(finished != 0)
    }

    /// Takes up a state that [`Watch::save`] was given by a distillation of the same models, settings and text.
    ///
    /// # Errors
    /// If it is not such a state.
    pub fn resume(&mut self, state: &[u8]) -> Result<(), TuneError> {
        let mut reader = Reader(state.strip_prefix(MAGIC).ok_or_else(|| bad("it is of another version"))?);
        let finished = self.resume_blocks(&mut reader)?;
        if !finished {
            return Ok(());
        }
        let numbers: Vec<u64> = (0..8).map(|_| reader.number()).collect::<Result<_, _>>()?;
        let count = usize::try_from(numbers[7]).ok().filter(|&count| count <= reader.0.len() / 8).ok_or_else(|| bad("it is cut off"))?;
        let order = (0..count).map(|_| Ok(reader.number()? as usize)).collect::<Result<Vec<_>, TuneError>>()?;
        if order.iter().any(|&window| window >= count) || numbers[0] > self.settings.steps as u64 {
            return Err(bad("its course is another"));
        }
        for quant in &mut self.quants {
            quant.runs_mut().into_iter().try_for_each(|run| reader.floats(run))?;
            quant.round(self.engine);
        }
        for small in &mut self.smalls {
            [&mut small.exact, &mut small.adam.first, &mut small.adam.second].into_iter().try_for_each(|run| reader.floats(run))?;
        }
        let mut best = self.snapshot();
        for (quant, state) in self.quants.iter().zip(&mut best.quants) {
            [&mut state.scales, &mut state.latents, &mut state.zeros].into_iter().try_for_each(|run| reader.floats(run))?;
            quant.rounded(self.engine, state);
        }
        best.smalls.iter_mut().try_for_each(|run| reader.floats(run))?;
        if !reader.0.is_empty() {
            return Err(bad("it is longer"));
        }
        let order = Order { random: numbers[5], order, at: numbers[6] as usize };
        let best = Best { held: f64::from_bits(numbers[3]), step: numbers[4] as usize, state: best };
        let (before, held) = (f64::from_bits(numbers[1]), f64::from_bits(numbers[2]));
        self.course = Some(Course { done: numbers[0] as usize, before, held, best, order });
        self.write();
        Ok(())
    }
}

fn bad(what: &str) -> TuneError {
    TuneError::State { what: what.into() }
}

/// Bytes that are still to be read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, TuneError> {
        let (now, later) = self.0.split_first_chunk::<8>().ok_or_else(|| bad("it is cut off"))?;
        self.0 = later;
        Ok(u64::from_le_bytes(*now))
    }

    fn floats(&mut self, run: &mut [f32]) -> Result<(), TuneError> {
        let (now, later) = self.0.split_at_checked(4 * run.len()).ok_or_else(|| bad("it is cut off"))?;
        bytemuck::cast_slice_mut(run).copy_from_slice(now);
        self.0 = later;
        Ok(())
    }
}
