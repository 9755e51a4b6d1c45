//! What GGUF files call the architectures, and how their tensors differ from a checkpoint's: one row a family.
//!
//! Source: llama.cpp's `convert_hf_to_gguf.py` and `src/llama-model.cpp`.

/// How an architecture is stored in GGUF files.
#[derive(Debug)]
pub struct GgufRow {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `model_type` of the config.json that describes the same.
    pub model_type: &'static str,
    /// Whether rows of queries and keys lie in pairs for rotary embeddings.
    pub paired: bool,
    /// The key of the norms' epsilon.
    pub epsilon: &'static str,
    /// What config.json needs beside what every architecture has: key, then key of the metadata.
    pub keys: &'static [(&'static str, &'static str)],
    /// Whether blocks that slide turn by a base of their own, and the file says which slide.
    pub local_ropes: bool,
    /// Whether llama.cpp knows a bias of the attention's output projection.
    pub out_bias: bool,
    /// Whether llama.cpp leaves the sliding window out.
    pub ignores_window: bool,
    /// What config.json needs and the metadata does not say.
    pub fixed: &'static [(&'static str, Fixed)],
}

/// A value that the architecture itself settles.
#[derive(Clone, Copy, Debug)]
pub enum Fixed {
    /// A text.
    Text(&'static str),
    /// A number.
    Number(u64),
    /// A truth value.
    Flag(bool),
    /// llama.cpp scales queries by head_dim^−½, except in the model of this many blocks, where it takes hidden / heads.
    QueryScalar(u64),
}

const RMS: &str = "attention.layer_norm_rms_epsilon";

const LLAMA: GgufRow = GgufRow {
    architecture: "llama",
    model_type: "llama",
    paired: true,
    epsilon: RMS,
    keys: &[],
    local_ropes: false,
    out_bias: true,
    ignores_window: false,
    fixed: &[],
};

const GEMMA2: GgufRow = GgufRow {
    architecture: "gemma2",
    model_type: "gemma2",
    paired: false,
    keys: &[
        ("sliding_window", "attention.sliding_window"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ],
    fixed: &[("hidden_activation", Fixed::Text("gelu_pytorch_tanh")), ("query_pre_attn_scalar", Fixed::QueryScalar(46))],
    ..LLAMA
};

/// Every architecture whose GGUF files are read.
pub static GGUF: &[GgufRow] = &[
    LLAMA,
    GgufRow { architecture: "smollm3", model_type: "smollm3", out_bias: false, ..LLAMA },
    GgufRow { architecture: "qwen2", model_type: "qwen2", paired: false, out_bias: false, ..LLAMA },
    GgufRow { architecture: "qwen3", model_type: "qwen3", paired: false, out_bias: false, ..LLAMA },
    GgufRow {
        architecture: "qwen3moe",
        model_type: "qwen3_moe",
        paired: false,
        out_bias: false,
        keys: &[
            ("num_experts", "expert_count"),
            ("num_experts_per_tok", "expert_used_count"),
            ("moe_intermediate_size", "expert_feed_forward_length"),
        ],
        fixed: &[("norm_topk_prob", Fixed::Flag(true)), ("decoder_sparse_step", Fixed::Number(1))],
        ..LLAMA
    },
    GEMMA2,
    GgufRow {
        architecture: "gemma3",
        model_type: "gemma3_text",
        local_ropes: true,
        keys: &[("sliding_window", "attention.sliding_window"), ("rope_local_base_freq", "rope.freq_base_swa")],
        fixed: &[("hidden_activation", Fixed::Text("gelu_pytorch_tanh")), ("query_pre_attn_scalar", Fixed::QueryScalar(62))],
        ..GEMMA2
    },
    GgufRow {
        architecture: "phi3",
        model_type: "phi3",
        paired: false,
        ignores_window: true,
        keys: &[
            ("sliding_window", "attention.sliding_window"),
            ("original_max_position_embeddings", "rope.scaling.original_context_length"),
        ],
        ..LLAMA
    },
    GgufRow {
        architecture: "gpt2",
        model_type: "gpt2",
        paired: false,
        epsilon: "attention.layer_norm_epsilon",
        fixed: &[("activation_function", Fixed::Text("gelu_new"))],
        ..LLAMA
    },
];
