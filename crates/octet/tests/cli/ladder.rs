//! What follows a verdict: rungs, questions, scores, the way back.

use crate::sandbox::{Sandbox, prose};
use serde_json::{Value, json};
use std::fs;

/// Lines of a decision log.
fn log(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const QUICK: &str = "--eval-tokens 8192 --context 128 --health-prompts 2 --min-speedup 0";

#[test]
fn an_impossible_gate_walks_every_rung_and_keeps_the_original() {
    let sandbox = Sandbox::new();
    // Twice as much text as is drawn, and little of it, since learning goes through all of it many times.
    sandbox.write("notes.txt", prose(9_000, 3));
    let drawn = "--calibration notes.txt --calibration-samples 16 --calibration-length 256";
    let command = format!("quantize tiny --scheme w4a16 {drawn} --max-ppl-increase -50 {QUICK}");
    let ended = sandbox.octet(&command);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    for rung in [
        "as asked",
        "better solver",
        "smaller groups",
        "mixed precision",
        "8 bits",
        "more calibration",
        "training",
        "another checkpoint",
        "the original kept",
    ] {
        assert!(ended.stdout.contains(rung), "no {rung}: {}", ended.stdout);
    }
    let table = &ended.stdout[ended.stdout.find("rung ").unwrap()..];
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert_eq!(
        sandbox.names(""),
        ["notes.txt", "quantization_summary.json", "tiny", "tiny-w4a16.refused.json", "tiny-w4a16.refused.jsonl"]
    );
    let report = sandbox.json("tiny-w4a16.refused.json");
    let measured = report["ladder"].as_array().unwrap().iter().filter(|rung| rung["ratio"].is_number()).count();
    assert!(measured >= 6, "{:#}", report["ladder"]);
    let training = report["ladder"].as_array().unwrap().iter().find(|rung| rung["rung"] == json!("training")).unwrap();
    assert!(training["scheme"].as_str().unwrap().ends_with("-distilled") && training["ratio"].is_number(), "{training:#}");
    let entries = log(&fs::read_to_string(sandbox.path("tiny-w4a16.refused.jsonl")).unwrap());
    assert_eq!((&entries[0]["state"], &entries.last().unwrap()["decision"]), (&json!("evaluate"), &json!("keep")));
    let learnt = entries.iter().find(|entry| entry["rung"] == json!("training") && entry["state"] == json!("quantize")).unwrap();
    assert!(learnt["reason"].as_str().unwrap().contains("came nearest, at "), "{learnt:#}");
    assert!(learnt["figures"]["calibration"].to_string().contains("held-out windows"), "{learnt:#}");
    for entry in &entries {
        assert!(entry["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{entry:#}");
    }
}

#[test]
fn a_refusal_falls_back_to_what_passes_and_says_so() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 3));
    let command = format!("quantize tiny --scheme w2a16 --calibration notes.txt --graph path.svg --yes --json {QUICK}");
    let ended = sandbox.octet(&command).done();
    let document = ended.json();
    let report = &document["reports"][0];
    assert_eq!(report["status"], json!("fell_back"), "{report:#}");
    assert_ne!(report["scheme"], json!("w2a16"));
    let path = document["paths"][0].as_str().unwrap();
    assert!(path.ends_with(&format!("tiny-{}", report["scheme"].as_str().unwrap())), "{path}");
    for file in ["report.html", "decision_log.jsonl", "receipt.json", "validation_report.json"] {
        assert!(fs::metadata(format!("{path}/{file}")).unwrap().len() > 100, "{file}");
    }
    assert!(fs::read_to_string(sandbox.path("path.svg")).unwrap().contains("edge taken"));
    sandbox.octet(&format!("verify --receipt {path}")).done();
    assert!(report["trinity"]["score"].is_number() && report["risk"]["score"].is_number(), "{report:#}");
}

