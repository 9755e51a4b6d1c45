//! Which quantized module is stored how, and turning a module into a matrix.

use super::{Entry, find};
use crate::{
    Error, Result, compressed_tensors,
    quantization::{CompressedTensors, Float8Scale, Layout, Quantization},
};
use octet_tensor::{Dtype, FloatMatrix, Matrix, Scheme, Tensor};
use std::collections::BTreeMap;

/// Looks a tensor up by name.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> octet_tensor::Result<Option<Tensor>>;

/// The block of a block-FP8 checkpoint that does not say (DeepSeek-V3 technical report, section 3.3.2).
const FP8_BLOCK: [usize; 2] = [128, 128];

/// The layout of every module that is not plain floats.
#[derive(Clone, Debug)]
pub(super) struct Modules {
    layouts: BTreeMap<String, Layout>,
    fp8_block: [usize; 2],
}

impl Modules {
    /// Finds the quantized modules among `entries` and what `quantization` says of each.
    pub(super) fn resolve(quantization: Option<&Quantization>, entries: &[Entry]) -> Result<Self> {
        let (ct, fp8_block) = match quantization {
            Some(Quantization::CompressedTensors(ct)) => (Some(ct), FP8_BLOCK),
            Some(Quantization::Fp8Block(block)) => (None, *block),
            None => (None, FP8_BLOCK),
        };
        let mut layouts = BTreeMap::new();
        for entry in entries {
            if let Some(module) = quantized_module(entry, entries) {
                layouts.insert(module.to_string(), layout(ct, module, entry)?);
            } else if entry.name.ends_with(".qweight") && quantization.is_none() {
                let what = "is missing, but the tensor is packed as GPTQ or AWQ do it; octet does not read those yet".into();
                return Err(Error::QuantizationConfig { key: entry.name.clone(), what });
            }
        }
        Ok(Self { layouts, fp8_block })
    }

    /// Schemes of the modules that are stored as integers.
    pub(super) fn integer_schemes(&self) -> BTreeMap<String, Scheme> {
        let scheme = |layout: &Layout| match layout {
            Layout::Packed(scheme) | Layout::Int8(scheme) => Some(*scheme),
            Layout::Float8(_) => None,
        };
        self.layouts.iter().filter_map(|(module, layout)| Some((module.clone(), scheme(layout)?))).collect()
    }

    /// The matrix of `module`, or `None` where nothing is stored for it.
    pub(super) fn matrix(&self, module: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Option<Matrix>> {
        match self.layouts.get(module) {
            Some(Layout::Packed(scheme)) => return compressed_tensors::packed(module, *scheme, lookup).map(Some),
            Some(Layout::Int8(scheme)) => return compressed_tensors::int8(module, *scheme, lookup).map(Some),
            Some(Layout::Float8(scale)) => return float8(module, *scale, lookup).map(Some),
            None => {}
        }
        let Some(weight) = lookup(&format!("{module}.weight"))? else { return Ok(None) };
        if weight.dtype() != Dtype::F8E4m3 {
            return FloatMatrix::dense(weight).map(Matrix::Float).map(Some);
        }
        let scale = required(&format!("{module}.weight_scale_inv"), lookup)?;
        let block = if scale.len() == 1 { None } else { Some(self.fp8_block) };
        fp8_blocks(weight, &scale, block).map(Some)
    }
}

/// The module an entry holds the codes of, when it is stored as compressed-tensors does it.
fn quantized_module<'a>(entry: &'a Entry, entries: &[Entry]) -> Option<&'a str> {
    if let Some(module) = entry.name.strip_suffix(".weight_packed") {
        return Some(module);
    }
    let module = entry.name.strip_suffix(".weight")?;
    let codes = matches!(entry.dtype, Dtype::I8 | Dtype::F8E4m3);
    (codes && find(entries, &format!("{module}.weight_scale")).is_some()).then_some(module)
}

fn layout(ct: Option<&CompressedTensors>, module: &str, entry: &Entry) -> Result<Layout> {
    let fail = |what: String| Err(Error::QuantizationConfig { key: module.into(), what });
    let Some(ct) = ct else {
        return fail(format!("is stored quantized ({} of {}), but the config describes no compressed-tensors", entry.name, entry.dtype));
    };
    match (ct.layout(module), entry.name.ends_with(".weight_packed"), entry.dtype) {
        (Some(layout @ Layout::Packed(_)), true, _) => Ok(layout),
        (Some(layout @ Layout::Int8(_)), false, Dtype::I8) => Ok(layout),
        (Some(layout @ Layout::Float8(_)), false, Dtype::F8E4m3) => Ok(layout),
        (Some(layout), ..) => fail(format!("should be stored as {layout:?}, but {} holds {}", entry.name, entry.dtype)),
        (None, ..) => fail(format!("is stored quantized ({}), but no config group targets it", entry.name)),
    }
}

/// The tensor `name`, which must exist.
pub(crate) fn required(name: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Tensor> {
    lookup(name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.into() })
}

fn float8(module: &str, scale: Float8Scale, lookup: Lookup<'_>) -> octet_tensor::Result<Matrix> {
    let weight = required(&format!("{module}.weight"), lookup)?;
    let stored = required(&format!("{module}.weight_scale"), lookup)?;
    let block = match scale {
        Float8Scale::Tensor => None,
        Float8Scale::Channel => Some([1, weight.dims2()?.1]),
        Float8Scale::Block(block) => Some(block),
    };
    fp8_blocks(weight, &stored, block)
}

/// FP8 weights with a scale for each `block` (`None`: one for the whole), however many dimensions the scales have.
fn fp8_blocks(weight: Tensor, scale: &Tensor, block: Option<[usize; 2]>) -> octet_tensor::Result<Matrix> {
    let (rows, cols) = weight.dims2()?;
    let block = block.unwrap_or([rows, cols]).map(|n| n.max(1));
    let shape = vec![rows.div_ceil(block[0]), cols.div_ceil(block[1])];
    // One scale a row is written both as [rows] and as [rows, 1].
    let flat = scale.shape().len() < 2 && scale.len() == shape.iter().product::<usize>();
    let scale = if flat { Tensor::new(scale.name(), scale.dtype(), shape, scale.bytes().clone())? } else { scale.clone() };
    FloatMatrix::fp8_block(weight, scale, block).map(Matrix::Float)
}
