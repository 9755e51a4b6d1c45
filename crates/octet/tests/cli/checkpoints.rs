//! Checkpoints that are damaged, incomplete, of an unknown kind or not what they claim.

use crate::sandbox::Sandbox;
use serde_json::{Value, json};
use std::fs;

const WEIGHTS: &str = "tiny/model.safetensors";
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const NORM: &str = "model.layers.2.input_layernorm.weight";

/// A safetensors file taken apart.
struct Weights {
    header: Value,
    data: Vec<u8>,
}

impl Weights {
    fn read(sandbox: &Sandbox) -> Self {
        let bytes = fs::read(sandbox.path(WEIGHTS)).unwrap();
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    fn write(&self, sandbox: &Sandbox) {
        let header = serde_json::to_vec(&self.header).unwrap();
        let length = (header.len() as u64).to_le_bytes();
        sandbox.write(WEIGHTS, [&length[..], &header, &self.data].concat());
    }

    /// Puts `value` at some places of an F32 tensor.
    fn poison(&mut self, name: &str, places: &[usize], value: f32) {
        let start = self.header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        for place in places {
            self.data[start + 4 * place..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// A sandbox whose small model has another header.
fn with_header(change: impl FnOnce(&mut Value)) -> Sandbox {
    let sandbox = Sandbox::new();
    let mut weights = Weights::read(&sandbox);
    change(&mut weights.header);
    weights.write(&sandbox);
    sandbox
}

/// A sandbox whose small model has another config.
fn with_config(change: impl FnOnce(&mut Value)) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.edit_json("tiny/config.json", change);
    sandbox
}

/// Every command that opens a model refuses it alike.
#[track_caller]
fn all_refuse(sandbox: &Sandbox, says: &[&str]) {
    for command in ["quantize tiny", "quantize tiny out --scheme w4a16-g32 --no-judge", "inspect tiny", "run tiny hello", "eval tiny"] {
        sandbox.refuses(command, says);
    }
}

#[test]
fn truncated_weights() {
    let sandbox = Sandbox::new();
    let whole = fs::read(sandbox.path(WEIGHTS)).unwrap();
    sandbox.write(WEIGHTS, &whole[..whole.len() / 2]);
    all_refuse(&sandbox, &["model.safetensors", "cut short", "download it again"]);
    sandbox.write(WEIGHTS, &whole[..100]);
    sandbox.refuses("quantize tiny", &["model.safetensors", "100", "cut short", "download it again"]);
    for short in [&whole[..4], &[]] {
        sandbox.write(WEIGHTS, short);
        sandbox.refuses("quantize tiny", &["model.safetensors", "download it again"]);
    }
}

#[test]
fn lying_header_length() {
    let sandbox = Sandbox::new();
    let whole = fs::read(sandbox.path(WEIGHTS)).unwrap();
    for (claim, says) in [(u64::MAX, "not a safetensors file"), (1 << 26, "cut short"), (0, "download"), (17, "download the file again")] {
        sandbox.write(WEIGHTS, [&claim.to_le_bytes()[..], &whole[8..]].concat());
        sandbox.refuses("quantize tiny", &["model.safetensors is not a sound safetensors file", says]);
    }
    sandbox.write(WEIGHTS, [&9u64.to_le_bytes()[..], b"{\"a\": [1]"].concat());
    sandbox.refuses("quantize tiny", &["model.safetensors is not a sound safetensors file", "JSON", "download the file again"]);
}

#[test]
fn lying_offsets() {
    let beyond = with_header(|h| {
        let last =
            h.as_object_mut().unwrap().values_mut().filter(|t| t["data_offsets"].is_array()).max_by_key(|t| t["data_offsets"][1].as_u64());
        let last = last.unwrap();
        let start = last["data_offsets"][0].as_u64().unwrap();
        (last["shape"], last["data_offsets"]) = (json!([1_000_000]), json!([start, start + 4_000_000]));
    });
    all_refuse(&beyond, &["model.safetensors", "the file has", "cut short", "download it again"]);
    let swapped = with_header(|h| h[DOWN]["data_offsets"].as_array_mut().unwrap().reverse());
    swapped.refuses("quantize tiny", &[DOWN, "model.safetensors"]);
    let overlapping = with_header(|h| h[NORM]["data_offsets"] = json!([0, 256]));
    overlapping.refuses("quantize tiny", &["model.safetensors", "overlap"]);
    let negative = with_header(|h| h[NORM]["data_offsets"] = json!([-256, 0]));
    negative.refuses("quantize tiny", &["model.safetensors", "download the file again"]);
}

#[test]
fn lying_dtype_or_shape() {
    let unknown = with_header(|h| h[DOWN]["dtype"] = json!("I3"));
    all_refuse(&unknown, &[DOWN, "\"I3\"", "F32 F16 BF16"]);
    let narrow = with_header(|h| h[DOWN]["dtype"] = json!("F16"));
    narrow.refuses("quantize tiny", &[DOWN, "40960 bytes", "download the file again"]);
    let other = with_header(|h| h[DOWN]["shape"] = json!([64, 161]));
    other.refuses("quantize tiny", &[DOWN, "[64, 161]", "40960 bytes"]);
    let huge = with_header(|h| h[DOWN]["shape"] = json!([u64::MAX, u64::MAX]));
    huge.refuses("quantize tiny", &[DOWN, "model.safetensors"]);
    let integers = with_header(|h| h[DOWN]["dtype"] = json!("I32"));
    integers.refuses("quantize tiny", &[DOWN, "I32", "expected"]);
}

#[test]
fn tensor_of_the_wrong_shape() {
    let turned = with_header(|h| h[DOWN]["shape"] = json!([160, 64]));
    all_refuse(&turned, &[DOWN, "[160, 64]", "[64, 160]", "config"]);
    let norm = with_header(|h| h[NORM]["shape"] = json!([8, 8]));
    for command in ["quantize tiny", "quantize tiny --no-judge", "quantize tiny --dry-run"] {
        norm.refuses(command, &[NORM, "[8, 8]", "[64]"]);
    }
    let config = with_config(|c| c["intermediate_size"] = json!(128));
    config.refuses("quantize tiny", &["gate_proj.weight", "[160, 64]", "[128, 64]", "config"]);
}

#[test]
fn missing_and_surplus_tensors() {
    let missing = with_header(|h| {
        let tensor = h.as_object_mut().unwrap().remove(DOWN).unwrap();
        h["model.layers.1.mlp.down_proj.wait"] = tensor;
    });
    all_refuse(&missing, &[DOWN, "missing"]);
    // A bias that the config does not speak of would be dropped in silence.
    let surplus = with_header(|h| {
        let tensor = h.as_object_mut().unwrap().remove(NORM).unwrap();
        h["model.layers.2.mlp.down_proj.bias"] = tensor;
        h["model.layers.2.input_layernorm.weight"] = json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] });
    });
    surplus.refuses("quantize tiny --no-judge", &["model.layers.2."]);
}

#[test]
fn missing_shard() {
    let sandbox = Sandbox::new();
    let weights = Weights::read(&sandbox);
    let names = weights.header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let shard = |name: &String| if name == NORM { "model-00002-of-00002.safetensors" } else { "model-00001-of-00002.safetensors" };
    let map: serde_json::Map<_, _> = names.map(|name| (name.clone(), json!(shard(name)))).collect();
    fs::rename(sandbox.path(WEIGHTS), sandbox.path("tiny/model-00001-of-00002.safetensors")).unwrap();
    let index = "tiny/model.safetensors.index.json";
    sandbox.write(index, serde_json::to_vec(&json!({ "metadata": {}, "weight_map": map })).unwrap());
    all_refuse(&sandbox, &["model-00002-of-00002.safetensors", "download the missing shards"]);

    fs::copy(sandbox.path("tiny/model-00001-of-00002.safetensors"), sandbox.path("tiny/model-00002-of-00002.safetensors")).unwrap();
    sandbox.refuses("quantize tiny", &["is in both", "model-00001-of-00002.safetensors", "remove"]);

    sandbox.edit_json(index, |i| {
        i["weight_map"].as_object_mut().unwrap().retain(|name, _| name != NORM);
        i["weight_map"]["model.layers.9.ghost.weight"] = json!("model-00001-of-00002.safetensors");
    });
    fs::remove_file(sandbox.path("tiny/model-00002-of-00002.safetensors")).unwrap();
    sandbox.refuses("quantize tiny", &["model.layers.9.ghost.weight", "download them again"]);
    sandbox.write(index, "{");
    sandbox.refuses("quantize tiny", &["model.safetensors.index.json", "download it again"]);
    sandbox.write(index, json!({ "weight_map": { "x": "../elsewhere.safetensors" } }).to_string());
    sandbox.refuses("quantize tiny", &["../elsewhere.safetensors", "plain file name"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (value, places) in [(f32::NAN, &[7][..]), (f32::INFINITY, &[0, 9_999, 10_000]), (f32::NEG_INFINITY, &[4_000, 4_001])] {
        let sandbox = Sandbox::new();
        let mut weights = Weights::read(&sandbox);
        weights.poison(DOWN, places, value);
        weights.write(&sandbox);
        let count = places.len().to_string();
        sandbox.write("notes.txt", crate::sandbox::prose(6_000, 1));
        sandbox.write("judge.txt", crate::sandbox::prose(6_000, 2));
        let calibrated = "quantize tiny --scheme w4a16-g32 --calibration notes.txt --eval-text judge.txt";
        for command in ["quantize tiny --preset w8", "quantize tiny --no-judge", calibrated] {
            sandbox.refuses(command, &["model.layers.1.mlp.down_proj", &count, "NaN", "checkpoint is damaged"]);
        }
    }
    // A tensor that is only copied is looked at as well.
    let sandbox = Sandbox::new();
    let mut weights = Weights::read(&sandbox);
    weights.poison(NORM, &[3, 4], f32::NAN);
    weights.write(&sandbox);
    sandbox.refuses("quantize tiny --no-judge", &[NORM, "2", "64", "NaN"]);
    sandbox.refuses("quantize tiny --preset w8", &[NORM, "2", "64", "NaN"]);
    // Calibration runs the model before the tensor is copied.
    sandbox.write("notes.txt", crate::sandbox::prose(6_000, 1));
    sandbox.write("judge.txt", crate::sandbox::prose(6_000, 2));
    let calibrated = "quantize tiny --scheme w4a16-g32 --calibration notes.txt --eval-text judge.txt";
    sandbox.refuses(calibrated, &["layer 2", "not finite", "octet inspect --check"]);
    sandbox.refuses("run tiny hello", &["not finite", "octet inspect --check"]);
    sandbox.refuses("eval tiny", &["not finite", "octet inspect --check"]);
    sandbox.refuses("inspect tiny --check", &["not finite", NORM, "(2)", "checkpoint is damaged"]);
}

#[test]
fn unknown_model_type() {
    all_refuse(&with_config(|c| c["model_type"] = json!("mamba9")), &["\"mamba9\"", "not supported", "qwen3", "llama"]);
    with_config(|c| drop(c.as_object_mut().unwrap().remove("model_type"))).refuses("quantize tiny", &["model_type", "config.json"]);
}

#[test]
fn unknown_rope_type() {
    let spiral = with_config(|c| c["rope_parameters"]["rope_type"] = json!("spiral"));
    all_refuse(&spiral, &["\"spiral\"", "yarn", "llama3"]);
    let old_style = with_config(|c| {
        c.as_object_mut().unwrap().remove("rope_parameters");
        c["rope_theta"] = json!(10_000.0);
        c["rope_scaling"] = json!({ "type": "spiral", "factor": 2.0 });
    });
    old_style.refuses("quantize tiny", &["\"spiral\"", "yarn"]);
}

#[test]
fn a_config_key_that_changes_the_maths() {
    let capped = with_config(|c| c["attn_logit_softcapping"] = json!(50.0));
    all_refuse(&capped, &["attn_logit_softcapping = 50.0", "not understood", "remove the key"]);
    with_config(|c| c["brand_new_mixing"] = json!("on")).refuses("quantize tiny", &["brand_new_mixing", "not understood"]);
    with_config(|c| c["hidden_act"] = json!("softplus")).refuses("quantize tiny", &["hidden_act", "softplus", "silu"]);
    with_config(|c| c["rope_parameters"]["twist"] = json!(3)).refuses("quantize tiny", &["twist", "not understood"]);
}

#[test]
fn configs_that_make_no_sense() {
    with_config(|c| c["hidden_size"] = json!("sixty-four")).refuses("quantize tiny", &["hidden_size", "sixty-four", "expected"]);
    with_config(|c| c["num_attention_heads"] = json!(0)).refuses("quantize tiny", &["num_attention_heads", "0", "expected"]);
    with_config(|c| c["num_key_value_heads"] = json!(3)).refuses("quantize tiny", &["num_key_value_heads", "3"]);
    with_config(|c| c["num_hidden_layers"] = json!(1u64 << 60)).refuses("quantize tiny", &["num_hidden_layers"]);
    with_config(|c| *c = json!([1, 2])).refuses("quantize tiny", &["config.json", "object"]);
    let sandbox = Sandbox::new();
    sandbox.write("tiny/config.json", "{\"model_type\": ");
    sandbox.refuses("quantize tiny", &["config.json", "download it again"]);
}

#[test]
fn files_that_are_missing() {
    let sandbox = Sandbox::new();
    for (name, remedy) in [("config.json", "config.json"), ("model.safetensors", "safetensors"), ("tokenizer.json", "tokenizer.json")] {
        let away = sandbox.path("away");
        fs::rename(sandbox.path("tiny").join(name), &away).unwrap();
        sandbox.refuses("quantize tiny", &["tiny has no", remedy, ";"]);
        sandbox.refuses("run tiny hello", &["tiny has no", remedy, ";"]);
        fs::rename(&away, sandbox.path("tiny").join(name)).unwrap();
    }
    fs::create_dir(sandbox.path("hollow")).unwrap();
    sandbox.refuses("quantize hollow", &["hollow has no config.json", ";"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let sandbox = Sandbox::new();
    sandbox.edit_json("tiny/tokenizer.json", |t| t["model"]["vocab"]["straw"] = json!(320));
    for command in ["quantize tiny", "run tiny hello", "eval tiny"] {
        sandbox.refuses(command, &["\"straw\"", "id 320", "320 rows", "tokenizer and weights do not belong together"]);
    }
    sandbox.write("tiny/tokenizer.json", "{}");
    sandbox.refuses("quantize tiny", &["tokenizer.json", "download it again"]);
}

#[test]
fn models_that_are_already_quantized() {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny out --no-judge").done();
    sandbox.refuses("quantize out", &["out is already quantized (w8a16", "quantize the original"]);
    let gptq = with_config(|c| c["quantization_config"] = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 }));
    gptq.refuses("quantize tiny", &["quant_method", "gptq", "no tensor"]);
}

#[test]
fn names_that_lead_nowhere() {
    let sandbox = Sandbox::new();
    sandbox.refuses("quantize model.gguf", &["no folder model.gguf", "a .gguf file"]);
    sandbox.write("real.gguf", "GGUF");
    sandbox.refuses("run real.gguf hello", &["real.gguf", "not a readable GGUF file", "cut short"]);
    sandbox.refuses("quantize some-org/some-model", &["some-org/some-model", "Hugging Face cache", "hf download some-org/some-model"]);
    sandbox.refuses("quantize nowhere", &["no folder nowhere", "pocket"]);
    sandbox.refuses("quantize tiny/config.json", &["tiny/config.json is a file", "give the folder"]);
}
