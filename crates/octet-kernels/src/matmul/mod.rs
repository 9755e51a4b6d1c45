//! Matrix products: y = x Wᵀ for several matrices that share their input, in one parallel region.

mod aside;
mod codes;
mod dense;
mod digits;
mod float;
mod gated;
mod inputs;
mod int;
mod ints;
mod layout;
mod output;
mod pack;
mod packed;
mod source;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiled;

pub(crate) use codes::point;
pub use gated::Gated;
pub(crate) use inputs::{Inputs, tiles};
pub(crate) use layout::Line;
pub use packed::{LAYOUT, PackedLinear};
pub use source::Source;

use crate::{
    Engine,
    parallel::Shared,
    simd::{LANES, Level, Op, Simd},
};
use dense::DenseProduct;
use inputs::{AS_ROWS, Form, Key, Prepared};
use int::IntProduct;
use layout::Segments;
use octet_tensor::InputRounding;
use output::Output;
use packed::Body;
use std::{cell::Cell, ops::Range};

/// Most tokens for which weights are read straight from memory; above it, a panel is unpacked once for all of them.
const DIRECT_TOKENS: usize = 8;
/// Bytes of weights of a task of the direct path: enough to be worth handing out.
const TASK_BYTES: Range<usize> = 48 << 10..512 << 10;
/// Tasks a thread of the direct path, where that leaves enough for each: what the last one makes the others wait is short.
const DIRECT_TASKS: usize = 12;
/// Bytes of panels of a task of the panel path: they are read again for every tile of tokens and should stay in the
/// second-level cache.
const PANEL_BYTES: usize = 1 << 20;
/// Blocks of a task of the panel path.
const MOST_BLOCKS: usize = 16;
/// Tokens below which a task is not cut further: weights are unpacked once a task.
const LEAST_TOKENS: usize = 192;
/// Matrices of one parallel region; more run one region after another.
const JOBS: usize = 8;

/// One matrix of a call of [`Engine::matmul`].
pub struct MatmulJob<'a> {
    /// The matrix `[rows, cols]`.
    pub weights: &'a PackedLinear,
    /// Added to every token's output, `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// The output `[tokens, rows]`.
    pub out: &'a mut [f32],
    /// Whether the product is added to `out` instead of replacing it.
    pub accumulate: bool,
}

/// A task's own memory for panels; it stays with its thread.
#[derive(Default)]
pub(crate) struct Scratch(pub(crate) Vec<Line>);

thread_local! {
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch(Vec::new())) };
}

/// Calls `f` with this thread's scratch memory.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|cell| {
        let mut scratch = cell.take();
        let result = f(&mut scratch);
        cell.set(scratch);
        result
    })
}

impl Scratch {
    /// Slices of so many floats, each on a cache line of its own; what is in them is left from before.
    pub(crate) fn floats<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        let lines = sizes.map(|n| n.div_ceil(LANES));
        let need = lines.iter().sum();
        if self.0.len() < need {
            self.0.resize(need, Line::ZERO);
        }
        let mut rest = &mut self.0[..];
        let mut i = 0;
        [(); N].map(|()| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(lines[i]);
            rest = tail;
            i += 1;
            &mut bytemuck::cast_slice_mut(part)[..sizes[i - 1]]
        })
    }
}

/// How a product is cut into tasks, and which prepared inputs it reads.
#[derive(Clone, Copy)]
struct Cut {
    prepared: Option<usize>,
    direct: bool,
    /// Tokens of the widest tile.
    widest: usize,
    blocks: usize,
    blocks_a_task: usize,
    tokens_a_task: usize,
}

/// A matrix, how its product is cut, and its output.
struct Work<'a> {
    weights: &'a PackedLinear,
    cut: Cut,
    output: Output<'a>,
    tasks: usize,
}

impl Engine {
    /// Computes `job.out = x · job.weightsᵀ + job.bias` for every job; all of them read the same `x` `[tokens, cols]`.
    ///
    /// Activations are quantized once for all matrices that quantize them alike. A NaN or infinity in a token's inputs
    /// makes its outputs NaN or infinite. Results do not depend on the number of threads.
    ///
    /// # Panics
    /// If a slice's length is not what its matrix and `tokens` say.
    pub fn matmul(&self, x: &[f32], tokens: usize, jobs: &mut [MatmulJob<'_>]) {
        self.products(Source::rows(x), tokens, jobs);
    }

    /// As [`Engine::matmul`], of inputs that may have to be normed or turned first.
    ///
    /// # Panics
    /// As [`Engine::matmul`].
    pub fn products(&self, source: Source<'_>, tokens: usize, jobs: &mut [MatmulJob<'_>]) {
        // What reads its inputs rounded otherwise than its neighbour goes by itself.
        for alike in jobs.chunk_by_mut(|a, b| a.weights.inputs() == b.weights.inputs()) {
            alike.chunks_mut(JOBS).for_each(|jobs| self.products_together(source, tokens, jobs));
        }
    }

