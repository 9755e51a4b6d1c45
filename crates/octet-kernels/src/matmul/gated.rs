//! Two products of one input and what they gate: f(x · gateᵀ) · (x · upᵀ), without writing either product out.

use super::output::Output;
use super::{Cut, MatmulJob, Scratch, Source, product};
use crate::{
    ActivationFn, Engine, PackedLinear, counters::Kernel, elementwise::GateInto, matmul::with_scratch, parallel::Shared, simd::LANES,
};
use std::{cell::Cell, ops::Range};

/// Bytes of a task's part of each product: both, the weights and the inputs stay in the second-level cache.
const PART_BYTES: usize = 192 << 10;

/// A gate and a way up of one MLP.
pub struct Gated<'a> {
    /// The function of the gate's product.
    pub function: ActivationFn,
    /// The gate `[rows, cols]` and its bias `[rows]`.
    pub gate: (&'a PackedLinear, Option<&'a [f32]>),
    /// The way up, of the same shape, and its bias.
    pub up: (&'a PackedLinear, Option<&'a [f32]>),
    /// The output `[tokens, rows]`.
    pub out: &'a mut [f32],
}

thread_local! {
    static PARTS: Cell<Scratch> = const { Cell::new(Scratch(Vec::new())) };
}

impl Engine {
    /// Computes `out = f(x · gateᵀ + bias) · (x · upᵀ + bias)` in one parallel region; both products read the same inputs.
    ///
    /// # Panics
    /// If a slice's length is not what its matrix and `tokens` say, or the matrices' shapes differ.
    pub fn gated(&self, source: Source<'_>, tokens: usize, job: Gated<'_>) {
        let Gated { function, gate, up, out } = job;
        let (rows, cols) = (gate.0.rows(), gate.0.cols());
        assert_eq!([rows, cols], [up.0.rows(), up.0.cols()], "gate and way up have one shape");
        assert_eq!(out.len(), tokens * rows, "out is [tokens {tokens}, rows {rows}]");
        assert!([gate.1, up.1].iter().flatten().all(|b| b.len() == rows), "a bias has {rows} elements");
        source.check(tokens, cols);
        if tokens == 0 || rows == 0 {
            return;
        }
        if gate.0.sets_aside() || up.0.sets_aside() || gate.0.inputs() != up.0.inputs() {
            // What was set aside is added before the gate; inputs that are rounded in two ways are two inputs.
            let mut product = vec![0.0; out.len()];
            let job = |(weights, bias), out| MatmulJob { weights, bias, out, accumulate: false };
            self.products(source, tokens, &mut [job(gate, &mut *out), job(up, &mut product)]);
            self.gate(function, out, &product);
            return;
        }
        self.count(Kernel::Elementwise);
        self.with_inputs(source, tokens, [gate.0, up.0].into_iter(), |inputs, source| {
            let mut side = |(weights, bias)| Side { weights, bias, cut: self.cut(weights, inputs, source, tokens) };
            let (gate, up) = (side(gate), side(up));
            let work = Work { engine: self, inputs, x: source.stored(), tokens, rows, function, out: Shared::new(out), gate, up };
            work.run_all();
        });
    }
}

/// One of the two products.
struct Side<'a> {
    weights: &'a PackedLinear,
    bias: Option<&'a [f32]>,
    cut: Cut,
}

struct Work<'a> {
    engine: &'a Engine,
    inputs: &'a super::Inputs,
    x: &'a [f32],
    tokens: usize,
    rows: usize,
    function: ActivationFn,
    out: Shared<'a, f32>,
    gate: Side<'a>,
    up: Side<'a>,
}

impl Work<'_> {
    fn run_all(&self) {
        let (gate, up) = (&self.gate.cut, &self.up.cut);
        // A task does the work of two.
        let blocks_a_task = if gate.direct { gate.blocks_a_task.div_ceil(2) } else { gate.blocks_a_task };
        // Tasks begin where tiles of both begin.
        let step = if gate.direct { self.tokens } else { gate.widest * up.widest / gcd(gate.widest, up.widest) };
        let most = (PART_BYTES / (4 * LANES * blocks_a_task)).min(gate.tokens_a_task);
        let tokens_a_task = (most / step * step).max(step);
        let across = gate.blocks.div_ceil(blocks_a_task);
        let down = self.tokens.div_ceil(tokens_a_task);
        self.engine.run(across * down, &|task| {
            let (block, token) = (task / down * blocks_a_task, task % down * tokens_a_task);
            let blocks = block..gate.blocks.min(block + blocks_a_task);
            self.task(blocks, token..self.tokens.min(token + tokens_a_task));
        });
    }

    fn task(&self, blocks: Range<usize>, tokens: Range<usize>) {
        let width = blocks.len() * LANES;
        let mut scratch = PARTS.take();
        let [gate, up] = scratch.floats([tokens.len() * width; 2]);
        self.side(&self.gate, blocks.clone(), tokens.clone(), gate);
        self.side(&self.up, blocks.clone(), tokens.clone(), up);
        let (first, last) = (blocks.start * LANES, self.rows.min(blocks.end * LANES));
        let rows = gate.chunks_exact_mut(width).zip(up.chunks_exact(width));
        for (token, (gate, up)) in tokens.zip(rows) {
            // SAFETY: a task has its rows of its tokens to itself.
            let out = unsafe { self.out.part(token * self.rows + first..token * self.rows + last) };
            let (gate, up) = (gate.as_chunks_mut().0, up.as_chunks().0);
            self.engine.vectorize(GateInto { function: self.function, gate, up, out, next: 4 * self.rows });
        }
        PARTS.set(scratch);
    }

    /// One product's part, `[tokens, blocks · 16]`.
    fn side(&self, side: &Side<'_>, blocks: Range<usize>, tokens: Range<usize>, part: &mut [f32]) {
        let first = blocks.start * LANES;
        let output = Output {
            out: Shared::new(part),
            rows: self.rows - first,
            stride: blocks.len() * LANES,
            bias: side.bias.map(|bias| &bias[first..]),
            accumulate: false,
            origin: (tokens.start, blocks.start),
        };
        let prepared = side.cut.prepared.map(|at| self.inputs.get(at));
        let level = self.engine.level();
        with_scratch(|scratch| product(level, side.weights, prepared, self.x, [blocks, tokens], &output, side.cut.direct, scratch));
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
