//! What `adapter_config.json` says.

use crate::{Error, Result};
use regex_lite::Regex;
use serde_json::Value;

/// Keys that change the computation in ways that are not understood here, when they are set to anything.
const UNKNOWN: [&str; 14] = [
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
    "eva_config",
    "corda_config",
];

/// How the rank turns alpha into a factor.
pub(super) struct Config {
    alpha: f64,
    patterns: Vec<(Regex, f64)>,
    by_root: bool,
    pub(super) dora: bool,
    pub(super) inputs_first: bool,
    pub(super) base: Option<String>,
}

pub(super) fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Adapter(what.into()))
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

impl Config {
    /// Reads PEFT's config.
    pub(super) fn read(raw: &Value) -> Result<Self> {
        match raw.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => return refuse(format!("its peft_type is {}, octet reads LORA", other.unwrap_or("missing"))),
        }
        if let Some(key) = UNKNOWN.iter().find(|key| raw.get(**key).is_some_and(is_set)) {
            return refuse(format!("its {key} changes the computation in a way that octet does not run; merge it with PEFT first"));
        }
        // These subtract from the base what they begin with.
        if let Some(init) = raw.get("init_lora_weights").and_then(Value::as_str)
            && ["pissa", "olora", "corda", "lora_ga"].iter().any(|name| init.starts_with(name))
        {
            return refuse(format!("it was begun with {init}, which changes the base too; convert it to a plain LoRA with PEFT first"));
        }
        let Some(alpha) = raw.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite()) else {
            return refuse("its lora_alpha is missing or no number");
        };
        let flag = |key: &str| raw.get(key).and_then(Value::as_bool).unwrap_or(false);
        let patterns = raw.get("alpha_pattern").and_then(Value::as_object).into_iter().flatten();
        let patterns = patterns.map(|(key, value)| pattern(key, value)).collect::<Result<_>>()?;
        let base = raw.get("base_model_name_or_path").and_then(Value::as_str).map(Into::into);
        Ok(Self { alpha, patterns, by_root: flag("use_rslora"), dora: flag("use_dora"), inputs_first: flag("fan_in_fan_out"), base })
    }

    /// The factor of B A of a module.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        let alpha = self.patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.by_root { rank.sqrt() } else { rank }) as f32
    }
}

/// A key of `alpha_pattern` names what a module's path ends with.
fn pattern(key: &str, value: &Value) -> Result<(Regex, f64)> {
    match (Regex::new(&format!("^(?:.*\\.)?(?:{key})$")), value.as_f64()) {
        (Ok(pattern), Some(alpha)) => Ok((pattern, alpha)),
        _ => refuse(format!("its alpha_pattern {key:?}: {value} is not understood")),
    }
}
