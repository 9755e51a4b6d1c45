//! Batches of tokens through a network and back.

use crate::{
    Batch, Network,
    batch::{Turns, runs},
    forward::{Pass, Tape},
    slots::{Slots, Spare},
};
use octet_kernels::{Engine, Likeness};
use octet_model::graph::Slot;

/// Values of the parameters of a network, by number.
pub type Values = Vec<Vec<f32>>;

/// Logits that are in memory at once, each model's.
pub(crate) const LOGITS: usize = 4 << 20;

/// Gradients of parameters, by number, each added up over the batches it has seen.
#[derive(Clone, Debug, Default)]
pub struct Gradients(Vec<Option<Vec<f32>>>);

impl Gradients {
    /// Zeros for those parameters of `network` that are `wanted`.
    pub fn new(network: &Network, wanted: impl Fn(usize) -> bool) -> Self {
        let of =
            |(number, parameter): (usize, &crate::Parameter)| wanted(number).then(|| vec![0.0; parameter.shape[0] * parameter.shape[1]]);
        Self(network.parameters().iter().enumerate().map(of).collect())
    }

    /// The gradient of a parameter; `None` where it is not wanted.
    pub fn get(&self, number: usize) -> Option<&[f32]> {
        self.0.get(number)?.as_deref()
    }

    /// Sets all of them to zero.
    pub fn clear(&mut self) {
        self.0.iter_mut().flatten().for_each(|gradient| gradient.fill(0.0));
    }

    pub(crate) fn of(&mut self, number: usize) -> Option<&mut [f32]> {
        self.0.get_mut(number)?.as_deref_mut()
    }

    /// Two different ones.
    pub(crate) fn two(&mut self, first: usize, second: Option<usize>) -> [Option<&mut [f32]>; 2] {
        let Some(second) = second else { return [self.of(first), None] };
        match self.0.get_disjoint_mut([first, second]) {
            Ok([first, second]) => [first.as_deref_mut(), second.as_deref_mut()],
            Err(_) => [None, None],
        }
    }
}

/// What is kept of a pass on its way forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything its gradients need.
    All,
    /// The residual stream before every block, which is run again for its gradients: a third more work, one block's memory.
    Blocks,
}

/// What a batch teaches.
#[derive(Clone, Copy, Debug)]
pub enum Lesson<'a> {
    /// The distributions that these values of the same network's parameters give, by the residual stream that they leave
    /// before the head (see [`Trainer::hidden`]).
    Teacher {
        /// The teacher's parameters.
        values: &'a Values,
        /// Its residual stream.
        hidden: &'a [f32],
    },
    /// The token after each; the last of a sequence is taught its own number in `next`.
    Tokens {
        /// One for each token of the batch.
        next: &'a [u32],
    },
}

/// Runs batches through a network; made once, its buffers are used again by every batch.
pub struct Trainer<'a> {
    engine: &'a Engine,
    network: &'a Network,
    spare: Spare,
}

impl<'a> Trainer<'a> {
    /// A trainer without buffers yet.
    pub fn new(engine: &'a Engine, network: &'a Network) -> Self {
        Self { engine, network, spare: Spare::default() }
    }

    /// The residual stream that a batch leaves before the head, `[tokens, hidden]`.
    pub fn hidden(&mut self, values: &Values, batch: &Batch) -> Vec<f32> {
        let turns = turns(self.network, batch);
        let mut slots = Slots::default();
        let network = self.network;
        let mut pass = self.pass(values, batch, &turns);
        pass.forward(std::slice::from_ref(&network.embed), &mut slots, None);
        network.blocks.iter().for_each(|nodes| pass.forward(nodes, &mut slots, None));
        let hidden = slots.take(Slot::Hidden);
        slots.clear(&mut self.spare);
        hidden
    }

    /// What a block, or the embedding where `layer` is `None`, makes of a batch's residual streams.
    pub(crate) fn stage(&mut self, values: &Values, layer: Option<usize>, batch: &Batch, stream: &[f32]) -> Vec<f32> {
        let (turns, network) = (turns(self.network, batch), self.network);
        let mut slots = Slots::default();
        let mut pass = self.pass(values, batch, &turns);
        *slots.get_mut(Slot::Hidden) = pass.spare.copy(stream);
        match layer {
            Some(layer) => pass.forward(&network.blocks[layer], &mut slots, None),
            None => pass.forward(std::slice::from_ref(&network.embed), &mut slots, None),
        }
        let out = slots.take(Slot::Hidden);
        slots.clear(&mut self.spare);
        out
    }

