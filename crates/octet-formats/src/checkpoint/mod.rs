//! A Hugging Face checkpoint: config.json and safetensors, single or sharded, float or quantized.

mod adapted;
mod modules;
mod shards;

use crate::{
    Error, Folder, Result, count_non_finite,
    packed::Packed,
    peft::Adapter,
    quantization::{self, Quantization, StoredQuantization},
};
use modules::Modules;
pub(crate) use modules::{Lookup, required};
use octet_tensor::{Bytes, Dtype, Matrix, QMatrix, QuantRows, Scheme, StoredQuant, Tensor, WeightSource};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::Arc,
};

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// How many bytes it takes.
    pub bytes: usize,
    /// The file it is in.
    pub shard: String,
    /// The type GGUF gives its elements, where they are blocks of codes.
    pub blocks: Option<&'static str>,
    data: Bytes,
}

impl Entry {
    /// The tensor, sharing the mapped bytes.
    ///
    /// # Errors
    /// Never for an entry of an opened checkpoint, whose header was checked.
    pub fn tensor(&self) -> octet_tensor::Result<Tensor> {
        Tensor::new(self.name.clone(), self.dtype, self.shape.clone(), self.data.clone())
    }
}

/// An opened checkpoint; only its config and headers were read, weights are memory-mapped and touched when asked for.
#[derive(Clone)]
pub struct Checkpoint {
    config: Value,
    entries: Vec<Entry>,
    modules: Modules,
    quantization: Option<StoredQuantization>,
    packed: std::result::Result<Option<Arc<Packed>>, String>,
    adapter: Option<Arc<Adapter>>,
}

/// Quantized rows with what `model.packed` holds of them.
struct WithPacked {
    rows: StoredQuant,
    file: Arc<Packed>,
}

impl QuantRows for WithPacked {
    fn dims(&self) -> (usize, usize) {
        (self.rows.rows(), self.rows.cols())
    }

    fn scheme(&self) -> Scheme {
        self.rows.scheme()
    }

    fn stored_bytes(&self) -> usize {
        self.rows.stored_bytes()
    }

    fn read_rows(&self, range: Range<usize>) -> octet_tensor::Result<QMatrix> {
        self.rows.read_rows(range)
    }

    fn packed(&self, range: Range<usize>, layout: u32, scheme: Scheme) -> Option<Bytes> {
        self.file.rows(self.rows.name(), range, layout, scheme)
    }

