//! `octet export`.

use crate::sandbox::Sandbox;
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
    let ended = sandbox.octet("export q --format gptq,awq,mlx,npz,compressed-tensors --out out --no-judge");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("unverified"), "{}", ended.stderr);
    assert_eq!(sandbox.names("out"), ["q-awq", "q-compressed-tensors", "q-gptq", "q-mlx", "q-npz"]);
    assert_eq!(sandbox.json("out/q-gptq/quantize_config.json"), sandbox.json("out/q-gptq/config.json")["quantization_config"]);
    assert_eq!(sandbox.json("out/q-mlx/config.json")["quantization"]["group_size"], 32);
    // What is carried over runs as what it came from: kernels of codes and of decoded floats add in different orders, no more.
    for format in ["gptq", "awq", "mlx", "npz", "compressed-tensors"] {
        let kl = sandbox.octet(&format!("eval out/q-{format} --base q --eval-tokens 2048 --json")).done().json();
        let mean = kl["measures"]["kl"]["mean"].as_f64().unwrap();
        assert!(mean < 1e-5, "{format}: {mean}");
    }
    // What was exported is a model like any other, and is judged like any other on its way into the next format.
    let back = sandbox.octet("export out/q-gptq --format mlx --out back --eval-tokens 8192 --json").done().json();
    assert_eq!(back["exports"][0]["report"]["status"], "accepted", "{back:#}");
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
