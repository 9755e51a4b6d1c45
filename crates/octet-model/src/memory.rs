//! What running a model will take in memory, told from shapes before anything is loaded.

use crate::{
    error::LoadError,
    graph::{Node, Slot},
    load,
    model::PASS_ROWS,
    spec::ArchSpec,
};
use octet_kernels::PackedLinear;
use octet_tensor::{Activations, Dtype, Matrix, WeightSource};
use std::ops::Range;

/// Memory of a thread's panels and buffers of a product (measured: weights' panels and packed inputs of a task).
const THREAD_BYTES: u64 = 2 << 20;

/// Bytes of a model's weights, ready to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// All of them.
    pub all: u64,
    /// Those among them that stay where the file is mapped, which the system may drop and read again.
    pub mapped: u64,
}

fn runs_from_the_map(matrix: &Matrix) -> bool {
    let Matrix::Float(float) = matrix else { return false };
    matches!(float.dense_bytes(), Some((Dtype::F32 | Dtype::F16 | Dtype::Bf16, _)))
}

impl ArchSpec {
    /// The runs of rows that are packed on their own, module by module; a tied head is the embedding's.
    pub fn packed_parts(&self) -> Vec<(String, Range<usize>)> {
        let graph = self.graph();
        let linears = graph.nodes().flat_map(Node::linears).filter(|linear| !linear.tied);
        linears.flat_map(|linear| linear.parts.iter().map(|(_, rows)| (linear.site.module.clone(), rows.clone()))).collect()
    }

    /// Bytes the weights will keep resident ([`crate::Model::resident_bytes`]); no weights are read. Call [`ArchSpec::settle`]
    /// first.
    ///
    /// # Errors
    /// If a tensor is missing or makes no sense.
    pub fn weight_bytes(&self, source: &dyn WeightSource, activations: Option<Activations>) -> Result<WeightBytes, LoadError> {
        let (mut bytes, mut mapped) = (0, 0);
        for node in self.graph().nodes() {
            for linear in node.linears().into_iter().filter(|linear| !linear.tied) {
                let matrix = load::matrix(source, linear)?;
                for (_, rows) in &linear.parts {
                    let part = if *rows == (0..matrix.rows()) { Some(matrix.clone()) } else { matrix.slice_rows(rows.clone()) };
                    let Some(part) = part else { continue };
                    let here = PackedLinear::forecast(&part, activations)?;
                    bytes += here;
                    mapped += if runs_from_the_map(&part) { here } else { 0 };
                }
                bytes += linear.bias.as_ref().map_or(0, |bias| 4 * bias.shape.iter().product::<usize>());
            }
            bytes += node.params().iter().map(|param| 4 * param.shape.iter().product::<usize>()).sum::<usize>();
        }
        Ok(WeightBytes { all: bytes as u64, mapped: mapped as u64 })
    }

    /// Bytes of everything between the weights while up to `tokens` tokens go through together on `threads` threads; logits of
    /// one of them.
    pub fn pass_bytes(&self, tokens: usize, threads: usize) -> u64 {
        let mut widths = [0usize; Slot::COUNT];
        let (mut inputs, mut experts) = (0, 0);
        for node in self.graph().nodes() {
            for linear in node.linears() {
                for (to, rows) in &linear.parts {
                    widths[*to as usize] = widths[*to as usize].max(rows.len());
                }
                inputs = inputs.max(linear.site.cols);
            }
            if let Node::Experts { experts: all, .. } = node {
                experts = all.first().map_or(0, |e| 2 * e.up.site.rows + 2 * e.up.site.cols);
            }
        }
        let logits = std::mem::take(&mut widths[Slot::Logits as usize]);
        if widths[Slot::Gate as usize] > 0 {
            // A gate's two products are computed together and leave one buffer.
            widths[Slot::Up as usize] = 0;
        }
        widths[Slot::Hidden as usize] = self.hidden();
        widths[Slot::Normed as usize] = self.hidden();
        widths[Slot::Attended as usize] = widths[Slot::Q as usize];
        let row = widths.iter().sum::<usize>() + inputs + experts;
        let rows = tokens.clamp(1, PASS_ROWS);
        (4 * (rows * row + 2 * logits)) as u64 + THREAD_BYTES * threads as u64
    }
}
