//! Running all calibration tokens through some nodes of a stage, a pass of rows at a time.

use super::CalibratedRun;
use crate::{
    Error, HiddenStates,
    asymmetric::HELD_OUT,
    observe::{Sight, Watch},
};
use octet_kernels::{KvCache, KvDtype};
use octet_model::{Place, Span, Stage, Workspace};
use std::{collections::VecDeque, ops::Range};

/// Rows of a pass: enough for the products to run at full speed, few enough for small buffers.
pub(crate) const PASS_ROWS: usize = 512;

/// Rows that go through a stage together.
struct Pass {
    tokens: Range<usize>,
    spans: Vec<Span>,
    /// Whether the last span's window goes on in the next pass.
    open: bool,
}

/// The calibration tokens and their hidden states.
pub(crate) struct Forward<'a> {
    run: &'a CalibratedRun<'a>,
    passes: Vec<Pass>,
    hidden: &'a mut dyn HiddenStates,
    ws: Workspace,
    buffer: Vec<f32>,
    width: usize,
    longest: usize,
}

/// What to do with all tokens: run the nodes of `advance` and keep the result, then look.
pub(crate) struct Route<'t> {
    pub(crate) advance: Range<usize>,
    pub(crate) look: Option<(Look, &'t mut dyn Watch)>,
}

/// A stage of the model being quantized, and of the original where its inputs matter too.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'s> {
    pub(crate) quantized: &'s Stage,
    pub(crate) original: Option<&'s Stage>,
}

/// One of the two on its way.
struct Side<'s> {
    stage: &'s Stage,
    original: bool,
    /// One cache for every window of a pass; a window that goes on in the next pass comes first there.
    caches: VecDeque<KvCache>,
}

impl<'s> Sides<'s> {
    /// The original first.
    fn each(self) -> Vec<Side<'s>> {
        let side = |stage, original| Side { stage, original, caches: VecDeque::new() };
        self.original.map(|stage| side(stage, true)).into_iter().chain([side(self.quantized, false)]).collect()
    }
}

/// What to look at.
pub(crate) enum Look {
    /// Run these nodes and show the inputs of the one behind them.
    Node(Range<usize>),
    /// The inputs of all linears of the stage.
    All,
}

/// Told what share of the passes is done.
pub(crate) type Tick<'a> = &'a mut dyn FnMut(f64) -> Result<(), Error>;

impl<'a> Forward<'a> {
    pub(crate) fn new(run: &'a CalibratedRun<'a>, hidden: &'a mut dyn HiddenStates) -> Self {
        let lengths: Vec<usize> = run.samples.lengths().collect();
        Self {
            run,
            passes: passes(&lengths),
            hidden,
            ws: Workspace::new(run.spec),
            buffer: vec![],
            width: run.spec.hidden(),
            longest: lengths.into_iter().max().unwrap_or(0),
        }
    }

    /// Fills the hidden states with what the embedding makes of the tokens.
    pub(crate) fn embed(&mut self, sides: Sides<'_>, tick: Tick<'_>) -> Result<(), Error> {
        for (index, pass) in self.passes.iter().enumerate() {
            for side in sides.each() {
                self.ws.begin(&self.run.samples.tokens()[pass.tokens.clone()], &pass.spans);
                side.stage.run(self.run.engine, &mut self.ws, &mut [], None)?;
                let offset = self.offset(pass, side.original);
                self.hidden.write(offset, self.ws.hidden()).map_err(Error::Spill)?;
            }
            tick((index + 1) as f64 / self.passes.len() as f64)?;
        }
        Ok(())
    }

    /// Where the hidden states of a pass are; those of the original come behind the others.
    fn offset(&self, pass: &Pass, original: bool) -> usize {
        (pass.tokens.start + if original { self.run.samples.tokens().len() } else { 0 }) * self.width
    }

