//! Rotary position embedding.

use crate::{
    Engine, Norm,
    counters::Kernel,
    norm::norm_in_place,
    parallel::Shared,
    simd::{LANES, Op, Simd},
};

/// Elements a task of [`Engine::turn`] handles at least.
const GRAIN: usize = 8 * 1024;

/// Heads that are normed and turned in place.
pub struct Heads<'a> {
    /// `[tokens, heads · head_dim]`.
    pub x: &'a mut [f32],
    /// How many heads.
    pub heads: usize,
    /// What every head is normed by first, over its whole width.
    pub norm: Option<Norm<'a>>,
}

impl Engine {
    /// Rotates the heads of `x` `[tokens, heads · head_dim]` (Su et al., arXiv 2104.09864) in half-split pairs:
    /// dimension i with i + rot/2, over the first `rot` dimensions of each head; the rest is left alone.
    ///
    /// `table` is `[tokens, rot]`: of each token the cosines of its rot/2 angles, then their sines.
    ///
    /// # Panics
    /// If `x` is no whole number of tokens, or the table not of as many, or `rot` odd or more than `head_dim`.
    pub fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
        self.turn([Some(Heads { x, heads, norm: None }), None], head_dim, Some(table));
    }

    /// Norms and then rotates (as [`Engine::rope`], where there is a table) the heads of queries and keys of the same
    /// tokens, in one pass over them.
    ///
    /// # Panics
    /// As [`Engine::rope`], and if a norm is not as wide as a head.
    pub fn turn(&self, parts: [Option<Heads<'_>>; 2], head_dim: usize, table: Option<&[f32]>) {
        let tokens = |part: &Heads<'_>| {
            let width = part.heads * head_dim;
            assert!(
                width > 0 && part.x.len().is_multiple_of(width),
                "{} elements are no tokens of {} heads of {head_dim}",
                part.x.len(),
                part.heads
            );
            assert!(part.norm.is_none_or(|norm| norm.weight.len() == head_dim), "a norm of heads is {head_dim} wide");
            part.norm.iter().for_each(Norm::check);
            part.x.len() / width
        };
        let mut counts = parts.iter().flatten().map(tokens);
        let count = counts.next().unwrap_or(0);
        assert!(counts.all(|c| c == count), "queries and keys of the same tokens");
        if count == 0 {
            return;
        }
        let table = table.unwrap_or(&[]);
        let rot = table.len() / count;
        assert!(table.len() == count * rot && rot <= head_dim && rot.is_multiple_of(2), "a table of {} for {count} tokens", table.len());
        self.count(Kernel::Rope);
        let width: usize = parts.iter().flatten().map(|part| part.heads * head_dim).sum();
        let tokens_a_task = (GRAIN / width).clamp(1, count);
        let parts = parts.map(|part| part.map(|p| (Shared::new(p.x), p.heads * head_dim, p.norm)));
        self.run(count.div_ceil(tokens_a_task), &|task| {
            let (first, last) = (task * tokens_a_task, count.min((task + 1) * tokens_a_task));
            for (x, width, norm) in parts.iter().flatten() {
                // SAFETY: tasks are distinct numbers, so their runs of tokens do not overlap.
                let x = unsafe { x.part(first * width..last * width) };
                let table = &table[first * rot..last * rot];
                self.vectorize(Turn { x, width: *width, head_dim, rot, table, norm: *norm });
            }
        });
    }
}

struct Turn<'a> {
    x: &'a mut [f32],
    width: usize,
    head_dim: usize,
    rot: usize,
    table: &'a [f32],
    norm: Option<Norm<'a>>,
}

impl Op for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.rot / 2;
        for (token, x) in self.x.chunks_exact_mut(self.width).enumerate() {
            let (cos, sin) = self.table[token * self.rot..(token + 1) * self.rot].split_at(half);
            for head in x.chunks_exact_mut(self.head_dim) {
                if let Some(norm) = &self.norm {
                    norm_in_place(s, head, norm);
                }
                let (low, high) = head.split_at_mut(half);
                rotate(s, low, &mut high[..half], cos, sin);
            }
        }
    }
}

#[inline(always)]
fn rotate<S: Simd>(s: S, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
    let ((low, low_rest), (high, high_rest)) = (low.as_chunks_mut::<LANES>(), high.as_chunks_mut::<LANES>());
    let ((cos, cos_rest), (sin, sin_rest)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b, cos, sin) = (s.load(low), s.load(high), s.load(cos), s.load(sin));
        s.store(s.sub(s.mul(a, cos), s.mul(b, sin)), low);
        s.store(s.add(s.mul(b, cos), s.mul(a, sin)), high);
    }
    for (((low, high), cos), sin) in low_rest.iter_mut().zip(high_rest).zip(cos_rest).zip(sin_rest) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}
