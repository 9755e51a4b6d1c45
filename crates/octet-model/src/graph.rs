//! The block graph: what a model computes as a short list of nodes for each block.
//!
//! It is built from an [`ArchSpec`] once. The forward pass, the list of linears and which of them share an input, the
//! names and shapes of all tensors and the memory estimates are all read off it.

use crate::{
    sites::{InputSite, LinearSite},
    spec::ArchSpec,
};
use octet_kernels::{ActivationFn, KvCache, KvDtype};
use std::ops::Range;

/// A buffer of values, one row a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The residual stream.
    Hidden,
    /// A normed residual stream.
    Normed,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's result.
    Attended,
    /// The MLP's gate, and its activations.
    Gate,
    /// The MLP's way up.
    Up,
    /// What a part of the block adds to the residual stream, where it is not added at once.
    Branch,
    /// Logits.
    Logits,
}

impl Slot {
    /// How many there are.
    pub const COUNT: usize = 10;
}

/// A small tensor that is used as f32: a norm's weight, a bias, learned positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether 1 is added to it at load.
    pub plus_one: bool,
}

/// A weight matrix and where its outputs go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The matrix.
    pub site: LinearSite,
    /// Its bias.
    pub bias: Option<Param>,
    /// Rows of the matrix and the slot they write; more than one for fused matrices.
    pub parts: Vec<(Slot, Range<usize>)>,
    /// Whether it is the embedding's matrix again.
    pub tied: bool,
}

/// Linears that read the same input: computed in one go, calibrated together.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGroup<L> {
    /// What they read.
    pub input: InputSite,
    /// The slot it is in.
    pub from: Slot,
    /// The linears.
    pub linears: Vec<L>,
    /// Whether outputs are added to what the slots hold.
    pub accumulate: bool,
}

/// An expert: gate and up, then down.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert<L> {
    /// Its gate.
    pub gate: L,
    /// Its way up.
    pub up: L,
    /// Its way down.
    pub down: L,
}

/// A step of the computation; `L` is a linear and `P` a small tensor, described ([`Linear`], [`Param`]) or loaded.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<L, P> {
    /// Rows of the table for the token ids, scaled, plus learned positions, to [`Slot::Hidden`].
    Embed {
        /// The table.
        table: L,
        /// Factor.
        scale: Option<f32>,
        /// Learned positions.
        positions: Option<P>,
    },
    /// Normalises runs as long as the weight (whole rows, or heads); in place where both slots are the same.
    Norm {
        /// Weight.
        weight: P,
        /// Bias; a LayerNorm has one, an RMSNorm does not.
        bias: Option<P>,
        /// Epsilon.
        eps: f32,
        /// From which slot.
        from: Slot,
        /// To which slot.
        to: Slot,
    },
    /// Linears of one input.
    Linears(LinearGroup<L>),
    /// Turns queries and keys by their positions.
    Rope {
        /// Which rotary embedding of the spec.
        rope: usize,
        /// Query heads.
        heads: usize,
        /// Key heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// Appends keys and values to the cache and attends to it: [`Slot::Q`] to [`Slot::Attended`].
    Attend {
        /// Query heads.
        heads: usize,
        /// Factor of q·k.
        scale: f32,
        /// Sliding window.
        window: Option<usize>,
        /// Soft cap of scores.
        soft_cap: Option<f32>,
    },
    /// f(gate) · up, in [`Slot::Gate`].
    Gate(ActivationFn),
    /// f(up), from [`Slot::Up`] in place.
    Activate(ActivationFn),
    /// A mixture of experts: [`Slot::Normed`] to [`Slot::Branch`].
    Experts {
        /// Scores of the experts.
        router: L,
        /// What each expert's rows are called, gate and up then down.
        experts: Vec<Expert<L>>,
        /// The block.
        layer: usize,
        /// Experts a token uses.
        per_token: usize,
        /// Whether their weights are divided by their sum.
        normalize: bool,
        /// The experts' activation.
        activation: ActivationFn,
    },
    /// Adds [`Slot::Branch`] (or what a norm made of it) to the residual stream.
    Add {
        /// What is added.
        from: Slot,
    },
    /// Rotates every eight values of a slot ([`crate::turn`]), in place.
    Turn(Slot),
    /// c·tanh(x/c) of the logits.
    SoftCap(f32),
}

/// A node as the graph describes it.
pub type PlainNode = Node<Linear, Param>;

