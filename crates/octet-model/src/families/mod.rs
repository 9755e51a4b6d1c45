//! The table of model families: everything that differs between them and is not in their config.json.
//!
//! Facts follow the implementations of the Hugging Face transformers library, version 5.23, whose results the golden
//! fixtures hold. An absent key whose default there is a guess about one model size is refused instead ([`Missing`]).

mod gguf;
mod kinds;

use crate::error::ConfigError;
pub use gguf::{Fixed, GGUF, GgufRow};
pub use kinds::{Bias, Defaults, Family, Missing, MlpRule, Names, NormRule, Positions, Scale, Windows};

const LLAMA_NAMES: Names = Names {
    root: "model.",
    embedding: "embed_tokens",
    positions: "",
    layers: "layers",
    final_norm: "norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    attention_post_norm: "",
    mlp_norm: "post_attention_layernorm",
    mlp_post_norm: "",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    qkv: "",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    out: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "",
    down: "mlp.down_proj",
    router: "mlp.gate",
    experts: "mlp.experts",
};

const LLAMA: Family = Family {
    name: "llama",
    model_types: &["llama"],
    gguf: "llama",
    aliases: &[],
    ignored: &["sliding_window", "layer_types", "max_window_layers"],
    defaults: Defaults {
        head_dim: Missing::Derive,
        kv_heads: Missing::Derive,
        eps: 1e-6,
        rope_theta: 1e4,
        tied: false,
        activation: "silu",
        context: 2048,
        window: None,
    },
    norm: NormRule::Rms,
    sandwich: false,
    qk_norm: false,
    qkv_bias: Bias::Key("attention_bias"),
    out_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    scale: Scale::HeadDim,
    windows: Windows::Never,
    window_switch: false,
    positions: Positions::Rope,
    ropes: &["default", "linear", "llama3", "yarn"],
    partial_rotary: false,
    default_original: None,
    mlp: MlpRule::Gated,
    scaled_embedding: false,
    score_cap: None,
    logit_cap: None,
    transposed: false,
    names: LLAMA_NAMES,
};

const MISTRAL: Family = Family {
    name: "mistral",
    model_types: &["mistral"],
    ignored: &["layer_types"],
    defaults: Defaults { kv_heads: Missing::Refuse, context: 131_072, window: Some(4096), ..LLAMA.defaults },
    qkv_bias: Bias::Never,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::All,
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf: "qwen2",
    ignored: &[],
    defaults: Defaults { kv_heads: Missing::Refuse, context: 32_768, window: Some(4096), ..LLAMA.defaults },
    qkv_bias: Bias::Always,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::From { default: 28 },
    window_switch: true,
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf: "qwen3",
    defaults: Defaults { head_dim: Missing::Refuse, ..QWEN2.defaults },
    qk_norm: true,
    qkv_bias: Bias::Key("attention_bias"),
    out_bias: Bias::Key("attention_bias"),
    ..QWEN2
};

const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    model_types: &["qwen3_moe"],
    gguf: "qwen3moe",
    aliases: &[("num_experts", &["num_experts", "num_local_experts"])],
    ignored: &["max_window_layers", "layer_types"],
    defaults: Defaults { head_dim: Missing::Derive, ..QWEN3.defaults },
    windows: Windows::All,
    mlp: MlpRule::Experts,
    ..QWEN3
};

const GEMMA2: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    gguf: "gemma2",
    aliases: &[("hidden_act", &["hidden_activation"])],
    ignored: &["hidden_act"],
    defaults: Defaults {
        head_dim: Missing::Refuse,
        kv_heads: Missing::Refuse,
        tied: true,
        activation: "gelu_pytorch_tanh",
        context: 8192,
        window: Some(4096),
        ..LLAMA.defaults
    },
    norm: NormRule::RmsPlusOne,
    sandwich: true,
    mlp_bias: Bias::Never,
    scale: Scale::QueryScalar(256.0),
    windows: Windows::AllButEvery { default: 2 },
    scaled_embedding: true,
    score_cap: Some(50.0),
    logit_cap: Some(Some(30.0)),
    names: Names {
        attention_post_norm: "post_attention_layernorm",
        mlp_norm: "pre_feedforward_layernorm",
        mlp_post_norm: "post_feedforward_layernorm",
        ..LLAMA_NAMES
    },
    ..LLAMA
};

