//! `octet quantize`: compress, re-open, judge, accept or refuse.

use super::{
    asked::{Asked, asked, flags},
    calibration, checkpoints, judging, ladder,
    mixed::{self, Mixed},
    say_json,
    stages::{self, Walk},
    text::{self, BuiltIn, Given, Texts},
    verdict,
};
use crate::{
    Ended,
    args::{Effort, Global, Method, Preset, Quantize},
    interrupt, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result};
use octet_eval::{Report, gates::Status, report::RungReport, windows::DEFAULT_CONTEXT};
use octet_flow::{
    Calibration, JudgeSettings, Original, Prepared, QuantizeSettings, ReceiptFacts, Staged, Summary, TextSource, Variant,
    machine::{self, End, Facts, Policy, Question, Request},
    receipt::SecretKey,
    variants,
};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_quant::{Flags, Recipe, SolverChoice, Step};
use octet_runtime::{MemoryNeeds, OpenOptions, Tokenizer};
use octet_tensor::Scheme;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Fewest tokens a verdict can rest on: eight windows of the smallest size.
const LEAST_EVAL_TOKENS: usize = 2048;

/// Runs the command.
pub(crate) fn quantize(args: &Quantize, global: &Global) -> Result<Ended> {
    let args = &effort(checkpoints::named(args));
    text::check(&args.judge)?;
    let engine = crate::machine::engine(global.threads)?;
    let input = resolve::resolve(&args.model)?;
    let asked = asked(args, &input)?;
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

/// Least effort with one width for all measures nothing, unless it is given a text for that.
fn effort(mut args: Quantize) -> Quantize {
    let plain = args.effort == Some(Effort::Fast) && args.preset == Some(Preset::W4);
    args.no_calibration |= plain && args.calibration.is_empty();
    args
}

pub(super) struct Session<'a> {
    pub(super) args: &'a Quantize,
    pub(super) global: &'a Global,
    pub(super) engine: Engine,
    pub(super) input: Folder,
    pub(super) name: String,
    /// Signs receipts.
    key: Option<SecretKey>,
    /// What is judged on.
    pub(super) evaluation: Vec<TextSource>,
    pub(super) progress: Progress,
}