impl<L, P> Node<L, P> {
    /// The linears of the node, in order.
    pub fn linears(&self) -> Vec<&L> {
        match self {
            Self::Embed { table, .. } => vec![table],
            Self::Linears(group) => group.linears.iter().collect(),
            Self::Experts { router, experts, .. } => {
                std::iter::once(router).chain(experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down])).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The linears of the node, to be changed.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut L> {
        match self {
            Self::Embed { table, .. } => vec![table],
            Self::Linears(group) => group.linears.iter_mut().collect(),
            Self::Experts { router, experts, .. } => {
                std::iter::once(router).chain(experts.iter_mut().flat_map(|e| [&mut e.gate, &mut e.up, &mut e.down])).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The small tensors of the node that are not biases of linears.
    pub fn params(&self) -> Vec<&P> {
        match self {
            Self::Embed { positions, .. } => positions.iter().collect(),
            Self::Norm { weight, bias, .. } => std::iter::once(weight).chain(bias).collect(),
            _ => Vec::new(),
        }
    }

    /// The same node with every linear and small tensor replaced.
    ///
    /// # Errors
    /// The first that a replacement gives.
    pub fn try_map<L2, P2, E>(
        &self,
        linear: &mut dyn FnMut(&L) -> Result<L2, E>,
        param: &mut dyn FnMut(&P) -> Result<P2, E>,
    ) -> Result<Node<L2, P2>, E> {
        Ok(match self {
            Self::Embed { table, scale, positions } => {
                Node::Embed { table: linear(table)?, scale: *scale, positions: positions.as_ref().map(param).transpose()? }
            }
            Self::Norm { weight, bias, eps, from, to } => {
                Node::Norm { weight: param(weight)?, bias: bias.as_ref().map(param).transpose()?, eps: *eps, from: *from, to: *to }
            }
            Self::Linears(group) => {
                let linears = group.linears.iter().map(linear).collect::<Result<_, E>>()?;
                Node::Linears(LinearGroup { input: group.input, from: group.from, linears, accumulate: group.accumulate })
            }
            &Self::Rope { rope, heads, kv_heads, head_dim } => Node::Rope { rope, heads, kv_heads, head_dim },
            &Self::Attend { heads, scale, window, soft_cap } => Node::Attend { heads, scale, window, soft_cap },
            &Self::Gate(f) => Node::Gate(f),
            &Self::Activate(f) => Node::Activate(f),
            Self::Experts { router, experts, layer, per_token, normalize, activation } => {
                let mut map = |e: &Expert<L>| Ok(Expert { gate: linear(&e.gate)?, up: linear(&e.up)?, down: linear(&e.down)? });
                let experts = experts.iter().map(&mut map).collect::<Result<_, E>>()?;
                let (layer, per_token, normalize, activation) = (*layer, *per_token, *normalize, *activation);
                Node::Experts { router: linear(router)?, experts, layer, per_token, normalize, activation }
            }
            &Self::Add { from } => Node::Add { from },
            &Self::Turn(slot) => Node::Turn(slot),
            &Self::SoftCap(cap) => Node::SoftCap(cap),
        })
    }
}

/// The whole computation: the embedding, then the blocks, then the final norm and head.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockGraph {
    /// From token ids to the residual stream.
    pub embed: PlainNode,
    /// The blocks.
    pub blocks: Vec<Vec<PlainNode>>,
    /// From the residual stream to logits.
    pub head: Vec<PlainNode>,
}

impl BlockGraph {
    /// All nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &PlainNode> {
        std::iter::once(&self.embed).chain(self.blocks.iter().flatten()).chain(&self.head)
    }

    /// Every weight matrix the checkpoint stores, in order; a tied head is the embedding's.
    pub fn linear_sites(&self) -> Vec<LinearSite> {
        self.nodes().flat_map(Node::linears).filter(|l| !l.tied).map(|l| l.site.clone()).collect()
    }

    /// Every other tensor the checkpoint stores: norms, biases, learned positions.
    pub fn other_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let of_node = |node: &PlainNode| {
            let biases = node.linears().into_iter().filter_map(|l| l.bias.clone());
            biases.chain(node.params().into_iter().cloned()).map(|p| (p.name, p.shape)).collect::<Vec<_>>()
        };
        self.nodes().flat_map(of_node).collect()
    }

    /// Bytes of the buffers of a pass over `rows` tokens, logits not included.
    pub fn scratch_bytes(&self, rows: usize) -> usize {
        let mut widths = [0usize; Slot::COUNT];
        for (slot, rows) in self.nodes().flat_map(Node::linears).flat_map(|linear| &linear.parts) {
            widths[*slot as usize] = widths[*slot as usize].max(rows.len());
        }
        let between: usize = [Slot::Q, Slot::K, Slot::V, Slot::Gate, Slot::Up].iter().map(|slot| widths[*slot as usize]).sum();
        // The attention's result is as wide as the queries; residual stream, its norm and the branch are alike.
        4 * rows * (between + widths[Slot::Q as usize] + 3 * self.hidden())
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.embed.linears().first().map_or(0, |table| table.site.cols)
    }
}

impl ArchSpec {
    /// Every weight matrix the checkpoint stores, in order; a tied head is the embedding's.
    pub fn linear_sites(&self) -> Vec<LinearSite> {
        self.graph().linear_sites()
    }

    /// Every other tensor the checkpoint stores: norms, biases, learned positions.
    pub fn other_tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.graph().other_tensors()
    }

    /// Bytes that the caches of a sequence of `tokens` tokens hold in all layers, rounded up to what they grow by.
    pub fn kv_bytes(&self, tokens: usize, dtype: KvDtype) -> usize {
        self.layers.iter().map(|l| KvCache::bytes_for(tokens, l.attention.kv_heads, l.attention.head_dim, dtype)).sum()
    }

    /// Bytes the keys and values of one token take in all layers, in a long sequence.
    pub fn kv_bytes_per_token(&self, dtype: KvDtype) -> usize {
        const MANY: usize = 4096;
        self.kv_bytes(MANY, dtype) / MANY
    }
}
