//! `octet export`: a model in other formats, each re-opened and judged.

use super::{
    calibration, judging, ladder, say_json,
    text::{self, BuiltIn, Given, Texts},
    verdict,
};
use crate::{
    Ended, Usage,
    args::{Export as Args, Global},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::Result;
use octet_eval::{Report, gates::Status, memory::available_memory};
use octet_flow::{
    Calibration, JudgeSettings, Original,
    export::{Export, ExportRun, Exported, Facts, Format, Place, Source, Took},
};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::Samples;
use octet_runtime::{ChatTemplate, Tokenizer};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

/// Fewest tokens that second moments of inputs are gathered from.
const LEAST_CALIBRATION: usize = 4096;
/// Fewest tokens a verdict can rest on.
const LEAST_EVAL: usize = 2048;

/// Runs the command.
pub(crate) fn export(args: &Args, global: &Global) -> Result<Ended> {
    text::check(&args.judge)?;
    let engine = machine::engine(global.threads)?;
    let input = resolve::resolve(&args.model)?;
    let source = Source::open(&input)?;
    // Whatever a format cannot hold is refused before any of them is written.
    let prepared = args
        .format
        .iter()
        .map(|format| Ok((*format, format.prepare(&source, args.requantize)?)))
        .collect::<octet_flow::Result<Vec<_>>>()?;
    let targets = targets(args)?;
    let wants = prepared.iter().any(|(_, export)| export.wants_calibration());
    let calibration = if wants && !args.no_calibration { Some(calibrate(args, &input, &source)?) } else { None };
    let mut judging = if args.no_judge { None } else { Some(judging_of(args, &input, &source, &engine, calibration.as_ref())?) };
    let mut session =
        Session { args, global, engine: &engine, source: &source, calibration: calibration.as_ref(), progress: Progress::new() };
    let mut results = vec![];
    for ((format, export), target) in prepared.iter().zip(&targets) {
        match session.one(*format, &**export, target, judging.as_mut())? {
            None => return Ok(Ended::Interrupted),
            Some(result) => results.push(result),
        }
    }
    if global.json {
        let documents: Vec<_> = results.iter().map(Outcome::document).collect();
        say_json(&json!({ "model": args.model, "exports": documents }))?;
    }
    Ok(if results.iter().all(|result| result.path.is_some()) { Ended::Done } else { Ended::Refused })
}

/// Where each format goes.
fn targets(args: &Args) -> Result<Vec<PathBuf>> {
    let name = resolve::short_name(&args.model);
    let name = name.strip_suffix(".gguf").unwrap_or(&name);
    let usual = |format: &Format| match format.suffix() {
        suffix if suffix.starts_with('.') => PathBuf::from(format!("{name}{suffix}")),
        suffix => PathBuf::from(format!("{name}-{suffix}")),
    };
    match (&args.out, args.format.len()) {
        (Some(out), 1) => Ok(vec![out.clone()]),
        (Some(out), _) if !out.is_dir() => {
            Err(Usage(format!("--out {} is no folder; with several formats give a folder that exists", out.display())).into())
        }
        (Some(out), _) => Ok(args.format.iter().map(|format| out.join(usual(format))).collect()),
        (None, _) => Ok(args.format.iter().map(usual).collect()),
    }
}

fn calibrate(args: &Args, input: &Folder, source: &Source) -> Result<Calibration> {
    let (tokenizer, chat) = (Tokenizer::open(input)?, ChatTemplate::open(input)?);
    let length = args.calibration_length.min(source.spec().context());
    let given = Given { files: &args.calibration, field: args.judge.text_field.as_deref(), chat: chat.as_ref() };
    let needed = LEAST_CALIBRATION.min(args.calibration_samples * length);
    let tokens = text::tokens(given, BuiltIn::Calibration, &tokenizer, source.spec().vocab_size(), needed, usize::MAX)?;
    Ok(Calibration {
        texts: tokens.names,
        sources: tokens.sources,
        field: args.judge.text_field.clone(),
        length,
        samples: Samples::draw(&tokens.ids, args.calibration_samples, length, args.judge.seed),
        text: Samples::default(),
        sequential: true,
        memory_budget: available_memory().map_or(u64::MAX, |free| free / 2),
        restart: true,
    })
}

/// The original and what a verdict rests on; texts of calibration and verdict must not overlap.
fn judging_of(
    args: &Args,
    input: &Folder,
    source: &Source,
    engine: &Engine,
    calibration: Option<&Calibration>,
) -> Result<(Original, JudgeSettings)> {
    let judge = &args.judge;
    text::note_context(judge, source.spec().context());
    let given = Given { files: &judge.eval_text, field: judge.text_field.as_deref(), chat: None };
    let tokenizer = Tokenizer::open(input)?;
    let Texts { texts, .. } =
        text::texts(given, BuiltIn::Evaluation, &tokenizer, source.spec().vocab_size(), LEAST_EVAL, judge.eval_tokens)?;
    if let Some(calibration) = calibration {
        calibration::check_disjoint(calibration, calibration.samples.tokens(), &texts, &tokenizer)?;
    }
    let settings = judging::settings(judge, false, texts)?;
    Ok((Original::open(input, engine, &settings)?, settings))
}

struct Session<'a> {
    args: &'a Args,
    global: &'a Global,
    engine: &'a Engine,
    source: &'a Source,
    calibration: Option<&'a Calibration>,
    progress: Progress,
}

