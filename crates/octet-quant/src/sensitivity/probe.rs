//! A model with one stage exchanged, the original or one that is quantized already: how far its predictions are from the original's.

use super::divergence::{Predictions, losses, predictions};
use crate::{Error, InputObserver, Samples};
use octet_kernels::{Engine, KvCache, KvDtype};
use octet_model::{ArchSpec, BlockGraph, ForwardError, Place, Span, Stage, Tap, Workspace};
use octet_tensor::WeightSource;
use std::ops::Range;

/// Bytes of logits that may be held at once, and of the original's predictions that may be kept.
const LOGITS_BYTES: usize = 32 << 20;
const KEPT_BYTES: usize = 256 << 20;

/// Rows of a pass.
const PASS_ROWS: usize = 512;

/// Whole windows that go through the model together.
struct Pass {
    tokens: Range<usize>,
    spans: Vec<Span>,
}

/// What stages run with.
struct Rig<'a> {
    engine: &'a Engine,
    spec: &'a ArchSpec,
    passes: Vec<Pass>,
    longest: usize,
    ws: Workspace,
}

/// Runs `samples` through the original, a block in memory at a time, and shows `tap` what flows into the linears of its blocks.
///
/// # Errors
/// If weights cannot be read or the numbers of the model are not finite.
pub fn watch(engine: &Engine, spec: &ArchSpec, source: &dyn WeightSource, samples: &Samples, tap: &mut dyn Tap) -> Result<(), Error> {
    let graph = spec.graph();
    let load = |place| Stage::load(engine, &graph, place, source, None);
    let mut rig = Rig::new(engine, spec, samples);
    let mut hidden = rig.embed(&load(Place::Embedding)?, samples.tokens())?;
    for layer in 0..graph.blocks.len() {
        rig.block(layer, &load(Place::Layer(layer))?, &mut hidden, Some(&mut *tap))?;
    }
    Ok(())
}

/// As [`watch`] with a tap of its own for every place that `begin` gives one, to the input of the head; `end` gets it back when all
/// samples have been there.
pub(crate) fn survey<T: Tap>(
    engine: &Engine,
    spec: &ArchSpec,
    source: &dyn WeightSource,
    samples: &Samples,
    begin: &dyn Fn(Place) -> Option<T>,
    end: &mut dyn FnMut(Place, Option<T>) -> Result<(), Error>,
) -> Result<(), Error> {
    let graph = spec.graph();
    let load = |place| Stage::load(engine, &graph, place, source, None);
    let mut rig = Rig::new(engine, spec, samples);
    let mut hidden = rig.embed(&load(Place::Embedding)?, samples.tokens())?;
    for layer in 0..graph.blocks.len() {
        let place = Place::Layer(layer);
        let mut tap = begin(place);
        rig.block(layer, &load(place)?, &mut hidden, tap.as_mut().map(|tap| tap as &mut dyn Tap))?;
        end(place, tap)?;
    }
    let (mut tap, phases) = (begin(Place::Head), graph.phases(Place::Head));
    if let (Some(tap), Some(phase)) = (&mut tap, phases.first()) {
        let stage = load(Place::Head)?;
        for rows in hidden.chunks(PASS_ROWS * spec.hidden()) {
            let tokens = rows.len() / spec.hidden();
            rig.ws.begin(&[], &[Span { position: 0, tokens, total: tokens }]);
            rig.ws.set_hidden(rows);
            // Logits of all tokens would be large.
            stage.run_nodes(phase.start..phase.node, engine, &mut rig.ws, &mut [], None)?;
            stage.show(phase.node, engine, &mut rig.ws, tap);
        }
    }
    end(Place::Head, tap)
}

impl<'a> Rig<'a> {
    fn new(engine: &'a Engine, spec: &'a ArchSpec, samples: &Samples) -> Self {
        Rig { engine, spec, passes: passes(samples), longest: samples.lengths().max().unwrap_or(0), ws: Workspace::new(spec) }
    }

    fn embed(&mut self, stage: &Stage, ids: &[u32]) -> Result<Vec<f32>, ForwardError> {
        let mut hidden = Vec::with_capacity(ids.len() * self.spec.hidden());
        for pass in &self.passes {
            self.ws.begin(&ids[pass.tokens.clone()], &pass.spans);
            stage.run(self.engine, &mut self.ws, &mut [], None)?;
            hidden.extend_from_slice(self.ws.hidden());
        }
        Ok(hidden)
    }

