//! From config.json to an [`ArchSpec`].

use crate::{
    config::Reader,
    error::ConfigError,
    families::{self, Bias, Family, Missing, MlpRule, NormRule, Positions, Scale, Windows},
    rope_config,
    spec::{ArchSpec, Attention, Embedding, Head, LayerSpec, Mlp, Norm, NormPlacement, Position},
};
use octet_kernels::ActivationFn;
use serde_json::Value;
use std::collections::BTreeSet;

/// More blocks, or experts of a block, than any model has.
const MOST: usize = 1024;
/// More experts in all blocks than any model has.
const MOST_EXPERTS: usize = 1 << 17;

impl ArchSpec {
    /// The spec of a config.json, whichever transformers version wrote it.
    ///
    /// # Errors
    /// If the model type or rope type is unknown, a key is missing or makes no sense, or a key that may change the
    /// result is not understood.
    pub fn from_config(config: &Value) -> Result<Self, ConfigError> {
        let map = config.as_object().ok_or(ConfigError::NotAnObject)?;
        let bare = Reader::new(map, "such", &[]);
        let model_type = bare.text("model_type")?.value().ok_or_else(|| bare.missing("model_type"))?;
        let family = families::find(model_type)?;
        let reader = Reader::new(map, family.name, family.aliases);
        let spec = build(family, &reader)?;
        reader.finish(family.ignored)?;
        Ok(ArchSpec { turned: crate::turn::modules(config)?, ..spec })
    }
}

fn build(family: &'static Family, r: &Reader<'_>) -> Result<ArchSpec, ConfigError> {
    let hidden = r.required("hidden_size")?;
    let count = r.required("num_hidden_layers")?;
    if count > MOST {
        return Err(r.bad_key("num_hidden_layers", &format!("at most {MOST}")));
    }
    let attention = attention(family, r, hidden)?;
    let ropes = rope_config::ropes(family, r, attention.head_dim)?;
    let context = r.count("max_position_embeddings")?.value().unwrap_or(family.defaults.context);
    let norm = norm(family, r)?;
    let positioned = positioned_layers(family, r, count)?;
    let windows = windows(family, r, &positioned)?;
    let mlps = mlps(family, r, hidden, count)?;
    let inverse_index = matches!(family.scale, Scale::Gpt2) && r.flag("scale_attn_by_inverse_layer_idx", false)?;
    let learned = matches!(family.positions, Positions::Learned);
    let layer = |(i, mlp): (usize, Mlp)| {
        let local = usize::from(windows[i].is_some() && ropes.len() > 1);
        let position = if learned || !positioned[i] { Position::None } else { Position::Rope(local) };
        let divisor = if inverse_index { (i + 1) as f32 } else { 1.0 };
        let attention = Attention { window: windows[i], position, scale: attention.scale / divisor, ..attention.clone() };
        let norms = if family.sandwich { NormPlacement::BeforeAndAfter } else { NormPlacement::Before };
        LayerSpec { norms, attention, mlp }
    };
    let logit_cap = match family.logit_cap {
        Some(default) => r.positive("final_logit_softcapping")?.or_absent(default),
        None => None,
    };
    Ok(ArchSpec {
        family: family.name,
        gguf: family.gguf,
        names: &family.names,
        root: family.names.root,
        vocab: r.required("vocab_size")?,
        hidden,
        context,
        embedding: Embedding {
            scale: family.scaled_embedding.then(|| (hidden as f32).sqrt()),
            learned_positions: learned.then_some(context),
        },
        norm,
        layers: mlps.into_iter().enumerate().map(layer).collect(),
        head: Head { tied: r.flag("tie_word_embeddings", family.defaults.tied)?, soft_cap: logit_cap.map(|c| c as f32) },
        transposed: family.transposed,
        turned: BTreeSet::new(),
        ropes,
    })
}

