//! A GGUF file as a model folder: config, tokenizer and chat template out of its metadata, weights where they are.
//!
//! What the file says is translated by [`octet_model::gguf`]; here the tokenizer is put together and all of it becomes a
//! [`Folder`], which every command opens like any other. A folder's tokenizer as metadata is [`tokenizer_metadata`].

mod pieces;
mod pre_tokenizers;
mod tokenizer;
mod write;

pub use write::{OutgoingTokenizer, tokenizer_metadata};

use crate::{Error, Result};
use octet_formats::{
    Folder,
    gguf::{Binding, Change, File, Value},
};
use octet_model::gguf::{Described, Renamed, translate};
use octet_tensor::Bytes;
use serde_json::{Map, json};
use std::{collections::BTreeMap, path::Path};

/// Lists longer than this are looked at only where they are needed (vocabularies).
const LONGEST: usize = 1 << 16;

/// The metadata of a file.
pub(crate) type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;

/// Opens the GGUF model at `path` (of a model in parts, any of them) as a folder.
///
/// # Errors
/// If a file is damaged or of an architecture or tokenizer that octet does not know.
pub fn open_gguf(path: &Path) -> Result<Folder> {
    let stem = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    folder(&stem, &File::open(path)?)
}

/// The model in `file` as a folder called `name`.
///
/// # Errors
/// As [`open_gguf`].
pub fn folder(name: &str, file: &File) -> Result<Folder> {
    let bad = |what: String| Error::BadGguf { file: file.name().into(), what };
    let metadata = file.metadata()?;
    let short = |(key, value): (&&str, &Value<'_>)| {
        // Vocabularies are turned into JSON once, where the tokenizer is made.
        let longest = if key.starts_with("tokenizer.") { 0 } else { LONGEST };
        ((*key).to_string(), value.to_json(longest))
    };
    let json: Map<String, serde_json::Value> = metadata.iter().map(short).collect();
    let tensors: Vec<_> = file.tensors().map(|(name, shape, _)| (name.to_string(), shape.to_vec())).collect();
    let described = Described { metadata: &json, tensors: &tensors, floats: &|name| file.floats(name) };
    let translation = translate(&described).map_err(|e| bad(e.to_string()))?;
    let bindings: Vec<Binding> = translation.tensors.into_iter().map(binding).collect();
    let mut files = vec![("config.json".to_string(), bytes(&translation.config))];
    // Files without a tokenizer say so.
    if metadata.get("tokenizer.ggml.model").is_some_and(|model| model.as_str() != Some("none")) {
        let made = tokenizer::tokenizer(&metadata).map_err(bad)?;
        files.push(("tokenizer.json".into(), bytes(&made.tokenizer)));
        files.push(("tokenizer_config.json".into(), bytes(&made.config)));
    }
    if let Some(eos) = translation.config.get("eos_token_id") {
        files.push(("generation_config.json".into(), bytes(&json!({"eos_token_id": eos}))));
    }
    Ok(Folder::gguf(name, files, file, &bindings)?)
}

fn bytes(json: &serde_json::Value) -> Bytes {
    Bytes::new(json.to_string().into_bytes())
}

fn binding(renamed: Renamed) -> Binding {
    let change = match renamed {
        Renamed { paired_heads: Some(heads), .. } => Change::PairedRows(heads),
        Renamed { plus_one: true, .. } => Change::PlusOne,
        Renamed { transposed: true, .. } => Change::Transposed,
        _ => Change::None,
    };
    Binding { name: renamed.name, tensor: renamed.tensor, change, part: renamed.part }
}
