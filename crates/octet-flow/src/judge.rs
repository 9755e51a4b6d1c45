//! The verdict: a written artefact, re-opened, against the original.

use crate::{Error, Progress, Result, artefact};
use octet_eval::{
    Measures, Report, SixteenBit, Windows,
    gates::{self, Gate, Thresholds},
    health::{self, HealthOptions, HealthRun},
    integrity::{Check, same_bytes, same_logits},
    machine::Machine,
    memory::{ProcessMemory, available_memory},
    report::{Memory, TextInfo},
    score,
    size::QuantizedMatrices,
    speed::{self, SpeedOptions},
};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::Engine;
use octet_model::ArchSpec;
use octet_runtime::{OpenOptions, TextModel};
use octet_tensor::Dtype;
use std::{ops::ControlFlow, path::Path, sync::atomic::AtomicBool};

/// What a verdict rests on.
#[derive(Clone, Debug)]
pub struct JudgeSettings {
    /// Name of the evaluation text.
    pub text: String,
    /// Token ids of the evaluation text.
    pub ids: Vec<u32>,
    /// Tokens of a window; `None` for the default.
    pub context: Option<usize>,
    /// Thresholds of the gates.
    pub thresholds: Thresholds,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// The command line, for the report.
    pub command: Vec<String>,
}

/// The original, opened once for any number of variants.
pub struct Original {
    folder: Folder,
    checkpoint: Checkpoint,
    text: TextModel,
    /// The original in 16 bits, where it is stored in more; the baseline of speed.
    sixteen: Option<TextModel>,
    /// Weights in all.
    parameters: u64,
    windows: Windows,
    prompts: Vec<Vec<u32>>,
    health: Option<HealthRun>,
}

/// A verdict and what it compared.
pub struct Judged {
    /// Gates, figures and status.
    pub report: Report,
    /// The re-opened artefact.
    pub model: TextModel,
}

impl Original {
    /// Opens the original and cuts the evaluation text.
    ///
    /// # Errors
    /// If the model cannot be opened or the text is too short for a window.
    pub fn open(folder: &Folder, engine: &Engine, settings: &JudgeSettings) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let parameters = parameters(&checkpoint);
        let decoded = checkpoint.entries().iter().any(|e| e.dtype == Dtype::F8E4m3);
        let wide = checkpoint.entries().iter().any(|e| matches!(e.dtype, Dtype::F32 | Dtype::F64) && e.shape.len() == 2);
        // FP8 runs as a decoded F32 copy, wider floats are compared in 16 bits: both are held beside the mapped file.
        check_memory(
            folder.name(),
            if decoded {
                4 * parameters
            } else if wide {
                2 * parameters
            } else {
                0
            },
        )?;
        let text = TextModel::open(folder, engine, OpenOptions::default())?;
        let sixteen = if wide {
            let spec = ArchSpec::from_config(checkpoint.config())?;
            let source = SixteenBit::new(&checkpoint);
            Some(TextModel::assemble(folder, checkpoint.config(), engine, spec, &source, OpenOptions::default(), &mut |_, _| {})?)
        } else {
            None
        };
        let windows = Windows::of(&text, &settings.ids, settings.context)?;
        let prompts = health::prompts(&settings.ids, text.tokenizer.leading_bos(), &health_options(settings));
        Ok(Self { folder: folder.clone(), checkpoint, text, sixteen, parameters, windows, prompts, health: None })
    }

    /// The opened original.
    pub fn text_model(&self) -> &TextModel {
        &self.text
    }

    fn baseline(&self) -> &TextModel {
        self.sixteen.as_ref().unwrap_or(&self.text)
    }
}

