//! Memory: forecasts, budgets, and what a run really takes.

use crate::sandbox::{Ended, Sandbox};
use octet_formats::compressed_tensors;
use octet_tensor::{Dtype, Scheme};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
};

/// Dimensions of a Llama of some size.
#[derive(Clone, Copy)]
struct Llama {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
}

/// Mistral-7B: 7.2 G parameters.
const SEVEN_B: Llama =
    Llama { hidden: 4096, intermediate: 14_336, layers: 32, heads: 32, kv_heads: 8, vocabulary: 32_000, context: 32_768 };

/// Llama-2-7B: 6.7 G parameters, and as many heads of keys and values as of queries.
const ALL_HEADS: Llama =
    Llama { hidden: 4096, intermediate: 11_008, layers: 32, heads: 32, kv_heads: 32, vocabulary: 32_000, context: 4096 };

/// 300 M parameters behind the small model's tokenizer: weights and cache are far larger than the program.
const SMALL: Llama = Llama { hidden: 1024, intermediate: 4096, layers: 18, heads: 16, kv_heads: 16, vocabulary: 512, context: 1024 };

impl Llama {
    /// Every linear with its rows and columns.
    fn linears(&self) -> Vec<(String, usize, usize)> {
        let (h, kv) = (self.hidden, self.hidden / self.heads * self.kv_heads);
        let mut all = vec![("model.embed_tokens".to_string(), self.vocabulary, h), ("lm_head".into(), self.vocabulary, h)];
        for layer in 0..self.layers {
            let block = [
                ("self_attn.q_proj", h, h),
                ("self_attn.k_proj", kv, h),
                ("self_attn.v_proj", kv, h),
                ("self_attn.o_proj", h, h),
                ("mlp.gate_proj", self.intermediate, h),
                ("mlp.up_proj", self.intermediate, h),
                ("mlp.down_proj", h, self.intermediate),
            ];
            all.extend(block.map(|(name, rows, cols)| (format!("model.layers.{layer}.{name}"), rows, cols)));
        }
        all
    }

    fn norms(&self) -> Vec<String> {
        let in_layer = |layer: usize| ["input_layernorm", "post_attention_layernorm"].map(|n| format!("model.layers.{layer}.{n}.weight"));
        (0..self.layers).flat_map(in_layer).chain(["model.norm.weight".to_string()]).collect()
    }

    /// Writes a checkpoint whose weights are all zero: a file of one hole behind its header, whatever the size. With a scheme the
    /// linears are stored so (embedding and head in 8 bits), without in BF16.
    fn write(&self, sandbox: &Sandbox, folder: &str, scheme: Option<&str>) {
        fs::create_dir(sandbox.path(folder)).unwrap();
        let mut config = json!({
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": false,
            "hidden_act": "silu", "torch_dtype": "bfloat16",
        });
        let mut specs: Vec<(String, Dtype, Vec<usize>)> =
            self.norms().into_iter().map(|name| (name, Dtype::Bf16, vec![self.hidden])).collect();
        let mut shapes = vec![];
        if let Some(text) = scheme {
            let scheme: Scheme = text.parse().unwrap();
            let outer: Scheme = if text.contains("a8") { "w8a8" } else { "w8a16" }.parse().unwrap();
            let modules: Vec<(String, Scheme)> =
                self.linears().into_iter().map(|(name, ..)| if name.contains("layers") { (name, scheme) } else { (name, outer) }).collect();
            config["quantization_config"] = compressed_tensors::quantization_config(&modules, &[]);
            for ((name, rows, cols), (_, scheme)) in self.linears().into_iter().zip(&modules) {
                shapes.push((format!("{name}.weight_shape"), [rows, cols]));
                let stored = compressed_tensors::tensor_specs(&name, rows, cols, *scheme, Dtype::Bf16);
                specs.extend(stored.into_iter().map(|spec| (spec.name, spec.dtype, spec.shape)));
            }
        } else {
            specs.extend(self.linears().into_iter().map(|(name, rows, cols)| (format!("{name}.weight"), Dtype::Bf16, vec![rows, cols])));
        }
        sandbox.write(&format!("{folder}/config.json"), config.to_string());
        write_hole(sandbox, folder, &specs, &shapes);
    }
}

/// A safetensors file of zeros, but for the shapes that packed tensors come with.
fn write_hole(sandbox: &Sandbox, folder: &str, specs: &[(String, Dtype, Vec<usize>)], shapes: &[(String, [usize; 2])]) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    let mut specs: Vec<_> = specs.iter().collect();
    specs.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.size()));
    for (name, dtype, shape) in specs {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        header.insert(name.clone(), json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [at, at + bytes] }));
        at += bytes;
    }
    let mut text = Value::Object(header.clone()).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = File::create(sandbox.path(format!("{folder}/model.safetensors"))).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&text).unwrap();
    let start = 8 + text.len() as u64;
    file.set_len(start + at as u64).unwrap();
    for (name, shape) in shapes {
        let Some(entry) = header.get(name) else { continue };
        file.seek(SeekFrom::Start(start + entry["data_offsets"][0].as_u64().unwrap())).unwrap();
        file.write_all(&shape.map(|n| (n as i64).to_le_bytes()).concat()).unwrap();
    }
}

