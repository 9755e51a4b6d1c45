//! The forward pass: one stage (the embedding, a block or the head) at a time, node by node.

use crate::{
    error::{ForwardError, LoadError, Place},
    fuse::{FusedStep, Fusion, fuse},
    graph::{BlockGraph, LinearGroup, Node, Slot},
    load::{LoadedLinear, LoadedNode, Loader, nodes_at},
    model::{Step, Tap},
    workspace::Workspace,
};
use octet_kernels::{ActivationFn, AppendJob, AttentionJob, Engine, Gated, Heads, KvCache, MatmulJob, Norm, PackedLinear, Source};
use octet_tensor::{Activations, Matrix, Tensor, WeightSource};
use smallvec::SmallVec;
use std::{ops::Range, sync::Arc};

/// The embedding, one block or the head of a model, loaded.
///
/// A model is a list of stages; a calibration may also load and run one at a time, carrying the hidden states over.
pub struct Stage {
    place: Place,
    nodes: Vec<LoadedNode>,
    /// How they are computed when nobody watches.
    steps: Vec<FusedStep>,
}

/// What a stage runs with.
pub(crate) struct Pass<'a, 'c, 't> {
    pub(crate) engine: &'a Engine,
    pub(crate) ws: &'a mut Workspace,
    pub(crate) caches: Caches<'a, 'c>,
    pub(crate) tap: Option<&'t mut dyn Tap>,
}

/// The caches of a block, one for every span.
pub(crate) enum Caches<'a, 'c> {
    /// They themselves.
    Given(&'a mut [&'c mut KvCache]),
    /// Those of this layer in the steps' sequences.
    Of(&'a mut [Step<'c>], usize),
}

