//! LLM.int8 weights: w = code · SCB / 127, one scale a row.

use crate::{
    checkpoint::{Lookup, required},
    quantization::bad,
    stored::{check_rows, malformed, of_dtype, of_floats, of_module, quantized},
};
use octet_tensor::{Activations, Dtype, InputRounding, Limit, Matrix, QMatrix, QuantRows, Result, Scheme, Tensor, WeightScheme};
use serde_json::Value;
use std::ops::Range;

/// How weights are represented. Inputs are rounded as the tool does it ([`inputs`]) and multiplied as floats.
pub(crate) const SCHEME: Scheme = Scheme { weights: WeightScheme::W8, activations: Activations::Exact };

/// How inputs are rounded: to 8 bits, those excepted that reach `llm_int8_threshold` (0: none). The tool excepts the whole column of an
/// outlier in all tokens of a call; here, as there where tokens come one by one, every token is by itself.
pub(crate) fn inputs(raw: &Value) -> crate::Result<InputRounding> {
    const KEY: &str = "llm_int8_threshold";
    let limit = match raw.get(KEY).filter(|value| !value.is_null()) {
        None => Some(Limit::USUAL),
        Some(value) => match value.as_f64() {
            Some(0.0) => None,
            Some(limit) if let Some(limit) = Limit::new(limit) => Some(limit),
            _ => return bad(KEY, format!("is {value}, expected 0 or a number of hundredths above it")),
        },
    };
    Ok(InputRounding::Int8(limit))
}

struct Stored {
    module: String,
    inputs: InputRounding,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
}

/// The matrix of a module.
pub(crate) fn int8(module: &str, inputs: InputRounding, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.weight"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    let scales = of_floats(required(&format!("{module}.SCB"), lookup)?, &[rows])?;
    if let Some(format) = lookup(&format!("{module}.weight_format"))?
        && format.bytes().iter().any(|&byte| byte != 0)
    {
        let what = "is the layout of a GPU's kernels, expected 0 (row major); save the model again with a recent bitsandbytes";
        return Err(malformed(format.name(), what));
    }
    Ok(quantized(module, Stored { module: module.into(), inputs, rows, cols, codes, scales }))
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        SCHEME
    }

    fn inputs(&self) -> Option<InputRounding> {
        Some(self.inputs)
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