    /// Takes all tokens along a route through both sides.
    pub(crate) fn take(&mut self, sides: Sides<'_>, mut route: Route<'_>, tick: Tick<'_>) -> Result<(), Error> {
        if route.advance.is_empty() && route.look.is_none() {
            return Ok(());
        }
        let mut sides = sides.each();
        let count = self.passes.len();
        for index in 0..count {
            for side in &mut sides {
                if let Some((_, watch)) = &mut route.look {
                    let held_out = index % HELD_OUT == HELD_OUT - 1 || index + 1 == count && count < HELD_OUT && count > 1;
                    watch.next(Sight { original: side.original, held_out });
                }
                self.pass(index, side, &mut route)?;
            }
            tick((index + 1) as f64 / count as f64)?;
        }
        Ok(())
    }

    /// Takes a pass along a route.
    fn pass(&mut self, index: usize, side: &mut Side<'_>, route: &mut Route<'_>) -> Result<(), Error> {
        let (pass, engine) = (&self.passes[index], self.run.engine);
        let Side { stage, original, ref mut caches } = *side;
        let offset = self.offset(pass, original);
        self.buffer.resize(pass.tokens.len() * self.width, 0.0);
        self.hidden.read(offset, &mut self.buffer).map_err(Error::Spill)?;
        self.ws.begin(&[], &pass.spans);
        self.ws.set_hidden(&self.buffer);
        if let Place::Layer(layer) = stage.place() {
            while caches.len() < pass.spans.len() {
                caches.push_back(self.run.spec.new_cache(layer, KvDtype::F32, self.longest));
            }
        }
        let mut at_work: Vec<&mut KvCache> = caches.iter_mut().take(pass.spans.len()).collect();
        if !route.advance.is_empty() {
            stage.run_nodes(route.advance.clone(), engine, &mut self.ws, &mut at_work, None)?;
            self.hidden.write(offset, self.ws.hidden()).map_err(Error::Spill)?;
        }
        match &mut route.look {
            Some((Look::Node(nodes), watch)) => {
                stage.run_nodes(nodes.clone(), engine, &mut self.ws, &mut at_work, None)?;
                watch.stream(self.ws.hidden());
                stage.show(nodes.end, engine, &mut self.ws, &mut **watch);
            }
            Some((Look::All, watch)) => stage.run(engine, &mut self.ws, &mut at_work, Some(&mut **watch))?,
            None => {}
        }
        let finished = pass.spans.len() - usize::from(pass.open);
        caches.rotate_left(finished.min(caches.len()));
        let going_on = usize::from(pass.open && !caches.is_empty());
        caches.iter_mut().skip(going_on).for_each(KvCache::clear);
        Ok(())
    }
}

/// Deals windows of these lengths to passes, in order; a long window takes several.
fn passes(lengths: &[usize]) -> Vec<Pass> {
    let mut passes: Vec<Pass> = vec![];
    let mut next = 0;
    for &total in lengths {
        let mut position = 0;
        while position < total {
            let full = passes.last().is_none_or(|pass| pass.tokens.len() == PASS_ROWS);
            if full {
                passes.push(Pass { tokens: next..next, spans: vec![], open: false });
            }
            let Some(pass) = passes.last_mut() else { break };
            let tokens = (PASS_ROWS - pass.tokens.len()).min(total - position);
            pass.spans.push(Span { position, tokens, total });
            pass.tokens.end += tokens;
            (position, next) = (position + tokens, next + tokens);
            pass.open = position < total;
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_every_token_once_in_order() {
        let lengths = [512, 100, 700, 1, 1200, 30];
        let passes = passes(&lengths);
        let mut next = 0;
        for pass in &passes {
            assert_eq!(pass.tokens.start, next);
            assert_eq!(pass.spans.iter().map(|span| span.tokens).sum::<usize>(), pass.tokens.len());
            assert!(pass.tokens.len() <= PASS_ROWS);
            next = pass.tokens.end;
        }
        assert_eq!(next, lengths.iter().sum::<usize>());
        assert_eq!(passes.iter().filter(|pass| pass.open).count(), 3);
        for (pass, following) in passes.iter().zip(&passes[1..]) {
            assert_eq!(pass.open, following.spans[0].position > 0);
        }
    }
}
