//! The state machine of a run with made-up verdicts on really written models: what learns on the rung of training, what there is
//! no time for, and where a run that was stopped goes on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_eval::{
    Measures, Report,
    gates::{Gate, Outcome, Status},
    machine::Machine,
    report::Perplexity,
};
use octet_flow::{
    Calibration, Error, Prepared, QuantizeSettings, Staged,
    machine::{self, Candidate, Choice, Decision, End, Ended, Entry, Facts, Identity, Planned, Policy, Question, Request, Rung, Stages},
};
use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_quant::{Flags, Recipe, Samples, SolverChoice};
use octet_testkit::fixtures;
use serde_json::Value;
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Stages that write a tiny model and say of it what they were told.
struct Told<'a> {
    dir: &'a Path,
    engine: Engine,
    /// The gate that refuses a candidate, and its perplexity over the original's; by rung. What is not here is accepted.
    refused: &'a [(Rung, &'a str, f64)],
    /// Seconds that learning is forecast to take.
    learning: f64,
    /// The rung, and whether it is writing or judging that is interrupted on it.
    stop: Option<(Rung, &'a str)>,
    /// Whether candidates are calibrated.
    calibrated: bool,
    /// The rung being written.
    at: Rung,
    /// What was planned, written and judged.
    done: Vec<String>,
    /// What was said to begin.
    begun: Vec<Rung>,
}

impl Told<'_> {
    fn work(&mut self, what: &str) -> Result<(), Error> {
        self.done.push(what.into());
        if self.stop == Some((self.at, what)) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Some text, which nothing here is really calibrated on.
fn calibration() -> Calibration {
    let ids: Vec<u32> = (0..256).collect();
    let samples = Samples::draw(&ids, 2, 64, 0);
    Calibration {
        texts: vec![],
        sources: vec![],
        field: None,
        length: 64,
        text: samples.clone(),
        samples,
        sequential: true,
        memory_budget: u64::MAX,
        restart: false,
    }
}

impl Stages for Told<'_> {
    type Error = Error;

    fn is_stop(&self, error: &Error) -> bool {
        matches!(error, Error::Interrupted)
    }

    fn identity(&mut self) -> Result<Identity, Error> {
        Ok(Identity::new())
    }

    fn evaluate(&mut self) -> Result<Value, Error> {
        Ok(Value::Null)
    }

    fn begins(&mut self, candidate: &Candidate) {
        self.begun.push(candidate.rung);
    }

    fn plan(&mut self, candidate: &Candidate) -> Result<Planned, Error> {
        let learns = matches!(candidate.choice, Choice::Learning(_));
        self.at = candidate.rung;
        self.done.push(format!("plan {} x{}", candidate.label, candidate.calibration));
        let prepared = Prepared::new(&Folder::disk(&fixtures().join("arch/qwen3")).unwrap(), |spec| {
            let (scheme, solver) = ("w8a16".parse().unwrap(), SolverChoice::Rtn { candidates: None });
            let flags = Flags { scheme, embedding: None, head: None, portable: false, solver, transform: None };
            Ok(QuantizeSettings { recipe: Recipe::from_flags(&flags, spec.head().tied)?, label: "a".into(), strict: false, seed: 0 })
        })?;
        let calibration = self.calibrated.then(calibration);
        Ok(Planned { prepared, calibration, target: self.dir.join(&candidate.label), seconds: learns.then_some(self.learning) })
    }

    fn quantize(&mut self, planned: &Planned) -> Result<Staged, Error> {
        self.work("write")?;
        planned.prepared.write(&planned.target, false, true, &self.engine, &AtomicBool::new(false), &mut |_, _, _, _| {})
    }

    fn validate(&mut self, _: &Planned, _: &Staged) -> Result<Report, Error> {
        self.work("judge")?;
        let told = self.refused.iter().find(|(rung, ..)| *rung == self.at);
        let (gate, outcome, ratio) = told.map_or(("quality", Outcome::Passed, 1.0), |(_, gate, ratio)| (*gate, Outcome::Failed, *ratio));
        let mut report = Report::new(
            "a".into(),
            vec![Gate::new(gate, 0.0, 0.0, outcome, "")],
            false,
            Measures::default(),
            Machine::of(&self.engine),
            vec![],
        );
        report.measures.ppl = Some(Perplexity { base: 1.0, ratio: Some(ratio), ..PERPLEXITY });
        Ok(report)
    }

    fn commit(&mut self, _: &Planned, staged: Staged, _: &Report, _: &str) -> Result<PathBuf, Error> {
        staged.commit()
    }

    fn ask(&mut self, _: &Question, _: &Report) -> Option<bool> {
        None
    }

    fn decided(&mut self, _: &Entry) {}
}

const PERPLEXITY: Perplexity = Perplexity { base: 1.0, base_ci95: None, quant: None, quant_ci95: None, ratio: None, ratio_ci95: None };

/// Everything below training is refused for its quality; groups of 32 come nearest.
const ALL: [(Rung, &str, f64); 5] = [
    (Rung::Asked, "quality", 1.4),
    (Rung::Solver, "quality", 1.2),
    (Rung::Group, "health", 1.1),
    (Rung::Int8, "quality", 1.05),
    (Rung::Calibration, "quality", 1.15),
];