#[track_caller]
fn refused(ended: &Ended, says: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{ended:?}");
    assert!(says.iter().all(|text| ended.stderr.contains(text)), "{says:?}: {ended:?}");
}

#[test]
fn seven_billion_parameters_fit_a_phone_at_four_bits_and_not_at_eight() {
    let sandbox = Sandbox::empty();
    SEVEN_B.write(&sandbox, "w4", Some("w4a8-g128"));
    SEVEN_B.write(&sandbox, "w8", Some("w8a8"));
    ALL_HEADS.write(&sandbox, "heads", Some("w4a8-g128"));
    let total = |model: &str, kv: &str| {
        let ended = sandbox.octet(&format!("inspect {model} --context 4096 --kv {kv} --json"));
        ended.done().json()["running"]["total"].as_u64().unwrap()
    };
    for model in ["w4", "heads"] {
        let [long, short] = ["f16", "int8"].map(|kv| total(model, kv));
        assert!(short < 6_000_000_000 && short < long, "{model}: {short}, {long}");
    }
    assert!(total("w4", "f16") < 5_000_000_000 && total("w8", "int8") > 7_000_000_000, "{}", total("w8", "int8"));
    let ended = sandbox.octet("run w8 --memory-budget 6GB --context 4096 hello");
    refused(&ended, &["w8 needs 7.", "weights 7.", "--memory-budget", "fewer bits"]);
    let ended = sandbox.octet("eval w8 --base w4 --memory-budget 10GB");
    refused(&ended, &["w8 needs 7.", "--memory-budget"]);
    // Models that are timed in turn are held together, and the read that decoding is held against beside them.
    let ended = sandbox.octet("bench w4 w8 --prefill 16 --decode 4 --context 0 --batch 1 --memory-budget 11GB");
    refused(&ended, &["timing w4, w8 needs 1", "--memory-budget", "fewer models"]);
    let ended = sandbox.octet("bench w4 --prefill 16 --decode 4 --context 16384 --batch 8 --memory-budget 11GB");
    refused(&ended, &["8 sequences", "--memory-budget", "shorter prompts and contexts"]);
}

#[test]
fn a_plan_forecasts_what_its_model_will_take() {
    let sandbox = Sandbox::empty();
    SEVEN_B.write(&sandbox, "base", None);
    SEVEN_B.write(&sandbox, "written", Some("w4a8-g128"));
    let plan = &sandbox.octet("quantize base --scheme w4a8-g128 --context 4096 --dry-run --json").done().json()[0];
    let model = sandbox.octet("inspect written --context 4096 --json").done().json();
    assert_eq!(plan["forecast"]["run_bytes"], model["running"]);
    assert_eq!(sandbox.names("").len(), 2);
}

#[test]
fn a_run_takes_what_was_forecast() {
    let sandbox = Sandbox::new();
    for scheme in ["w8a8", "w4a8-g128"] {
        SMALL.write(&sandbox, scheme, Some(scheme));
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(sandbox.path(format!("tiny/{file}")), sandbox.path(format!("{scheme}/{file}"))).unwrap();
        }
        let forecast = sandbox.octet(&format!("inspect {scheme} --json --threads 2")).done().json()["running"]["total"].as_f64().unwrap();
        let prompt = "a".repeat(1000);
        let run = sandbox.octet(&format!("run {scheme} --raw --json --threads 2 -n 16 {prompt}")).done().json();
        let Some(peak) = run["peak_rss_bytes"].as_f64() else {
            eprintln!("skipped: this system does not tell a process's peak memory");
            return;
        };
        assert!((forecast / peak - 1.0).abs() < 0.1, "{scheme}: forecast {forecast:e}, measured {peak:e}");
    }
}

#[test]
fn a_context_is_shortened_where_that_is_allowed() {
    let sandbox = Sandbox::empty();
    let forecast = |context: usize| {
        sandbox.octet(&format!("inspect pocket --context {context} --json --threads 1")).done().json()["running"]["total"].as_u64().unwrap()
    };
    let budget = format!("{}kB", (forecast(512) + forecast(2048)) / 2000);
    let ended = sandbox.octet(&format!("run pocket --threads 1 --memory-budget {budget} --shrink-context -n 4 hello")).done();
    assert!(ended.stderr.contains("context shortened to "), "{ended:?}");
    sandbox.octet(&format!("run pocket --threads 1 --memory-budget {budget} --context 256 -n 4 hello")).done();
    sandbox.refuses(
        &format!("run pocket --threads 1 --memory-budget {budget} -n 4 hello"),
        &["pocket needs", "--memory-budget", "--shrink-context"],
    );
    sandbox.refuses("run pocket --memory-budget 1MB --shrink-context hello", &["pocket needs", "fewer bits"]);
}

#[test]
fn sizes_that_are_none_are_wrong_usage() {
    let sandbox = Sandbox::empty();
    for size in ["6", "six", "-1GB", "0MB"] {
        let ended = sandbox.octet(&format!("run pocket --memory-budget={size} hello"));
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("512MiB"), "{ended:?}");
    }
    assert_eq!(sandbox.octet("run pocket --shrink-context hello").code, Some(2));
    sandbox.refuses("inspect pocket --context 4096", &["--context 4096", "2048"]);
}
