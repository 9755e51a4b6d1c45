//! Solving the rows of a matrix on all threads, and the float matrices they come from.

use crate::{Error, ErrorSums, RowSolver, RowsMut, TensorJob, chunks::Chunks};
use octet_model::LinearSite;
use octet_tensor::{FloatMatrix, Matrix, QMatrix, Tensor, WeightSource};
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Solves some rows on all threads; `None` where a weight is not finite.
pub(crate) fn solve_rows(
    matrix: &FloatMatrix,
    solver: &dyn RowSolver,
    job: &TensorJob<'_>,
    chunks: &Chunks,
    rows: Range<usize>,
) -> Result<Option<(QMatrix, ErrorSums)>, Error> {
    let (cols, groups) = (job.shape.1, job.scheme.groups(job.shape.1));
    let (mut codes, mut scales) = (vec![0i8; rows.len() * cols], vec![0f32; rows.len() * groups]);
    let mut zeros = vec![0i8; if job.scheme.is_asymmetric() { scales.len() } else { 0 }];
    let tasks = cut(&mut codes, &mut scales, &mut zeros, chunks.task_rows, cols, groups);
    let buffers = Mutex::new(Vec::<Vec<f32>>::new());
    job.engine.run(tasks.len(), &|i| {
        let first = rows.start + i * chunks.task_rows;
        let range = first..(first + chunks.task_rows).min(rows.end);
        let mut buffer = lock(&buffers).pop().unwrap_or_default();
        buffer.resize(range.len() * cols, 0.0);
        let mut task = lock(&tasks[i]);
        task.result = match matrix.read_rows(range, &mut buffer) {
            Err(error) => Err(error.into()),
            Ok(()) if !all_finite(&buffer) => Ok(None),
            Ok(()) => {
                let Task { codes, scales, zeros, .. } = &mut *task;
                Ok(Some(solver.solve(&buffer, RowsMut { codes, scales, zeros })))
            }
        };
        lock(&buffers).push(buffer);
    });
    let mut sums = ErrorSums::default();
    for task in tasks {
        match task.into_inner().unwrap_or_else(PoisonError::into_inner).result? {
            Some(part) => sums.add(&part),
            None => return Ok(None),
        }
    }
    Ok(Some((QMatrix::spelt(job.alphabet(), (rows.len(), cols), job.scheme, codes, scales, job.scale_dtype, zeros)?, sums)))
}

/// One thread's share of a chunk.
struct Task<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    zeros: &'a mut [i8],
    result: Result<Option<ErrorSums>, Error>,
}

fn cut<'a>(
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    mut zeros: &'a mut [i8],
    rows: usize,
    cols: usize,
    groups: usize,
) -> Vec<Mutex<Task<'a>>> {
    let parts = codes.chunks_mut((rows * cols).max(1)).zip(scales.chunks_mut((rows * groups).max(1)));
    let task = |(codes, scales): (&'a mut [i8], &'a mut [f32])| {
        let take = scales.len().min(zeros.len());
        let (mine, rest) = std::mem::take(&mut zeros).split_at_mut(take);
        zeros = rest;
        Mutex::new(Task { codes, scales, zeros: mine, result: Ok(None) })
    };
    parts.map(task).collect()
}

/// A panic while holding the lock is raised again by the engine; the data behind it is then never looked at.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The float matrix `[rows, cols]` of a site, however it is stored.
pub(crate) fn matrix(source: &dyn WeightSource, site: &LinearSite) -> Result<FloatMatrix, Error> {
    let name = format!("{}.weight", site.module);
    let missing = || octet_tensor::Error::Missing { name: name.clone() };
    let matrix = match source.matrix(&site.module)?.ok_or_else(missing)? {
        Matrix::Quant(matrix) => return Err(Error::AlreadyQuantized { name, scheme: matrix.scheme().to_string() }),
        Matrix::Float(float) if site.transposed && float.dense_bytes().is_some() => {
            FloatMatrix::transposed(source.tensor(&name)?.ok_or_else(missing)?)?
        }
        Matrix::Float(matrix) => matrix,
    };
    if (matrix.rows(), matrix.cols()) != (site.rows, site.cols) {
        let expected = format!("[{}, {}]", site.rows, site.cols);
        return Err(octet_tensor::Error::Shape { name, expected, found: vec![matrix.rows(), matrix.cols()] }.into());
    }
    Ok(matrix)
}

/// Whether no exponent is all ones. The whole of `values` is looked at, without a branch, because that vectorizes.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = |value: &f32| u32::from(value.to_bits() & EXPONENT == EXPONENT);
    values.iter().fold(0, |any, value| any | bad(value)) == 0
}

pub(crate) fn count_non_finite(matrix: &FloatMatrix) -> Result<usize, Error> {
    // Works on stored runs of elements, so that a long row is no reason for a large buffer.
    const RUN: usize = 1 << 16;
    if let Some((dtype, bytes)) = matrix.dense_bytes() {
        let run = RUN * dtype.size();
        let mut buffer = vec![0.0; RUN.min(bytes.len() / dtype.size().max(1))];
        let mut count = 0;
        for start in (0..bytes.len()).step_by(run) {
            let Some(part) = bytes.slice(start..(start + run).min(bytes.len())) else { break };
            let elements = part.len() / dtype.size();
            let out = &mut buffer[..elements];
            Tensor::new(matrix.name(), dtype, vec![elements], part)?.read_f32(0, out)?;
            if !all_finite(out) {
                count += out.iter().filter(|v| !v.is_finite()).count();
            }
        }
        return Ok(count);
    }
    let mut count = 0;
    for range in Chunks::new(matrix.rows(), matrix.cols()).iter() {
        let mut buffer = vec![0.0; range.len() * matrix.cols()];
        matrix.read_rows(range, &mut buffer)?;
        count += buffer.iter().filter(|v| !v.is_finite()).count();
    }
    Ok(count)
}

/// The error that says how many weights are not finite.
pub(crate) fn non_finite(matrix: &FloatMatrix, module: &str) -> Result<Error, Error> {
    let (count, total) = (count_non_finite(matrix)?, matrix.rows() * matrix.cols());
    Ok(Error::NonFinite { name: format!("{module}.weight"), count, total })
}