impl Caches<'_, '_> {
    fn get(&self, index: usize) -> &KvCache {
        match self {
            Self::Given(caches) => &*caches[index],
            Self::Of(steps, layer) => &steps[index].sequence.caches[*layer],
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut KvCache> {
        let (given, steps, layer): (&mut [&mut KvCache], &mut [Step<'_>], usize) = match self {
            Self::Given(caches) => (caches, &mut [], 0),
            Self::Of(steps, layer) => (&mut [], steps, *layer),
        };
        given.iter_mut().map(|cache| &mut **cache).chain(steps.iter_mut().map(move |step| &mut step.sequence.caches[layer]))
    }
}

/// Linears of a group up to which nothing is allocated.
const FEW_LINEARS: usize = 4;

impl Stage {
    /// Loads one stage from `source`; a head loaded so that is tied packs the embedding again.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or unreadable.
    pub fn load(
        engine: &Engine,
        graph: &BlockGraph,
        place: Place,
        source: &dyn WeightSource,
        activations: Option<Activations>,
    ) -> Result<Self, LoadError> {
        Self::load_with(&Loader { engine, source, activations, embedding: None }, graph, place)
    }

    pub(crate) fn load_with(loader: &Loader<'_>, graph: &BlockGraph, place: Place) -> Result<Self, LoadError> {
        let nodes = loader.nodes(nodes_at(graph, place))?;
        Ok(Self { place, steps: fuse(&nodes), nodes })
    }

    /// Which stage it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes its weights keep resident.
    pub fn resident_bytes(&self) -> usize {
        let of_linear = |l: &LoadedLinear| -> usize {
            l.parts.iter().map(|p| p.weights.resident_bytes() + 4 * p.bias.as_ref().map_or(0, Vec::len)).sum()
        };
        let of_node = |node: &LoadedNode| -> usize {
            let params: usize = node.params().into_iter().map(|p| 4 * p.len()).sum();
            params + node.linears().into_iter().map(of_linear).sum::<usize>()
        };
        self.nodes.iter().map(of_node).sum()
    }

    /// The first weight matrix (the embedding stage's table).
    pub(crate) fn table(&self) -> Option<Arc<PackedLinear>> {
        Some(Arc::clone(&self.nodes.first()?.linears().first()?.parts.first()?.weights))
    }

    /// Runs the stage over the rows of `ws`, in place; `caches` has this block's cache of every span's sequence (any slice
    /// for the embedding and the head) and takes the spans' keys and values in.
    ///
    /// # Errors
    /// If the result is not finite; the error names the stage.
    pub fn run(
        &self,
        engine: &Engine,
        ws: &mut Workspace,
        caches: &mut [&mut KvCache],
        tap: Option<&mut dyn Tap>,
    ) -> Result<(), ForwardError> {
        self.run_nodes(0..self.nodes.len(), engine, ws, caches, tap)?;
        if self.place == Place::Head { self.check(ws.slot(Slot::Logits)) } else { Ok(()) }
    }

    /// As [`Stage::run`] for some of its nodes (see [`crate::Phase`]).
    ///
    /// # Errors
    /// If the residual stream is not finite afterwards; the error names the stage.
    pub fn run_nodes(
        &self,
        nodes: Range<usize>,
        engine: &Engine,
        ws: &mut Workspace,
        caches: &mut [&mut KvCache],
        tap: Option<&mut dyn Tap>,
    ) -> Result<(), ForwardError> {
        let mut pass = Pass { engine, ws, caches: Caches::Given(caches), tap };
        self.run_unchecked(nodes, &mut pass);
        self.check(ws.slot(Slot::Hidden))
    }

    /// Runs the whole stage; [`Stage::check`] says whether the result is finite.
    pub(crate) fn run_all(&self, engine: &Engine, ws: &mut Workspace, caches: Caches<'_, '_>, tap: Option<&mut dyn Tap>) {
        self.run_unchecked(0..self.nodes.len(), &mut Pass { engine, ws, caches, tap });
    }

    /// Runs steps that lie within `nodes` as one, the other nodes one by one; all of them so when somebody watches.
    fn run_unchecked(&self, nodes: Range<usize>, pass: &mut Pass<'_, '_, '_>) {
        let mut steps = self.steps.iter().skip_while(|step| step.nodes.start < nodes.start).peekable();
        let mut next = nodes.start;
        while next < nodes.end.min(self.nodes.len()) {
            let step = steps.next_if(|step| step.nodes.start == next && step.nodes.end <= nodes.end && pass.tap.is_none());
            match step {
                Some(step) => pass.step(step.fusion, &self.nodes[step.nodes.clone()]),
                None => pass.node(&self.nodes[next]),
            }
            next = step.map_or(next + 1, |step| step.nodes.end);
        }
    }

    /// Shows `tap` the inputs of the linears of a node whose predecessors ran. The products are not computed, except where
    /// one linear of the node reads what another one makes (experts).
    pub fn show(&self, node: usize, engine: &Engine, ws: &mut Workspace, tap: &mut dyn Tap) {
        match self.nodes.get(node) {
            Some(Node::Linears(group)) => tap.input(group.input, ws.slot(group.from), ws.rows()),
            Some(node) => Pass { engine, ws, caches: Caches::Given(&mut []), tap: Some(tap) }.node(node),
            None => {}
        }
    }

    /// Puts `matrix` in the place of the weights of `module`, which this stage of `graph` uses; it runs as stored from now on.
    ///
    /// # Errors
    /// If the stage has no such module, or the matrix another shape.
    pub fn replace(&mut self, engine: &Engine, graph: &BlockGraph, module: &str, matrix: Matrix) -> Result<(), LoadError> {
        let source = Single { module, matrix };
        let loader = Loader { engine, source: &source, activations: None, embedding: None };
        for (node, plain) in self.nodes.iter_mut().zip(nodes_at(graph, self.place)) {
            for (loaded, linear) in node.linears_mut().into_iter().zip(plain.linears()) {
                if linear.site.module == module {
                    return loader.refill(loaded, linear);
                }
            }
        }
        Err(octet_tensor::Error::Missing { name: module.into() }.into())
    }

    /// Whether what the stage left is finite.
    pub(crate) fn check(&self, result: &[f32]) -> Result<(), ForwardError> {
        if all_finite(result) { Ok(()) } else { Err(ForwardError::NonFinite { place: self.place }) }
    }
}

/// One matrix as a source.
struct Single<'a> {
    module: &'a str,
    matrix: Matrix,
}

impl WeightSource for Single<'_> {
    fn matrix(&self, module: &str) -> octet_tensor::Result<Option<Matrix>> {
        Ok((module == self.module).then(|| self.matrix.clone()))
    }

    fn tensor(&self, _name: &str) -> octet_tensor::Result<Option<Tensor>> {
        Ok(None)
    }

    fn names(&self) -> Vec<String> {
        vec![format!("{}.weight", self.module)]
    }
}

impl Pass<'_, '_, '_> {
    fn step(&mut self, fusion: Fusion, nodes: &[LoadedNode]) {
        match (fusion, nodes) {
            (Fusion::Products { turn, .. }, [Node::Norm { weight, bias, eps, from, .. }, rest @ ..]) => {
                self.group(*from, Some(norm(weight, bias.as_deref(), *eps)), turn, &rest[usize::from(turn)..]);
            }
            (Fusion::Products { turn: true, .. }, [Node::Turn(from), rest @ ..]) => self.group(*from, None, true, rest),
            (Fusion::Products { .. }, [Node::Linears(group), ..]) => self.group(group.from, None, false, nodes),
            (Fusion::Heads, [norms @ .., Node::Rope { rope, heads, kv_heads, head_dim }]) => {
                let norm_of = |slot| {
                    norms.iter().find_map(|node| match node {
                        Node::Norm { weight, bias, eps, from, .. } if *from == slot => Some(norm(weight, bias.as_deref(), *eps)),
                        _ => None,
                    })
                };
                let (mut q, mut k) = (self.ws.take(Slot::Q), self.ws.take(Slot::K));
                let queries = Heads { x: &mut q, heads: *heads, norm: norm_of(Slot::Q) };
                let keys = Heads { x: &mut k, heads: *kv_heads, norm: norm_of(Slot::K) };
                self.engine.turn([Some(queries), Some(keys)], *head_dim, Some(self.ws.rope_table(*rope)));
                self.ws.put(Slot::Q, q);
                self.ws.put(Slot::K, k);
            }
            (Fusion::AddNorm, [Node::Norm { weight, bias, eps, from, .. }, ..]) => {
                let mut hidden = self.ws.take(Slot::Hidden);
                self.engine.add_norm(self.ws.slot(*from), norm(weight, bias.as_deref(), *eps), &mut hidden);
                self.ws.put(Slot::Hidden, hidden);
            }
            _ => nodes.iter().for_each(|node| self.node(node)),
        }
    }

