//! Which quantized module is stored how, and turning a module into a matrix.

use super::{Entry, find};
use crate::{
    Error, Result, awq, bitsandbytes, compressed_tensors, fp4, gguf, gptq, mlx, npz,
    quantization::{CompressedTensors, Float8Scale, Layout, Quantization},
    torchao,
};
use octet_tensor::{Dtype, FloatMatrix, InputRounding, Matrix, Scheme, StoredQuant, Tensor};
use std::{collections::BTreeMap, sync::Arc};

/// Looks a tensor up by name.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> octet_tensor::Result<Option<Tensor>>;

/// The block of a block-FP8 checkpoint that does not say (DeepSeek-V3 technical report, section 3.3.2).
const FP8_BLOCK: [usize; 2] = [128, 128];

/// How every module that is not plain floats is stored.
#[derive(Clone, Debug)]
pub(super) struct Modules {
    stored: BTreeMap<String, Form>,
    fp8_block: [usize; 2],
}

/// How a module is stored.
#[derive(Clone, Debug)]
enum Form {
    /// As compressed-tensors; where inputs have an order of their own, floats are made of it.
    CompressedTensors(Layout, bool),
    Gptq(gptq::Shape),
    Awq(Scheme),
    Int8(InputRounding),
    Table(bitsandbytes::QuantState),
    Mlx(mlx::Shape),
    TorchAo(Scheme),
    Npz(Scheme),
    Gguf(Arc<gguf::Bound>),
}

impl Form {
    /// The scheme in which kernels run it; `None` where it is decoded to floats.
    fn scheme(&self) -> Option<Scheme> {
        match self {
            Self::CompressedTensors(Layout::Packed(scheme) | Layout::Int8(scheme), false) => Some(*scheme),
            Self::CompressedTensors(Layout::Mxfp4, _) => Some(fp4::scheme(true)),
            Self::CompressedTensors(Layout::Nvfp4, _) => Some(fp4::scheme(false)),
            Self::CompressedTensors(..) | Self::Table(_) => None,
            Self::Gptq(shape) => (!shape.ordered).then_some(shape.scheme),
            Self::Awq(scheme) | Self::TorchAo(scheme) | Self::Npz(scheme) => Some(*scheme),
            Self::Gguf(bound) => bound.scheme(),
            Self::Int8(_) => Some(bitsandbytes::INT8),
            Self::Mlx(shape) => (shape.form == mlx::Form::Mxfp4).then_some(fp4::scheme(true)),
        }
    }

    /// What is decoded to floats, in words.
    fn decoded(&self) -> Option<String> {
        let ordered = |scheme: &Scheme| format!("{} in activation order", scheme.weights);
        match self {
            Self::CompressedTensors(Layout::Float8(..), _) => Some("FP8".into()),
            Self::CompressedTensors(Layout::Packed(scheme) | Layout::Int8(scheme), true) => Some(ordered(scheme)),
            Self::Gptq(shape) if shape.ordered => Some(ordered(&shape.scheme)),
            Self::Table(state) => Some(format!("{}, blocks of {}", state.quant_type.to_uppercase(), state.blocksize)),
            Self::Gguf(bound) if bound.kind.dtype().is_none() && bound.scheme().is_none() => Some(bound.kind.name().into()),
            Self::Mlx(shape) if shape.form == mlx::Form::Affine => {
                Some(format!("{} bits with a float offset, groups of {}", shape.bits.get(), shape.group))
            }
            _ => None,
        }
    }

