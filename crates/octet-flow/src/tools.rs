//! What agents call: typed functions with JSON in and out, and the schemas of both.

mod schema;
mod work;

pub use schema::{Schema, schemas};
pub use work::{Resolve, Tools};

use octet_eval::Report;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Asks for a quantized model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeModel {
    /// The original.
    pub checkpoint_path: String,
    /// The folder to write; it must not exist.
    pub output_path: String,
    /// A scheme such as `w4a16-g32`, or `int8`, `int8_dynamic`, `int4`.
    pub quant_type: String,
    /// Text to calibrate on (plain, .jsonl, or .bin token ids); needed below 8 bits where there is no built-in text.
    #[serde(default)]
    pub calibration_dataset: Option<String>,
    /// Seed of everything drawn at random.
    #[serde(default)]
    pub seed: u64,
}

/// What became of it. Nothing was judged: `validate_quantization` does that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedModel {
    /// The folder.
    pub output_path: String,
    /// The scheme in full.
    pub scheme: String,
    /// `rtn` or `gptq`.
    pub method: String,
    /// Bytes of the folder.
    pub bytes: u64,
    /// Bits a weight of the quantized matrices, scales included.
    pub bits_per_weight: f64,
    /// The worst relative squared error of a matrix, and which.
    pub worst_tensor: Option<(String, f64)>,
    /// Tokens of calibration; 0 without.
    pub calibration_tokens: usize,
    /// The receipt's own digest.
    pub receipt_sha256: String,
}

/// Asks for a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidateQuantization {
    /// The original.
    pub original_path: String,
    /// The variant.
    pub quantized_path: String,
    /// Text to judge on, of which nothing was calibrated on.
    #[serde(default)]
    pub test_dataset: Option<String>,
    /// Largest accepted increase of perplexity in percent.
    #[serde(default = "two")]
    pub max_ppl_increase: f64,
    /// Tokens to judge on at most.
    #[serde(default = "many")]
    pub max_tokens: usize,
}

fn two() -> f64 {
    2.0
}

fn many() -> usize {
    102_400
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Whether every gate passed.
    pub accepted: bool,
    /// The verdict in a sentence.
    pub summary: String,
    /// The Trinity Score.
    pub trinity_score: f64,
    /// The risk.
    pub risk: f64,
    /// Everything it rests on.
    pub report: Report,
}

/// Asks for the texts of both models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareOutputs {
    /// The original.
    pub original_model: String,
    /// The variant.
    pub quantized_model: String,
    /// What both continue.
    pub prompts: Vec<String>,
    /// Tokens to write at most, each.
    #[serde(default = "some")]
    pub max_tokens: usize,
}

fn some() -> usize {
    64
}

/// The texts of both models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// One for each prompt.
    pub outputs: Vec<ComparedOutput>,
    /// Share of the prompts that both continue alike.
    pub identical: f64,
}

/// One prompt continued by both, greedily.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedOutput {
    /// The prompt.
    pub prompt: String,
    /// What the original writes.
    pub original: String,
    /// What the variant writes.
    pub quantized: String,
    /// Tokens that both begin with alike.
    pub same_tokens: usize,
    /// Byte at which the texts part; `null` where they are equal.
    pub parts_at: Option<usize>,
}

/// Names of the tools.
pub const NAMES: [&str; 3] = ["quantize_model", "validate_quantization", "compare_outputs"];

impl Tools<'_> {
    /// Calls a tool by name, with JSON in and out.
    ///
    /// # Errors
    /// If there is no such tool, the request is not as its schema says, or as the tool.
    pub fn call(&self, name: &str, request: Value) -> crate::Result<Value> {
        let answer = match name {
            "quantize_model" => to_value(self.quantize_model(&parse(name, request)?)?),
            "validate_quantization" => to_value(self.validate_quantization(&parse(name, request)?)?),
            "compare_outputs" => to_value(self.compare_outputs(&parse(name, request)?)?),
            _ => return Err(crate::Error::Request(format!("there is no tool {name}; there are {}", NAMES.join(", ")))),
        };
        answer.map_err(|e| crate::Error::Internal(e.to_string()))
    }
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, request: Value) -> crate::Result<T> {
    serde_json::from_value(request).map_err(|e| crate::Error::Request(format!("{name}: {e}; octet schema {name} says what it takes")))
}

fn to_value(value: impl Serialize) -> serde_json::Result<Value> {
    serde_json::to_value(value)
}
