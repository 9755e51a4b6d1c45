//! `octet export`.

use crate::sandbox::Sandbox;
use serde_json::json;
use std::fs;

#[test]
fn a_gguf_file_is_written_judged_and_runs() {
    let sandbox = Sandbox::empty();
    let document = sandbox.octet("export pocket --format gguf:q8_0 --eval-tokens 8192 --json").done().json();
    assert_eq!(
        document["exports"][0]["path"].as_str().unwrap(),
        sandbox.path("pocket-q8_0.gguf").canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!(document["exports"][0]["report"]["status"], "accepted", "{document:#}");
    assert_eq!(sandbox.names(""), ["pocket-q8_0.gguf"]);
    assert!(fs::read(sandbox.path("pocket-q8_0.gguf")).unwrap().starts_with(b"GGUF\x03\0\0\0"));
    let inspected = sandbox.octet("inspect pocket-q8_0.gguf").done().stdout;
    assert!(inspected.contains("Q8_0"), "{inspected}");
    let text = sandbox.octet("run pocket-q8_0.gguf -n 8 PCI").done().stdout;
    assert!(!text.trim().is_empty());
    // What is there stays, unless told otherwise.
    sandbox.refuses("export pocket --format gguf:q8_0 --no-judge", &["pocket-q8_0.gguf", "--force"]);
    sandbox.octet("export pocket --format gguf:q8_0 --no-judge --force").done();
}

#[test]
fn a_bad_export_is_refused_and_leaves_nothing() {
    let sandbox = Sandbox::empty();
    let ended = sandbox.octet("export pocket --format gguf:q2_k --no-calibration --eval-tokens 8192");
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(sandbox.names("").is_empty(), "{:?}", sandbox.names(""));
}

#[test]
fn codes_are_taken_over_or_asked_about() {
    let sandbox = Sandbox::empty();
    sandbox.octet("quantize pocket q --scheme w4a16-g32 --method rtn --no-judge --no-receipt").done();
    sandbox.octet("export q --format gguf --no-judge").done();
    let kl = sandbox.octet("eval q.gguf --base q --eval-tokens 4096 --json").done().json();
    let mean = kl["measures"]["kl"]["mean"].as_f64().unwrap();
    assert!(mean < 1e-5, "{mean}");
    sandbox.refuses("export q --format gguf:q4_k_m --no-judge", &["--requantize", "quantized already"]);
    sandbox.octet("export q --format gguf:q4_k_m --requantize --no-calibration --no-judge").done();
    assert_eq!(sandbox.names(""), ["q", "q-q4_k_m.gguf", "q.gguf"]);
}

#[test]
fn what_makes_no_sense_is_said() {
    let sandbox = Sandbox::empty();
    sandbox.refuses_as(2, "export pocket --format ggml", &["gguf:q4_k_m"]);
    sandbox.refuses_as(2, "export pocket --format gguf:q9_0", &["q9_0", "q4_k_m"]);
    sandbox.refuses_as(2, "export pocket --format gguf:q8_0:q9", &["q9"]);
    sandbox.refuses_as(2, "export pocket --format gguf:q8_0,gguf:q4_0 --out nowhere", &["several formats"]);
    sandbox.refuses_as(2, "export pocket", &["--format"]);
    sandbox.refuses("export no-such-model --format gguf:f16", &["no-such-model"]);
}

#[test]
fn folders_of_other_tools_hold_the_same_codes() {
    let sandbox = Sandbox::empty();
    sandbox.octet("quantize pocket q --scheme w4a16-g32 --method rtn --portable --no-judge --no-receipt").done();
    fs::create_dir(sandbox.path("out")).unwrap();
    let ended = sandbox.octet("export q --format gptq,awq,mlx,npz,compressed-tensors,onnx --out out --no-judge --deploy").done();
    assert!(ended.stderr.contains("executed by transformers") && ended.stderr.contains("octet does not run ONNX"), "{}", ended.stderr);
    assert_eq!(sandbox.names("out"), ["q-awq", "q-compressed-tensors", "q-gptq", "q-mlx", "q-npz", "q-onnx"]);
    assert_eq!(sandbox.json("out/q-gptq/quantize_config.json"), sandbox.json("out/q-gptq/config.json")["quantization_config"]);
    assert_eq!(sandbox.json("out/q-mlx/config.json")["quantization"]["group_size"], 32);
    let documents = ["model_metadata.json", "model_tensors_8bit.npz", "quantization_info.json", "tokenizer_info.json"];
    assert!(documents.iter().all(|name| sandbox.path(format!("out/q-npz/{name}")).exists()));
    let card = fs::read_to_string(sandbox.path("out/q-gptq/README.md")).unwrap();
    assert!(card.contains("base_model_relation: quantized") && card.contains("w4a16-g32-sym"), "{card}");
    let page = fs::read_to_string(sandbox.path("out/q-gptq/deploy/README.md")).unwrap();
    assert!(page.contains("unverified") && page.contains("| model.layers.*.self_attn.o_proj |") && page.contains("vllm serve"), "{page}");
    assert!(sandbox.path("out/q-gptq/deploy/kserve.yaml").exists() && !sandbox.path("out/q-npz/deploy/kserve.yaml").exists());
    // What is carried over runs as what it came from: kernels of codes and of decoded floats add in different orders, no more.
    for format in ["gptq", "awq", "mlx", "npz", "compressed-tensors"] {
        let kl = sandbox.octet(&format!("eval out/q-{format} --base q --eval-tokens 2048 --json")).done().json();
        let mean = kl["measures"]["kl"]["mean"].as_f64().unwrap();
        assert!(mean < 1e-5, "{format}: {mean}");
    }
    // What was exported is a model like any other, and is judged like any other on its way into the next format.
    let back = sandbox.octet("export out/q-gptq --format mlx --out back --eval-tokens 8192 --json").done().json();
    assert_eq!(back["exports"][0]["report"]["status"], "accepted", "{back:#}");
    assert!(!sandbox.path("back/quantize_config.json").exists());
    assert!(fs::read_to_string(sandbox.path("back/README.md")).unwrap().contains("| quality |"));
}

#[test]
fn an_order_of_inputs_is_carried_over() {
    let sandbox = Sandbox::empty();
    let recipe = "portable = true\n[[step]]\naction = \"quantize\"\ntargets = [\"down\"]\nscheme = \"w4a16-g64\"\nsolver = \"gptq\"\nact_order = \"desc\"\n";
    sandbox.write("order.toml", recipe);
    sandbox.octet("quantize pocket q --recipe order.toml --calibration-samples 4 --no-judge --no-receipt").done();
    sandbox.octet("export q --format gptq --no-judge").done();
    assert_eq!(sandbox.json("q-gptq/config.json")["quantization_config"]["desc_act"], true);
    let kl = sandbox.octet("eval q-gptq --base q --eval-tokens 2048 --json").done().json();
    assert!(kl["measures"]["kl"]["mean"].as_f64().unwrap() < 1e-7, "{kl:#}");
    sandbox.refuses("export q --format compressed-tensors", &["in activation order", "--requantize"]);
    sandbox.refuses("export q --format mlx", &["in activation order", "--requantize"]);
}

#[test]
fn a_file_is_handed_over_beside_it() {
    let sandbox = Sandbox::new();
    sandbox.octet("export tiny --format gguf:f16 --no-judge --deploy").done();
    assert_eq!(sandbox.names(""), ["tiny", "tiny-f16-deploy", "tiny-f16.gguf"]);
    let made = fs::read_to_string(sandbox.path("tiny-f16-deploy/Modelfile")).unwrap();
    assert!(made.starts_with("FROM ../tiny-f16.gguf\n"), "{made}");
}

/// Writes a LoRA of rank 2 for one matrix of the small model into the folder `ad`.
fn adapter(sandbox: &Sandbox) {
    fs::create_dir(sandbox.path("ad")).unwrap();
    let (a, b) = (2 * 160, 64 * 2);
    let module = "base_model.model.model.layers.0.mlp.down_proj";
    let header = json!({
        format!("{module}.lora_A.weight"): {"dtype": "F32", "shape": [2, 160], "data_offsets": [0, 4 * a]},
        format!("{module}.lora_B.weight"): {"dtype": "F32", "shape": [64, 2], "data_offsets": [4 * a, 4 * (a + b)]},
    });
    let header = header.to_string().into_bytes();
    let values = (0..a + b).flat_map(|i| ((i as f32 * 0.7).sin() * 0.2).to_le_bytes());
    let file = [(header.len() as u64).to_le_bytes().to_vec(), header, values.collect()].concat();
    sandbox.write("ad/adapter_model.safetensors", file);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny"});
    sandbox.write("ad/adapter_config.json", config.to_string());
}

#[test]
fn adapters_are_applied_and_merged() {
    let sandbox = Sandbox::new();
    adapter(&sandbox);
    let text = |model: &str| sandbox.octet(&format!("run {model} hello -n 12 --raw --temperature 0")).done().stdout;
    let adapted = text("tiny+ad");
    assert_ne!(text("tiny"), adapted);
    // The adapter's own folder names its base.
    assert_eq!(text("ad"), adapted);
    sandbox.octet("export tiny+ad --format safetensors --out merged --no-judge").done();
    assert_eq!(text("merged"), adapted);
    sandbox.octet("export tiny+ad --format gguf:f32 --out merged.gguf --no-judge").done();
    let kl = sandbox.octet("eval merged.gguf --base tiny+ad --eval-tokens 2048 --json").done().json();
    assert!(kl["measures"]["kl"]["mean"].as_f64().unwrap() < 1e-7, "{kl:#}");
    sandbox.refuses("quantize tiny+ad q", &["merge the adapter first", "--format safetensors"]);
    sandbox.edit_json("ad/adapter_config.json", |config| config["base_model_name_or_path"] = json!("nowhere"));
    sandbox.refuses("run ad hello", &["BASE+ad"]);
    sandbox.edit_json("ad/adapter_config.json", |config| config["use_qalora"] = json!(true));
    sandbox.refuses("run tiny+ad hello", &["use_qalora", "merge it with PEFT"]);
}

#[test]
fn what_a_folder_cannot_hold_is_said() {
    let sandbox = Sandbox::empty();
    sandbox.octet("quantize pocket q --scheme w4a16-g32 --method rtn --portable --no-judge --no-receipt").done();
    sandbox.octet("quantize pocket eight --scheme w8a16 --method rtn --no-judge --no-receipt").done();
    sandbox.refuses("export pocket --format gptq", &["gptq", "octet quantize", "--requantize"]);
    sandbox.refuses("export q --format bnb8", &["bnb8", "4-bit codes", "--requantize"]);
    sandbox.refuses("export eight --format awq", &["--portable", "--requantize"]);
    sandbox.refuses("export q --format safetensors", &["plain floats", "--requantize"]);
    sandbox.refuses_as(2, "export q --format gptq:4", &["gptq:4", "bnb8"]);
    assert_eq!(sandbox.names(""), ["eight", "q"]);
    let ended = sandbox.octet("export q --format bnb8,safetensors --requantize --no-judge");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("rounded to nearest anew") && ended.stderr.contains("decoded from codes"), "{}", ended.stderr);
    assert_eq!(sandbox.names(""), ["eight", "q", "q-bnb8", "q-safetensors"]);
}
