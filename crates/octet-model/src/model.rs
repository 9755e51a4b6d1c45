//! A loaded model and its forward pass over a batch of sequences.

use crate::{
    error::{ForwardError, LoadError, Place},
    graph::BlockGraph,
    load::{self, Loader},
    sequence::Sequence,
    sites::InputSite,
    spec::ArchSpec,
    stage::{Caches, Stage},
    workspace::{Span, Workspace},
};
use octet_kernels::{Engine, KvDtype};
use octet_tensor::{Activations, WeightSource};
use std::sync::{Mutex, PoisonError};

/// Rows a pass takes at most; longer inputs go through in several passes, so that buffers stay small.
pub(crate) const PASS_ROWS: usize = 512;

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Activations of quantized linears; `None`: as the checkpoint says.
    pub activations: Option<Activations>,
    /// Type of cached keys and values.
    pub kv: KvDtype,
    /// Longest sequence, in tokens; `None`: as long as the model was made for.
    pub context: Option<usize>,
}

/// Which logits a step wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None.
    None,
    /// Those after its last token.
    Last,
    /// Those after each of its tokens.
    All,
}

/// New tokens of one sequence.
pub struct Step<'a> {
    /// The sequence they continue.
    pub sequence: &'a mut Sequence,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// Which logits are wanted.
    pub logits: Logits,
}

/// Sees the float input of every group of linears (calibration).
pub trait Tap {
    /// `x` is `[tokens, inputs]`, row-major.
    fn input(&mut self, site: InputSite, x: &[f32], tokens: usize);
}

/// A model ready to run.
pub struct Model {
    engine: Engine,
    spec: ArchSpec,
    graph: BlockGraph,
    embed: Stage,
    blocks: Vec<Stage>,
    head: Stage,
    kv: KvDtype,
    context: usize,
    workspaces: Mutex<Vec<(Workspace, PassPlan)>>,
}

