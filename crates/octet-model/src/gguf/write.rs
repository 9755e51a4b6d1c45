//! A model's spec as a GGUF file's metadata: [`super::config`] the other way round.
//!
//! Whether the file can hold the model is not decided by a list of exceptions: what was made is translated back, and where
//! that is another model, it is refused.

use super::{Described, Renamed, TranslateError, names, translate};
use crate::{
    families::{GGUF, GgufRow},
    rope::{Rope, RopeScaling},
    spec::{ArchSpec, Attention, LayerSpec, Mlp, Norm, Position},
};
use serde_json::{Map, Value, json};

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A whole number.
    Count(u64),
    /// A number.
    Float(f32),
    /// A text.
    Text(String),
    /// A truth value a block.
    Flags(Vec<bool>),
}

/// A model as a GGUF file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Keys and values, the architecture's first.
    pub metadata: Vec<(String, Fact)>,
    /// Its tensors, in the order they are written.
    pub tensors: Vec<Renamed>,
    /// Tensors of floats that a checkpoint has in its config.
    pub floats: Vec<(String, Vec<f32>)>,
    /// What readers of the file do otherwise, for people.
    pub notes: Vec<String>,
}

/// Why a model cannot be a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescribeError {
    /// The architecture has no name there that octet knows.
    #[error("GGUF has no architecture for {family} models that octet knows; export it to another format")]
    Architecture {
        /// The family.
        family: &'static str,
    },
    /// Read back, it is another model.
    #[error("a GGUF file of architecture {architecture} cannot hold this model: {what}; export it to another format")]
    NotHeld {
        /// The architecture.
        architecture: &'static str,
        /// What would be lost.
        what: String,
    },
    /// A name or key that has no counterpart.
    #[error("it cannot be written as GGUF: {0}")]
    Translate(#[from] TranslateError),
}

/// Describes the model `spec` with its `config` as a GGUF file; the head is a tensor of its own where `spec` says so.
///
/// # Errors
/// If a GGUF file cannot hold the model: what would be lost is said.
pub fn describe(spec: &ArchSpec, config: &Value) -> Result<Outgoing, DescribeError> {
    let unknown = || DescribeError::Architecture { family: spec.family };
    let row = GGUF.iter().find(|row| row.architecture == spec.gguf).ok_or_else(unknown)?;
    if !row.out_bias && spec.layers.iter().any(|layer| layer.attention.out_bias) {
        let what = "llama.cpp knows no bias of the attention's output there".into();
        return Err(DescribeError::NotHeld { architecture: row.architecture, what });
    }
    let mut out = Outgoing { metadata: vec![], tensors: names::tensors(row, spec)?, floats: vec![], notes: vec![] };
    facts(row, spec, config, &mut out);
    let back = read_back(&out, spec)?;
    match difference(spec, &back) {
        None => Ok(out),
        Some(what) => Err(DescribeError::NotHeld { architecture: row.architecture, what }),
    }
}

/// The file's metadata.
fn facts(row: &GgufRow, spec: &ArchSpec, config: &Value, out: &mut Outgoing) {
    let mut set = |key: &str, fact: Fact| out.metadata.push((format!("{}.{key}", row.architecture), fact));
    let count = |n: usize| Fact::Count(n as u64);
    let Some(first) = spec.layers.first() else { return };
    let attention = &first.attention;
    set("context_length", count(spec.context));
    set("embedding_length", count(spec.hidden));
    set("block_count", count(spec.layers.len()));
    set("feed_forward_length", count(feed_forward(&first.mlp, config)));
    set("attention.head_count", count(attention.heads));
    let (Norm::Rms { eps, .. } | Norm::Layer { eps }) = spec.norm;
    set(row.epsilon, Fact::Float(eps));
    set("vocab_size", count(spec.vocab));
    if spec.embedding.learned_positions.is_none() {
        set("attention.head_count_kv", count(attention.kv_heads));
        set("attention.key_length", count(attention.head_dim));
        set("attention.value_length", count(attention.head_dim));
    }
    if let Mlp::Experts { count: experts, per_token, intermediate, .. } = first.mlp {
        set("expert_count", count(experts));
        set("expert_used_count", count(per_token));
        set("expert_feed_forward_length", count(intermediate));
    }
    let holds = |key: &str| row.keys.iter().any(|(_, stored)| *stored == key);
    for (key, value) in [("attn_logit_softcapping", attention.soft_cap), ("final_logit_softcapping", spec.head.soft_cap)] {
        if let (true, Some(value)) = (holds(key), value) {
            set(key, Fact::Float(value));
        }
    }
    let window = spec.layers.iter().find_map(|layer| layer.attention.window);
    if let (true, Some(window)) = (holds("attention.sliding_window"), window) {
        set("attention.sliding_window", count(window));
    }
    if row.local_ropes {
        set("attention.sliding_window_pattern", pattern(&spec.layers));
    }
    for (full, key) in [(true, "rope.freq_base"), (false, "rope.freq_base_swa")] {
        let wanted = full || row.local_ropes;
        if let (true, Some(rope)) = (wanted, rope_of(spec, full)) {
            set(key, Fact::Float(rope.base));
        }
    }
    if let Some(rope) = rope_of(spec, true) {
        set("rope.dimension_count", count(rope.dims));
        scaling(rope, &mut set, &mut out.floats);
    }
    if row.ignores_window && window.is_some_and(|window| window < spec.context) {
        out.notes.push(format!(
            "llama.cpp runs {} models without their sliding window of {} tokens",
            row.architecture,
            window.unwrap_or(0)
        ));
    }
}

