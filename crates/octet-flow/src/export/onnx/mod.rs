//! ONNX: the block graph as standard operators, matrices of codes as onnxruntime's `MatMulNBits`.
//!
//! Inputs and outputs have the names that transformers' exporters use, keys and values included, so that one graph serves prompts and
//! single tokens.

mod attention;
mod check;
mod experts;
mod graph;
mod weights;

use super::{
    Export, ExportRun, Source,
    checkpoint::without_quantization,
    convert::{Conversion, Holds, Job},
};
use crate::{Error, Progress, Result, artefact};
use graph::Builder;
use octet_formats::{Folder, onnx, write::Given};
use octet_tensor::{Activations, Scheme, WeightScheme};
use std::path::Path;

/// The format's name.
pub(super) const NAME: &str = "onnx";

/// Block sizes of `MatMulNBits`, the usual one first where any will do.
const BLOCKS: [usize; 5] = [128, 64, 32, 256, 16];

/// Inputs that share a stored scale: a block that divides the groups, any where a row is one group.
fn block(given: &Given) -> std::result::Result<usize, String> {
    if let Some(codes) = given.scheme.weights.uneven() {
        return Err(format!("has {codes}; MatMulNBits has even steps"));
    }
    if given.scheme.weights.has_whole_scales() {
        return Err("has whole scales times a factor of the row; MatMulNBits has a float for every block".into());
    }
    let size = given.scheme.weights.group_size(given.cols);
    let fits = |block: &usize| size.is_multiple_of(*block) || (size >= given.cols && *block <= given.cols.next_power_of_two());
    let whole = BLOCKS.into_iter().find(|&block| block == size);
    whole
        .or_else(|| BLOCKS.into_iter().find(fits))
        .ok_or_else(|| format!("has groups of {size} inputs; MatMulNBits has blocks of 16 to 256"))
}

/// A graph about to be written.
pub(super) struct OnnxExport<'a> {
    job: Job<'a>,
    plan: Conversion,
}

impl<'a> OnnxExport<'a> {
    pub(super) fn new(source: &'a Source) -> Result<Self> {
        let fits = |given: &Given| block(given).map(drop);
        // Nothing is rounded anew: octet could not judge what came of it.
        let usual = Scheme { weights: WeightScheme::W8, activations: Activations::Exact };
        let holds = Holds {
            format: NAME,
            fits: &fits,
            tables: true,
            inputs_first: true,
            ordered: false,
            mixes: true,
            codes: true,
            floats: true,
            anew: false,
            rounds: &weights::rounds_inputs,
            rounds_all: false,
            usual,
        };
        let job = Job { source, requantize: false };
        let mut plan = Conversion::plan(job, &holds)?;
        plan.notes
            .push("octet does not run ONNX: the weights are read back and compared, a verdict is that of the model it came from".into());
        Ok(Self { job, plan })
    }
}

impl Export for OnnxExport<'_> {
    fn notes(&self) -> &[String] {
        &self.plan.notes
    }

    /// Writes `model.onnx`, its weights, config and tokenizer.
    fn write(&self, path: &Path, run: &ExportRun<'_>, progress: Progress<'_>) -> Result<()> {
        let bytes = Builder::new(self.job, &self.plan, run, path)?.build(progress)?;
        std::fs::write(path.join(onnx::FILE), bytes).map_err(Error::write(path.join(onnx::FILE)))?;
        artefact::write_json(&path.join("config.json"), &without_quantization(self.job.source.checkpoint.config()))?;
        artefact::copy_companions(path, &self.job.source.input)
    }

    fn reopen(&self, _path: &Path) -> Result<Option<Folder>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_tensor::Dtype;

    fn block_of(scheme: &str, cols: usize) -> std::result::Result<usize, String> {
        block(&Given { rows: 8, cols, scheme: scheme.parse().unwrap(), scale_dtype: Dtype::F16, ordered: false })
    }

    #[test]
    fn blocks_divide_groups() {
        let cases = [("w4a16-g32", 256, 32), ("w4a16-g256", 512, 256), ("w8a16", 256, 256), ("w8a16", 320, 128), ("w8a16", 40, 64)];
        for (scheme, cols, expected) in cases {
            assert_eq!(block_of(scheme, cols), Ok(expected), "{scheme} {cols}");
        }
        assert!(block_of("w4ta16-g32", 256).unwrap_err().contains("even steps"));
        assert!(block_of("w4a16-g32-s8", 256).unwrap_err().contains("factor of the row"));
    }
}
