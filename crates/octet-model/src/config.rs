//! Reading config.json so that no key goes unnoticed.
//!
//! A [`Reader`] remembers which keys were asked for. What was never asked for is not understood, and is refused by
//! name unless it is known to change nothing.

use crate::error::ConfigError;
use serde_json::{Map, Value};
use std::{cell::RefCell, collections::BTreeSet};

/// Keys that no family reads and that do not change what a model computes.
const HARMLESS: &[&str] = &[
    // Who made the file, and for which software.
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "_name_or_path",
    "tokenizer_class",
    "torch_dtype",
    "dtype",
    "use_bfloat16",
    "torchscript",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    "is_llama_config",
    "_commit_hash",
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "cache_implementation",
    "use_cache",
    "pretraining_tp",
    "hybrid_kernel",
    "n_ctx",
    "max_sequence_length",
    "reorder_and_upcast_attn",
    // How weights are stored: the reader of the checkpoint looks at these.
    "quantization_config",
    "quantization",
    "compression_config",
    // Special tokens and generation settings: the tokenizer and the sampler look at these.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "prefix",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "do_sample",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "max_length",
    "min_length",
    "max_new_tokens",
    "repetition_penalty",
    "length_penalty",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "early_stopping",
    "remove_invalid_values",
    "generation_config",
    // Training only.
    "initializer_range",
    "initializer_factor",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "router_aux_loss_coef",
    "output_router_logits",
    "gradient_checkpointing",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "problem_type",
    "id2label",
    "label2id",
    "num_labels",
    "_num_labels",
    "task_specific_params",
    "finetuning_task",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "pruned_heads",
    // What a call returns, and encoder-decoder plumbing.
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "is_decoder",
    "cross_attention_hidden_size",
];

/// Switches that change nothing at the one value given here.
const INERT: &[(&str, f64)] = &[
    ("attention_bias", 0.0),
    ("mlp_bias", 0.0),
    ("qkv_bias", 0.0),
    ("lm_head_bias", 0.0),
    ("rope_interleaved", 0.0),
    ("add_cross_attention", 0.0),
    ("is_encoder_decoder", 0.0),
    ("tie_encoder_decoder", 0.0),
    ("use_bidirectional_attention", 0.0),
    ("use_sliding_window", 0.0),
    ("use_mrope", 0.0),
    ("partial_rotary_factor", 1.0),
    ("full_attn_mod", 1.0),
    ("interpolate_factor", 1.0),
];

/// Largest value a dimension may have; keeps a hostile config from asking for absurd memory.
const LARGEST: u64 = 1 << 24;

/// What a key holds: absent and null mean different things to some families.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Key<T> {
    Absent,
    Null,
    Is(T),
}

impl<T> Key<T> {
    /// The value, if there is one.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value, `None` for null, `default` when absent.
    pub(crate) fn or_absent(self, default: Option<T>) -> Option<T> {
        match self {
            Self::Absent => default,
            Self::Null => None,
            Self::Is(value) => Some(value),
        }
    }
}

