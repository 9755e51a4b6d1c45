//! config.json texts of tiny models, a few kinds of architecture.

/// Llama: grouped queries, untied head.
pub const TINY_LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128, "hidden_act": "silu",
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#;

/// Qwen3: norms on queries and keys, heads wider than hidden / heads, tied head.
pub const TINY_QWEN3: &str = r#"{"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true}"#;

/// Qwen3-MoE: four experts, two for each token.
pub const TINY_QWEN3_MOE: &str = r#"{"model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false, "num_experts": 4,
  "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": true}"#;

/// Gemma 3: sliding windows with their own rope, norms before and after, soft-capped logits.
pub const TINY_GEMMA3: &str = r#"{"model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
  "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
  "sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16, "final_logit_softcapping": 6.0}"#;

/// GPT-2: LayerNorm, learned positions, linears stored transposed.
pub const TINY_GPT2: &str = r#"{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64,
  "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}"#;
