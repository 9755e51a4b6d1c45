//! Nodes forwards, keeping what their gradients need.

use crate::{
    Batch, Values,
    batch::Turns,
    network::{TrainLinear, TrainNode},
    slots::{Slots, Spare},
};
use octet_kernels::{AttentionShape, Engine, MatrixView, Norm};
use octet_model::graph::{LinearGroup, Node, Slot};

/// What a node keeps for its gradients.
#[derive(Default)]
pub(crate) struct Kept(pub(crate) [Vec<f32>; 3]);

/// What the nodes of a stage keep, in order.
#[derive(Default)]
pub(crate) struct Tape(pub(crate) Vec<Kept>);

/// What nodes run with.
pub(crate) struct Pass<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) values: &'a Values,
    pub(crate) batch: &'a Batch,
    /// Of every rotary embedding of the model.
    pub(crate) turns: &'a [Turns],
    pub(crate) spare: &'a mut Spare,
    /// Rows of the slots.
    pub(crate) rows: usize,
}

/// Heads of an attention, from the widths of its slots.
pub(crate) fn shape(node: &TrainNode, rows: usize, q: &[f32], k: &[f32]) -> AttentionShape {
    let (heads, scale, window, soft_cap) = match node {
        &Node::Attend { heads, scale, window, soft_cap } => (heads, scale, window, soft_cap),
        _ => (1, 1.0, None, None),
    };
    let head_dim = q.len() / rows.max(1) / heads.max(1);
    AttentionShape { heads, kv_heads: k.len() / rows.max(1) / head_dim.max(1), head_dim, scale, window, soft_cap }
}

