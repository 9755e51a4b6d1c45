//! `octet compare`, `octet verify --base`, and the gates that flags bring: sizes and questions.

use crate::sandbox::{Sandbox, prose};
use serde_json::{Value, json};
use std::fs;

/// Flags that make a verdict quick and independent of how busy the machine is.
const QUICK: &str = "--eval-tokens 4096 --health-prompts 4 --min-speedup 0";

fn gate<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["gates"].as_array().unwrap().iter().find(|gate| gate["name"] == name).unwrap_or_else(|| panic!("no gate {name}: {report:#}"))
}

/// The small model and an 8-bit variant of it that nobody judged.
fn pair() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny eight --scheme w8a16 --no-judge").done();
    sandbox
}

#[test]
fn compare_shows_both_texts_and_writes_a_page() {
    let sandbox = pair();
    let shown = sandbox.octet("compare tiny eight 'one two' three -n 12 --html page.html").done();
    assert_eq!(shown.stdout.matches("prompt ").count(), 2, "{}", shown.stdout);
    assert!(shown.stdout.contains("divergence  KL ") && shown.stdout.lines().all(|line| line.chars().count() <= 80), "{}", shown.stdout);
    let page = fs::read_to_string(sandbox.path("page.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("one two") && !page.contains("<script"), "{page}");
    sandbox.refuses("compare tiny eight one -n 4 --html page.html", &["page.html exists", "--force"]);
    sandbox.refuses("compare tiny eight one -n 0", &["-n 0"]);
    sandbox.write("lines.txt", "\n");
    sandbox.refuses("compare tiny eight --prompts lines.txt", &["holds no prompt"]);

    let itself = sandbox.octet("compare tiny tiny -n 6 --json").done().json();
    let prompts = itself["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 6);
    for prompt in prompts {
        assert_eq!((&prompt["parts_at"], &prompt["base"]), (&Value::Null, &prompt["quant"]), "{prompt:#}");
        assert!(prompt["kl"].as_f64().unwrap() < 1e-9 && prompt["tokens"][0]["same_top"] == json!(true), "{prompt:#}");
    }
}

#[test]
fn verify_judges_what_anyone_made_and_names_what_differs() {
    let sandbox = pair();
    let ended = sandbox.octet(&format!("verify eight --base tiny {QUICK} --json"));
    let document = ended.json();
    let report = &document["report"];
    assert_eq!((&gate(report, "integrity")["pass"], &gate(report, "quality")["outcome"]), (&json!(true), &json!("passed")), "{report:#}");
    assert_eq!((&document["claims"]["bits"], &document["claims"]["differences"]), (&json!([8]), &json!([])));
    assert_eq!(document["claims"]["found"][0]["code_bits"], json!(8));
    assert!(report["measures"]["cost"]["forecast_seconds"].as_f64().unwrap() > 0.0);

    // A tokenizer that was only saved anew is fine; one with two tokens exchanged is not.
    sandbox.write("eight/tokenizer.json", sandbox.json("eight/tokenizer.json").to_string());
    let shown = sandbox.octet(&format!("verify eight --base tiny {QUICK}"));
    assert!(shown.stdout.contains("pass      integrity") && shown.stdout.contains("stated      compressed-tensors"), "{shown:?}");
    sandbox.edit_json("eight/tokenizer.json", |tokenizer| {
        let vocab = &mut tokenizer["model"]["vocab"];
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        (vocab["a"], vocab["b"]) = (b, a);
    });
    let ended = sandbox.octet(&format!("verify eight --base tiny {QUICK}"));
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("REFUSED") && ended.stdout.contains("Unicode"), "{}", ended.stdout);
    sandbox.refuses_as(2, "verify eight", &["--base"]);
    sandbox.refuses_as(2, "verify --base tiny", &["QUANT"]);
}

#[test]
fn the_original_against_itself_is_accepted() {
    let sandbox = Sandbox::new();
    let report = sandbox.octet(&format!("verify tiny --base tiny {QUICK} --json")).done().json();
    for name in ["size", "speed", "memory"] {
        assert_eq!(gate(&report["report"], name)["outcome"], json!("not_applicable"), "{name}");
    }
    assert_eq!(report["claims"]["method"], json!("none"));
}

#[test]
fn sizes_and_questions_are_gates() {
    let sandbox = Sandbox::new();
    sandbox.write("questions.jsonl", "{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n");
    sandbox.write("own.txt", prose(6000, 3));
    let args = format!("quantize tiny --scheme w8a16 --max-size 10kB --tasks questions.jsonl --eval-text own.txt {QUICK} --json");
    let ended = sandbox.octet(&args);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let report = &ended.json()["reports"][0];
    assert_eq!((&gate(report, "size.max")["pass"], &gate(report, "size.max")["threshold"]), (&json!(false), &json!(10_000.0)));
    // One question decides nothing.
    assert_eq!((&gate(report, "tasks")["outcome"], &report["measures"]["tasks"]["questions"]), (&json!("undecided"), &json!(1)));
    sandbox.write("questions.jsonl", "{\"prompt\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n");
    sandbox.refuses("quantize tiny --tasks questions.jsonl", &["questions.jsonl, line 1", "give two or more"]);
    sandbox.refuses("quantize tiny --tasks nowhere.jsonl", &["nowhere.jsonl", "check the path"]);
    sandbox.refuses("quantize tiny --health-prompts 0", &["--health-prompts 0"]);
}

#[test]
fn what_the_original_makes_of_a_text_is_kept_and_believed_only_whole() {
    let sandbox = pair();
    let judge = |cache: &str| {
        let ended = sandbox.octet(&format!("verify eight --base tiny --reference-cache {cache} {QUICK} --json"));
        ended.json()["report"]["measures"].clone()
    };
    let first = judge("kept");
    assert_eq!(first["cost"]["reference_cached"], json!(false));
    let second = judge("kept");
    assert_eq!((&second["cost"]["reference_cached"], &second["kl"], &second["ppl"]), (&json!(true), &first["kl"], &first["ppl"]));
    for name in sandbox.names("kept") {
        let path = sandbox.path("kept").join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let third = judge("kept");
    assert_eq!((&third["kl"], &third["ppl"], &third["health"]), (&first["kl"], &first["ppl"], &first["health"]));
    let names = sandbox.names("kept");
    assert!(!names.is_empty() && judge("off")["kl"] == first["kl"] && sandbox.names("kept") == names);
}