#[test]
fn an_open_question_waits_for_its_answer() {
    let sandbox = Sandbox::new();
    let command = format!("quantize tiny --scheme w8a16 --auto-score 100 {QUICK}");
    let ended = sandbox.octet(&command);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("ASK:") && ended.stdout.contains("--yes") && ended.stdout.contains("below 100"), "{ended:?}");
    assert!(!sandbox.path("tiny-w8a16").exists());
    let ended = sandbox.octet(&format!("{command} --yes")).done();
    // What was judged is not judged again.
    assert!(!ended.stderr.contains("judging:"), "{ended:?}");
    let entries = log(&fs::read_to_string(sandbox.path("tiny-w8a16/decision_log.jsonl")).unwrap());
    let last = &entries[entries.len() - 2];
    assert_eq!((&last["state"], &last["decision"]), (&json!("ask"), &json!("accept")), "{last:#}");
    let declined = sandbox.octet(&format!("{command} --no --force"));
    assert_eq!(declined.code, Some(3), "{declined:?}");
    assert!(declined.stdout.contains("DECLINED") && !declined.stdout.contains("ACCEPTED"), "{declined:?}");
    assert!(sandbox.path("tiny-w8a16").exists());
    sandbox.refuses_as(2, "quantize tiny --yes --no", &["--yes", "--no"]);
}

#[test]
fn variants_are_ranked_run_and_rolled_back() {
    let sandbox = Sandbox::new();
    let ended = sandbox.octet(&format!("quantize tiny variants --scheme w8a16,w8a8 --json {QUICK}")).done();
    let summary = &ended.json()["summary"];
    assert_eq!(summary["ranking"][0]["kind"], json!("baseline 16-bit"), "{summary:#}");
    let kinds: Vec<&str> = summary["ranking"].as_array().unwrap().iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"INT8 weight-only") && kinds.contains(&"INT8 dynamic"), "{kinds:?}");
    for key in ["memory_mb", "inference_ms", "trinity_score"] {
        assert!(summary["ranking"].as_array().unwrap().iter().all(|line| line[key].is_number()), "{key}: {summary:#}");
    }
    assert!(fs::read_to_string(sandbox.path("variants/quantization_summary.html")).unwrap().contains("INT8 dynamic"));
    let current = || fs::read_to_string(sandbox.path("variants/current")).unwrap();
    assert!(current().starts_with("tiny-w8a") && current().contains("original "), "{}", current());
    sandbox.octet("run variants ab --max-tokens 2").done();
    let scored = sandbox.octet("score variants/tiny-w8a16 variants/tiny-w8a8 --json").done().json();
    assert!(scored.as_array().unwrap().iter().all(|one| one["trinity"]["score"] == one["recorded"]), "{scored:#}");
    let back = sandbox.octet("rollback variants --json").done().json();
    assert_eq!(back["original"], json!(true), "{back:#}");
    assert_eq!(sandbox.names("variants"), ["current", "quantization_summary.html", "quantization_summary.json", "tiny-w8a16", "tiny-w8a8"]);
    sandbox.octet("run variants ab --max-tokens 2").done();
    sandbox.refuses("rollback variants", &["at the original already"]);
    sandbox.refuses("rollback tiny", &["nothing to go back from"]);
}

