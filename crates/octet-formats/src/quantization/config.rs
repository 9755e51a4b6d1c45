//! Reading `quantization_config`.

use super::{
    Target,
    args::{Args, bad},
};
use crate::{
    Error, Result, awq, bitsandbytes,
    compressed_tensors::{SCALES_FORMAT, TABLE_FORMAT},
    gptq, mlx, npz, torchao,
};
use octet_tensor::{Activations, InputRounding, Scheme};
use serde::Deserialize;
use serde_json::Value;

/// What kind of quantized checkpoint a config describes.
#[derive(Clone, Debug)]
pub enum Quantization {
    /// FP8 E4M3 weights with one scale a block (`quant_method: fp8`), a float source.
    Fp8Block([usize; 2]),
    /// compressed-tensors.
    CompressedTensors(CompressedTensors),
    /// GPTQ.
    Gptq(gptq::Config),
    /// AWQ in the gemm layout, one scheme for all modules.
    Awq(Scheme),
    /// bitsandbytes: what a module is, its tensors say; how inputs of 8-bit ones are rounded, the config.
    Bitsandbytes(InputRounding),
    /// MLX.
    Mlx(mlx::Config),
    /// TorchAO.
    TorchAo(torchao::Config),
    /// octet's archive of numpy arrays.
    Npz(npz::Config),
    /// Blocks of a GGUF file, which say themselves what they are.
    Gguf,
}

impl Quantization {
    /// The method's name as configs spell it.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Fp8Block(_) => "fp8",
            Self::CompressedTensors(_) => "compressed-tensors",
            Self::Gptq(_) => "gptq",
            Self::Awq(_) => "awq",
            Self::Bitsandbytes(_) => "bitsandbytes",
            Self::Mlx(_) => "mlx",
            Self::TorchAo(_) => "torchao",
            Self::Npz(_) => "octet-npz",
            Self::Gguf => "gguf",
        }
    }

    /// Whether every quantized module shows by the names of its tensors, so that a checkpoint without any is not one of these.
    pub(crate) fn names_its_tensors(&self) -> bool {
        !matches!(self, Self::Fp8Block(_) | Self::CompressedTensors(_) | Self::Gguf)
    }
}

/// A compressed-tensors config.
#[derive(Clone, Debug)]
pub struct CompressedTensors {
    /// Top-level `format`.
    pub format: String,
    groups: Vec<(Vec<Target>, Layout)>,
    ignore: Vec<Target>,
}

/// How a module's weights are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `weight_packed`: codes of 2 to 8 bits as a dense bit stream.
    Packed(Scheme),
    /// `weight` of one byte a code.
    Int8(Scheme),
    /// `weight` of FP8 numbers, and what inputs are rounded to.
    Float8(Float8Scale, Option<InputRounding>),
    /// `weight_packed` of E2M1 numbers under scales that are powers of two.
    Mxfp4,
    /// `weight_packed` of E2M1 numbers under E4M3 scales and one number for all.
    Nvfp4,
}

/// What shares a scale among FP8 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8Scale {
    /// The whole matrix.
    Tensor,
    /// A row.
    Channel,
    /// A block of rows and columns.
    Block([usize; 2]),
}

/// Quantization methods that octet knows by name but does not read.
const REFUSED: [(&str, &str); 6] = [
    ("hqq", "HQQ checkpoints are not read"),
    ("fbgemm_fp8", "FBGEMM's FP8 checkpoints are not read"),
    ("mxfp4", "MXFP4 checkpoints of this kind are not read (compressed-tensors and MLX are)"),
    ("aqlm", "AQLM checkpoints are not read"),
    ("auto-round", "AutoRound checkpoints are not read yet; export it as compressed-tensors or GPTQ"),
    ("quark", "Quark checkpoints are not read"),
];

/// The quantization a config.json describes, or `None` for a float checkpoint; the second value is the raw object.
///
/// # Errors
/// If the method is not one octet reads (by name), or its config is malformed or asks for something octet cannot run.
pub fn parse(config: &Value) -> Result<Option<(Quantization, Value)>> {
    let found = ["quantization_config", "compression_config"].iter().find_map(|key| {
        let nested = config.get("text_config").and_then(|text| text.get(key));
        config.get(key).or(nested).filter(|value| !value.is_null())
    });
    let mlx = config.get("quantization").filter(|q| q.get("bits").is_some());
    let Some(raw) = found.or(mlx) else { return Ok(None) };
    let method = raw.get("quant_method").and_then(Value::as_str);
    let quantization = match method {
        Some("fp8") => Quantization::Fp8Block(fp8_block(raw)?),
        Some("compressed-tensors" | "compressed_tensors") => Quantization::CompressedTensors(CompressedTensors::read(raw)?),
        Some("gptq") => Quantization::Gptq(gptq::Config::read(raw)?),
        Some("awq") => Quantization::Awq(awq::scheme(raw)?),
        Some("bitsandbytes") => Quantization::Bitsandbytes(bitsandbytes::inputs(raw)?),
        Some("octet-npz") => Quantization::Npz(npz::Config::read(raw)?),
        Some("torchao") => Quantization::TorchAo(torchao::Config::read(raw)?),
        Some(other) => return refuse(other),
        None if mlx.is_some() => Quantization::Mlx(mlx::Config::read(raw)?),
        None if raw.get("config_groups").is_some() => Quantization::CompressedTensors(CompressedTensors::read(raw)?),
        None => return bad("quant_method", "is missing, so nothing says how the weights are stored"),
    };
    Ok(Some((quantization, raw.clone())))
}

