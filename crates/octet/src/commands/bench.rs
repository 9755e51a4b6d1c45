//! `octet bench`: how fast a model runs, and how near that is to what this machine can do.

use super::say_json;
use crate::{
    Ended,
    args::{Bench, Global},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Result, bail};
use octet_eval::memory::ProcessMemory;
use octet_formats::Checkpoint;
use octet_kernels::{Engine, KvDtype, limits};
use octet_model::{ArchSpec, LoadOptions, Logits, Model, Role, Step};
use octet_tensor::{Matrix, WeightSource};
use serde::Serialize;
use std::time::Instant;

/// Speed of one model; the fields are those of the JSON document.
#[derive(Serialize)]
struct Figures {
    model: String,
    scheme: String,
    threads: usize,
    isa: String,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
    load_ms: f64,
    peak_rss_mb: Option<f64>,
    limits: Limits,
    kernels: Vec<(String, u64)>,
}

#[derive(Serialize)]
struct Prefill {
    tokens: usize,
    tok_s: f64,
    gop_s: f64,
    share: f64,
}

#[derive(Serialize)]
struct Decode {
    context: usize,
    batch: usize,
    tok_s: f64,
    gb_s: f64,
    share: f64,
}

#[derive(Clone, Copy, Serialize)]
struct Limits {
    read_gb_s: f64,
    int8_gop_s: f64,
    f32_gflop_s: f64,
}

/// Runs the command.
pub(crate) fn bench(args: &Bench, global: &Global) -> Result<Ended> {
    if args.decode == 0 || args.prefill.contains(&0) {
        bail!("--prefill and --decode count tokens; give 1 or more");
    }
    let engine = machine::engine(global.threads)?;
    let mut progress = Progress::new();
    let mut all = vec![];
    for name in &args.models {
        all.push(one(name, args, &engine, &mut progress)?);
        if interrupt::asked() {
            progress.finish();
            return Ok(Ended::Interrupted);
        }
    }
    progress.finish();
    if global.json {
        say_json(&all)?;
    } else {
        show(&all);
    }
    Ok(Ended::Done)
}

fn one(name: &str, args: &Bench, engine: &Engine, progress: &mut Progress) -> Result<Figures> {
    let fresh = ProcessMemory::reset_peak();
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&resolve::resolve(name)?)?;
    let mut spec = ArchSpec::from_config(checkpoint.config())?;
    spec.settle(&checkpoint)?;
    let work = Work::of(&checkpoint, &spec)?;
    let model = Model::load(engine, spec, &checkpoint, LoadOptions { activations: None, kv: KvDtype::F16, context: None }, &mut |_, _| {})?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let steps = (args.prefill.len() + 2) as u64;
    let mut prefill_times = vec![];
    for (i, &tokens) in args.prefill.iter().enumerate() {
        progress.update(name, i as u64, steps, &format!("prefill {tokens}"));
        let tokens = tokens.min(model.context());
        prefill_times.push((tokens, median(args.repetitions.get(), || prefill_seconds(&model, tokens))?));
    }
    progress.update(name, steps - 2, steps, "decode");
    let tokens = args.decode.min(model.context().saturating_sub(1)).max(1);
    let step_seconds = median(args.repetitions.get(), || decode_seconds(&model, tokens))? / tokens as f64;
    // Before the limits, whose buffer is as large as the weights.
    let peak_rss = ProcessMemory::now().peak_rss.filter(|_| fresh);
    progress.update(name, steps - 1, steps, "limits of this machine");
    let limits = Limits {
        read_gb_s: limits::streaming_read_gb_s(engine, (work.bytes as usize).max(1 << 20)),
        int8_gop_s: limits::int8_gop_s(engine),
        f32_gflop_s: limits::f32_gflop_s(engine),
    };
    let prefill = prefill_times.into_iter().map(|(tokens, seconds)| {
        let gop_s = 2.0 * work.parameters as f64 * tokens as f64 / seconds / 1e9;
        Prefill { tokens, tok_s: tokens as f64 / seconds, gop_s, share: gop_s / limits.int8_gop_s }
    });
    let gb_s = work.bytes as f64 / step_seconds / 1e9;
    let decode = Decode { context: 0, batch: 1, tok_s: 1.0 / step_seconds, gb_s, share: gb_s / limits.read_gb_s };
    Ok(Figures {
        model: name.into(),
        scheme: checkpoint.quantization().and_then(|q| q.main_scheme()).map_or_else(|| work.dtype.clone(), |s| s.to_string()),
        threads: engine.threads(),
        isa: engine.isa().to_string(),
        prefill: prefill.collect(),
        decode: vec![decode],
        load_ms,
        peak_rss_mb: peak_rss.map(|b| b as f64 / 1e6),
        limits,
        kernels: engine.kernel_calls().into_iter().map(|(name, calls)| (name.to_string(), calls)).collect(),
    })
}

