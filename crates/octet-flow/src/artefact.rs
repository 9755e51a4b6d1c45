//! The output folder: weights as compressed-tensors, configs, and everything else byte for byte.

use crate::{Error, Result};
use octet_formats::{
    compressed_tensors,
    safetensors::{TensorSpec, Writer},
    Folder,
};
use octet_quant::{QuantSink, SinkError};
use octet_tensor::{Dtype, QMatrix, Scheme, Tensor};
use serde_json::{json, Value};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// Largest shard written; a model below it is one file.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Files of a model folder that hold the weights or what octet writes itself: everything else is copied byte for byte.
const OWN_FILES: [&str; 5] = ["config.json", "model.safetensors.index.json", "quantization_config.json", "validation_report.json", "README.md"];

/// What becomes of a stored tensor in the artefact.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// A quantized module `[rows, cols]`.
    Quantized { module: String, rows: usize, cols: usize, scheme: Scheme, scale_dtype: Dtype },
    /// A tensor that stays as it is.
    Kept { name: String, dtype: Dtype, shape: Vec<usize> },
}

/// Receives quantized rows and kept tensors and writes them where they belong.
pub(crate) struct Artefact {
    writer: Writer,
    quantized: HashMap<String, Scheme>,
}

impl Artefact {
    /// Creates the weight files in `dir`, with room for every line.
    pub(crate) fn create(dir: &Path, lines: &[Line]) -> Result<Self> {
        let (mut specs, mut quantized) = (vec![], HashMap::new());
        for line in lines {
            match line {
                Line::Quantized { module, rows, cols, scheme, scale_dtype } => {
                    specs.extend(compressed_tensors::tensor_specs(module, *rows, *cols, *scheme, *scale_dtype));
                    quantized.insert(module.clone(), *scheme);
                }
                Line::Kept { name, dtype, shape } => specs.push(TensorSpec { name: name.clone(), dtype: *dtype, shape: shape.clone() }),
            }
        }
        Ok(Self { writer: Writer::create(dir, specs, MAX_SHARD_BYTES, &BTreeMap::new())?, quantized })
    }

    /// Checks that nothing is missing and brings the weights to disk.
    pub(crate) fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }
}

impl QuantSink for Artefact {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> std::result::Result<(), SinkError> {
        let scheme = *self.quantized.get(module).ok_or_else(|| format!("{module} was not planned as quantized"))?;
        for piece in compressed_tensors::encode_rows(module, q, first_row, rows, scheme)? {
            self.writer.write(&piece.tensor, piece.offset, &piece.bytes)?;
        }
        Ok(())
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> std::result::Result<(), SinkError> {
        Ok(self.writer.write(name, 0, tensor.bytes())?)
    }
}

/// Writes config.json (the original's with a quantization config in place of any it had) and copies the tokenizer, template
/// and generation files byte for byte.
pub(crate) fn write_configs(dir: &Path, input: &Folder, config: &Value, lines: &[Line], kept_linears: &[String]) -> Result<()> {
    let modules: Vec<(String, Scheme)> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Quantized { module, scheme, .. } => Some((module.clone(), *scheme)),
            Line::Kept { .. } => None,
        })
        .collect();
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
        if !modules.is_empty() {
            fields.insert("quantization_config".into(), compressed_tensors::quantization_config(&modules, kept_linears));
        }
    }
    write_json(&dir.join("config.json"), &config)?;
    for (name, bytes) in companions(input)? {
        fs::write(dir.join(&name), &*bytes).map_err(Error::write(dir.join(name)))?;
    }
    Ok(())
}

/// The files of `input` that are neither weights nor written by octet, with their bytes.
pub(crate) fn companions(input: &Folder) -> Result<Vec<(String, octet_tensor::Bytes)>> {
    const KINDS: [&str; 6] = [".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"];
    let mut found = vec![];
    for (name, _) in input.files()? {
        let licence = ["LICENSE", "NOTICE"].iter().any(|stem| name.starts_with(stem));
        let wanted = licence || KINDS.iter().any(|end| name.ends_with(end));
        if wanted && !name.starts_with('.') && !OWN_FILES.contains(&name.as_str()) && !name.ends_with(".index.json") {
            found.extend(input.read(&name)?.map(|bytes| (name, bytes)));
        }
    }
    Ok(found)
}

/// Writes a JSON file, two spaces deep, as the ecosystem's own tools do.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?;
    text.push('\n');
    fs::write(path, text).map_err(Error::write(path.to_path_buf()))
}

/// Bytes of everything in `dir`.
pub(crate) fn folder_bytes(dir: &Path) -> Result<u64> {
    let entries = fs::read_dir(dir).map_err(Error::write(dir.to_path_buf()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.metadata().ok()).filter(fs::Metadata::is_file).map(|meta| meta.len()).sum())
}

/// quantization_config.json: what was done, in octet's own words.
pub(crate) fn describe(label: &str, portable: bool, plan_digest: &str, lines: &[Line], calibration: &Value, seed: u64) -> Value {
    let mut schemes: BTreeMap<String, usize> = BTreeMap::new();
    let mut group_size = None;
    for line in lines {
        if let Line::Quantized { scheme, cols, .. } = line {
            *schemes.entry(scheme.to_string()).or_default() += 1;
            group_size = group_size.or(Some(scheme.weights.group_size(*cols)).filter(|size| size != cols));
        }
    }
    json!({
        "octet_version": env!("CARGO_PKG_VERSION"),
        "format": "compressed-tensors",
        "scheme": label,
        "method": "rtn",
        "group_size": group_size,
        "modules_by_scheme": schemes,
        "portable": portable,
        "plan_sha256": plan_digest,
        "calibration": calibration,
        "seed": seed,
    })
}
