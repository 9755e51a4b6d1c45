//! What the model that a plan makes will keep in memory when it runs.

use crate::{Action, Plan};
use octet_kernels::PackedLinear;
use octet_model::WeightBytes;
use octet_tensor::Dtype;

impl Plan {
    /// Bytes that the weights of the written model will take, ready to run.
    pub fn run_bytes(&self) -> WeightBytes {
        let mut bytes = WeightBytes::default();
        for line in self.lines() {
            match (&line.action, &line.linear) {
                (Action::Quantize { scheme, scale_dtype, .. }, Some(site)) => {
                    bytes.all += PackedLinear::forecast_bytes(site.rows, site.cols, *scheme, *scale_dtype) as u64;
                }
                (Action::Keep { dtype, .. }, Some(site)) => {
                    let runs = if matches!(dtype, Dtype::F16 | Dtype::Bf16) { 2 } else { 4 };
                    bytes.all += line.elements() * runs;
                    bytes.mapped += if site.transposed { 0 } else { line.elements() * runs };
                }
                // Norms and biases become f32.
                (Action::Keep { .. }, None) => bytes.all += 4 * line.elements(),
                _ => {}
            }
        }
        bytes
    }
}
