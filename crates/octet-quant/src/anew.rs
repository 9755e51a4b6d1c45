//! A matrix that is there in any form, rounded to nearest in another.

use crate::{
    Error, ErrorSums, Rtn, Solver, TensorJob,
    chunks::Chunks,
    rows::{non_finite, solve_rows},
};
use octet_tensor::{FloatMatrix, FloatRows, Matrix, QMatrix, Result as TensorResult, StoredQuant};
use std::{ops::Range, sync::Arc};

/// Codes as the floats they stand for.
struct Decoded(StoredQuant);

impl FloatRows for Decoded {
    fn dims(&self) -> (usize, usize) {
        (self.0.rows(), self.0.cols())
    }

    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> TensorResult<()> {
        Matrix::Quant(self.0.clone()).read_rows_f32(range, out)
    }
}

/// The matrix as floats.
pub fn decoded(matrix: &Matrix) -> FloatMatrix {
    match matrix {
        Matrix::Float(matrix) => matrix.clone(),
        Matrix::Quant(matrix) => FloatMatrix::decoded(matrix.name(), Arc::new(Decoded(matrix.clone()))),
    }
}

/// Rounds `matrix` to what `job` asks for with the usual search for scales, and hands the rows out in order, in runs of a multiple of
/// 32 (but the last).
///
/// # Errors
/// If a weight is not finite or cannot be read, or whatever `take` says.
pub fn round_anew<E: From<Error>>(
    matrix: &FloatMatrix,
    job: &TensorJob<'_>,
    take: &mut dyn FnMut(QMatrix) -> Result<(), E>,
) -> Result<ErrorSums, E> {
    let job = &job.with_levels_of(matrix)?;
    let ready = Rtn::USUAL.prepare(*job)?;
    let chunks = Chunks::new(job.shape.0, job.shape.1);
    let mut sums = ErrorSums::default();
    for rows in chunks.iter() {
        let Some((q, part)) = solve_rows(matrix, &*ready, job, &chunks, rows)? else {
            return Err(non_finite(matrix, job.module)?.into());
        };
        sums.add(&part);
        take(q)?;
    }
    Ok(sums)
}
