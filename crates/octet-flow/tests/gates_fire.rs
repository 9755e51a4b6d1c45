//! For every gate of a verdict a written model on which it fires, judged as `octet quantize` judges; and one on which none does.
//!
//! `size.linears` needs scales in 32 bits, which nothing here writes: a test of octet-eval has a model with such. For
//! `quality.position` no damage to the built-in model is late in the context: it is tested on comparisons that break late.
//! The graded tables of docs/judging.md are made of the same damage by the program in `examples/sabotage`, on more text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../examples/sabotage/cases.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod cases;
#[path = "../examples/sabotage/files.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod files;

use files::Files;
use octet_eval::{
    EvalText, Report,
    gates::{Outcome, Status, Thresholds},
    tasks::TaskSet,
    text::{ReadOptions, Text},
};
use octet_flow::{JudgeSettings, Origin, Original, judge_folder};
use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_runtime::Tokenizer;
use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{LazyLock, Mutex, PoisonError},
};

static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap());

fn pocket() -> Folder {
    Folder::disk(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")).unwrap()
}

/// Good 8 bits, to be damaged.
static GOOD: LazyLock<Files> = LazyLock::new(|| Files::quantized(&pocket(), "w8a16", &ENGINE).unwrap());

/// Tokens of all texts.
const TOKENS: usize = 4_200;

/// What a verdict rests on: little text, in short windows.
fn settings(limits: Thresholds) -> JudgeSettings {
    let folder = pocket();
    let text = std::fs::read_to_string(folder.path().unwrap().join("text/evaluation.jsonl")).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let one = |kind: &str| {
        let mark = format!("\"kind\": \"{kind}\"");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(&mark)).collect();
        let text = Text::parse(kind.into(), lines.join("\n"), true, ReadOptions::default()).unwrap();
        let mut ids = text.tokens(&tokenizer, 4096, 1).unwrap();
        ids.truncate(TOKENS / 3);
        EvalText { name: kind.into(), ids }
    };
    JudgeSettings {
        texts: ["hardware", "commands", "docs"].map(one).into(),
        context: Some(64),
        thresholds: limits,
        seed: 0,
        tasks: None,
        // A figure that is worse in nearly all of twenty texts is below the health gate's limit.
        health_prompts: 20,
        store: None,
        command: vec![],
    }
}

/// What the original makes of little text, once for all tests.
static ORIGINAL: LazyLock<Mutex<Original>> =
    LazyLock::new(|| Mutex::new(Original::open(&pocket(), &ENGINE, &settings(Thresholds::default())).unwrap()));

fn judge(files: &Files, origin: Origin, settings: &JudgeSettings) -> octet_flow::Result<Report> {
    let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
    let never = std::sync::atomic::AtomicBool::new(false);
    let judged = judge_folder(&mut original, &files.folder("variant"), "w8a16", origin, settings, &ENGINE, &never, &mut |_, _, _, _| {});
    Ok(judged?.report)
}

/// The blocking gates that failed.
fn fired(report: &Report) -> Vec<&str> {
    report.gates.iter().filter(|gate| gate.blocking && gate.outcome == Outcome::Failed).map(|gate| gate.name.as_str()).collect()
}

/// The good model with the damage called `name`.
fn damaged(name: &str) -> (Files, Origin) {
    let all = cases::sabotages();
    let case = all.into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no sabotage {name}"));
    let mut files = GOOD.clone();
    assert_ne!((case.damage)(&mut files).unwrap(), 0, "{name}: nothing was damaged");
    let origin = if case.elsewhere { Origin::Elsewhere } else { Origin::Octet { forecast: Some(GOOD.bytes()) } };
    (files, origin)
}

#[track_caller]
fn fires(name: &str, gates: &[&str], limits: Thresholds) {
    let (files, origin) = damaged(name);
    let report = judge(&files, origin, &settings(limits)).unwrap();
    assert_eq!(report.status, Status::Refused, "{name}");
    for gate in gates {
        assert!(fired(&report).contains(gate), "{name}: {gate} among {:?}", fired(&report));
    }
}

#[test]
fn nothing_fires_on_good_8_bits() {
    let report = judge(&GOOD, Origin::Octet { forecast: Some(GOOD.bytes()) }, &settings(Thresholds::default())).unwrap();
    // On a busy machine speed is what it is; every other gate is independent of that.
    assert!(fired(&report).iter().all(|gate| *gate == "speed"), "{:?}", fired(&report));
}

#[test]
fn quality_of_all_texts_and_of_one_and_fidelity() {
    let strict = Thresholds { strict: true, ..Thresholds::default() };
    fires("head scaled by 1.3", &["quality", "quality.docs", "fidelity.kl"], strict);
    // A scaled head puts the same token first; noise does not.
    fires("all layers at 2 bits", &["quality", "fidelity.kl", "fidelity.top1"], strict);
}

#[test]
fn health() {
    fires("head scaled by 8: sampling as good as greedy", &["health"], Thresholds::default());
}

#[test]
fn speed_and_memory() {
    fires("a slow path: eight times the layers", &["speed", "memory"], Thresholds::default());
}

#[test]
fn sizes() {
    let limits = Thresholds { max_bytes: Some(1_000_000), ..Thresholds::default() };
    fires("a forgotten file of 200 kB in the folder", &["size.forecast", "size.max"], limits);
}

#[test]
fn integrity() {
    fires("one merge of the tokenizer changed", &["integrity"], Thresholds::default());
    fires("the same, tokenizer saved anew by another tool", &["integrity"], Thresholds::default());
}

#[test]
fn a_truncated_file_does_not_open() {
    let (files, origin) = damaged("weights cut short by a tenth");
    let Err(error) = judge(&files, origin, &settings(Thresholds::default())) else { panic!("it opened") };
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn tasks() {
    let text = std::fs::read_to_string(pocket().path().unwrap().join("text/tasks.jsonl")).unwrap();
    let some: Vec<&str> = text.lines().step_by(2).collect();
    let tasks = Some(TaskSet::parse("pocket", &some.join("\n")).unwrap());
    let (files, origin) = damaged("a slow path: eight times the layers");
    let report = judge(&files, origin, &JudgeSettings { tasks, ..settings(Thresholds::default()) }).unwrap();
    let gate = report.gates.iter().find(|gate| gate.name == "tasks").unwrap();
    assert_eq!(gate.outcome, Outcome::Failed, "{gate:?}");
}