    /// Runs block `layer` over the hidden states of all tokens, in place.
    fn block(&mut self, layer: usize, stage: &Stage, hidden: &mut [f32], mut tap: Option<&mut dyn Tap>) -> Result<(), ForwardError> {
        let width = self.spec.hidden();
        let mut caches: Vec<KvCache> = vec![];
        for pass in &self.passes {
            let rows = &mut hidden[pass.tokens.start * width..pass.tokens.end * width];
            self.ws.begin(&[], &pass.spans);
            self.ws.set_hidden(rows);
            while caches.len() < pass.spans.len() {
                caches.push(self.spec.new_cache(layer, KvDtype::F32, self.longest));
            }
            let mut at_work: Vec<&mut KvCache> = caches.iter_mut().take(pass.spans.len()).collect();
            stage.run(self.engine, &mut self.ws, &mut at_work, tap.as_deref_mut().map(|tap| tap as &mut dyn Tap))?;
            rows.copy_from_slice(self.ws.hidden());
            caches.iter_mut().for_each(KvCache::clear);
        }
        Ok(())
    }

    /// Logits of some rows, in `self.ws`.
    fn head(&mut self, stage: &Stage, hidden: &[f32], tap: Option<&mut dyn Tap>) -> Result<&[f32], ForwardError> {
        let tokens = hidden.len() / self.spec.hidden().max(1);
        self.ws.begin(&[], &[Span { position: 0, tokens, total: tokens }]);
        self.ws.set_hidden(hidden);
        stage.run(self.engine, &mut self.ws, &mut [], tap)?;
        Ok(self.ws.logits())
    }
}

/// A model, run stage by stage.
pub(super) struct Probe<'a> {
    rig: Rig<'a>,
    ids: &'a [u32],
    blocks: Vec<Stage>,
    head: Stage,
    /// What enters the block at work, of all tokens.
    entering: Vec<f32>,
    /// What enters the head.
    last: Vec<f32>,
    /// The original's head and what enters it, where the model is another.
    original: Option<(Stage, Vec<f32>)>,
    /// The original's predictions where they fit into memory, a chunk of rows each.
    kept: Option<Vec<Predictions>>,
}

/// The exchanged stage.
#[derive(Clone, Copy)]
pub(super) enum Variant<'s> {
    /// The block at work.
    Block(&'s Stage),
    /// The embedding, the head, or both.
    Outside(Option<&'s Stage>, Option<&'s Stage>),
}

impl<'a> Probe<'a> {
    /// Loads the original and runs `samples` through it; `observer` sees the inputs of all linears. The first block is at work.
    pub(super) fn new(
        engine: &'a Engine,
        spec: &'a ArchSpec,
        graph: &BlockGraph,
        source: &dyn WeightSource,
        samples: &'a Samples,
        observer: &mut InputObserver<'_>,
    ) -> Result<Self, Error> {
        let load = |place| Stage::load(engine, graph, place, source, None);
        let mut rig = Rig::new(engine, spec, samples);
        let (embed, head, ids) = (load(Place::Embedding)?, load(Place::Head)?, samples.tokens());
        let blocks = (0..graph.blocks.len()).map(|layer| load(Place::Layer(layer))).collect::<Result<Vec<_>, _>>()?;
        let entering = rig.embed(&embed, ids)?;
        let mut last = entering.clone();
        for (layer, block) in blocks.iter().enumerate() {
            rig.block(layer, block, &mut last, Some(&mut *observer))?;
        }
        let mut probe = Self { rig, ids, blocks, head, entering, last, original: None, kept: None };
        let fits = ids.len() * spec.vocab_size() * size_of::<f32>() <= KEPT_BYTES;
        let mut kept = vec![];
        for rows in probe.chunks() {
            let logits = probe.rig.head(&probe.head, &probe.last[rows], Some(&mut *observer))?;
            if fits {
                kept.push(predictions(engine, logits.to_vec(), spec.vocab_size()));
            }
        }
        probe.kept = fits.then_some(kept);
        Ok(probe)
    }

