//! New keys and values put into caches, quantized where the cache holds integers.

use super::{
    JOBS,
    cache::{CHUNK, Chunk, KvCache, KvDtype, Layout},
};
use crate::{
    Engine,
    matmul::Line,
    parallel::Shared,
    simd::{LANES, Op, Simd},
};
use half::{f16, slice::HalfFloatSliceExt};

/// Largest magnitude of a 16-bit code.
const LARGEST: f32 = 32767.0;
/// Largest length of a vector of 16-bit codes: by Cauchy and Schwarz the dot product of two such fits 32 bits, the
/// rounding of up to 4096 elements included.
const LONGEST: f32 = 46300.0;

/// New keys and values of one sequence.
pub struct AppendJob<'a> {
    /// Where they go.
    pub cache: &'a mut KvCache,
    /// Keys, `[tokens, kv heads · head_dim]`.
    pub k: &'a [f32],
    /// Values, as the keys.
    pub v: &'a [f32],
}

/// A job and its tasks: one for each chunk that it writes into.
struct Work<'a> {
    k: &'a [f32],
    v: &'a [f32],
    layout: Layout,
    /// Number of the first token, counted from the first of the chunks.
    first: usize,
    tokens: usize,
    chunks: Shared<'a, Chunk>,
    tasks: usize,
}

impl Engine {
    /// Adds every job's keys and values to its cache, all of them in one parallel region.
    ///
    /// What is not finite makes NaN of every result that looks at it.
    ///
    /// # Panics
    /// If a job's slices are not whole tokens of the same number, or the capacity does not hold them.
    pub fn append<'a>(&self, jobs: impl IntoIterator<Item = AppendJob<'a>>) {
        let mut jobs = jobs.into_iter().filter(|job| !job.k.is_empty() || !job.v.is_empty()).peekable();
        while jobs.peek().is_some() {
            let mut work: [Option<Work<'_>>; JOBS] = [const { None }; JOBS];
            for (work, job) in work.iter_mut().zip(jobs.by_ref().take(JOBS)) {
                *work = Some(Work::new(job));
            }
            self.run(work.iter().flatten().map(|w| w.tasks).sum(), &|mut task| {
                for work in work.iter().flatten() {
                    if task < work.tasks {
                        work.run(self, task);
                        return;
                    }
                    task -= work.tasks;
                }
            });
        }
    }
}

impl<'a> Work<'a> {
    fn new(job: AppendJob<'a>) -> Self {
        let AppendJob { cache, k, v } = job;
        let layout = cache.layout();
        let width = layout.kv_heads * layout.head_dim;
        assert!(
            width > 0 && k.len() == v.len() && k.len().is_multiple_of(width),
            "{} keys and {} values of width {width}",
            k.len(),
            v.len()
        );
        let tokens = k.len() / width;
        let (first, chunks) = cache.grow(tokens);
        let chunks = &mut chunks[first / CHUNK..];
        let tasks = chunks.len();
        Self { k, v, layout, first: first % CHUNK, tokens, chunks: Shared::new(chunks), tasks }
    }

    fn run(&self, engine: &Engine, task: usize) {
        // SAFETY: every task has a chunk of its own.
        let chunk = unsafe { self.chunks.part(task..task + 1) };
        let (from, to) = ((task * CHUNK).max(self.first), ((task + 1) * CHUNK).min(self.first + self.tokens));
        let width = self.layout.kv_heads * self.layout.head_dim;
        let part = (from - self.first) * width..(to - self.first) * width;
        let (k, v) = (&self.k[part.clone()], &self.v[part]);
        engine.vectorize(Fill { layout: self.layout, chunk: &mut chunk[0], first: from % CHUNK, k, v });
    }
}

/// A task: tokens of one chunk.
struct Fill<'a> {
    layout: Layout,
    chunk: &'a mut Chunk,
    /// Place of the first token in the chunk.
    first: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Op for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.layout.dtype {
            KvDtype::F32 => self.fill::<S, f32>(s),
            KvDtype::F16 => self.fill::<S, f16>(s),
            KvDtype::Int16 => self.fill::<S, i16>(s),
            KvDtype::Int8 => self.fill::<S, u8>(s),
        }
    }
}

/// What a number is stored as.
trait Stored: Sized {
    /// Bits of an element.
    type Bits: bytemuck::Pod;
    /// Elements that lie together, as a dot product takes them.
    const PACK: usize;
    /// Scale of a key from its largest magnitude and its length.
    fn key_scale(_largest: f32, _length: f32) -> Option<f32> {
        None
    }
    /// Scale of a value from its largest magnitude.
    fn value_scale(_largest: f32) -> Option<f32> {
        None
    }
    /// Sixteen numbers, divided by their scale.
    fn encode<S: Simd>(s: S, v: S::F) -> [Self::Bits; LANES];
}

impl Stored for f32 {
    type Bits = f32;
    const PACK: usize = 1;
    #[inline(always)]
    fn encode<S: Simd>(s: S, v: S::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        s.store(v, &mut out);
        out
    }
}

impl Stored for f16 {
    type Bits = u16;
    const PACK: usize = 1;
    #[inline(always)]
    fn encode<S: Simd>(s: S, v: S::F) -> [u16; LANES] {
        let mut out = [f16::ZERO; LANES];
        out.convert_from_f32_slice(&<f32 as Stored>::encode(s, v));
        out.map(f16::to_bits)
    }
}

