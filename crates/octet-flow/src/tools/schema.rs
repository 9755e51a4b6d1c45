//! JSON Schemas (draft 2020-12) of what the tools take and give.

use super::NAMES;
use serde_json::{Value, json};

/// One tool as an agent sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
    /// What it takes.
    pub input: Value,
    /// What it gives.
    pub output: Value,
}

impl Schema {
    /// As the protocols of agents want it.
    pub fn document(&self) -> Value {
        json!({ "name": self.name, "description": self.description, "inputSchema": self.input, "outputSchema": self.output })
    }
}

/// The tools.
pub fn schemas() -> [Schema; 3] {
    [
        Schema {
            name: NAMES[0],
            description: "Quantizes a checkpoint into a new folder and writes a receipt; judges nothing.",
            input: object(
                &["checkpoint_path", "output_path", "quant_type"],
                json!({
                    "checkpoint_path": text("A checkpoint folder, or a name that octet resolves"),
                    "output_path": text("The folder to write; it must not exist"),
                    "quant_type": text("A scheme such as w4a16-g32, or int8, int8_dynamic, int4"),
                    "calibration_dataset": optional("Text to calibrate on: plain text, .jsonl or .bin token ids"),
                    "seed": { "type": "integer", "minimum": 0, "default": 0 },
                }),
            ),
            output: object(
                &["output_path", "scheme", "method", "bytes", "bits_per_weight", "worst_tensor", "calibration_tokens", "receipt_sha256"],
                json!({
                    "output_path": text("The folder"),
                    "scheme": text("The scheme in full"),
                    "method": text("What chose the codes"),
                    "bytes": { "type": "integer" },
                    "bits_per_weight": { "type": "number" },
                    "worst_tensor": { "type": ["array", "null"], "description": "Name and relative squared error" },
                    "calibration_tokens": { "type": "integer" },
                    "receipt_sha256": text("The receipt's own digest"),
                }),
            ),
        },
        Schema {
            name: NAMES[1],
            description: "Judges a quantized model against its original on this machine: quality, size, speed, text health, integrity.",
            input: object(
                &["original_path", "quantized_path"],
                json!({
                    "original_path": text("The original"),
                    "quantized_path": text("The quantized model"),
                    "test_dataset": optional("Text to judge on, of which nothing was calibrated on"),
                    "max_ppl_increase": { "type": "number", "default": 2.0, "description": "Percent" },
                    "max_tokens": { "type": "integer", "minimum": 2, "default": 102_400 },
                }),
            ),
            output: object(
                &["accepted", "summary", "trinity_score", "risk", "report"],
                json!({
                    "accepted": { "type": "boolean" },
                    "summary": text("The verdict in a sentence"),
                    "trinity_score": { "type": "number", "minimum": 0, "maximum": 100 },
                    "risk": { "type": "number", "minimum": 0, "maximum": 100 },
                    "report": { "type": "object", "description": "As validation_report.json" },
                }),
            ),
        },
        Schema {
            name: NAMES[2],
            description: "Lets both models continue the same prompts greedily and says where they part.",
            input: object(
                &["original_model", "quantized_model", "prompts"],
                json!({
                    "original_model": text("The original"),
                    "quantized_model": text("The quantized model"),
                    "prompts": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
                    "max_tokens": { "type": "integer", "minimum": 1, "default": 64 },
                }),
            ),
            output: object(
                &["outputs", "identical"],
                json!({
                    "outputs": { "type": "array", "items": object(
                        &["prompt", "original", "quantized", "same_tokens", "parts_at"],
                        json!({
                            "prompt": text("The prompt"),
                            "original": text("What the original writes"),
                            "quantized": text("What the quantized model writes"),
                            "same_tokens": { "type": "integer" },
                            "parts_at": { "type": ["integer", "null"], "description": "Byte at which the texts part" },
                        }),
                    ) },
                    "identical": { "type": "number", "minimum": 0, "maximum": 1 },
                }),
            ),
        },
    ]
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn optional(description: &str) -> Value {
    json!({ "type": ["string", "null"], "description": description })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{CompareOutputs, Compared, ComparedOutput, QuantizeModel, QuantizedModel, ValidateQuantization};
    use std::collections::BTreeSet;

    fn keys(value: &Value) -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    /// What is required, with values of the right kind.
    fn least(schema: &Value) -> Value {
        let value = |name: &Value| {
            let property = &schema["properties"][name.as_str().unwrap()];
            let kind = property["type"].as_str().unwrap_or("null");
            let value = match kind {
                "string" => json!("x"),
                "array" => json!(["x"]),
                _ => Value::Null,
            };
            (name.as_str().unwrap().to_string(), value)
        };
        Value::Object(schema["required"].as_array().unwrap().iter().map(value).collect())
    }

    #[test]
    fn schemas_say_what_the_types_take_and_give() {
        let [quantize, validate, compare] = schemas();
        let request: QuantizeModel = serde_json::from_value(least(&quantize.input)).unwrap();
        assert_eq!(keys(&serde_json::to_value(request).unwrap()), keys(&quantize.input["properties"]));
        let request: ValidateQuantization = serde_json::from_value(least(&validate.input)).unwrap();
        assert_eq!((request.max_ppl_increase, request.max_tokens), (2.0, 102_400));
        assert_eq!(keys(&serde_json::to_value(request).unwrap()), keys(&validate.input["properties"]));
        let request: CompareOutputs = serde_json::from_value(least(&compare.input)).unwrap();
        assert_eq!(keys(&serde_json::to_value(request).unwrap()), keys(&compare.input["properties"]));
        let output =
            ComparedOutput { prompt: String::new(), original: String::new(), quantized: String::new(), same_tokens: 0, parts_at: None };
        assert_eq!(keys(&serde_json::to_value(&output).unwrap()), keys(&compare.output["properties"]["outputs"]["items"]["properties"]));
        assert_eq!(
            keys(&serde_json::to_value(Compared { outputs: vec![output], identical: 1.0 }).unwrap()),
            keys(&compare.output["properties"])
        );
        let made = QuantizedModel {
            output_path: String::new(),
            scheme: String::new(),
            method: String::new(),
            bytes: 0,
            bits_per_weight: 0.0,
            worst_tensor: None,
            calibration_tokens: 0,
            receipt_sha256: String::new(),
        };
        assert_eq!(keys(&serde_json::to_value(made).unwrap()), keys(&quantize.output["properties"]));
        assert!(
            serde_json::from_value::<QuantizeModel>(json!({ "checkpoint_path": "a", "output_path": "b", "quant_type": "c", "typo": 1 }))
                .is_err()
        );
    }
}