impl<'a> Pass<'a> {
    /// The values of a parameter.
    pub(crate) fn value(&self, number: usize) -> &'a [f32] {
        &self.values[number]
    }

    /// A norm by its parameters; one with a bias is a LayerNorm.
    pub(crate) fn norm(&self, weight: usize, bias: Option<usize>, eps: f32) -> Norm<'a> {
        Norm { weight: self.value(weight), bias: bias.map(|bias| self.value(bias)), eps, centred: bias.is_some() }
    }

    /// A part of a matrix, `cols` wide.
    pub(crate) fn part(&self, linear: &TrainLinear, part: usize, cols: usize) -> MatrixView<'a> {
        MatrixView::new(self.value(linear.weight), cols).part(linear.parts[part].1.clone(), 0..cols)
    }

    /// Runs `nodes` over the slots.
    pub(crate) fn forward(&mut self, nodes: &[TrainNode], slots: &mut Slots, mut tape: Option<&mut Tape>) {
        for node in nodes {
            let kept = self.node(node, slots, tape.is_some());
            if let Some(tape) = &mut tape {
                tape.0.push(kept);
            }
        }
    }

    fn node(&mut self, node: &TrainNode, slots: &mut Slots, keep: bool) -> Kept {
        let mut kept = Kept::default();
        match node {
            Node::Embed { table, scale, positions } => self.embed(table, *scale, *positions, slots),
            &Node::Norm { weight, bias, eps, from, to } => {
                let mut out = self.spare.take(slots.get(from).len());
                let norm = self.norm(weight, bias, eps);
                match bias {
                    Some(_) => self.engine.layer_norm(slots.get(from), norm.weight, norm.bias, eps, &mut out),
                    None => self.engine.rms_norm(slots.get(from), norm.weight, eps, &mut out),
                }
                if keep {
                    kept.0[0] = self.spare.copy(slots.get(from));
                }
                slots.put(to, out, self.spare);
            }
            Node::Linears(group) => {
                if keep {
                    kept.0[0] = self.spare.copy(slots.get(group.from));
                }
                self.linears(group, slots);
            }
            &Node::Rope { rope, heads, kv_heads, head_dim } => self.rope((rope, heads, kv_heads, head_dim), slots, false),
            Node::Attend { .. } => {
                let inputs = [slots.take(Slot::Q), slots.take(Slot::K), slots.take(Slot::V)];
                let mut out = self.spare.take(inputs[0].len());
                let shape = shape(node, self.rows, &inputs[0], &inputs[1]);
                self.engine.attend_whole(shape, self.batch.lengths(), inputs.each_ref().map(Vec::as_slice), &mut out);
                slots.put(Slot::Attended, out, self.spare);
                if keep {
                    kept.0 = inputs;
                } else {
                    inputs.into_iter().for_each(|input| self.spare.give(input));
                }
            }
            &Node::Gate(function) => {
                if keep {
                    kept.0[0] = self.spare.copy(slots.get(Slot::Gate));
                    kept.0[1] = self.spare.copy(slots.get(Slot::Up));
                }
                let mut gate = slots.take(Slot::Gate);
                self.engine.gate(function, &mut gate, slots.get(Slot::Up));
                slots.put(Slot::Gate, gate, self.spare);
            }
            &Node::Activate(function) => {
                if keep {
                    kept.0[0] = self.spare.copy(slots.get(Slot::Up));
                }
                self.engine.activate(function, slots.get_mut(Slot::Up));
            }
            &Node::Add { from } => {
                let mut hidden = slots.take(Slot::Hidden);
                self.engine.add(&mut hidden, slots.get(from));
                slots.put(Slot::Hidden, hidden, self.spare);
            }
            &Node::SoftCap(cap) => {
                self.engine.soft_cap(slots.get_mut(Slot::Logits), cap);
                if keep {
                    kept.0[0] = self.spare.copy(slots.get(Slot::Logits));
                }
            }
            &Node::Turn(slot) => self.engine.turn_eights(slots.get_mut(slot)),
            // `Network::new` refuses models that have one.
            Node::Experts { .. } => {}
        }
        kept
    }

    fn embed(&mut self, table: &TrainLinear, scale: Option<f32>, positions: Option<usize>, slots: &mut Slots) {
        let width = self.values[table.weight].len() / table.parts[0].1.len().max(1);
        let mut hidden = self.spare.take(self.rows * width);
        let row = |values: &'a [f32], at: usize| &values[at * width..(at + 1) * width];
        for (out, &id) in hidden.chunks_exact_mut(width).zip(self.batch.ids()) {
            out.copy_from_slice(row(self.value(table.weight), id as usize));
        }
        if let Some(scale) = scale {
            self.engine.scale(&mut hidden, scale);
        }
        if let Some(positions) = positions {
            for (out, position) in hidden.chunks_exact_mut(width).zip(self.batch.positions()) {
                self.engine.add(out, row(self.value(positions), position));
            }
        }
        slots.put(Slot::Hidden, hidden, self.spare);
    }

    fn linears(&mut self, group: &LinearGroup<TrainLinear>, slots: &mut Slots) {
        let input = slots.take(group.from);
        let cols = input.len() / self.rows.max(1);
        for linear in &group.linears {
            for (at, (to, rows)) in linear.parts.iter().enumerate() {
                let len = self.rows * rows.len();
                let mut out = if group.accumulate { slots.take(*to) } else { self.spare.take(len) };
                let mut add = group.accumulate;
                if let Some(bias) = linear.bias {
                    let bias = &self.value(bias)[rows.clone()];
                    for out in out.chunks_exact_mut(rows.len()) {
                        if add { out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias) } else { out.copy_from_slice(bias) }
                    }
                    add = true;
                }
                self.engine.product(MatrixView::new(&input, cols), self.part(linear, at, cols), &mut out, add);
                slots.put(*to, out, self.spare);
            }
        }
        // What the group wrote over its own input replaces it.
        if slots.get(group.from).is_empty() {
            slots.put(group.from, input, self.spare);
        } else {
            self.spare.give(input);
        }
    }

    /// Turns queries and keys, or gradients of them back.
    pub(crate) fn rope(&mut self, (rope, heads, kv_heads, head_dim): (usize, usize, usize, usize), slots: &mut Slots, back: bool) {
        let turns = &self.turns[rope];
        let table = if back { &turns.back } else { &turns.table };
        self.engine.rope(slots.get_mut(Slot::Q), heads, head_dim, table);
        self.engine.rope(slots.get_mut(Slot::K), kv_heads, head_dim, table);
    }
}
