//! The commands that only read models: run, eval, inspect, logits, bench, doctor, completions.

use crate::sandbox::{Sandbox, ended, words};
use octet_testkit::{npy_f32, relative_error};
use serde_json::{Value, json};
use std::fs;

fn text(document: &Value) -> &str {
    document["text"].as_str().unwrap()
}

#[test]
fn run_streams_and_is_deterministic() {
    let sandbox = Sandbox::empty();
    let prompt = "run pocket 'PCI device 8086:10d3 is' -n 12";
    let plain = sandbox.octet(prompt).done().stdout;
    assert!(plain.starts_with("PCI device 8086:10d3 is") && plain.len() > 30, "{plain:?}");
    let document = sandbox.octet(&format!("{prompt} --json --threads 1")).done().json();
    assert_eq!(plain.trim_end_matches('\n'), format!("PCI device 8086:10d3 is{}", text(&document)).trim_end_matches('\n'));
    assert_eq!(document["prompt"], json!("PCI device 8086:10d3 is"));
    assert!(document["ids"].as_array().unwrap().len() <= 12);
    assert!(document["prefill"]["tokens"].as_u64().unwrap() > 5 && document["decode"]["tok_s"].is_number());
    let finish = document["finish"].as_str().unwrap();
    assert!(["max_tokens", "end_of_text"].contains(&finish), "{finish}");

    let piped = ended(sandbox.command().args(words("run pocket - -n 12 --stats")).write_stdin("PCI device 8086:10d3 is\n")).done();
    assert_eq!(piped.stdout, plain);
    assert!(piped.stderr.contains("tok/s") && piped.stderr.contains("generated"), "{}", piped.stderr);
}

#[test]
fn seeds_and_stop_strings() {
    let sandbox = Sandbox::empty();
    let write = |flags: &str| sandbox.octet(&format!("run pocket 'The kernel' -n 24 --json {flags}")).done().json();
    let sampled = |seed: u32| write(&format!("--temperature 1.5 --top-k 0 --seed {seed}"));
    assert_eq!(text(&sampled(7)), text(&sampled(7)));
    assert_ne!(text(&sampled(7)), text(&sampled(8)));

    let whole = write("--temperature 0");
    let stop: String = text(&whole).chars().skip(8).take(4).collect();
    let cut = write(&format!("--temperature 0 --stop '{stop}' --stop @@@"));
    assert_eq!(cut["finish"], json!("stop_string"), "{stop:?} in {whole:#}");
    assert!(text(&whole).starts_with(text(&cut)) && !text(&cut).contains(&stop), "{cut:#}");
}

#[test]
fn artefacts_run_are_inspected_and_measured() {
    let sandbox = Sandbox::new();
    for scheme in ["w8a16", "w8a8", "w4a16-g32-asym"] {
        sandbox.octet(&format!("quantize tiny {scheme} --no-judge --scheme {scheme}")).done();
        let once = || sandbox.octet(&format!("run {scheme} hello -n 16 --json")).done().json();
        assert_eq!(text(&once()), text(&once()));
        assert!(!once()["ids"].as_array().unwrap().is_empty());
        let facts = sandbox.octet(&format!("inspect {scheme} --json")).done().json();
        let bits = facts["linear_bits_per_weight"].as_f64().unwrap();
        let nominal = if scheme.starts_with("w8") { 8.0 } else { 4.0 };
        // Rows of 64 inputs: a scale (and a zero point) cost more than in a real model.
        assert!(bits > nominal && bits < nominal + 1.5, "{scheme}: {bits}");
        let stored = facts["quantization"]["scheme"].as_str().unwrap();
        assert!(stored.starts_with(scheme.split('-').next().unwrap()), "{stored}");
    }
    let measures = &sandbox.octet("eval w8a16 --base tiny --eval-tokens 4096 --json").done().json()["measures"];
    assert!((measures["ppl"]["ratio"].as_f64().unwrap() - 1.0).abs() < 0.02, "{measures:#}");
    assert!(measures["kl"]["mean"].as_f64().unwrap() < 0.01 && measures["top1"].as_f64().unwrap() > 0.9, "{measures:#}");
    let alone = sandbox.octet("eval tiny --eval-tokens 4096 --context 128").done().stdout;
    assert!(alone.contains("perplexity") && alone.contains("windows of 128 tokens"), "{alone}");
    let same = &sandbox.octet("eval tiny --base tiny --eval-tokens 2048 --json").done().json()["measures"];
    assert_eq!((same["ppl"]["ratio"].as_f64(), same["top1"].as_f64()), (Some(1.0), Some(1.0)));
}