    fn products_together(&self, source: Source<'_>, tokens: usize, jobs: &mut [MatmulJob<'_>]) {
        for job in jobs.iter() {
            let rows = job.weights.rows();
            source.check(tokens, job.weights.cols());
            assert_eq!(job.out.len(), tokens * rows, "out is [tokens {tokens}, rows {rows}]");
            assert!(job.bias.is_none_or(|b| b.len() == rows), "the bias has {rows} elements");
        }
        let matrices: [Option<&PackedLinear>; JOBS] = std::array::from_fn(|i| jobs.get(i).map(|job| job.weights));
        self.with_inputs(source, tokens, matrices.into_iter().flatten(), |inputs, source| {
            let mut work: [Option<Work<'_>>; JOBS] = [const { None }; JOBS];
            for (work, job) in work.iter_mut().zip(jobs) {
                let rows = job.weights.rows();
                if tokens > 0 && rows > 0 {
                    let cut = self.cut(job.weights, inputs, source, tokens);
                    let (bias, accumulate) = (job.bias, job.accumulate);
                    let output = Output { out: Shared::new(job.out), rows, stride: rows, bias, accumulate, origin: (0, 0) };
                    let tasks = cut.blocks.div_ceil(cut.blocks_a_task) * tokens.div_ceil(cut.tokens_a_task);
                    *work = Some(Work { weights: job.weights, cut, output, tasks });
                }
            }
            let tasks = work.iter().flatten().map(|w| w.tasks).sum();
            self.run(tasks, &|mut task| {
                for work in work.iter().flatten() {
                    if task < work.tasks {
                        with_scratch(|scratch| work.run(self.level(), inputs, source.stored(), tokens, task, scratch));
                        return;
                    }
                    task -= work.tasks;
                }
            });
            work.iter().flatten().for_each(|work| self.add_aside(work, inputs, tokens));
        });
    }

    /// Counts products and calls `f` with buffers for their inputs, and with the rows normed and turned where a matrix reads
    /// floats, and rounded where the matrices, which agree in it, want that.
    fn with_inputs<'w>(
        &self,
        source: Source<'_>,
        tokens: usize,
        matrices: impl Iterator<Item = &'w PackedLinear>,
        f: impl FnOnce(&mut Inputs, Source<'_>),
    ) {
        let (mut floats, mut rounded) = (false, None);
        for weights in matrices {
            self.count_product(weights.kernel(), self.tiled(weights, tokens).is_some());
            floats |= matches!(weights.body(), Body::Dense(_)) && tokens <= DIRECT_TOKENS;
            rounded = rounded.or(weights.inputs());
        }
        let mut inputs = self.take_inputs();
        inputs.clear();
        if rounded.is_none() && (!floats || source.is_plain()) {
            source.count(self);
            f(&mut inputs, source);
        } else {
            let mut rows = std::mem::take(&mut inputs.rows);
            rows.resize(source.stored().len(), 0.0);
            source.write(self, &mut rows);
            if let Some(to) = rounded.filter(|_| tokens > 0) {
                self.round(&mut rows, tokens, to);
            }
            f(&mut inputs, Source::rows(&rows));
            inputs.rows = rows;
        }
        self.return_inputs(inputs);
    }

    /// Rounds the inputs of every token, by the specification itself: beside the product it costs little.
    fn round(&self, rows: &mut [f32], tokens: usize, to: InputRounding) {
        let cols = rows.len() / tokens;
        let rows = Shared::new(rows);
        self.run(tokens, &|token| {
            // SAFETY: every token is visited once.
            to.round(unsafe { rows.part(token * cols..(token + 1) * cols) });
        });
    }

    /// Blocks and tokens of a register tile where a product runs on tiles of AMX: with int8 activations of many tokens.
    fn tiled(&self, weights: &PackedLinear, tokens: usize) -> Option<(usize, usize)> {
        match self.level() {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx(_) if tokens > DIRECT_TOKENS && weights.fits_tiles() => Some((tiled::BLOCKS, tiled::TOKENS)),
            _ => None,
        }
    }

    fn cut(&self, weights: &PackedLinear, inputs: &mut Inputs, source: Source<'_>, tokens: usize) -> Cut {
        let cols = weights.cols();
        let most = if matches!(weights.body(), Body::Exact(_)) { DIRECT_TOKENS / 4 } else { DIRECT_TOKENS };
        let direct = tokens <= most;
        let (int_tile, float_tile) = self.vectorize(Tiles);
        let tiled = self.tiled(weights, tokens);
        let without = weights.columns().map(|columns| columns.id);
        let key = match weights.body() {
            Body::Int { ints, group, limit } => {
                let widest = if tiled.is_some() {
                    AS_ROWS
                } else if direct {
                    int_tile.1.min(DIRECT_TOKENS)
                } else {
                    int_tile.1
                };
                let form = limit.map_or(Form::Codes(*group), |limit| Form::Below(limit.to_bits()));
                Some(Key { form, without, segments: ints.segments, widest })
            }
            Body::Exact(ints) => {
                let widest = (int_tile.1 / digits::DIGITS).max(1);
                let widest = if direct { widest.min(most) } else { widest };
                Some(Key { form: Form::Digits, without, segments: ints.segments, widest })
            }
            Body::Dense(_) if direct => None,
            Body::Dense(_) => Some(Key { form: Form::Floats, without: None, segments: Segments::new(cols, cols), widest: float_tile.1 }),
        };
        let columns: &[u32] = weights.columns().map_or(&[], |columns| columns.beside.columns());
        let prepared = key.map(|key| inputs.prepare(self, key, source, tokens, cols, columns));
        let blocks = weights.rows().div_ceil(LANES);
        let (tile, bytes) = match key {
            Some(Key { form: Form::Floats, .. }) | None => (float_tile, 4),
            Some(Key { widest, .. }) => (tiled.unwrap_or((int_tile.0, widest)), 1),
        };
        let (blocks_a_task, tokens_a_task) = if direct {
            let block_bytes = (weights.resident_bytes() / blocks).max(1);
            let range = TASK_BYTES.start.div_ceil(block_bytes)..TASK_BYTES.end.div_ceil(block_bytes);
            ((blocks / (DIRECT_TASKS * self.threads())).clamp(range.start, range.end), tokens)
        } else {
            self.blocked_tasks(blocks, LANES * bytes * cols, tokens, tile)
        };
        Cut { prepared, direct, widest: tile.1, blocks, blocks_a_task, tokens_a_task }
    }

    /// Blocks and tokens of a task whose blocks stay in the second-level cache while its tokens pass.
    fn blocked_tasks(&self, blocks: usize, panel: usize, tokens: usize, tile: (usize, usize)) -> (usize, usize) {
        let most = (PANEL_BYTES / panel.max(1)).clamp(1, MOST_BLOCKS);
        let group = (blocks / (4 * self.threads())).clamp(MOST_BLOCKS / 2, MOST_BLOCKS).min(most).next_multiple_of(tile.0);
        let chunks = (8 * self.threads()).div_ceil(blocks.div_ceil(group)).min(tokens / LEAST_TOKENS).max(1);
        (group, tokens.div_ceil(chunks).next_multiple_of(tile.1))
    }
}

