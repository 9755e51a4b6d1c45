//! Architectures as data: specs, families, the block graph and the forward pass.
//!
//! A [config.json](ArchSpec::from_config) and the [table of families](families) make an [`ArchSpec`]: one typed
//! description of what a model computes. Its [`BlockGraph`] is a short list of nodes for each block, from which the
//! forward pass, the list of linears and what they share, the names and shapes of all tensors and the memory estimates
//! are read off. [`Model`] is the graph with weights.
//!
//! What does not live here: files (weights come from a [`WeightSource`](octet_tensor::WeightSource) by name), tokenizers,
//! quantization algorithms.
#![forbid(unsafe_code)]

mod config;
mod error;
mod experts;
pub mod families;
mod folds;
mod from_config;
pub mod fuse;
pub mod gguf;
pub mod graph;
mod graph_build;
pub mod load;
mod memory;
mod model;
mod phases;
pub mod rope;
mod rope_config;
mod sequence;
pub mod show;
mod sites;
pub mod spec;
mod stage;
mod stream;
pub mod turn;
mod workspace;

pub use error::{ConfigError, ForwardError, LoadError, Place};
pub use folds::{Fold, Folds, Maker};
pub use graph::BlockGraph;
pub use memory::WeightBytes;
pub use model::{LoadOptions, Logits, Model, Step, Tap};
pub use octet_kernels::KvDtype;
pub use phases::Phase;
pub use sequence::Sequence;
pub use sites::{InputKind, InputSite, LinearSite, Role};
pub use spec::ArchSpec;
pub use stage::Stage;
pub use stream::{Stream, StreamReaders};
pub use workspace::{Span, Workspace};
