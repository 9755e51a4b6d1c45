//! What this machine can do at most, measured: the roofs that kernels are judged against.

use crate::{
    Engine,
    matmul::Line,
    memory::Lines,
    simd::{LANES, Level, Op, Simd, unroll},
};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long and how often at least a measurement is repeated where nothing else is said; the best counts, since other
/// programs only ever make one slower.
const REPEAT: Duration = Duration::from_millis(200);
const TRIES: usize = 3;
/// Bytes of a task of a streaming read.
const READ_BYTES: usize = 256 << 10;

/// GB/s of reading a buffer of `bytes` bytes once from start to end with all threads; larger than the caches it is what
/// memory gives, and the roof of decoding.
pub fn streaming_read_gb_s(engine: &Engine, bytes: usize) -> f64 {
    ReadBuffer::new(bytes).gb_s(engine, bytes, REPEAT)
}

/// A buffer to read from again and again, so that the roof can be measured between other measurements.
pub struct ReadBuffer(Lines);

impl ReadBuffer {
    /// A buffer of `bytes` bytes (at least one line of a cache), all of them in memory.
    pub fn new(bytes: usize) -> Self {
        let mut lines = Lines::zeroed((bytes / size_of::<Line>()).max(1));
        // Not zero, so that the pages exist.
        lines.fill(Line([1; 64]));
        Self(lines)
    }

    /// GB/s of reading its first `bytes` bytes (or all, if it has fewer) with all threads: the best of several passes,
    /// repeated for at least `least`.
    pub fn gb_s(&self, engine: &Engine, bytes: usize, least: Duration) -> f64 {
        let lines = (bytes / 64).clamp(1, self.0.len());
        let per_task = READ_BYTES / 64;
        let sink = AtomicU32::new(0);
        let best = best(least, || {
            engine.run(lines.div_ceil(per_task), &|task| {
                let part = &self.0[task * per_task..lines.min((task + 1) * per_task)];
                sink.fetch_xor(engine.vectorize(Read(part)).to_bits(), Ordering::Relaxed);
            });
        });
        black_box(sink.into_inner());
        (lines * 64) as f64 / best.as_secs_f64() / 1e9
    }
}

struct Read<'a>(&'a [Line]);

impl Op for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.splat(0.0); 8];
        for lines in self.0.as_chunks::<8>().0 {
            unroll!(i < 8, { acc[i] = s.add(acc[i], s.load_bytes(&lines[i].0)) });
        }
        let mut all = acc[0];
        unroll!(i < 8, { all = s.add(all, acc[i]) });
        s.sum(all)
    }
}

/// Billions of int8 multiplications and additions (two operations) a second that all threads reach in a loop of nothing
/// but the instruction set's dot product: the roof of a prompt's processing with int8 activations.
pub fn int8_gop_s(engine: &Engine) -> f64 {
    int8_gop_s_within(engine, REPEAT)
}

/// As [`int8_gop_s`], repeated for at least `least` only: to be measured between other measurements.
pub fn int8_gop_s_within(engine: &Engine, least: Duration) -> f64 {
    let dots = per_second(engine, least, || engine.vectorize(Dots(ROUNDS)));
    dots * (2 * 4 * LANES) as f64 / 1e9
}

/// As [`int8_gop_s`], of nothing but products of AMX tiles; `None` where the engine has none.
pub fn int8_tile_gop_s(engine: &Engine) -> Option<f64> {
    int8_tile_gop_s_within(engine, REPEAT)
}

/// As [`int8_tile_gop_s`], repeated for at least `least` only.
pub fn int8_tile_gop_s_within(engine: &Engine, least: Duration) -> Option<f64> {
    match engine.level() {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx(amx) => {
            use crate::simd::amx::{RUN, TILE};
            let rounds = ROUNDS * CHAINS / 64;
            let tasks = engine.threads() * 5;
            let best = best(least, || engine.run(tasks, &|_| amx.tiles(RUN).spin(rounds)));
            // Four products a round; two operations a weight.
            Some((tasks * rounds * 4 * 2 * TILE * TILE * RUN) as f64 / best.as_secs_f64() / 1e9)
        }
        _ => {
            let _ = least;
            None
        }
    }
}

/// Billions of f32 multiplications and additions (two operations) a second that all threads reach in a loop of nothing
/// but fused multiply-adds.
pub fn f32_gflop_s(engine: &Engine) -> f64 {
    let fmas = per_second(engine, REPEAT, || engine.vectorize(Fmas(ROUNDS)));
    fmas * (2 * LANES) as f64 / 1e9
}

/// Rounds of the loops, and accumulators that hide the latency of an instruction.
const ROUNDS: usize = 20_000;
const CHAINS: usize = 12;

/// Instructions a second over all threads, `f` doing [`ROUNDS`] times [`CHAINS`].
fn per_second(engine: &Engine, least: Duration, f: impl Fn() -> f32 + Sync) -> f64 {
    let tasks = engine.threads() * 5;
    let best = best(least, || {
        engine.run(tasks, &|_| {
            black_box(f());
        });
    });
    (tasks * ROUNDS * CHAINS) as f64 / best.as_secs_f64()
}

fn best(least: Duration, f: impl Fn()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut tries = 0;
    while tries < TRIES || start.elapsed() < least {
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