impl Session<'_> {
    fn run(&mut self, asked: &[Asked]) -> Result<Ended> {
        if let ([one], false, false) = (asked, self.args.ladder.checkpoint.is_empty(), self.args.dry_run) {
            return checkpoints::compare(self, one);
        }
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
        let ended = self.variants(asked, &prepared, &targets);
        if let (Some(parent), true) = (shared, ended.is_err()) {
            // Only an empty folder is removed.
            let _ = std::fs::remove_dir(parent);
        }
        ended
    }

    fn variants(&mut self, asked: &[Asked], prepared: &[Prepared], targets: &[PathBuf]) -> Result<Ended> {
        for (prepared, target) in prepared.iter().zip(targets) {
            prepared.check_target(target, self.args.force)?;
        }
        if self.args.no_judge {
            let calibration = calibration::read(self.args, &self.input, prepared, 1, Some(&self.engine))?;
            let written = prepared.iter().zip(targets).map(|(prepared, target)| self.unjudged(prepared, target, calibration.as_ref()));
            let written = written.collect::<Result<Vec<_>>>()?;
            return self.conclude_unjudged(&written);
        }
        let (mut original, settings) = self.judging(prepared)?;
        let several = targets.len() > 1;
        let mut outcomes = vec![];
        for ((asked, prepared), target) in asked.iter().zip(prepared).zip(targets) {
            // Several variants are compared as they are.
            let walking = Walking { target, several, ladder: !several, no_checkpoint: "no other checkpoint was given" };
            outcomes.push(self.walk(asked, prepared, walking, (&mut original, &settings))?);
        }
        self.conclude(&outcomes)
    }

    /// The original, opened to be judged against, and what is judged on.
    pub(super) fn judging(&mut self, prepared: &[Prepared]) -> Result<(Original, JudgeSettings)> {
        let texts = self.texts(prepared)?;
        self.evaluation = texts.sources;
        let settings = judging::settings(&self.args.judge, self.args.strict, texts.texts)?;
        Ok((Original::open(&self.input, &self.engine, &settings)?, settings))
    }

    /// Goes on with another model.
    pub(super) fn take_up(&mut self, model: &str) -> Result<()> {
        self.input = resolve::resolve(model)?;
        self.name = resolve::short_name(model);
        Ok(())
    }

    pub(super) fn prepare(&self, asked: &Asked) -> Result<Prepared> {
        let (args, label) = (self.args, asked.label());
        Ok(Prepared::new(&self.input, |spec| {
            let recipe = asked.recipe(spec, args.portable)?;
            Ok(QuantizeSettings { recipe, label, strict: args.strict, seed: args.judge.seed })
        })?)
    }

    /// One scheme for all linears, as a rung of the ladder asks.
    pub(super) fn prepare_scheme(&self, scheme: Scheme, solver: SolverChoice, label: String) -> Result<Prepared> {
        let args = self.args;
        // What makes 4 bits better has nothing to do for 8.
        let method = if scheme.weights.bits.get() < 8 { args.method.unwrap_or(Method::Rtn) } else { Method::Rtn };
        Ok(Prepared::new(&self.input, |spec| {
            let recipe = Recipe::from_flags(&Flags { solver, ..flags(args, scheme, method) }, spec.head().tied)?;
            Ok(QuantizeSettings { recipe, label, strict: args.strict, seed: args.judge.seed })
        })?)
    }

    /// Mixed precision with as many bits in all as what was asked for, as a rung of the ladder asks.
    pub(super) fn prepare_mixed(&self, asked: &Asked, least: f64, label: String) -> Result<Prepared> {
        let args = self.args;
        let all = mixed::bits_per_weight(self.prepare(asked)?.plan());
        let mut recipe = Recipe::mixed(args.portable);
        for step in &mut recipe.steps {
            if let Step::Mixed(step) = step {
                step.bits_per_weight = Some(all.max(least));
            }
        }
        Ok(Prepared::new(&self.input, |_| Ok(QuantizeSettings { recipe, label, strict: args.strict, seed: args.judge.seed }))?)
    }

    /// `./<model>-<label>`, or the folder asked for (several schemes get a folder each inside it).
    pub(super) fn target(&self, label: &str, several: bool) -> PathBuf {
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
            let calibration = match calibration::read(self.args, &self.input, std::slice::from_ref(prepared), 1, None) {
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

    /// Tokens that variants are judged on.
    fn texts(&self, prepared: &[Prepared]) -> Result<Texts> {
        let spec = prepared.first().context("nothing was asked for")?.spec();
        let judge = &self.args.judge;
        text::note_context(judge, spec.context());
        let given = Given { files: &judge.eval_text, field: judge.text_field.as_deref(), chat: None };
        let tokenizer = Tokenizer::open(&self.input)?;
        text::texts(given, BuiltIn::Evaluation, &tokenizer, spec.vocab_size(), LEAST_EVAL_TOKENS, judge.eval_tokens)
    }

    /// Writes one variant.
    pub(super) fn write(&mut self, prepared: &Prepared, target: &Path, calibration: Option<&Calibration>) -> Result<Staged> {
        if let Some(calibration) = calibration.filter(|_| prepared.wants_calibration()) {
            return self.calibrated(prepared, target, calibration);
        }
        let (args, cancel, progress) = (self.args, interrupt::flag(), &mut self.progress);
        let mut step = |stage: &str, done, total, detail: &str| progress.update(stage, done, total, detail);
        let staged = prepared.write(target, args.force, args.restart, &self.engine, cancel, &mut step)?;
        self.progress.finish();
        Ok(staged)
    }

    /// Adds what comes last to a variant and gives it its name.
    pub(super) fn finish(&mut self, staged: Staged, prepared: &Prepared, calibration: Option<&Calibration>) -> Result<PathBuf> {
        self.prepack(&staged)?;
        if !self.args.no_receipt {
            self.receipt(&staged, prepared, calibration.filter(|_| prepared.wants_calibration()))?;
        }
        Ok(staged.commit()?)
    }

    /// Decides the widths of a recipe with a mixed step, and what to keep of the decision; `None` for other recipes.
    pub(super) fn settle(
        &mut self,
        prepared: &Prepared,
        target: &Path,
        calibration: Option<&Calibration>,
        judging: Option<(&mut Original, &JudgeSettings)>,
    ) -> Result<Option<(Prepared, serde_json::Value)>> {
        if prepared.settings().recipe.mixed_step().is_none() {
            return Ok(None);
        }
        let (args, quiet, engine, progress) = (self.args, self.global.json, &self.engine, &mut self.progress);
        Mixed { args, quiet, engine, progress }.settle(prepared, target, calibration, judging).map(Some)
    }

    /// Writes one variant without judging it.
    fn unjudged(&mut self, prepared: &Prepared, target: &Path, calibration: Option<&Calibration>) -> Result<PathBuf> {
        let settled = self.settle(prepared, target, calibration, None)?;
        let (prepared, decision) = settled.as_ref().map_or((prepared, None), |(settled, decision)| (settled, Some(decision)));
        let staged = self.write(prepared, target, calibration)?;
        decision.map_or(Ok(()), |decision| staged.add(octet_flow::MIXED_FILE, decision))?;
        let bytes = staged.bytes()?;
        let path = self.finish(staged, prepared, calibration)?;
        ui::note(&format!("wrote {} ({}), not judged", ui::path(&path), ui::bytes(bytes)));
        Ok(path)
    }

    fn conclude_unjudged(&self, paths: &[PathBuf]) -> Result<Ended> {
        if self.global.json {
            say_json(&serde_json::json!({ "model": self.name, "judged": false, "paths": paths }))?;
        }
        Ok(Ended::Done)
    }

    /// Makes and judges one variant, and what the ladder offers in its place if it is refused.
    pub(super) fn walk(
        &mut self,
        asked: &Asked,
        prepared: &Prepared,
        walking: Walking<'_>,
        (original, settings): (&mut Original, &JudgeSettings),
    ) -> Result<Outcome> {
        let Walking { target, several, ladder, no_checkpoint } = walking;
        let args = self.args;
        let policy = self.policy(ladder, several);
        let scheme = match asked {
            Asked::Scheme(_, flags) | Asked::Outliers(_, flags) if flags.transform.is_none() || args.preset.is_none() => {
                Some((flags.scheme, flags.solver))
            }
            _ => None,
        };
        let text = if policy.ladder { calibration::times(args, &self.input, prepared) } else { Err("there is no ladder".into()) };
        let no_mixed = (args.no_calibration || args.fast).then(|| "it is decided by measuring on calibration text".to_string());
        let no_training = match asked {
            Asked::Distilled(..) => Some("what was asked for has learnt already".to_string()),
            _ => prepared.cannot_learn(),
        };
        let facts = Facts { label: asked.label(), scheme, text, no_mixed, no_training, no_checkpoint: no_checkpoint.into() };
        let request = Request { facts, log: hidden_log(target), restart: args.restart };
        let mut walk =
            Walk { session: self, asked, target, several, original, settings, identity: None, sample: None, decision: None, shown: false };
        let ended = machine::run(&mut walk, &request, &policy)?;
        let (sample, shown) = (walk.sample.take(), walk.shown);
        if let Some(file) = &args.ladder.graph {
            stages::draw(file, &ended.entries)?;
        }
        let mut outcome = Outcome { report: None, path: None, sample, tried: ended.tried, question: None, shown };
        match ended.end {
            End::Accepted { path, report } => (outcome.path, outcome.report) = (Some(path), Some(*report)),
            End::Asked { question, report } => (outcome.question, outcome.report) = (Some(question), Some(*report)),
            End::Kept { report, .. } => {
                let kept = refusal_path(target);
                let report = report.context("a run ended without a verdict")?;
                std::fs::write(&kept, report.to_json()?).with_context(|| format!("cannot write {}", kept.display()))?;
                let log = kept.with_extension("jsonl");
                std::fs::write(&log, &ended.transcript).with_context(|| format!("cannot write {}", log.display()))?;
                outcome.report = Some(*report);
            }
        }
        if !self.global.json {
            outcome.show(&self.name, target);
        }
        Ok(outcome)
    }

    /// Who decides what. Of several variants each that the gates pass is kept, to be compared.
    fn policy(&self, climb: bool, several: bool) -> Policy {
        let ladder = &self.args.ladder;
        let least = ladder.target_score.map_or(Policy::AUTO.0, |target| target.min(Policy::AUTO.0));
        let auto = (ladder.auto_score.unwrap_or(least), ladder.auto_risk.unwrap_or(Policy::AUTO.1));
        Policy {
            ladder: !ladder.no_ladder && climb,
            max_minutes: ladder.max_minutes,
            target_score: ladder.target_score,
            auto: (!several).then_some(auto),
            answer: match (ladder.yes, ladder.no) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
        }
    }

    /// Lets the winner be the one in use: of the folder it shares with the others, or of one that already knows such a thing.
    pub(super) fn put_in_use(&self, winner: &Outcome, several: bool) -> Result<()> {
        let Some(path) = &winner.path else { return Ok(()) };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        if parent.join(variants::POINTER_FILE).is_file() || (several && self.args.out.is_some()) {
            let original = self.input.path().map(|path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf()));
            let original = original.map_or_else(|| self.args.model.clone(), |path| path.display().to_string());
            variants::put_in_use(parent, &name.to_string_lossy(), &original)?;
        }
        Ok(())
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
        let learning = prepared.forecast_distillation(calibration, &self.engine)?;
        if let (Some((_, seconds)), false) = (learning, self.global.json) {
            let time = ui::duration(Duration::from_secs_f64(seconds));
            ui::note(&format!(
                "once all is solved the model learns from the original, about {time}; a run that is stopped goes on where it was"
            ));
        }
        let mut reporter = calibration::Reporter::new(args.log_jsonl.as_deref(), prepared.spec().layers().len())?;
        let progress = &mut self.progress;
        let mut event = |event: &octet_quant::Event<'_>| reporter.event(progress, event);
        let staged = prepared.write_calibrated(target, args.force, calibration, &self.engine, interrupt::flag(), &mut event)?;
        self.progress.finish();
        if !self.global.json {
            calibration::conclusion(&staged.calibration, started).iter().for_each(|line| ui::note(line));
        }
        Ok(staged)
    }

    /// The summary of all variants, the sample of the winner, the next commands.
    fn conclude(&self, outcomes: &[Outcome]) -> Result<Ended> {
        let reports: Vec<&Report> = outcomes.iter().filter_map(|o| o.report.as_ref()).collect();
        let place = self.target("x", outcomes.len() > 1);
        let summary = Summary::beside(&place, &self.name, outcomes.iter().filter_map(Outcome::variant).collect())?;
        let winner = outcomes.iter().filter(|o| o.path.is_some()).max_by(|a, b| a.score().total_cmp(&b.score()));
        if let Some(winner) = winner {
            self.put_in_use(winner, outcomes.len() > 1)?;
        }
        if self.global.json {
            let paths: Vec<_> = outcomes.iter().map(|o| o.path.as_ref()).collect();
            let questions: Vec<_> = outcomes.iter().map(|o| o.question.as_ref()).collect();
            let document =
                serde_json::json!({ "model": self.name, "reports": reports, "paths": paths, "questions": questions, "summary": summary });
            say_json(&document)?;
        } else {
            if outcomes.len() > 1 {
                ui::say(&verdict::comparison(&summary));
                if let Some(best) = winner.and_then(|winner| winner.report.as_ref()) {
                    ui::say(&format!("\n  {} scores best of what was accepted", best.scheme));
                }
            }
            if let Some(winner) = winner {
                ui::say(&verdict::next_steps(&self.args.model, winner.path.as_deref(), winner.sample.as_ref()));
            }
        }
        let all_accepted = outcomes.iter().all(|o| o.path.is_some());
        Ok(if all_accepted || (outcomes.len() > 1 && winner.is_some()) { Ended::Done } else { Ended::Refused })
    }
}