/// The attention all layers share, without window and position.
fn attention(family: &Family, r: &Reader<'_>, hidden: usize) -> Result<Attention, ConfigError> {
    let heads = r.required("num_attention_heads")?;
    let head_dim = match (r.count("head_dim")?.value(), family.defaults.head_dim) {
        (Some(dim), _) => dim,
        (None, Missing::Derive) if hidden.is_multiple_of(heads) => hidden / heads,
        (None, Missing::Derive) => return Err(r.bad_key("num_attention_heads", &format!("a divisor of the hidden size {hidden}"))),
        (None, Missing::Refuse) => return Err(r.missing("head_dim")),
    };
    let kv_heads = r.count("num_key_value_heads")?;
    if kv_heads == crate::config::Key::Absent && family.defaults.kv_heads == Missing::Refuse {
        return Err(r.missing("num_key_value_heads"));
    }
    let kv_heads = kv_heads.value().unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(r.bad_key("num_key_value_heads", &format!("a divisor of the {heads} attention heads")));
    }
    let scale = match family.scale {
        Scale::HeadDim => (head_dim as f64).sqrt().recip(),
        Scale::QueryScalar(default) => r.positive("query_pre_attn_scalar")?.value().unwrap_or(default).sqrt().recip(),
        Scale::Gpt2 if r.flag("scale_attn_weights", true)? => (head_dim as f64).sqrt().recip(),
        Scale::Gpt2 => 1.0,
    };
    let soft_cap = match family.score_cap {
        Some(default) => r.positive("attn_logit_softcapping")?.or_absent(Some(default)),
        None => None,
    };
    Ok(Attention {
        heads,
        kv_heads,
        head_dim,
        fused: !family.names.qkv.is_empty(),
        qkv_bias: bias(family.qkv_bias, r)?,
        out_bias: bias(family.out_bias, r)?,
        qk_norm: if family.qk_norm { Some(norm(family, r)?) } else { None },
        scale: scale as f32,
        window: None,
        soft_cap: soft_cap.map(|c| c as f32),
        position: Position::None,
    })
}

fn norm(family: &Family, r: &Reader<'_>) -> Result<Norm, ConfigError> {
    let eps = r.positive("rms_norm_eps")?.value().unwrap_or(family.defaults.eps) as f32;
    Ok(match family.norm {
        NormRule::Rms => Norm::Rms { eps, plus_one: false },
        NormRule::RmsPlusOne => Norm::Rms { eps, plus_one: true },
        NormRule::Layer => Norm::Layer { eps },
    })
}

fn bias(rule: Bias, r: &Reader<'_>) -> Result<bool, ConfigError> {
    match rule {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Key(key) => r.flag(key, false),
    }
}

/// Which layers know positions.
fn positioned_layers(family: &Family, r: &Reader<'_>, count: usize) -> Result<Vec<bool>, ConfigError> {
    if !matches!(family.positions, Positions::RopeOrNone) {
        return Ok(vec![true; count]);
    }
    let interval = r.count("no_rope_layer_interval")?.value().unwrap_or(4);
    // The name is inverted: 1 marks a layer that has rope.
    let expected = format!("a list of {count} zeros and ones");
    match r.list("no_rope_layers", &expected, |v| v.as_u64().filter(|&n| n <= 1).map(|n| n == 1))? {
        Some(list) if list.len() == count => Ok(list),
        Some(_) => Err(r.bad_key("no_rope_layers", &expected)),
        None => Ok((0..count).map(|i| !(i + 1).is_multiple_of(interval)).collect()),
    }
}

/// The sliding window of each layer.
fn windows(family: &Family, r: &Reader<'_>, positioned: &[bool]) -> Result<Vec<Option<usize>>, ConfigError> {
    let count = positioned.len();
    if matches!(family.windows, Windows::Never) {
        return Ok(vec![None; count]);
    }
    let window = r.count("sliding_window")?.or_absent(family.defaults.window);
    let on = !family.window_switch || r.flag("use_sliding_window", false)?;
    let by_rule: Vec<bool> = match family.windows {
        Windows::Never | Windows::All => vec![true; count],
        Windows::From { default } => {
            let first = r.count_or_zero("max_window_layers")?.value().unwrap_or(default);
            (0..count).map(|i| i >= first).collect()
        }
        Windows::AllButEvery { default } => {
            let (new, old) = (r.count("_sliding_window_pattern")?.value(), r.count("sliding_window_pattern")?.value());
            let every = old.or(new).unwrap_or(default);
            (0..count).map(|i| !(i + 1).is_multiple_of(every)).collect()
        }
        Windows::NoPosition => positioned.iter().map(|known| !known).collect(),
    };
    let slides = match family.windows {
        Windows::All => by_rule,
        _ => layer_types(r, count)?.unwrap_or(by_rule),
    };
    Ok(slides.iter().map(|&slides| window.filter(|_| on && slides)).collect())
}