const GEMMA3: Family = Family {
    name: "gemma3",
    model_types: &["gemma3_text"],
    gguf: "gemma3",
    // The reference never hands this cap to its attention.
    ignored: &["hidden_act", "attn_logit_softcapping"],
    defaults: Defaults { rope_theta: 1e6, context: 131_072, ..GEMMA2.defaults },
    qk_norm: true,
    windows: Windows::AllButEvery { default: 6 },
    positions: Positions::RopeAndLocal { local_base: 1e4 },
    score_cap: None,
    logit_cap: Some(None),
    ..GEMMA2
};

const PHI3: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    gguf: "phi3",
    ignored: &["layer_types"],
    defaults: Defaults { eps: 1e-5, context: 4096, ..LLAMA.defaults },
    qkv_bias: Bias::Never,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::All,
    ropes: &["default", "longrope"],
    partial_rotary: true,
    default_original: Some(4096),
    names: Names { qkv: "self_attn.qkv_proj", gate_up: "mlp.gate_up_proj", ..LLAMA_NAMES },
    ..LLAMA
};

const SMOLLM3: Family = Family {
    name: "smollm3",
    model_types: &["smollm3"],
    gguf: "smollm3",
    ignored: &["max_window_layers"],
    defaults: Defaults { kv_heads: Missing::Refuse, rope_theta: 2e6, tied: true, context: 32_768, ..LLAMA.defaults },
    windows: Windows::NoPosition,
    window_switch: true,
    positions: Positions::RopeOrNone,
    ..LLAMA
};

const GPT2: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    gguf: "gpt2",
    aliases: &[
        ("hidden_size", &["n_embd"]),
        ("num_attention_heads", &["n_head"]),
        ("num_hidden_layers", &["n_layer"]),
        ("max_position_embeddings", &["n_positions"]),
        ("intermediate_size", &["n_inner"]),
        ("hidden_act", &["activation_function"]),
        ("rms_norm_eps", &["layer_norm_epsilon"]),
    ],
    ignored: &[],
    defaults: Defaults { eps: 1e-5, tied: true, activation: "gelu_new", context: 1024, ..LLAMA.defaults },
    norm: NormRule::Layer,
    qkv_bias: Bias::Always,
    out_bias: Bias::Always,
    mlp_bias: Bias::Always,
    scale: Scale::Gpt2,
    positions: Positions::Learned,
    mlp: MlpRule::Plain,
    transposed: true,
    names: Names {
        root: "transformer.",
        embedding: "wte",
        positions: "wpe",
        layers: "h",
        final_norm: "ln_f",
        attention_norm: "ln_1",
        mlp_norm: "ln_2",
        qkv: "attn.c_attn",
        out: "attn.c_proj",
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        ..LLAMA_NAMES
    },
    ..LLAMA
};

/// Every family octet runs.
pub static FAMILIES: &[Family] = &[LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA2, GEMMA3, PHI3, SMOLLM3, GPT2];

/// Model types that are asked for and have a remedy.
const HINTS: &[(&str, &str)] = &[
    ("gemma3", ": it has an image part; use a text-only checkpoint (model_type gemma3_text)"),
    ("mixtral", ": of the mixtures of experts only qwen3_moe is done so far"),
];

/// The family of a `model_type`.
///
/// # Errors
/// If there is none; the error lists those that exist.
pub fn find(model_type: &str) -> Result<&'static Family, ConfigError> {
    FAMILIES.iter().find(|f| f.model_types.contains(&model_type)).ok_or_else(|| ConfigError::UnknownModelType {
        found: model_type.into(),
        hint: HINTS.iter().find(|(name, _)| *name == model_type).map_or("", |(_, hint)| hint),
        known: FAMILIES.iter().flat_map(|f| f.model_types).copied().collect::<Vec<_>>().join(", "),
    })
}
