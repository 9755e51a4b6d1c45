//! The original as a 16-bit model: the baseline of speed and size.

use octet_tensor::{Bytes, Dtype, FloatMatrix, Matrix, Result, Tensor, WeightSource};

/// A source whose F32 and F64 matrices are given out in BF16; everything else is passed on unchanged.
///
/// A checkpoint saved in 32 bits would make every quantized model look twice as fast and half as large as it is worth.
pub struct SixteenBit<'a> {
    source: &'a dyn WeightSource,
}

impl<'a> SixteenBit<'a> {
    /// Wraps `source`.
    pub fn new(source: &'a dyn WeightSource) -> Self {
        Self { source }
    }
}

/// Rows converted at a time.
const ROWS: usize = 64;

impl WeightSource for SixteenBit<'_> {
    fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
        let Some(matrix) = self.source.matrix(module)? else { return Ok(None) };
        match matrix {
            Matrix::Float(float) if float.dtype().size() > 2 => Ok(Some(Matrix::Float(halve(&float)?))),
            other => Ok(Some(other)),
        }
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        self.source.tensor(name)
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }
}

fn halve(matrix: &FloatMatrix) -> Result<FloatMatrix> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut bytes = Vec::with_capacity(2 * rows * cols);
    let mut values = vec![0f32; ROWS * cols];
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let values = &mut values[..count * cols];
        matrix.read_rows(first..first + count, values)?;
        // A bfloat16 is the upper half of the binary32 it was rounded to.
        bytes.extend(values.iter().flat_map(|&v| ((Dtype::Bf16.round(v).to_bits() >> 16) as u16).to_le_bytes()));
    }
    FloatMatrix::dense(Tensor::new(matrix.name(), Dtype::Bf16, vec![rows, cols], Bytes::new(bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(Tensor);

    impl WeightSource for One {
        fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
            if module == "m" { FloatMatrix::dense(self.0.clone()).map(|m| Some(Matrix::Float(m))) } else { Ok(None) }
        }

        fn tensor(&self, _: &str) -> Result<Option<Tensor>> {
            Ok(Some(self.0.clone()))
        }

        fn names(&self) -> Vec<String> {
            vec!["m.weight".into()]
        }
    }

    #[test]
    fn wide_matrices_are_rounded_and_the_rest_is_untouched() {
        let values: Vec<f32> = (0..130 * 3).map(|i| i as f32 * 0.37 - 20.0).collect();
        let source = One(Tensor::from_f32("m.weight", vec![130, 3], &values).unwrap());
        let half = SixteenBit::new(&source);
        let matrix = half.matrix("m").unwrap().unwrap();
        assert_eq!(matrix.stored_bytes(), 2 * values.len());
        let mut read = vec![0.0; values.len()];
        matrix.read_rows_f32(0..130, &mut read).unwrap();
        assert!(read.iter().zip(&values).all(|(a, b)| *a == Dtype::Bf16.round(*b)));
        assert_eq!(half.tensor("m.weight").unwrap().unwrap().dtype(), Dtype::F32);
        assert!(half.matrix("other").unwrap().is_none());
    }
}
