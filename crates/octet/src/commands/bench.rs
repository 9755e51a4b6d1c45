//! `octet bench`: how fast models run, and how near that is to what this machine can do.

use super::{bench_budget, bench_show, say_json};
use crate::{
    Ended,
    args::{Bench, Global},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result, bail};
use octet_eval::{
    bench::{self, BenchOptions, Measured, Subject},
    memory::{ProcessMemory, available_memory, resident_now},
    roofline,
    work::Work,
};
use octet_formats::Checkpoint;
use octet_kernels::{Engine, KvDtype};
use octet_model::{ArchSpec, LoadOptions, Model};
use serde::Serialize;
use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

/// Speed of one model; the fields are those of the JSON document.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) model: String,
    pub(crate) scheme: String,
    pub(crate) threads: usize,
    pub(crate) isa: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    /// From opening the folder (in the page cache) to a model that can run.
    pub(crate) load_ms: f64,
    /// From opening the folder to the first token after a prompt of [`FIRST_PROMPT`].
    pub(crate) first_token_ms: f64,
    /// Most memory held while loading, for a prompt and some tokens after it; `None` where the system does not tell.
    pub(crate) peak_rss_mb: Option<f64>,
    /// Weights a step reads.
    pub(crate) weight_mb: f64,
    /// Kernels that ran and calls of each, all models together.
    pub(crate) kernels: Vec<(String, u64)>,
    #[serde(skip)]
    pub(crate) work: Work,
}

/// What a default run measures.
const PREFILL: [usize; 3] = [128, 512, 2048];
const CONTEXTS: [usize; 2] = [0, 2048];
const BATCHES: [usize; 2] = [1, 8];
/// Room that is kept for the decoded tokens behind a default context: a repetition makes no more by itself.
pub(super) const MOST_STEPS: usize = octet_eval::bench::MOST_STEPS;
/// More sequences than this are a typing error.
const MOST_BATCH: usize = 256;
/// Prompt of the first token.
const FIRST_PROMPT: usize = 16;
/// Prompt of the memory measurement: longer ones go through in passes of this size.
const MEMORY_PROMPT: usize = 512;