impl Work<'_> {
    /// Runs task `task`: some blocks of rows, some tokens; tasks that follow each other share their blocks.
    fn run(&self, level: Level, inputs: &Inputs, x: &[f32], tokens: usize, task: usize, scratch: &mut Scratch) {
        let Cut { prepared, direct, blocks, blocks_a_task, tokens_a_task, .. } = self.cut;
        let down = tokens.div_ceil(tokens_a_task);
        let (first, chunk) = (task / down * blocks_a_task, task % down * tokens_a_task);
        let blocks = first..blocks.min(first + blocks_a_task);
        let tokens = chunk..tokens.min(chunk + tokens_a_task);
        product(level, self.weights, prepared.map(|at| inputs.get(at)), x, [blocks, tokens], &self.output, direct, scratch);
    }
}

/// Some blocks of rows of a product for some tokens.
#[allow(clippy::too_many_arguments)]
fn product(
    level: Level,
    weights: &PackedLinear,
    inputs: Option<&Prepared>,
    x: &[f32],
    [blocks, tokens]: [Range<usize>; 2],
    output: &Output<'_>,
    direct: bool,
    scratch: &mut Scratch,
) {
    match (weights.body(), inputs) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        (Body::Int { ints, .. }, Some(inputs))
            if let Level::Amx(amx) = level
                && inputs.widest() == AS_ROWS
                && !direct =>
        {
            amx.vectors().vectorize(tiled::TiledProduct { amx, ints, inputs, blocks, tokens, output, scratch });
        }
        (Body::Int { ints, .. } | Body::Exact(ints), Some(inputs)) => {
            level.run(IntProduct { ints, inputs, blocks, tokens, output, direct, scratch });
        }
        (Body::Dense(dense), inputs) => level.run(DenseProduct { dense, x, inputs, blocks, tokens, output, scratch }),
        // Quantized matrices always have prepared inputs (Engine::cut).
        (_, None) => {}
    }
}

/// Asks for the register tiles of an instruction set.
struct Tiles;

impl Op for Tiles {
    type Output = ((usize, usize), (usize, usize));
    const DOTS: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        (S::INT_TILE, S::FLOAT_TILE)
    }
}
