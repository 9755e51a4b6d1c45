//! Tokenizers written as GGUF metadata and read back.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_formats::{
    Folder,
    gguf::{Meta, Writer},
};
use octet_runtime::{Tokenizer, gguf_folder, tokenizer_metadata};
use octet_tensor::Bytes;
use octet_testkit::{fixtures, shared};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What only a tokenizer shows: scripts, white space, specials, numbers.
const TEXT: &str = "It's they'LL 1234.5\tα β\n\n  漢字 🙂 naïve cafe\u{301} <|im_start|>user\r\n   end  <unk> </s> x\u{a0}y";

/// Folders with tokenizers of every kind there is.
fn folders() -> Vec<(PathBuf, usize)> {
    let mut all = vec![(fixtures().join("../models/pocket"), 4096)];
    if let Some(shared) = shared() {
        all.push((shared.join("reference/models/stories260K"), 512));
        all.push((shared.join("reference/models/babyllama-105"), 105));
        all.push((shared.join("reference/fixtures/peft-base/llama"), 520));
    }
    all
}

fn written(folder: &Folder, opened: &Tokenizer, rows: usize) -> Result<Vec<(String, Meta)>, String> {
    tokenizer_metadata(folder, Some(opened), &json!({}), rows).map(|out| out.unwrap().metadata)
}

#[test]
fn tokens_are_the_same_after_a_round_trip() {
    for (path, rows) in folders() {
        let folder = Folder::disk(&path).unwrap();
        let a = Tokenizer::open(&folder).unwrap();
        let read = reread(&written(&folder, &a, rows).unwrap());
        let b = Tokenizer::open(&read).unwrap();
        for special in [false, true] {
            let (x, y) = (a.encode(TEXT, special).unwrap(), b.encode(TEXT, special).unwrap());
            assert_eq!(x, y, "{}", path.display());
            assert_eq!(a.decode(&x).unwrap(), b.decode(&y).unwrap());
        }
        assert_eq!((a.bos(), a.eos()), (b.bos(), b.eos()), "{}", path.display());
    }
}

/// The tokenizer's files of a GGUF file with this metadata and a model that hardly is one.
fn reread(metadata: &[(String, Meta)]) -> Folder {
    let source = fixtures().join("gguf/arch-llama-F32.gguf");
    let model = octet_formats::gguf::File::open(&source).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    // The architecture's own keys, and the new tokenizer's.
    let own = model.metadata().unwrap();
    let mut all: Vec<(String, Meta)> = own
        .iter()
        .filter(|(key, _)| key.starts_with("llama.") || **key == "general.architecture")
        .filter_map(|(key, value)| {
            let meta = match (value.as_u64(), value.as_f64(), value.as_str()) {
                (Some(n), ..) => Meta::U32(n as u32),
                (_, Some(v), _) => Meta::F32(v as f32),
                (_, _, Some(text)) => Meta::Text(text.into()),
                _ => return None,
            };
            Some(((*key).to_string(), meta))
        })
        .collect();
    all.extend(metadata.to_vec());
    let tensors: Vec<_> = model
        .tensors()
        .map(|(name, shape, kind)| octet_formats::gguf::NewTensor { name: name.into(), kind, shape: shape.to_vec() })
        .collect();
    let mut writer = Writer::create(&path, &all, &tensors).unwrap();
    for tensor in &tensors {
        writer.write(&tensor.name, 0, &vec![0; tensor.bytes().unwrap() as usize]).unwrap();
    }
    writer.finish().unwrap();
    let bytes = Bytes::new(std::fs::read(&path).unwrap());
    gguf_folder("x", &octet_formats::gguf::File::from_bytes("x.gguf", bytes).unwrap()).unwrap()
}

/// Pocket's tokenizer with something changed.
fn changed(change: impl Fn(&mut Value)) -> Result<Vec<(String, Meta)>, String> {
    let folder = fixtures().join("../models/pocket");
    let mut json: Value = serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    let opened = Tokenizer::open(&Folder::disk(&folder).unwrap()).unwrap();
    written(&Folder::memory("x", vec![("tokenizer.json".into(), Bytes::new(json.to_string().into_bytes()))]), &opened, 4096)
}

#[test]
fn what_gguf_has_no_word_for_is_refused() {
    let refusal = |change: &dyn Fn(&mut Value)| changed(change).unwrap_err();
    assert!(refusal(&|json| json["normalizer"] = json!({"type": "Lowercase"})).contains("Lowercase"));
    assert!(refusal(&|json| json["model"]["type"] = "Unigram".into()).contains("Unigram"));
    assert!(refusal(&|json| json["model"]["ignore_merges"] = true.into()).contains("ignore_merges"));
    assert!(refusal(&|json| json["model"]["end_of_word_suffix"] = "</w>".into()).contains("end_of_word_suffix"));
    assert!(refusal(&|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+".into()).contains("\\w+"));
    assert!(refusal(&|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})).contains("cuts text"));
    assert!(changed(|json| json["normalizer"] = json!({"type": "NFC"})).is_ok());
}
