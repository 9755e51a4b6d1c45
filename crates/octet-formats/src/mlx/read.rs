//! MLX modules as matrices.

use super::{Form, Shape};
use crate::{
    checkpoint::{Lookup, required},
    fp4::{self, Fp4},
    stored::{decoded, field, of_floats, of_words, word, words},
};
use octet_tensor::{FloatRows, Matrix, Result, Tensor};
use std::ops::Range;

struct Stored {
    rows: usize,
    cols: usize,
    shape: Shape,
    codes: Tensor,
    scales: Tensor,
    biases: Tensor,
}

/// The matrix of a module.
pub(crate) fn matrix(module: &str, shape: Shape, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight"), lookup)?;
    let (rows, line) = of_words(&codes)?.dims2()?;
    let cols = line * 32 / shape.bits.get() as usize;
    if (cols * shape.bits.get() as usize).div_ceil(32) != line {
        return Err(codes.wrong_shape(format!("[outputs, inputs of {} bits]", shape.bits.get())));
    }
    let scales = required(&format!("{module}.scales"), lookup)?;
    if shape.form == Form::Mxfp4 {
        let codes = Tensor::new(codes.name(), octet_tensor::Dtype::U8, vec![rows, line * 4], codes.bytes().clone())?;
        return fp4::matrix(module, codes, scales, Fp4::Mx);
    }
    let groups = cols.div_ceil(shape.group);
    let scales = of_floats(scales, &[rows, groups])?;
    let biases = of_floats(required(&format!("{module}.biases"), lookup)?, &[rows, groups])?;
    Ok(decoded(module, Stored { rows, cols, shape, codes, scales, biases }))
}

impl FloatRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len() + self.biases.bytes().len()
    }

    fn release(&self, range: Range<usize>) {
        let row = self.codes.bytes().len() / self.rows.max(1);
        if let Some(bytes) = self.codes.bytes().slice(range.start * row..range.end * row) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (bits, line) = (self.shape.bits.get(), self.codes.shape()[1]);
        let groups = self.cols.div_ceil(self.shape.group);
        let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
        for (row, out) in range.zip(out.chunks_mut(self.cols.max(1))) {
            self.scales.read_f32(row * groups, &mut scales)?;
            self.biases.read_f32(row * groups, &mut biases)?;
            let stream = &words(&self.codes)[row * line..(row + 1) * line];
            for (group, out) in out.chunks_mut(self.shape.group).enumerate() {
                for (i, value) in out.iter_mut().enumerate() {
                    let code = field((group * self.shape.group + i) * bits as usize, bits, |w| word(stream, w));
                    *value = scales[group] * code as f32 + biases[group];
                }
            }
        }
        Ok(())
    }
}