impl Stored for i16 {
    type Bits = i16;
    const PACK: usize = 2;
    #[inline(always)]
    fn key_scale(largest: f32, length: f32) -> Option<f32> {
        Some(short_scale(largest, length))
    }
    #[inline(always)]
    fn value_scale(largest: f32) -> Option<f32> {
        Some(largest / LARGEST)
    }
    #[inline(always)]
    fn encode<S: Simd>(s: S, v: S::F) -> [i16; LANES] {
        let mut out = [0; LANES];
        s.round_shorts(v, &mut out);
        out
    }
}

impl Stored for u8 {
    type Bits = u8;
    const PACK: usize = 4;
    #[inline(always)]
    fn key_scale(largest: f32, _: f32) -> Option<f32> {
        Some(largest / 127.0)
    }
    #[inline(always)]
    fn value_scale(largest: f32) -> Option<f32> {
        Some(largest / 127.0)
    }
    #[inline(always)]
    fn encode<S: Simd>(s: S, v: S::F) -> [u8; LANES] {
        let mut out = [0; LANES];
        s.round_codes(v, &mut out);
        out.map(|code| (code as u8) ^ 0x80)
    }
}

/// The scale of a vector of 16-bit codes whose dot products fit 32 bits.
pub(super) fn short_scale(largest: f32, length: f32) -> f32 {
    let (by_largest, by_length) = (largest / LARGEST, length / LONGEST);
    // Not `max`, which would drop a NaN.
    if by_largest < by_length { by_length } else { by_largest }
}

/// Largest magnitude (NaN where a number is not finite) and length of a vector, the same on every instruction set.
#[inline(always)]
pub(super) fn extent<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let bits = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(bits);
    let mut squares = s.splat(0.0);
    for part in x.chunks(LANES) {
        let v = load_part(s, part);
        squares = s.add(s.mul(v, v), squares);
    }
    (if largest.is_finite() { largest } else { f32::NAN }, s.sum(squares).sqrt())
}

/// Up to sixteen numbers, zeros after them.
#[inline(always)]
pub(super) fn load_part<S: Simd>(s: S, x: &[f32]) -> S::F {
    if let Ok(x) = <&[f32; LANES]>::try_from(x) {
        return s.load(x);
    }
    let mut all = [0.0; LANES];
    all[..x.len()].copy_from_slice(x);
    s.load(&all)
}

impl Fill<'_> {
    #[inline(always)]
    fn fill<S: Simd, E: Stored>(self, s: S) {
        let Self { layout, chunk, first, k, v } = self;
        let (dim, width) = (layout.head_dim, layout.head_dim.next_multiple_of(LANES));
        let heads = chunk.lines_mut().chunks_exact_mut(layout.head_lines());
        for (head, lines) in heads.enumerate() {
            let [keys, values, scales] = layout.parts_mut(lines);
            let keys: &mut [E::Bits] = bytemuck::cast_slice_mut(keys);
            let values: &mut [E::Bits] = bytemuck::cast_slice_mut(values);
            let scales: &mut [f32] = bytemuck::cast_slice_mut(scales);
            let row = layout.kv_heads * dim;
            for (token, (k, v)) in (first..).zip(k.chunks_exact(row).zip(v.chunks_exact(row))) {
                let (k, v) = (&k[head * dim..(head + 1) * dim], &v[head * dim..(head + 1) * dim]);
                let block = token / LANES * layout.key_lines() * (size_of::<Line>() / size_of::<E::Bits>()) + token % LANES * E::PACK;
                for (group, k) in k.chunks(layout.key_group()).enumerate() {
                    let (largest, length) = extent(s, k);
                    let scale = E::key_scale(largest, length);
                    if let Some(scale) = scale {
                        scales[group * CHUNK + token] = scale;
                    }
                    let at = block + group * layout.key_group() * LANES;
                    for (part, x) in k.chunks(LANES).enumerate() {
                        let codes = scaled::<S, E>(s, x, scale);
                        let keys = &mut keys[at + part * LANES * LANES..];
                        if x.len() == LANES {
                            // As many as there are, so that no place is checked.
                            let keys = &mut keys[..LANES * (LANES - E::PACK) + E::PACK];
                            for d in (0..LANES).step_by(E::PACK) {
                                keys[d * LANES..d * LANES + E::PACK].copy_from_slice(&codes[d..d + E::PACK]);
                            }
                        } else {
                            for d in (0..x.len()).step_by(E::PACK) {
                                keys[d * LANES..d * LANES + E::PACK].copy_from_slice(&codes[d..d + E::PACK]);
                            }
                        }
                    }
                }
                let scale = E::value_scale(extent(s, v).0);
                if let Some(scale) = scale {
                    scales[layout.key_groups() * CHUNK + token] = scale;
                }
                let values = &mut values[token / E::PACK * width * E::PACK + token % E::PACK..];
                for (part, x) in v.chunks(LANES).enumerate() {
                    let codes = scaled::<S, E>(s, x, scale);
                    let values = &mut values[part * LANES * E::PACK..][..(LANES - 1) * E::PACK + 1];
                    for (d, code) in codes.into_iter().enumerate() {
                        values[d * E::PACK] = code;
                    }
                }
            }
        }
    }
}

/// Up to sixteen numbers as stored: divided by their scale where there is one.
#[inline(always)]
fn scaled<S: Simd, E: Stored>(s: S, x: &[f32], scale: Option<f32>) -> [E::Bits; LANES] {
    let x = load_part(s, x);
    E::encode(
        s,
        match scale {
            // NaN goes this way: the codes do not matter then, the scale speaks.
            Some(scale) if scale != 0.0 => s.div(x, s.splat(scale)),
            Some(_) => s.splat(0.0),
            None => x,
        },
    )
}
