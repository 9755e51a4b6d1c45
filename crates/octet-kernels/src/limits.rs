//! What this machine can do at most, measured: the roofs that kernels are judged against.

use crate::{
    Engine,
    simd::{LANES, Op, Simd, unroll},
};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long and how often at least a measurement is repeated; the best counts, since other programs only ever make one slower.
const REPEAT: Duration = Duration::from_millis(200);
const TRIES: usize = 5;
/// Bytes of a task of a streaming read.
const READ_BYTES: usize = 256 << 10;

/// GB/s of reading a buffer of `bytes` bytes once from start to end with all threads; larger than the caches it is what
/// memory gives, and the roof of decoding.
pub fn streaming_read_gb_s(engine: &Engine, bytes: usize) -> f64 {
    let lines = (bytes / 64).max(1);
    // Not zero, so that the pages exist.
    let buffer = vec![[1u8; 64]; lines];
    let per_task = READ_BYTES / 64;
    let sink = AtomicU32::new(0);
    let best = best(|| {
        engine.run(lines.div_ceil(per_task), &|task| {
            let part = &buffer[task * per_task..lines.min((task + 1) * per_task)];
            sink.fetch_xor(engine.vectorize(Read(part)).to_bits(), Ordering::Relaxed);
        });
    });
    black_box(sink.into_inner());
    (lines * 64) as f64 / best.as_secs_f64() / 1e9
}

struct Read<'a>(&'a [[u8; 64]]);

impl Op for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.splat(0.0); 8];
        for lines in self.0.as_chunks::<8>().0 {
            unroll!(i < 8, { acc[i] = s.add(acc[i], s.load_bytes(&lines[i])) });
        }
        let mut all = acc[0];
        unroll!(i < 8, { all = s.add(all, acc[i]) });
        s.sum(all)
    }
}

/// Billions of int8 multiplications and additions (two operations) a second that all threads reach in a loop of nothing
/// but the instruction set's dot product: the roof of a prompt's processing with int8 activations.
pub fn int8_gop_s(engine: &Engine) -> f64 {
    let dots = per_second(engine, || engine.vectorize(Dots(ROUNDS)));
    dots * (2 * 4 * LANES) as f64 / 1e9
}

/// Billions of f32 multiplications and additions (two operations) a second that all threads reach in a loop of nothing
/// but fused multiply-adds.
pub fn f32_gflop_s(engine: &Engine) -> f64 {
    let fmas = per_second(engine, || engine.vectorize(Fmas(ROUNDS)));
    fmas * (2 * LANES) as f64 / 1e9
}

/// Rounds of the loops, and accumulators that hide the latency of an instruction.
const ROUNDS: usize = 20_000;
const CHAINS: usize = 12;

/// Instructions a second over all threads, `f` doing [`ROUNDS`] times [`CHAINS`].
fn per_second(engine: &Engine, f: impl Fn() -> f32 + Sync) -> f64 {
    let tasks = engine.threads() * 5;
    let best = best(|| {
        engine.run(tasks, &|_| {
            black_box(f());
        });
    });
    (tasks * ROUNDS * CHAINS) as f64 / best.as_secs_f64()
}

fn best(f: impl Fn()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut tries = 0;
    while tries < TRIES || start.elapsed() < REPEAT {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed());
        tries += 1;
    }
    best
}

struct Dots(usize);

impl Op for Dots {
    type Output = f32;
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Weights change every round, so that nothing of the dot product is computed once for all of them.
        let weights = black_box([[3u8; 64], [5; 64], [7; 64], [9; 64]]);
        let quads = black_box([[1i8, -2, 3, -4], [5, 6, -7, 8]]);
        let a = [s.quad(&quads[0]), s.quad(&quads[1])];
        let mut acc = [s.splat_i(0); CHAINS];
        for round in 0..self.0 {
            let w = s.codes(&weights[round % 4]);
            unroll!(i < CHAINS, { acc[i] = s.dot::<false>(acc[i], w, a[i % 2]) });
        }
        let mut all = acc[0];
        for acc in &acc[1..] {
            all = s.add_i(all, *acc);
        }
        s.sum(s.to_f(all))
    }
}

struct Fmas(usize);

impl Op for Fmas {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut acc = [a; CHAINS];
        for _ in 0..self.0 {
            unroll!(i < CHAINS, { acc[i] = s.fma(acc[i], a, b) });
        }
        let mut all = acc[0];
        for acc in &acc[1..] {
            all = s.add(all, *acc);
        }
        s.sum(all)
    }
}
