//! Where a product goes: bias, accumulation, and the edges of a block of sixteen rows.

use crate::{
    parallel::Shared,
    simd::{LANES, Simd, unroll},
};

/// The output `[tokens, rows]` of one matrix, written by many tasks; or a task's own part of it.
pub(crate) struct Output<'a> {
    pub(crate) out: Shared<'a, f32>,
    /// Rows there are.
    pub(crate) rows: usize,
    /// Elements from one token to the next.
    pub(crate) stride: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) accumulate: bool,
    /// The token and the block of rows that `out` (and the bias) begin with.
    pub(crate) origin: (usize, usize),
}

impl Output<'_> {
    /// Writes the values of some blocks of rows (one that repeats the first is left out) and of `T`
    /// tokens from `token` on.
    ///
    /// # Safety
    /// No other task may write these rows of these tokens.
    #[inline(always)]
    pub(crate) unsafe fn write_tile<S: Simd, const R: usize, const T: usize>(
        &self,
        s: S,
        token: usize,
        block: [usize; R],
        values: &[[S::F; T]; R],
    ) {
        let token = token - self.origin.0;
        unroll!(r < R, {
            if r == 0 || block[r] != block[0] {
                let first = (block[r] - self.origin.1) * LANES;
                if first + LANES <= self.rows {
                    // SAFETY: the caller promises that these rows of these tokens are this task's alone.
                    unsafe { self.write_block(s, token, first, &values[r]) };
                } else {
                    let mut lanes = [[0.0; LANES]; T];
                    unroll!(t < T, { s.store(values[r][t], &mut lanes[t]) });
                    // SAFETY: as above.
                    unsafe { self.write_edge(token, first, &lanes) };
                }
            }
        });
    }

    /// Writes sixteen rows of some tokens.
    ///
    /// # Safety
    /// No other task may write these rows of these tokens.
    #[inline(always)]
    unsafe fn write_block<S: Simd, const T: usize>(&self, s: S, token: usize, first: usize, values: &[S::F; T]) {
        let bias = self.bias.and_then(|bias| bias[first..].first_chunk()).map(|bias| s.load(bias));
        unroll!(t < T, {
            let start = (token + t) * self.stride + first;
            // SAFETY: the caller promises that these rows of this token are this task's alone.
            if let Some(out) = unsafe { self.out.part(start..start + LANES) }.first_chunk_mut() {
                let mut v = values[t];
                if let Some(bias) = bias {
                    v = s.add(v, bias);
                }
                if self.accumulate {
                    v = s.add(v, s.load(out));
                }
                s.store(v, out);
            }
        });
    }

    /// Writes the fewer than sixteen rows at the matrix's end of some tokens.
    ///
    /// # Safety
    /// No other task may write these rows of these tokens.
    #[inline(never)]
    unsafe fn write_edge(&self, token: usize, first: usize, values: &[[f32; LANES]]) {
        for (t, values) in values.iter().enumerate() {
            let start = (token + t) * self.stride;
            // SAFETY: the caller promises that these rows of this token are this task's alone.
            let out = unsafe { self.out.part(start + first..start + self.rows) };
            for (i, (out, &v)) in out.iter_mut().zip(values).enumerate() {
                let v = self.bias.map_or(v, |bias| v + bias[first + i]);
                *out = if self.accumulate { v + *out } else { v };
            }
        }
    }
}
