//! Nodes backwards: from gradients of what they wrote to gradients of what they read and of their parameters.
//!
//! A slot of gradients is empty where nothing depends on the values; a node that replaces a slot's values takes the
//! gradient out, one that adds to them leaves it.

use crate::{
    Gradients,
    forward::{Kept, Pass, Tape, shape},
    network::{TrainLinear, TrainNode},
    slots::Slots,
};
use octet_kernels::{AttentionGradient, MatrixView, NormGradient};
use octet_model::graph::{LinearGroup, Node, Slot};

impl Pass<'_> {
    /// Runs `nodes` backwards over slots of gradients, with what they kept; gradients of parameters are added to `to`.
    pub(crate) fn backward(&mut self, nodes: &[TrainNode], tape: &mut Tape, grads: &mut Slots, to: &mut Gradients) {
        for node in nodes.iter().rev() {
            let kept = tape.0.pop().unwrap_or_default();
            self.back(node, &kept, grads, to);
            kept.0.into_iter().for_each(|buffer| self.spare.give(buffer));
        }
    }

    fn back(&mut self, node: &TrainNode, kept: &Kept, grads: &mut Slots, to: &mut Gradients) {
        let [first, second, third] = &kept.0;
        match node {
            Node::Embed { table, scale, positions } => self.embed_back(table, *scale, *positions, grads, to),
            &Node::Norm { weight, bias, eps, from, to: written } => {
                let dy = grads.take(written);
                // The same slot's gradient is replaced, another one's added to.
                let accumulate = from != written && !grads.get(from).is_empty();
                let mut dx = if accumulate { grads.take(from) } else { self.spare.take(first.len()) };
                let norm = self.norm(weight, bias, eps);
                let [dw, db] = to.two(weight, bias);
                let gradient = NormGradient { x: &mut dx, accumulate, weight: dw, bias: db };
                self.engine.norm_gradient(first, norm, &dy, gradient);
                self.spare.give(dy);
                grads.put(from, dx, self.spare);
            }
            Node::Linears(group) => self.linears_back(group, first, grads, to),
            &Node::Rope { rope, heads, kv_heads, head_dim } => self.rope((rope, heads, kv_heads, head_dim), grads, true),
            Node::Attend { .. } => {
                let dout = grads.take(Slot::Attended);
                let shape = shape(node, self.rows, first, second);
                let (mut q, mut k, mut v) = (self.spare.take(first.len()), self.spare.take(second.len()), self.spare.take(third.len()));
                let gradient = AttentionGradient { q: &mut q, k: &mut k, v: &mut v };
                self.engine.attend_gradient(shape, self.batch.lengths(), [first, second, third], &dout, gradient);
                self.spare.give(dout);
                for (slot, gradient) in [(Slot::Q, q), (Slot::K, k), (Slot::V, v)] {
                    grads.put(slot, gradient, self.spare);
                }
            }
            &Node::Gate(function) => {
                let (mut dy, mut up) = (grads.take(Slot::Gate), self.spare.copy(second));
                self.engine.gate_gradient(function, first, &mut dy, &mut up);
                grads.put(Slot::Gate, dy, self.spare);
                grads.put(Slot::Up, up, self.spare);
            }
            &Node::Activate(function) => self.engine.activation_gradient(function, first, grads.get_mut(Slot::Up)),
            &Node::Add { from } => {
                let gradient = self.spare.copy(grads.get(Slot::Hidden));
                self.add(from, gradient, grads);
            }
            &Node::SoftCap(cap) => self.engine.soft_cap_gradient(first, cap, grads.get_mut(Slot::Logits)),
            // A turn is its own transpose.
            &Node::Turn(slot) => self.engine.turn_eights(grads.get_mut(slot)),
            // `Network::new` refuses models that have one.
            Node::Experts { .. } => {}
        }
    }

    /// Adds a gradient to that of a slot.
    fn add(&mut self, slot: Slot, gradient: Vec<f32>, grads: &mut Slots) {
        if grads.get(slot).is_empty() {
            grads.put(slot, gradient, self.spare);
        } else {
            self.engine.add(grads.get_mut(slot), &gradient);
            self.spare.give(gradient);
        }
    }

    fn linears_back(&mut self, group: &LinearGroup<TrainLinear>, x: &[f32], grads: &mut Slots, to: &mut Gradients) {
        let cols = x.len() / self.rows.max(1);
        let input = MatrixView::new(x, cols);
        let mut dx = self.spare.take(x.len());
        let mut any = false;
        for linear in &group.linears {
            for (at, (slot, rows)) in linear.parts.iter().enumerate() {
                let dy = grads.take(*slot);
                if dy.is_empty() {
                    continue;
                }
                let outputs = MatrixView::new(&dy, rows.len());
                if let Some(dw) = to.of(linear.weight) {
                    let dw = &mut dw[rows.start * cols..rows.end * cols];
                    self.engine.product(outputs.turned(), input.turned(), dw, true);
                }
                if let Some(db) = linear.bias.and_then(|bias| to.of(bias)) {
                    self.engine.sum_rows(&dy, &mut db[rows.clone()]);
                }
                self.engine.product(outputs, self.part(linear, at, cols).turned(), &mut dx, any);
                any = true;
                if group.accumulate {
                    grads.put(*slot, dy, self.spare);
                } else {
                    self.spare.give(dy);
                }
            }
        }
        if any {
            self.add(group.from, dx, grads);
        } else {
            self.spare.give(dx);
        }
    }

    fn embed_back(&mut self, table: &TrainLinear, scale: Option<f32>, positions: Option<usize>, grads: &mut Slots, to: &mut Gradients) {
        let mut dh = grads.take(Slot::Hidden);
        let width = dh.len() / self.rows.max(1);
        if let Some(dp) = positions.and_then(|positions| to.of(positions)) {
            for (dh, position) in dh.chunks_exact(width).zip(self.batch.positions()) {
                self.engine.add(&mut dp[position * width..(position + 1) * width], dh);
            }
        }
        if let Some(dw) = to.of(table.weight) {
            scale.into_iter().for_each(|scale| self.engine.scale(&mut dh, scale));
            for (dh, &id) in dh.chunks_exact(width).zip(self.batch.ids()) {
                self.engine.add(&mut dw[id as usize * width..(id as usize + 1) * width], dh);
            }
        }
        self.spare.give(dh);
    }
}