/// The rotary embedding of blocks that do not slide, or of those that do; the other where there is only one kind.
fn rope_of(spec: &ArchSpec, full: bool) -> Option<&Rope> {
    let of = |layer: &LayerSpec| match layer.attention.position {
        Position::Rope(n) => spec.ropes.get(n),
        Position::None => None,
    };
    let kind = |layer: &&LayerSpec| layer.attention.window.is_none() == full;
    spec.layers.iter().filter(kind).find_map(of).or_else(|| spec.layers.iter().find_map(of))
}

/// The width between of a block's MLP; of experts what the config says of blocks without.
fn feed_forward(mlp: &Mlp, config: &Value) -> usize {
    match *mlp {
        Mlp::Gated { intermediate, .. } | Mlp::Plain { intermediate, .. } => intermediate,
        Mlp::Experts { intermediate, .. } => config["intermediate_size"].as_u64().map_or(intermediate, |width| width as usize),
    }
}

/// Which blocks slide: all but every n-th, or one by one.
fn pattern(layers: &[LayerSpec]) -> Fact {
    let slides: Vec<bool> = layers.iter().map(|layer| layer.attention.window.is_some()).collect();
    let every = slides.iter().position(|slides| !slides).map(|first| first + 1);
    let regular = |n: usize| slides.iter().enumerate().all(|(i, &slides)| slides != (i + 1).is_multiple_of(n));
    match every.filter(|&n| regular(n)) {
        Some(n) => Fact::Count(n as u64),
        None => Fact::Flags(slides),
    }
}

fn scaling(rope: &Rope, set: &mut dyn FnMut(&str, Fact), floats: &mut Vec<(String, Vec<f32>)>) {
    let mut named = |kind: &str, factor: f32| {
        set("rope.scaling.type", Fact::Text(kind.into()));
        set("rope.scaling.factor", Fact::Float(factor));
    };
    match &rope.scaling {
        RopeScaling::Default => {}
        &RopeScaling::Linear { factor } => named("linear", factor),
        &RopeScaling::Yarn { factor, original, .. } => {
            named("yarn", factor);
            set("rope.scaling.original_context_length", Fact::Count(original as u64));
        }
        &RopeScaling::Llama3 { factor, low, high, original } => {
            floats.push(("rope_freqs.weight".into(), llama3_divisors(rope, [factor, low, high, original].map(f64::from))));
        }
        RopeScaling::LongRope { short, long, original, attention } => {
            set("rope.scaling.original_context_length", Fact::Count(*original as u64));
            set("rope.scaling.attn_factor", Fact::Float(*attention));
            floats.push(("rope_factors_long.weight".into(), long.clone()));
            floats.push(("rope_factors_short.weight".into(), short.clone()));
        }
    }
}

