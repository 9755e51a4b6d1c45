//! What a config.json says about quantization, and which module it says it of.

mod args;
mod config;
mod target;

pub use config::{CompressedTensors, Float8Scale, Layout, Quantization, parse};
pub use target::Target;

pub(crate) use args::{bad, number};

use octet_tensor::Scheme;
use serde_json::Value;
use std::collections::BTreeMap;

/// How a checkpoint that runs on codes is stored: what its config.json says, resolved for every module.
#[derive(Clone, Debug)]
pub struct StoredQuantization {
    /// `quant_method` of the config, such as `compressed-tensors` or `gptq`.
    pub method: String,
    /// `format` of the config, such as `pack-quantized`, `int-quantized` or `mixed-precision`.
    pub format: String,
    /// The scheme in which kernels run every quantized module, by module path; those decoded to floats are not among them.
    pub modules: BTreeMap<String, Scheme>,
    /// The quantization config as written.
    pub config: Value,
}

impl StoredQuantization {
    /// The scheme most weights of the checkpoint have by count of modules (the first by name among equals).
    pub fn main_scheme(&self) -> Option<Scheme> {
        let mut counts: Vec<(Scheme, usize)> = vec![];
        for &scheme in self.modules.values() {
            match counts.iter_mut().find(|(known, _)| *known == scheme) {
                Some((_, count)) => *count += 1,
                None => counts.push((scheme, 1)),
            }
        }
        counts.into_iter().rev().max_by_key(|&(_, count)| count).map(|(scheme, _)| scheme)
    }
}