/// Where a walk goes and what it may try.
#[derive(Clone, Copy)]
pub(super) struct Walking<'a> {
    /// Where what was asked for will be.
    pub(super) target: &'a Path,
    /// Whether it is one of several.
    pub(super) several: bool,
    /// Whether other rungs are tried after a refusal.
    pub(super) ladder: bool,
    /// Why no other checkpoint is tried.
    pub(super) no_checkpoint: &'a str,
}

/// What became of one variant.
pub(super) struct Outcome {
    pub(super) report: Option<Report>,
    pub(super) path: Option<PathBuf>,
    pub(super) sample: Option<verdict::Sample>,
    /// Every rung.
    tried: Vec<RungReport>,
    /// What waits for an answer.
    pub(super) question: Option<Question>,
    /// Whether the verdict was shown already, with the question that it led to.
    shown: bool,
}

impl Outcome {
    /// Tells a person.
    fn show(&self, name: &str, target: &Path) {
        let Some(report) = &self.report else { return };
        if let (Some(question), false) = (&self.question, self.shown) {
            ui::say(&ladder::question(name, question, report));
        }
        if self.question.is_some() {
            ui::say("\n  The model waits, judged. Run the same command again with --yes or --no.");
            return;
        }
        if !self.shown {
            let passed = matches!(report.status, Status::Accepted | Status::FellBack);
            let taken = self.path.is_some() || !passed;
            ui::say(&if taken { verdict::judged(name, report) } else { verdict::declined(name, report) });
        }
        ui::say(&verdict::kept(self.path.as_deref(), &refusal_path(target)));
        if self.tried.len() > 1 {
            ui::say(&format!("\n{}", ladder::rungs(&self.tried)));
        }
    }

    fn variant(&self) -> Option<Variant> {
        self.report.as_ref().map(|report| Variant::of(report, self.path.as_deref()))
    }

    fn score(&self) -> f64 {
        self.report.as_ref().and_then(|report| report.trinity.as_ref()).map_or(0.0, |trinity| trinity.score)
    }
}

/// Where the log of a run is while it goes on.
fn hidden_log(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!(".{name}.octet-log.jsonl"))
}

/// Where the report of a refused variant is kept: a file, never a folder that looks like a model.
fn refusal_path(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.refused.json"))
}
