//! tokenizer.json and tokenizer_config.json out of a GGUF file's metadata.

use super::{Metadata, pieces, pre_tokenizers};
use octet_formats::gguf::Value;
use serde_json::{Map, json};

/// A tokenizer's two files.
pub(super) struct Made {
    pub(super) tokenizer: serde_json::Value,
    pub(super) config: serde_json::Value,
}

/// What a token is (`tokenizer.ggml.token_type`).
pub(super) const CONTROL: u64 = 3;
/// As above: stands for what is not in the vocabulary.
pub(super) const UNKNOWN: u64 = 2;
/// As above: written by whoever made the vocabulary, and text like any other.
pub(super) const USER_DEFINED: u64 = 4;

/// The key, after `tokenizer.ggml.`, that says whether text is composed where the way of cutting it would say otherwise. Only
/// octet writes and reads it: llama.cpp never composes.
pub(super) const COMPOSED: &str = "octet_composed";

/// Makes the tokenizer.
pub(super) fn tokenizer(metadata: &Metadata<'_>) -> Result<Made, String> {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    let tokens = texts(metadata, "tokenizer.ggml.tokens")?.ok_or("it has no tokenizer.ggml.tokens; download it again")?;
    let types = numbers(metadata, "tokenizer.ggml.token_type", tokens.len())?;
    let (model, normalizer, pre_tokenizer, decoder, add_bos) = match text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(metadata, &tokens)?,
        Some("llama") => sentence_piece(metadata, &tokens)?,
        other => {
            let kind = other.unwrap_or("nothing");
            return Err(format!("its tokenizer is {kind:?}, octet reads gpt2 and llama; use the checkpoint it was made from"));
        }
    };
    let added = tokens.iter().enumerate().filter_map(|(id, token)| {
        let kind = types.as_ref().map_or(1.0, |types| types[id]) as u64;
        let (control, user) = (kind == CONTROL || kind == UNKNOWN, kind == USER_DEFINED);
        (!token.is_empty() && (control || user)).then(|| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": control})
        })
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    });
    let mut config = Map::new();
    let add_bos = metadata.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool).unwrap_or(add_bos);
    config.insert("add_bos_token".into(), add_bos.into());
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
        let id = metadata.get(format!("tokenizer.ggml.{name}_token_id").as_str()).and_then(Value::as_u64);
        if let Some(token) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) {
            config.insert(key.into(), token.as_str().into());
        }
    }
    if let Some(template) = text("tokenizer.chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Ok(Made { tokenizer, config: config.into() })
}

/// Model, normalizer, pre-tokenizer, decoder, and whether texts begin with a token of their own.
type Parts = (serde_json::Value, serde_json::Value, serde_json::Value, serde_json::Value, bool);

fn byte_level(metadata: &Metadata<'_>, tokens: &[String]) -> Result<Parts, String> {
    let name = metadata.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("gpt-2");
    let kind = pre_tokenizers::find(name)?;
    let merges = texts(metadata, "tokenizer.ggml.merges")?.ok_or("it has no tokenizer.ggml.merges; download it again")?;
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": kind.ignore_merges, "vocab": vocabulary(tokens), "merges": merges,
    });
    let composed = metadata.get(format!("tokenizer.ggml.{COMPOSED}").as_str()).and_then(Value::as_bool).unwrap_or(kind.composed);
    let normalizer = if composed { json!({"type": "NFC"}) } else { json!(null) };
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok((model, normalizer, kind.json(), decoder, kind.add_bos))
}

fn sentence_piece(metadata: &Metadata<'_>, tokens: &[String]) -> Result<Parts, String> {
    let scores = numbers(metadata, "tokenizer.ggml.scores", tokens.len())?.ok_or("it has no tokenizer.ggml.scores; download it again")?;
    let leading_space = metadata.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let unknown = metadata.get("tokenizer.ggml.unknown_token_id").and_then(Value::as_u64).unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
    // Without bytes every character that is not in the vocabulary is a token of its own.
    let bytes = tokens.iter().any(|token| super::write::is_byte(token));
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": bytes, "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary(tokens),
        "merges": pieces::merges(tokens, &scores),
    });
    Ok((model, pieces::normalizer(leading_space), json!(null), pieces::decoder(leading_space), true))
}

/// Tokens and their ids; of equal tokens the first counts.
fn vocabulary(tokens: &[String]) -> Map<String, serde_json::Value> {
    let mut all = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        all.entry(token.as_str()).or_insert(id.into());
    }
    all
}

/// A list of texts; what is not UTF-8 among them cannot be reached by text and is spelt with replacement characters.
fn texts(metadata: &Metadata<'_>, key: &str) -> Result<Option<Vec<String>>, String> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| format!("its {key} is no list; download it again"))?;
    let one = |value: Value<'_>| if let Value::Text(bytes) = value { Some(String::from_utf8_lossy(bytes).into_owned()) } else { None };
    list.iter().map(one).collect::<Option<_>>().map(Some).ok_or_else(|| format!("its {key} is no list of texts; download it again"))
}

/// A list of `count` numbers.
fn numbers(metadata: &Metadata<'_>, key: &str, count: usize) -> Result<Option<Vec<f64>>, String> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let list: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(|value| value.as_f64()).collect());
    match list.filter(|list| list.len() == count) {
        Some(list) => Ok(Some(list)),
        None => Err(format!("its {key} is no list of {count} numbers, one a token; download it again")),
    }
}
