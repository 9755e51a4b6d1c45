//! On-disk formats: names to bytes and back.
//!
//! What lives here: [`Folder`] (a model folder, memory-mapped), [`Checkpoint`] (a Hugging Face checkpoint as a source
//! of weights), the safetensors container, compressed-tensors in both directions, numpy arrays, and the staging of an
//! output folder. What does not: knowledge of architectures, and the choice of any scale or code.

mod checkpoint;
pub mod compressed_tensors;
mod error;
mod folder;
mod map;
pub mod npy;
pub mod packed;
pub mod quantization;
pub mod safetensors;
mod scan;
pub mod staging;

pub use checkpoint::{Checkpoint, Entry};
pub use error::{Error, Result};
pub use folder::Folder;
pub use quantization::StoredQuantization;
pub use scan::{count_non_finite, count_non_finite_bytes};