#[test]
fn agents_call_tools_with_json() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(8_000, 3));
    sandbox.write("test.txt", prose(8_000, 4));
    let names: Vec<String> =
        sandbox.octet("schema").done().json().as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_string()).collect();
    assert_eq!(names, ["quantize_model", "validate_quantization", "compare_outputs"]);
    let call = |name: &str, request: Value| {
        let mut command = sandbox.command();
        command.args(["tool", name]).write_stdin(request.to_string());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let request = json!({ "checkpoint_path": "tiny", "output_path": "out", "quant_type": "w4a16-g32", "calibration_dataset": "notes.txt" });
    let (code, out, err) = call("quantize_model", request.clone());
    assert_eq!(code, Some(0), "{err}");
    let made: Value = serde_json::from_str(&out).unwrap();
    assert!(made["calibration_tokens"].as_u64().unwrap() > 4000 && made["bits_per_weight"].as_f64().unwrap() < 6.0, "{made:#}");
    sandbox.octet("verify --receipt out").done();
    let (code, _, err) = call("quantize_model", request);
    assert!(code == Some(1) && err.contains("exists already"), "{err}");
    let request = json!({ "original_model": "tiny", "quantized_model": "out", "prompts": ["abc", "xyz"], "max_tokens": 8 });
    let (code, out, err) = call("compare_outputs", request);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outputs"].as_array().unwrap().len(), 2);
    let request = json!({ "original_path": "tiny", "quantized_path": "out", "test_dataset": "test.txt", "max_tokens": 4096, "max_ppl_increase": -50 });
    let (code, out, err) = call("validate_quantization", request);
    assert_eq!(code, Some(3), "{err}");
    let verdict: Value = serde_json::from_str(&out).unwrap();
    assert!(verdict["accepted"] == json!(false) && verdict["summary"].as_str().unwrap().contains("quality"), "{verdict:#}");
    let nothing = json!({ "original_model": "tiny", "quantized_model": "out", "prompts": ["abc"], "max_tokens": 0 });
    let (code, _, err) = call("compare_outputs", nothing);
    assert!(code == Some(1) && err.contains("max_tokens 0 compares nothing"), "{err}");
    let (code, _, err) = call("compare_outputs", json!({ "original": "tiny" }));
    assert!(code == Some(1) && err.contains("octet schema compare_outputs"), "{err}");
}

/// A sandbox with the small model as the checkpoints of a run.
fn run_of(steps: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("run")).unwrap();
    for step in steps {
        crate::sandbox::write_tiny(&sandbox.path("run").join(step));
    }
    sandbox
}

#[test]
fn all_checkpoints_are_compared_and_the_best_is_in_use() {
    let sandbox = run_of(&["step_1", "step_2"]);
    // Random weights are worse than knowing nothing, which is what a huge epsilon in every norm comes to.
    sandbox.edit_json("run/step_1/config.json", |config| config["rms_norm_eps"] = json!(100.0));
    let command = format!("quantize run/step_1 run/step_2 out --scheme w8a16 {QUICK}");
    let shown = sandbox.octet(&command).done().stdout;
    assert!(shown.contains("Another checkpoint quantizes better: step_1"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    for name in ["step_1-w8a16", "step_2-w8a16"] {
        sandbox.octet(&format!("verify --receipt out/{name}")).done();
    }
    assert!(fs::read_to_string(sandbox.path("out/current")).unwrap().starts_with("step_1-w8a16"));
    let document = sandbox.octet(&format!("{command} --force --json")).done().json();
    assert_eq!(document["best"], json!("step_1"), "{:#}", document["checkpoints"]);
    let rows = document["checkpoints"].as_array().unwrap();
    let quantized = |row: &Value| row["ppl_quantized"].as_f64().unwrap();
    assert!(rows.len() == 2 && quantized(&rows[1]) < quantized(&rows[0]), "{rows:#?}");
    sandbox.refuses_as(2, "quantize run/step_1 --checkpoint other/../run/step_1", &["two checkpoints are called step_1"]);
}

#[test]
fn where_no_checkpoint_is_accepted_the_nearest_walks_the_ladder() {
    let sandbox = run_of(&["step_1", "step_2"]);
    let ended = sandbox.octet(&format!("quantize run/step_1 run/step_2 out --scheme w8a16 --max-ppl-increase -50 {QUICK}"));
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("all 2 were compared as asked"), "{}", ended.stdout);
    assert!(ended.stdout.contains("No checkpoint was accepted"), "{}", ended.stdout);
    for name in ["step_1-w8a16.refused.json", "step_2-w8a16.refused.json"] {
        assert!(sandbox.path("out").join(name).exists(), "{name}");
    }
    assert!(!sandbox.path("out/current").exists());
}