#[test]
fn keys_and_values_of_every_type() {
    let sandbox = Sandbox::empty();
    let texts: Vec<String> = ["f32", "f16", "int16", "int8"]
        .iter()
        .map(|kv| text(&sandbox.octet(&format!("run pocket 'PCI device 8086:10d3 is' -n 12 --json --kv {kv}")).done().json()).to_string())
        .collect();
    // 8 bits may choose another word where two are about as likely.
    assert!(texts[..3].windows(2).all(|pair| pair[0] == pair[1]) && !texts[3].is_empty(), "{texts:?}");
    for (kv, ratio, top1) in [("f16", 1.0005, 0.995), ("int16", 1.0005, 0.995), ("int8", 1.005, 0.98)] {
        let args = format!("eval pocket --kv {kv} --base pocket --base-kv f32 --eval-tokens 4096 --json");
        let document = sandbox.octet(&args).done().json();
        let measures = &document["measures"];
        assert_eq!(document["kv"], json!(kv));
        let found = measures["ppl"]["ratio"].as_f64().unwrap();
        assert!(found < ratio && found > 2.0 - ratio && measures["top1"].as_f64().unwrap() > top1, "{kv}: {measures:#}");
    }
    sandbox.octet("bench pocket --prefill 8 --context 0 --batch 1 --decode 4 --reps 1 --json --kv int8").done();
}

#[test]
fn contexts_longer_than_the_model() {
    let sandbox = Sandbox::new();
    let ended = sandbox.octet("eval tiny --eval-tokens 2048 --context 100000").done();
    assert!(ended.stderr.contains("--context 100000 is longer than the 256 tokens"), "{ended:?}");
    assert!(ended.stdout.contains("windows of 256 tokens"), "{ended:?}");
    let full = sandbox.octet("run tiny hello -n 300 --context 16").done();
    assert!(full.stderr.contains("the context of 16 tokens is full; give a longer --context"), "{full:?}");
}

