//! What this machine can do at most, measured: the roofs that kernels are judged against.

use crate::{
    Engine,
    simd::{LANES, Op, Simd},
};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Measurements of which the best counts: other programs only ever make one slower.
const TRIES: usize = 5;
/// Bytes of a task of a streaming read.
const READ_BYTES: usize = 256 << 10;

/// GB/s of reading a buffer of `bytes` bytes once from start to end with all threads; larger than the caches it is what
/// memory gives, and the roof of decoding.
pub fn streaming_read_gb_s(engine: &Engine, bytes: usize) -> f64 {
    let lines = (bytes / 64).max(1);
    // Not zero, so that the pages exist.
    let buffer = vec![[1u64; 8]; lines];
    let per_task = READ_BYTES / 64;
    let sink = AtomicU64::new(0);
    let best = best(|| {
        engine.run(lines.div_ceil(per_task), &|task| {
            let part = &buffer[task * per_task..lines.min((task + 1) * per_task)];
            sink.fetch_add(engine.vectorize(Read(part)), Ordering::Relaxed);
        });
    });
    black_box(sink.into_inner());
    (lines * 64) as f64 / best.as_secs_f64() / 1e9
}

struct Read<'a>(&'a [[u64; 8]]);

impl Op for Read<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u64 {
        let mut sums = [[0u64; 8]; 4];
        for quad in self.0.as_chunks::<4>().0 {
            for (sums, line) in sums.iter_mut().zip(quad) {
                for (sum, v) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*v);
                }
            }
        }
        sums.as_flattened().iter().fold(0, |a, b| a.wrapping_add(*b))
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
    let tasks = engine.threads() * 20;
    let best = best(|| {
        engine.run(tasks, &|_| {
            black_box(f());
        });
    });
    (tasks * ROUNDS * CHAINS) as f64 / best.as_secs_f64()
}

fn best(f: impl Fn()) -> Duration {
    let time = || {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..TRIES).map(|_| time()).min().unwrap_or_default()
}

struct Dots(usize);

impl Op for Dots {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Weights change every round, so that nothing of the dot product is computed once for all of them.
        let weights = black_box([[3u8; 64], [5; 64], [7; 64], [9; 64]]);
        let quads = black_box([[1i8, -2, 3, -4], [5, 6, -7, 8]]);
        let a = [s.quad(&quads[0]), s.quad(&quads[1])];
        let mut acc = [s.splat_i(0); CHAINS];
        for round in 0..self.0 {
            let w = s.codes(&weights[round % 4]);
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = s.dot::<false>(*acc, w, a[i % 2]);
            }
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
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        let mut all = acc[0];
        for acc in &acc[1..] {
            all = s.add(all, *acc);
        }
        s.sum(all)
    }
}
