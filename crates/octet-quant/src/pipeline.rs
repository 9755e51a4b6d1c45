//! Carrying out a plan: one tensor at a time, a chunk of its rows in memory at a time.

use crate::{
    Action, Error, ErrorSums, Importance, Line, Plan, RowSolver, RowsMut, Solver, TensorJob, TensorReport, behind, chunks::Chunks,
};
use half::bf16;
use octet_kernels::Engine;
use octet_model::LinearSite;
use octet_tensor::{Bytes, Dtype, FloatMatrix, Matrix, QMatrix, Scheme, Tensor, WeightSource};
use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Why something could not be written.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where the result goes. A matrix comes in runs of rows, in order, each starting at a multiple of 32 rows.
pub trait Sink: Send {
    /// Takes rows `first_row ..` of the quantized matrix `module`, which has `rows` in all.
    ///
    /// # Errors
    /// Whatever keeps it from taking them.
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> Result<(), SinkError>;

    /// As [`Sink::matrix`] where the caller has no more use for the rows, so that they may be written later.
    ///
    /// # Errors
    /// As [`Sink::matrix`], or whatever kept it from writing what it was given before.
    fn matrix_owned(&mut self, module: &str, first_row: usize, rows: usize, q: QMatrix) -> Result<(), SinkError> {
        self.matrix(module, first_row, rows, &q)
    }

    /// Takes the kept tensor `name`.
    ///
    /// # Errors
    /// Whatever keeps it from taking it.
    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), SinkError>;
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The block at work, `None` outside the blocks.
    pub layer: Option<usize>,
    /// The tensor at work.
    pub tensor: &'a str,
    /// Relative squared error of the tensor, once it is finished.
    pub error: Option<f64>,
    /// Stored bytes dealt with.
    pub done_bytes: u64,
    /// Stored bytes in all.
    pub total_bytes: u64,
}

/// Everything a run needs.
pub struct Run<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Where the weights are.
    pub source: &'a dyn WeightSource,
    /// Importance of inputs, where calibration ran.
    pub importance: Option<&'a Importance>,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop after the rows at work.
    pub cancel: &'a AtomicBool,
}