/// Weights of the float tensors; FP8 block scales are no weights.
fn parameters(checkpoint: &Checkpoint) -> u64 {
    let weights = checkpoint.entries().iter().filter(|e| e.dtype.is_float() && !e.name.ends_with("_scale_inv"));
    weights.map(|e| e.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
}

fn health_options(settings: &JudgeSettings) -> HealthOptions {
    HealthOptions { seed: settings.seed, ..HealthOptions::default() }
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
    let mut bench = Bench { original, settings, engine, cancel, progress };
    let folder = Folder::disk(dir)?;
    let checkpoint = Checkpoint::open(&folder)?;
    check_memory(scheme, checkpoint.entries().iter().map(|e| e.bytes as u64).sum())?;
    let model = TextModel::open(&folder, engine, OpenOptions::default())?;
    let (mut measures, mut gates) = bench.quality(&model, &checkpoint)?;
    // Before speed is measured, whose streaming buffers are not what the models need.
    let process = ProcessMemory::now();
    gates.extend(bench.size(&folder, &checkpoint, forecast, &mut measures)?);
    gates.push(bench.speed(&model, &mut measures)?);
    gates.push(bench.health(&model, &mut measures)?);
    gates.push(bench.integrity(&folder, &model, &mut measures)?);
    measures.memory = Some(Memory {
        base_weights: Some(bench.original.text.model.resident_bytes() as u64),
        quant_weights: Some(model.model.resident_bytes() as u64),
        process,
    });
    let report = Report::new(scheme.into(), gates, false, measures, Machine::of(engine), settings.command.clone());
    Ok(Judged { report, model })
}

/// One judgement at work.
struct Bench<'a, 'p> {
    original: &'a mut Original,
    settings: &'a JudgeSettings,
    engine: &'a Engine,
    cancel: &'a AtomicBool,
    progress: Progress<'p>,
}

impl Bench<'_, '_> {
    fn quality(&mut self, quant: &TextModel, checkpoint: &Checkpoint) -> Result<(Measures, Vec<Gate>)> {
        let (original, limits) = (&*self.original, &self.settings.thresholds);
        let (cancel, progress) = (self.cancel, &mut *self.progress);
        let mut step = stage("perplexity", "windows", cancel, progress);
        let comparison = score::compare(&original.text.model, &quant.model, &original.windows, &mut step).map_err(interrupted)?;
        let info = TextInfo::of(self.settings.text.clone(), &original.windows);
        let (measures, interval, point) = Measures::of_pair(info, &comparison, self.settings.seed);
        let tokens = comparison.tokens();
        let mut gates = vec![gates::quality(interval, point, comparison.non_finite, tokens, original.windows.context, limits)];
        if let (Some(kl), Some(top1)) = (&measures.kl, measures.top1) {
            let bits = checkpoint.quantization().and_then(|q| q.main_scheme()).map_or(16.0, |s| f64::from(s.weights.bits.get()));
            gates.extend(gates::fidelity(kl, top1, bits, limits));
        }
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

    fn speed(&mut self, quant: &TextModel, measures: &mut Measures) -> Result<Gate> {
        let original = &*self.original;
        let options = SpeedOptions { seed: self.settings.seed, ..SpeedOptions::default() };
        let (cancel, progress, mut done) = (self.cancel, &mut *self.progress, 0u64);
        // A pair is two phases of two models; the total is what a run within its time budget makes.
        let total = 2 * options.pairs as u64;
        let mut step = || {
            done += 1;
            progress("speed", done.min(total), total, "decode and prefill, both models in turn");
            flow(cancel)
        };
        let bytes = 2 * original.parameters as usize;
        let baseline = &original.baseline().model;
        let measured = speed::measure(baseline, &quant.model, &self.settings.ids, bytes, &options, &mut step).map_err(interrupted)?;
        let gate = gates::speed(&measured, &self.settings.thresholds);
        measures.speed = Some(measured);
        Ok(gate)
    }

    fn health(&mut self, quant: &TextModel, measures: &mut Measures) -> Result<Gate> {
        let options = health_options(self.settings);
        let cancel = self.cancel;
        if self.original.health.is_none() {
            let mut step = stage("text", "the original writes", cancel, &mut *self.progress);
            let run = health::run(&self.original.text, &self.original.prompts, &options, &mut step).map_err(interrupted)?;
            self.original.health = Some(run);
        }
        let mut step = stage("text", "the quantized model writes", cancel, &mut *self.progress);
        let run = health::run(quant, &self.original.prompts, &options, &mut step).map_err(interrupted)?;
        let Some(base) = &self.original.health else { return Ok(Gate::not_applicable("health", "the original was not run")) };
        let health = health::compare(base, &run, &options);
        let gate = gates::health(&health);
        measures.health = Some(health);
        Ok(gate)
    }

    /// Every file taken over is the original's byte for byte, and a second opening gives the logits that were judged.
    fn integrity(&self, folder: &Folder, quant: &TextModel, measures: &mut Measures) -> Result<Gate> {
        let mut checks: Vec<Check> = vec![];
        for (name, bytes) in artefact::companions(&self.original.folder)? {
            let written = folder.read(&name)?;
            checks.push(same_bytes(&name, Some(&bytes), written.as_deref()));
        }
        let reopened = TextModel::open(folder, self.engine, OpenOptions::default())?;
        let probe = &self.settings.ids[..self.settings.ids.len().min(64)];
        checks.push(same_logits(&quant.model, &reopened.model, probe)?);
        let gate = gates::integrity(&checks);
        measures.integrity = checks;
        Ok(gate)
    }
}

impl Original {
    /// The checkpoint's config and tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// Refuses to load what needs `needed` bytes of memory beside mapped files where that much is not to be had.
fn check_memory(what: &str, needed: u64) -> Result<()> {
    match available_memory() {
        Some(available) if available < needed => {
            let [needed, available] = [needed, available].map(|bytes| bytes / 1_000_000);
            Err(Error::NoMemory { what: what.into(), needed, available })
        }
        _ => Ok(()),
    }
}

/// A progress callback of octet-eval that reports as stage `name` and stops when asked.
fn stage<'a>(
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

fn interrupted(error: octet_eval::Error) -> Error {
    if matches!(error, octet_eval::Error::Interrupted) { Error::Interrupted } else { error.into() }
}
