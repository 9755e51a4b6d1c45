//! Calibration and evaluation texts that cannot be used.

use crate::sandbox::{Sandbox, prose};

#[test]
fn empty_texts() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("blank.txt", " \n\n");
    for (text, flag) in
        [("empty.txt", "--eval-text"), ("blank.txt", "--eval-text"), ("empty.txt", "--calibration"), ("blank.txt", "--calibration")]
    {
        sandbox.refuses(&format!("quantize tiny --scheme w4a16 {flag} {text}"), &[text, "tokens", "needed"]);
    }
    sandbox.refuses("eval tiny --eval-text empty.txt", &["empty.txt", "tokens", "needed"]);
}

#[test]
fn texts_that_are_too_short() {
    let sandbox = Sandbox::new();
    sandbox.write("short.txt", prose(1_000, 1));
    sandbox.write("also.txt", prose(500, 2));
    sandbox
        .refuses("quantize tiny --preset w8 --eval-text short.txt", &["short.txt has only 1000 tokens, at least 2048", "give 1048 more"]);
    sandbox.refuses(
        "quantize tiny --preset w8 --eval-text short.txt also.txt",
        &["short.txt, also.txt has only 1500 tokens", "give 548 more"],
    );
    sandbox
        .refuses("quantize tiny --preset w8 --calibration short.txt", &["short.txt has only 1000 tokens, at least 4096", "give 3096 more"]);
    sandbox.refuses("quantize tiny --no-judge --calibration short.txt", &["short.txt has only 1000 tokens", "give 3096 more"]);
    sandbox.refuses("eval tiny --eval-text also.txt", &["also.txt has only 500 tokens", "give 524 more"]);
}

#[test]
fn overlapping_texts() {
    let sandbox = Sandbox::new();
    let (first, second) = (prose(6_000, 1), prose(6_000, 2));
    sandbox.write("notes.txt", &first);
    sandbox.write("judge.txt", format!("{second}{}", &first[..2_000]));
    let says = ["judge.txt overlaps notes.txt", "give other evaluation text"];
    sandbox.refuses("quantize tiny --scheme w4a16 --calibration notes.txt --eval-text judge.txt", &says);
    sandbox.refuses("quantize tiny --preset w8 --calibration notes.txt --eval-text notes.txt", &["notes.txt overlaps notes.txt: 100.0 %"]);
}

#[test]
fn texts_that_cannot_be_read() {
    let sandbox = Sandbox::new();
    sandbox.write("latin.txt", [&[0xe9; 16][..], prose(6_000, 1).as_bytes()].concat());
    sandbox.write("lines.jsonl", format!("{{\"text\": \"{}\"}}\n{{\"text\": \n", prose(6_000, 1)));
    sandbox.write("fields.jsonl", "{\"prompt\": \"hello\"}\n");
    sandbox.write("ids.bin", [7u16, 320, 9].iter().cycle().take(6_000).flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    sandbox.write("odd.bin", [0; 6_001]);
    for (text, says) in [
        ("absent.txt", &["absent.txt", "check the path"][..]),
        ("latin.txt", &["latin.txt", "UTF-8"]),
        ("lines.jsonl", &["lines.jsonl, line 2"]),
        ("fields.jsonl", &["fields.jsonl, line 1", "\"text\"", "--text-field"]),
        ("ids.bin", &["ids.bin", "token id 320", "320"]),
        ("odd.bin", &["odd.bin", "6001 bytes", "write it again"]),
        ("tiny", &["tiny", "check the path"]),
    ] {
        sandbox.refuses(&format!("quantize tiny --eval-text {text}"), says);
        sandbox.refuses(&format!("quantize tiny --scheme w4a16 --no-judge --calibration {text}"), says);
        sandbox.refuses(&format!("eval tiny --eval-text {text}"), says);
    }
}

#[test]
fn a_field_of_ones_own() {
    let sandbox = Sandbox::new();
    sandbox.write("fields.jsonl", format!("{{\"prompt\": \"{}\"}}\n", prose(2_000, 1)));
    let measured = sandbox.octet("eval tiny --eval-text fields.jsonl --text-field prompt --json").done().json();
    assert_eq!(measured["measures"]["text"]["name"], "fields.jsonl");
}
