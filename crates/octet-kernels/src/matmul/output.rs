//! Where a product goes: bias, accumulation, and the edges of a block of sixteen rows.

use crate::{
    parallel::Shared,
    simd::{LANES, Simd, unroll},
};

/// The output `[tokens, rows]` of one matrix, written by many tasks.
pub(crate) struct Output<'a> {
    pub(crate) out: Shared<'a, f32>,
    pub(crate) rows: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) accumulate: bool,
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
        let mut lanes = [[0.0; LANES]; T];
        unroll!(r < R, {
            if r == 0 || block[r] != block[0] {
                unroll!(t < T, { s.store(values[r][t], &mut lanes[t]) });
                // SAFETY: the caller promises that these rows of these tokens are this task's alone.
                unsafe { self.write(token, block[r], &lanes) };
            }
        });
    }

    /// Writes sixteen rows (fewer at the matrix's end) of some tokens.
    ///
    /// # Safety
    /// No other task may write these rows of these tokens.
    #[inline(never)]
    unsafe fn write(&self, token: usize, block: usize, values: &[[f32; LANES]]) {
        let first = block * LANES;
        let last = self.rows.min(first + LANES);
        for (t, values) in values.iter().enumerate() {
            let start = (token + t) * self.rows;
            // SAFETY: the caller promises that these rows of this token are this task's alone.
            let out = unsafe { self.out.part(start + first..start + last) };
            let mut values = *values;
            if let Some(bias) = self.bias {
                values.iter_mut().zip(&bias[first..last]).for_each(|(v, b)| *v += b);
            }
            if self.accumulate {
                values.iter_mut().zip(&*out).for_each(|(v, o)| *v += o);
            }
            match <&mut [f32; LANES]>::try_from(&mut *out) {
                Ok(whole) => *whole = values,
                Err(_) => out.copy_from_slice(&values[..last - first]),
            }
        }
    }
}
