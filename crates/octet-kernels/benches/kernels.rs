//! Measures the kernels against this machine's limits, taken in the same process: `cargo bench -p octet-kernels`.
//!
//! Arguments: an instruction set, a number of threads, a part of the names of what to measure, and the MiB of weights that
//! decoding streams (`-- avx2 1 decode 1` stays in the caches); without them, the best, two, everything and 256.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Numbers, float, quantized, scheme, stored};
use octet_kernels::{AppendJob, AttentionJob, Engine, Isa, KvCache, KvDtype, MatmulJob, PackedLinear, limits};
use octet_tensor::{Dtype, Matrix};
use std::{
    hint::black_box,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

const SHAPES: [(usize, usize); 2] = [(3072, 1024), (1024, 3072)];
/// Bytes of the weights that a decode pass streams: they come from memory, as a model's do.
const STREAM: usize = 256 << 20;

/// The shortest of many runs: a shared machine only ever makes one longer.
fn shortest(total: Duration, mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    while start.elapsed() < total {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn matrix(text: &str, rows: usize, cols: usize) -> Matrix {
    let mut numbers = Numbers(1);
    match text {
        "bf16" => float(rows, cols, Dtype::Bf16, &vec![0.5; rows * cols], 8),
        "f16" => float(rows, cols, Dtype::F16, &vec![0.5; rows * cols], 8),
        "f32" => float(rows, cols, Dtype::F32, &vec![0.5; rows * cols], 8),
        _ => stored(&quantized(rows, cols, scheme(text), Dtype::F16, &mut numbers), scheme(text)),
    }
}

fn decode(engine: &Engine, roof: f64, text: &str, tokens: usize, (rows, cols): (usize, usize), stream: usize) {
    let matrix = matrix(text, rows, cols);
    let first = PackedLinear::pack(engine, &matrix, None).unwrap();
    let count = (stream / first.resident_bytes()).max(1);
    // Float matrices share one copy unless every matrix is made anew.
    let all: Vec<PackedLinear> = (0..count)
        .map(|_| {
            let own = if matches!(matrix, Matrix::Float(_)) { self::matrix(text, rows, cols) } else { matrix.clone() };
            PackedLinear::pack(engine, &own, None).unwrap()
        })
        .collect();
    let x = Numbers(2).normals(tokens * cols);
    let mut out = vec![0.0; tokens * rows];
    let seconds = shortest(Duration::from_millis(700), || {
        for weights in &all {
            engine.matmul(&x, tokens, &mut [MatmulJob { weights, bias: None, out: &mut out, accumulate: false }]);
        }
        black_box(&out);
    });
    let bytes = (all.iter().map(PackedLinear::resident_bytes).sum::<usize>()) as f64;
    let rate = bytes / seconds / 1e9;
    println!(
        "decode  {text:<14} {tokens:>2} tok {rows}x{cols}: {:8.1} us  {rate:6.1} GB/s  {:5.1} % of a streaming read",
        seconds / count as f64 * 1e6,
        rate / roof * 100.0
    );
}

fn prefill(engine: &Engine, roof: &dyn Fn(&Engine) -> f64, text: &str, tokens: usize, (rows, cols): (usize, usize)) {
    let weights = PackedLinear::pack(engine, &matrix(text, rows, cols), None).unwrap();
    let x = Numbers(2).normals(tokens * cols);
    let mut out = vec![0.0; tokens * rows];
    let (mut seconds, mut shares, mut of_tiles) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(700) {
        // The clock of a shared machine wanders: the limit is taken anew beside every run.
        let limit = roof(engine);
        let tiles = limits::int8_tile_gop_s_within(engine, Duration::ZERO);
        let start = Instant::now();
        engine.matmul(&x, tokens, &mut [MatmulJob { weights: &weights, bias: None, out: &mut out, accumulate: false }]);
        black_box(&out);
        seconds.push(start.elapsed().as_secs_f64());
        let rate = 2.0 * (rows * cols * tokens) as f64 / start.elapsed().as_secs_f64() / 1e9;
        shares.push(rate / limit * 100.0);
        of_tiles.extend(tiles.map(|tiles| rate / tiles * 100.0));
    }
    let of_tiles = if of_tiles.is_empty() { String::new() } else { format!(", {:.1} % of that of tiles", median(&mut of_tiles)) };
    let (seconds, share) = (median(&mut seconds), median(&mut shares));
    println!(
        "prefill {text:<14} {tokens:>3} tok {rows}x{cols}: {:8.2} ms  {:7.1} GOP/s  {share:5.1} % of the limit{of_tiles}",
        seconds * 1e3,
        2.0 * (rows * cols * tokens) as f64 / seconds / 1e9,
    );
}

/// Attention of the 0.6B shape: 16 query heads over 8 key-value heads of 128.
struct Shape06;

impl Shape06 {
    const HEADS: usize = 16;
    const KV_HEADS: usize = 8;
    const DIM: usize = 128;
    const WIDTH: usize = Self::KV_HEADS * Self::DIM;

    fn cache(engine: &Engine, dtype: KvDtype, tokens: usize, numbers: &[f32]) -> KvCache {
        let mut cache = KvCache::new(Self::KV_HEADS, Self::DIM, dtype, tokens + 64);
        while cache.len() < tokens {
            let part = &numbers[..Self::WIDTH * (tokens - cache.len()).min(numbers.len() / Self::WIDTH)];
            engine.append([AppendJob { cache: &mut cache, k: part, v: part }]);
        }
        cache
    }

    fn job<'a>(q: &'a [f32], cache: &'a KvCache, out: &'a mut [f32]) -> AttentionJob<'a> {
        AttentionJob { q, cache, heads: Self::HEADS, scale: 0.09, window: None, soft_cap: None, out }
    }
}

fn attention_prefill(engine: &Engine, roofs: [f64; 2], dtype: KvDtype, tokens: usize, before: usize) {
    let mut numbers = Numbers(3);
    let block = numbers.normals(512 * Shape06::WIDTH);
    let mut cache = Shape06::cache(engine, dtype, before + tokens, &block);
    let q = numbers.normals(tokens * Shape06::HEADS * Shape06::DIM);
    let mut out = vec![0.0; q.len()];
    let seconds = shortest(Duration::from_millis(500), || engine.attention([Shape06::job(&q, &cache, &mut out)]));
    let new = &block[..tokens * Shape06::WIDTH];
    let append = shortest(Duration::from_millis(200), || {
        cache.truncate(before);
        engine.append([AppendJob { cache: &mut cache, k: new, v: new }]);
    });
    let pairs: usize = (0..tokens).map(|i| before + i + 1).sum();
    let rate = (4 * pairs * Shape06::HEADS * Shape06::DIM) as f64 / seconds / 1e9;
    println!(
        "attention {dtype:<5} {tokens} tok after {before:>4}: {:8.3} ms {rate:6.1} GOP/s ({:4.1} % of the f32 limit, {:4.1} % of the int8 limit); append {:.3} ms",
        seconds * 1e3,
        rate / roofs[0] * 100.0,
        rate / roofs[1] * 100.0,
        append * 1e3
    );
}

/// A token's attention in as many layers as hold [`STREAM`] bytes of keys and values, each for `batch` sequences.
fn attention_decode(engine: &Engine, roof: f64, dtype: KvDtype, before: usize, batch: usize) {
    let mut numbers = Numbers(3);
    let block = numbers.normals(256 * Shape06::WIDTH);
    let layers = (STREAM / KvCache::bytes_for(before, Shape06::KV_HEADS, Shape06::DIM, dtype)).div_ceil(batch);
    let mut caches: Vec<KvCache> = (0..layers * batch).map(|_| Shape06::cache(engine, dtype, before, &block)).collect();
    let q = numbers.normals(Shape06::HEADS * Shape06::DIM);
    let mut outs = vec![vec![0.0; q.len()]; batch];
    let new = &block[..Shape06::WIDTH];
    let seconds = shortest(Duration::from_millis(500), || {
        for layer in caches.chunks_mut(batch) {
            layer.iter_mut().for_each(|cache| cache.truncate(before - 1));
            engine.append(layer.iter_mut().map(|cache| AppendJob { cache, k: new, v: new }));
            engine.attention(layer.iter().zip(&mut outs).map(|(cache, out)| Shape06::job(&q, cache, out)));
        }
    });
    let rate = caches.iter().map(KvCache::bytes).sum::<usize>() as f64 / seconds / 1e9;
    println!(
        "attention {dtype:<5} {batch} x 1 tok after {before}: {:8.1} us a layer {rate:6.1} GB/s of keys and values, {:5.1} % of a streaming read",
        seconds / layers as f64 * 1e6,
        rate / roof * 100.0
    );
}

fn packing(engine: &Engine, text: &str) {
    let matrix = matrix(text, 3072, 1024);
    let seconds = shortest(Duration::from_millis(300), || {
        black_box(PackedLinear::pack(engine, &matrix, None).unwrap());
    });
    println!(
        "pack    {text:<14} 3072x1024: {:8.2} ms  {:5.2} GB/s of stored bytes",
        seconds * 1e3,
        matrix.stored_bytes() as f64 / seconds / 1e9
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let isa: Isa = args.first().map_or(Isa::best(), |a| a.parse().unwrap());
    let threads = args.get(1).map_or(2, |a| a.parse().unwrap());
    let engine = Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap();
    let read = limits::streaming_read_gb_s(&engine, STREAM);
    let (int8, f32) = (limits::int8_gop_s(&engine), limits::f32_gflop_s(&engine));
    println!("{isa}, {threads} threads: streaming read of 16 MiB {read:.1} GB/s, int8 {int8:.0} GOP/s, f32 {f32:.0} GFLOP/s");
    let stream = args.get(3).map_or(STREAM, |a| a.parse::<usize>().unwrap() << 20);
    let only = |what: &str| args.get(2).is_none_or(|part| what.contains(part.as_str()));
    for text in ["w8a8", "w6a8-g128", "w5a8-g128", "w4a8", "w8a16", "w5a16-g128", "w4a16", "bf16"]
        .into_iter()
        .filter(|text| only(&format!("decode {text}")))
    {
        for shape in SHAPES {
            decode(&engine, read, text, 1, shape, stream);
        }
    }
    for text in ["w8a8", "w5a8-g128", "w4a8", "w4a16", "bf16"].into_iter().filter(|text| only(&format!("decode {text}"))) {
        decode(&engine, read, text, 8, SHAPES[0], stream);
    }
    for text in ["w8a8", "w4a8", "w5a8-g128", "w4a8-g32", "w4a8-g128-asym", "w8a16", "w4a16", "bf16"] {
        if !only(&format!("prefill {text}")) {
            continue;
        }
        let roof = |engine: &Engine| if text.contains("a8") { limits::int8_gop_s_within(engine, Duration::ZERO) } else { f32 };
        for (shape, tokens) in [(SHAPES[0], 120), (SHAPES[0], 512), (SHAPES[1], 512), ((1024, 1024), 512)] {
            prefill(&engine, &roof, text, tokens, shape);
        }
    }
    for dtype in KvDtype::ALL.into_iter().filter(|dtype| only(&format!("attention {dtype}"))) {
        for before in [0, 1536] {
            attention_prefill(&engine, [f32, int8], dtype, 512, before);
        }
        for (before, batch) in [(2048, 1), (2048, 8)] {
            attention_decode(&engine, read, dtype, before, batch);
        }
    }
    for text in ["w8a8", "w4a8", "w5a8-g128"].into_iter().filter(|_| only("pack")) {
        packing(&engine, text);
    }
    println!(
        "again: streaming read {:.1} GB/s, int8 {:.0} GOP/s, f32 {:.0} GFLOP/s",
        limits::streaming_read_gb_s(&engine, STREAM),
        limits::int8_gop_s(&engine),
        limits::f32_gflop_s(&engine)
    );
}
