//! Codes that a GGUF file holds as they are: nothing is chosen, so nothing is lost.

use super::{Source, cannot, sink::GgufSink};
use crate::{Error, Progress, Result, export::ExportRun};
use octet_formats::gguf::{BlockType, encode};
use octet_model::gguf::Outgoing;
use octet_tensor::{BlockCode, BlockRows, Dtype, FloatMatrix, Matrix, QMatrix, RunScales, Symmetry, WeightScheme, WeightSource};
use std::sync::atomic::Ordering;

/// The smallest type that holds the codes of `scheme` in rows of `cols` as they are.
///
/// # Errors
/// What keeps every type from it, as the rest of a sentence.
pub(super) fn holding(scheme: WeightScheme, cols: usize) -> std::result::Result<BlockType, String> {
    if scheme.has_whole_scales() {
        return Err("has whole scales times a factor of the row, and GGUF holds scales of 16 bits; quantize it anew with --requantize and a type such as gguf:iq4_nl".into());
    }
    let group = scheme.group_size(cols);
    if !group.is_multiple_of(32) || !cols.is_multiple_of(32) {
        return Err(format!(
            "has groups of {group} among {cols} inputs, and GGUF holds scales of 32 inputs; quantize it anew with --requantize and a type such as gguf:q4_k_m"
        ));
    }
    match (scheme.symmetry, scheme.uneven()) {
        (Symmetry::Table, _) => return Ok(BlockType::IQ4_NL),
        (_, Some(codes)) => {
            return Err(format!("has {codes} that no type of GGUF has; quantize it anew with --requantize and a type such as gguf:iq4_nl"));
        }
        _ => {}
    }
    Ok(match (scheme.bits.get(), scheme.is_asymmetric()) {
        (..=4, false) => BlockType::Q4_0,
        (5, false) => BlockType::Q5_0,
        // With a zero point a code less it still is a number of eight bits.
        _ => BlockType::Q8_0,
    })
}

/// The same codes and scales in blocks.
///
/// # Errors
/// What the blocks cannot hold, as the rest of a sentence.
fn in_blocks(code: BlockCode, q: &QMatrix) -> std::result::Result<BlockRows, String> {
    if code.scales != RunScales::Float {
        return Err(format!("cannot be put in {} blocks as it is", code.name));
    }
    let mut out = BlockRows::zeros(code, q.rows(), q.cols()).map_err(|e| e.to_string())?;
    let (blocks, group) = (q.cols() / code.block, q.scheme().group_size(q.cols()));
    let (low, high) = code.range();
    for (at, codes) in out.codes.chunks_exact_mut(code.block).enumerate() {
        let (row, block) = (at / blocks, at % blocks);
        let (scale, zero) = q.group(row, block * code.block / group);
        if Dtype::F16.round(scale) != scale {
            return Err(format!(
                "has the scale {scale}, which is no number of 16 bits as GGUF keeps them; quantize it anew with --requantize and a type such as gguf:q8_0"
            ));
        }
        out.d[at] = scale;
        let from = &q.codes()[row * q.cols() + block * code.block..][..code.block];
        for (out, &code) in codes.iter_mut().zip(from) {
            let moved = i32::from(code) - zero;
            if moved < low.into() || moved > high.into() {
                return Err(format!(
                    "has codes up to {moved} from zero, and GGUF holds {low} to {high}; quantize it anew with --requantize"
                ));
            }
            *out = moved as i8;
        }
    }
    Ok(out)
}

/// Rows taken over at a time: a few megabytes of codes.
const RUN: usize = 1 << 22;