/// What Llama 3's scaling divides each frequency by.
fn llama3_divisors(rope: &Rope, [factor, low, high, original]: [f64; 4]) -> Vec<f32> {
    let divisor = |i: usize| {
        let wave = std::f64::consts::TAU * f64::from(rope.base).powf(2.0 * i as f64 / rope.dims as f64);
        if wave < original / high {
            return 1.0;
        }
        if wave > original / low {
            return factor as f32;
        }
        let smooth = (original / wave - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..rope.dims / 2).map(divisor).collect()
}

/// The model that a reader makes of it.
fn read_back(out: &Outgoing, spec: &ArchSpec) -> Result<ArchSpec, DescribeError> {
    let json = |fact: &Fact| match fact {
        Fact::Count(n) => json!(n),
        Fact::Float(value) => json!(f64::from(*value)),
        Fact::Text(text) => json!(text),
        Fact::Flags(flags) => json!(flags),
    };
    let mut metadata: Map<String, Value> = out.metadata.iter().map(|(key, fact)| (key.clone(), json(fact))).collect();
    metadata.insert("general.architecture".into(), spec.gguf.into());
    let shape = |tensor: &str| if tensor == "token_embd.weight" { vec![spec.vocab, spec.hidden] } else { vec![] };
    let names = out.tensors.iter().map(|renamed| &renamed.tensor).chain(out.floats.iter().map(|(name, _)| name));
    let tensors: Vec<(String, Vec<usize>)> = names.map(|name| (name.clone(), shape(name))).collect();
    let floats = |name: &str| out.floats.iter().find(|(known, _)| known == name).map(|(_, values)| values.clone());
    let described = Described { metadata: &metadata, tensors: &tensors, floats: &floats };
    let spec_of = |translation: super::Translation| Ok(ArchSpec::from_config(&translation.config)?);
    translate(&described).and_then(spec_of).map_err(|error| DescribeError::NotHeld {
        architecture: spec.gguf,
        what: match error {
            TranslateError::Missing { tensor } => format!("readers would look for {tensor}, which it does not have"),
            TranslateError::Unexpected { tensor, .. } => format!("readers would have no use for {tensor}"),
            other => other.to_string(),
        },
    })
}

/// In what `b` is another model than `a`, in words.
fn difference(a: &ArchSpec, b: &ArchSpec) -> Option<String> {
    let plain: [(&str, String, String); 7] = [
        ("the vocabulary", a.vocab.to_string(), b.vocab.to_string()),
        ("the hidden width", a.hidden.to_string(), b.hidden.to_string()),
        ("the embedding", format!("{:?}", a.embedding), format!("{:?}", b.embedding)),
        ("the norms", format!("{:?}", a.norm), format!("{:?}", b.norm)),
        ("the head", format!("{:?}", a.head), format!("{:?}", b.head)),
        ("the context", a.context.to_string(), b.context.to_string()),
        ("the number of blocks", a.layers.len().to_string(), b.layers.len().to_string()),
    ];
    if let Some((what, a, b)) = plain.into_iter().find(|(_, a, b)| a != b) {
        return Some(format!("{what} would be {b} instead of {a}"));
    }
    for (layer, (x, y)) in a.layers.iter().zip(&b.layers).enumerate() {
        let (rope_a, rope_b) = (rope_at(a, &x.attention), rope_at(b, &y.attention));
        // Numbers of rotary embeddings differ where they are listed in another order.
        let (mut x, mut y) = (x.clone(), y.clone());
        x.attention.position = Position::None;
        y.attention.position = Position::None;
        let window = |attention: &Attention| attention.window.filter(|&window| window < a.context);
        (x.attention.window, y.attention.window) = (window(&x.attention), window(&y.attention));
        let parts = [
            ("norms", format!("{:?}", x.norms), format!("{:?}", y.norms)),
            ("attention", format!("{:?}", x.attention), format!("{:?}", y.attention)),
            ("feed-forward part", format!("{:?}", x.mlp), format!("{:?}", y.mlp)),
            ("rotary embedding", format!("{rope_a:?}"), format!("{rope_b:?}")),
        ];
        if let Some((what, a, b)) = parts.into_iter().find(|(_, a, b)| a != b) {
            return Some(format!("the {what} of block {layer} would be {b} instead of {a}"));
        }
    }
    None
}

fn rope_at<'a>(spec: &'a ArchSpec, attention: &Attention) -> Option<&'a Rope> {
    match attention.position {
        Position::Rope(n) => spec.ropes.get(n),
        Position::None => None,
    }
}
