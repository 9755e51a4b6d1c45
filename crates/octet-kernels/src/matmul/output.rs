//! Where a product goes: bias, accumulation, and the edges of a block of sixteen rows.

use crate::{
    parallel::Shared,
    simd::{LANES, Simd},
};

/// The output `[tokens, rows]` of one matrix, written by many tasks.
pub(crate) struct Output<'a> {
    pub(crate) out: Shared<'a, f32>,
    pub(crate) rows: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) accumulate: bool,
}

impl Output<'_> {
    /// Writes sixteen rows (fewer at the matrix's end) of one token.
    ///
    /// # Safety
    /// No other task may write these rows of this token.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, s: S, token: usize, block: usize, value: S::F) {
        let first = block * LANES;
        let last = self.rows.min(first + LANES);
        // SAFETY: the caller promises that these rows of this token are this task's alone.
        let out = unsafe { self.out.part(token * self.rows + first..token * self.rows + last) };
        let bias = self.bias.map(|bias| &bias[first..last]);
        if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
            let value = match bias.and_then(|b| <&[f32; LANES]>::try_from(b).ok()) {
                Some(bias) => s.add(value, s.load(bias)),
                None => value,
            };
            let value = if self.accumulate { s.add(s.load(out), value) } else { value };
            s.store(value, out);
        } else {
            let mut lanes = [0.0; LANES];
            s.store(value, &mut lanes);
            for (i, (out, mut value)) in out.iter_mut().zip(lanes).enumerate() {
                if let Some(bias) = bias {
                    value += bias[i];
                }
                *out = if self.accumulate { *out + value } else { value };
            }
        }
    }
}
