//! `octet quantize`: compress, re-open, judge, accept or refuse.

use super::{
    calibration, judging, say_json,
    text::{self, BuiltIn, Given, Texts},
    verdict,
};
use crate::{
    Ended, Usage,
    args::{Global, Method, Preset, Quantize},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result};
use octet_eval::{Report, gates::Status, overlap::Overlap, report::REPORT_FILE, windows::DEFAULT_CONTEXT};
use octet_flow::{
    Calibration, JudgeSettings, Original, Prepared, QuantizeSettings, ReceiptFacts, Staged, Summary, TextSource, Variant,
    receipt::SecretKey,
};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{AwqSettings, Flags, GptqSettings, Recipe, SmoothSettings, SolverChoice, TransformChoice};
use octet_runtime::{MemoryNeeds, OpenOptions, Tokenizer};
use octet_tensor::{Activations, Limit, Scheme};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Fewest tokens a verdict can rest on: eight windows of the smallest size.
const LEAST_EVAL_TOKENS: usize = 2048;

/// Scale candidates that make a search quick.
const QUICK_CANDIDATES: usize = 8;

/// Runs the command.
pub(crate) fn quantize(args: &Quantize, global: &Global) -> Result<Ended> {
    text::check(&args.judge)?;
    let engine = machine::engine(global.threads)?;
    let input = resolve::resolve(&args.model)?;
    let asked = asked(args)?;
    let key = args.sign.as_deref().map(SecretKey::read).transpose()?;
    let name = resolve::short_name(&args.model);
    let mut session = Session { args, global, engine, input, name, key, evaluation: vec![], progress: Progress::new() };
    let ended = session.run(&asked);
    session.progress.finish();
    match ended {
        Err(error) if interrupt::asked() => {
            ui::note(&format!("{error:#}"));
            Ok(Ended::Interrupted)
        }
        other => other,
    }
}

/// The flags of a scheme, as a recipe takes them.
fn flags(args: &Quantize, scheme: Scheme, method: Method) -> Flags {
    let solver = match method {
        Method::Gptq => SolverChoice::Gptq(GptqSettings::USUAL),
        _ => SolverChoice::Rtn { candidates: args.fast.then_some(QUICK_CANDIDATES) },
    };
    let transform = match method {
        Method::Awq => Some(TransformChoice::Awq(AwqSettings::USUAL)),
        Method::Smoothquant => Some(TransformChoice::Smooth(args.smooth_alpha.map_or(SmoothSettings::USUAL, |alpha| alpha.0))),
        Method::Rtn | Method::Gptq | Method::LlmInt8 => None,
    };
    Flags { scheme, embedding: None, head: None, portable: args.portable, solver, transform }
}

/// One variant that was asked for.
enum Asked {
    Scheme(Scheme),
    /// The preset `smooth-w8a8`.
    Smooth(Scheme),
    Recipe {
        name: String,
        recipe: Recipe,
    },
}

impl Asked {
    fn label(&self) -> String {
        match self {
            Self::Scheme(scheme) => scheme.short(),
            Self::Smooth(scheme) => format!("smooth-{}", scheme.short()),
            Self::Recipe { name, .. } => name.clone(),
        }
    }
}

/// What the flags ask for: schemes, a preset, bits and group size, or a recipe file.
fn asked(args: &Quantize) -> Result<Vec<Asked>> {
    if let Some(path) = &args.recipe {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe {}", path.display()))?;
        let recipe = Recipe::from_toml(&text).with_context(|| path.display().to_string())?;
        let name = path.file_stem().map_or_else(|| "recipe".into(), |s| s.to_string_lossy().into_owned());
        return Ok(vec![Asked::Recipe { name, recipe: Recipe { portable: recipe.portable || args.portable, ..recipe } }]);
    }
    if let Some(Preset::SmoothW8a8) = args.preset {
        return Ok(vec![Asked::Smooth("w8a8".parse()?)]);
    }
    let names: Vec<String> = match (args.bits, args.preset) {
        (Some(bits), _) => vec![args.group_size.map_or_else(|| format!("w{bits}a16"), |size| format!("w{bits}a16-g{size}"))],
        _ if !args.scheme.is_empty() => args.scheme.clone(),
        (None, preset) => vec![
            match preset.unwrap_or(usual(args.method)) {
                Preset::W8 => "w8a16",
                Preset::W8a8 | Preset::SmoothW8a8 => "w8a8",
                Preset::W4 => "w4a16",
            }
            .into(),
        ],
    };
    let aside = |scheme| if args.method == Method::LlmInt8 { with_outliers_aside(scheme) } else { Ok(scheme) };
    let schemes = names.iter().map(|name| Ok(Asked::Scheme(aside(name.trim().parse()?)?))).collect::<Result<Vec<_>>>()?;
    let mut labels: Vec<String> = schemes.iter().map(Asked::label).collect();
    labels.sort();
    labels.dedup();
    if labels.len() < schemes.len() {
        return Err(Usage("--scheme names the same scheme twice; leave one out".into()).into());
    }
    Ok(schemes)
}

