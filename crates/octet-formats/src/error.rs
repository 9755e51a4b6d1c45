//! What can go wrong between names and bytes, each as a sentence with its remedy.

use crate::safetensors::HeaderError;
use std::{io, path::Path};

/// What can be wrong with a model folder, a file in it, or where one is written to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened, read, written or renamed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: `read`, `create` …
        action: &'static str,
        /// The file or folder.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk filled up.
    #[error("the disk is full: {path} needs {needed} bytes{}; free some space or choose another output folder", free(*.available))]
    DiskFull {
        /// What was being written.
        path: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are free, where the system tells.
        available: Option<u64>,
    },
    /// A model folder that is no folder.
    #[error("{path} is {found}; give the folder that holds config.json and model.safetensors")]
    NotAFolder {
        /// The path given.
        path: String,
        /// What it is instead.
        found: &'static str,
    },
    /// A file name that reaches outside its folder.
    #[error("{name:?} is not a plain file name, so it could reach outside the model folder {folder}; files must lie in the folder itself")]
    NotAPlainName {
        /// The name.
        name: String,
        /// The folder.
        folder: String,
    },
    /// A folder without a file that every model has.
    #[error("{folder} has no {file}; {remedy}")]
    NoFile {
        /// The folder.
        folder: String,
        /// The missing file.
        file: String,
        /// What to do about it.
        remedy: String,
    },
    /// A JSON file that cannot be read.
    #[error("{file} is not valid: {what}; download it again or mend it")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, with its place.
        what: String,
    },
    /// A safetensors file whose header is wrong.
    #[error("{file} is not a sound safetensors file: {source}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A GGUF file that cannot be read.
    #[error("{file} is not a readable GGUF file: {what}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// Shards that the index names and the folder lacks.
    #[error("{index} names {missing} of {all} shards that are not in {folder} (the first is {first}); download the missing shards")]
    MissingShards {
        /// The index file.
        index: String,
        /// The model folder.
        folder: String,
        /// Shards that are missing.
        missing: usize,
        /// Shards in all.
        all: usize,
        /// The first missing one.
        first: String,
    },
    /// An index that does not fit its shards.
    #[error("{name} should be in {shard} according to {index}, but is not; index and shards do not belong together, download them again")]
    NotInShard {
        /// The tensor.
        name: String,
        /// The shard the index names.
        shard: String,
        /// The index file.
        index: String,
    },
    /// A tensor that two shards hold.
    #[error("{name} is in both {first} and {second}; remove the shard that does not belong to this model")]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// One shard.
        first: String,
        /// The other shard.
        second: String,
    },
    /// A quantized checkpoint of a kind that octet does not read.
    #[error("the checkpoint is quantized with {method}: {what}; give octet the original 16-bit or 32-bit checkpoint instead")]
    UnsupportedQuantization {
        /// The method as the config names it.
        method: String,
        /// What about it is not supported.
        what: String,
    },
    /// A quantization config that contradicts itself or its tensors.
    #[error("quantization_config: {key} {what}; mend config.json or download it again")]
    QuantizationConfig {
        /// The key or module at fault.
        key: String,
        /// What is wrong: expected and found.
        what: String,
    },
    /// A matrix that is handed to a writer in a form that it cannot store.
    #[error("{module} cannot be stored: {what}")]
    Encode {
        /// The module.
        module: String,
        /// What is wrong.
        what: String,
    },
    /// A writer that was told to write something else than announced.
    #[error("{name}: {what}")]
    Writer {
        /// The tensor or file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A numpy file that cannot be read.
    #[error("not a readable .npy array: {0}")]
    Npy(String),
    /// An adapter that cannot be read.
    #[error("not an adapter that octet runs: {0}")]
    Adapter(String),
    /// An archive of numpy arrays that cannot be read.
    #[error("not a readable .npz archive: {0}")]
    Npz(String),
    /// An output folder that cannot be used.
    #[error("cannot write to {target}: {what}")]
    Target {
        /// The folder asked for.
        target: String,
        /// Why not and what to do instead.
        what: String,
    },
    /// A tensor that makes no sense.
    #[error(transparent)]
    Tensor(#[from] octet_tensor::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an input/output error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}

fn free(available: Option<u64>) -> String {
    available.map_or_else(String::new, |bytes| format!(" and {bytes} are free"))
}