#[test]
fn inspect_tells_what_a_model_is() {
    let sandbox = Sandbox::new();
    let facts = sandbox.octet("inspect tiny --json --tensors --graph").done().json();
    assert_eq!(
        (&facts["family"], &facts["layers"], &facts["vocabulary"], &facts["context"]),
        (&json!("qwen3"), &json!(3), &json!(320), &json!(256))
    );
    assert_eq!((&facts["quantization"], &facts["linear_bits_per_weight"]), (&Value::Null, &json!(32.0)));
    let bytes: u64 = facts["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(facts["stored_bytes"], json!(bytes));
    let names: Vec<_> = facts["graph"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["embedding", "layers 0-2", "head"]);
    assert_eq!(facts["graph"][1]["steps"][0], json!({ "operations": [0, 1], "how": "normed on the way in, 3 products of one input" }));
    let graph = sandbox.octet("inspect pocket --graph").done().stdout;
    assert!(graph.contains("fused, 6 steps for 11 operations:") && graph.lines().all(|line| line.chars().count() <= 80), "{graph}");
    let shown = sandbox.octet("inspect pocket --threads 2").done().stdout;
    insta::assert_snapshot!(shown, @r###"
pocket: qwen3, 4 layers, hidden 256, vocabulary 4096, context 2048
  parameters    4.2 M
  weights       8.4 MB on disk, 16.00 bits a weight of the linears
  KV cache      2.1 kB a token in int16
  running       36 MB (weights 9 MB,
                keys and values of 2048 tokens in int16 5 MB,
                buffers 10 MB, program and tokenizer 13 MB)
"###);
}

#[test]
fn logits_are_those_of_transformers() {
    let sandbox = Sandbox::new();
    for fixture in ["qwen3", "gpt2"] {
        let folder = octet_testkit::fixtures().join("arch").join(fixture);
        let (ids, out) = (folder.join("input_ids.npy"), sandbox.path(format!("{fixture}.npy")));
        let args = format!("logits '{}' --ids '{}' {fixture}.npy", folder.display(), ids.display());
        let said = sandbox.octet(&args).done().stdout;
        let (shape, logits) = npy_f32(&out);
        let (expected_shape, expected) = npy_f32(&folder.join("logits.npy"));
        assert_eq!(shape, expected_shape);
        assert!(said.contains(&format!("{shape:?}")), "{said}");
        let error = relative_error(&logits, &expected);
        assert!(error <= 1e-4, "{fixture}: {error:e}");
        let before = fs::read(&out).unwrap();
        let document = sandbox.octet(&format!("{args} --force --json --threads 1")).done().json();
        assert_eq!(document["shape"], json!(shape));
        assert!(before == fs::read(&out).unwrap(), "one thread gives other logits");
    }
}

#[test]
fn doctor_measures_this_machine() {
    let sandbox = Sandbox::empty();
    let doctor = sandbox.octet("doctor --json").done().json();
    let isas: Vec<&str> = doctor["available_isa"].as_array().unwrap().iter().map(|isa| isa.as_str().unwrap()).collect();
    assert!(isas.contains(&"scalar") && isas.contains(&doctor["machine"]["isa"].as_str().unwrap()), "{doctor:#}");
    for limit in ["read_gb_s", "read_cached_gb_s", "int8_gop_s", "f32_gflop_s"] {
        assert!(doctor["limits"][limit].as_f64().unwrap() > 0.0, "{limit}");
    }
}

#[test]
fn every_instruction_set_can_be_forced() {
    let sandbox = Sandbox::new();
    let isas: Vec<String> = octet_kernels::Isa::available().iter().map(ToString::to_string).collect();
    let texts: Vec<String> = isas
        .iter()
        .map(|isa| {
            let run = ended(sandbox.command().env("OCTET_ISA", isa).args(words("run tiny hello -n 16 --json"))).done();
            text(&run.json()).to_string()
        })
        .collect();
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{isas:?}: {texts:?}");
}

#[test]
fn errors_are_documents_too() {
    let sandbox = Sandbox::empty();
    let ended = sandbox.octet("inspect nowhere --json");
    assert_eq!(ended.code, Some(1));
    assert!(ended.json()["error"].as_str().unwrap().contains("no folder nowhere"));
    assert!(ended.stderr.starts_with("error: there is no folder nowhere"), "{ended:?}");
}

#[test]
fn completions_name_the_commands() {
    let script = Sandbox::empty().octet("completions bash").done().stdout;
    for word in ["_octet", "quantize", "--eval-text", "--max-ppl-increase"] {
        assert!(script.contains(word), "{word}");
    }
}

#[cfg(unix)]
#[test]
fn names_from_the_hugging_face_cache() {
    let sandbox = Sandbox::new();
    let repo = "hf/hub/models--some-org--some-model";
    fs::create_dir_all(sandbox.path(repo).join("snapshots/abc")).unwrap();
    fs::create_dir(sandbox.path(repo).join("refs")).unwrap();
    sandbox.write(&format!("{repo}/refs/main"), "abc\n");
    for name in sandbox.names("tiny") {
        std::os::unix::fs::symlink(sandbox.path("tiny").join(&name), sandbox.path(repo).join("snapshots/abc").join(&name)).unwrap();
    }
    for (variable, value) in [("HF_HOME", "hf"), ("HF_HUB_CACHE", "hf/hub")] {
        let facts = ended(sandbox.command().env(variable, value).args(words("inspect some-org/some-model --json"))).done().json();
        assert_eq!(facts["family"], json!("qwen3"));
    }
    ended(sandbox.command().env("HF_HOME", "hf").args(words("quantize some-org/some-model --no-judge"))).done();
    assert_eq!(sandbox.names(""), ["hf", "some-model-w8a16", "tiny"]);
}
