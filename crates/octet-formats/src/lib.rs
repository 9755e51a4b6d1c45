//! On-disk formats: names to bytes and back.
//!
//! What lives here: [`Folder`] (a model folder, memory-mapped), [`Checkpoint`] (a Hugging Face checkpoint as a source
//! of weights), the safetensors container, compressed-tensors in both directions, readers of what other tools
//! quantize ([`gguf`], [`gptq`], AWQ, bitsandbytes, [`mlx`], [`torchao`]) and [writers](mod@write) of most, numpy arrays and [archives](npz), low-rank [adapters](peft), the parts of an [ONNX](onnx) file, and the staging of an output folder. What does not: knowledge of architectures, and the choice of any scale or code.

mod awq;
mod bitsandbytes;
mod checkpoint;
pub mod compressed_tensors;
mod error;
mod flush;
mod folder;
mod fp4;
pub mod gguf;
pub mod gptq;
mod killed;
mod map;
pub mod mlx;
pub mod npy;
pub mod npz;
pub mod onnx;
pub mod packed;
pub mod peft;
pub mod quantization;
pub mod safetensors;
mod scan;
pub mod staging;
mod stored;
pub mod torchao;
pub mod write;

pub use checkpoint::{Checkpoint, Entry};
pub use error::{Error, Result};
pub use folder::Folder;
pub use killed::{kill_at, kill_point};
pub use quantization::StoredQuantization;
pub use scan::{count_non_finite, count_non_finite_bytes};
