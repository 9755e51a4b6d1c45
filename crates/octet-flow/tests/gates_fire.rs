//! For every gate of a verdict a written model on which it fires, judged as `octet quantize` judges; and one on which none does.
//!
//! `size.linears` needs scales in 32 bits, which nothing here writes: a test of octet-eval has a model with such.
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

/// Tokens of each text: little, and enough for an interval of every tenth of long windows.
const LITTLE: usize = 1_400;
const ENOUGH_FOR_TENTHS: usize = 10_000;

/// Texts that models write where nothing is asked of them, and where it is: a figure that is worse in nearly all of twenty texts is
/// below the health gate's limit.
const FEW: usize = 2;
const ENOUGH: usize = 20;

/// The texts that come with the model.
static TEXTS: LazyLock<[EvalText; 3]> = LazyLock::new(|| {
    let folder = pocket();
    let text = std::fs::read_to_string(folder.path().unwrap().join("text/evaluation.jsonl")).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    ["hardware", "commands", "docs"].map(|kind| {
        let mark = format!("\"kind\": \"{kind}\"");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(&mark)).collect();
        let text = Text::parse(kind.into(), lines.join("\n"), true, ReadOptions::default()).unwrap();
        EvalText { name: kind.into(), ids: text.tokens(&tokenizer, 4096, 1).unwrap() }
    })
});

/// What a verdict rests on: little text, in short windows.
fn settings(limits: Thresholds, health_prompts: usize) -> JudgeSettings {
    JudgeSettings { context: Some(64), ..settings_of(LITTLE, limits, health_prompts) }
}

fn settings_of(tokens: usize, limits: Thresholds, health_prompts: usize) -> JudgeSettings {
    let first = |text: &EvalText| EvalText { name: text.name.clone(), ids: text.ids.iter().copied().take(tokens).collect() };
    JudgeSettings {
        texts: TEXTS.iter().map(first).collect(),
        context: None,
        thresholds: limits,
        seed: 0,
        tasks: None,
        health_prompts,
        store: None,
        command: vec![],
    }
}

/// What the original makes of little text, once for all tests that ask for few texts.
static ORIGINAL: LazyLock<Mutex<Original>> = LazyLock::new(|| Mutex::new(open(&settings(Thresholds::default(), FEW))));

fn open(settings: &JudgeSettings) -> Original {
    Original::open(&pocket(), &ENGINE, settings).unwrap()
}

fn judge(files: &Files, origin: Origin, settings: &JudgeSettings) -> octet_flow::Result<Report> {
    if settings.health_prompts == FEW {
        judge_against(&mut ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner), files, origin, settings)
    } else {
        judge_against(&mut open(settings), files, origin, settings)
    }
}

fn judge_against(original: &mut Original, files: &Files, origin: Origin, settings: &JudgeSettings) -> octet_flow::Result<Report> {
    let never = std::sync::atomic::AtomicBool::new(false);
    Ok(judge_folder(original, &files.folder("variant"), "w8a16", origin, settings, &ENGINE, &never, &mut |_, _, _, _| {})?.report)
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
    fires_with(name, gates, &settings(limits, FEW));
}

#[track_caller]
fn fires_with(name: &str, gates: &[&str], settings: &JudgeSettings) {
    let (files, origin) = damaged(name);
    let report = judge(&files, origin, settings).unwrap();
    assert_eq!(report.status, Status::Refused, "{name}");
    for gate in gates {
        assert!(fired(&report).contains(gate), "{name}: {gate} among {:?}", fired(&report));
    }
}

#[test]
fn nothing_fires_on_good_8_bits() {
    let report = judge(&GOOD, Origin::Octet { forecast: Some(GOOD.bytes()) }, &settings(Thresholds::default(), ENOUGH)).unwrap();
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
fn quality_along_the_context() {
    let limits = Thresholds { early_stop: false, ..Thresholds::default() };
    let settings = JudgeSettings { context: Some(cases::WINDOW), ..settings_of(ENOUGH_FOR_TENTHS, limits, FEW) };
    let mut short = Files::read(pocket().path().unwrap()).unwrap();
    short.positions(cases::EVEN).unwrap();
    let mut original = Original::open(&short.folder("original"), &ENGINE, &settings).unwrap();
    let (mut files, _) = damaged(cases::BREAKS_LATE);
    files.positions(cases::EVEN).unwrap();
    let report = judge_against(&mut original, &files, Origin::Elsewhere, &settings).unwrap();
    let gate = report.gates.iter().find(|gate| gate.name == "quality.position").unwrap();
    assert!(gate.outcome == Outcome::Failed && gate.blocking, "{gate:?}");
    assert!(gate.note.contains("breaks along the context"), "{}", gate.note);
}

#[test]
fn health() {
    fires_with("head scaled by 8: sampling as good as greedy", &["health"], &settings(Thresholds::default(), ENOUGH));
}

#[test]
fn speed_memory_and_tasks() {
    let text = std::fs::read_to_string(pocket().path().unwrap().join("text/tasks.jsonl")).unwrap();
    let some: Vec<&str> = text.lines().step_by(8).collect();
    let tasks = Some(TaskSet::parse("pocket", &some.join("\n")).unwrap());
    let settings = JudgeSettings { tasks, ..settings(Thresholds::default(), FEW) };
    fires_with("a slow path: eight times the layers", &["speed", "memory", "tasks"], &settings);
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
    let Err(error) = judge(&files, origin, &settings(Thresholds::default(), FEW)) else { panic!("it opened") };
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}