    fn matrix(&self, module: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Matrix> {
        match self {
            Self::CompressedTensors(Layout::Packed(scheme), _) => compressed_tensors::packed(module, *scheme, lookup),
            Self::CompressedTensors(Layout::Int8(scheme), _) => compressed_tensors::int8(module, *scheme, lookup),
            Self::CompressedTensors(Layout::Float8(scale, inputs), _) => {
                Ok(Matrix::Float(float8(module, *scale, lookup)?.with_inputs(*inputs)))
            }
            Self::CompressedTensors(Layout::Mxfp4, _) => compressed_tensors::mxfp4(module, lookup),
            Self::CompressedTensors(Layout::Nvfp4, _) => compressed_tensors::nvfp4(module, lookup),
            Self::Gptq(shape) => gptq::matrix(module, *shape, lookup),
            Self::Awq(scheme) => awq::matrix(module, *scheme, lookup),
            Self::Int8(inputs) => bitsandbytes::int8(module, *inputs, lookup),
            Self::Table(state) => bitsandbytes::table(module, state, lookup),
            Self::Mlx(shape) => mlx::matrix(module, *shape, lookup),
            Self::TorchAo(scheme) => torchao::matrix(module, *scheme, lookup),
            Self::Npz(scheme) => npz::matrix(module, *scheme, lookup),
            Self::Gguf(bound) => bound.matrix(module),
        }
    }
}

impl Form {
    /// The codes of a module whose inputs are grouped in an order of their own.
    fn in_order(&self, module: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Option<StoredQuant>> {
        match self {
            Self::Gptq(shape) if shape.ordered => gptq::codes(module, *shape, lookup).map(Some),
            Self::CompressedTensors(Layout::Packed(scheme), true) => compressed_tensors::codes(module, *scheme, lookup).map(Some),
            _ => Ok(None),
        }
    }
}

impl Modules {
    /// Finds the quantized modules among `entries` and what `quantization` says of each.
    pub(super) fn resolve(quantization: Option<&Quantization>, entries: &[Entry]) -> Result<Self> {
        let lookup = |name: &str| find(entries, name).map(Entry::tensor).transpose();
        let mut stored = BTreeMap::new();
        for entry in entries {
            if let Some((module, form)) = form(quantization, entry, entries, &lookup)? {
                stored.insert(module.to_string(), form);
            }
        }
        if let Some(quantization) = quantization.filter(|quantization| stored.is_empty() && quantization.names_its_tensors()) {
            let what =
                format!("is {}, but no tensor is stored that way; config.json and weights do not belong together", quantization.method());
            return Err(Error::QuantizationConfig { key: "quant_method".into(), what });
        }
        let fp8_block = if let Some(Quantization::Fp8Block(block)) = quantization { *block } else { FP8_BLOCK };
        Ok(Self { stored, fp8_block })
    }

    /// The modules of a GGUF file that are not plain matrices of floats.
    pub(super) fn bound(bound: &[gguf::Bound]) -> Self {
        let named = |bound: &gguf::Bound| {
            let module = bound.name.strip_suffix(".weight").filter(|_| bound.is_stored_otherwise())?;
            Some((module.to_string(), Form::Gguf(Arc::new(bound.clone()))))
        };
        Self { stored: bound.iter().filter_map(named).collect(), fp8_block: FP8_BLOCK }
    }

    /// Leaves a module to the plain tensor of its name.
    pub(super) fn forget(&mut self, module: &str) {
        self.stored.remove(module);
    }

    /// Whether a module is stored in a form of its own.
    pub(super) fn holds(&self, module: &str) -> bool {
        self.stored.contains_key(module)
    }

    /// Schemes of the modules that kernels run as codes.
    pub(super) fn integer_schemes(&self) -> BTreeMap<String, Scheme> {
        self.stored.iter().filter_map(|(module, form)| Some((module.clone(), form.scheme()?))).collect()
    }

    /// What is stored of the modules that are decoded to floats, in words.
    pub(super) fn decoded(&self) -> BTreeMap<String, String> {
        self.stored.iter().filter_map(|(module, form)| Some((module.clone(), form.decoded()?))).collect()
    }

