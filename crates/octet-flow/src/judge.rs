//! The verdict: a written artefact, re-opened, against the original.

use crate::{
    Error, Progress, Result, artefact,
    export::Source,
    original::{Original, check_memory, health_options},
};
use octet_eval::{
    EvalText, Measures, Pair, Report, Side,
    along::Along,
    cost::{self, Job, Pace, Trial, Turn},
    evaluation::Compared,
    gates::{self, Gate, Thresholds},
    health,
    integrity::{Check, same_bytes, same_logits},
    looks::{Look, Looked},
    machine::Machine,
    memory::ProcessMemory,
    report::{Cost, Memory, kernels_since},
    samples,
    size::QuantizedMatrices,
    speed::{self, CacheCheck, SpeedOptions},
    store::Store,
    tasks::{self, TaskFigures, TaskSet},
    torture::{same_prompts, same_tokens},
    verdict_of_texts,
};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::Engine;
use octet_runtime::{ChatTemplate, OpenOptions, TextModel, Tokenizer};
use std::{ops::ControlFlow, path::Path, sync::atomic::AtomicBool, time::Instant};

/// The stage under which the forecast of a judgement is told, once and before it begins, as its detail.
pub const FORECAST: &str = "forecast";

/// What a verdict rests on.
#[derive(Clone, Debug)]
pub struct JudgeSettings {
    /// The evaluation texts; a variant must pass on each of them and on all together.
    pub texts: Vec<EvalText>,
    /// Tokens of a window; `None` for the default.
    pub context: Option<usize>,
    /// Thresholds of the gates.
    pub thresholds: Thresholds,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// Questions both models answer, where there are any.
    pub tasks: Option<TaskSet>,
    /// Prompts of the health check.
    pub health_prompts: usize,
    /// Where what the original makes of the texts is kept between runs; `None`: nowhere.
    pub store: Option<Store>,
    /// The command line, for the report.
    pub command: Vec<String>,
}

impl JudgeSettings {
    /// Token ids of all evaluation texts, one after another.
    pub fn ids(&self) -> Vec<u32> {
        self.texts.iter().flat_map(|text| text.ids.iter().copied()).collect()
    }
}

/// A verdict and what it compared.
pub struct Judged {
    /// Gates, figures and status.
    pub report: Report,
    /// The re-opened artefact.
    pub model: TextModel,
}

/// Judges the artefact in `dir`, made by `scheme`, against the original. `forecast` is what the plan said its folder would take.
///
/// # Errors
/// If a model cannot run at all, or `cancel` is set; a bad model is no error but a refusal.
#[allow(clippy::too_many_arguments, reason = "each is one thing the verdict rests on")]
pub fn judge(
    original: &mut Original,
    dir: &Path,
    scheme: &str,
    forecast: Option<u64>,
    settings: &JudgeSettings,
    engine: &Engine,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Judged> {
    judge_folder(original, &Folder::disk(dir)?, scheme, Origin::Octet { forecast }, settings, engine, cancel, progress)
}

/// Who made what is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// octet, just now: files taken over must be the original's byte for byte.
    Octet {
        /// Bytes the plan said the folder would take.
        forecast: Option<u64>,
    },
    /// Somebody else: a tokenizer saved anew may differ in bytes as long as it gives the same tokens.
    Elsewhere,
}

