//! Archives and adapters that lie: one clear error each, no panic, nothing set aside that the file does not hold.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_formats::{
    Checkpoint, Error, Folder, npz,
    peft::{self, Adapter},
    safetensors::TensorSpec,
};
use octet_tensor::{Bytes, Dtype};
use proptest::prelude::*;
use serde_json::json;

/// An archive of two small arrays.
fn archive() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![2, 3] };
    let mut writer = npz::Writer::create(&path, &[spec("first"), spec("other")]).unwrap();
    writer.append("first", &[0; 24]).unwrap();
    writer.append("other", &[1; 24]).unwrap();
    writer.finish().unwrap();
    std::fs::read(&path).unwrap()
}

fn read(bytes: Vec<u8>) -> Result<Vec<npz::Array>, String> {
    npz::arrays(&Bytes::new(bytes)).map_err(|e| e.to_string())
}

/// Where `what` is for the `n`th time.
fn find(bytes: &[u8], what: &[u8], n: usize) -> usize {
    bytes.windows(what.len()).enumerate().filter(|(_, window)| *window == what).nth(n).unwrap().0
}

/// The archive with bytes put at `offset` of the `n`th place of `what`.
fn with(what: &[u8], n: usize, offset: usize, put: &[u8]) -> Vec<u8> {
    let mut bytes = archive();
    let at = find(&bytes, what, n) + offset;
    bytes[at..at + put.len()].copy_from_slice(put);
    bytes
}

const ENTRY: &[u8] = b"PK\x01\x02";

#[test]
fn a_sound_archive_reads() {
    let arrays = read(archive()).unwrap();
    let names: Vec<_> = arrays.iter().map(|a| (a.name.as_str(), a.shape.clone(), a.data.len())).collect();
    assert_eq!(names, [("first", vec![2, 3], 24), ("other", vec![2, 3], 24)]);
}

#[test]
fn archives_that_lie_are_refused() {
    let name = |n: usize| 46 + n;
    for (bytes, expected) in [
        (b"no archive".to_vec(), "no directory"),
        (archive()[..200].to_vec(), "no directory"),
        // An entry that unfolds: method 8 in the directory.
        (with(ENTRY, 0, 10, &[8, 0]), "compressed"),
        (with(ENTRY, 0, 8, &[1, 0]), "encrypted"),
        (with(ENTRY, 0, name(0), b"../a"), "plain file name"),
        (with(ENTRY, 0, name(0), b"/etc/"), "plain file name"),
        (with(ENTRY, 1, name(0), b"first"), "twice"),
        // The second entry at the first one's place.
        (with(ENTRY, 1, 46 + 9 + 4 + 16, &[0; 8]), "overlap"),
        // Sizes beyond the end, and beyond 64 bits together with the place.
        (with(ENTRY, 0, 46 + 9 + 4, &[0xff; 16]), "reaches past the end"),
        (with(ENTRY, 0, 46 + 9 + 4 + 16, &[0xff; 8]), "reaches past the end"),
        // A billion entries.
        (with(b"PK\x06\x06", 0, 32, &1_000_000_000u64.to_le_bytes()), "claims 1000000000 entries"),
        // A shape of more elements than there are bytes, and one that overflows.
        (with(b"(2, 3,)", 0, 0, b"(9, 9,)"), "says [9, 9]"),
        (with(b"(2, 3,), }", 0, 0, b"(4294967296,987654321"), "header"),
        (with(b"<f4", 0, 0, b"|O4"), "elements"),
        (with(ENTRY, 0, name(5), b".txt"), "no array"),
    ] {
        let message = read(bytes).unwrap_err();
        assert!(message.contains(expected), "{message}\n  lacks {expected}");
    }
}

#[test]
fn an_archive_without_its_scheme_is_refused() {
    let config = json!({"quantization_config": {"quant_method": "octet-npz", "modules": {"m": "w9"}}}).to_string().into_bytes();
    let folder = Folder::memory("x", vec![("config.json".into(), Bytes::new(config)), (npz::FILE.into(), Bytes::new(archive()))]);
    assert!(Checkpoint::open(&folder).unwrap_err().to_string().contains("no scheme"));
}

/// An adapter of one module.
fn adapter(config: serde_json::Value, a: [usize; 2], b: [usize; 2], name: &str) -> Result<Adapter, Error> {
    let (a_bytes, b_bytes) = (4 * a[0] * a[1], 4 * b[0] * b[1]);
    let header = json!({
        format!("base_model.model.m.{name}_A.weight"): {"dtype": "F32", "shape": a, "data_offsets": [0, a_bytes]},
        format!("base_model.model.m.{name}_B.weight"): {"dtype": "F32", "shape": b, "data_offsets": [a_bytes, a_bytes + b_bytes]},
    });
    let header = header.to_string().into_bytes();
    let file = [(header.len() as u64).to_le_bytes().as_slice(), &header, &vec![0; a_bytes + b_bytes]].concat();
    let files = vec![(peft::CONFIG.into(), Bytes::new(config.to_string().into_bytes())), (peft::PEFT.into(), Bytes::new(file))];
    Adapter::open(&Folder::memory("a", files))
}

#[test]
fn adapters_that_are_not_understood_are_refused() {
    let plain = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    let found = adapter(plain.clone(), [2, 3], [5, 2], "lora").unwrap();
    assert_eq!((found.modules["m"].dims(), found.modules["m"].scale), ([5, 3], 2.0));
    let with = |key: &str, value: serde_json::Value| {
        let mut config = plain.clone();
        config[key] = value;
        config
    };
    for (config, a, b, name, expected) in [
        (plain.clone(), [2, 3], [5, 3], "lora", "do not fit together"),
        (plain.clone(), [2, 3], [5, 2], "lora_embedding", "does not run"),
        (with("peft_type", json!("IA3")), [2, 3], [5, 2], "lora", "IA3"),
        (with("use_dora", json!(true)), [2, 3], [5, 2], "lora", "magnitudes"),
        (with("init_lora_weights", json!("pissa_niter_4")), [2, 3], [5, 2], "lora", "pissa"),
        (with("layer_replication", json!([[0, 2]])), [2, 3], [5, 2], "lora", "layer_replication"),
        (with("lora_alpha", json!("x")), [2, 3], [5, 2], "lora", "lora_alpha"),
        (with("alpha_pattern", json!({"(": 1})), [2, 3], [5, 2], "lora", "alpha_pattern"),
    ] {
        let message = adapter(config, a, b, name).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\n  lacks {expected}");
    }
    let rooted = adapter(with("use_rslora", json!(true)), [4, 3], [5, 4], "lora").unwrap();
    assert_eq!(rooted.modules["m"].scale, 2.0);
}

proptest! {
    #[test]
    fn damaged_archives_never_panic(at in 0usize..1000, byte: u8, cut in 0usize..1000) {
        let mut bytes = archive();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = read(bytes.clone());
        bytes.truncate(cut % length);
        let _ = read(bytes);
    }
}
