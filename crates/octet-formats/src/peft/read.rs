//! Reading an adapter's folder.

use super::{
    Adapter, CONFIG, LowRank, MLX, PEFT,
    config::{Config, refuse},
};
use crate::{Error, Folder, Result, safetensors::parse_header};
use octet_tensor::{Bytes, Tensor};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// What PEFT puts before the names of the base.
const PREFIX: &str = "base_model.model.";

/// Parts of modules that are being put together.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    magnitude: Option<Tensor>,
}

impl Adapter {
    /// Opens the adapter in `folder`, of PEFT or of MLX.
    ///
    /// # Errors
    /// If files are missing or damaged, or it is more than a low-rank adapter that octet understands.
    pub fn open(folder: &Folder) -> Result<Self> {
        let missing = |file: &str| Error::NoFile {
            folder: folder.describe(),
            file: file.into(),
            remedy: "give the folder that PEFT or mlx-lm saved the adapter in".into(),
        };
        let raw = folder.read(CONFIG)?.ok_or_else(|| missing(CONFIG))?;
        let raw: Value = serde_json::from_slice(&raw)
            .map_err(|e| Error::Json { file: format!("{}/{CONFIG}", folder.describe()), what: e.to_string() })?;
        if let Some(bytes) = folder.read(PEFT)? {
            return of_peft(tensors(folder, PEFT, &bytes)?, &Config::read(&raw)?);
        }
        let bytes = folder.read(MLX)?.ok_or_else(|| missing(PEFT))?;
        of_mlx(tensors(folder, MLX, &bytes)?, &raw)
    }
}

fn tensors(folder: &Folder, file: &str, bytes: &Bytes) -> Result<Vec<Tensor>> {
    let header = parse_header(bytes).map_err(|source| Error::Header { file: format!("{}/{file}", folder.describe()), source })?;
    let tensor = |info: crate::safetensors::TensorInfo| {
        let data = bytes.slice(info.range.clone()).ok_or_else(|| Error::Adapter(format!("{} reaches past the end", info.name)))?;
        Ok(Tensor::new(info.name, info.dtype, info.shape, data)?)
    };
    header.tensors.into_iter().map(tensor).collect()
}

fn of_peft(tensors: Vec<Tensor>, config: &Config) -> Result<Adapter> {
    let (mut parts, mut whole) = (BTreeMap::<String, Parts>::new(), BTreeMap::new());
    for tensor in tensors {
        let Some(name) = tensor.name().strip_prefix(PREFIX).map(str::to_string) else {
            return refuse(format!("{} does not begin with {PREFIX}", tensor.name()));
        };
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            parts.entry(module.into()).or_default().a = Some(tensor);
        } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
            parts.entry(module.into()).or_default().b = Some(tensor);
        } else if let Some(module) = name.strip_suffix(".lora_magnitude_vector").or(name.strip_suffix(".lora_magnitude_vector.weight")) {
            parts.entry(module.into()).or_default().magnitude = Some(tensor);
        } else if name.contains("lora_") {
            return refuse(format!(
                "{name} is a part that octet does not run (adapters of embeddings, biases of adapters); merge it with PEFT first"
            ));
        } else {
            let tensor = Tensor::new(name.as_str(), tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().clone())?;
            whole.insert(name, tensor);
        }
    }
    let low = |(module, parts): (String, Parts)| {
        let (Some(a), Some(b)) = (&parts.a, &parts.b) else { return refuse(format!("{module} has only one of lora_A and lora_B")) };
        let ([rank, inputs], [outputs, columns]) = (dims(a)?, dims(b)?);
        if rank != columns || rank == 0 {
            return refuse(format!("{module} has A {rank}x{inputs} and B {outputs}x{columns}, which do not fit together"));
        }
        let magnitude = parts.magnitude.as_ref().map(Tensor::to_f32).transpose()?;
        if magnitude.is_some() != config.dora || magnitude.as_ref().is_some_and(|m| m.len() != outputs) {
            return refuse(format!(
                "{module} has {} magnitudes for {outputs} outputs and use_dora {}",
                magnitude.map_or(0, |m| m.len()),
                config.dora
            ));
        }
        let low = LowRank { rank, a: a.to_f32()?, b: b.to_f32()?, scale: config.scale(&module, rank), magnitude };
        Ok((module, Arc::new(low)))
    };
    let modules = parts.into_iter().map(low).collect::<Result<_>>()?;
    Ok(Adapter { modules, whole, base: config.base.clone(), inputs_first: config.inputs_first })
}

fn of_mlx(tensors: Vec<Tensor>, raw: &Value) -> Result<Adapter> {
    match raw.get("fine_tune_type").and_then(Value::as_str) {
        None | Some("lora") => {}
        Some(other) => return refuse(format!("its fine_tune_type is {other}, octet reads lora")),
    }
    let scale = raw.get("lora_parameters").and_then(|p| p.get("scale")).and_then(Value::as_f64);
    let Some(scale) = scale else { return refuse("its lora_parameters have no scale") };
    let mut parts = BTreeMap::<String, Parts>::new();
    for tensor in tensors {
        let name = tensor.name().to_string();
        match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(module), _) => parts.entry(module.into()).or_default().a = Some(tensor),
            (_, Some(module)) => parts.entry(module.into()).or_default().b = Some(tensor),
            _ => return refuse(format!("{name} is no part of a low-rank adapter")),
        }
    }
    let low = |(module, parts): (String, Parts)| {
        let (Some(a), Some(b)) = (&parts.a, &parts.b) else { return refuse(format!("{module} has only one of lora_a and lora_b")) };
        let ([inputs, rank], [rows, outputs]) = (dims(a)?, dims(b)?);
        if rank != rows || rank == 0 {
            return refuse(format!("{module} has a {inputs}x{rank} and b {rows}x{outputs}, which do not fit together"));
        }
        let (a, b) = (transposed(&a.to_f32()?, inputs, rank), transposed(&b.to_f32()?, rank, outputs));
        Ok((module, Arc::new(LowRank { rank, a, b, scale: scale as f32, magnitude: None })))
    };
    let base = raw.get("model").and_then(Value::as_str).map(Into::into);
    let modules = parts.into_iter().map(low).collect::<Result<_>>()?;
    Ok(Adapter { modules, whole: BTreeMap::new(), base, inputs_first: false })
}

fn dims(tensor: &Tensor) -> Result<[usize; 2]> {
    let (rows, cols) = tensor.dims2()?;
    Ok([rows, cols])
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}