    /// The squared error of what block `layer` makes of a batch's residual streams, relative to the `targets`; gradients of half of its
    /// mean are added to `gradients`.
    pub(crate) fn learn_stage(
        &mut self,
        values: &Values,
        layer: usize,
        batch: &Batch,
        (stream, targets): (&[f32], &[f32]),
        gradients: &mut Gradients,
    ) -> f64 {
        let (turns, nodes) = (turns(self.network, batch), &self.network.blocks[layer]);
        let (mut slots, mut tape) = (Slots::default(), Tape::default());
        let mut pass = self.pass(values, batch, &turns);
        *slots.get_mut(Slot::Hidden) = pass.spare.copy(stream);
        pass.forward(nodes, &mut slots, Some(&mut tape));
        let mut out = slots.take(Slot::Hidden);
        slots.clear(pass.spare);
        let (mut error, mut size, each) = (0.0, 0.0, 1.0 / out.len().max(1) as f32);
        for (value, &target) in out.iter_mut().zip(targets) {
            let off = *value - target;
            error += f64::from(off).powi(2);
            size += f64::from(target).powi(2);
            *value = off * each;
        }
        let mut grads = Slots::default();
        grads.put(Slot::Hidden, out, pass.spare);
        pass.backward(nodes, &mut tape, &mut grads, gradients);
        grads.clear(pass.spare);
        error / size.max(f64::MIN_POSITIVE)
    }

    /// The logits of a residual stream.
    pub fn logits(&mut self, values: &Values, hidden: &[f32]) -> Vec<f32> {
        let (network, batch) = (self.network, Batch::default());
        let mut pass = self.pass(values, &batch, &[]);
        pass.rows = hidden.len() / network.spec().hidden().max(1);
        let mut slots = Slots::default();
        *slots.get_mut(Slot::Hidden) = pass.spare.copy(hidden);
        pass.forward(&network.head, &mut slots, None);
        let logits = slots.take(Slot::Logits);
        slots.clear(&mut self.spare);
        logits
    }

    /// A buffer of `len` elements of any value, to be given back.
    pub(crate) fn buffer(&mut self, len: usize) -> Vec<f32> {
        self.spare.take(len)
    }

    /// Gives a buffer that came from this trainer back to it.
    pub fn recycle(&mut self, buffer: Vec<f32>) {
        self.spare.give(buffer);
    }

    /// The mean loss of a batch, in nats a token.
    pub fn loss(&mut self, values: &Values, batch: &Batch, lesson: Lesson<'_>) -> f64 {
        let hidden = self.hidden(values, batch);
        let mut none = Gradients::default();
        let (loss, _) = self.head(values, hidden, lesson, None, &mut none);
        loss / batch.rows().max(1) as f64
    }

    /// The mean loss of a batch, in nats a token; its gradients are added to `gradients`.
    pub fn learn(&mut self, values: &Values, batch: &Batch, lesson: Lesson<'_>, keep: Keep, gradients: &mut Gradients) -> f64 {
        let turns = turns(self.network, batch);
        let (network, rows) = (self.network, batch.rows());
        let (mut slots, mut tapes, mut starts) = (Slots::default(), vec![], vec![]);
        let mut pass = self.pass(values, batch, &turns);
        pass.forward(std::slice::from_ref(&network.embed), &mut slots, None);
        for nodes in &network.blocks {
            match keep {
                Keep::All => {
                    let mut tape = Tape::default();
                    pass.forward(nodes, &mut slots, Some(&mut tape));
                    tapes.push(tape);
                }
                Keep::Blocks => {
                    starts.push(pass.spare.copy(slots.get(Slot::Hidden)));
                    pass.forward(nodes, &mut slots, None);
                }
            }
        }
        let hidden = slots.take(Slot::Hidden);
        slots.clear(&mut self.spare);
        let (loss, dhidden) = self.head(values, hidden, lesson, Some(1.0 / rows.max(1) as f32), gradients);
        let mut grads = Slots::default();
        let mut pass = self.pass(values, batch, &turns);
        grads.put(Slot::Hidden, dhidden, pass.spare);
        for nodes in network.blocks.iter().rev() {
            let mut tape = tapes.pop().unwrap_or_default();
            if let Some(start) = starts.pop() {
                slots.put(Slot::Hidden, start, pass.spare);
                pass.forward(nodes, &mut slots, Some(&mut tape));
                slots.clear(pass.spare);
            }
            pass.backward(nodes, &mut tape, &mut grads, gradients);
        }
        let mut tape = Tape::default();
        pass.backward(std::slice::from_ref(&network.embed), &mut tape, &mut grads, gradients);
        grads.clear(&mut self.spare);
        loss / rows.max(1) as f64
    }

