//! What products read: rows as they are, or rows that are normed on the way.

use crate::{
    Engine, Norm,
    norm::NormRows,
    simd::{LANES, Op, Simd},
};

/// The inputs of products, `[tokens, cols]`.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// As they are.
    Rows(&'a [f32]),
    /// Every row normed first; what products that quantize their inputs read is never written out as floats.
    Normed(&'a [f32], Norm<'a>),
}

impl<'a> Source<'a> {
    /// The rows before any norm.
    pub(crate) fn stored(&self) -> &'a [f32] {
        match self {
            Self::Rows(x) | Self::Normed(x, _) => x,
        }
    }

    /// Elements of buffer that [`Source::row`] needs for rows of `cols`.
    pub(crate) fn buffer(&self, cols: usize) -> usize {
        if matches!(self, Self::Rows(_)) { 0 } else { cols }
    }

    /// Row `token` of `cols` elements, in `buffer` where it is computed.
    #[inline]
    pub(crate) fn row<'b>(&self, engine: &Engine, token: usize, cols: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let at = token * cols..(token + 1) * cols;
        if let Some(next) = self.stored().get(at.end..at.end + cols) {
            engine.vectorize(Ask(next));
        }
        match *self {
            Self::Rows(x) => &x[at],
            Self::Normed(x, norm) => {
                engine.vectorize(NormRows { x: &x[at], norm, out: &mut *buffer, accumulate: false });
                buffer
            }
        }
    }

    pub(crate) fn check(&self, tokens: usize, cols: usize) {
        assert_eq!(self.stored().len(), tokens * cols, "x is [tokens {tokens}, cols {cols}]");
        if let Self::Normed(_, norm) = self {
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
