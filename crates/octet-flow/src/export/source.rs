//! A model to be exported: its weights under a checkpoint's names, decoded where a format quantizes anew.

use crate::{Error, Result};
use octet_formats::{Checkpoint, Folder};
use octet_model::ArchSpec;
use octet_runtime::Tokenizer;
use octet_tensor::{Bytes, Dtype, Matrix, Tensor, WeightSource};
use std::{collections::BTreeMap, sync::OnceLock};

/// An opened model.
pub struct Source {
    pub(crate) input: Folder,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) spec: ArchSpec,
    /// Read once, where it is needed: a large vocabulary takes a quarter of a second.
    tokenizer: OnceLock<Option<Tokenizer>>,
}

impl Source {
    /// Opens the model in `input` and checks that it can run.
    ///
    /// # Errors
    /// If it is damaged or of an unknown architecture.
    pub fn open(input: &Folder) -> Result<Self> {
        let checkpoint = Checkpoint::open(input)?;
        let mut spec = ArchSpec::from_config(checkpoint.config())?;
        spec.settle(&checkpoint)?;
        spec.check(&checkpoint)?;
        if !spec.turned_inputs().is_empty() {
            return Err(cannot("another format", TURNED));
        }
        Ok(Self { input: input.clone(), checkpoint, spec, tokenizer: OnceLock::new() })
    }

    /// Its tokenizer, where it has one.
    pub(crate) fn tokenizer(&self) -> Result<Option<&Tokenizer>> {
        if self.tokenizer.get().is_none() {
            let stored = self.input.read("tokenizer.json")?.map(|_| Tokenizer::open(&self.input)).transpose()?;
            return Ok(self.tokenizer.get_or_init(|| stored).as_ref());
        }
        Ok(self.tokenizer.get().and_then(Option::as_ref))
    }

    /// What the model computes.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// That inputs are rounded when the model runs, beside what schemes say, for formats that do not say so: a sentence a kind.
    pub(crate) fn rounded_inputs(&self) -> Result<Vec<String>> {
        let mut counts = BTreeMap::<String, usize>::new();
        for site in self.spec.linear_sites() {
            if let Some(rounding) = self.checkpoint.matrix(&site.module)?.and_then(|matrix| matrix.inputs()) {
                *counts.entry(rounding.to_string()).or_default() += 1;
            }
        }
        let sentence = |(how, count)| format!("activations stay floats there; those of {count} matrices of the model are {how}");
        Ok(counts.into_iter().map(sentence).collect())
    }

    /// How its weights are quantized, in words; `None` for floats.
    pub(crate) fn quantized(&self) -> Option<String> {
        let stored = self.checkpoint.quantization()?;
        Some(stored.main_scheme().map_or_else(|| stored.format.clone(), |scheme| scheme.to_string()))
    }
}

/// Weights as floats, whatever they are stored as, under `names`.
pub(crate) struct Decoded {
    checkpoint: Checkpoint,
    names: Vec<String>,
}

impl Decoded {
    /// The weights in `input`, opened anew; `names` are those of a plain checkpoint.
    pub(crate) fn open(input: &Folder, names: Vec<String>) -> Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(input)?, names })
    }
}

impl WeightSource for Decoded {
    fn matrix(&self, module: &str) -> octet_tensor::Result<Option<Matrix>> {
        Ok(self.checkpoint.matrix(module)?.map(|matrix| Matrix::Float(octet_quant::decoded(&matrix))))
    }

    fn tensor(&self, name: &str) -> octet_tensor::Result<Option<Tensor>> {
        let stored = self.checkpoint.tensor(name)?;
        if stored.as_ref().is_some_and(|tensor| tensor.dtype().is_float()) {
            return Ok(stored);
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let Some(Matrix::Float(matrix)) = self.matrix(module)? else { return Ok(stored) };
        let mut values = vec![0.0; matrix.rows() * matrix.cols()];
        matrix.read_rows(0..matrix.rows(), &mut values)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(name, Dtype::F32, vec![matrix.rows(), matrix.cols()], Bytes::new(bytes)).map(Some)
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }
}

/// Why no format takes a model whose inputs are turned at run time.
pub(crate) const TURNED: &str = "it turns inputs of linears at run time (a recipe's rotate step with where = \"inputs\"), which only octet's own folder says; quantize it anew without that step";

/// The error for a model that `format` cannot hold.
pub(crate) fn cannot(format: &str, what: impl std::fmt::Display) -> Error {
    Error::Export { target: format.into(), what: what.to_string() }
}