    /// The codes of a module whose inputs are grouped in an order of their own, and whose matrix therefore is floats.
    pub(super) fn in_order(&self, module: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Option<StoredQuant>> {
        self.stored.get(module).map_or(Ok(None), |form| form.in_order(module, lookup))
    }

    /// The matrix of `module`, or `None` where nothing is stored for it.
    pub(super) fn matrix(&self, module: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Option<Matrix>> {
        if let Some(form) = self.stored.get(module) {
            return form.matrix(module, lookup).map(Some);
        }
        let Some(weight) = lookup(&format!("{module}.weight"))? else { return Ok(None) };
        if weight.dtype() != Dtype::F8E4m3 {
            return FloatMatrix::dense(weight).map(Matrix::Float).map(Some);
        }
        let scale = required(&format!("{module}.weight_scale_inv"), lookup)?;
        let block = if scale.len() == 1 { None } else { Some(self.fp8_block) };
        fp8_blocks(weight, &scale, block).map(|matrix| Some(Matrix::Float(matrix)))
    }
}

/// The module that `entry` holds the codes of and how it is stored; `None` for every other tensor.
fn form<'a>(
    quantization: Option<&Quantization>,
    entry: &'a Entry,
    entries: &[Entry],
    lookup: Lookup<'_>,
) -> Result<Option<(&'a str, Form)>> {
    if let Some(module) = quantized_module(entry, entries) {
        let ct = if let Some(Quantization::CompressedTensors(ct)) = quantization { Some(ct) } else { None };
        let layout = layout(ct, module, entry)?;
        let ordered = find(entries, &format!("{module}.weight_g_idx")).is_some() && is_ordered(module, layout, lookup)?;
        return Ok(Some((module, Form::CompressedTensors(layout, ordered))));
    }
    let ends = |suffix: &str| entry.name.strip_suffix(suffix);
    Ok(match quantization {
        Some(Quantization::Gptq(config)) => match ends(".qweight") {
            Some(module) => Some((module, Form::Gptq(gptq::layout(module, config, lookup)?))),
            None => None,
        },
        Some(Quantization::Awq(scheme)) => ends(".qweight").map(|module| (module, Form::Awq(*scheme))),
        Some(Quantization::Bitsandbytes(inputs)) => match (ends(".SCB"), entry.name.split_once(bitsandbytes::STATE)) {
            (Some(module), _) => Some((module, Form::Int8(*inputs))),
            (_, Some((module, kind))) => Some((module, Form::Table(bitsandbytes::quant_state(module, kind, lookup)?))),
            _ => None,
        },
        Some(Quantization::Mlx(config)) => match ends(".scales") {
            Some(module) => Some((module, Form::Mlx(config.shape(module)?))),
            None => None,
        },
        Some(Quantization::TorchAo(config)) => match ends(torchao::CODES) {
            Some(module) => Some((module, Form::TorchAo(torchao::layout(module, config, lookup)?))),
            None => None,
        },
        Some(Quantization::Npz(config)) => match ends(npz::CODES) {
            Some(module) => Some((module, Form::Npz(config.scheme(module)?))),
            None => None,
        },
        None if ends(".qweight").is_some() => {
            let what = "is packed as GPTQ or AWQ do it, but there is no quantization_config; download config.json again".into();
            return Err(Error::QuantizationConfig { key: entry.name.clone(), what });
        }
        _ => None,
    })
}

/// Whether a `pack-quantized` module's inputs are grouped in an order of their own.
fn is_ordered(module: &str, layout: Layout, lookup: Lookup<'_>) -> Result<bool> {
    let Layout::Packed(scheme) = layout else { return Ok(false) };
    let cols = required(&format!("{module}.weight_g_idx"), lookup)?.len();
    Ok(compressed_tensors::own_order(module, scheme, cols, lookup)?.is_some())
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
        (Some(layout @ Layout::Packed(_)), true, Dtype::I32) => Ok(layout),
        (Some(layout @ (Layout::Mxfp4 | Layout::Nvfp4)), true, Dtype::U8) => Ok(layout),
        (Some(layout @ Layout::Int8(_)), false, Dtype::I8) => Ok(layout),
        (Some(layout @ Layout::Float8(..)), false, Dtype::F8E4m3) => Ok(layout),
        (Some(layout), ..) => fail(format!("should be stored as {layout:?}, but {} holds {}", entry.name, entry.dtype)),
        (None, ..) => fail(format!("is stored quantized ({}), but no config group targets it", entry.name)),
    }
}

/// The tensor `name`, which must exist.
pub(crate) fn required(name: &str, lookup: Lookup<'_>) -> octet_tensor::Result<Tensor> {
    lookup(name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.into() })
}

fn float8(module: &str, scale: Float8Scale, lookup: Lookup<'_>) -> octet_tensor::Result<FloatMatrix> {
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
fn fp8_blocks(weight: Tensor, scale: &Tensor, block: Option<[usize; 2]>) -> octet_tensor::Result<FloatMatrix> {
    let (rows, cols) = weight.dims2()?;
    let block = block.unwrap_or([rows, cols]).map(|n| n.max(1));
    let shape = vec![rows.div_ceil(block[0]), cols.div_ceil(block[1])];
    // One scale a row is written both as [rows] and as [rows, 1].
    let flat = scale.shape().len() < 2 && scale.len() == shape.iter().product::<usize>();
    let scale = if flat { Tensor::new(scale.name(), scale.dtype(), shape, scale.bytes().clone())? } else { scale.clone() };
    FloatMatrix::fp8_block(weight, scale, block)
}
