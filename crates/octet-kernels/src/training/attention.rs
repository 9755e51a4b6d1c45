//! Causal attention over whole sequences, and its gradients.
//!
//! Nothing of the scores is kept: the gradient computes a block of queries' probabilities again.

use super::{
    MatrixView, exponentials, largest, map, map_two,
    product::{Out, Place, product_here},
    sum_two,
};
use crate::{
    Engine,
    parallel::Shared,
    simd::{Op, Simd, math::tanh},
};
use std::{cell::RefCell, ops::Range};

/// Queries whose scores are in memory at once.
const QUERIES: usize = 64;

/// Heads and mask of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head j reads head j / (heads / kv_heads).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// Sliding window W: query i sees keys i−W+1..=i.
    pub window: Option<usize>,
    /// Soft cap c of the scores: c·tanh(s/c).
    pub soft_cap: Option<f32>,
}

/// Where the gradients of an attention go; they replace what was there.
pub struct AttentionGradient<'a> {
    /// Of the queries.
    pub q: &'a mut [f32],
    /// Of the keys.
    pub k: &'a mut [f32],
    /// Of the values.
    pub v: &'a mut [f32],
}

/// Queries, keys and values of sequences one after the other, `[tokens, heads · head_dim]`.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    shape: AttentionShape,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

#[derive(Default)]
struct Buffers {
    /// Probabilities `[queries, keys]`.
    probabilities: Vec<f32>,
    /// Scores behind their soft cap, where there is one.
    capped: Vec<f32>,
    /// Gradients of probabilities, then of scores.
    gradients: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Engine {
    /// softmax(q·kᵀ · scale)·v of sequences of these `lengths` from their first token on, into `out`.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn attend_whole(&self, shape: AttentionShape, lengths: &[usize], [q, k, v]: [&[f32]; 3], out: &mut [f32]) {
        let inputs = Inputs { shape, q, k, v };
        inputs.check(lengths, out.len());
        let out = Shared::new(out);
        self.each_head(shape, lengths, &|tokens, head, buffers| self.vectorize(Forward { inputs, tokens, head, out: &out, buffers }));
    }

    /// The gradients of [`Engine::attend_whole`], given those of its result.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn attend_gradient(
        &self,
        shape: AttentionShape,
        lengths: &[usize],
        [q, k, v]: [&[f32]; 3],
        dout: &[f32],
        to: AttentionGradient<'_>,
    ) {
        let inputs = Inputs { shape, q, k, v };
        inputs.check(lengths, dout.len());
        assert!(to.q.len() == q.len() && to.k.len() == k.len() && to.v.len() == v.len(), "gradients are as many as inputs");
        let (dq, dk, dv) = (Shared::new(to.q), Shared::new(to.k), Shared::new(to.v));
        let to = [&dq, &dk, &dv];
        self.each_head(shape, lengths, &|tokens, head, buffers| self.vectorize(Backward { inputs, tokens, head, dout, to, buffers }));
    }

    /// Calls `f` with the tokens of every sequence and every key head. The buffers are this thread's, taken here: vector code in
    /// the closure of a thread-local would not be compiled for its instruction set.
    fn each_head(&self, shape: AttentionShape, lengths: &[usize], f: &(dyn Fn(Range<usize>, usize, &mut Buffers) + Sync)) {
        self.run(lengths.len() * shape.kv_heads, &|task| {
            let (sequence, head) = (task / shape.kv_heads, task % shape.kv_heads);
            let start: usize = lengths[..sequence].iter().sum();
            BUFFERS.with_borrow_mut(|buffers| f(start..start + lengths[sequence], head, buffers));
        });
    }
}

impl<'a> Inputs<'a> {
    fn check(&self, lengths: &[usize], out: usize) {
        let (tokens, shape) = (lengths.iter().sum::<usize>(), self.shape);
        let (wide, narrow) = (tokens * shape.heads * shape.head_dim, tokens * shape.kv_heads * shape.head_dim);
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "query heads share key heads evenly");
        assert!(self.q.len() == wide && out == wide, "{tokens} tokens of {} query heads of {}", shape.heads, shape.head_dim);
        assert!(self.k.len() == narrow && self.v.len() == narrow, "{tokens} tokens of {} key heads", shape.kv_heads);
    }

    /// Query heads that read key head `head`.
    fn group(&self, head: usize) -> Range<usize> {
        let many = self.shape.heads / self.shape.kv_heads;
        head * many..(head + 1) * many
    }

    fn rows(&self, values: &'a [f32], heads: usize, head: usize, rows: Range<usize>) -> MatrixView<'a> {
        let dim = self.shape.head_dim;
        MatrixView::new(values, heads * dim).part(rows, head * dim..(head + 1) * dim)
    }

    /// The keys that a run of queries of a sequence sees, by their numbers in it.
    fn keys(&self, queries: &Range<usize>) -> Range<usize> {
        self.shape.window.map_or(0, |window| (queries.start + 1).saturating_sub(window))..queries.end
    }

    /// Probabilities of a run of queries over the keys they see, `[queries, keys]`.
    #[inline(always)]
    fn probabilities<S: Simd>(&self, s: S, q: MatrixView<'_>, k: MatrixView<'_>, queries: &Range<usize>, buffers: &mut Buffers) {
        let (keys, shape) = (self.keys(queries), self.shape);
        let count = keys.len();
        sized(&mut buffers.probabilities, queries.len() * count);
        product_here(s, q, k, Out::own(&mut buffers.probabilities, count, q.rows(), count), false);
        if shape.soft_cap.is_some() {
            sized(&mut buffers.capped, queries.len() * count);
        }
        for (i, (query, row)) in queries.clone().zip(buffers.probabilities.chunks_exact_mut(count)).enumerate() {
            let seen =
                shape.window.map_or(0, |window| (query + 1).saturating_sub(window)).max(keys.start) - keys.start..query + 1 - keys.start;
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let scores = &mut row[seen.clone()];
            let scale = s.splat(shape.scale);
            match shape.soft_cap {
                None => map(s, scores, 0.0, |v| s.mul(v, scale)),
                Some(cap) => {
                    let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
                    map(s, scores, 0.0, |v| s.mul(cap, tanh(s, s.mul(s.mul(v, scale), inverse))));
                    let kept = &mut buffers.capped[i * count..(i + 1) * count];
                    kept.fill(0.0);
                    kept[seen].copy_from_slice(scores);
                }
            }
            let top = largest(s, scores);
            let inverse = s.splat(1.0 / exponentials(s, scores, top));
            map(s, scores, 0.0, |v| s.mul(v, inverse));
        }
    }
}

