//! The tokenizer on small hand-made tokenizer.json files: special tokens, streaming, what must be refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_formats::Folder;
use octet_runtime::{DecodeStream, Error, Tokenizer};
use octet_tensor::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The printable character GPT-2's byte-level vocabulary writes for each byte (Radford et al. 2019, encoder.py).
fn byte_chars() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut extra = 256u32..;
    (0..256u32).map(|b| if printable(b) { b } else { extra.next().unwrap() }).map(|c| char::from_u32(c).unwrap()).collect()
}

/// A byte-level tokenizer: ids 0..256 are the bytes, 256 `<s>`, 257 `</s>`.
fn byte_level(post_processor: Value) -> Value {
    let vocab: serde_json::Map<String, Value> = byte_chars().iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "post_processor": post_processor,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
}

/// A SentencePiece-style tokenizer with byte fallback: a space is `▁`, the decoder drops the first one.
fn sentencepiece() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "."] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "pre_tokenizer": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab, "merges": [["▁", "a"]]}
    })
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

fn bos_template() -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}})
}

fn open(tokenizer: Value, config: Value) -> Result<Tokenizer, Error> {
    let file = |name: &str, value: Value| (name.to_string(), Bytes::new(value.to_string().into_bytes()));
    Tokenizer::open(&Folder::memory("tiny", vec![file("tokenizer.json", tokenizer), file("tokenizer_config.json", config)]))
}

fn config(add_bos: Value) -> Value {
    json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": add_bos})
}

#[test]
fn one_beginning_of_sequence_at_most() {
    let cases = [
        (bos_template(), json!(true), "hi", vec![256, 104, 105]),
        (bos_template(), json!(null), "hi", vec![256, 104, 105]),
        (bos_template(), json!(false), "hi", vec![104, 105]),
        (json!(null), json!(true), "hi", vec![256, 104, 105]),
        (json!(null), json!(null), "hi", vec![104, 105]),
        (bos_template(), json!(true), "<s>hi", vec![256, 104, 105]),
        (bos_template(), json!(null), "<s>hi", vec![256, 104, 105]),
        (bos_template(), json!(false), "<s>hi", vec![256, 104, 105]),
    ];
    for (post, add, text, expected) in cases {
        let tokenizer = open(byte_level(post.clone()), config(add.clone())).unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{post} {add} {text}");
        assert_eq!(tokenizer.leading_bos().is_some(), tokenizer.encode("hi", true).unwrap().len() == 3);
        assert_eq!(tokenizer.encode("hi", false).unwrap(), [104, 105]);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.len()), (Some(256), Some(257), 258));
    }
}

#[test]
fn a_saved_truncation_does_not_cut_texts() {
    let tokenizer = open(byte_level(json!(null)), json!({})).unwrap();
    assert_eq!(tokenizer.encode("longer than four", true).unwrap().len(), 16);
    assert_eq!(tokenizer.decode(&[104, 257, 105]).unwrap(), "hi");
}

#[test]
fn vocabularies_larger_than_the_embedding_are_refused() {
    let tokenizer = open(byte_level(json!(null)), config(json!(true))).unwrap();
    tokenizer.check_vocabulary(258, None).unwrap();
    tokenizer.check_vocabulary(300, None).unwrap();
    let error = tokenizer.check_vocabulary(257, None).unwrap_err().to_string();
    assert!(error.contains("\"</s>\" with id 257") && error.contains("257 rows"), "{error}");
    assert!(matches!(tokenizer.check_vocabulary(200, None), Err(Error::TokenizerTooLarge { id: 200, .. })));
    // A special token that nothing uses may lie outside, but not once the chat template speaks of it.
    let unused = open(byte_level(json!(null)), json!({"bos_token": "<s>"})).unwrap();
    unused.check_vocabulary(257, None).unwrap();
    assert!(unused.check_vocabulary(257, Some("{{ x }}</s>")).is_err());
}

#[test]
fn missing_and_damaged_files_are_named() {
    let empty = Tokenizer::open(&Folder::memory("tiny", vec![])).unwrap_err().to_string();
    assert!(empty.contains("tiny has no tokenizer.json; copy it"), "{empty}");
    let sp = Folder::memory("tiny", vec![("tokenizer.model".into(), Bytes::new(vec![1u8]))]);
    assert!(Tokenizer::open(&sp).unwrap_err().to_string().contains("SentencePiece"));
    let damaged = Folder::memory("tiny", vec![("tokenizer.json".into(), Bytes::new(b"{".to_vec()))]);
    assert!(Tokenizer::open(&damaged).unwrap_err().to_string().contains("tiny/tokenizer.json cannot be read"));
}

fn stream(tokenizer: &Tokenizer, before: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = DecodeStream::new(tokenizer, before);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_stream_keeps_the_space_between_prompt_and_answer() {
    let tokenizer = open(sentencepiece(), json!({})).unwrap();
    let prompt = tokenizer.encode("a", false).unwrap();
    assert_eq!(stream(&tokenizer, &prompt, &[6, 5]).concat(), " ab");
    assert_eq!(stream(&tokenizer, &[], &[6, 5]).concat(), "ab");
    let bytes: Vec<u32> = "é".bytes().map(|b| 8 + u32::from(b)).collect();
    assert_eq!(stream(&tokenizer, &prompt, &bytes), ["", "é", ""]);
}

#[test]
fn bytes_that_make_no_character_do_not_stall_the_stream() {
    let tokenizer = open(byte_level(json!(null)), json!({})).unwrap();
    let pieces = stream(&tokenizer, &[], &[0xff; 40]);
    assert!(pieces[10..].iter().any(|p| !p.is_empty()));
    assert_eq!(stream(&tokenizer, &[], &[0xe2, 0x82]).concat(), "\u{fffd}");
}

proptest! {
    #[test]
    fn streamed_text_is_the_decoded_text(text in "[a-zé€😀 \n]{0,60}", before in "[a-z é]{0,12}") {
        let tokenizer = open(byte_level(json!(null)), json!({})).unwrap();
        let (before, ids) = (tokenizer.encode(&before, false).unwrap(), tokenizer.encode(&text, false).unwrap());
        let pieces = stream(&tokenizer, &before, &ids);
        let whole = pieces.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER));
        prop_assert!(whole);
        prop_assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn arbitrary_ids_never_fail(ids in prop::collection::vec(0u32..300, 0..60)) {
        let tokenizer = open(byte_level(json!(null)), json!({})).unwrap();
        let _ = stream(&tokenizer, &[], &ids);
    }
}

#[test]
fn what_the_library_panics_about_is_an_error() {
    let open = |json: &str| {
        let files = vec![("tokenizer.json".to_string(), octet_tensor::Bytes::new(json.as_bytes().to_vec()))];
        Tokenizer::open(&Folder::memory("x", files)).map_err(|e| e.to_string())
    };
    let with = |decoder: &str, processor: &str| {
        let model = r#"{"type":"BPE","unk_token":null,"vocab":{"a":0},"merges":[]}"#;
        format!(r#"{{"version":"1.0","added_tokens":[],"decoder":{decoder},"post_processor":{processor},"model":{model}}}"#)
    };
    assert!(open(&with(r#"{"type" 1}"#, "null")).unwrap_err().contains("expected `:`"));
    // A template that names a token it does not describe.
    let template = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{}}"#;
    let tokenizer = open(&with("null", template)).unwrap();
    assert!(tokenizer.encode("a", true).unwrap_err().to_string().starts_with("the tokenizer failed"));
    assert_eq!(tokenizer.encode("a", false).unwrap(), [0]);
}