impl Model {
    /// Loads a model from `source`; `progress` is told how many blocks of how many are done.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen, unreadable or unexpected, or the context asked for is too long.
    pub fn load(
        engine: &Engine,
        mut spec: ArchSpec,
        source: &dyn WeightSource,
        options: LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, LoadError> {
        let context = options.context.unwrap_or(spec.context());
        if context > spec.context() {
            return Err(LoadError::Context { asked: context, context: spec.context() });
        }
        spec.settle(source)?;
        let graph = spec.graph();
        load::refuse_unexpected(&spec, &graph, source)?;
        let mut loader = Loader { engine, source, activations: options.activations, embedding: None };
        let embed = Stage::load_with(&loader, &graph, Place::Embedding)?;
        loader.embedding = embed.table();
        // The largest matrices first: while one is packed, its stored bytes are in memory too.
        let head = Stage::load_with(&loader, &graph, Place::Head)?;
        let count = graph.blocks.len();
        progress(0, count);
        let mut blocks = Vec::with_capacity(count);
        for layer in 0..count {
            blocks.push(Stage::load_with(&loader, &graph, Place::Layer(layer))?);
            progress(layer + 1, count);
        }
        let (engine, kv, workspaces) = (engine.clone(), options.kv, Mutex::default());
        Ok(Self { engine, spec, graph, embed, blocks, head, kv, context, workspaces })
    }

    /// What it computes.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// Its graph.
    pub fn graph(&self) -> &BlockGraph {
        &self.graph
    }

    /// What it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes its weights keep resident; a tied head counts once.
    pub fn resident_bytes(&self) -> usize {
        let shared = if self.spec.head().tied { self.embed.table().map_or(0, |table| table.resident_bytes()) } else { 0 };
        let stages = [&self.embed, &self.head].into_iter().chain(&self.blocks);
        stages.map(Stage::resident_bytes).sum::<usize>() - shared
    }

    /// An empty sequence.
    pub fn new_sequence(&self) -> Sequence {
        Sequence::new(&self.spec, self.kv, self.context)
    }

    /// Runs the new tokens of several sequences through the model together.
    ///
    /// `out` becomes the wanted logits, `[rows, vocab]`, steps in order. `tap` sees the input of every group of linears;
    /// the head's only for rows whose logits are wanted.
    ///
    /// # Errors
    /// If a step is empty, a token is out of range, a sequence would outgrow the context or a result is not finite; the
    /// sequences are then as they were before.
    pub fn forward(&self, batch: &mut [Step<'_>], out: &mut Vec<f32>, tap: Option<&mut dyn Tap>) -> Result<(), ForwardError> {
        out.clear();
        self.check(batch)?;
        for step in batch.iter_mut() {
            step.sequence.extend(step.tokens);
        }
        let spare = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut ws, mut plan) = spare.unwrap_or_else(|| (Workspace::new(&self.spec), PassPlan::default()));
        let result = self.passes(batch, &mut ws, &mut plan, out, tap);
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push((ws, plan));
        if result.is_err() {
            for step in batch.iter_mut() {
                step.sequence.truncate(step.sequence.len() - step.tokens.len());
            }
        }
        result
    }

    fn check(&self, batch: &[Step<'_>]) -> Result<(), ForwardError> {
        let vocab = self.spec.vocab_size();
        for (index, step) in batch.iter().enumerate() {
            if step.tokens.is_empty() {
                return Err(ForwardError::Empty { step: index });
            }
            if let Some(&token) = step.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(ForwardError::Token { token, vocab });
            }
            let (position, tokens) = (step.sequence.len(), step.tokens.len());
            if position + tokens > self.context {
                return Err(ForwardError::ContextFull { position, tokens, context: self.context });
            }
        }
        Ok(())
    }

    fn passes(
        &self,
        batch: &mut [Step<'_>],
        ws: &mut Workspace,
        plan: &mut PassPlan,
        out: &mut Vec<f32>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(), ForwardError> {
        while plan.next(batch) {
            let steps = &mut batch[plan.steps.clone()];
            self.through_blocks(steps, ws, plan, &mut tap);
            // What is not finite stays so in the residual stream: the last block shows it, a second pass says where it began.
            if let Some(last) = self.blocks.last()
                && last.check(ws.hidden()).is_err()
            {
                return Err(self.find_damage(steps, ws, plan));
            }
            for (step, span) in steps.iter_mut().zip(&plan.spans) {
                step.sequence.cached += span.tokens;
            }
            if plan.wanted.is_empty() {
                continue;
            }
            ws.keep_rows(&plan.wanted);
            self.head.run(&self.engine, ws, &mut [], tap.as_deref_mut().map(|t| t as &mut dyn Tap))?;
            if out.is_empty() { ws.swap_logits(out) } else { out.extend_from_slice(ws.logits()) }
        }
        Ok(())
    }

    fn through_blocks(&self, steps: &mut [Step<'_>], ws: &mut Workspace, plan: &PassPlan, tap: &mut Option<&mut dyn Tap>) {
        ws.begin(&plan.ids, &plan.spans);
        self.embed.run_all(&self.engine, ws, Caches::Given(&mut []), None);
        for (layer, block) in self.blocks.iter().enumerate() {
            let tap = tap.as_deref_mut().map(|t| t as &mut dyn Tap);
            block.run_all(&self.engine, ws, Caches::Of(&mut *steps, layer), tap);
        }
    }

    /// Runs a pass again, stage by stage, to name the one whose result is not finite.
    fn find_damage(&self, steps: &mut [Step<'_>], ws: &mut Workspace, plan: &PassPlan) -> ForwardError {
        for step in steps.iter_mut() {
            step.sequence.forget_uncached();
        }
        ws.begin(&plan.ids, &plan.spans);
        let mut result = self.embed.run(&self.engine, ws, &mut [], None);
        for (layer, block) in self.blocks.iter().enumerate() {
            if result.is_ok() {
                block.run_all(&self.engine, ws, Caches::Of(&mut *steps, layer), None);
                result = block.check(ws.hidden());
            }
        }
        result.err().unwrap_or(ForwardError::NonFinite { place: Place::Layer(self.blocks.len() - 1) })
    }
}

/// What the next pass takes of a batch.
#[derive(Default)]
struct PassPlan {
    steps: std::ops::Range<usize>,
    spans: Vec<Span>,
    ids: Vec<u32>,
    /// Rows of the pass whose logits are wanted.
    wanted: Vec<usize>,
}

impl PassPlan {
    /// Plans the next rows that no cache holds yet; false when there are none.
    fn next(&mut self, batch: &[Step<'_>]) -> bool {
        let pending = |step: &Step<'_>| step.sequence.len() - step.sequence.cached;
        let first = batch.iter().position(|step| pending(step) > 0).unwrap_or(batch.len());
        self.steps = first..first;
        self.spans.clear();
        self.ids.clear();
        self.wanted.clear();
        for step in &batch[first..] {
            let room = PASS_ROWS - self.ids.len();
            if room == 0 {
                break;
            }
            let (position, tokens, total) = (step.sequence.cached, pending(step).min(room), step.sequence.len());
            let first_wanted = match step.logits {
                Logits::None => total,
                Logits::Last => total - 1,
                Logits::All => total - step.tokens.len(),
            };
            let row = self.ids.len();
            self.wanted.extend((first_wanted.max(position)..position + tokens).map(|wanted| row + wanted - position));
            self.ids.extend_from_slice(&step.sequence.tokens()[position..position + tokens]);
            self.spans.push(Span { position, tokens, total });
            self.steps.end += 1;
        }
        !self.spans.is_empty()
    }
}
