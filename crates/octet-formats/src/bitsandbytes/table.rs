//! 4-bit weights that index a table of sixteen values: w = table\[nibble\] · absmax of its block.

use super::STATE;
use crate::{
    checkpoint::{Lookup, required},
    stored::{decoded, malformed, of_dtype, of_floats},
};
use octet_tensor::{Dtype, FloatRows, Matrix, Result, Tensor};
use serde::Deserialize;
use std::ops::Range;

/// The JSON that lies beside a module's nibbles.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct QuantState {
    pub(crate) quant_type: String,
    pub(crate) blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

struct Stored {
    module: String,
    rows: usize,
    cols: usize,
    block: usize,
    table: [f32; 16],
    nibbles: Tensor,
    scales: Scales,
}

/// The absolute maxima of the blocks.
enum Scales {
    Plain(Tensor),
    /// Quantized themselves: table\[index\] · absmax of a block of blocks + offset.
    Nested {
        index: Tensor,
        table: Vec<f32>,
        absmax: Tensor,
        block: usize,
        offset: f32,
    },
}

/// Reads the state of a module whose table is of kind `kind`.
pub(crate) fn quant_state(module: &str, kind: &str, lookup: Lookup<'_>) -> Result<QuantState> {
    let name = format!("{module}{STATE}{kind}");
    let state = required(&name, lookup)?;
    let state: QuantState = serde_json::from_slice(state.bytes())
        .map_err(|e| malformed(&name, format!("is not the JSON it should be ({e}); download it again")))?;
    if state.blocksize == 0 || state.nested_blocksize == Some(0) {
        return Err(malformed(&name, "says that a block is empty; the file is damaged, download it again"));
    }
    Ok(state)
}

/// The matrix of a module.
pub(crate) fn table(module: &str, state: &QuantState, lookup: Lookup<'_>) -> Result<Matrix> {
    let name = format!("{module}.weight");
    let nibbles = required(&name, lookup)?;
    let elements = state.shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    let (&[rows, cols], Some(elements)) = (&state.shape[..], elements) else {
        return Err(malformed(&name, format!("has the shape {:?}, expected [outputs, inputs]", state.shape)));
    };
    // Any element type may hold the nibbles (`bnb_4bit_quant_storage`).
    if nibbles.bytes().len() != elements.div_ceil(2) {
        return Err(malformed(&name, format!("has {} bytes, expected half of {rows}x{cols}", nibbles.bytes().len())));
    }
    let part = |suffix: &str| required(&format!("{name}.{suffix}"), lookup);
    let table = of_floats(part("quant_map")?, &[16])?.to_f32()?;
    let blocks = elements.div_ceil(state.blocksize);
    let absmax = part("absmax")?;
    let scales = match state.nested_blocksize {
        None => Scales::Plain(of_floats(absmax, &[blocks])?),
        Some(block) => {
            if of_dtype(&absmax, Dtype::U8)?.shape() != [blocks] {
                return Err(absmax.wrong_shape(format!("[{blocks}]")));
            }
            let table = of_floats(part("nested_quant_map")?, &[256])?.to_f32()?;
            let nested = of_floats(part("nested_absmax")?, &[blocks.div_ceil(block)])?;
            Scales::Nested { index: absmax, table, absmax: nested, block, offset: state.nested_offset.unwrap_or(0.0) }
        }
    };
    let table = std::array::from_fn(|i| table.get(i).copied().unwrap_or_default());
    Ok(decoded(module, Stored { module: module.into(), rows, cols, block: state.blocksize, table, nibbles, scales }))
}

impl Scales {
    /// The absolute maxima of blocks `range`.
    fn read(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let mut out = vec![0.0; range.len()];
        match self {
            Self::Plain(tensor) => tensor.read_f32(range.start, &mut out)?,
            Self::Nested { index, table, absmax, block, offset } => {
                let first = range.start / block;
                let mut outer = vec![0.0; range.end.div_ceil(*block).saturating_sub(first)];
                absmax.read_f32(first, &mut outer)?;
                for (i, (value, &code)) in range.clone().zip(out.iter_mut().zip(index.element_bytes(range))) {
                    *value = table[usize::from(code)] * outer[i / block - first] + offset;
                }
            }
        }
        Ok(out)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(tensor) => tensor.bytes().len(),
            Self::Nested { index, absmax, .. } => index.bytes().len() + absmax.bytes().len(),
        }
    }
}

impl FloatRows for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn stored_bytes(&self) -> usize {
        self.nibbles.bytes().len() + self.scales.bytes()
    }

    fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.nibbles.bytes().slice(range.start * self.cols / 2..range.end * self.cols / 2) {
            bytes.release();
        }
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let elements = range.start * self.cols..range.end * self.cols;
        let first = elements.start / self.block;
        let scales = self.scales.read(first..elements.end.div_ceil(self.block))?;
        if let Some(bad) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(malformed(&self.module, format!("has the block maximum {bad}; the file is damaged, download it again")));
        }
        let bytes = self.nibbles.bytes();
        for (value, at) in out.iter_mut().zip(elements) {
            // The earlier of two values is in the high nibble.
            let nibble = if at % 2 == 0 { bytes[at / 2] >> 4 } else { bytes[at / 2] & 15 };
            *value = self.table[usize::from(nibble)] * scales[at / self.block - first];
        }
        Ok(())
    }
}