fn told<'a>(dir: &'a Path, refused: &'a [(Rung, &'a str, f64)]) -> Told<'a> {
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(1).unwrap()).unwrap();
    Told { dir, engine, refused, learning: 90.0, stop: None, calibrated: false, at: Rung::Asked, done: vec![], begun: vec![] }
}

fn walk(stages: &mut Told<'_>, max_minutes: Option<f64>) -> Result<Ended, Error> {
    let scheme = Some(("w4a16".parse().unwrap(), SolverChoice::Rtn { candidates: None }));
    let facts = Facts {
        label: "w4a16".into(),
        scheme,
        text: Ok(4),
        no_mixed: Some("not here".into()),
        no_training: None,
        no_checkpoint: "none was given".into(),
    };
    let request = Request { facts, log: stages.dir.join("log"), restart: false };
    machine::run(stages, &request, &Policy { max_minutes, auto: None, ..Policy::default() })
}

fn rung(ended: &Ended, name: &str) -> (String, String, String) {
    let found = ended.tried.iter().find(|tried| tried.rung == name).unwrap();
    (found.scheme.clone(), found.outcome.clone(), found.note.clone())
}

#[test]
fn what_came_nearest_learns_and_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut stages = told(dir.path(), &ALL);
    let ended = walk(&mut stages, None).unwrap();
    let End::Accepted { path, report } = &ended.end else { panic!("{:?}", ended.end) };
    assert_eq!((path.file_name().unwrap().to_str(), report.status), (Some("w4a16-g32-distilled"), Status::FellBack));
    let training = ended.entries.iter().find(|entry| entry.rung == Some(Rung::Training)).unwrap();
    assert!(training.reason.contains("w4a16-g32 came nearest, at +10.00 % of perplexity (smaller groups)"), "{}", training.reason);
    assert_eq!(rung(&ended, "training").1, "accepted");
    // The rung of more calibration came less near, so that the usual amount is learnt from.
    assert_eq!(stages.done[stages.done.len() - 3..], ["plan w4a16-g32-distilled x1", "write", "judge"]);
}

#[test]
fn what_is_refused_for_its_speed_does_not_learn() {
    let dir = tempfile::tempdir().unwrap();
    let slow: Vec<_> =
        ALL.into_iter().map(|(rung, _, ratio)| (rung, if rung == Rung::Int8 { "quality" } else { "speed" }, ratio)).collect();
    let ended = walk(&mut told(dir.path(), &slow), None).unwrap();
    assert!(matches!(ended.end, End::Kept { .. }));
    let (_, outcome, note) = rung(&ended, "training");
    assert!(outcome == "passed over" && note.contains("neither size nor speed"), "{outcome}: {note}");
}

#[test]
fn learning_that_would_take_too_long_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let mut stages = told(dir.path(), &ALL);
    let ended = walk(&mut stages, Some(1.0)).unwrap();
    assert!(matches!(ended.end, End::Kept { .. }));
    let (scheme, outcome, note) = rung(&ended, "training");
    assert_eq!((&*scheme, &*outcome), ("w4a16-g32-distilled", "passed over"));
    assert!(note.contains("about 1.5 minutes") && note.contains("of the 1 that"), "{note}");
    assert_eq!(stages.done.last().unwrap(), "plan w4a16-g32-distilled x1");
    assert_eq!(rung(&ended, "the original").1, "kept");
}

/// The work of a run that goes on after one that was stopped at `stop`.
fn gone_on(stop: (Rung, &str), calibrated: bool) -> (Vec<String>, Ended) {
    let dir = tempfile::tempdir().unwrap();
    let mut stages = Told { stop: Some(stop), calibrated, ..told(dir.path(), &ALL) };
    assert!(matches!(walk(&mut stages, None), Err(Error::Interrupted)));
    let mut stages = Told { calibrated, ..told(dir.path(), &ALL) };
    let ended = walk(&mut stages, None).unwrap();
    assert!(matches!(ended.end, End::Accepted { .. }), "{:?}", ended.end);
    let left: Vec<String> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, ["w4a16-g32-distilled"]);
    assert_eq!(stages.begun.first(), Some(&stop.0), "what was refused does not begin again");
    (stages.done.into_iter().filter(|done| !done.starts_with("plan")).collect(), ended)
}

#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    // What was refused is neither written nor judged again.
    let (work, ended) = gone_on((Rung::Training, "write"), false);
    assert_eq!(work, ["write", "judge"]);
    let climbed = ended.entries.iter().filter(|entry| entry.decision == Decision::Climb).count();
    assert_eq!((climbed, rung(&ended, "training").0), (5, "w4a16-g32-distilled".into()));
    // What was written after calibration is judged as it is; what is rounded anew in no time is not kept.
    assert_eq!(gone_on((Rung::Training, "judge"), true).0, ["judge"]);
    assert_eq!(gone_on((Rung::Training, "judge"), false).0, ["write", "judge"]);
    // Also where it is the first candidate; five more follow.
    let five = ["write", "judge"].repeat(5);
    assert_eq!(gone_on((Rung::Asked, "judge"), true).0, [&["judge"], &five[..]].concat());
    assert_eq!(gone_on((Rung::Asked, "judge"), false).0, ["write", "judge"].repeat(6));
}
