//! Fusing: which nodes that follow each other are computed in one pass over memory.
//!
//! The graph says what is computed, node by node; a fused step is a run of its nodes. A result that only the run itself
//! reads is never written out. Nothing else changes: fused and unfused steps give the same values.

use crate::{
    graph::{Linear, Node, Param, Slot},
    load::LoadedLinear,
};
use std::ops::Range;

/// How a run of nodes is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fusion {
    /// A node as it is.
    Alone,
    /// Products of one input in one parallel region. With `norm` the first node is a norm that only they read: its result
    /// is quantized as it is computed; with `turn` every eight values of it are turned then and there. With `gate` the last
    /// node gates two products as they are computed.
    Products {
        /// Whether the first node is a norm.
        norm: bool,
        /// Whether the inputs are turned, after the norm.
        turn: bool,
        /// Whether the last node is a gate.
        gate: bool,
    },
    /// Norms of query and key heads and their rotation, in place.
    Heads,
    /// A norm that is added to the residual stream as it is computed.
    AddNorm,
}

/// Nodes that are computed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusedStep {
    /// How.
    pub fusion: Fusion,
    /// Which nodes of their stage.
    pub nodes: Range<usize>,
}

/// What fusing asks of a linear: the slots its outputs go to, in order.
pub(crate) trait Outputs {
    fn slots(&self) -> impl Iterator<Item = Slot>;
}

impl Outputs for Linear {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.parts.iter().map(|part| part.0)
    }
}

impl Outputs for LoadedLinear {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.parts.iter().map(|part| part.to)
    }
}

/// What fusing asks of a small tensor.
pub(crate) trait Width {
    fn width(&self) -> usize;
}

impl Width for Param {
    fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Width for Vec<f32> {
    fn width(&self) -> usize {
        self.len()
    }
}

/// Cuts the nodes of a stage into steps.
pub(crate) fn fuse<L: Outputs, P: Width>(nodes: &[Node<L, P>]) -> Vec<FusedStep> {
    let mut steps = Vec::new();
    let mut first = 0;
    while first < nodes.len() {
        let (fusion, count) =
            products(nodes, first).or_else(|| heads(nodes, first)).or_else(|| add_norm(nodes, first)).unwrap_or((Fusion::Alone, 1));
        steps.push(FusedStep { fusion, nodes: first..first + count });
        first += count;
    }
    steps
}

/// A norm, a turn, the products of what they leave and their gate, as far as they are there.
fn products<L: Outputs, P: Width>(nodes: &[Node<L, P>], first: usize) -> Option<(Fusion, usize)> {
    let norm = matches!(nodes[first], Node::Norm { .. });
    let turn = matches!(nodes.get(first + usize::from(norm)), Some(Node::Turn(_)));
    let at = first + usize::from(norm) + usize::from(turn);
    let Some(Node::Linears(group)) = nodes.get(at) else { return None };
    // What is read first must outlive the products, and what is made of it must not be missed after them.
    let mut read = group.from;
    for node in nodes[first..at].iter().rev() {
        match *node {
            Node::Turn(slot) if slot == read => {}
            Node::Norm { from, to, .. } if to == read && from != to => read = from,
            _ => return None,
        }
    }
    let outputs_apart = group.linears.iter().flat_map(L::slots).all(|slot| slot != read);
    if at > first && !(outputs_apart && dead(&nodes[at + 1..], group.from)) {
        return None;
    }
    let gate = matches!(nodes.get(at + 1), Some(Node::Gate(_)))
        && !group.accumulate
        && group.linears.iter().flat_map(L::slots).eq([Slot::Gate, Slot::Up])
        && dead(&nodes[at + 2..], Slot::Up);
    Some((Fusion::Products { norm, turn, gate }, at + 1 + usize::from(gate) - first))
}

/// Norms of heads in place and a rotation, or either.
fn heads<L: Outputs, P: Width>(nodes: &[Node<L, P>], first: usize) -> Option<(Fusion, usize)> {
    let mut count = 0;
    let mut width = None;
    for slot in [Slot::Q, Slot::K] {
        if let Some(Node::Norm { weight, from, to, .. }) = nodes.get(first + count)
            && *from == slot
            && *to == slot
            && width.is_none_or(|w| w == weight.width())
        {
            width = Some(weight.width());
            count += 1;
        }
    }
    let turned = matches!(nodes.get(first + count), Some(Node::Rope { head_dim, .. }) if width.is_none_or(|w| w == *head_dim));
    count += usize::from(turned);
    (turned && count > 0).then_some((Fusion::Heads, count))
}

/// A norm that is added to the residual stream.
fn add_norm<L: Outputs, P: Width>(nodes: &[Node<L, P>], first: usize) -> Option<(Fusion, usize)> {
    match (&nodes[first], nodes.get(first + 1)) {
        (Node::Norm { from, to, .. }, Some(Node::Add { from: added })) if to == added && from != to && *from != Slot::Hidden => {
            dead(&nodes[first + 2..], *to).then_some((Fusion::AddNorm, 2))
        }
        _ => None,
    }
}

/// Whether nobody of `nodes` reads what `slot` holds before them; after a stage only the residual stream and the logits live on.
fn dead<L: Outputs, P>(nodes: &[Node<L, P>], slot: Slot) -> bool {
    for node in nodes {
        let (reads, writes) = uses(node);
        if reads.contains(&slot) {
            return false;
        }
        if writes.contains(&slot) {
            return true;
        }
    }
    !matches!(slot, Slot::Hidden | Slot::Logits)
}

/// Slots a node reads, and slots it fills without reading what they held.
pub(crate) fn uses<L: Outputs, P>(node: &Node<L, P>) -> (Vec<Slot>, Vec<Slot>) {
    match node {
        Node::Embed { .. } => (vec![], vec![Slot::Hidden]),
        Node::Norm { from, to, .. } => (vec![*from], vec![*to]),
        Node::Linears(group) => {
            let outs: Vec<Slot> = group.linears.iter().flat_map(L::slots).collect();
            if group.accumulate { ([vec![group.from], outs].concat(), vec![]) } else { (vec![group.from], outs) }
        }
        Node::Rope { .. } => (vec![Slot::Q, Slot::K], vec![]),
        Node::Attend { .. } => (vec![Slot::Q, Slot::K, Slot::V], vec![Slot::Attended]),
        Node::Gate(_) => (vec![Slot::Gate, Slot::Up], vec![]),
        Node::Activate(_) => (vec![Slot::Up], vec![]),
        Node::Experts { .. } => (vec![Slot::Normed], vec![Slot::Branch]),
        Node::Add { from } => (vec![Slot::Hidden, *from], vec![]),
        Node::Turn(slot) => (vec![*slot], vec![]),
        Node::SoftCap(_) => (vec![Slot::Logits], vec![]),
    }
}