    fn node(&mut self, node: &LoadedNode) {
        match node {
            Node::Embed { table, scale, positions } => self.embed(table, *scale, positions.as_deref()),
            Node::Norm { weight, bias, eps, from, to } => self.norm(weight, bias.as_deref(), *eps, *from, *to),
            Node::Linears(group) => self.linears(group),
            Node::Rope { .. } => self.step(Fusion::Heads, std::slice::from_ref(node)),
            &Node::Attend { heads, scale, window, soft_cap } => self.attend(heads, scale, window, soft_cap),
            &Node::Gate(function) => {
                let mut gate = self.ws.take(Slot::Gate);
                self.engine.gate(function, &mut gate, self.ws.slot(Slot::Up));
                self.ws.put(Slot::Gate, gate);
            }
            &Node::Activate(function) => {
                let mut up = self.ws.take(Slot::Up);
                self.engine.activate(function, &mut up);
                self.ws.put(Slot::Up, up);
            }
            Node::Experts { router, experts, layer, per_token, normalize, activation } => {
                let mixture = crate::experts::Mixture {
                    router,
                    experts,
                    layer: *layer,
                    per_token: *per_token,
                    normalize: *normalize,
                    activation: *activation,
                };
                mixture.run(self);
            }
            &Node::Add { from } => {
                let mut hidden = self.ws.take(Slot::Hidden);
                self.engine.add(&mut hidden, self.ws.slot(from));
                self.ws.put(Slot::Hidden, hidden);
            }
            &Node::Turn(slot) => self.turn(slot),
            &Node::SoftCap(cap) => {
                let mut logits = self.ws.take(Slot::Logits);
                self.engine.soft_cap(&mut logits, cap);
                self.ws.put(Slot::Logits, logits);
            }
        }
    }

    /// Rotates every eight values of a slot.
    fn turn(&mut self, slot: Slot) {
        let mut x = self.ws.take(slot);
        self.engine.turn_eights(&mut x);
        self.ws.put(slot, x);
    }

    /// Products, which `nodes` begin with, of what a norm and a turn make of `from`; a gate may follow.
    fn group(&mut self, from: Slot, norm: Option<Norm<'_>>, turn: bool, nodes: &[LoadedNode]) {
        let [Node::Linears(group), rest @ ..] = nodes else { return };
        self.products(group, from, (norm, turn), gate(rest));
    }