impl Run<'_> {
    /// Carries out the plan: quantizes and copies every tensor into `sink`, in the plan's order.
    ///
    /// # Errors
    /// If weights are not finite (tensor and count are named), cannot be read or written, or the run is cancelled.
    pub fn quantize(&self, sink: &mut dyn Sink, progress: &mut dyn FnMut(&Progress<'_>)) -> Result<Vec<TensorReport>, Error> {
        behind::writing(sink, |sink| self.lines(sink, progress))
    }

    fn lines(&self, sink: &mut dyn Sink, progress: &mut dyn FnMut(&Progress<'_>)) -> Result<Vec<TensorReport>, Error> {
        let lines = self.plan.lines();
        let total_bytes = lines.iter().map(|line| line.stored_bytes).sum();
        let mut done_bytes = 0;
        let mut reports = Vec::with_capacity(lines.len());
        for (done, line) in lines.iter().enumerate() {
            let stopped = || Error::Interrupted { done, total: lines.len() };
            if self.cancel.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            let at = |error, share: f64| Progress {
                layer: line.linear.as_ref().and_then(|site| site.layer),
                tensor: &line.name,
                error,
                done_bytes: done_bytes + (share * line.stored_bytes as f64) as u64,
                total_bytes,
            };
            let error = match (&line.action, &line.linear) {
                (Action::Quantize { scheme, .. }, Some(site)) => {
                    let mut step = |share: f64| {
                        progress(&at(None, share));
                        if self.cancel.load(Ordering::Relaxed) { Err(stopped()) } else { Ok(()) }
                    };
                    Some((*scheme, self.matrix(line, site, sink, &mut step)?))
                }
                (Action::Drop { .. }, _) => None,
                _ => {
                    progress(&at(None, 0.0));
                    self.keep(line, sink)?;
                    None
                }
            };
            progress(&at(error.map(|(_, sums)| sums.relative()), 1.0));
            done_bytes += line.stored_bytes;
            reports.push(report(line, error));
        }
        Ok(reports)
    }

    fn matrix(
        &self,
        line: &Line,
        site: &LinearSite,
        sink: &mut dyn Sink,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<ErrorSums, Error> {
        let Action::Quantize { scheme, scale_dtype, solver } = line.action else { return Ok(ErrorSums::default()) };
        let matrix = matrix(self.source, site)?;
        let Some(solver) = solver.rtn() else {
            return Err(Error::NeedsCalibration { module: line.name.clone(), solver: solver.name() });
        };
        let job = TensorJob {
            module: &line.name,
            shape: (site.rows, site.cols),
            scheme: scheme.weights,
            scale_dtype,
            importance: self.importance.and_then(|importance| importance.of(site.input)),
            hessian: None,
            engine: self.engine,
        };
        let ready = solver.prepare(job)?;
        let chunks = Chunks::new(site.rows, site.cols);
        let mut sums = ErrorSums::default();
        for rows in chunks.iter() {
            step(rows.start as f64 / site.rows as f64)?;
            let Some((q, part)) = self.chunk(&matrix, &*ready, &job, &chunks, rows.clone())? else {
                return Err(non_finite(&matrix, &line.name)?);
            };
            sums.add(&part);
            sink.matrix_owned(&line.name, rows.start, site.rows, q).map_err(|source| Error::Sink { name: line.name.clone(), source })?;
        }
        matrix.release();
        Ok(sums)
    }

    /// Solves some rows on all threads; `None` where a weight is not finite.
    fn chunk(
        &self,
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
        self.engine.run(tasks.len(), &|i| {
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
        Ok(Some((QMatrix::new(rows.len(), cols, job.scheme, codes, scales, job.scale_dtype, zeros)?, sums)))
    }

    /// Copies a tensor unchanged; FP8 with block scales becomes BF16.
    fn keep(&self, line: &Line, sink: &mut dyn Sink) -> Result<(), Error> {
        let name = line.linear.as_ref().map_or_else(|| line.name.clone(), |site| format!("{}.weight", site.module));
        let tensor = match &line.linear {
            Some(site) if line.stored == Dtype::F8E4m3 => decoded(&name, &matrix(self.source, site)?, self.engine)?,
            _ => self.source.tensor(&name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.clone() })?,
        };
        if tensor.dtype().is_float() {
            let flat = Tensor::new(name.as_str(), tensor.dtype(), vec![1, tensor.len()], tensor.bytes().clone())?;
            let count = count_non_finite(&FloatMatrix::dense(flat)?)?;
            if count > 0 {
                return Err(Error::NonFinite { name, count, total: tensor.len() });
            }
        }
        sink.tensor(&name, &tensor).map_err(|source| Error::Sink { name, source })
    }
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
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The float matrix `[rows, cols]` of a site, however it is stored.
pub(crate) fn matrix(source: &dyn WeightSource, site: &LinearSite) -> Result<FloatMatrix, Error> {
    let name = format!("{}.weight", site.module);
    let missing = || octet_tensor::Error::Missing { name: name.clone() };
    let matrix = match source.matrix(&site.module)?.ok_or_else(missing)? {
        Matrix::Quant(matrix) => return Err(Error::AlreadyQuantized { name, scheme: matrix.scheme().to_string() }),
        Matrix::Float(_) if site.transposed => FloatMatrix::transposed(source.tensor(&name)?.ok_or_else(missing)?)?,
        Matrix::Float(matrix) => matrix,
    };
    if (matrix.rows(), matrix.cols()) != (site.rows, site.cols) {
        let expected = format!("[{}, {}]", site.rows, site.cols);
        return Err(octet_tensor::Error::Shape { name, expected, found: vec![matrix.rows(), matrix.cols()] }.into());
    }
    Ok(matrix)
}

/// x · 0 is 0 for every finite x and NaN for the others, which no later sum hides.
fn all_finite(values: &[f32]) -> bool {
    let (chunks, tail) = values.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * 0.0;
        }
    }
    sums.iter().all(|&sum| sum == 0.0) && tail.iter().all(|value| value.is_finite())
}

fn count_non_finite(matrix: &FloatMatrix) -> Result<usize, Error> {
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

fn non_finite(matrix: &FloatMatrix, module: &str) -> Result<Error, Error> {
    let (count, total) = (count_non_finite(matrix)?, matrix.rows() * matrix.cols());
    Ok(Error::NonFinite { name: format!("{module}.weight"), count, total })
}

/// A float matrix as a BF16 tensor.
fn decoded(name: &str, matrix: &FloatMatrix, engine: &Engine) -> Result<Tensor, Error> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut bytes = vec![0u8; rows * cols * 2];
    let task_rows = Chunks::new(rows, cols).task_rows;
    let tasks: Vec<_> = bytes.chunks_mut((task_rows * cols * 2).max(1)).map(|out| Mutex::new((out, Ok(())))).collect();
    engine.run(tasks.len(), &|i| {
        let mut task = lock(&tasks[i]);
        let (out, result) = &mut *task;
        let first = i * task_rows;
        let mut row = vec![0.0; out.len() / 2];
        *result = matrix.read_rows(first..first + out.len() / 2 / cols, &mut row);
        for (value, out) in row.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = bf16::from_f32(*value).to_le_bytes();
        }
    });
    for task in tasks {
        task.into_inner().unwrap_or_else(PoisonError::into_inner).1?;
    }
    Ok(Tensor::new(name, Dtype::Bf16, vec![rows, cols], Bytes::new(bytes))?)
}

fn report(line: &Line, error: Option<(Scheme, ErrorSums)>) -> TensorReport {
    TensorReport {
        name: line.name.clone(),
        scheme: error.map(|(scheme, _)| scheme),
        error: error.map(|(_, sums)| sums).unwrap_or_default(),
        bits_per_weight: 8.0 * line.bytes as f64 / line.elements().max(1) as f64,
    }
}
