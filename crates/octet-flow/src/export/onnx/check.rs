//! What was written, read back: every weight of codes must decode to the number it is in the model.

use super::weights::{Codes, Weights};
use crate::{
    Error, Result,
    export::{
        ExportRun,
        convert::{Conversion, Job, codes},
        source::cannot,
    },
};
use octet_formats::{
    Folder,
    onnx::{self, Stored, decoded, holds},
};
use octet_tensor::{Bytes, QMatrix};
use std::{collections::HashMap, path::Path};

/// Compares the weights in the folder `at` with the model's.
pub(super) fn weights(job: Job<'_>, plan: &Conversion, run: &ExportRun<'_>, written: &HashMap<String, Weights>, at: &Path) -> Result<()> {
    let file = Folder::disk(at)?.read(onnx::DATA)?.ok_or_else(|| Error::Internal("the weights' file is gone".into()))?;
    for planned in &plan.matrices {
        let (Some(stored), Some(_)) = (written.get(&planned.site.module), planned.codes()) else { continue };
        let mut first = 0;
        codes(job, planned, run, &mut |q| {
            let at = first;
            first += q.rows();
            // What is equal as it is stored is the same number; only what is stored in another way is decoded.
            match is_stored(&file, stored, at, &q) || same(&read(&file, stored, at, [q.rows(), q.cols()]), &q.dequantize()) {
                true => Ok(()),
                false => Err(cannot(super::NAME, format!("{} reads back as other numbers; the disk may be faulty", planned.site.module))),
            }
        })?;
    }
    file.release();
    Ok(())
}

/// Whether all numbers are the same ones; looked at in runs, which the compiler turns into vector code.
fn same(found: &[f32], expected: &[f32]) -> bool {
    let mut runs = found.chunks(4096).zip(expected.chunks(4096));
    found.len() == expected.len() && runs.all(|(a, b)| a.iter().zip(b).fold(true, |same, (a, b)| same & (a == b)))
}

/// The bytes of `rows` of a tensor, from row `first` on.
fn part<'f>(file: &'f Bytes, of: &Stored, width: usize, first: usize, rows: usize) -> &'f [u8] {
    let from = of.offset + first * width;
    file.get(from..from + rows * width).unwrap_or_default()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Whether the file has blocks that are the codes, scales and zero points of `q`, some rows of a matrix from `first` on.
fn is_stored(file: &Bytes, stored: &Weights, first: usize, q: &QMatrix) -> bool {
    let Weights::Codes(Codes { bits, block, codes, scales, zeros, .. }) = stored else { return false };
    let (rows, count) = (q.rows(), q.cols().div_ceil(*block));
    let zeros = zeros.as_ref().map_or(&[][..], |zeros| part(file, zeros, (count * bits).div_ceil(8), first, rows));
    let (codes, scales) = (part(file, codes, count * block * bits / 8, first, rows), part(file, scales, 4 * count, first, rows));
    holds(codes, &numbers(scales), zeros, q, *block)
}

/// Rows of a matrix as the file has them.
fn read(file: &Bytes, stored: &Weights, first: usize, [rows, cols]: [usize; 2]) -> Vec<f32> {
    let part = |of: &Stored, width: usize| part(file, of, width, first, rows);
    match stored {
        Weights::Floats { .. } => vec![],
        Weights::Bytes { codes, scales, .. } => {
            let rows = part(codes, cols).chunks(cols.max(1)).zip(numbers(part(scales, 4)));
            rows.flat_map(|(row, scale)| row.iter().map(move |&code| scale * f32::from(code as i8))).collect()
        }
        Weights::Codes(Codes { bits, block, codes, scales, zeros, .. }) => {
            let count = cols.div_ceil(*block);
            let zeros = zeros.as_ref().map_or(&[][..], |zeros| part(zeros, (count * bits).div_ceil(8)));
            decoded(part(codes, count * block * bits / 8), &numbers(part(scales, 4 * count)), zeros, [rows, cols], *bits, *block)
        }
    }
}
