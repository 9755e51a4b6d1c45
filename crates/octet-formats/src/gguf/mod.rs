//! GGUF version 3 (and 2): metadata, tensors of block types, files in parts; written: one file, streamed.
//!
//! A file knows its own names of tensors and keys only. What a checkpoint would call them is told by whoever knows the
//! architecture ([`Binding`]), and [`crate::Folder::gguf`] makes a model folder of both. Source: the GGUF specification of ggml
//! (`docs/gguf.md`) and its `ggml-common.h` and `ggml-quants.c`; checked against files of llama.cpp and of its `gguf` package.

mod bind;
mod blocks;
mod encode;
mod file;
mod file_type;
mod header;
mod kquants;
mod metadata;
mod rows;
mod types;
mod write;

pub(crate) use bind::Bound;
pub use bind::{Binding, Change};
pub use encode::encode;
pub use file::File;
pub use file_type::{FileType, ModelFacts};
pub use header::{GgufError, Header, TensorInfo, parse_header};
pub use metadata::{Array, Value};
pub use rows::place as paired_place;
pub use types::BlockType;
pub use write::{Meta, NewTensor, Writer};