/// As [`judge`], for any folder that can be opened.
///
/// # Errors
/// As [`judge`].
#[allow(clippy::too_many_arguments, reason = "each is one thing the verdict rests on")]
pub fn judge_folder(
    original: &mut Original,
    folder: &Folder,
    scheme: &str,
    origin: Origin,
    settings: &JudgeSettings,
    engine: &Engine,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Judged> {
    let mut bench = Bench { original, settings, engine, cancel, progress, parts: vec![] };
    let started = Instant::now();
    let checkpoint = Checkpoint::open(folder)?;
    check_memory(scheme, checkpoint.entries().iter().map(|e| e.bytes as u64).sum())?;
    let model = TextModel::open(folder, engine, OpenOptions::default())?;
    let is_quantized = checkpoint.quantization().is_some();
    let (known, [forecast_seconds, most]) = bench.forecast(&model, is_quantized, started)?;
    let (mut measures, mut gates) = bench.timed("texts", |bench| bench.quality(&model, &checkpoint))?;
    // Before speed is measured, whose streaming buffers are not what the models need.
    let process = ProcessMemory::now();
    let forecast = if let Origin::Octet { forecast } = origin { forecast } else { None };
    gates.extend(bench.size(folder, &checkpoint, forecast, &mut measures)?);
    let (base, quant) = (bench.original.baseline().model.resident_bytes() as u64, model.model.resident_bytes() as u64);
    if is_quantized {
        gates.push(bench.timed("speed", |bench| bench.speed(&model, &mut measures))?);
        gates.push(gates::memory(base, quant));
    } else {
        gates.extend(["speed", "memory"].map(|name| Gate::not_applicable(name, "nothing is quantized")));
    }
    gates.push(bench.timed("health", |bench| bench.health(&model, &mut measures))?);
    gates.extend(bench.timed("tasks", |bench| bench.tasks(&model, &mut measures))?);
    gates.push(bench.timed("integrity", |bench| bench.integrity(folder, &model, origin, &mut measures))?);
    measures.memory = Some(Memory { base_weights: Some(base), quant_weights: Some(quant), process });
    let (seconds, parts) = (started.elapsed().as_secs_f64(), bench.parts);
    let (forecast_seconds, forecast_most_seconds) = (Some(forecast_seconds), Some(most).filter(|most| *most > forecast_seconds));
    measures.cost = Some(Cost { forecast_seconds, forecast_most_seconds, seconds, reference_cached: known, parts });
    let report = Report::new(scheme.into(), gates, false, measures, Machine::of(engine), settings.command.clone());
    Ok(Judged { report, model })
}

/// Judges the quality of the artefact in `dir` alone: perplexity and divergence with their gates.
///
/// # Errors
/// As [`judge`].
pub fn judge_quality(
    original: &mut Original,
    dir: &Path,
    settings: &JudgeSettings,
    engine: &Engine,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<(Measures, Vec<Gate>)> {
    let mut bench = Bench { original, settings, engine, cancel, progress, parts: vec![] };
    let folder = Folder::disk(dir)?;
    let checkpoint = Checkpoint::open(&folder)?;
    let model = TextModel::open(&folder, engine, OpenOptions::default())?;
    bench.quality(&model, &checkpoint)
}

/// Judges a model in another format against the one it came from: quality and fidelity, tokens and prompts.
///
/// # Errors
/// As [`judge`].
pub(crate) fn judge_export(
    original: &mut Original,
    folder: &Folder,
    label: &str,
    settings: &JudgeSettings,
    engine: &Engine,
    cancel: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Report> {
    let mut bench = Bench { original, settings, engine, cancel, progress, parts: vec![] };
    let checkpoint = Checkpoint::open(folder)?;
    let model = TextModel::open(folder, engine, OpenOptions::default())?;
    let (mut measures, mut gates) = bench.quality(&model, &checkpoint)?;
    gates.push(bench.integrity(folder, &model, Origin::Elsewhere, &mut measures)?);
    Ok(Report::new(label.into(), gates, false, measures, Machine::of(engine), settings.command.clone()))
}

/// The files that say how text becomes tokens and a conversation a prompt.
const TEXT_FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// Whether a folder turns the same text into the same tokens as the source it was made from, and the same conversation into the same prompt;
/// a sentence if not.
pub(crate) fn same_text(source: &Source, written: &Folder) -> std::result::Result<(), String> {
    let original = &source.input;
    let read = |folder: &Folder, file: &str| folder.read(file).map_err(|e| e.to_string());
    // Files that are the same byte for byte mean the same; the usual case of a folder, and a vocabulary takes a while to read.
    let mut same = true;
    for file in TEXT_FILES {
        same &= read(original, file)?.as_deref() == read(written, file)?.as_deref();
    }
    if same {
        return Ok(());
    }
    let Some(a) = source.tokenizer().map_err(|e| e.to_string())? else {
        return Err("read back, it has a tokenizer that the original does not have".into());
    };
    let words = |e: octet_runtime::Error| e.to_string();
    let b = Tokenizer::open(written).map_err(words)?;
    let templates = (ChatTemplate::open(original).map_err(words)?, ChatTemplate::open(written).map_err(words)?);
    let checks = [same_tokens(a, &b), same_prompts(templates.0.as_ref(), templates.1.as_ref())];
    match checks.iter().find(|check| !check.pass) {
        None => Ok(()),
        Some(check) => Err(format!("read back, {} differ: {}; the format cannot hold this tokenizer", check.name, check.note)),
    }
}

/// One judgement at work.
struct Bench<'a, 'p> {
    original: &'a mut Original,
    settings: &'a JudgeSettings,
    engine: &'a Engine,
    cancel: &'a AtomicBool,
    progress: Progress<'p>,
    /// Seconds of each part so far.
    parts: Vec<(String, f64)>,
}

impl Bench<'_, '_> {
    /// Runs a part and notes how long it took.
    fn timed<T>(&mut self, name: &str, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = part(self);
        self.parts.push((name.into(), started.elapsed().as_secs_f64()));
        result
    }

    /// Whether the original's side is known already, and the seconds judging will take if a first look decides, and at most.
    /// What passed since `started`, for opening the model, is part of it; the model is opened once more in the end.
    fn forecast(&mut self, quant: &TextModel, is_quantized: bool, started: Instant) -> Result<(bool, [f64; 2])> {
        let opening = started.elapsed().as_secs_f64();
        let (ids, health, speed) = (self.settings.ids(), health_options(self.settings), SpeedOptions::default());
        if is_quantized {
            self.cache();
        }
        let identity = self.original.identity(self.settings)?;
        let stored = self.settings.store.as_ref().zip(identity.as_ref());
        let limits = &self.settings.thresholds;
        let known = self.original.evaluation.is_known(limits, stored);
        let trial = |side: Side| Trial { ids: &ids, side, health: &health };
        let original = if known { None } else { Some(self.original.pace(trial(Side::Original))?) };
        let turns = [self.original.turn(&ids, &speed)?, Turn::of(&quant.model, &ids, &speed)?];
        let variant = Pace::of(&quant.model, trial(Side::Variant))?;
        let (read, written) = self.settings.tasks.as_ref().map_or(Ok((0, 0)), |set| tasks::tokens(quant, set)).map_err(interrupted)?;
        let answering = if self.original.answers.is_none() { 2 } else { 1 };
        let windows = self.original.evaluation.windows();
        let lengths = [false, true].map(|all| windows.lengths(limits, all));
        let trials = started.elapsed().as_secs_f64();
        let seconds = lengths.each_ref().map(|windows| {
            let speed = is_quantized.then_some(&speed);
            let job = Job { windows, health: &health, questions: (answering * read, answering * written), speed };
            trials + opening + cost::forecast(original.as_ref(), &variant, turns.each_ref(), job)
        });
        let reference = if known { "the original's side is known" } else { "the original included" };
        let [first, most] = seconds.map(|seconds| format!("{seconds:.0}"));
        let span = if first == most { format!("{first} s") } else { format!("{first} to {most} s") };
        (self.progress)(FORECAST, 0, 1, &format!("about {span} ({reference})"));
        Ok((known, seconds))
    }

    fn quality(&mut self, quant: &TextModel, checkpoint: &Checkpoint) -> Result<(Measures, Vec<Gate>)> {
        let (settings, limits) = (self.settings, &self.settings.thresholds);
        let identity = self.original.identity(settings)?;
        let Original { text, evaluation, .. } = &mut *self.original;
        let stored = settings.store.as_ref().zip(identity.as_ref());
        let pair = Pair { original: &text.model, variant: &quant.model, stored };
        let (cancel, progress) = (self.cancel, &mut *self.progress);
        let mut step = |side: Side, done: usize, total: usize| {
            let name = if side == Side::Original { "original" } else { "perplexity" };
            progress(name, done as u64, total as u64, "windows");
            flow(cancel)
        };
        let before = self.engine.kernel_calls();
        let verdict = |compared: &Compared| verdict_of_texts(compared, limits, settings.seed);
        let judged = evaluation.judge(pair, limits, verdict, &mut step);
        let (mut measures, mut gates, compared) = judged.map_err(interrupted)?;
        if let (true, Some(text)) = (compared.look != Look::Only, &measures.text) {
            let of = evaluation.windows().texts.iter().map(|(_, windows)| windows.tokens()).sum();
            measures.looked = Some(Looked { look: compared.look, tokens: text.tokens, of });
        }
        measures.kernels = kernels_since(self.engine, &before);
        if let (Some(kl), Some(top1)) = (&measures.kl, measures.top1) {
            let bits = checkpoint.quantization().and_then(|q| q.main_scheme()).map_or(16.0, |s| f64::from(s.weights.bits.get()));
            gates.extend(gates::fidelity(kl, top1, bits, limits));
        }
        measures.long_context = compared.long.as_ref().map(|(windows, long)| Along::of(long, windows.context, settings.seed));
        Ok((measures, gates))
    }

    fn size(&self, folder: &Folder, checkpoint: &Checkpoint, forecast: Option<u64>, measures: &mut Measures) -> Result<Vec<Gate>> {
        let Some(quantization) = checkpoint.quantization() else { return Ok(vec![Gate::not_applicable("size", "nothing is quantized")]) };
        let modules = quantization.modules.keys().map(String::as_str);
        let bytes = folder.files()?.iter().map(|(_, bytes)| bytes).sum();
        let size = QuantizedMatrices::of(checkpoint, modules)?.size(bytes, self.original.parameters, forecast);
        let gates = gates::size(&size, &self.settings.thresholds);
        measures.size = Some(size);
        Ok(gates)
    }

    /// Where the original's weights are read from, measured once.
    fn cache(&mut self) -> CacheCheck {
        let bytes = 2 * self.original.parameters as usize;
        self.original.cache.get_or_insert_with(|| speed::check_cache(self.engine, bytes)).clone()
    }

    fn speed(&mut self, quant: &TextModel, measures: &mut Measures) -> Result<Gate> {
        let options = SpeedOptions { seed: self.settings.seed, ..SpeedOptions::default() };
        let cache = self.cache();
        let original = &*self.original;
        let (cancel, progress, mut done) = (self.cancel, &mut *self.progress, 0u64);
        // A pair is two phases of two models; the total is what a run within its time budget makes.
        let total = 2 * options.pairs as u64;
        let mut step = || {
            done += 1;
            progress("speed", done.min(total), total, "decode and prefill, both models in turn");
            flow(cancel)
        };
        let baseline = &original.baseline().model;
        let measured = speed::measure(baseline, &quant.model, &self.settings.ids(), cache, &options, &mut step).map_err(interrupted)?;
        let gate = gates::speed(&measured, &self.settings.thresholds);
        measures.speed = Some(measured);
        Ok(gate)
    }

    fn health(&mut self, quant: &TextModel, measures: &mut Measures) -> Result<Gate> {
        let options = health_options(self.settings);
        let cancel = self.cancel;
        if self.original.health.is_none() {
            let mut step = stage("text", "the original writes", cancel, &mut *self.progress);
            let stored = self.settings.store.as_ref().zip(self.original.identity.as_ref());
            let run = health::run_stored(&self.original.text, &self.original.prompts, &options, stored, &mut step).map_err(interrupted)?;
            self.original.health = Some(run);
        }
        let mut step = stage("text", "the quantized model writes", cancel, &mut *self.progress);
        let run = health::run(quant, &self.original.prompts, &options, &mut step).map_err(interrupted)?;
        let Some(base) = &self.original.health else { return Ok(Gate::not_applicable("health", "the original was not run")) };
        let health = health::compare(base, &run, &options);
        let gate = gates::health(&health);
        let prompts = self.original.prompts.iter().map(|ids| self.original.text.tokenizer.decode(ids));
        measures.samples = samples::of_health(&prompts.collect::<octet_runtime::Result<Vec<_>>>()?, base, &run);
        measures.health = Some(health);
        Ok(gate)
    }

    fn tasks(&mut self, quant: &TextModel, measures: &mut Measures) -> Result<Option<Gate>> {
        let Some(set) = &self.settings.tasks else { return Ok(None) };
        let base = match self.original.answers.take() {
            Some(known) => known,
            None => {
                let mut step = stage("tasks", "the original answers", self.cancel, &mut *self.progress);
                tasks::answers(&self.original.text, set, &mut step).map_err(interrupted)?
            }
        };
        let mut step = stage("tasks", "the quantized model answers", self.cancel, &mut *self.progress);
        let quant = tasks::answers(quant, set, &mut step).map_err(interrupted)?;
        let (figures, interval) = TaskFigures::of(&set.name, &base, &quant, self.settings.seed);
        self.original.answers = Some(base);
        let gate = gates::tasks(&figures, interval, &self.settings.thresholds);
        measures.tasks = Some(figures);
        Ok(Some(gate))
    }

    /// Every file taken over is the original's byte for byte, and a second opening gives the logits that were judged.
    fn integrity(&self, folder: &Folder, quant: &TextModel, origin: Origin, measures: &mut Measures) -> Result<Gate> {
        let mut checks: Vec<Check> = vec![];
        for (name, bytes) in artefact::companions(&self.original.folder)? {
            let written = folder.read(&name)?;
            let check = same_bytes(&name, Some(&bytes), written.as_deref());
            // What others save anew is judged by the tokens and prompts it gives.
            let pass = check.pass || origin == Origin::Elsewhere;
            checks.push(Check { pass, ..check });
        }
        let reopened = TextModel::open(folder, self.engine, OpenOptions::default())?;
        checks.push(same_tokens(&self.original.text.tokenizer, &reopened.tokenizer));
        checks.push(same_prompts(self.original.text.chat.as_ref(), reopened.chat.as_ref()));
        let ids = self.settings.ids();
        checks.push(same_logits(&quant.model, &reopened.model, &ids[..ids.len().min(64)])?);
        let gate = gates::integrity(&checks);
        measures.integrity = checks;
        Ok(gate)
    }
}

/// A progress callback of octet-eval that reports as stage `name` and stops when asked.
pub(crate) fn stage<'a>(
    name: &'a str,
    detail: &'a str,
    cancel: &'a AtomicBool,
    progress: Progress<'a>,
) -> impl FnMut(usize, usize) -> ControlFlow<()> + 'a {
    move |done, total| {
        progress(name, done as u64, total as u64, detail);
        flow(cancel)
    }
}

fn flow(cancel: &AtomicBool) -> ControlFlow<()> {
    if cancel.load(std::sync::atomic::Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

pub(crate) fn interrupted(error: octet_eval::Error) -> Error {
    if matches!(error, octet_eval::Error::Interrupted) { Error::Interrupted } else { error.into() }
}