/// Writes every tensor as it is stored.
pub(super) fn take_over(
    source: &Source,
    outgoing: &Outgoing,
    sink: &mut GgufSink,
    run: &ExportRun<'_>,
    progress: Progress<'_>,
) -> Result<()> {
    use octet_quant::Sink;
    let total = outgoing.tensors.len() as u64;
    for (done, renamed) in outgoing.tensors.iter().enumerate() {
        if run.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        progress("writing", done as u64, total, &renamed.name);
        let module = renamed.name.strip_suffix(".weight").unwrap_or(&renamed.name);
        let place = sink.place(&renamed.name)?;
        let matrix = if place.is_matrix() { source.checkpoint.matrix(module)? } else { None };
        match matrix {
            Some(Matrix::Quant(rows)) => {
                let code = place.code().ok_or_else(|| cannot("GGUF", format!("{module} is quantized, its place holds floats")))?;
                let step = (RUN / rows.cols().max(1)).max(1);
                for first in (0..rows.rows()).step_by(step) {
                    let part = rows.read_rows(first..(first + step).min(rows.rows()))?;
                    let blocks = in_blocks(code, &part).map_err(|what| cannot("GGUF", format!("{module} {what}")))?;
                    sink.rows(&place, first, &encode(&blocks))?;
                }
                rows.release();
            }
            Some(Matrix::Float(matrix)) => {
                let matrix = match (renamed.transposed, source.checkpoint.tensor(&renamed.name)?) {
                    (true, Some(tensor)) => FloatMatrix::transposed(tensor)?,
                    _ => matrix,
                };
                sink.floats(&renamed.name, &matrix)?;
            }
            None => {
                let name = renamed.name.clone();
                let tensor = source.checkpoint.tensor(&name)?.ok_or(octet_tensor::Error::Missing { name })?;
                sink.tensor(&renamed.name, &tensor).map_err(|e| cannot("GGUF", e))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_tensor::{LEVELS, Scheme};

    fn scheme(text: &str) -> WeightScheme {
        text.parse::<Scheme>().unwrap().weights
    }

    #[test]
    fn codes_and_scales_stay_what_they_are() {
        let codes: Vec<i8> = (0..256).map(|i| (i % 16) as i8 - 8).collect();
        let scales = [0.5, -0.25, 0.125, 1.0];
        let q = QMatrix::new(2, 128, scheme("w4a16-g64-sym"), codes.clone(), scales.to_vec(), Dtype::F16, vec![]).unwrap();
        let kind = holding(q.scheme(), 128).unwrap();
        assert_eq!(kind, BlockType::Q4_0);
        assert_eq!(in_blocks(kind.code().unwrap(), &q).unwrap().dequantize(), q.dequantize());
        let q = QMatrix::new(2, 128, scheme("w4a16-g64-asym"), codes.clone(), scales.to_vec(), Dtype::F16, vec![3, -8, 7, 0]).unwrap();
        let kind = holding(q.scheme(), 128).unwrap();
        assert_eq!(kind, BlockType::Q8_0);
        assert_eq!(in_blocks(kind.code().unwrap(), &q).unwrap().dequantize(), q.dequantize());
        let q = QMatrix::new(2, 128, scheme("w8a16-pc"), codes, vec![0.3, 1.0], Dtype::F32, vec![]).unwrap();
        assert!(in_blocks(BlockType::Q8_0.code().unwrap(), &q).unwrap_err().contains("0.3"));
        let levels: Vec<i8> = (0..64).map(|i| LEVELS[i % 16]).collect();
        let q = QMatrix::new(1, 64, scheme("w4ta16-g32"), levels, vec![0.5, 0.25], Dtype::F16, vec![]).unwrap();
        let kind = holding(q.scheme(), 64).unwrap();
        assert_eq!(kind, BlockType::IQ4_NL);
        assert_eq!(in_blocks(kind.code().unwrap(), &q).unwrap().dequantize(), q.dequantize());
        assert!(holding(scheme("w4ta16-g32-s8"), 64).unwrap_err().contains("factor of the row"));
        assert!(holding(scheme("w4a16-pc-sym"), 100).unwrap_err().contains("groups of 100"));
    }
}
