//! `--distill`: what is learnt is written, said and done again to the letter; what cannot be is refused.

use crate::sandbox::{Sandbox, prose};
use serde_json::Value;

const RUN: &str = "quantize tiny out --scheme w4ta16-g32 --method gptq --distill 8 --no-judge --calibration notes.txt \
                   --calibration-samples 16 --calibration-length 64";

#[test]
fn a_distilled_folder_says_so_and_its_receipt_gives_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.octet(RUN).done();
    let described = sandbox.json("out/quantization_config.json");
    assert_eq!((&described["method"], &described["scheme"]), (&Value::from("gptq+distill"), &Value::from("w4ta16-g32-distilled")));
    let said = described["calibration"]["transforms"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let learnt = said.iter().find(|text| text.contains("8 steps on")).unwrap();
    assert!(learnt.contains("of them written by the original") && learnt.contains("held-out windows"), "{learnt}");
    let again = sandbox.octet("reproduce out --threads 1 --json").done().json();
    assert_eq!(again["identical"], true, "{again}");
    sandbox.octet(&RUN.replace("--distill 8 ", "").replace(" out ", " plain ")).done();
    let weights = |folder: &str| std::fs::read(sandbox.path(folder).join("model.safetensors")).unwrap();
    assert_ne!(weights("out"), weights("plain"));
}

#[test]
fn what_cannot_be_distilled_is_refused_in_words() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    sandbox.refuses(&format!("{RUN} --memory-budget 20kB"), &["distilling needs", "1 MB may be taken", "--memory-budget"]);
    sandbox.write("twice.toml", "[[step]]\naction='distill'\n[[step]]\naction='distill'\nsteps=3\n");
    sandbox.refuses("quantize tiny --recipe twice.toml --no-judge", &["two distill steps", "leave one out"]);
    sandbox.write("slow.toml", "[[step]]\naction='distill'\nsteps=0\n");
    sandbox.refuses("quantize tiny --recipe slow.toml --no-judge", &["learns in no step; give it steps, block_steps or both"]);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(octet_testkit::fixtures().join("arch/qwen3-moe").join(name), sandbox.path("tiny").join(name)).unwrap();
    }
    sandbox.refuses(RUN, &["the mixture of experts of block 0 cannot be trained", "leave distillation off"]);
    sandbox.refuses_as(2, "quantize tiny --distill --fast", &["cannot be used with"]);
}

#[test]
fn effort_decides_what_follows_and_every_one_is_forecast() {
    let sandbox = Sandbox::new();
    sandbox.write("notes.txt", prose(20_000, 1));
    let plan = |effort: &str, json: &str| {
        sandbox.octet(&format!("quantize tiny --preset w4 --effort {effort} --dry-run --calibration notes.txt {json}")).done()
    };
    let solved = |effort| plan(effort, "").stdout.contains("w4ta16-g32 gptq");
    assert_eq!(["fast", "normal", "best"].map(solved), [false, true, true]);
    let seconds = |effort| plan(effort, "--json").json()[0]["forecast"]["calibration"]["distillation"]["seconds"].as_f64();
    assert_eq!(["fast", "normal"].map(seconds), [None, None]);
    assert!(seconds("best").unwrap() > 0.0);
    let unmeasured = sandbox.octet("quantize tiny --preset w4 --effort fast --dry-run --json").done().json();
    assert!(unmeasured[0]["forecast"]["calibration"].is_null(), "{unmeasured}");
    sandbox.refuses_as(2, "quantize tiny --preset w8 --effort best", &["--effort is for the presets mixed and w4"]);
    sandbox.refuses("quantize tiny --preset w4 --effort best --no-calibration --no-judge", &["distillation", "leave --no-calibration out"]);
}
