//! Configs and checkpoints that must be refused, by name.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use octet_model::{ArchSpec, LoadError, LoadOptions, Model, families::FAMILIES};
use octet_tensor::WeightSource;
use octet_testkit::{MemorySource, Random, TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, arch_fixtures};
use serde_json::{Value, json};
use support::{EXACT, engine, json as read, load, spec, weights};

/// The error of `config` with `key` set to `value`.
fn refused(config: &str, key: &str, value: Value) -> String {
    let mut config: Value = serde_json::from_str(config).unwrap();
    config[key] = value;
    ArchSpec::from_config(&config).unwrap_err().to_string()
}

fn accepted(config: &str, key: &str, value: Value) -> ArchSpec {
    let mut config: Value = serde_json::from_str(config).unwrap();
    config[key] = value;
    ArchSpec::from_config(&config).unwrap()
}

fn has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn unknown_architectures_and_ropes_list_what_exists() {
    has(&refused(TINY_LLAMA, "model_type", json!("mamba")), &["mamba", "llama", "qwen3_moe", "gemma3_text", "gpt2"]);
    has(&refused(TINY_LLAMA, "model_type", json!("gemma3")), &["image", "gemma3_text"]);
    has(&refused(TINY_LLAMA, "rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})), &["dynamic", "linear, llama3, yarn"]);
    has(&refused(TINY_LLAMA, "rope_scaling", json!({"type": "mrope"})), &["mrope"]);
    has(&ArchSpec::from_config(&json!({})).unwrap_err().to_string(), &["model_type"]);
    has(&ArchSpec::from_config(&json!([1])).unwrap_err().to_string(), &["not a JSON object"]);
}

#[test]
fn keys_that_may_change_the_result_are_refused_by_name() {
    has(&refused(TINY_LLAMA, "residual_multiplier", json!(0.22)), &["residual_multiplier = 0.22", "llama"]);
    has(&refused(TINY_LLAMA, "rope_interleaved", json!(true)), &["rope_interleaved"]);
    has(&refused(TINY_LLAMA, "partial_rotary_factor", json!(0.5)), &["partial_rotary_factor"]);
    has(&refused(TINY_GEMMA3, "use_bidirectional_attention", json!(true)), &["use_bidirectional_attention"]);
    has(&refused(TINY_GPT2, "add_cross_attention", json!(true)), &["add_cross_attention"]);
    has(&refused(TINY_GPT2, "rope_theta", json!(1e4)), &["rope_theta"]);
    has(&refused(TINY_LLAMA, "rope_scaling", json!({"type": "linear", "factor": 2.0, "mystery": 3})), &["rope_scaling.mystery"]);
    accepted(TINY_LLAMA, "residual_multiplier", Value::Null);
    accepted(TINY_LLAMA, "rope_interleaved", json!(false));
    accepted(TINY_LLAMA, "rope_scaling", json!({}));
    accepted(TINY_LLAMA, "attention_dropout", json!(0.1));
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    has(&refused(TINY_LLAMA, "num_key_value_heads", json!(3)), &["num_key_value_heads is 3", "divisor of the 4"]);
    has(&refused(TINY_LLAMA, "num_hidden_layers", json!(0)), &["num_hidden_layers"]);
    has(&refused(TINY_LLAMA, "num_hidden_layers", json!(100_000)), &["num_hidden_layers", "1024"]);
    has(&refused(TINY_LLAMA, "hidden_size", json!(-5)), &["hidden_size is -5"]);
    has(&refused(TINY_LLAMA, "vocab_size", json!(1u64 << 60)), &["vocab_size"]);
    has(&refused(TINY_LLAMA, "hidden_act", json!("xielu")), &["hidden_act", "silu"]);
    has(&refused(TINY_LLAMA, "head_dim", json!(7)), &["head_dim", "even"]);
    has(&refused(TINY_GEMMA3, "layer_types", json!(["full_attention"])), &["layer_types", "3 times"]);
    has(&refused(TINY_GEMMA3, "layer_types", json!(["chunked_attention", "x", "y"])), &["layer_types"]);
    has(&refused(TINY_QWEN3_MOE, "num_experts_per_tok", json!(5)), &["num_experts_per_tok"]);
    has(&refused(TINY_QWEN3_MOE, "num_local_experts", json!(6)), &["num_local_experts is 6", "4"]);
    has(&refused(TINY_LLAMA, "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})), &["low_freq_factor"]);
}

#[test]
fn keys_without_a_safe_default_must_be_there() {
    for (config, key) in [
        (TINY_LLAMA, "hidden_size"),
        (TINY_LLAMA, "intermediate_size"),
        (TINY_QWEN3, "head_dim"),
        (TINY_QWEN3, "num_key_value_heads"),
        (TINY_GEMMA3, "head_dim"),
        (TINY_GPT2, "n_embd"),
        (TINY_QWEN3_MOE, "num_experts"),
    ] {
        let mut config: Value = serde_json::from_str(config).unwrap();
        config.as_object_mut().unwrap().remove(key);
        has(&ArchSpec::from_config(&config).unwrap_err().to_string(), &[key]);
    }
}

/// A parser fed with damaged configs answers or refuses; it neither panics nor asks for absurd memory.
#[test]
fn damaged_configs_never_panic() {
    let mut random = Random::new(99);
    let odd = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(1e300),
        json!(0.5),
        json!(u64::MAX),
        json!(""),
        json!("full_attention"),
        json!([]),
        json!([1, "x", null]),
        json!({}),
        json!({"rope_type": "yarn"}),
        json!(16_777_216),
    ];
    for (_, path) in arch_fixtures() {
        let config = read(&path.join("config.json"));
        for _ in 0..300 {
            let mut damaged = config.clone();
            for _ in 0..1 + random.below(3) {
                let map = damaged.as_object_mut().unwrap();
                let key = map.keys().nth(random.below(map.len())).unwrap().clone();
                if key == "model_type" {
                    continue;
                }
                map[&key] = odd[random.below(odd.len())].clone();
                if let (Some(rope), 0) = (config.get("rope_parameters").filter(|r| r.is_object()), random.below(2)) {
                    let mut rope = rope.clone();
                    let inner = rope.as_object().unwrap().keys().nth(random.below(rope.as_object().unwrap().len())).unwrap().clone();
                    rope[&inner] = odd[random.below(odd.len())].clone();
                    map.insert("rope_parameters".into(), rope);
                }
            }
            let _ = ArchSpec::from_config(&damaged);
        }
    }
}

#[test]
fn model_types_are_unique() {
    let mut all: Vec<_> = FAMILIES.iter().flat_map(|f| f.model_types).collect();
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count);
}

fn load_error(config: &str, change: impl FnOnce(&mut MemorySource)) -> String {
    let spec = spec(config);
    let mut source = weights(&spec);
    change(&mut source);
    Model::load(&engine(), spec, &source, EXACT, &mut |_, _| ()).err().unwrap().to_string()
}

#[test]
fn tensors_that_are_missing_misshapen_or_too_many_are_named() {
    let down = "model.layers.1.mlp.down_proj.weight";
    has(&load_error(TINY_LLAMA, |s| drop(s.remove(down))), &[down, "missing"]);
    has(&load_error(TINY_LLAMA, |s| s.insert(down, vec![32, 47], &[0.0; 32 * 47])), &[down, "[32, 48]", "[32, 47]"]);
    let norm = "model.layers.0.input_layernorm.weight";
    has(&load_error(TINY_LLAMA, |s| drop(s.remove(norm))), &[norm, "missing"]);
    has(&load_error(TINY_LLAMA, |s| s.insert(norm, vec![31], &[0.0; 31])), &[norm, "[32]", "[31]"]);
    let fc = "transformer.h.0.mlp.c_fc.weight";
    has(&load_error(TINY_GPT2, |s| s.insert(fc, vec![128, 32], &[0.0; 4096])), &[fc, "[32, 128]", "[128, 32]"]);
    let head = "lm_head.weight";
    has(&load_error(TINY_LLAMA, |s| drop(s.remove(head))), &[head, "missing"]);
    let bias = "model.layers.0.self_attn.q_proj.bias";
    has(&load_error(TINY_LLAMA, |s| s.insert(bias, vec![32], &[0.0; 32])), &[bias, "no use"]);
    let extra = "model.layers.1.self_attn.q_norm.weight";
    has(&load_error(TINY_LLAMA, |s| s.insert(extra, vec![8], &[0.0; 8])), &[extra, "no use"]);
}

#[test]
fn buffers_that_no_pass_reads_are_let_through() {
    let spec = spec(TINY_GPT2);
    let mut source = weights(&spec);
    source.insert("transformer.h.0.attn.bias", vec![1, 1, 2, 2], &[1.0; 4]);
    load(spec, &source, EXACT);
}

#[test]
fn a_longer_context_than_the_models_is_refused() {
    let spec = spec(TINY_LLAMA);
    let source = weights(&spec);
    let options = LoadOptions { context: Some(129), ..EXACT };
    let error = Model::load(&engine(), spec, &source, options, &mut |_, _| ()).err().unwrap();
    assert!(matches!(error, LoadError::Context { asked: 129, context: 128 }), "{error}");
}

#[test]
fn checkpoints_of_the_bare_model_have_no_prefix() {
    for (config, root) in [(TINY_QWEN3, "model."), (TINY_GPT2, "transformer.")] {
        let mut settled = spec(config);
        let source = weights(&settled).renamed(|name| name.strip_prefix(root).unwrap_or(name).into());
        settled.settle(&source).unwrap();
        assert!(settled.linear_sites().iter().all(|site| source.matrix(&site.module).unwrap().is_some()));
        load(spec(config), &source, EXACT);
    }
}

#[test]
fn a_tied_head_with_weights_of_its_own_uses_them() {
    let table = weights(&spec(TINY_QWEN3)).tensor("model.embed_tokens.weight").unwrap().unwrap().to_f32().unwrap();
    for (change, tied) in [(0.0, true), (1.0, false)] {
        let (mut settled, mut source) = (spec(TINY_QWEN3), weights(&spec(TINY_QWEN3)));
        let mut head = table.clone();
        head[77] += change;
        source.insert("lm_head.weight", vec![64, 32], &head);
        settled.settle(&source).unwrap();
        assert_eq!(settled.head().tied, tied);
    }
}
