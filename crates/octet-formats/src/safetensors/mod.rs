//! The safetensors container: a length, a JSON header, then the tensors' bytes.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

mod header;
mod writer;

pub use header::{Header, HeaderError, MAX_HEADER, TensorInfo, parse_header};
pub use writer::{TensorSpec, Writer};

/// The one file of a checkpoint that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";