/// What a token costs: bytes of weights read and parameters multiplied.
struct Work {
    bytes: u64,
    parameters: u64,
    dtype: String,
}

impl Work {
    fn of(checkpoint: &Checkpoint, spec: &ArchSpec) -> octet_tensor::Result<Self> {
        let mut work = Self { bytes: 0, parameters: 0, dtype: String::new() };
        let tied = spec.head().tied;
        for site in spec.linear_sites() {
            // A table that is only looked up is not read; experts are counted as if all were (a lower bound of the speed's share).
            if site.role == Role::Embedding && !tied {
                continue;
            }
            let matrix = checkpoint.matrix(&site.module)?;
            work.bytes += matrix.as_ref().map_or(0, Matrix::stored_bytes) as u64;
            work.parameters += (site.rows * site.cols) as u64;
            if let (true, Some(Matrix::Float(float))) = (work.dtype.is_empty(), &matrix) {
                work.dtype = float.dtype().name().to_lowercase();
            }
        }
        Ok(work)
    }
}

/// Token ids that differ from one another, as those of a text do.
fn ids(model: &Model, count: usize) -> Vec<u32> {
    let vocab = model.spec().vocab_size();
    (0..count).map(|i| ((i * 7919 + 13) % vocab) as u32).collect()
}

fn prefill_seconds(model: &Model, tokens: usize) -> Result<f64> {
    let (ids, mut sequence, mut out) = (ids(model, tokens), model.new_sequence(), vec![]);
    let started = Instant::now();
    model.forward(&mut [Step { sequence: &mut sequence, tokens: &ids, logits: Logits::Last }], &mut out, None)?;
    Ok(started.elapsed().as_secs_f64())
}

fn decode_seconds(model: &Model, tokens: usize) -> Result<f64> {
    let (ids, mut sequence, mut out) = (ids(model, tokens), model.new_sequence(), vec![]);
    let started = Instant::now();
    for id in &ids {
        model.forward(&mut [Step { sequence: &mut sequence, tokens: std::slice::from_ref(id), logits: Logits::Last }], &mut out, None)?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// The median of `repetitions` after one that warms up.
fn median(repetitions: usize, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    run()?;
    let mut times = (0..repetitions).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn show(all: &[Figures]) {
    let rows: Vec<Vec<String>> = all
        .iter()
        .flat_map(|f| {
            let prefill = f.prefill.iter().map(|p| (format!("prefill {}", p.tokens), p.tok_s, format!("{:.0} GOP/s", p.gop_s), p.share));
            let decode = f.decode.iter().map(|d| ("decode".to_string(), d.tok_s, format!("{:.1} GB/s", d.gb_s), d.share));
            prefill.chain(decode).map(|(phase, tok_s, rate, share)| {
                vec![f.model.clone(), f.scheme.clone(), phase, format!("{tok_s:.1}"), rate, format!("{:.0} %", 100.0 * share)]
            })
        })
        .collect();
    ui::say(&ui::table(&["model", "scheme", "phase", "tok/s", "rate", "of limit"], &rows));
    for f in all {
        let rss = f.peak_rss_mb.map_or(String::new(), |mb| format!(", peak RSS {mb:.0} MB"));
        let l = &f.limits;
        ui::say(&format!(
            "{}: loaded in {:.0} ms{rss}; {} threads, {}; limits: read {:.1} GB/s, int8 {:.0} GOP/s, f32 {:.0} GFLOP/s",
            f.model, f.load_ms, f.threads, f.isa, l.read_gb_s, l.int8_gop_s, l.f32_gflop_s
        ));
    }
}
