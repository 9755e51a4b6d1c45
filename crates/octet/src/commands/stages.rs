//! The stages of a run, done with the texts, files and flags of the command line.

use super::{
    asked::Asked,
    calibration, ladder, mixed,
    quantize::Session,
    start,
    verdict::{self, Sample},
};
use crate::{interrupt, ui};
use anyhow::{Context, Result, bail};
use octet_eval::{
    Report,
    html::{self, PAGE_FILE, Page, PageSample},
    memory::available_memory,
    report::{Ease, REPORT_FILE},
    risk::{Coverage, Risk},
    trinity::{Inputs, Trinity},
};
use octet_flow::{
    Calibration, JudgeSettings, Original, Prepared, Staged,
    machine::{Candidate, Choice, Decision, Entry, Identity, Kind, LOG_FILE, Planned, Question, Rung, Stages},
};
use octet_quant::DistillStep;
use octet_runtime::{OpenOptions, TextModel};
use serde_json::{Value, json};
use std::{
    io::{BufRead, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Times that learning goes through its text at the most: of a short text there is no more to learn.
const MOST_PASSES: usize = 16;

/// How long the limit of arithmetic is measured for a report.
const LIMIT_TIME: Duration = Duration::from_millis(30);

/// One run of the command on one of the variants that were asked for.
pub(super) struct Walk<'s, 'a> {
    pub(super) session: &'s mut Session<'a>,
    pub(super) asked: &'s Asked,
    /// Where what was asked for will be.
    pub(super) target: &'s Path,
    /// Whether the variant is one of several.
    pub(super) several: bool,
    pub(super) original: &'s mut Original,
    pub(super) settings: &'s JudgeSettings,
    /// What decisions depend on, once it was hashed.
    pub(super) identity: Option<Identity>,
    /// What both models write, of the last that was judged.
    pub(super) sample: Option<Sample>,
    /// What decided the widths of mixed precision, of the last that was planned.
    pub(super) decision: Option<Value>,
    /// Whether a person saw the verdict, with the question that it led to.
    pub(super) shown: bool,
}

impl Walk<'_, '_> {
    /// Where a fallback goes: a folder of its own name that does not exist yet.
    fn fallback(&self, label: &str) -> PathBuf {
        let session = &self.session;
        if session.args.out.is_some() && !self.several {
            return self.target.to_path_buf();
        }
        let first = session.target(label, self.several);
        if session.args.force || !first.exists() || first == self.target {
            return first;
        }
        let name = first.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let numbered = (2..).map(|n| first.with_file_name(format!("{name}-{n}")));
        numbered.into_iter().find(|path| !path.exists()).unwrap_or(first)
    }

    /// What a candidate is calibrated on, if on anything: text that nothing is judged on.
    fn calibration(&self, prepared: &Prepared, times: usize) -> Result<Option<Calibration>> {
        let session = &self.session;
        let read = calibration::read(session.args, &session.input, std::slice::from_ref(prepared), times, Some(&session.engine))?;
        if let Some(calibration) = &read {
            let (texts, tokenizer) = (&self.settings.texts, &self.original.text_model().tokenizer);
            calibration::check_disjoint(calibration, calibration.seen(prepared.plan()), texts, tokenizer)?;
        }
        Ok(read.filter(|_| prepared.wants_calibration()))
    }

    /// A candidate that learns from all of the calibration text once it is quantized as `quantized` says.
    fn learning(&self, candidate: &Candidate, quantized: &Prepared, target: PathBuf) -> Result<Planned> {
        let usual = DistillStep::of_size(start::weights_of(quantized.spec()), 1);
        let learning = |steps: usize| quantized.learning(DistillStep::of_steps(steps), candidate.label.clone());
        let prepared = learning(usual.steps)?;
        let calibration = self.calibration(&prepared, candidate.calibration)?.context("learning needs calibration text")?;
        let enough = (MOST_PASSES * calibration.text.tokens().len()).div_ceil(usual.batch_tokens);
        let prepared = if enough < usual.steps { learning(enough)? } else { prepared };
        let (_, learnt) = prepared.forecast_distillation(&calibration, &self.session.engine)?.context("nothing learns")?;
        let seconds = Some(learnt + prepared.forecast_calibration(&calibration).seconds(&self.session.engine)?);
        Ok(Planned { prepared, calibration: Some(calibration), target, seconds })
    }

    /// What the candidate asks of the machine and of whoever makes it again.
    fn ease(&self, planned: &Planned, dir: &Path, speed: Option<&octet_eval::speed::Speed>) -> Result<Ease> {
        let engine = &self.session.engine;
        let free_bytes = available_memory();
        let timed = |folder: &octet_formats::Folder| -> Result<f64> {
            let started = Instant::now();
            drop(TextModel::open(folder, engine, OpenOptions::default())?);
            Ok(1e3 * started.elapsed().as_secs_f64())
        };
        let base_load_ms = Some(timed(&self.session.input)?);
        let load_ms = Some(timed(&octet_formats::Folder::disk(dir)?)?);
        let here = |text: &octet_flow::TextSource| text.path.as_ref().is_none_or(|path| path.exists());
        let texts = planned.calibration.iter().flat_map(|c| &c.sources).chain(&self.session.evaluation);
        let known = [
            planned.prepared.recipe_reads_back(),
            self.session.input.path().is_none_or(Path::exists),
            texts.clone().all(here),
            !self.settings.command.is_empty(),
        ];
        let provenance = Some(known.iter().filter(|known| **known).count() as f64 / known.len() as f64);
        let read_gb_s = speed.and_then(|speed| speed.cache.read_gb_s.or(speed.cache.large_read_gb_s));
        let int8_gop_s = Some(octet_kernels::limits::int8_gop_s_within(engine, LIMIT_TIME)).filter(|rate| rate.is_finite());
        Ok(Ease { load_ms, base_load_ms, free_bytes, provenance, read_gb_s, int8_gop_s })
    }
}

/// What calibration left open.
fn coverage(calibration: &Value) -> Coverage {
    let coverage = &calibration["coverage"];
    let number = |name: &str| coverage[name].as_f64().unwrap_or(0.0);
    Coverage {
        dead_inputs: number("dead_inputs") / number("inputs").max(1.0),
        unreached_experts: coverage["experts_never_reached"].as_array().map_or(0, Vec::len),
    }
}

impl Stages for Walk<'_, '_> {
    type Error = anyhow::Error;

    fn is_stop(&self, error: &anyhow::Error) -> bool {
        interrupt::asked() || error.downcast_ref().is_some_and(octet_flow::Error::is_pause)
    }

    fn identity(&mut self) -> Result<Identity> {
        if let Some(known) = &self.identity {
            return Ok(known.clone());
        }
        let (session, settings) = (&self.session, self.settings);
        let texts: Vec<String> = session.evaluation.iter().map(|text| text.sha256.clone()).collect();
        let args = session.args;
        let files: Vec<String> = args.calibration.iter().map(|path| path.display().to_string()).collect();
        let entries = [
            ("octet version", env!("CARGO_PKG_VERSION").to_string()),
            ("model", octet_flow::digest::folder(&session.input)?),
            ("asked", format!("{} {:?}", self.asked.label(), args.method)),
            ("target score", format!("{:?}", args.ladder.target_score)),
            ("evaluation texts", texts.join(" ")),
            ("calibration", format!("{} {:?} {:?}", files.join(" "), args.calibration_samples, args.calibration_length)),
            ("thresholds", serde_json::to_string(&settings.thresholds)?),
            ("seed", settings.seed.to_string()),
            ("instruction set", session.engine.isa().to_string()),
        ];
        let identity: Identity = entries.map(|(key, value)| (key.to_string(), value)).into();
        self.identity = Some(identity.clone());
        Ok(identity)
    }

    fn evaluate(&mut self) -> Result<Value> {
        let checkpoint = self.original.checkpoint();
        let bytes: usize = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
        Ok(json!({ "model": self.session.name, "tensors": checkpoint.entries().len(), "stored_bytes": bytes }))
    }

    fn begins(&mut self, candidate: &Candidate) {
        if candidate.rung != Rung::Asked {
            let (rung, label, why) = (candidate.rung.words(), &candidate.label, &candidate.why);
            self.session.progress.finish();
            ui::note(&ladder::paragraph(&format!("next: {rung}, {label}: {why}"), 0));
        }
    }

    fn plan(&mut self, candidate: &Candidate) -> Result<Planned> {
        let (choice, learns) = match &candidate.choice {
            Choice::Learning(choice) => (&**choice, true),
            choice => (choice, false),
        };
        let (session, label) = (&mut *self.session, candidate.label.clone());
        let prepared = match choice {
            Choice::Scheme { scheme, solver } => session.prepare_scheme(*scheme, *solver, label)?,
            Choice::Mixed { bits_per_weight } => session.prepare_mixed(self.asked, *bits_per_weight, label)?,
            Choice::Asked | Choice::Learning(_) => session.prepare(self.asked)?,
        };
        let calibration = self.calibration(&prepared, candidate.calibration)?;
        let target = match candidate.rung {
            Rung::Asked => self.target.to_path_buf(),
            _ => self.fallback(&candidate.label),
        };
        prepared.check_target(&target, self.session.args.force)?;
        let judging = Some((&mut *self.original, self.settings));
        let searched = mixed::budget(self.session.args, &prepared).is_none();
        if learns && searched && prepared.settings().recipe.mixed_step().is_some() {
            bail!("a search for the smallest model would have to be done again, learning in every try; --effort best does that");
        }
        let settled = self.session.settle(&prepared, &target, calibration.as_ref(), judging)?;
        let (prepared, decision) = settled.map_or((prepared, None), |(settled, decision)| (settled, Some(decision)));
        // Where a search ran, what it wrote last is what was asked for.
        let keep = decision.is_some() && searched;
        self.decision = decision;
        let calibration = calibration.map(|calibration| Calibration { restart: calibration.restart && !keep, ..calibration });
        if learns { self.learning(candidate, &prepared, target) } else { Ok(Planned { prepared, calibration, target, seconds: None }) }
    }

    fn quantize(&mut self, planned: &Planned) -> Result<Staged> {
        self.session.write(&planned.prepared, &planned.target, planned.calibration.as_ref())
    }

    fn validate(&mut self, planned: &Planned, staged: &Staged) -> Result<Report> {
        let (session, settings) = (&mut *self.session, self.settings);
        let (progress, quiet) = (&mut session.progress, session.global.json);
        let mut step = |stage: &str, done, total, detail: &str| match stage {
            octet_flow::FORECAST if quiet => {}
            octet_flow::FORECAST => ui::note(&format!("judging: {detail}")),
            _ => progress.update(stage, done, total, detail),
        };
        let (scheme, forecast) = (&planned.prepared.settings().label, Some(staged.forecast_bytes));
        let cancel = interrupt::flag();
        let judged = octet_flow::judge(self.original, &staged.path(), scheme, forecast, settings, &session.engine, cancel, &mut step)?;
        session.progress.finish();
        self.sample = Some(verdict::sample(self.original.text_model(), &judged.model, &settings.ids())?);
        let mut report = judged.report;
        drop(judged.model);
        report.measures.ease = Some(self.ease(planned, &staged.path(), report.measures.speed.as_ref())?);
        let trinity = Trinity::of(&Inputs::of(&report));
        report.risk = Some(Risk::of(&report, &trinity, coverage(&staged.calibration)));
        report.trinity = Some(trinity);
        Ok(report)
    }

    fn commit(&mut self, planned: &Planned, staged: Staged, report: &Report, log: &str) -> Result<PathBuf> {
        staged.add(REPORT_FILE, &serde_json::to_value(report)?)?;
        staged.add_text(LOG_FILE, log)?;
        self.decision.as_ref().map_or(Ok(()), |decision| staged.add(octet_flow::MIXED_FILE, decision))?;
        let samples: Vec<PageSample> = self.sample.iter().map(Sample::of_page).collect();
        let page = Page { model: &self.session.name, variants: &[], samples: &samples, folder: &ui::path(&planned.target) };
        staged.add_text(PAGE_FILE, &html::page(report, &page))?;
        self.session.finish(staged, &planned.prepared, planned.calibration.as_ref())
    }

    fn ask(&mut self, question: &Question, report: &Report) -> Option<bool> {
        if self.session.global.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        ui::say(&ladder::question(&self.session.name, question, report));
        self.shown = true;
        answered(std::io::stdin().lock())
    }

    fn decided(&mut self, entry: &Entry) {
        let candidate = entry.candidate.as_deref().unwrap_or_default();
        tracing::debug!("{} {candidate}: {:?}, {}", entry.state.name(), entry.decision, entry.reason);
        if (entry.state, entry.decision) == (Kind::Review, Decision::Climb) {
            let ratio = entry.figures["ppl_ratio"].as_f64();
            let ratio = ratio.map_or(String::new(), |ratio| format!(", perplexity {:+.2} %", 100.0 * (ratio - 1.0)));
            self.session.progress.finish();
            ui::note(&format!("{candidate}: {}{ratio}", entry.reason));
        }
    }
}

/// What a person says to a question; nothing: that it is decided later.
fn answered(input: impl BufRead) -> Option<bool> {
    let mut lines = input.lines();
    loop {
        ui::note("\n  y takes it, n throws it away, Enter decides later:");
        match lines.next()?.ok()?.trim() {
            "y" | "Y" | "yes" => return Some(true),
            "n" | "N" | "no" => return Some(false),
            "" => return None,
            other => ui::note(&format!("  {other:?} is neither y nor n")),
        }
    }
}

/// Draws the run's states into `file`.
pub(super) fn draw(file: &Path, entries: &[Entry]) -> Result<()> {
    use octet_flow::machine::graph;
    let svg = file.extension().is_some_and(|end| end == "svg");
    let text = if svg { graph::svg(entries) } else { graph::mermaid(entries) };
    std::fs::write(file, text).with_context(|| format!("cannot write {}; check the path", file.display()))
}
