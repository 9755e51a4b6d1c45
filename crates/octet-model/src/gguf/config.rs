//! From metadata to config.json.

use super::{Described, TranslateError, rope};
use crate::families::{self, Family, Fixed, GgufRow};
use serde_json::{Map, Value, json};

/// The metadata of one architecture, its keys after the architecture's name.
pub(super) struct Keys<'a> {
    pub(super) architecture: &'static str,
    pub(super) file: &'a Described<'a>,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A value; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.file.metadata.get(&self.full(key)).filter(|value| !value.is_null())
    }

    /// A number; of a list of equal ones, one of them.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>, TranslateError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value {
            Value::Array(list) if list.windows(2).all(|pair| pair[0] == pair[1]) => list.first().unwrap_or(value),
            other => other,
        };
        match one.as_u64() {
            Some(count) => Ok(Some(count)),
            None => Err(self.bad(key, "one number for all blocks")),
        }
    }

    pub(super) fn required(&self, key: &str) -> Result<u64, TranslateError> {
        self.count(key)?.ok_or_else(|| self.bad(key, "a number"))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, TranslateError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.bad(key, "a number")),
        }
    }

    pub(super) fn bad(&self, key: &str, expected: &'static str) -> TranslateError {
        let key = self.full(key);
        let found = self.file.metadata.get(&key).map_or_else(|| "nothing".into(), Value::to_string);
        TranslateError::Key { key, found, expected }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.file.tensors.iter().any(|(tensor, _)| tensor == name)
    }
}

/// The config.json of a file.
pub(super) fn config(row: &'static GgufRow, file: &Described<'_>) -> Result<Value, TranslateError> {
    let keys = Keys { architecture: row.architecture, file };
    let family = families::find(row.model_type)?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(spelt(family, key).into(), value);
    set("model_type", row.model_type.into());
    let (hidden, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    set("hidden_size", hidden.into());
    set("num_hidden_layers", keys.required("block_count")?.into());
    set("num_attention_heads", heads.into());
    set("max_position_embeddings", keys.required("context_length")?.into());
    set("intermediate_size", keys.required("feed_forward_length")?.into());
    set("rms_norm_eps", keys.float(row.epsilon)?.ok_or_else(|| keys.bad(row.epsilon, "a number"))?.into());
    let embedding = file.tensors.iter().find(|(name, _)| name == "token_embd.weight");
    let vocabulary =
        embedding.and_then(|(_, shape)| shape.first()).ok_or_else(|| TranslateError::Missing { tensor: "token_embd.weight".into() })?;
    set("vocab_size", (*vocabulary).into());
    set("tie_word_embeddings", (!keys.has_tensor("output.weight")).into());
    if row.model_type != "gpt2" {
        set("num_key_value_heads", keys.count("attention.head_count_kv")?.unwrap_or(heads).into());
        let head_dim = keys.count("attention.key_length")?.unwrap_or(hidden / heads.max(1));
        if keys.count("attention.value_length")?.is_some_and(|width| width != head_dim) {
            return Err(keys.bad("attention.value_length", "the same as attention.key_length"));
        }
        set("head_dim", head_dim.into());
        rope::rope(&keys, family, head_dim, &mut set)?;
        for (key, tensor) in [("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")] {
            if keys.has_tensor(tensor) && has_key(family, key) {
                set(key, true.into());
            }
        }
        for (key, value) in row.fixed.iter().filter_map(|(key, fixed)| Some((key, query_scalar(&keys, *fixed, head_dim, hidden, heads)?))) {
            set(key, value.into());
        }
    }
    for (key, stored) in row.keys {
        if let Some(value) = keys.get(stored) {
            set(key, value.clone());
        }
    }
    for (key, fixed) in row.fixed {
        match *fixed {
            Fixed::Text(text) => set(key, text.into()),
            Fixed::Number(number) => set(key, number.into()),
            Fixed::Flag(flag) => set(key, flag.into()),
            Fixed::QueryScalar(_) => None,
        };
    }
    if keys.count("expert_count")?.is_some_and(|count| count > 0) && !row.keys.iter().any(|(key, _)| *key == "num_experts") {
        return Err(keys.bad("expert_count", "no experts in models of this architecture"));
    }
    if let Some(pattern) = keys.get("attention.sliding_window_pattern") {
        set_pattern(&keys, pattern, &mut set)?;
    }
    tokens(file, &mut set);
    Ok(Value::Object(config))
}

/// How the family's config spells a key.
fn spelt<'a>(family: &Family, key: &'a str) -> &'a str {
    family.aliases.iter().find(|(known, _)| *known == key).and_then(|(_, names)| names.first()).map_or(key, |name| name)
}

/// Whether a key of the family says if there are biases.
fn has_key(family: &Family, key: &str) -> bool {
    [family.qkv_bias, family.mlp_bias].iter().any(|bias| matches!(bias, families::Bias::Key(known) if *known == key))
}

fn query_scalar(keys: &Keys<'_>, fixed: Fixed, head_dim: u64, hidden: u64, heads: u64) -> Option<u64> {
    let Fixed::QueryScalar(blocks) = fixed else { return None };
    let large = keys.count("block_count").ok().flatten() == Some(blocks);
    Some(if large { hidden / heads.max(1) } else { head_dim })
}

/// Which blocks slide: every n-th does not, or one truth value a block.
fn set_pattern(keys: &Keys<'_>, pattern: &Value, set: &mut dyn FnMut(&str, Value) -> Option<Value>) -> Result<(), TranslateError> {
    let blocks = keys.required("block_count")?;
    let slides: Vec<bool> = match pattern {
        Value::Array(list) if list.len() as u64 == blocks => list.iter().filter_map(Value::as_bool).collect(),
        other => match other.as_u64().filter(|&every| every > 0 && blocks <= 1 << 16) {
            Some(every) => (0..blocks).map(|i| !(i + 1).is_multiple_of(every)).collect(),
            None => vec![],
        },
    };
    if slides.len() as u64 != blocks {
        return Err(keys.bad("attention.sliding_window_pattern", "a number, or a truth value for each block"));
    }
    let kinds: Value = slides.iter().map(|&slides| if slides { "sliding_attention" } else { "full_attention" }).collect();
    set("layer_types", kinds);
    Ok(())
}

/// Tokens that begin and end texts.
fn tokens(file: &Described<'_>, set: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    let id = |name: &str| file.metadata.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(Value::as_u64);
    if let Some(bos) = id("bos") {
        set("bos_token_id", bos.into());
    }
    let mut ends: Vec<u64> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    ends.dedup();
    match ends[..] {
        [] => None,
        [one] => set("eos_token_id", one.into()),
        _ => set("eos_token_id", json!(ends)),
    };
}