fn sized(buffer: &mut Vec<f32>, len: usize) {
    buffer.clear();
    buffer.resize(len, 0.0);
}

struct Forward<'a> {
    inputs: Inputs<'a>,
    tokens: Range<usize>,
    head: usize,
    out: &'a Shared<'a, f32>,
    buffers: &'a mut Buffers,
}

impl Op for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (inputs, shape, base) = (self.inputs, self.inputs.shape, self.tokens.start);
        let buffers = self.buffers;
        for head in inputs.group(self.head) {
            for start in (0..self.tokens.len()).step_by(QUERIES) {
                let queries = start..self.tokens.len().min(start + QUERIES);
                let keys = inputs.keys(&queries);
                let rows = base + queries.start..base + queries.end;
                let seen = base + keys.start..base + keys.end;
                let q = inputs.rows(inputs.q, shape.heads, head, rows.clone());
                inputs.probabilities(s, q, inputs.rows(inputs.k, shape.kv_heads, self.head, seen.clone()), &queries, buffers);
                let p = MatrixView::new(&buffers.probabilities, keys.len());
                let v = inputs.rows(inputs.v, shape.kv_heads, self.head, seen).turned();
                product_here(s, p, v, shape.place(self.out, shape.heads, head, rows), false);
            }
        }
    }
}

impl AttentionShape {
    /// The rows of one of `heads` heads in `[tokens, heads · head_dim]`.
    fn place<'a>(&self, all: &'a Shared<'a, f32>, heads: usize, head: usize, rows: Range<usize>) -> Out<'a> {
        let stride = heads * self.head_dim;
        Out { to: Place::Whole(all), offset: rows.start * stride + head * self.head_dim, stride, rows: rows.len(), cols: self.head_dim }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    tokens: Range<usize>,
    head: usize,
    dout: &'a [f32],
    to: [&'a Shared<'a, f32>; 3],
    buffers: &'a mut Buffers,
}

impl Op for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (inputs, shape, base) = (self.inputs, self.inputs.shape, self.tokens.start);
        let [dq, dk, dv] = self.to;
        for all in [dk, dv] {
            let mut out = shape.place(all, shape.kv_heads, self.head, self.tokens.clone());
            (0..self.tokens.len()).for_each(|row| out.row(row, 0..shape.head_dim).fill(0.0));
        }
        let buffers = self.buffers;
        for head in inputs.group(self.head) {
            for start in (0..self.tokens.len()).step_by(QUERIES) {
                let queries = start..self.tokens.len().min(start + QUERIES);
                let keys = inputs.keys(&queries);
                let rows = base + queries.start..base + queries.end;
                let seen = base + keys.start..base + keys.end;
                let q = inputs.rows(inputs.q, shape.heads, head, rows.clone());
                let k = inputs.rows(inputs.k, shape.kv_heads, self.head, seen.clone());
                inputs.probabilities(s, q, k, &queries, buffers);
                let dout = inputs.rows(self.dout, shape.heads, head, rows.clone());
                let v = inputs.rows(inputs.v, shape.kv_heads, self.head, seen.clone());
                sized(&mut buffers.gradients, queries.len() * keys.len());
                product_here(s, dout, v, Out::own(&mut buffers.gradients, keys.len(), queries.len(), keys.len()), false);
                slopes(s, shape, keys.len(), buffers);
                let p = MatrixView::new(&buffers.probabilities, keys.len());
                let ds = MatrixView::new(&buffers.gradients, keys.len());
                let to = |all, rows| shape.place(all, shape.kv_heads, self.head, rows);
                product_here(s, ds, k.turned(), shape.place(dq, shape.heads, head, rows), false);
                product_here(s, ds.turned(), q.turned(), to(dk, seen.clone()), true);
                product_here(s, p.turned(), dout.turned(), to(dv, seen), true);
            }
        }
    }
}

/// From gradients of probabilities to those of q·k.
#[inline(always)]
fn slopes<S: Simd>(s: S, shape: AttentionShape, keys: usize, buffers: &mut Buffers) {
    let Buffers { probabilities, capped, gradients } = buffers;
    let scale = s.splat(shape.scale);
    for (p, d) in probabilities.chunks_exact(keys).zip(gradients.chunks_exact_mut(keys)) {
        let mean = s.splat(sum_two(s, p, d, |p, d| s.mul(p, d)));
        map_two(s, d, p, |d, p| s.mul(s.mul(p, s.sub(d, mean)), scale));
    }
    if let Some(cap) = shape.soft_cap {
        let (one, inverse) = (s.splat(1.0), s.splat(1.0 / cap));
        map_two(s, gradients, capped, |d, y| {
            let t = s.mul(y, inverse);
            s.mul(d, s.sub(one, s.mul(t, t)))
        });
    }
}
