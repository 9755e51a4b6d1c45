//! The output folder: weights as compressed-tensors, configs, and everything else byte for byte.

use crate::{Error, Result, write::hex};
use octet_formats::{
    Folder, compressed_tensors, packed,
    safetensors::{TensorSpec, Writer},
};
use octet_quant::{Action, Line, Plan, Sink, SinkError};
use octet_tensor::{Granularity, QMatrix, Scheme, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

/// Largest shard written; a model below it is one file.
pub(crate) const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What every family here calls its head.
pub(crate) const HEAD: &str = "lm_head";

/// Files of a model folder that hold the weights or what octet writes itself: everything else is copied byte for byte.
const OWN_FILES: [&str; 11] = [
    "config.json",
    "model.safetensors.index.json",
    "quantization_config.json",
    // Of a format that the input was exported to.
    "quantize_config.json",
    "model_metadata.json",
    "quantization_info.json",
    "tokenizer_info.json",
    "validation_report.json",
    "receipt.json",
    "decision_log.jsonl",
    "README.md",
];

/// Receives quantized rows and kept tensors and writes them where they belong.
pub(crate) struct Artefact {
    writer: Writer,
    quantized: HashMap<String, Scheme>,
    /// SHA-256 of what was written of each stored tensor since the last [`Artefact::sync`], where that is wanted.
    written: Option<BTreeMap<String, Sha256>>,
}

impl Artefact {
    /// Creates the weight files in `dir`, with room for every line; `resumable` ones can be read and gone on with before
    /// they are finished.
    pub(crate) fn create(dir: &Path, plan: &Plan, resumable: bool) -> Result<Self> {
        let mut writer = Writer::create(dir, specs(plan), MAX_SHARD_BYTES, &BTreeMap::new())?;
        if resumable {
            writer.write_index()?;
        }
        Ok(Self { writer, quantized: schemes(plan), written: resumable.then(BTreeMap::new) })
    }

    /// Goes on with files that were left unfinished; `finished` tensors are written.
    pub(crate) fn resume(dir: &Path, plan: &Plan, finished: &BTreeSet<String>) -> Result<Self> {
        let mut writer = Writer::resume(dir, specs(plan), MAX_SHARD_BYTES, &BTreeMap::new(), finished)?;
        writer.write_index()?;
        Ok(Self { writer, quantized: schemes(plan), written: Some(BTreeMap::new()) })
    }

    /// Opens files that are complete, to write what belongs to these modules, and tensors of these names, again.
    pub(crate) fn reopen(dir: &Path, plan: &Plan, again: &BTreeSet<String>) -> Result<Self> {
        let module = |name: &str| name.rsplit_once('.').is_some_and(|(module, _)| again.contains(module));
        let names = specs(plan).into_iter().map(|spec| spec.name);
        Self::resume(dir, plan, &names.filter(|name| !again.contains(name) && !module(name)).collect())
    }

    /// Brings what was written to disk and gives its digests, by tensor.
    pub(crate) fn sync(&mut self) -> Result<BTreeMap<String, String>> {
        self.writer.sync()?;
        let written = self.written.as_mut().map(std::mem::take).unwrap_or_default();
        Ok(written.into_iter().map(|(name, sha)| (name, hex(&sha.finalize()))).collect())
    }

    fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        if let Some(written) = &mut self.written {
            // Rows come in order, so that the pieces of a tensor do.
            written.entry(name.into()).or_default().update(bytes);
        }
        Ok(self.writer.write(name, offset, bytes)?)
    }

    /// Checks that nothing is missing and brings the weights to disk.
    pub(crate) fn finish(self) -> Result<()> {
        Ok(self.writer.finish()?)
    }
}

