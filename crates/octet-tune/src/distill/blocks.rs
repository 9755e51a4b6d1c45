//! Block after block, what is quantized learns to leave what the original's block leaves, by the signs of gradients (AutoRound:
//! Cheng et al., arXiv 2309.05516). What goes into a block is what the quantized blocks before it leave, and what is to come
//! out is the original's own, so that a block also makes good what those before it did.

use super::{
    Distiller, Progress, Text, Watch,
    course::{Order, Snapshot, batches},
    lessons::Lessons,
};
use crate::{Batch, Gradients, Learning, Rule, Trainer, TuneError, Values, quant::State};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

/// Checks on held-out text in the course of a block.
const CHECKS: usize = 10;

/// Windows that are learnt from at the most: what flows in and what is to come out is kept of each.
pub(super) const MOST: usize = 256;

/// Codes, and shares of a scale, that gradients of one sign all along move a value by. Latents begin in the middle of their codes,
/// half a code from the next.
const REACH: f32 = 1.0;

/// Scales move so much less than codes.
const OF_SCALES: f32 = 0.1;

/// How far blocks are that learn by themselves.
#[derive(Default)]
pub(super) struct Rebuilt {
    /// Blocks that have learnt.
    pub(super) done: usize,
    /// The divergence on held-out windows before any had.
    pub(super) before: Option<f64>,
    /// And after all had, where that was better.
    pub(super) after: Option<f64>,
    /// What stood there before, until it is known to be worse.
    pub(super) first: Option<Snapshot>,
}

/// What flows into a block, of every window.
struct Streams {
    original: Vec<Vec<f32>>,
    quantized: Vec<Vec<f32>>,
}

/// A block that learns.
struct Block<'a> {
    layer: usize,
    /// Its quantized matrices, by their place among all.
    quants: Vec<usize>,
    /// Windows, those that are learnt from first.
    windows: &'a [&'a [u32]],
    learnt: usize,
    inputs: &'a [Vec<f32>],
    targets: &'a [Vec<f32>],
}

impl Block<'_> {
    fn batch(&self, of: &[usize]) -> (Batch, Vec<f32>, Vec<f32>) {
        let all = |streams: &[Vec<f32>]| of.iter().flat_map(|&window| &streams[window]).copied().collect();
        (Batch::new(of.iter().map(|&window| self.windows[window])), all(self.inputs), all(self.targets))
    }
}

