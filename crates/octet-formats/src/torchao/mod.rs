//! TorchAO checkpoints in safetensors, read: `Int8Tensor` and `IntxUnpackedToInt8Tensor`.
//!
//! For a weight there are `_weight_qdata` (one code a byte, `[outputs, inputs]`), `_weight_scale` and `_weight_zero_point`
//! `[outputs, groups]`: w = scale · (code − zero point). Source: torchao 0.18, checked against checkpoints it made.

mod read;

pub(crate) use read::{layout, matrix};

use crate::Result;
use octet_tensor::{Activations, Bits};
use serde_json::Value;

/// The tensor of a module that holds its codes.
pub(crate) const CODES: &str = "._weight_qdata";

/// What a TorchAO config says of all modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Width of a code (8 where the config does not say or says several things).
    pub bits: Bits,
    /// Whether every zero point is 0.
    pub symmetric: bool,
    /// What activations are at run time.
    pub activations: Activations,
}

impl Config {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// None so far: what a config does not say, tensors do.
    pub fn read(raw: &Value) -> Result<Self> {
        let usual = raw.get("quant_type").and_then(|kinds| kinds.get("default"));
        let kind = usual.and_then(|usual| usual.get("_type")).and_then(Value::as_str).unwrap_or_default();
        let data = usual.and_then(|usual| usual.get("_data"));
        let named = |key: &str| data.and_then(|data| data.get(key)).and_then(|value| value.get("_data")).and_then(Value::as_str);
        let bits = named("weight_dtype").and_then(|name| name.strip_prefix("int")).and_then(|bits| bits.parse().ok()).and_then(Bits::new);
        let symmetric = match named("mapping_type") {
            Some(name) => name == "SYMMETRIC",
            None => matches!(kind, "Int8WeightOnlyConfig" | "Int8DynamicActivationInt8WeightConfig"),
        };
        let dynamic = kind == "Int8DynamicActivationInt8WeightConfig";
        let activations = if dynamic { Activations::Int8PerToken } else { Activations::Exact };
        Ok(Self { bits: bits.unwrap_or(Bits::B8), symmetric, activations })
    }
}