impl Sink for Artefact {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> std::result::Result<(), SinkError> {
        let scheme = *self.quantized.get(module).ok_or_else(|| format!("{module} was not planned as quantized"))?;
        for piece in compressed_tensors::encode_rows(module, q, first_row, rows, scheme)? {
            self.write(&piece.tensor, piece.offset, &piece.bytes)?;
        }
        Ok(())
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> std::result::Result<(), SinkError> {
        Ok(self.write(name, 0, tensor.bytes())?)
    }
}

fn schemes(plan: &Plan) -> HashMap<String, Scheme> {
    plan.quantized().map(|(line, scheme)| (line.name.clone(), scheme)).collect()
}

/// The tensors that a plan's result is stored in.
fn specs(plan: &Plan) -> Vec<TensorSpec> {
    let mut specs = vec![];
    for line in plan.lines() {
        match (&line.action, &line.shape[..]) {
            (Action::Quantize { scheme, scale_dtype, solver }, &[rows, cols]) => {
                specs.extend(compressed_tensors::tensor_specs(&line.name, rows, cols, *scheme, *scale_dtype));
                specs.extend(solver.orders_groups().then(|| compressed_tensors::order_spec(&line.name, cols)));
            }
            (Action::Keep { dtype, .. }, _) => specs.push(TensorSpec { name: stored_name(line), dtype: *dtype, shape: stored_shape(line) }),
            _ => {}
        }
    }
    specs
}

/// The name a kept tensor is stored under.
fn stored_name(line: &Line) -> String {
    if line.linear.is_some() { format!("{}.weight", line.name) } else { line.name.clone() }
}

/// The shape a kept tensor is stored in: a Conv1D keeps its inputs first.
fn stored_shape(line: &Line) -> Vec<usize> {
    let transposed = line.linear.as_ref().is_some_and(|site| site.transposed);
    if transposed { line.shape.iter().rev().copied().collect() } else { line.shape.clone() }
}

/// config.json: the original's with a quantization config in place of any it had.
pub(crate) fn config(original: &Value, plan: &Plan) -> Value {
    let modules: Vec<(String, Scheme)> = plan.quantized().map(|(line, scheme)| (line.name.clone(), scheme)).collect();
    // Other readers make a head of its own for tied models and would expect it quantized like any other linear.
    let mut kept: Vec<String> = plan.kept_modules().map(Into::into).collect();
    if !kept.iter().any(|name| name == HEAD) {
        kept.push(HEAD.into());
    }
    let mut config = original.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
        if !modules.is_empty() {
            let ordered = |line: &&Line| matches!(line.action, Action::Quantize { solver, .. } if solver.orders_groups());
            let ordered = plan.lines().iter().filter(ordered).map(|line| line.name.clone()).collect();
            let config = compressed_tensors::quantization_config_with_order(&modules, &ordered, &kept);
            fields.insert("quantization_config".into(), config);
        }
    }
    config
}

/// A config that says which inputs are turned at run time.
pub(crate) fn turned(mut config: Value, inputs: &BTreeSet<String>) -> Value {
    if let (Some(quantization), false) = (config.get_mut("quantization_config"), inputs.is_empty()) {
        quantization["transform_config"] = octet_model::turn::transform_config(inputs);
    }
    config
}

/// Copies the tokenizer, template, generation and licence files of `input` byte for byte.
pub(crate) fn copy_companions(dir: &Path, input: &Folder) -> Result<()> {
    for (name, bytes) in companions(input)? {
        fs::write(dir.join(&name), &*bytes).map_err(Error::write(dir.join(name)))?;
    }
    Ok(())
}

/// Bytes the finished folder will take before its report: weights, config, companions and octet's own description.
pub(crate) fn forecast(input: &Folder, original: &Value, plan: &Plan, described: &Value) -> Result<u64> {
    let weights = Writer::forecast(specs(plan), MAX_SHARD_BYTES, &BTreeMap::new())?;
    let companions: u64 = companions(input)?.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let config = config(original, plan);
    let documents = [&config, described].into_iter().map(|value| Ok(pretty(value)?.len() as u64));
    Ok(weights + companions + documents.sum::<Result<u64>>()?)
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
    fs::write(path, pretty(value)?).map_err(Error::write(path))
}

/// A JSON document as octet writes it.
pub(crate) fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))? + "\n")
}

/// Bytes of everything in `dir` but packed weights: they can be made again from the rest, and are named on their own.
pub(crate) fn folder_bytes(dir: &Path) -> Result<u64> {
    let entries = fs::read_dir(dir).map_err(Error::write(dir))?;
    let entries = entries.flatten().filter(|entry| entry.file_name() != packed::FILE);
    Ok(entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|meta| meta.len()).sum())
}

/// The transforms and the solvers of the blocks' linears.
fn method(plan: &Plan) -> String {
    let mut names: Vec<&str> = vec![];
    for line in plan.lines() {
        if let (Action::Quantize { solver, .. }, Some(site)) = (&line.action, &line.linear)
            && site.layer.is_some()
            && !names.contains(&solver.name())
        {
            names.push(solver.name());
        }
    }
    let before = plan.transforms();
    let after = plan.distill().map(|_| "distill");
    let names = [before, names, after.into_iter().collect()].concat();
    if names.is_empty() { "rtn".into() } else { names.join("+") }
}

/// quantization_config.json: what was done, in octet's own words.
pub(crate) fn describe(label: &str, plan: &Plan, plan_digest: &str, calibration: &Value, seed: u64) -> Value {
    let mut schemes: BTreeMap<String, usize> = BTreeMap::new();
    let mut group_size = None;
    for (line, scheme) in plan.quantized() {
        *schemes.entry(scheme.to_string()).or_default() += 1;
        if let Granularity::Group(size) = scheme.weights.granularity {
            group_size = line.linear.as_ref().filter(|site| site.layer.is_some()).map(|_| size).or(group_size);
        }
    }
    json!({
        "octet_version": env!("CARGO_PKG_VERSION"),
        "format": "compressed-tensors",
        "scheme": label,
        "method": method(plan),
        "group_size": group_size,
        "modules_by_scheme": schemes,
        "portable": plan.is_portable(),
        "plan_sha256": plan_digest,
        "calibration": calibration,
        "seed": seed,
    })
}
