//! LLM.int8 weights: w = code · SCB / 127, one scale a row.

use crate::{
    checkpoint::{Lookup, required},
    stored::{check_rows, malformed, of_dtype, of_floats, of_module, quantized},
};
use octet_tensor::{Activations, Dtype, Matrix, QMatrix, QuantRows, Result, Scheme, Tensor, WeightScheme};
use std::ops::Range;

/// How weights are represented. The tool's own rounding of activations, except of outlier columns, is not repeated.
pub(crate) const SCHEME: Scheme = Scheme { weights: WeightScheme::W8, activations: Activations::Exact };

struct Stored {
    module: String,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
}

/// The matrix of a module.
pub(crate) fn int8(module: &str, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    let scales = of_floats(required(&format!("{module}.SCB"), lookup)?, &[rows])?;
    if let Some(format) = lookup(&format!("{module}.weight_format"))?
        && format.bytes().iter().any(|&byte| byte != 0)
    {
        let what = "is the layout of a GPU's kernels, expected 0 (row major); save the model again with a recent bitsandbytes";
        return Err(malformed(format.name(), what));
    }
    Ok(quantized(module, Stored { module: module.into(), rows, cols, codes, scales }))
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        SCHEME
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len()
    }

    fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.codes.bytes().slice(range.start * self.cols..range.end * self.cols) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let codes = self.codes.element_bytes(range.start * self.cols..range.end * self.cols).iter().map(|&b| b as i8).collect();
        let mut scales = vec![0.0; range.len()];
        self.scales.read_f32(range.start, &mut scales)?;
        scales.iter_mut().for_each(|scale| *scale /= 127.0);
        of_module(&self.module, QMatrix::new(range.len(), self.cols, SCHEME.weights, codes, scales, Dtype::F32, vec![]))
    }
}
