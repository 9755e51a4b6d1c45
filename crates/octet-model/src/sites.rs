//! The linears of a model and what they share.

use std::fmt;

/// What a linear is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Queries, keys and values in one matrix.
    Qkv,
    /// The attention's output projection.
    O,
    /// The MLP's gate.
    Gate,
    /// The MLP's way up.
    Up,
    /// Gate and up in one matrix.
    GateUp,
    /// The MLP's way down.
    Down,
    /// The gate of an expert.
    ExpertGate,
    /// The way up of an expert.
    ExpertUp,
    /// The way down of an expert.
    ExpertDown,
    /// Scores of the experts.
    Router,
    /// The embedding table (and the head, when tied).
    Embedding,
    /// The head.
    Head,
}

/// What enters a linear; linears that read the same values have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputSite {
    /// The block, or `None` outside the blocks.
    pub layer: Option<usize>,
    /// Which of its values.
    pub kind: InputKind,
}

/// Which values of a block enter a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum InputKind {
    /// Token ids: an embedding table has no float input.
    Tokens,
    /// The normed hidden state before attention (q, k, v).
    Attention,
    /// The attention's result (output projection).
    AttentionOut,
    /// The normed hidden state before the MLP (gate, up, router).
    Mlp,
    /// The MLP's activations (down).
    MlpDown,
    /// The rows routed to this expert (its gate and up).
    Expert(usize),
    /// The activations of this expert (its down).
    ExpertDown(usize),
    /// The normed final hidden state (head).
    Head,
}

impl fmt::Display for InputSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "layer {layer} ")?;
        }
        match self.kind {
            InputKind::Tokens => f.write_str("tokens"),
            InputKind::Attention => f.write_str("attention input"),
            InputKind::AttentionOut => f.write_str("attention output"),
            InputKind::Mlp => f.write_str("mlp input"),
            InputKind::MlpDown => f.write_str("mlp activations"),
            InputKind::Expert(expert) => write!(f, "expert {expert} input"),
            InputKind::ExpertDown(expert) => write!(f, "expert {expert} activations"),
            InputKind::Head => f.write_str("head input"),
        }
    }
}

/// One weight matrix as the checkpoint stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSite {
    /// Its module path on disk, without `.weight`, such as `model.layers.0.self_attn.qkv_proj`.
    pub module: String,
    /// Outputs (tokens, for the embedding).
    pub rows: usize,
    /// Inputs (hidden size, for the embedding).
    pub cols: usize,
    /// What it is for.
    pub role: Role,
    /// The block it belongs to.
    pub layer: Option<usize>,
    /// What enters it. A tied embedding has the head's input.
    pub input: InputSite,
    /// Whether a float checkpoint stores it as `[cols, rows]` (GPT-2's Conv1D).
    pub transposed: bool,
}