/// The preset of a method where no scheme is asked for.
fn usual(method: Method) -> Preset {
    match method {
        Method::Smoothquant | Method::LlmInt8 => Preset::W8a8,
        Method::Awq => Preset::W4,
        Method::Rtn | Method::Gptq => Preset::W8,
    }
}

/// The scheme with large inputs multiplied as floats.
fn with_outliers_aside(scheme: Scheme) -> Result<Scheme> {
    match scheme.activations {
        Activations::Int8PerToken => Ok(Scheme { activations: Activations::Int8Below(Limit::USUAL), ..scheme }),
        Activations::Int8Below(_) => Ok(scheme),
        _ => Err(Usage(format!("--method llm-int8 is for inputs of 8 bits with one scale a token; {scheme} has others, use w8a8")).into()),
    }
}

struct Session<'a> {
    args: &'a Quantize,
    global: &'a Global,
    engine: Engine,
    input: Folder,
    name: String,
    /// Signs receipts.
    key: Option<SecretKey>,
    /// What is judged on.
    evaluation: Vec<TextSource>,
    progress: Progress,
}

impl Session<'_> {
    fn run(&mut self, asked: &[Asked]) -> Result<Ended> {
        let prepared = asked.iter().map(|one| self.prepare(one)).collect::<Result<Vec<_>>>()?;
        if self.args.dry_run {
            return self.dry_run(asked, &prepared);
        }
        let targets: Vec<PathBuf> = asked.iter().map(|one| self.target(&one.label(), asked.len() > 1)).collect();
        // Several variants share a folder of their own; it goes again if none of them comes to be.
        let shared = self.args.out.as_ref().filter(|out| asked.len() > 1 && !out.exists());
        if let Some(parent) = shared {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let ended = self.variants(&prepared, &targets);
        if let (Some(parent), true) = (shared, ended.is_err()) {
            // Only an empty folder is removed.
            let _ = std::fs::remove_dir(parent);
        }
        ended
    }

    fn variants(&mut self, prepared: &[Prepared], targets: &[PathBuf]) -> Result<Ended> {
        for (prepared, target) in prepared.iter().zip(targets) {
            prepared.check_target(target, self.args.force)?;
        }
        let (evaluation, calibration) = self.texts(prepared)?;
        self.evaluation = evaluation.as_ref().map_or(vec![], |texts| texts.sources.clone());
        let settings = evaluation.map(|texts| judging::settings(&self.args.judge, self.args.strict, texts.texts)).transpose()?;
        let mut original = match &settings {
            Some(settings) => Some(Original::open(&self.input, &self.engine, settings)?),
            None => None,
        };
        let mut outcomes = vec![];
        for (prepared, target) in prepared.iter().zip(targets) {
            let judging = original.as_mut().zip(settings.as_ref());
            outcomes.push(self.one(prepared, target, calibration.as_ref(), judging)?);
        }
        self.conclude(&outcomes, original.as_ref())
    }

    fn prepare(&self, asked: &Asked) -> Result<Prepared> {
        let (args, label) = (self.args, asked.label());
        Ok(Prepared::new(&self.input, |spec| {
            let recipe = match asked {
                Asked::Recipe { recipe, .. } => recipe.clone(),
                Asked::Scheme(scheme) => Recipe::from_flags(&flags(args, *scheme, args.method), spec.head().tied)?,
                Asked::Smooth(scheme) => Recipe::from_flags(&flags(args, *scheme, Method::Smoothquant), spec.head().tied)?,
            };
            Ok(QuantizeSettings { recipe, label, strict: args.strict, seed: args.judge.seed })
        })?)
    }

    /// `./<model>-<label>`, or the folder asked for (several schemes get a folder each inside it).
    fn target(&self, label: &str, several: bool) -> PathBuf {
        let portable = if self.args.portable { "-portable" } else { "" };
        let name = format!("{}-{label}{portable}", self.name);
        match &self.args.out {
            Some(out) if several => out.join(name),
            Some(out) => out.clone(),
            None => PathBuf::from(name),
        }
    }

    /// What the written model will need to run.
    fn needs(&self, prepared: &Prepared) -> Result<MemoryNeeds> {
        Ok(MemoryNeeds::new(&self.input, prepared.spec().clone(), prepared.plan().run_bytes(), self.engine.threads())?)
    }

    fn dry_run(&self, asked: &[Asked], prepared: &[Prepared]) -> Result<Ended> {
        let mut documents = vec![];
        for (asked, prepared) in asked.iter().zip(prepared) {
            let forecast = prepared.forecast(&self.engine)?;
            let (needs, kv) = (self.needs(prepared)?, OpenOptions::default().kv);
            let running = needs.at(self.args.judge.context.unwrap_or(DEFAULT_CONTEXT).min(needs.longest()), kv);
            let calibration = match calibration::read(self.args, &self.input, std::slice::from_ref(prepared)) {
                // A plan can be looked at without a tokenizer, as long as nothing depends on the text.
                Err(_) if self.args.calibration.is_empty() && !prepared.needs_calibration() => None,
                calibration => calibration?,
            };
            let calibration = calibration.filter(|_| prepared.wants_calibration());
            let calibration = calibration.map(|calibration| calibration::forecast(&calibration, prepared, &self.engine)).transpose()?;
            if self.global.json {
                let mut document = verdict::plan_document(&asked.label(), prepared.plan(), &forecast, &running);
                document["forecast"]["calibration"] = calibration.map_or(serde_json::Value::Null, |(_, document)| document);
                documents.push(document);
            } else {
                let table = prepared.plan().table(self.global.verbose > 0);
                let calibration = calibration.map_or(String::new(), |(text, _)| text);
                ui::say(&format!("{} as {}\n\n{table}\n{forecast}running   {running}\n{calibration}", self.name, asked.label()));
            }
        }
        if self.global.json {
            say_json(&documents)?;
        }
        Ok(Ended::Done)
    }

    /// Evaluation tokens (unless nothing is judged) and calibration windows (where they can matter), which must not overlap.
    fn texts(&self, prepared: &[Prepared]) -> Result<(Option<Texts>, Option<Calibration>)> {
        let Some(first) = prepared.first() else { return Ok((None, None)) };
        let (args, vocab) = (self.args, first.spec().vocab_size());
        let evaluation = if args.no_judge {
            None
        } else {
            let judge = &args.judge;
            text::note_context(judge, first.spec().context());
            let given = Given { files: &judge.eval_text, field: judge.text_field.as_deref(), chat: None };
            let tokenizer = Tokenizer::open(&self.input)?;
            Some(text::texts(given, BuiltIn::Evaluation, &tokenizer, vocab, LEAST_EVAL_TOKENS, judge.eval_tokens)?)
        };
        let calibration = calibration::read(args, &self.input, prepared)?;
        if let (Some(c), Some(e)) = (&calibration, &evaluation) {
            for text in &e.texts {
                Overlap::between(c.samples.tokens(), &text.ids).check(&c.texts.join(", "), &text.name)?;
            }
        }
        Ok((evaluation, calibration))
    }

    /// Writes one variant, judges it and gives it its name, or refuses it.
    fn one(
        &mut self,
        prepared: &Prepared,
        target: &Path,
        calibration: Option<&Calibration>,
        judging: Option<(&mut Original, &JudgeSettings)>,
    ) -> Result<Outcome> {
        let calibration = calibration.filter(|_| prepared.wants_calibration());
        let staged = match calibration {
            Some(calibration) => self.calibrated(prepared, target, calibration)?,
            None => {
                let progress = &mut self.progress;
                let mut step = |stage: &str, done, total, detail: &str| progress.update(stage, done, total, detail);
                let (args, cancel) = (self.args, interrupt::flag());
                prepared.write(target, args.force, args.restart, &self.engine, cancel, &mut step)?
            }
        };
        let (progress, quiet) = (&mut self.progress, self.global.json);
        let mut step = |stage: &str, done, total, detail: &str| match stage {
            octet_flow::FORECAST if quiet => {}
            octet_flow::FORECAST => ui::note(&format!("judging: {detail}")),
            _ => progress.update(stage, done, total, detail),
        };
        let scheme = prepared.settings().label.clone();
        let Some((original, settings)) = judging else {
            self.progress.finish();
            self.prepack(&staged)?;
            self.receipt(&staged, prepared, calibration)?;
            let bytes = staged.bytes()?;
            let path = staged.commit()?;
            ui::note(&format!("wrote {} ({}), not judged", ui::path(&path), ui::bytes(bytes)));
            return Ok(Outcome { report: None, path: Some(path), sample: None });
        };
        let forecast = Some(staged.forecast_bytes);
        let judged = octet_flow::judge(original, &staged.path(), &scheme, forecast, settings, &self.engine, interrupt::flag(), &mut step)?;
        self.progress.finish();
        let sample = verdict::sample(original.text_model(), &judged.model, &settings.ids())?;
        let report = judged.report;
        staged.add(REPORT_FILE, &serde_json::to_value(&report)?)?;
        let accepted = matches!(report.status, Status::Accepted | Status::FellBack);
        let path = if accepted {
            self.prepack(&staged)?;
            self.receipt(&staged, prepared, calibration)?;
            Some(staged.commit()?)
        } else {
            staged.discard();
            let kept = refusal_path(target);
            std::fs::write(&kept, report.to_json()?).with_context(|| format!("cannot write {}", kept.display()))?;
            None
        };
        if !self.global.json {
            ui::say(&verdict::screen(&self.name, &report, path.as_deref(), &refusal_path(target)));
        }
        Ok(Outcome { report: Some(report), path, sample: Some(sample) })
    }

    fn prepack(&self, staged: &Staged) -> Result<()> {
        if self.args.prepack {
            staged.prepack(&self.engine).context("cannot store packed weights")?;
        }
        Ok(())
    }

    /// Writes the receipt of a finished artefact.
    fn receipt(&self, staged: &Staged, prepared: &Prepared, calibration: Option<&Calibration>) -> Result<()> {
        let command: Vec<String> = std::env::args().collect();
        let facts = ReceiptFacts { command: &command, calibration, evaluation: &self.evaluation, key: self.key.as_ref() };
        staged.add_receipt(prepared, facts, &self.engine)?;
        Ok(())
    }

    /// Quantizes block by block with calibration, or goes on where an earlier run was stopped.
    fn calibrated(&mut self, prepared: &Prepared, target: &Path, calibration: &Calibration) -> Result<Staged> {
        let (args, started) = (self.args, Instant::now());
        let mut reporter = calibration::Reporter::new(&mut self.progress, args.log_jsonl.as_deref(), prepared.spec().layers().len())?;
        let mut event = |event: &octet_quant::Event<'_>| reporter.event(event);
        let staged = prepared.write_calibrated(target, args.force, calibration, &self.engine, interrupt::flag(), &mut event)?;
        self.progress.finish();
        if !self.global.json {
            calibration::conclusion(&staged.calibration, started).iter().for_each(|line| ui::note(line));
        }
        Ok(staged)
    }

    /// The summary of all variants, the sample of the winner, the next commands.
    fn conclude(&self, outcomes: &[Outcome], original: Option<&Original>) -> Result<Ended> {
        let reports: Vec<&Report> = outcomes.iter().filter_map(|o| o.report.as_ref()).collect();
        if original.is_none() || reports.is_empty() {
            if self.global.json {
                let paths: Vec<_> = outcomes.iter().filter_map(|o| o.path.as_ref()).collect();
                say_json(&serde_json::json!({ "model": self.name, "judged": false, "paths": paths }))?;
            }
            return Ok(Ended::Done);
        }
        let place = self.target("x", outcomes.len() > 1);
        let summary = Summary::beside(&place, &self.name, outcomes.iter().filter_map(Outcome::variant).collect())?;
        let winner = outcomes.iter().filter(|o| o.path.is_some()).min_by_key(|o| o.folder_bytes());
        if self.global.json {
            let paths: Vec<_> = outcomes.iter().map(|o| o.path.as_ref()).collect();
            say_json(&serde_json::json!({ "model": self.name, "reports": reports, "paths": paths, "summary": summary }))?;
        } else {
            if outcomes.len() > 1 {
                ui::say(&verdict::comparison(&summary));
            }
            if let Some(winner) = winner {
                ui::say(&verdict::next_steps(&self.args.model, winner.path.as_deref(), winner.sample.as_ref()));
            }
        }
        let all_accepted = outcomes.iter().all(|o| o.path.is_some());
        Ok(if all_accepted || (outcomes.len() > 1 && winner.is_some()) { Ended::Done } else { Ended::Refused })
    }
}

/// What became of one variant.
struct Outcome {
    report: Option<Report>,
    path: Option<PathBuf>,
    sample: Option<verdict::Sample>,
}

impl Outcome {
    fn variant(&self) -> Option<Variant> {
        self.report.as_ref().map(|report| Variant::of(report, self.path.as_deref()))
    }

    fn folder_bytes(&self) -> u64 {
        self.report.as_ref().and_then(|r| r.measures.size.as_ref()).map_or(u64::MAX, |s| s.folder_bytes)
    }
}

/// Where the report of a refused variant is kept: a file, never a folder that looks like a model.
fn refusal_path(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.refused.json"))
}
