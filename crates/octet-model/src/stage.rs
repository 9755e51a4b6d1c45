//! The forward pass: one stage (the embedding, a block or the head) at a time, node by node.

use crate::{
    error::{ForwardError, LoadError, Place},
    graph::{BlockGraph, LinearGroup, Node, Slot},
    load::{LoadedLinear, LoadedNode, Loader, nodes_at},
    model::Tap,
    workspace::Workspace,
};
use octet_kernels::{AttentionJob, Engine, KvCache, MatmulJob, PackedLinear};
use octet_tensor::{Activations, Matrix, Tensor, WeightSource};
use std::{ops::Range, sync::Arc};

/// The embedding, one block or the head of a model, loaded.
///
/// A model is a list of stages; a calibration may also load and run one at a time, carrying the hidden states over.
pub struct Stage {
    place: Place,
    nodes: Vec<LoadedNode>,
}

/// What a stage runs with.
pub(crate) struct Pass<'a, 'c, 't> {
    pub(crate) engine: &'a Engine,
    pub(crate) ws: &'a mut Workspace,
    pub(crate) caches: &'a mut [&'c mut KvCache],
    pub(crate) tap: Option<&'t mut dyn Tap>,
}

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
        Ok(Self { place, nodes: loader.nodes(nodes_at(graph, place))? })
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
        let mut pass = Pass { engine, ws, caches, tap };
        self.nodes.get(nodes).into_iter().flatten().for_each(|node| pass.node(node));
        self.check(ws.slot(Slot::Hidden))
    }

    /// Shows `tap` the inputs of the linears of a node whose predecessors ran. The products are not computed, except where
    /// one linear of the node reads what another one makes (experts).
    pub fn show(&self, node: usize, engine: &Engine, ws: &mut Workspace, tap: &mut dyn Tap) {
        match self.nodes.get(node) {
            Some(Node::Linears(group)) => tap.input(group.input, ws.slot(group.from), ws.rows()),
            Some(node) => Pass { engine, ws, caches: &mut [], tap: Some(tap) }.node(node),
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

    fn check(&self, result: &[f32]) -> Result<(), ForwardError> {
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
    fn node(&mut self, node: &LoadedNode) {
        match node {
            Node::Embed { table, scale, positions } => self.embed(table, *scale, positions.as_deref()),
            Node::Norm { weight, bias, eps, from, to } => self.norm(weight, bias.as_deref(), *eps, *from, *to),
            Node::Linears(group) => self.linears(group),
            &Node::Rope { rope, heads, kv_heads, head_dim } => {
                for (slot, heads) in [(Slot::Q, heads), (Slot::K, kv_heads)] {
                    let mut x = self.ws.take(slot);
                    self.engine.rope(&mut x, heads, head_dim, self.ws.rope_table(rope));
                    self.ws.put(slot, x);
                }
            }
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
            &Node::SoftCap(cap) => {
                let mut logits = self.ws.take(Slot::Logits);
                self.engine.soft_cap(&mut logits, cap);
                self.ws.put(Slot::Logits, logits);
            }
        }
    }

    fn embed(&mut self, table: &LoadedLinear, scale: Option<f32>, positions: Option<&[f32]>) {
        let Some(table) = table.parts.first().map(|part| &part.weights) else { return };
        let width = table.cols();
        let mut hidden = self.ws.take_sized(Slot::Hidden, self.ws.rows() * width);
        for (row, &id) in hidden.chunks_exact_mut(width).zip(&self.ws.ids) {
            table.read_row(id as usize, row);
        }
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
        let (x, rows) = (self.ws.take(group.from), self.ws.rows());
        if let Some(tap) = &mut self.tap {
            tap.input(group.input, &x, rows);
        }
        // No group has more parts than q, k and v.
        let mut outs: [Vec<f32>; 3] = Default::default();
        let parts = || group.linears.iter().flat_map(|linear| &linear.parts);
        let mut jobs = Vec::with_capacity(outs.len());
        for (part, out) in parts().zip(&mut outs) {
            *out = self.ws.take_sized(part.to, rows * part.weights.rows());
            jobs.push(MatmulJob { weights: &part.weights, bias: part.bias.as_deref(), out, accumulate: group.accumulate });
        }
        self.engine.matmul(&x, rows, &mut jobs);
        for (part, out) in parts().zip(&mut outs) {
            self.ws.put(part.to, std::mem::take(out));
        }
        self.ws.put(group.from, x);
    }

    fn attend(&mut self, heads: usize, scale: f32, window: Option<usize>, soft_cap: Option<f32>) {
        let (q, rows) = (self.ws.take(Slot::Q), self.ws.rows().max(1));
        let mut out = self.ws.take_sized(Slot::Attended, q.len());
        let (k, v) = (self.ws.slot(Slot::K), self.ws.slot(Slot::V));
        let (width, kv_width) = (q.len() / rows, k.len() / rows);
        let mut jobs = Vec::with_capacity(self.caches.len());
        let (mut first, mut rest) = (0, out.as_mut_slice());
        for (span, cache) in self.ws.spans.iter().zip(self.caches.iter_mut()) {
            let last = first + span.tokens;
            cache.append(&k[first * kv_width..last * kv_width], &v[first * kv_width..last * kv_width]);
            let (out, after) = rest.split_at_mut(span.tokens * width);
            jobs.push(AttentionJob { q: &q[first * width..last * width], cache, heads, scale, window, soft_cap, out });
            (first, rest) = (last, after);
        }
        self.engine.attention(&mut jobs);
        drop(jobs);
        self.ws.put(Slot::Q, q);
        self.ws.put(Slot::Attended, out);
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