/// What became of one format.
struct Outcome {
    format: Format,
    path: Option<PathBuf>,
    report: Option<Report>,
    took: Took,
}

impl Outcome {
    fn document(&self) -> serde_json::Value {
        json!({"format": self.format.to_string(), "path": self.path, "executed_by": self.format.executed_by(), "took": self.took, "report": self.report})
    }
}

impl Session<'_> {
    /// Writes and judges one format; `None` where it was interrupted.
    fn one(
        &mut self,
        format: Format,
        export: &dyn Export,
        target: &std::path::Path,
        judging: Option<&mut (Original, JudgeSettings)>,
    ) -> Result<Option<Outcome>> {
        let calibration = self.calibration.filter(|_| export.wants_calibration());
        let run = ExportRun { calibration, engine: self.engine, cancel: interrupt::flag() };
        let quiet = self.global.json;
        export.notes().iter().for_each(|note| ui::note(&format!("note: {note}")));
        match format.executed_by() {
            Some(tool) => ui::note(&format!("{format}: executed by {tool}, its logits held against octet's (docs/export.md)")),
            None => ui::note(&format!("{format}: unverified, no other tool was run on such an export")),
        }
        let progress = &mut self.progress;
        let mut step = |stage: &str, done, total, detail: &str| progress.update(stage, done, total, detail);
        let place = Place { target, force: self.args.force, deploy: self.args.deploy };
        let exported = Exported::write(self.source, export, place, &run, &mut step);
        progress.finish();
        if interrupt::asked() {
            return Ok(None);
        }
        let mut exported = exported?;
        let report = match judging {
            None => None,
            Some((original, settings)) => {
                let mut step = |stage: &str, done, total, detail: &str| progress.update(stage, done, total, detail);
                let judged = exported.judge(original, &format.to_string(), settings, &run, &mut step);
                progress.finish();
                if interrupt::asked() {
                    return Ok(None);
                }
                judged?
            }
        };
        let (bytes, took) = (exported.bytes()?, exported.took);
        let accepted = report.as_ref().is_none_or(|report| matches!(report.status, Status::Accepted | Status::FellBack));
        let path = match accepted {
            true => {
                exported.describe(self.source, Facts { format, notes: export.notes(), report: report.as_ref() })?;
                Some(exported.commit()?)
            }
            false => None,
        };
        if !quiet {
            if let Some(report) = &report {
                ui::say(&verdict::judged(&resolve::short_name(&self.args.model), report));
            }
            match &path {
                Some(path) => {
                    let (read, seconds) = (ui::bytes(took.bytes_read), ui::duration(Duration::from_secs_f64(took.seconds)));
                    let pace = format!("{read} read, converted and written in {seconds}, {:.0} MB/s", took.mb_s());
                    ui::note(&ladder::paragraph(&format!("wrote {} ({}): {pace}", ui::path(path), ui::bytes(bytes)), 0));
                }
                None => ui::note(&format!(
                    "{} was not written: --max-ppl-increase says what is accepted, --no-judge writes unjudged",
                    target.display()
                )),
            }
        }
        Ok(Some(Outcome { format, path, report, took }))
    }
}