/// Runs the command.
pub(crate) fn bench(args: &Bench, global: &Global) -> Result<Ended> {
    check(args)?;
    for name in &args.models {
        resolve::resolve(name)?;
    }
    let engine = machine::engine(global.threads)?;
    bench_budget::check(args, engine.threads())?;
    let mut progress = Progress::new();
    let (mut loaded, alone) = (vec![], resident_now().unwrap_or(0));
    for (index, name) in args.models.iter().enumerate() {
        progress.update("loading", index as u64, args.models.len() as u64, name);
        loaded.push(load(name, args, &engine, alone)?);
        if interrupt::asked() {
            progress.finish();
            return Ok(Ended::Interrupted);
        }
    }
    let contexts = loaded.iter().map(|l| l.model.context()).min().unwrap_or(0);
    let options = options(args, contexts)?;
    let subjects: Vec<Subject<'_>> = loaded.iter().map(|l| Subject { model: &l.model, work: &l.work }).collect();
    let mut tell = |phase: &str, done: usize, total: usize| {
        progress.update("timing", done as u64, total as u64, phase);
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let measured = match bench::run(&subjects, &options, &mut tell) {
        Err(octet_eval::Error::Interrupted) => {
            progress.finish();
            return Ok(Ended::Interrupted);
        }
        measured => measured?,
    };
    progress.finish();
    let kernels: Vec<(String, u64)> = engine.kernel_calls().into_iter().map(|(name, calls)| (name.to_string(), calls)).collect();
    let all: Vec<Figures> = loaded.into_iter().zip(measured).map(|(l, m)| l.figures(&engine, m, kernels.clone())).collect();
    if let Some(file) = &args.svg {
        fs::write(file, draw(&all)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if global.json {
        say_json(&all)?
    } else {
        bench_show::show(&all)
    }
    Ok(Ended::Done)
}

/// Refuses what cannot be measured before anything is loaded.
fn check(args: &Bench) -> Result<()> {
    if args.decode == Some(0) || args.prefill.contains(&0) {
        bail!("--prefill and --decode count tokens; give 1 or more");
    }
    if let Some(batch) = args.batch.iter().find(|&&batch| batch == 0 || batch > MOST_BATCH) {
        bail!("--batch {batch} is not a number of sequences to decode together; give 1 to {MOST_BATCH}");
    }
    if let Some(file) = args.svg.as_deref().filter(|file| file.exists() && !args.force) {
        bail!("{} exists; name another file or replace it with --force", file.display());
    }
    let folder = args.svg.as_deref().and_then(Path::parent).filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir());
    if let Some(folder) = folder {
        bail!("there is no folder {} to write the drawing into; check the path", folder.display());
    }
    Ok(())
}

/// What to measure on models that can see `longest` tokens. What was asked for must fit; defaults are cut to fit.
pub(super) fn options(args: &Bench, longest: usize) -> Result<BenchOptions> {
    let steps = args.decode.unwrap_or(if args.context.is_empty() { MOST_STEPS } else { 4 });
    let asked = args.prefill.iter().map(|&tokens| ("--prefill", tokens)).chain(args.context.iter().map(|&c| ("--context", c + steps)));
    if let Some((flag, tokens)) = asked.chain(args.decode.map(|steps| ("--decode", steps))).find(|(_, tokens)| *tokens > longest) {
        bail!("{flag} needs a context of {tokens} tokens, and the shortest of these models has {longest}; give less");
    }
    let or = |asked: &[usize], quick: &[usize], default: &[usize], most: usize| -> Vec<usize> {
        if !asked.is_empty() {
            return asked.to_vec();
        }
        let mut values: Vec<usize> = if args.quick { quick } else { default }.iter().map(|&value| value.min(most)).collect();
        values.dedup();
        values
    };
    let prefill = or(&args.prefill, &PREFILL[..1], &PREFILL, longest);
    let contexts = or(&args.context, &[0], &CONTEXTS, longest.saturating_sub(steps));
    let batches = or(&args.batch, &[1], &BATCHES, MOST_BATCH);
    let decode = contexts.iter().map(|&c| (c, batches[0])).chain(batches[1..].iter().map(|&b| (contexts[0], b)));
    let (rounds, repetition, budget) = if args.quick { (args.reps.get().min(3), 100, 2) } else { (args.reps.get(), 250, 8) };
    Ok(BenchOptions {
        prefill,
        decode: decode.collect(),
        steps: args.decode,
        rounds,
        repetition: Duration::from_millis(repetition),
        budget: Duration::from_secs(budget),
    })
}

/// A model with what loading it took.
struct Loaded {
    name: String,
    scheme: String,
    model: Model,
    work: Work,
    load_ms: f64,
    first_token_ms: f64,
    peak_rss: Option<u64>,
}

impl Loaded {
    fn figures(self, engine: &Engine, measured: Measured, kernels: Vec<(String, u64)>) -> Figures {
        Figures {
            model: self.name,
            scheme: self.scheme,
            threads: engine.threads(),
            isa: engine.isa().to_string(),
            measured,
            load_ms: self.load_ms,
            first_token_ms: self.first_token_ms,
            peak_rss_mb: self.peak_rss.map(|bytes| bytes as f64 / 1e6),
            weight_mb: self.work.weight_bytes(1) / 1e6,
            kernels,
            work: self.work,
        }
    }
}

/// Loads a model, several times for the median, and runs it for its first token and its memory; `alone` is what the
/// process held before the first model.
fn load(name: &str, args: &Bench, engine: &Engine, alone: u64) -> Result<Loaded> {
    let times = if args.quick { 1 } else { args.reps.get().min(3) };
    // What other models hold is not this one's. Measured on the first load, before anything was freed and kept for later.
    let others = resident_now().unwrap_or(0).saturating_sub(alone);
    let fresh = ProcessMemory::reset_peak();
    let (mut opened, load, first) = start(name, args.cache.kv.into(), engine)?;
    let tokens = args.prefill.iter().copied().max().unwrap_or(MEMORY_PROMPT).min(MEMORY_PROMPT).min(opened.2.context() - 1);
    bench::first_token(&opened.2, tokens)?;
    let peak_rss = ProcessMemory::now().peak_rss.filter(|_| fresh).map(|peak| peak.saturating_sub(others));
    let (mut load_ms, mut first_token_ms) = (vec![load], vec![first]);
    for _ in 1..times {
        drop(opened);
        let (again, load, first) = start(name, args.cache.kv.into(), engine)?;
        opened = again;
        load_ms.push(load);
        first_token_ms.push(first);
    }
    let (checkpoint, work, model) = opened;
    let scheme = checkpoint.quantization().and_then(|q| q.main_scheme()).map(|scheme| scheme.to_string());
    let scheme = scheme.or_else(|| work.float_type()).unwrap_or_default();
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Loaded { name: name.into(), scheme, model, work, load_ms: middle(load_ms), first_token_ms: middle(first_token_ms), peak_rss })
}

type Opened = (Checkpoint, Work, Model);

/// Opens a model and lets it compute a first token: the model, milliseconds of loading, milliseconds to the token.
fn start(name: &str, kv: KvDtype, engine: &Engine) -> Result<(Opened, f64, f64)> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&resolve::resolve(name)?)?;
    let mut spec = ArchSpec::from_config(checkpoint.config())?;
    spec.settle(&checkpoint)?;
    let stored: u64 = checkpoint.entries().iter().map(|entry| entry.bytes as u64).sum();
    if let Some(available) = available_memory().filter(|&available| available < stored) {
        let [stored, available] = [stored, available].map(ui::bytes);
        bail!("{name} takes {stored} and only {available} of memory are free; give fewer models at once or free some");
    }
    let work = Work::of(&checkpoint, &spec, kv)?;
    let options = LoadOptions { activations: None, kv, context: None };
    let model = Model::load(engine, spec, &checkpoint, options, &mut |_, _| {})?;
    let load = started.elapsed().as_secs_f64() * 1e3;
    bench::first_token(&model, FIRST_PROMPT.min(model.context() - 1))?;
    Ok(((checkpoint, work, model), load, started.elapsed().as_secs_f64() * 1e3))
}

fn draw(all: &[Figures]) -> String {
    let series = all.iter().map(|f| {
        let prefill = f.measured.prefill.iter().map(|p| roofline::Point {
            label: format!("prefill {}", p.tokens),
            intensity: f.work.prefill_ops(p.tokens) / f.work.weight_bytes(p.tokens),
            gop_s: p.gop_s,
        });
        let decode = f.measured.decode.iter().map(|d| roofline::Point {
            label: bench_show::decode_name(d.context, d.batch),
            intensity: f.work.decode_ops(d.batch) / f.work.decode_bytes(d.batch, d.context, d.steps),
            gop_s: d.gop_s,
        });
        roofline::Series { name: format!("{} ({})", bench_show::short(&f.model), f.scheme), points: prefill.chain(decode).collect() }
    });
    let series: Vec<roofline::Series> = series.collect();
    let Some(first) = all.first() else { return String::new() };
    let most = |of: fn(&Figures) -> f64| all.iter().map(of).fold(0.0, f64::max);
    let title = format!("{} threads, {}", first.threads, first.isa);
    roofline::svg(&title, &series, most(|f| f.measured.limits.read_gb_s), most(|f| f.measured.limits.int8_gop_s))
}