    /// Lets `source` be the model in which stages are exchanged; divergence stays that from the original. The first block is at work.
    pub(super) fn settle_on(&mut self, graph: &BlockGraph, source: &dyn WeightSource) -> Result<(), Error> {
        let engine = self.rig.engine;
        let load = |place| Stage::load(engine, graph, place, source, None);
        self.blocks.clear();
        self.blocks = (0..graph.blocks.len()).map(|layer| load(Place::Layer(layer))).collect::<Result<Vec<_>, _>>()?;
        self.entering = self.rig.embed(&load(Place::Embedding)?, self.ids)?;
        let head = std::mem::replace(&mut self.head, load(Place::Head)?);
        let mut last = self.entering.clone();
        self.run_on(0, &mut last)?;
        self.original = Some((head, std::mem::replace(&mut self.last, last)));
        Ok(())
    }

    /// Puts the block after `layer` to work.
    pub(super) fn advance(&mut self, layer: usize) -> Result<(), Error> {
        Ok(self.rig.block(layer, &self.blocks[layer], &mut self.entering, None)?)
    }

    /// KL(original ‖ variant) in nats a token; infinite where the variant's numbers are not finite.
    pub(super) fn divergence(&mut self, layer: usize, variant: Variant<'_>) -> Result<f64, Error> {
        match self.diverge(layer, variant) {
            Err(ForwardError::NonFinite { .. }) => Ok(f64::INFINITY),
            other => Ok(other?.max(0.0)),
        }
    }

    fn diverge(&mut self, layer: usize, variant: Variant<'_>) -> Result<f64, ForwardError> {
        let (hidden, head) = match variant {
            Variant::Block(stage) => {
                let mut hidden = self.entering.clone();
                self.rig.block(layer, stage, &mut hidden, None)?;
                self.run_on(layer + 1, &mut hidden)?;
                (Some(hidden), None)
            }
            Variant::Outside(Some(embed), head) => {
                let mut hidden = self.rig.embed(embed, self.ids)?;
                self.run_on(0, &mut hidden)?;
                (Some(hidden), head)
            }
            Variant::Outside(None, head) => (None, head),
        };
        let (vocab, mut sum) = (self.rig.spec.vocab_size(), 0.0);
        for (index, rows) in self.chunks().into_iter().enumerate() {
            let fresh;
            let p = match &self.kept {
                Some(kept) => &kept[index],
                None => {
                    let (head, last) = self.original.as_ref().map_or((&self.head, &self.last), |(head, last)| (head, last));
                    let logits = self.rig.head(head, &last[rows.clone()], None)?.to_vec();
                    fresh = predictions(self.rig.engine, logits, vocab);
                    &fresh
                }
            };
            let engine = self.rig.engine;
            let logits = self.rig.head(head.unwrap_or(&self.head), &hidden.as_ref().unwrap_or(&self.last)[rows], None)?;
            sum += losses(engine, p, logits, vocab);
        }
        Ok(sum / self.ids.len().max(1) as f64)
    }

    fn run_on(&mut self, from: usize, hidden: &mut [f32]) -> Result<(), ForwardError> {
        let blocks = self.blocks.iter().enumerate().skip(from);
        blocks.into_iter().try_for_each(|(layer, block)| self.rig.block(layer, block, hidden, None))
    }

    /// Ranges of the hidden states whose logits exist at once.
    fn chunks(&self) -> Vec<Range<usize>> {
        let (width, vocab) = (self.rig.spec.hidden(), self.rig.spec.vocab_size());
        let rows = (LOGITS_BYTES / (size_of::<f32>() * vocab.max(1))).clamp(1, PASS_ROWS);
        (0..self.last.len()).step_by(rows * width).map(|start| start..(start + rows * width).min(self.last.len())).collect()
    }
}

/// Deals whole windows to passes, in order.
fn passes(samples: &Samples) -> Vec<Pass> {
    let mut passes: Vec<Pass> = vec![];
    let mut next = 0;
    for tokens in samples.lengths() {
        if passes.last().is_none_or(|pass| pass.tokens.len() + tokens > PASS_ROWS) {
            passes.push(Pass { tokens: next..next, spans: vec![] });
        }
        next += tokens;
        if let Some(pass) = passes.last_mut() {
            pass.spans.push(Span { position: 0, tokens, total: tokens });
            pass.tokens.end = next;
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_whole_windows() {
        let ids: Vec<u32> = (0..1100).collect();
        let found = passes(&Samples::draw(&ids, 20, 200, 0));
        assert_eq!(found.iter().map(|pass| pass.tokens.clone()).collect::<Vec<_>>(), [0..400, 400..800, 800..1100]);
        assert!(found.iter().all(|pass| pass.spans.iter().map(|s| s.tokens).sum::<usize>() == pass.tokens.len()));
    }
}
