//! The small JSON files beside the weights: generation_config.json and tokenizer_config.json.

use crate::{Error, Result, SamplerConfig};
use octet_formats::Folder;
use serde_json::Value;

/// How the checkpoint's makers want text to be generated, from generation_config.json (then config.json).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample; greedy where it is absent or false.
    pub do_sample: bool,
    /// Divides the logits before sampling.
    pub temperature: Option<f32>,
    /// Only this many most likely tokens are considered.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability are considered.
    pub top_p: Option<f32>,
    /// Only tokens at least this share as likely as the likeliest are considered.
    pub min_p: Option<f32>,
    /// Divides (or multiplies, if negative) the logits of tokens that already occurred.
    pub repetition_penalty: Option<f32>,
    /// Tokens that end a text.
    pub eos_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads generation_config.json of `folder`; a folder without one gets the defaults. End-of-sequence ids come from
    /// there, else from `config` (config.json).
    ///
    /// # Errors
    /// If the file is not JSON.
    pub fn open(folder: &Folder, config: &Value) -> Result<Self> {
        let json = read_json(folder, "generation_config.json")?.unwrap_or(Value::Null);
        Ok(Self::from_json(&json, config))
    }

    /// The settings of a parsed generation_config.json and config.json.
    pub fn from_json(json: &Value, config: &Value) -> Self {
        let number = |key: &str| json.get(key).and_then(Value::as_f64);
        let mut eos_ids = ids(json.get("eos_token_id"));
        if eos_ids.is_empty() {
            eos_ids = ids(config.get("eos_token_id"));
        }
        Self {
            do_sample: json.get("do_sample").and_then(Value::as_bool).unwrap_or(false),
            temperature: number("temperature").map(|v| v as f32),
            top_k: json.get("top_k").and_then(Value::as_u64).map(|v| v as usize),
            top_p: number("top_p").map(|v| v as f32),
            min_p: number("min_p").map(|v| v as f32),
            repetition_penalty: number("repetition_penalty").map(|v| v as f32),
            eos_ids,
        }
    }

    /// The sampler these settings ask for.
    pub fn sampler(&self, seed: u64) -> SamplerConfig {
        let penalty = self.repetition_penalty.unwrap_or(1.0);
        if !self.do_sample {
            return SamplerConfig { repetition_penalty: penalty, seed, ..SamplerConfig::greedy() };
        }
        SamplerConfig {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: penalty,
            seed,
        }
    }
}

/// What tokenizer_config.json says about special tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenizerConfig {
    pub(crate) bos_token: Option<String>,
    pub(crate) eos_token: Option<String>,
    pub(crate) add_bos: Option<bool>,
    pub(crate) chat_template: Option<Value>,
}

impl TokenizerConfig {
    pub(crate) fn open(folder: &Folder) -> Result<Self> {
        let json = read_json(folder, "tokenizer_config.json")?.unwrap_or(Value::Null);
        let map = read_json(folder, "special_tokens_map.json")?.unwrap_or(Value::Null);
        let token = |key: &str| token_text(json.get(key)).or_else(|| token_text(map.get(key)));
        Ok(Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            add_bos: json.get("add_bos_token").and_then(Value::as_bool),
            chat_template: json.get("chat_template").filter(|t| !t.is_null()).cloned(),
        })
    }
}

/// Reads and parses a JSON file of the folder; `None` when it is not there.
pub(crate) fn read_json(folder: &Folder, file: &'static str) -> Result<Option<Value>> {
    let Some(bytes) = folder.read(file)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| Error::BadFile { folder: folder.name().into(), file, what: e.to_string() })
}

/// A token is written as its text or as an object with a `content`.
fn token_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) => fields.get("content").and_then(Value::as_str).map(Into::into),
        _ => None,
    }
}

/// An id is written as a number or as a list of numbers.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn greedy_unless_asked_to_sample() {
        let config = json!({"eos_token_id": 7});
        let greedy = GenerationConfig::from_json(&json!({"temperature": 0.6, "top_k": 20}), &config);
        assert_eq!((greedy.sampler(3).temperature, &greedy.eos_ids[..]), (0.0, &[7u32][..]));
        let sampled = GenerationConfig::from_json(&json!({"do_sample": true, "temperature": 0.6, "eos_token_id": [1, 2]}), &config);
        let sampler = sampled.sampler(3);
        assert_eq!((sampler.temperature, sampler.top_k, sampler.seed, sampled.eos_ids), (0.6, 0, 3, vec![1, 2]));
    }

    #[test]
    fn tokens_as_text_or_object() {
        assert_eq!(token_text(Some(&json!("<s>"))).as_deref(), Some("<s>"));
        assert_eq!(token_text(Some(&json!({"content": "</s>", "lstrip": false}))).as_deref(), Some("</s>"));
        assert_eq!(token_text(Some(&Value::Null)), None);
    }
}
