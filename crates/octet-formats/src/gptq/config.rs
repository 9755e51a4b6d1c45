//! GPTQ's `quantization_config`.

use crate::{
    Error, Result,
    quantization::{bad, number},
};
use octet_tensor::Bits;
use serde_json::Value;
use std::num::NonZeroUsize;

/// What a GPTQ config says of all modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Width of a code.
    pub bits: Bits,
    /// Inputs of a group; `None`: all of them.
    pub group: Option<NonZeroUsize>,
    /// Whether every zero point is the middle of the codes.
    pub symmetric: bool,
    /// What is added to a stored zero point: 1 in format 1, 0 in format 2.
    pub zero_offset: u32,
}

impl Config {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// If a key is missing or makes no sense, or the layout is one of a GPU's kernels.
    pub fn read(raw: &Value) -> Result<Self> {
        let zero_offset = match raw.get("checkpoint_format").or(raw.get("format")).and_then(Value::as_str) {
            None | Some("gptq") => 1,
            Some("gptq_v2") => 0,
            Some(other) => {
                let what = format!("its checkpoint_format {other:?} is the layout of a GPU's kernels; save it as gptq or gptq_v2");
                return Err(Error::UnsupportedQuantization { method: "gptq".into(), what });
            }
        };
        // Overrides of single modules may say otherwise, and then every module's own zero points are used.
        let overridden = raw.get("dynamic").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
        let symmetric = raw.get("sym").and_then(Value::as_bool).unwrap_or(true) && !overridden;
        Ok(Self { bits: bits(raw, "bits")?, group: group(raw, "group_size")?, symmetric, zero_offset })
    }
}

/// A width of codes.
pub(crate) fn bits(raw: &Value, key: &str) -> Result<Bits> {
    let found = number(raw, key)?;
    match u32::try_from(found).ok().and_then(Bits::new) {
        Some(bits) => Ok(bits),
        None => bad(key, format!("is {found}, expected 2 to 8")),
    }
}

/// A group size, −1 for none.
pub(crate) fn group(raw: &Value, key: &str) -> Result<Option<NonZeroUsize>> {
    match number(raw, key)? {
        -1 => Ok(None),
        size => match usize::try_from(size).ok().and_then(NonZeroUsize::new) {
            Some(size) => Ok(Some(size)),
            None => bad(key, format!("is {size}, expected a positive number or -1")),
        },
    }
}
