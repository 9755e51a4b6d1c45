//! What the gates catch and what they let through: sabotaged and clean variants of the built-in model, judged for real.
//!
//!     cargo run --release -p octet-flow --example sabotage -- sabotage|clean|alarms|coverage [FIRST LAST]
//!
//! Prints rows of the tables in docs/judging.md.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

mod cases;
mod files;

use crate::files::Files;
use octet_eval::{
    EvalText, Reference, Report, Windows,
    gates::{Outcome, Status, Thresholds},
    paired::{PairedWindow, ln_perplexity_ratio},
    store::{Store, USUAL_BYTES},
    text::{ReadOptions, Text},
};
use octet_flow::{JudgeSettings, Origin, Original, judge_folder};
use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_runtime::{OpenOptions, Rng, TextModel, Tokenizer};
use std::{env, error::Error, num::NonZeroUsize, path::PathBuf, sync::atomic::AtomicBool, time::Instant};

/// Most tokens of each evaluation text.
const TOKENS: usize = 12_000;

/// A bench: the built-in model, its texts, an engine.
struct Bench {
    folder: Folder,
    engine: Engine,
    texts: Vec<EvalText>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize, usual: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (first, last) = (number(1, 0), number(2, usize::MAX));
    let bench = Bench::open()?;
    match arguments.first().map(String::as_str) {
        Some("sabotage") => bench.sabotages(first, last),
        Some("clean") => bench.clean(first, last),
        Some("alarms") => bench.alarms(first, last.min(20)),
        Some("coverage") => bench.coverage(),
        _ => Err("say sabotage, clean, alarms or coverage, and perhaps the first and last row".into()),
    }
}

