//! What a model computes, as data: one typed description for every family.

use crate::{families::Names, rope::Rope};
use octet_kernels::ActivationFn;
use std::collections::BTreeSet;

/// Everything a forward pass needs to know about a model but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchSpec {
    pub(crate) family: &'static str,
    pub(crate) gguf: &'static str,
    pub(crate) names: &'static Names,
    /// Prefix of tensor names; settled by [`ArchSpec::settle`], since checkpoints of the bare model have none.
    pub(crate) root: &'static str,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) context: usize,
    pub(crate) embedding: Embedding,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) norm: Norm,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) head: Head,
    /// Whether linears are stored `[inputs, outputs]` (GPT-2's Conv1D).
    pub(crate) transposed: bool,
    /// Modules whose inputs are turned at run time.
    pub(crate) turned: BTreeSet<String>,
}

/// How token ids become hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Factor every embedding is multiplied with (Gemma: √hidden).
    pub scale: Option<f32>,
    /// Learned positions that are added: how many there are.
    pub learned_positions: Option<usize>,
}

/// Which normalisation, with its epsilon (inside the square root).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / √(mean x² + ε) · w (Zhang & Sennrich 2019); `plus_one`: the stored weight is w − 1 (Gemma).
    Rms {
        /// Epsilon.
        eps: f32,
        /// Whether 1 is added to the stored weight.
        plus_one: bool,
    },
    /// (x − mean) / √(variance + ε) · w + b (Ba et al. 2016).
    Layer {
        /// Epsilon.
        eps: f32,
    },
}

/// Where a block's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the MLP.
    Before,
    /// Before and after each (Gemma 2 and 3); the one after stands before the residual addition.
    BeforeAndAfter,
}

/// One transformer block.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Where its norms stand.
    pub norms: NormPlacement,
    /// Its attention.
    pub attention: Attention,
    /// Its feed-forward part.
    pub mlp: Mlp,
}

/// Attention of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head j reads head j / (heads / kv_heads).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether q, k and v are stored as one matrix (rows q, then k, then v).
    pub fused: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub out_bias: bool,
    /// A norm over every query and key head, after the projection and before rope.
    pub qk_norm: Option<Norm>,
    /// Factor of q·k.
    pub scale: f32,
    /// Sliding window W: query i sees keys i−W+1..=i.
    pub window: Option<usize>,
    /// Soft cap c of the scores: c·tanh(s/c).
    pub soft_cap: Option<f32>,
    /// How the block knows positions.
    pub position: Position,
}

/// How a block knows positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Rotary embedding number n of [`ArchSpec::ropes`].
    Rope(usize),
    /// Not at all: either a no-position layer, or positions were added to the embedding.
    None,
}

/// The feed-forward part of one block.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp {
    /// down(f(gate x) · up x) (Shazeer 2020).
    Gated {
        /// Width between.
        intermediate: usize,
        /// f.
        activation: ActivationFn,
        /// Whether the linears have biases.
        bias: bool,
        /// Whether gate and up are stored as one matrix (rows gate, then up).
        fused: bool,
    },
    /// down(f(up x)).
    Plain {
        /// Width between.
        intermediate: usize,
        /// f.
        activation: ActivationFn,
        /// Whether the linears have biases.
        bias: bool,
    },
    /// A router picks a few of many gated MLPs for each token.
    Experts {
        /// How many there are.
        count: usize,
        /// How many each token uses.
        per_token: usize,
        /// Width between, of each.
        intermediate: usize,
        /// f.
        activation: ActivationFn,
        /// Whether the weights of the chosen ones are divided by their sum.
        normalize: bool,
    },
}

/// How hidden states become logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Whether it is the embedding's matrix.
    pub tied: bool,
    /// Soft cap c of the logits: c·tanh(l/c).
    pub soft_cap: Option<f32>,
}

impl ArchSpec {
    /// The family's name, such as `llama`.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// The name GGUF files give the architecture.
    pub fn gguf_name(&self) -> &'static str {
        self.gguf
    }

    /// Rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// Width of the hidden state.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Longest sequence the model was made for, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The blocks, in order.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// How token ids become hidden states.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The norm of the blocks and the final one.
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// How hidden states become logits.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The rotary embeddings that blocks refer to.
    pub fn ropes(&self) -> &[Rope] {
        &self.ropes
    }
}