/// `layer_types`, as whether each layer slides.
fn layer_types(r: &Reader<'_>, count: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    let expected = format!("a list of {count} times full_attention or sliding_attention");
    let kinds = r.list("layer_types", &expected, |v| match v.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    })?;
    match kinds {
        Some(list) if list.len() != count => Err(r.bad_key("layer_types", &expected)),
        kinds => Ok(kinds),
    }
}

/// The feed-forward part of each layer.
fn mlps(family: &Family, r: &Reader<'_>, hidden: usize, count: usize) -> Result<Vec<Mlp>, ConfigError> {
    let activation = activation(family, r)?;
    let bias = bias(family.mlp_bias, r)?;
    if family.mlp == MlpRule::Plain {
        let intermediate = r.count("intermediate_size")?.value().unwrap_or(4 * hidden);
        return Ok(vec![Mlp::Plain { intermediate, activation, bias }; count]);
    }
    let intermediate = r.required("intermediate_size")?;
    let gated = Mlp::Gated { intermediate, activation, bias, fused: !family.names.gate_up.is_empty() };
    if family.mlp == MlpRule::Gated {
        return Ok(vec![gated; count]);
    }
    let experts = r.count_or_zero("num_experts")?.value().ok_or_else(|| r.missing("num_experts"))?;
    let per_token = r.count("num_experts_per_tok")?.value().unwrap_or(8);
    let step = r.count("decoder_sparse_step")?.value().unwrap_or(1);
    let normalize = r.flag("norm_topk_prob", false)?;
    let width = r.required("moe_intermediate_size")?;
    let dense = r.list("mlp_only_layers", "a list of layer indices", Value::as_u64)?.unwrap_or_default();
    if experts > MOST || experts * count > MOST_EXPERTS {
        return Err(r.bad_key("num_experts", &format!("at most {MOST} in a block and {MOST_EXPERTS} in all")));
    }
    if experts > 0 && per_token > experts {
        return Err(r.bad_key("num_experts_per_tok", &format!("at most the {experts} experts")));
    }
    let sparse = Mlp::Experts { count: experts, per_token, intermediate: width, activation, normalize };
    let is_sparse = |i: usize| experts > 0 && !dense.contains(&(i as u64)) && (i + 1).is_multiple_of(step);
    Ok((0..count).map(|i| if is_sparse(i) { sparse.clone() } else { gated.clone() }).collect())
}

fn activation(family: &Family, r: &Reader<'_>) -> Result<ActivationFn, ConfigError> {
    const KNOWN: &[(&str, ActivationFn)] = &[
        ("silu", ActivationFn::Silu),
        ("swish", ActivationFn::Silu),
        ("gelu_pytorch_tanh", ActivationFn::GeluTanh),
        ("gelu_new", ActivationFn::GeluTanh),
        ("gelu", ActivationFn::Gelu),
        ("relu", ActivationFn::Relu),
        ("relu2", ActivationFn::Relu2),
    ];
    let name = r.text("hidden_act")?.value().unwrap_or(family.defaults.activation);
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, f)| *f).ok_or_else(|| ConfigError::Value {
        key: family.aliases.iter().find(|(key, _)| *key == "hidden_act").map_or("hidden_act", |(_, names)| names[0]).into(),
        expected: format!("one of {}", KNOWN.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")),
        found: format!("{name:?}"),
    })
}
