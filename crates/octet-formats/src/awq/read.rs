//! AWQ modules as matrices.

use crate::{
    checkpoint::{Lookup, required},
    stored::{check_rows, of_floats, of_module, of_words, quantized, transposed_floats, word, words},
};
use octet_tensor::{Matrix, QMatrix, QuantRows, Result, Scheme, Tensor};
use std::ops::Range;

/// Where the code of output j of eight lies in its word, in nibbles.
pub(crate) const NIBBLE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

struct Stored {
    module: String,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
}

/// The matrix of a module.
pub(crate) fn matrix(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.qweight"), lookup)?;
    let (cols, words) = of_words(&codes)?.dims2()?;
    let (rows, groups) = (words * 8, scheme.weights.groups(cols));
    let scales = of_floats(required(&format!("{module}.scales"), lookup)?, &[groups, rows])?;
    let zeros = required(&format!("{module}.qzeros"), lookup)?;
    if of_words(&zeros)?.shape() != [groups, words] {
        return Err(zeros.wrong_shape(format!("[{groups}, {words}] zero points")));
    }
    Ok(quantized(module, Stored { module: module.into(), scheme, rows, cols, codes, scales, zeros }))
}

/// Signed codes of outputs `range` of a stored `[lines, words]` tensor, as `[range, lines]`.
fn transpose(stored: &Tensor, range: &Range<usize>, lines: usize) -> Vec<i8> {
    let (all, a_line) = (words(stored), stored.shape()[1]);
    let mut out = vec![0; range.len() * lines];
    for line in 0..lines {
        for at in range.start / 8..range.end.div_ceil(8) {
            let held = word(all, line * a_line + at);
            for (j, nibble) in NIBBLE.iter().enumerate() {
                let output = 8 * at + j;
                if range.contains(&output) {
                    out[(output - range.start) * lines + line] = (held >> (4 * nibble) & 15) as i8 - 8;
                }
            }
        }
    }
    out
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len() + self.zeros.bytes().len()
    }

    fn release(&self, range: Range<usize>) {
        // Rows lie across the whole file: what is given back is all of it, once the last row was read.
        if range.end == self.rows {
            self.codes.bytes().release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let codes = transpose(&self.codes, &range, self.cols);
        let zeros = transpose(&self.zeros, &range, self.scheme.weights.groups(self.cols));
        let scales = transposed_floats(&self.scales, &range)?;
        of_module(&self.module, QMatrix::new(range.len(), self.cols, self.scheme.weights, codes, scales, self.scales.dtype(), zeros))
    }
}
