//! Low-rank adapters as PEFT and MLX save them: read, applied to a base as its matrices are read, and written.
//!
//! PEFT: `adapter_model.safetensors` with `base_model.model.<module>.lora_A.weight` `[rank, inputs]`, `.lora_B.weight`
//! `[outputs, rank]` and, for DoRA, `.lora_magnitude_vector` `[outputs]`. MLX: `adapters.safetensors` with `<module>.lora_a`
//! `[inputs, rank]` and `.lora_b` `[rank, outputs]`, the scale as it is. W' = W + scale · B A (Hu et al., arXiv 2106.09685), the
//! scale alpha / rank or alpha / √rank (Kalajdzievski, arXiv 2312.03732); DoRA scales every row of that to its magnitude (Liu et
//! al., arXiv 2402.09353). Checked against PEFT 0.21 and mlx-lm 0.32.

mod config;
mod merged;
mod read;
mod write;

pub(crate) use merged::{merged, stored};
pub use write::write;

use octet_tensor::Tensor;
use std::{collections::BTreeMap, sync::Arc};

/// The config of an adapter, in either tool's folders.
pub const CONFIG: &str = "adapter_config.json";
/// PEFT's weights.
pub const PEFT: &str = "adapter_model.safetensors";
/// MLX's weights.
pub const MLX: &str = "adapters.safetensors";

/// An adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What it adds to which module.
    pub modules: BTreeMap<String, Arc<LowRank>>,
    /// Tensors that it brings whole (`modules_to_save`, biases), by the base's name.
    pub whole: BTreeMap<String, Tensor>,
    /// The base as its config names it.
    pub base: Option<String>,
    /// Whether the base stores its linears inputs first.
    pub inputs_first: bool,
}

/// What is added to one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rank.
    pub rank: usize,
    /// A `[rank, inputs]`.
    pub a: Vec<f32>,
    /// B `[outputs, rank]`.
    pub b: Vec<f32>,
    /// Factor of B A.
    pub scale: f32,
    /// DoRA's length of every row.
    pub magnitude: Option<Vec<f32>>,
}

impl LowRank {
    /// Outputs and inputs.
    pub fn dims(&self) -> [usize; 2] {
        [self.b.len(), self.a.len()].map(|n| n / self.rank.max(1))
    }
}
