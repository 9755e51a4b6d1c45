//! `octet bench`: what it reports, and requests it cannot meet.

use crate::sandbox::Sandbox;
use serde_json::{Value, json};
use std::fs;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn documents_hold_what_they_promise() {
    let sandbox = Sandbox::new();
    sandbox.octet("quantize tiny small --no-judge --scheme w8a8").done();
    let args = "bench tiny small --prefill 8,16 --context 0,32 --batch 1,3 --decode 4 --reps 2 --json --svg roofline.svg --threads 1";
    let document = sandbox.octet(args).done().json();
    assert_eq!(document.as_array().unwrap().len(), 2);
    for (index, one) in document.as_array().unwrap().iter().enumerate() {
        for key in
            ["model", "scheme", "threads", "isa", "prefill", "decode", "load_ms", "first_token_ms", "peak_rss_mb", "limits", "kernels"]
        {
            assert!(one.get(key).is_some(), "no {key}");
        }
        assert_eq!((&one["model"], &one["threads"]), (&json!(["tiny", "small"][index]), &json!(1)));
        let prefill: Vec<&Value> = one["prefill"].as_array().unwrap().iter().collect();
        assert_eq!(prefill.iter().map(|p| number(&p["tokens"])).collect::<Vec<_>>(), [8.0, 16.0]);
        let decode: Vec<&Value> = one["decode"].as_array().unwrap().iter().collect();
        let rows: Vec<(f64, f64)> = decode.iter().map(|d| (number(&d["context"]), number(&d["batch"]))).collect();
        assert_eq!(rows, [(0.0, 1.0), (32.0, 1.0), (0.0, 3.0)]);
        for row in prefill.iter().chain(&decode) {
            let [low, high] = [0, 1].map(|i| number(&row["tok_s_quartiles"][i]));
            assert!(low > 0.0 && low <= number(&row["tok_s"]) && number(&row["tok_s"]) <= high, "{row:#}");
            assert!(number(&row["share"]) > 0.0 && number(&row["gop_s"]) > 0.0 && row["rounds"] == json!(2), "{row:#}");
            assert!(row["cpu_ms_per_token"].is_number() || !cfg!(unix), "{row:#}");
            assert!(row.get("joules_per_token").is_some(), "{row:#}");
            assert_eq!(row["ratio"].is_null(), index == 0, "{row:#}");
        }
        for row in &decode {
            assert!(number(&row["gb_s"]) > 0.0 && row["steps"] == json!(4), "{row:#}");
        }
        for limit in ["read_gb_s", "int8_gop_s", "f32_gflop_s"] {
            assert!(number(&one["limits"][limit]) > 0.0, "{limit}");
        }
        assert!(number(&one["load_ms"]) <= number(&one["first_token_ms"]));
    }
    // Four bytes a weight against one.
    let weights = |i: usize| number(&document[i]["weight_mb"]);
    assert!(weights(0) > 3.0 * weights(1) && weights(1) > 0.0, "{} and {}", weights(0), weights(1));
    let drawing = fs::read_to_string(sandbox.path("roofline.svg")).unwrap();
    assert!(drawing.starts_with("<svg ") && drawing.contains("prefill 16") && drawing.contains("decode x3"), "{drawing}");
}

#[test]
fn defaults_are_cut_to_what_a_model_can_see() {
    let shown = Sandbox::new().octet("bench tiny tiny --quick --reps 1 --context 0,64 --batch 16,1 --decode 2").done().stdout;
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    for word in [
        "tiny",
        "f32",
        "prefill 128",
        "decode",
        "tok/s",
        "of limit",
        "CPU ms",
        "limits: read",
        "energy:",
        "first token after",
        "vs first",
        "decode at 64 x16",
    ] {
        assert!(shown.contains(word), "{word}\n{shown}");
    }
    // The small model sees 256 tokens: one prompt of them instead of 512 and 2048, and room for what is decoded.
    let sandbox = Sandbox::new();
    let document = sandbox.octet("bench tiny --reps 1 --json").done().json();
    let lengths: Vec<f64> = document[0]["prefill"].as_array().unwrap().iter().map(|p| number(&p["tokens"])).collect();
    assert_eq!(lengths, [128.0, 256.0]);
    let contexts: Vec<f64> = document[0]["decode"].as_array().unwrap().iter().map(|d| number(&d["context"])).collect();
    assert_eq!(contexts, [0.0, 128.0, 0.0]);
}

#[test]
fn requests_that_cannot_be_met() {
    let sandbox = Sandbox::new();
    sandbox.write("here.svg", "mine");
    for (args, says) in [
        ("nowhere", &["no folder nowhere"][..]),
        ("tiny nowhere", &["no folder nowhere"]),
        ("tiny --prefill 0", &["--prefill", "give 1 or more"]),
        ("tiny --decode 0", &["--decode", "give 1 or more"]),
        ("tiny --batch 0", &["--batch 0", "1 to 256"]),
        ("tiny --batch 1,1000", &["--batch 1000", "1 to 256"]),
        ("tiny --prefill 512", &["--prefill", "512", "256", "give less"]),
        ("tiny --context 256", &["--context", "260", "256", "give less"]),
        ("tiny --decode 257", &["--decode", "257", "256"]),
        ("tiny --threads 0", &["--threads 0"]),
        ("tiny --svg here.svg", &["here.svg exists", "--force"]),
        ("tiny --svg no/where.svg", &["no folder no"]),
    ] {
        sandbox.refuses(&format!("bench {args}"), says);
    }
    sandbox.refuses_as(2, "bench", &["MODELS"]);
    sandbox.refuses_as(2, "bench tiny --reps 0", &["--reps"]);
    sandbox.refuses_as(2, "bench tiny --prefill many", &["--prefill", "many"]);
    sandbox.refuses_as(2, "bench tiny --context -1", &["-1"]);
    sandbox.refuses_as(2, "bench tiny --force", &["--svg"]);
}
