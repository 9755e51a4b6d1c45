//! Receipts: any changed byte is found and named, the same run gives the same bytes, signatures hold for their key.

use crate::sandbox::{Sandbox, prose};
use serde_json::json;
use std::{collections::BTreeSet, fs};

/// A sandbox with `tiny` quantized to `out` with calibration.
fn quantized(flags: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 3));
    sandbox.octet(&format!("quantize tiny out --calibration notes.txt --no-judge --scheme w4a16-g32 {flags}")).done();
    sandbox
}

#[test]
fn any_flipped_bit_is_found_and_named() {
    let sandbox = quantized("");
    let fine = sandbox.octet("verify --receipt out").done();
    assert!(fine.stdout.contains("AS WRITTEN") && fine.stdout.contains("tiny: checked"), "{fine:?}");
    let mut random = 1u64;
    for name in sandbox.names("out") {
        let path = sandbox.path("out").join(&name);
        let whole = fs::read(&path).unwrap();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (at, bit) = ((random >> 16) as usize % whole.len(), random % 8);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let ended = sandbox.octet("verify --receipt out");
            assert_ne!(ended.code, Some(0), "byte {at} bit {bit} of {name}: {ended:?}");
            assert!(format!("{}{}", ended.stdout, ended.stderr).contains(&name), "byte {at} of {name}: {ended:?}");
        }
        fs::write(&path, &whole).unwrap();
    }
    sandbox.octet("verify --receipt out/receipt.json").done();
}

#[test]
fn what_changed_is_told_apart() {
    let sandbox = quantized("");
    let weights = sandbox.path("out/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    fs::remove_file(sandbox.path("out/tokenizer.json")).unwrap();
    sandbox.write("out/extra.py", "print(1)");
    sandbox.write("tiny/config.json", fs::read_to_string(sandbox.path("tiny/config.json")).unwrap() + " ");
    sandbox.write("notes.txt", "other text");
    let ended = sandbox.octet("verify --receipt out --json");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let document = ended.json();
    let findings = document["verification"]["findings"].as_array().unwrap();
    let found: BTreeSet<(&str, &str)> = findings.iter().map(|f| (f["part"].as_str().unwrap(), f["wrong"].as_str().unwrap())).collect();
    let expected =
        [("artefact", "changed"), ("artefact", "missing"), ("artefact", "unknown"), ("original", "changed"), ("text", "changed")];
    assert_eq!(found, expected.into(), "{document:#}");
    let changed = findings.iter().find(|f| f["file"] == "model.safetensors").unwrap();
    assert_eq!(changed["tensors"].as_array().unwrap().len(), 1, "{changed:#}");
}

#[test]
fn a_receipt_reproduces_the_same_bytes_with_any_threads() {
    let sandbox = quantized("--method gptq --threads 2");
    let ended = sandbox.octet("reproduce out --threads 1").done();
    assert!(ended.stdout.contains("SAME BYTES"), "{ended:?}");
    let receipt = sandbox.json("out/receipt.json");
    assert_eq!(receipt["calibration"]["windows"].as_array().unwrap().len() as u64, {
        let described = sandbox.json("out/quantization_config.json");
        described["calibration"]["samples"].as_u64().unwrap()
    });
    sandbox.write("notes.txt", "other text");
    sandbox.refuses("reproduce out", &["notes.txt", "restore it"]);
    sandbox.edit_json("tiny/generation_config.json", |config| config["top_k"] = json!(1));
    sandbox.write("notes.txt", prose(20_000, 3));
    sandbox.refuses("reproduce out", &["generation_config.json", "--original"]);
}

#[test]
fn a_run_that_gives_other_bytes_names_the_tensors() {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny out --no-judge").done();
    // A receipt of another run's tensors, sealed as octet seals: only doing it again can tell.
    let forged = |receipt: &mut serde_json::Value| {
        receipt["tensors"]["model.norm.weight"] = json!("0".repeat(64));
        receipt["sha256"] = json!("");
    };
    sandbox.edit_json("out/receipt.json", forged);
    let bare = serde_json::to_string_pretty(&sandbox.json("out/receipt.json")).unwrap() + "\n";
    use sha2::Digest;
    let seal: String = sha2::Sha256::digest(bare.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    sandbox.write("out/receipt.json", bare.replace("\"sha256\": \"\"", &format!("\"sha256\": \"{seal}\"")));
    let ended = sandbox.octet("reproduce out --json");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let document = ended.json();
    assert_eq!(document["reproduction"]["different_tensors"], json!(["model.norm.weight"]), "{document:#}");
    assert_eq!(document["identical"], json!(false));
}

#[test]
fn signatures_hold_for_their_key() {
    let sandbox = Sandbox::new();
    sandbox.octet("keygen").done();
    sandbox.octet("keygen other.key").done();
    sandbox.refuses("keygen", &["octet.key", "exists already"]);
    sandbox.octet("quantize tiny out --no-judge --sign octet.key").done();
    sandbox.octet("verify --receipt out --key octet.key.pub").done();
    let ended = sandbox.octet("verify --receipt out --key other.key.pub");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("expected was"), "{ended:?}");
    sandbox.edit_json("out/receipt.json", |receipt| {
        let signature = receipt["signature"]["signature"].as_str().unwrap().to_string();
        let flipped = if signature.starts_with('0') { "1" } else { "0" };
        receipt["signature"]["signature"] = json!(format!("{flipped}{}", &signature[1..]));
    });
    // Written by another program: the same values, but the last line break is gone.
    let text = fs::read_to_string(sandbox.path("out/receipt.json")).unwrap();
    sandbox.write("out/receipt.json", text.trim_end().to_string() + "\n");
    let ended = sandbox.octet("verify --receipt out");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("does not fit"), "{ended:?}");
    sandbox.refuses("quantize tiny again --no-judge --sign octet.key.pub", &["octet.key.pub", "keygen"]);
}
