//! Rotary position embedding.

use crate::{
    Engine,
    counters::Kernel,
    simd::{LANES, Op, Simd},
};

impl Engine {
    /// Rotates the heads of `x` `[tokens, heads · head_dim]` (Su et al., arXiv 2104.09864) in half-split pairs:
    /// dimension i with i + rot/2, over the first `rot` dimensions of each head; the rest is left alone.
    ///
    /// `table` is `[tokens, rot]`: of each token the cosines of its rot/2 angles, then their sines.
    ///
    /// # Panics
    /// If `x` is no whole number of tokens, or the table not of as many, or `rot` odd or more than `head_dim`.
    pub fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
        let width = heads * head_dim;
        if x.is_empty() {
            return;
        }
        assert!(width > 0 && x.len().is_multiple_of(width), "{} elements are no tokens of {heads} heads of {head_dim}", x.len());
        let tokens = x.len() / width;
        let rot = table.len() / tokens;
        assert!(table.len() == tokens * rot && rot <= head_dim && rot.is_multiple_of(2), "a table of {} for {tokens} tokens", table.len());
        self.count(Kernel::Rope);
        if rot == 0 {
            return;
        }
        self.each_rows(x, width, 2, &|first, x| {
            let table = &table[first * rot..];
            self.vectorize(Rope { x, width, head_dim, rot, table });
        });
    }
}

struct Rope<'a> {
    x: &'a mut [f32],
    width: usize,
    head_dim: usize,
    rot: usize,
    table: &'a [f32],
}

impl Op for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.rot / 2;
        for (x, table) in self.x.chunks_exact_mut(self.width).zip(self.table.chunks_exact(self.rot)) {
            let (cos, sin) = table.split_at(half);
            for head in x.chunks_exact_mut(self.head_dim) {
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