impl Distiller<'_> {
    /// Lets every block learn by itself; what was there before stays where that is no better in the end.
    pub(super) fn rebuild(&mut self, text: &Text<'_>, cancel: &AtomicBool, watch: &mut dyn Watch) -> Result<(), TuneError> {
        let mut trainer = Trainer::new(self.engine, self.network);
        let mut exam = Lessons::new(text.held.len(), self.settings.lessons);
        let before = match self.rebuilt.before {
            Some(before) => before,
            None => self.divergence_by(&mut trainer, &mut exam, text.held),
        };
        self.rebuilt.before = Some(before);
        if self.rebuilt.first.is_none() {
            self.rebuilt.first = Some(self.snapshot());
        }
        // Spread over the whole text, its own part included.
        let learnt = text.windows.len().min(MOST);
        let windows: Vec<&[u32]> =
            (0..learnt).map(|i| text.windows[i * text.windows.len() / learnt]).chain(text.held.iter().copied()).collect();
        let original = self.through(&mut trainer, &self.teacher, None, &windows, vec![]);
        let quantized = self.through(&mut trainer, &self.student, None, &windows, vec![]);
        let mut streams = Streams { original, quantized };
        for layer in 0..self.network.blocks.len() {
            streams.original = self.through(&mut trainer, &self.teacher, Some(layer), &windows, streams.original);
            if layer >= self.rebuilt.done {
                let (inputs, targets) = (&streams.quantized, &streams.original);
                let block = Block { layer, quants: self.quants_of(layer), windows: &windows, learnt, inputs, targets };
                self.learn_block(&mut trainer, &block, cancel, watch)?;
                self.rebuilt.done += 1;
                watch.save(false, &mut || self.state_of_blocks());
            }
            streams.quantized = self.through(&mut trainer, &self.student, Some(layer), &windows, streams.quantized);
        }
        let after = self.divergence_by(&mut trainer, &mut exam, text.held);
        match self.rebuilt.first.take() {
            Some(first) if after >= before => self.restore(first),
            _ => self.rebuilt.after = Some(after),
        }
        Ok(())
    }

    /// What a block, or the embedding, makes of `streams`, window by window.
    fn through(
        &self,
        trainer: &mut Trainer<'_>,
        values: &Values,
        layer: Option<usize>,
        windows: &[&[u32]],
        streams: Vec<Vec<f32>>,
    ) -> Vec<Vec<f32>> {
        let width = self.network.spec().hidden();
        let mut out = Vec::with_capacity(windows.len());
        for now in batches(windows, self.settings.batch_tokens) {
            let batch = Batch::new(now.iter().map(|&window| windows[window]));
            let inputs: Vec<f32> = now.iter().filter_map(|&window| streams.get(window)).flatten().copied().collect();
            let all = trainer.stage(values, layer, &batch, &inputs);
            let mut rest = &all[..];
            for &window in &now {
                let (own, later) = rest.split_at(windows[window].len() * width);
                out.push(own.to_vec());
                rest = later;
            }
            trainer.recycle(all);
        }
        out
    }

    fn quants_of(&self, layer: usize) -> Vec<usize> {
        let linears = |node: &crate::network::TrainNode| node.linears().into_iter().map(|linear| linear.weight).collect::<Vec<_>>();
        let numbers: BTreeSet<usize> = self.network.blocks[layer].iter().flat_map(linears).collect();
        (0..self.quants.len()).filter(|&at| numbers.contains(&self.quants[at].number)).collect()
    }

    fn learn_block(
        &mut self,
        trainer: &mut Trainer<'_>,
        block: &Block<'_>,
        cancel: &AtomicBool,
        watch: &mut dyn Watch,
    ) -> Result<(), TuneError> {
        let steps = self.settings.block_steps;
        let total = self.network.blocks.len() * steps + self.settings.steps;
        let mine: BTreeSet<usize> = block.quants.iter().map(|&at| self.quants[at].number).collect();
        let mut gradients = Gradients::new(self.network, |number| mine.contains(&number));
        let mut order = Order::new(block.learnt, self.settings.seed.wrapping_add(block.layer as u64));
        let start = self.states(&block.quants);
        let mut held = self.error(trainer, block);
        let mut best = (held, start.clone());
        for step in 0..steps {
            let done = block.layer * steps + step;
            if cancel.load(Ordering::Relaxed) {
                // A block that has begun begins again.
                self.set_states(&block.quants, start);
                watch.save(true, &mut || self.state_of_blocks());
                return Err(TuneError::Interrupted { done, total });
            }
            let chosen = order.batch(&block.windows[..block.learnt], self.settings.batch_tokens);
            let (batch, inputs, targets) = block.batch(&chosen);
            gradients.clear();
            let loss = trainer.learn_stage(&self.student, block.layer, &batch, (&inputs, &targets), &mut gradients);
            if !loss.is_finite() {
                return Err(TuneError::NonFinite { step: done + 1 });
            }
            self.move_block(block, &mut gradients, 2.0 * REACH / steps as f32 * (1.0 - step as f32 / steps as f32));
            if (step + 1).is_multiple_of(steps.div_ceil(CHECKS)) || step + 1 == steps {
                held = self.error(trainer, block);
                if held < best.0 {
                    best = (held, self.states(&block.quants));
                }
            }
            watch.progress(Progress { block: Some(block.layer), done: done + 1, total, loss, held });
        }
        self.set_states(&block.quants, best.1);
        Ok(())
    }

    /// One step of the matrices of a block, at a rate in codes.
    fn move_block(&mut self, block: &Block<'_>, gradients: &mut Gradients, rate: f32) {
        let full = self.settings.learning;
        let of = |full: f32, rate: f32| if full > 0.0 { rate } else { 0.0 };
        let rates = Learning { scales: of(full.scales, OF_SCALES * rate), codes: of(full.codes, rate), zeros: 0.0, settle: 0.0, ..full };
        for &at in &block.quants {
            let quant = &mut self.quants[at];
            if let Some(gradient) = gradients.of(quant.number) {
                quant.learn(self.engine, gradient, rates, Rule::Signs);
                quant.write(self.engine, &mut self.student[quant.number]);
            }
        }
    }

    /// The squared error of what a block leaves on held-out windows, relative to the original's.
    fn error(&self, trainer: &mut Trainer<'_>, block: &Block<'_>) -> f64 {
        let (mut error, mut size) = (0.0, 0.0);
        for window in block.learnt..block.windows.len() {
            let (batch, inputs, targets) = block.batch(&[window]);
            let out = trainer.stage(&self.student, Some(block.layer), &batch, &inputs);
            error += out.iter().zip(&targets).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            size += targets.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
            trainer.recycle(out);
        }
        if size > 0.0 { error / size } else { error }
    }

    fn states(&self, quants: &[usize]) -> Vec<State> {
        quants.iter().map(|&at| self.quants[at].state().clone()).collect()
    }

    fn set_states(&mut self, quants: &[usize], states: Vec<State>) {
        for (&at, state) in quants.iter().zip(states) {
            let quant = &mut self.quants[at];
            quant.set_state(state);
            quant.write(self.engine, &mut self.student[quant.number]);
        }
    }
}