    /// The summed loss of a residual stream, a few rows at a time, and its gradient by that stream where there is a `weight`.
    fn head(
        &mut self,
        values: &Values,
        mut hidden: Vec<f32>,
        lesson: Lesson<'_>,
        weight: Option<f32>,
        gradients: &mut Gradients,
    ) -> (f64, Vec<f32>) {
        let network = self.network;
        let (width, batch) = (network.spec().hidden().max(1), Batch::default());
        let rows = hidden.len() / width;
        let (mut loss, mut losses) = (0.0, vec![0.0; rows]);
        for run in runs(rows, (LOGITS / network.spec().vocab_size().max(1)).max(16)) {
            let part = run.start * width..run.end * width;
            let taught = match lesson {
                Lesson::Teacher { values, hidden } => self.logits(values, &hidden[part.clone()]),
                Lesson::Tokens { .. } => vec![],
            };
            let likeness = match lesson {
                Lesson::Teacher { .. } => Likeness::Logits(&taught),
                Lesson::Tokens { next } => Likeness::Tokens(&next[run.clone()]),
            };
            let mut pass = self.pass(values, &batch, &[]);
            pass.rows = run.len();
            let (mut slots, mut tape) = (Slots::default(), Tape::default());
            *slots.get_mut(Slot::Hidden) = pass.spare.copy(&hidden[part.clone()]);
            pass.forward(&network.head, &mut slots, weight.is_some().then_some(&mut tape));
            let mut logits = slots.take(Slot::Logits);
            slots.clear(pass.spare);
            pass.engine.likeness_gradient(&mut logits, likeness, weight.unwrap_or(1.0), &mut losses[run.clone()]);
            loss += losses[run].iter().map(|&loss| f64::from(loss)).sum::<f64>();
            if weight.is_some() {
                let mut grads = Slots::default();
                grads.put(Slot::Logits, logits, pass.spare);
                pass.backward(&network.head, &mut tape, &mut grads, gradients);
                hidden[part].copy_from_slice(grads.get(Slot::Hidden));
                grads.clear(pass.spare);
            } else {
                pass.spare.give(logits);
            }
            self.spare.give(taught);
        }
        (loss, hidden)
    }

    fn pass<'b>(&'b mut self, values: &'b Values, batch: &'b Batch, turns: &'b [Turns]) -> Pass<'b> {
        Pass { engine: self.engine, values, batch, turns, spare: &mut self.spare, rows: batch.rows() }
    }
}

fn turns(network: &Network, batch: &Batch) -> Vec<Turns> {
    network.spec().ropes().iter().map(|rope| batch.turns(rope)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use octet_testkit::{TINY_GEMMA3, TINY_LLAMA};
    use std::num::NonZeroUsize;

    #[test]
    fn buffers_do_not_grow_from_step_to_step() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        for config in [TINY_LLAMA, TINY_GEMMA3] {
            let spec = octet_model::ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap();
            let network = Network::new(&spec).unwrap();
            let values: Values = network.parameters().iter().map(|p| vec![0.1; p.shape[0] * p.shape[1]]).collect();
            let ids: Vec<u32> = (0..40).collect();
            let mut gradients = Gradients::new(&network, |_| true);
            for keep in [Keep::All, Keep::Blocks] {
                let (mut trainer, mut rooms) = (Trainer::new(&engine, &network), vec![]);
                for step in 0..6 {
                    let batch = Batch::new(ids[..if step == 0 { 20 } else { 33 + step }].chunks(20));
                    let hidden = trainer.hidden(&values, &batch);
                    let lesson = Lesson::Teacher { values: &values, hidden: &hidden };
                    trainer.learn(&values, &batch, lesson, keep, &mut gradients);
                    trainer.recycle(hidden);
                    rooms.push(trainer.spare.room());
                }
                assert!(rooms[2..].iter().all(|room| *room == rooms[1]), "{keep:?}: {rooms:?}");
            }
        }
    }
}