impl Bench {
    fn open() -> Result<Self, Box<dyn Error>> {
        let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        let folder = Folder::disk(&place)?;
        let threads = std::thread::available_parallelism()?.min(NonZeroUsize::MIN.saturating_add(1));
        let engine = Engine::new(Isa::best(), threads)?;
        let tokenizer = Tokenizer::open(&folder)?;
        let text = std::fs::read_to_string(place.join("text/evaluation.jsonl"))?;
        let mut texts = vec![];
        for kind in ["hardware", "commands", "docs"] {
            let mark = format!("\"kind\": \"{kind}\"");
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(&mark)).collect();
            let text = Text::parse(kind.into(), lines.join("\n"), true, ReadOptions::default())?;
            let mut ids = text.tokens(&tokenizer, 4096, 1)?;
            ids.truncate(TOKENS);
            texts.push(EvalText { name: kind.into(), ids });
        }
        Ok(Self { folder, engine, texts })
    }

    fn settings(&self, seed: u64) -> JudgeSettings {
        JudgeSettings {
            texts: self.texts.clone(),
            context: None,
            thresholds: Thresholds::default(),
            seed,
            tasks: None,
            health_prompts: 32,
            store: Some(Store::new(env::temp_dir().join("octet-sabotage-references"), USUAL_BYTES)),
            command: vec![],
        }
    }

    fn judge(&self, original: &mut Original, files: &Files, origin: Origin, settings: &JudgeSettings) -> octet_flow::Result<Report> {
        let (folder, cancel) = (files.folder("variant"), AtomicBool::new(false));
        let judged = judge_folder(original, &folder, "variant", origin, settings, &self.engine, &cancel, &mut |_, _, _, _| {})?;
        Ok(judged.report)
    }

    /// The built-in model with so many positions.
    fn shortened(&self, most: u64, settings: &JudgeSettings) -> Result<Original, Box<dyn Error>> {
        let mut files = Files::read(self.folder.path().ok_or("the built-in model is on disk")?)?;
        files.positions(most)?;
        Ok(Original::open(&files.folder("original"), &self.engine, settings)?)
    }

    fn original(&self, seed: u64) -> octet_flow::Result<Original> {
        Original::open(&self.folder, &self.engine, &self.settings(seed))
    }

    fn sabotages(&self, first: usize, last: usize) -> Result<(), Box<dyn Error>> {
        let good = Files::quantized(&self.folder, "w8a16", &self.engine)?;
        let mut original = self.original(0)?;
        for sabotage in cases::sabotages().into_iter().take(last).skip(first) {
            let mut files = good.clone();
            if (sabotage.damage)(&mut files)? == 0 {
                return Err(format!("{}: nothing was damaged", sabotage.name).into());
            }
            let mut origin = Origin::Octet { forecast: Some(good.bytes()) };
            if sabotage.elsewhere {
                origin = Origin::Elsewhere;
            }
            let (mut settings, mut short) = (self.settings(0), None);
            if let Some(most) = sabotage.positions {
                // All of the text: the interval of a tenth needs more of it than that of the whole.
                settings.thresholds.early_stop = false;
                settings.context = Some(cases::WINDOW);
                short = Some(self.shortened(most, &settings)?);
                files.positions(most)?;
                origin = Origin::Octet { forecast: Some(files.bytes()) };
            }
            let (verdict, fired, message) = match self.judge(short.as_mut().unwrap_or(&mut original), &files, origin, &settings) {
                Err(error) => ("does not open".to_string(), vec!["open".to_string()], error.to_string()),
                Ok(report) => {
                    let failed: Vec<_> = report.gates.iter().filter(|g| g.blocking && g.outcome == Outcome::Failed).collect();
                    let names = failed.iter().map(|gate| gate.name.clone()).collect();
                    let said = failed.iter().find(|g| g.name == sabotage.gate).or(failed.first());
                    (summary(&report), names, said.map_or(String::new(), |gate| gate.note.clone()))
                }
            };
            let named = if fired.iter().any(|gate| gate == sabotage.gate) { "yes" } else { "NO" };
            println!("| {} | {verdict} | {} | {} | {named} | {message} |", sabotage.name, sabotage.gate, fired.join(", "));
        }
        Ok(())
    }

    fn clean(&self, first: usize, last: usize) -> Result<(), Box<dyn Error>> {
        let mut original = self.original(0)?;
        for scheme in cases::clean().into_iter().take(last).skip(first) {
            let files = Files::quantized(&self.folder, &scheme, &self.engine)?;
            let report = self.judge(&mut original, &files, Origin::Octet { forecast: Some(files.bytes()) }, &self.settings(0))?;
            println!("| `{scheme}` | {} | {} |", summary(&report), refusals(&report));
        }
        Ok(())
    }

    fn alarms(&self, first: usize, last: usize) -> Result<(), Box<dyn Error>> {
        let eight = Files::quantized(&self.folder, "w8a16", &self.engine)?;
        let path = self.folder.path().ok_or("the built-in model is on disk")?;
        let itself = Files::read(path)?;
        for seed in first..last {
            let mut original = self.original(seed as u64)?;
            for (name, files, origin) in
                [("itself", &itself, Origin::Elsewhere), ("`w8a16`", &eight, Origin::Octet { forecast: Some(eight.bytes()) })]
            {
                let report = self.judge(&mut original, files, origin, &self.settings(seed as u64))?;
                println!("| {seed} | {name} | {} | {} |", summary(&report), refusals(&report));
            }
        }
        Ok(())
    }

    /// Draws windows from those of a 4-bit variant, whose ratio over all of them is the truth, 2,000 times.
    fn coverage(&self) -> Result<(), Box<dyn Error>> {
        let original = TextModel::open(&self.folder, &self.engine, OpenOptions::default())?;
        let files = Files::quantized(&self.folder, "w4a16-g32", &self.engine)?;
        let variant = TextModel::open(&files.folder("variant"), &self.engine, OpenOptions::default())?;
        let ids: Vec<u32> = self.texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
        let windows = Windows::of(&original, &ids, Some(128))?;
        let reference = Reference::of(&original.model, &windows, &mut |_, _| std::ops::ControlFlow::Continue(()))?;
        let comparison = reference.compare(&variant.model, &mut |_, _| std::ops::ControlFlow::Continue(()))?;
        let all = &comparison.windows;
        let sum = |f: fn(&PairedWindow) -> f64| all.iter().map(f).sum::<f64>();
        let truth = (sum(|w| w.quant_nll) - sum(|w| w.base_nll)) / sum(|w| w.tokens as f64);
        println!("population: {} windows, ln ratio {truth:.5}", all.len());
        for count in [8, 12, 25, 50, 100, 200] {
            let started = Instant::now();
            let mut rng = Rng::new(count as u64);
            let covers = (0..2_000).filter(|&trial| {
                let drawn: Vec<PairedWindow> = (0..count).map(|_| all[rng.below(all.len())]).collect();
                ln_perplexity_ratio(&drawn, trial).is_some_and(|i| i.low <= truth && truth <= i.high)
            });
            let share = covers.count() as f64 / 2_000.0;
            let exact = if count < 100 { "approximate" } else { "exact" };
            println!("| {count} | {:.1} % | {exact} | {:.1} s |", 100.0 * share, started.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

/// The verdict with the figures it rests on.
fn summary(report: &Report) -> String {
    let m = &report.measures;
    let ratio = m.ppl.as_ref().and_then(|p| p.ratio).map_or("-".into(), |r| format!("{:+.2} %", 100.0 * (r - 1.0)));
    let kl = m.kl.as_ref().map_or("-".into(), |kl| format!("{:.5}", kl.mean));
    let status = match report.status {
        Status::Accepted | Status::FellBack => "accepted",
        Status::Refused => "refused",
        Status::Undecided => "undecided",
    };
    format!("{status} | {ratio} | {kl}")
}

/// Blocking gates that did not pass, with what they say.
fn refusals(report: &Report) -> String {
    let bad = report.gates.iter().filter(|g| g.blocking && matches!(g.outcome, Outcome::Failed | Outcome::Undecided));
    let said: Vec<String> = bad.map(|gate| format!("{}: {}", gate.name, gate.note)).collect();
    if said.is_empty() { "none".into() } else { said.join("; ") }
}
