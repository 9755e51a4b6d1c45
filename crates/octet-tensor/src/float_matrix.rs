//! A float matrix as stored: dense, transposed (GPT-2's Conv1D), FP8 with block scales, or in a form of its own.

use crate::{Dtype, Error, InputRounding, Result, Tensor};
use std::{fmt, ops::Range, sync::Arc};

/// Float rows that some file format stores in a form of its own: decoded a few rows at a time.
pub trait FloatRows: Send + Sync {
    /// Rows and columns.
    fn dims(&self) -> (usize, usize);

    /// Bytes the matrix takes where it is stored.
    fn stored_bytes(&self) -> usize;

    /// Decodes rows `range`, which lie inside the matrix, into `out` (`range.len() * cols` values).
    ///
    /// # Errors
    /// If the stored bytes make no sense.
    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Gives back the memory that mapped bytes of rows `range` take (see [`crate::Bytes::release`]).
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

/// A float matrix `[rows, cols]` as stored, read a few rows at a time; slicing rows copies nothing.
#[derive(Clone, Debug)]
pub struct FloatMatrix {
    storage: Storage,
    rows: Range<usize>,
    cols: usize,
    inputs: Option<InputRounding>,
}

#[derive(Clone, Debug)]
enum Storage {
    /// Row-major `[rows, cols]`.
    Dense(Tensor),
    /// Stored as `[cols, rows]`.
    Transposed(Tensor),
    /// FP8 weights times a scale a block of `block[0]` rows and `block[1]` columns.
    Fp8Block { weight: Tensor, scale: Tensor, block: [usize; 2] },
    /// Decoded by a file format.
    Decoded(Decoded),
}

#[derive(Clone)]
struct Decoded {
    name: Arc<str>,
    rows: Arc<dyn FloatRows>,
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.rows.dims())
    }
}

impl FloatMatrix {
    /// A row-major matrix.
    ///
    /// # Errors
    /// If the tensor is not two-dimensional or not floating-point.
    pub fn dense(tensor: Tensor) -> Result<Self> {
        let (rows, cols) = float_dims(&tensor)?;
        Ok(Self { storage: Storage::Dense(tensor), rows: 0..rows, cols, inputs: None })
    }

    /// The transpose of a stored `[cols, rows]` tensor (GPT-2 stores its linears so).
    ///
    /// # Errors
    /// As [`FloatMatrix::dense`].
    pub fn transposed(tensor: Tensor) -> Result<Self> {
        let (cols, rows) = float_dims(&tensor)?;
        Ok(Self { storage: Storage::Transposed(tensor), rows: 0..rows, cols, inputs: None })
    }

    /// FP8 E4M3 weights, each **multiplied** by the scale of its block, as `weight_scale_inv` is meant.
    ///
    /// # Errors
    /// If the scales' shape is not the number of blocks.
    pub fn fp8_block(weight: Tensor, scale: Tensor, block: [usize; 2]) -> Result<Self> {
        let (rows, cols) = float_dims(&weight)?;
        let blocks = [rows.div_ceil(block[0].max(1)), cols.div_ceil(block[1].max(1))];
        if block.contains(&0) || scale.shape() != blocks || !scale.dtype().is_float() {
            return Err(scale.wrong_shape(format!("{blocks:?} (one scale a block of {block:?} of {})", weight.name())));
        }
        Ok(Self { storage: Storage::Fp8Block { weight, scale, block }, rows: 0..rows, cols, inputs: None })
    }

    /// A matrix called `name` whose rows a file format decodes to F32.
    pub fn decoded(name: impl Into<Arc<str>>, rows: Arc<dyn FloatRows>) -> Self {
        let (count, cols) = rows.dims();
        Self { storage: Storage::Decoded(Decoded { name: name.into(), rows }), rows: 0..count, cols, inputs: None }
    }

    /// The same matrix, its inputs rounded at run time.
    pub fn with_inputs(self, inputs: Option<InputRounding>) -> Self {
        Self { inputs, ..self }
    }

    /// What its inputs are rounded to at run time, where they are.
    pub fn inputs(&self) -> Option<InputRounding> {
        self.inputs
    }

    /// Number of rows (outputs of a linear).
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns (inputs of a linear).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The name of the tensor it is stored in.
    pub fn name(&self) -> &str {
        match &self.storage {
            Storage::Dense(tensor) | Storage::Transposed(tensor) | Storage::Fp8Block { weight: tensor, .. } => tensor.name(),
            Storage::Decoded(decoded) => &decoded.name,
        }
    }

    /// The type its elements are stored in; F32 where a file format decodes them.
    pub fn dtype(&self) -> Dtype {
        match &self.storage {
            Storage::Dense(tensor) | Storage::Transposed(tensor) | Storage::Fp8Block { weight: tensor, .. } => tensor.dtype(),
            Storage::Decoded(_) => Dtype::F32,
        }
    }

    /// Bytes its rows take where they are stored (block scales included).
    pub fn stored_bytes(&self) -> usize {
        let scales = match &self.storage {
            Storage::Fp8Block { scale, block, .. } => self.rows().div_ceil(block[0]) * self.cols.div_ceil(block[1]) * scale.dtype().size(),
            Storage::Decoded(decoded) => {
                let all = decoded.rows.dims().0.max(1) as u128;
                return (decoded.rows.stored_bytes() as u128 * self.rows() as u128 / all) as usize;
            }
            _ => 0,
        };
        self.rows() * self.cols * self.dtype().size() + scales
    }

