//! What products read: rows as they are, or rows that are normed, turned or both on the way.

use crate::{
    Engine, Norm,
    counters::Kernel,
    eights::{EIGHT, TurnEights},
    norm::NormRows,
    simd::{LANES, Op, Simd},
};

/// The inputs of products, `[tokens, cols]`. What is made of a stored row first is never written out as floats for products
/// that quantize their inputs: it stays in the cache of the processor that quantizes it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    rows: &'a [f32],
    norm: Option<Norm<'a>>,
    turned: bool,
}

impl<'a> Source<'a> {
    /// Rows as they are.
    pub fn rows(rows: &'a [f32]) -> Self {
        Self { rows, norm: None, turned: false }
    }

    /// Every row normed first.
    pub fn normed(rows: &'a [f32], norm: Norm<'a>) -> Self {
        Self { norm: Some(norm), ..Self::rows(rows) }
    }

    /// The same with every eight values turned ([`Engine::turn_eights`]), after the norm; their number is a multiple of eight.
    pub fn turned(self) -> Self {
        Self { turned: true, ..self }
    }

    /// The rows before anything is made of them.
    pub(crate) fn stored(&self) -> &'a [f32] {
        self.rows
    }

    /// Whether rows are read as they are stored.
    pub(crate) fn is_plain(&self) -> bool {
        self.norm.is_none() && !self.turned
    }

    /// Counts what is done to rows on the way.
    pub(crate) fn count(&self, engine: &Engine) {
        if self.norm.is_some() {
            engine.count(Kernel::Norm);
        }
        if self.turned {
            engine.count(Kernel::Elementwise);
        }
    }

    /// Elements of buffer that [`Source::row`] needs for rows of `cols`.
    pub(crate) fn buffer(&self, cols: usize) -> usize {
        if self.is_plain() { 0 } else { cols }
    }

    /// Row `token` of `cols` elements, in `buffer` where it is computed.
    #[inline]
    pub(crate) fn row<'b>(&self, engine: &Engine, token: usize, cols: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let at = token * cols..(token + 1) * cols;
        if let Some(next) = self.rows.get(at.end..at.end + cols) {
            engine.vectorize(Ask(next));
        }
        let x = &self.rows[at];
        if let Some(norm) = self.norm {
            engine.vectorize(NormRows { x, norm, out: &mut *buffer, accumulate: false });
        }
        if self.turned {
            engine.vectorize(TurnEights { x: self.norm.is_none().then_some(x), out: &mut *buffer });
        }
        if self.is_plain() { x } else { buffer }
    }

    /// Writes all rows out.
    pub(crate) fn write(&self, engine: &Engine, out: &mut [f32]) {
        match self.norm {
            Some(norm) => engine.norm(self.rows, norm, false, out),
            None => out.copy_from_slice(self.rows),
        }
        if self.turned {
            engine.turn_eights(out);
        }
    }

    pub(crate) fn check(&self, tokens: usize, cols: usize) {
        assert_eq!(self.rows.len(), tokens * cols, "x is [tokens {tokens}, cols {cols}]");
        assert!(!self.turned || cols.is_multiple_of(EIGHT), "rows of {cols} are no eights");
        if let Some(norm) = self.norm {
            assert_eq!(norm.weight.len(), cols, "the norm is as wide as a row");
            norm.check();
        }
    }
}

/// Asks for a row that comes next: what fetches ahead by itself stops at the end of a page, which a row often is.
struct Ask<'a>(&'a [f32]);

impl Op for Ask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for line in self.0.chunks(LANES) {
            s.prefetch(bytemuck::cast_slice(line), 0);
        }
    }
}