    fn release(&self, range: Range<usize>) {
        if let Some(rows) = self.rows.slice_rows(range) {
            rows.release();
        }
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`.
    ///
    /// # Errors
    /// If config.json or weights are missing or malformed, a shard is missing, a tensor is stored twice, or the
    /// weights are quantized in a way that octet does not read.
    pub fn open(folder: &Folder) -> Result<Self> {
        let config = read_config(folder)?;
        let described = quantization::parse(&config)?;
        let entries = adapted::entries(shards::entries(folder)?, folder.adapter());
        let mut modules = match folder.bound() {
            Some(bound) => Modules::bound(bound),
            None => Modules::resolve(described.as_ref().map(|(quantization, _)| quantization), &entries)?,
        };
        if let Some(adapter) = folder.adapter() {
            if config.pointer("/quantization_config/transform_config/config_groups").is_some() {
                let what = "the base turns inputs of linears at run time, and an adapter was made for inputs as they are; merge it into the original and quantize that";
                return Err(Error::Adapter(what.into()));
            }
            adapted::check(adapter, &modules, &entries)?;
            adapter.whole.keys().filter_map(|name| name.strip_suffix(".weight")).for_each(|module| modules.forget(module));
        }
        let mut schemes = modules.integer_schemes();
        schemes.retain(|module, _| folder.adapter().is_none_or(|adapter| !adapter.modules.contains_key(module)));
        let described = described.or_else(|| folder.bound().map(|_| (Quantization::Gguf, Value::Null)));
        let quantization = described.filter(|_| !schemes.is_empty()).map(|(quantization, config)| {
            let format = match &quantization {
                Quantization::CompressedTensors(ct) => ct.format.clone(),
                Quantization::Gguf => block_types(&entries),
                other => other.method().into(),
            };
            StoredQuantization { method: quantization.method().into(), format, modules: schemes, config }
        });
        // Only packed integers are stored; a file beside anything else is a leftover.
        let packed = if quantization.is_some() { Packed::open(folder).map(|packed| packed.map(Arc::new)) } else { Ok(None) };
        Ok(Self { config, entries, modules, quantization, packed, adapter: folder.adapter().cloned() })
    }

    /// The whole config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Everything stored, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The modules whose stored form no kernel runs, so that they are decoded to floats, and that form in words.
    pub fn decoded(&self) -> BTreeMap<String, String> {
        let mut decoded = self.modules.decoded();
        if let Some(adapter) = &self.adapter {
            adapted::describe(adapter, &self.modules, &mut decoded);
        }
        decoded
    }

    /// How the weights are quantized, or `None` for a checkpoint that runs on floats (FP8 and all of [`Checkpoint::decoded`]).
    pub fn quantization(&self) -> Option<&StoredQuantization> {
        self.quantization.as_ref()
    }

    /// The codes of a module whose inputs are grouped in an order of their own ([`QMatrix::order`]): no kernel runs them, so that its matrix is
    /// floats.
    ///
    /// # Errors
    /// If the module is damaged.
    pub fn in_order(&self, module: &str) -> octet_tensor::Result<Option<StoredQuant>> {
        let changed = self.adapter.as_ref().is_some_and(|adapter| adapter.modules.contains_key(module));
        let lookup = |name: &str| self.entry(name).map(Entry::tensor).transpose();
        if changed { Ok(None) } else { self.modules.in_order(module, &lookup) }
    }

    /// Whether packed weights are used (`Ok(true)`), absent, or there but of no use, and why.
    ///
    /// # Errors
    /// A sentence that says why they are not used.
    pub fn packed(&self) -> std::result::Result<bool, &str> {
        self.packed.as_ref().map(Option::is_some).map_err(String::as_str)
    }

    /// How many elements of the tensor `name` are infinite or not a number (0 for integers and unknown names).
    pub fn scan_non_finite(&self, name: &str) -> usize {
        self.entry(name).and_then(|entry| entry.tensor().ok()).map_or(0, |tensor| count_non_finite(&tensor))
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        find(&self.entries, name)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({} tensors)", self.entries.len())
    }
}

impl WeightSource for Checkpoint {
    fn matrix(&self, module: &str) -> octet_tensor::Result<Option<Matrix>> {
        let matrix = self.modules.matrix(module, &|name| self.entry(name).map(Entry::tensor).transpose())?;
        let low = self.adapter.as_ref().and_then(|adapter| Some((adapter, adapter.modules.get(module)?)));
        if let (Some((adapter, low)), Some(base)) = (low, &matrix) {
            return adapted::matrix(module, base, adapter, low, self.entry(&format!("{module}.weight"))).map(Some);
        }
        Ok(match (matrix, &self.packed) {
            (Some(Matrix::Quant(rows)), Ok(Some(file))) => {
                Some(Matrix::Quant(StoredQuant::new(module, Arc::new(WithPacked { rows, file: Arc::clone(file) }))))
            }
            (matrix, _) => matrix,
        })
    }

    fn tensor(&self, name: &str) -> octet_tensor::Result<Option<Tensor>> {
        let low = self.adapter.as_ref().filter(|adapter| name.strip_suffix(".weight").is_some_and(|m| adapter.modules.contains_key(m)));
        match (low, self.entry(name), name.strip_suffix(".weight")) {
            (Some(adapter), Some(entry), Some(module)) if entry.dtype.is_float() => {
                let matrix = self.matrix(module)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.into() })?;
                let dtype = if entry.dtype.size() == 2 { entry.dtype } else { Dtype::F32 };
                crate::peft::stored(name, &matrix, dtype, adapter.inputs_first).map(Some)
            }
            (_, entry, _) => entry.map(Entry::tensor).transpose(),
        }
    }

    fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.name.clone()).collect()
    }
}

/// The block types of a GGUF file's tensors, such as `Q4_K, Q6_K`.
fn block_types(entries: &[Entry]) -> String {
    let types: BTreeSet<&str> = entries.iter().filter_map(|entry| entry.blocks).collect();
    types.into_iter().collect::<Vec<_>>().join(", ")
}

/// The entry called `name` among entries sorted by name.
fn find<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok().map(|at| &entries[at])
}

fn read_config(folder: &Folder) -> Result<Value> {
    let file = "config.json";
    let Some(bytes) = folder.read(file)? else {
        let remedy = "give the folder of a Hugging Face checkpoint, or download its config.json too".into();
        return Err(Error::NoFile { folder: folder.describe(), file: file.into(), remedy });
    };
    let value: Value = json(folder, file, &bytes)?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::Json { file: format!("{}/{file}", folder.describe()), what: "it is not an object".into() }),
    }
}

/// Reads a JSON file of the folder, naming it in errors.
fn json<T: serde::de::DeserializeOwned>(folder: &Folder, file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Json { file: format!("{}/{file}", folder.describe()), what: e.to_string() })
}