fn refuse<T>(method: &str) -> Result<T> {
    let known = REFUSED.iter().find(|row| row.0 == method).map(|row| row.1);
    let what = known
        .unwrap_or("octet does not know this method; it reads compressed-tensors, GPTQ, AWQ, bitsandbytes, MLX, TorchAO and block-FP8")
        .into();
    Err(Error::UnsupportedQuantization { method: method.into(), what })
}

fn fp8_block(raw: &Value) -> Result<[usize; 2]> {
    match raw.get("weight_block_size") {
        None | Some(Value::Null) => Ok([128, 128]),
        Some(value) => match <[usize; 2]>::deserialize(value) {
            Ok(block) if !block.contains(&0) => Ok(block),
            _ => bad("weight_block_size", format!("is {value}, expected two positive numbers such as [128, 128]")),
        },
    }
}

/// Whether transforms are rotations of every eight inputs.
fn is_turn(transforms: &Value) -> bool {
    let inputs = transforms.pointer("/config_groups/inputs");
    inputs.is_some_and(|inputs| inputs["type"] == "hadamard" && inputs["head_dim"] == 8 && inputs["apply"][0]["location"] == "input")
}

impl CompressedTensors {
    fn read(raw: &Value) -> Result<Self> {
        for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
            let used = raw.get(key).is_some_and(|value| match value {
                Value::Null => false,
                // Whoever reads the model's config knows the rotations of inputs that octet writes, and no others.
                Value::Object(_) if key == "transform_config" && is_turn(value) => false,
                Value::Object(map) => !map.is_empty() && map.get("format").and_then(Value::as_str) != Some("dense"),
                _ => true,
            });
            if used {
                let what = format!("its {key} changes the computation in a way that octet does not run");
                return Err(Error::UnsupportedQuantization { method: "compressed-tensors".into(), what });
            }
        }
        let format = raw.get("format").and_then(Value::as_str).unwrap_or("mixed-precision").to_string();
        let Some(groups) = raw.get("config_groups").and_then(Value::as_object) else {
            return bad("config_groups", "is missing or not an object of groups");
        };
        let groups = groups.iter().map(|(name, group)| read_group(name, group, &format)).collect::<Result<_>>()?;
        Ok(Self { format, groups, ignore: targets("ignore", raw.get("ignore"))? })
    }

    /// How the weights of `module` are laid out, or `None` where no group names it or it is ignored.
    pub fn layout(&self, module: &str) -> Option<Layout> {
        if self.ignore.iter().any(|target| target.closeness(module).is_some()) {
            return None;
        }
        let closeness = |targets: &[Target]| targets.iter().filter_map(|target| target.closeness(module)).min();
        let matching = self.groups.iter().filter_map(|(targets, layout)| Some((closeness(targets)?, *layout)));
        matching.min_by_key(|&(closeness, _)| closeness).map(|(_, layout)| layout)
    }
}

fn targets(key: &str, value: Option<&Value>) -> Result<Vec<Target>> {
    let list = match value {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(list)) => list,
        Some(other) => return bad(key, format!("is {other}, expected a list of module names")),
    };
    let parse = |value: &Value| value.as_str().map_or_else(|| bad(key, format!("holds {value}, expected a name")), Target::parse);
    list.iter().map(parse).collect()
}

fn read_group(name: &str, group: &Value, top_format: &str) -> Result<(Vec<Target>, Layout)> {
    let key = |field: &str| format!("config_groups.{name}.{field}");
    let given = |field: &str| group.get(field).filter(|value| !value.is_null());
    let targets = targets(&key("targets"), group.get("targets"))?;
    let Some(weights) = given("weights") else {
        return bad(&key("weights"), "is missing; octet runs no checkpoint that quantizes only activations");
    };
    if given("output_activations").is_some() {
        return bad(&key("output_activations"), "is set; octet does not run quantized outputs");
    }
    let weights = Args::read(&key("weights"), weights)?;
    let format = group.get("format").and_then(Value::as_str).unwrap_or(top_format);
    let scheme = || -> Result<Scheme> {
        let activations = given("input_activations").map(|value| Args::read(&key("input_activations"), value));
        let activations = activations.transpose()?.map(|args| args.activations(&key("input_activations")));
        let own = &key("weights");
        let weights = match format {
            TABLE_FORMAT => weights.levels(own)?,
            SCALES_FORMAT => weights.whole_scales(own)?,
            _ => weights.weights(own)?,
        };
        Ok(Scheme { weights, activations: activations.transpose()?.unwrap_or(Activations::Exact) })
    };
    let float8 = || -> Result<Layout> {
        let inputs = given("input_activations").map(|value| Args::read(&key("input_activations"), value)).transpose()?;
        let inputs = inputs.map(|args| args.float8_inputs(&key("input_activations"))).transpose()?.flatten();
        Ok(Layout::Float8(weights.float8(&key("weights"))?, inputs))
    };
    let layout = match format {
        "pack-quantized" | TABLE_FORMAT | SCALES_FORMAT => Layout::Packed(scheme()?),
        "int-quantized" => Layout::Int8(scheme()?),
        "float-quantized" => float8()?,
        "naive-quantized" if weights.is_float() => float8()?,
        "naive-quantized" => Layout::Int8(scheme()?),
        // What activations are rounded to is left out.
        "nvfp4-pack-quantized" => Layout::Nvfp4,
        "mxfp4-pack-quantized" => Layout::Mxfp4,
        other => {
            let what = format!("the format {other:?} is not read (pack-, int-, float-, nvfp4-pack- and mxfp4-pack-quantized are)");
            return Err(Error::UnsupportedQuantization { method: "compressed-tensors".into(), what });
        }
    };
    Ok((targets, layout))
}
