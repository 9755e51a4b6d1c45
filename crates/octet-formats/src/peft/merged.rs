//! A base's matrix with what an adapter adds, computed as rows are read.

use super::LowRank;
use crate::{
    stored::{check_rows, malformed},
    write::floats,
};
use octet_tensor::{Bytes, Dtype, FloatMatrix, FloatRows, Matrix, Result, Tensor};
use std::{ops::Range, sync::Arc};

struct Merged {
    base: Matrix,
    low: Arc<LowRank>,
}

/// The matrix `module`, outputs first, with what `low` adds.
///
/// # Errors
/// If the adapter was made for another shape.
pub(crate) fn merged(module: &str, base: Matrix, low: &Arc<LowRank>) -> Result<Matrix> {
    let [rows, cols] = low.dims();
    if [base.rows(), base.cols()] != [rows, cols] {
        let what =
            format!("is {}x{} in the base and {rows}x{cols} in the adapter, which was made for another model", base.rows(), base.cols());
        return Err(malformed(module, what));
    }
    let rows = Merged { base, low: Arc::clone(low) };
    Ok(Matrix::Float(FloatMatrix::decoded(module, Arc::new(rows))))
}

/// A merged matrix as the tensor `name` of type `dtype`; `inputs_first`: `[inputs, outputs]`.
pub(crate) fn stored(name: &str, matrix: &Matrix, dtype: Dtype, inputs_first: bool) -> Result<Tensor> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut values = vec![0.0; rows * cols];
    matrix.read_rows_f32(0..rows, &mut values)?;
    let mut shape = vec![rows, cols];
    if inputs_first {
        values = (0..cols).flat_map(|col| (0..rows).map(move |row| (row, col))).map(|(row, col)| values[row * cols + col]).collect();
        shape.reverse();
    }
    let bytes = floats(name, &values, dtype).map_err(|e| malformed(name, e.to_string()))?;
    Tensor::new(name, dtype, shape, Bytes::new(bytes))
}

impl FloatRows for Merged {
    fn dims(&self) -> (usize, usize) {
        (self.base.rows(), self.base.cols())
    }

    fn stored_bytes(&self) -> usize {
        let base = match &self.base {
            Matrix::Float(matrix) => matrix.stored_bytes(),
            Matrix::Quant(matrix) => matrix.stored_bytes(),
        };
        base + 4 * (self.low.a.len() + self.low.b.len() + self.low.magnitude.as_ref().map_or(0, Vec::len))
    }

    fn release(&self, range: Range<usize>) {
        match &self.base {
            Matrix::Float(matrix) => matrix.slice_rows(range).into_iter().for_each(|rows| rows.release()),
            Matrix::Quant(matrix) => matrix.slice_rows(range).into_iter().for_each(|rows| rows.release()),
        }
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_rows(self.base.name(), &range, self.base.rows())?;
        self.base.read_rows_f32(range.clone(), out)?;
        let (cols, rank) = (self.base.cols(), self.low.rank);
        for (row, out) in range.zip(out.chunks_mut(cols.max(1))) {
            for (line, &b) in self.low.a.chunks(cols.max(1)).zip(&self.low.b[row * rank..(row + 1) * rank]) {
                let factor = b * self.low.scale;
                out.iter_mut().zip(line).for_each(|(value, &a)| *value += factor * a);
            }
            if let Some(magnitude) = &self.low.magnitude {
                let length = out.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
                let factor = (f64::from(magnitude[row]) / length) as f32;
                out.iter_mut().for_each(|value| *value *= factor);
            }
        }
        Ok(())
    }
}
