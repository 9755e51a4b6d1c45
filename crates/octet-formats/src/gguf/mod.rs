//! GGUF version 3 (and 2), read: metadata, tensors of block types, files in parts.
//!
//! A file knows its own names of tensors and keys only. What a checkpoint would call them is told by whoever knows the
//! architecture ([`Binding`]), and [`crate::Folder::gguf`] makes a model folder of both. Source: the GGUF specification of ggml
//! (`docs/gguf.md`) and its `ggml-common.h` and `ggml-quants.c`; checked against files of llama.cpp and of its `gguf` package.

mod bind;
mod blocks;
mod file;
mod header;
mod kquants;
mod metadata;
mod rows;
mod types;

pub(crate) use bind::Bound;
pub use bind::{Binding, Change};
pub use file::File;
pub use header::{GgufError, Header, TensorInfo, parse_header};
pub use metadata::{Array, Value};
pub use types::BlockType;
