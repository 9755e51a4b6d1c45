//! Modules of octet's archive as matrices: `codes` I8 `[rows, cols]`, `scale` F32 `[rows, groups]`, `zero` I8 where asymmetric.

use crate::{
    Result as FormatResult,
    checkpoint::{Lookup, required},
    quantization::bad,
    stored::{check_rows, of_dtype, of_floats, of_module, quantized},
};
use octet_tensor::{Dtype, Matrix, QMatrix, QuantRows, Result, Scheme, Tensor};
use serde_json::Value;
use std::{collections::BTreeMap, ops::Range};

/// The scheme of every module.
#[derive(Clone, Debug)]
pub struct Config(BTreeMap<String, Scheme>);

impl Config {
    /// Reads `quantization_config`.
    pub(crate) fn read(raw: &Value) -> FormatResult<Self> {
        let Some(modules) = raw.get("modules").and_then(Value::as_object) else { return bad("modules", "is missing or not an object") };
        let scheme = |(module, value): (&String, &Value)| match value.as_str().map(str::parse::<Scheme>) {
            Some(Ok(scheme)) => Ok((module.clone(), scheme)),
            Some(Err(e)) => bad("modules", format!("holds for {module} what is no scheme: {e}")),
            None => bad("modules", format!("holds {value} for {module}, expected a scheme")),
        };
        Ok(Self(modules.iter().map(scheme).collect::<FormatResult<_>>()?))
    }

    /// The scheme of `module`.
    pub(crate) fn scheme(&self, module: &str) -> FormatResult<Scheme> {
        self.0.get(module).map_or_else(|| bad(module, "has codes in the archive, but no scheme in config.json"), |scheme| Ok(*scheme))
    }
}

struct Stored {
    module: String,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

/// The matrix of a module.
pub(crate) fn matrix(module: &str, scheme: Scheme, lookup: Lookup<'_>) -> Result<Matrix> {
    let codes = required(&format!("{module}.codes"), lookup)?;
    let (rows, cols) = of_dtype(&codes, Dtype::I8)?.dims2()?;
    let groups = scheme.weights.groups(cols);
    let scales = of_floats(required(&format!("{module}.scale"), lookup)?, &[rows, groups])?;
    let zeros = if scheme.weights.is_asymmetric() { Some(required(&format!("{module}.zero"), lookup)?) } else { None };
    if let Some(zeros) = &zeros
        && of_dtype(zeros, Dtype::I8)?.shape() != [rows, groups]
    {
        return Err(zeros.wrong_shape(format!("[{rows}, {groups}]")));
    }
    Ok(quantized(module, Stored { module: module.into(), scheme, rows, cols, codes, scales, zeros }))
}

fn signed(tensor: &Tensor, range: Range<usize>) -> Vec<i8> {
    tensor.element_bytes(range).iter().map(|&b| b as i8).collect()
}

impl QuantRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn stored_bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.bytes().len() + self.zeros.as_ref().map_or(0, |zeros| zeros.bytes().len())
    }

    fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.codes.bytes().slice(range.start * self.cols..range.end * self.cols) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>) -> Result<QMatrix> {
        check_rows(&self.module, &range, self.rows)?;
        let groups = self.scheme.weights.groups(self.cols);
        let within = range.start * groups..range.end * groups;
        let mut scales = vec![0.0; within.len()];
        self.scales.read_f32(within.start, &mut scales)?;
        let zeros = self.zeros.as_ref().map_or(vec![], |zeros| signed(zeros, within));
        let codes = signed(&self.codes, range.start * self.cols..range.end * self.cols);
        of_module(&self.module, QMatrix::new(range.len(), self.cols, self.scheme.weights, codes, scales, Dtype::F32, zeros))
    }
}