/// A JSON object read key by key.
pub(crate) struct Reader<'a> {
    map: &'a Map<String, Value>,
    family: &'static str,
    aliases: &'static [(&'static str, &'static [&'static str])],
    path: String,
    used: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Reader<'a> {
    /// A reader of `map` for `family`; `aliases` gives, for a key, the names the family spells it with instead.
    pub(crate) fn new(
        map: &'a Map<String, Value>,
        family: &'static str,
        aliases: &'static [(&'static str, &'static [&'static str])],
    ) -> Self {
        Self { map, family, aliases, path: String::new(), used: RefCell::default() }
    }

    /// A reader of the object at `key`; `None` where the key is absent, null or an empty object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Reader<'a>>, ConfigError> {
        let Some(value) = self.raw(key)?.value() else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.bad(key, "an object", value))?;
        let path = format!("{}{key}.", self.path);
        Ok((!map.is_empty()).then(|| Reader { map, family: self.family, aliases: &[], path, used: RefCell::default() }))
    }

    /// Whether `key` holds an object (marks nothing as read).
    pub(crate) fn holds_object(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_object)
    }

    /// The value of `key` under whichever of its names is there.
    pub(crate) fn raw(&self, key: &str) -> Result<Key<&'a Value>, ConfigError> {
        let names = self.aliases.iter().find(|(canonical, _)| *canonical == key).map(|(_, names)| *names);
        let mut found = Key::Absent;
        for name in names.unwrap_or(&[key]) {
            let Some((name, value)) = self.map.get_key_value(*name) else { continue };
            self.used.borrow_mut().insert(name);
            match found {
                Key::Is(first) if !value.is_null() && value != first => {
                    return Err(self.bad(name, &format!("the same as its other name ({first})"), value));
                }
                Key::Is(_) => {}
                _ if value.is_null() => found = Key::Null,
                _ => found = Key::Is(value),
            }
        }
        Ok(found)
    }

    /// A number between 1 and 2^24 (a dimension, a count).
    pub(crate) fn count(&self, key: &str) -> Result<Key<usize>, ConfigError> {
        self.number_with(key, "a whole number from 1 to 16777216", |v| v.as_u64().filter(|n| (1..=LARGEST).contains(n)).map(|n| n as usize))
    }

    /// A number between 0 and 2^24.
    pub(crate) fn count_or_zero(&self, key: &str) -> Result<Key<usize>, ConfigError> {
        self.number_with(key, "a whole number from 0 to 16777216", |v| v.as_u64().filter(|&n| n <= LARGEST).map(|n| n as usize))
    }

    /// A number above zero.
    pub(crate) fn positive(&self, key: &str) -> Result<Key<f64>, ConfigError> {
        self.number_with(key, "a number above 0", |v| v.as_f64().filter(|&n| n > 0.0 && n.is_finite()))
    }

    /// True or false, `default` when absent or null.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.number_with(key, "true or false", Value::as_bool)?.value().unwrap_or(default))
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Key<&'a str>, ConfigError> {
        self.number_with(key, "a text", Value::as_str)
    }

    /// A list, each element read by `element`; `expected` says what the elements are.
    pub(crate) fn list<T>(
        &self,
        key: &str,
        expected: &str,
        element: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.number_with(key, expected, |v| v.as_array()?.iter().map(&element).collect()).map(Key::value)
    }

    /// A count without which nothing works.
    pub(crate) fn required(&self, key: &str) -> Result<usize, ConfigError> {
        self.count(key)?.value().ok_or_else(|| self.missing(key))
    }

    /// The error of `key` being absent.
    pub(crate) fn missing(&self, key: &str) -> ConfigError {
        let name = self.aliases.iter().find(|(canonical, _)| *canonical == key).map_or(key, |(_, names)| names[0]);
        ConfigError::Missing { key: format!("{}{name}", self.path), family: self.family.into() }
    }

    /// The error of `key` holding something else than `expected`.
    pub(crate) fn bad(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        ConfigError::Value { key: format!("{}{key}", self.path), expected: expected.into(), found: shorten(found) }
    }

    /// As [`Reader::bad`], with the value looked up.
    pub(crate) fn bad_key(&self, key: &str, expected: &str) -> ConfigError {
        self.bad(key, expected, self.map.get(key).unwrap_or(&Value::Null))
    }

    /// Refuses the first key that nothing has read and that may change the result; `ignored` are keys that the family's
    /// reference implementation does not read either.
    pub(crate) fn finish(&self, ignored: &[&str]) -> Result<(), ConfigError> {
        let used = self.used.borrow();
        for (key, value) in self.map.iter().filter(|(key, value)| !value.is_null() && !used.contains(key.as_str())) {
            let top = self.path.is_empty();
            let harmless = (top && HARMLESS.contains(&key.as_str())) || ignored.contains(&key.as_str()) || is_inert(key, value);
            if !harmless {
                let key = format!("{}{key}", self.path);
                return Err(ConfigError::NotUnderstood { key, found: shorten(value), family: self.family.into() });
            }
        }
        Ok(())
    }

    fn number_with<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Key<T>, ConfigError> {
        Ok(match self.raw(key)? {
            Key::Absent => Key::Absent,
            Key::Null => Key::Null,
            Key::Is(value) => Key::Is(read(value).ok_or_else(|| self.bad(key, expected, value))?),
        })
    }
}

fn is_inert(key: &str, value: &Value) -> bool {
    let number = value.as_f64().or_else(|| value.as_bool().map(|b| f64::from(u8::from(b))));
    INERT.iter().any(|&(name, inert)| name == key && number == Some(inert))
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
}
