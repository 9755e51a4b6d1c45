//! A GGUF file's metadata and names as a checkpoint's: config.json, and what every tensor is called and how it differs; and the
//! other way round.
//!
//! The names a model needs are read off its graph; each has one name in GGUF files, from a table of modules (`names`).
//! What an architecture is and how its config follows from the metadata is one row of [`crate::families::GGUF`].

mod config;
mod names;
mod rope;
mod write;

pub use write::{DescribeError, Fact, Outgoing, describe};

use crate::{ArchSpec, ConfigError, families::GGUF};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What a GGUF file says of itself.
pub struct Described<'a> {
    /// Its metadata; long lists may be null.
    pub metadata: &'a Map<String, Value>,
    /// Name and shape (outermost first) of every tensor.
    pub tensors: &'a [(String, Vec<usize>)],
    /// The values of a tensor of plain floats.
    pub floats: &'a dyn Fn(&str) -> Option<Vec<f32>>,
}

/// The same as a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// Its config.json.
    pub config: Value,
    /// Its tensors.
    pub tensors: Vec<Renamed>,
}

/// A tensor of the checkpoint and where it is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The checkpoint's name.
    pub name: String,
    /// The file's name.
    pub tensor: String,
    /// How many heads have their rows in pairs (j, j + half), where they do.
    pub paired_heads: Option<usize>,
    /// Whether the file's values are one more.
    pub plus_one: bool,
    /// Whether the checkpoint stores the matrix the other way round.
    pub transposed: bool,
    /// Which of how many stacked matrices.
    pub part: Option<(usize, usize)>,
}

/// Why a GGUF file is not a model octet runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranslateError {
    /// An architecture octet does not know.
    #[error("its architecture {found:?} is not supported; octet knows {known}")]
    Architecture {
        /// The value found.
        found: String,
        /// Those that exist.
        known: String,
    },
    /// A key that is missing or makes no sense.
    #[error("its metadata has {key} = {found}, expected {expected}; convert the model again with a recent llama.cpp")]
    Key {
        /// The key.
        key: String,
        /// What it has.
        found: String,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// A tensor that the model has no use for.
    #[error(
        "it has the tensor {tensor}, which octet does not know for {architecture} models; it may change the model's results, so octet refuses it"
    )]
    Unexpected {
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor that is missing.
    #[error("it has no tensor {tensor}; it is of another architecture than it says or was damaged, download it again")]
    Missing {
        /// The tensor.
        tensor: String,
    },
    /// What follows from it is no model.
    #[error("what its metadata says makes no model: {0}")]
    Config(#[from] ConfigError),
}

/// Tensors that are metadata: rotary factors, read by [`config`].
const METADATA: &[&str] = &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Translates what a GGUF file says.
///
/// # Errors
/// If the architecture is unknown, a key is missing or makes no sense, or tensors are missing or left over.
pub fn translate(file: &Described<'_>) -> Result<Translation, TranslateError> {
    let found = file.metadata.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let row = GGUF.iter().find(|row| row.architecture == found).ok_or_else(|| TranslateError::Architecture {
        found: found.into(),
        known: GGUF.iter().map(|row| row.architecture).collect::<Vec<_>>().join(", "),
    })?;
    let config = config::config(row, file)?;
    let tensors = names::tensors(row, &ArchSpec::from_config(&config)?)?;
    let stored: BTreeSet<&str> = file.tensors.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(missing) = tensors.iter().find(|renamed| !stored.contains(renamed.tensor.as_str())) {
        return Err(TranslateError::Missing { tensor: missing.tensor.clone() });
    }
    let used: BTreeSet<&str> = tensors.iter().map(|renamed| renamed.tensor.as_str()).chain(METADATA.iter().copied()).collect();
    match stored.difference(&used).next() {
        Some(tensor) => Err(TranslateError::Unexpected { tensor: (*tensor).into(), architecture: row.architecture }),
        None => Ok(Translation { config, tensors }),
    }
}