    /// Rows `range` of this matrix, sharing its bytes; `None` where the range reaches past the end.
    pub fn slice_rows(&self, range: Range<usize>) -> Option<Self> {
        let inside = range.start <= range.end && range.end <= self.rows();
        inside.then(|| Self { rows: self.rows.start + range.start..self.rows.start + range.end, ..self.clone() })
    }

    /// The type and raw row-major bytes, where they are stored that way (so that a kernel can read them in place).
    pub fn dense_bytes(&self) -> Option<(Dtype, crate::Bytes)> {
        let Storage::Dense(tensor) = &self.storage else { return None };
        let row = self.cols * tensor.dtype().size();
        Some((tensor.dtype(), tensor.bytes().slice(self.rows.start * row..self.rows.end * row)?))
    }

    /// Gives back the memory that the mapped bytes of its rows take (of all rows where they are stored transposed).
    pub fn release(&self) {
        match &self.storage {
            Storage::Transposed(tensor) => tensor.bytes().release(),
            Storage::Dense(tensor) | Storage::Fp8Block { weight: tensor, .. } => {
                let row = self.cols * tensor.dtype().size();
                if let Some(bytes) = tensor.bytes().slice(self.rows.start * row..self.rows.end * row) {
                    bytes.release();
                }
            }
            Storage::Decoded(decoded) => decoded.rows.release(self.rows.clone()),
        }
    }

    /// Decodes rows `range` into `out` (`range.len() * cols` values).
    ///
    /// # Errors
    /// If the range reaches past the matrix or `out` has another length.
    pub fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        if range.end > self.rows() || out.len() != range.len() * self.cols {
            let (name, expected) = (self.name().into(), format!("rows {range:?} of {} columns", self.cols));
            return Err(Error::Shape { name, expected, found: vec![self.rows(), self.cols] });
        }
        let first = self.rows.start + range.start;
        match &self.storage {
            Storage::Dense(tensor) => tensor.read_f32(first * self.cols, out),
            Storage::Transposed(tensor) => self.read_transposed(tensor, first, out),
            Storage::Fp8Block { weight, scale, block } => {
                weight.read_f32(first * self.cols, out)?;
                self.scale_blocks(scale, *block, first, out)
            }
            Storage::Decoded(decoded) => decoded.rows.read_rows(first..first + range.len(), out),
        }
    }

    fn read_transposed(&self, tensor: &Tensor, first: usize, out: &mut [f32]) -> Result<()> {
        let (count, stored_cols) = (out.len() / self.cols.max(1), tensor.shape()[1]);
        let mut column = vec![0.0; count];
        for k in 0..self.cols {
            tensor.read_f32(k * stored_cols + first, &mut column)?;
            for (row, &value) in column.iter().enumerate() {
                out[row * self.cols + k] = value;
            }
        }
        Ok(())
    }

    fn scale_blocks(&self, scale: &Tensor, block: [usize; 2], first: usize, out: &mut [f32]) -> Result<()> {
        let per_row = scale.shape()[1];
        let mut scales = vec![0.0; per_row];
        for (i, row) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            scale.read_f32((first + i) / block[0] * per_row, &mut scales)?;
            for (chunk, &s) in row.chunks_mut(block[1]).zip(&scales) {
                chunk.iter_mut().for_each(|v| *v *= s);
            }
        }
        Ok(())
    }
}

fn float_dims(tensor: &Tensor) -> Result<(usize, usize)> {
    if !tensor.dtype().is_float() {
        return Err(crate::Error::Dtype { name: tensor.name().into(), expected: "floating-point", found: tensor.dtype() });
    }
    tensor.dims2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;

    fn counting(shape: Vec<usize>) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|v| v as f32).collect();
        Tensor::from_f32("t", shape, &values).unwrap()
    }

    #[test]
    fn dense_and_transposed_read_the_same_matrix() {
        let dense = FloatMatrix::dense(counting(vec![3, 2])).unwrap().slice_rows(1..3).unwrap();
        let mut out = [0.0; 4];
        dense.read_rows(0..2, &mut out).unwrap();
        assert_eq!(out, [2.0, 3.0, 4.0, 5.0]);
        let transposed = FloatMatrix::transposed(counting(vec![2, 3])).unwrap();
        transposed.read_rows(1..3, &mut out).unwrap();
        assert_eq!(out, [1.0, 4.0, 2.0, 5.0]);
        assert!(dense.read_rows(1..3, &mut out).is_err());
    }

    #[test]
    fn block_scales_multiply() {
        let weight = Tensor::new("w", Dtype::F8E4m3, vec![3, 3], Bytes::new(vec![0x38u8; 9])).unwrap();
        let scale = Tensor::from_f32("s", vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let matrix = FloatMatrix::fp8_block(weight.clone(), scale.clone(), [2, 2]).unwrap();
        let mut out = [0.0; 6];
        matrix.read_rows(1..3, &mut out).unwrap();
        assert_eq!(out, [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]);
        assert!(FloatMatrix::fp8_block(weight, scale, [3, 3]).is_err());
    }
}
