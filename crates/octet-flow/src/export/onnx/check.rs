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
    onnx::{self, Stored, decoded},
};
use octet_tensor::Bytes;
use std::{collections::HashMap, path::Path};

/// Compares the weights in the folder `at` with the model's.
pub(super) fn weights(job: Job<'_>, plan: &Conversion, run: &ExportRun<'_>, written: &HashMap<String, Weights>, at: &Path) -> Result<()> {
    let file = Folder::disk(at)?.read(onnx::DATA)?.ok_or_else(|| Error::Internal("the weights' file is gone".into()))?;
    for planned in &plan.matrices {
        let (Some(stored), Some(_)) = (written.get(&planned.site.module), planned.codes()) else { continue };
        let mut first = 0;
        codes(job, planned, run, &mut |q| {
            let found = read(&file, stored, first, [q.rows(), q.cols()]);
            first += q.rows();
            match same(&found, &q.dequantize()) {
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

/// Rows of a matrix as the file has them.
fn read(file: &Bytes, stored: &Weights, first: usize, [rows, cols]: [usize; 2]) -> Vec<f32> {
    let part = |of: &Stored, width: usize| {
        let from = of.offset + first * width;
        file.get(from..from + rows * width).unwrap_or_default()
    };
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<f32>>();
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
