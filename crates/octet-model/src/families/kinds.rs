//! What the columns of the table of families can hold.

/// One family: how its config is spelt, what an absent key means, how its tensors are called.
#[derive(Debug)]
pub struct Family {
    /// octet's name for it.
    pub name: &'static str,
    /// `model_type` values of config.json.
    pub model_types: &'static [&'static str],
    /// The architecture's name in GGUF files.
    pub gguf: &'static str,
    /// For a key, the names this family spells it with instead.
    pub aliases: &'static [(&'static str, &'static [&'static str])],
    /// Keys that its reference implementation does not read.
    pub ignored: &'static [&'static str],
    /// What absent keys mean.
    pub defaults: Defaults,
    /// Which normalisation.
    pub norm: NormRule,
    /// Whether each part has a norm before and after it.
    pub sandwich: bool,
    /// Whether every query and key head is normalised.
    pub qk_norm: bool,
    /// Biases of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the attention's output projection.
    pub out_bias: Bias,
    /// Biases of the MLP.
    pub mlp_bias: Bias,
    /// Factor of q·k.
    pub scale: Scale,
    /// Which layers slide.
    pub windows: Windows,
    /// Whether windows are off unless `use_sliding_window` is true.
    pub window_switch: bool,
    /// How positions get in.
    pub positions: Positions,
    /// Rope types it has.
    pub ropes: &'static [&'static str],
    /// Whether it reads `partial_rotary_factor`.
    pub partial_rotary: bool,
    /// Context of pre-training when no top-level key says so, overriding the rope's own.
    pub default_original: Option<usize>,
    /// The feed-forward part.
    pub mlp: MlpRule,
    /// Whether embeddings are multiplied with √hidden.
    pub scaled_embedding: bool,
    /// Soft cap of attention scores when its key is absent; `None`: the key is not read.
    pub score_cap: Option<f64>,
    /// Whether `final_logit_softcapping` is read, and its value when absent.
    pub logit_cap: Option<Option<f64>>,
    /// Whether linears are stored `[inputs, outputs]`.
    pub transposed: bool,
    /// How tensors are called.
    pub names: Names,
}

/// What an absent key means.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// `head_dim`.
    pub head_dim: Missing,
    /// `num_key_value_heads` (null always means as many as query heads).
    pub kv_heads: Missing,
    /// `rms_norm_eps`.
    pub eps: f64,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `hidden_act`.
    pub activation: &'static str,
    /// `max_position_embeddings`.
    pub context: usize,
    /// `sliding_window`.
    pub window: Option<usize>,
}

/// What the absence of a dimension means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It follows from the others (hidden / heads; as many as query heads).
    Derive,
    /// It must be given.
    Refuse,
}

/// Which normalisation a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormRule {
    /// RMSNorm.
    Rms,
    /// RMSNorm whose stored weight is one less.
    RmsPlusOne,
    /// LayerNorm.
    Layer,
}

/// Whether linears have biases.
#[derive(Clone, Copy, Debug)]
pub enum Bias {
    /// Never.
    Never,
    /// Always.
    Always,
    /// As this key says, default false.
    Key(&'static str),
}

/// Factor of q·k.
#[derive(Clone, Copy, Debug)]
pub enum Scale {
    /// head_dim^−½.
    HeadDim,
    /// `query_pre_attn_scalar`^−½, with its default.
    QueryScalar(f64),
    /// As `scale_attn_weights` and `scale_attn_by_inverse_layer_idx` say.
    Gpt2,
}

/// Which layers have a sliding window.
#[derive(Clone, Copy, Debug)]
pub enum Windows {
    /// None, whatever the config says.
    Never,
    /// All.
    All,
    /// Those from `max_window_layers` on, or as `layer_types` says.
    From {
        /// `max_window_layers` when absent.
        default: usize,
    },
    /// All but every n-th, or as `layer_types` says.
    AllButEvery {
        /// `sliding_window_pattern` when absent.
        default: usize,
    },
    /// Those without positions, or as `layer_types` says.
    NoPosition,
}

/// How positions get in.
#[derive(Clone, Copy, Debug)]
pub enum Positions {
    /// Rotary in all layers.
    Rope,
    /// Rotary, with another base in sliding layers.
    RopeAndLocal {
        /// `rope_local_base_freq` when absent.
        local_base: f64,
    },
    /// Rotary but in the layers that `no_rope_layers` marks with 0.
    RopeOrNone,
    /// Learned and added to the embedding.
    Learned,
}

/// The feed-forward part of a family's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpRule {
    /// Gated.
    Gated,
    /// Plain; four times hidden when `intermediate_size` is null.
    Plain,
    /// Experts in the layers the config names, gated in the others.
    Experts,
}

/// Names of modules: of the model (after the root) and of a block (after `root layers . index .`); empty where a family has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the name of the module it is called after")]
pub struct Names {
    pub root: &'static str,
    pub embedding: &'static str,
    pub positions: &'static str,
    pub layers: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    pub attention_post_norm: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_post_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub qkv: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub out: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub gate_up: &'static str,
    pub down: &'static str,
    pub router: &'static str,
    pub experts: &'static str,
}