    fn embed(&mut self, table: &LoadedLinear, scale: Option<f32>, positions: Option<&[f32]>) {
        let Some(table) = table.parts.first().map(|part| &part.weights) else { return };
        let width = table.cols();
        let mut hidden = self.ws.take_sized(Slot::Hidden, self.ws.rows() * width);
        self.engine.lookup(table, &self.ws.ids, &mut hidden);
        if let Some(scale) = scale {
            hidden.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(positions) = positions {
            let all = self.ws.spans.iter().flat_map(|span| span.position..span.position + span.tokens);
            for (row, position) in hidden.chunks_exact_mut(width).zip(all) {
                self.engine.add(row, &positions[position * width..(position + 1) * width]);
            }
        }
        self.ws.put(Slot::Hidden, hidden);
    }

    fn norm(&mut self, weight: &[f32], bias: Option<&[f32]>, eps: f32, from: Slot, to: Slot) {
        let in_place = from == to;
        // The attention's result is not needed before attention: a spare buffer for the norms of heads.
        let spare = if in_place { Slot::Attended } else { to };
        let x = self.ws.take(from);
        let mut out = self.ws.take_sized(spare, x.len());
        match bias {
            Some(bias) => self.engine.layer_norm(&x, weight, Some(bias), eps, &mut out),
            None => self.engine.rms_norm(&x, weight, eps, &mut out),
        }
        self.ws.put(if in_place { spare } else { from }, x);
        self.ws.put(to, out);
    }

    fn linears(&mut self, group: &LinearGroup<LoadedLinear>) {
        if let Some(tap) = &mut self.tap {
            tap.input(group.input, self.ws.slot(group.from), self.ws.rows());
        }
        self.products(group, group.from, (None, false), None);
    }

    /// The products of `from`, normed first where there is a norm, turned where that is asked for, and what they gate.
    fn products(
        &mut self,
        group: &LinearGroup<LoadedLinear>,
        from: Slot,
        (norm, turn): (Option<Norm<'_>>, bool),
        gate: Option<ActivationFn>,
    ) {
        let (x, rows) = (self.ws.take(from), self.ws.rows());
        let source = norm.map_or(Source::rows(&x), |norm| Source::normed(&x, norm));
        let source = if turn { source.turned() } else { source };
        let parts = || group.linears.iter().flat_map(|linear| &linear.parts);
        if let (Some(function), [Some(gate), Some(up)]) = (gate, [parts().next(), parts().nth(1)]) {
            let mut out = self.ws.take_sized(gate.to, rows * gate.weights.rows());
            let job = Gated { function, gate: (&gate.weights, gate.bias.as_deref()), up: (&up.weights, up.bias.as_deref()), out: &mut out };
            self.engine.gated(source, rows, job);
            self.ws.put(gate.to, out);
            self.ws.put(from, x);
            return;
        }
        let mut outs: SmallVec<[Vec<f32>; FEW_LINEARS]> =
            parts().map(|part| self.ws.take_sized(part.to, rows * part.weights.rows())).collect();
        let mut jobs: SmallVec<[MatmulJob<'_>; FEW_LINEARS]> = parts()
            .zip(&mut outs)
            .map(|(part, out)| MatmulJob { weights: &part.weights, bias: part.bias.as_deref(), out, accumulate: group.accumulate })
            .collect();
        self.engine.products(source, rows, &mut jobs);
        drop(jobs);
        for (part, out) in parts().zip(outs) {
            self.ws.put(part.to, out);
        }
        self.ws.put(from, x);
    }

    fn attend(&mut self, heads: usize, scale: f32, window: Option<usize>, soft_cap: Option<f32>) {
        let (q, rows) = (self.ws.take(Slot::Q), self.ws.rows().max(1));
        let mut out = self.ws.take_sized(Slot::Attended, q.len());
        let (k, v) = (self.ws.slot(Slot::K), self.ws.slot(Slot::V));
        let (width, kv_width) = (q.len() / rows, k.len() / rows);
        // Jobs are made as the engine asks for them: nothing is allocated in a decoding step.
        let mut next = 0;
        self.engine.append(self.ws.spans.iter().zip(self.caches.all_mut()).map(|(span, cache)| {
            let part = next * kv_width..(next + span.tokens) * kv_width;
            next += span.tokens;
            AppendJob { cache, k: &k[part.clone()], v: &v[part] }
        }));
        let (mut queries, mut outs) = (q.as_slice(), out.as_mut_slice());
        self.engine.attention(self.ws.spans.iter().enumerate().map(|(index, span)| {
            let (q, later) = queries.split_at(span.tokens * width);
            let (out, rest) = std::mem::take(&mut outs).split_at_mut(span.tokens * width);
            (queries, outs) = (later, rest);
            AttentionJob { q, cache: self.caches.get(index), heads, scale, window, soft_cap, out }
        }));
        self.ws.put(Slot::Q, q);
        self.ws.put(Slot::Attended, out);
    }
}

/// A norm as kernels take it: one with a bias is a LayerNorm.
fn norm<'a>(weight: &'a [f32], bias: Option<&'a [f32]>, eps: f32) -> Norm<'a> {
    Norm { weight, bias, eps, centred: bias.is_some() }
}

/// The function of a gate that stands first.
fn gate(nodes: &[LoadedNode]) -> Option<ActivationFn> {
    match nodes.first() {
        Some(&Node::Gate(function)) => Some(function),
        _ => None,
    }
}

/// Whether no value is infinite or not a number: 0 · x is 0 for every other.
fn all_finite(values: &[f32]) -> bool {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += 0.0 * value;
        }
    }
    sums.iter().chain(rest).all(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::all_finite;

    #[test]
    fn finite_means_every_value() {
        let mut values = vec![f32::MAX; 37];
        assert!(all_finite(&values));
        for at in [0, 15, 16, 36] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let kept = std::mem::replace(&mut values[at], bad);
                assert!(!all_finite(&values), "{bad} at {at}");
                values[at] = kept;
            }
        }
    }
}
