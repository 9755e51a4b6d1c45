//! Carrying out a plan: one tensor at a time, a chunk of its rows in memory at a time.

use crate::{
    Action, BlockJob, Error, ErrorSums, Line, Plan, SolverChoice, TensorJob, TensorReport, behind,
    block_rows::BlockWork,
    chunks::Chunks,
    rows::{count_non_finite, lock, matrix, non_finite, solve_rows},
};
use half::bf16;
use octet_kernels::Engine;
use octet_model::LinearSite;
use octet_tensor::{BlockCode, BlockRows, Bytes, Dtype, FloatMatrix, QMatrix, Tensor, WeightSource};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
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

    /// Takes rows `first_row ..` of the matrix `module` in blocks, which has `rows` in all.
    ///
    /// # Errors
    /// Whatever keeps it from taking them.
    fn blocks(&mut self, module: &str, first_row: usize, rows: usize, q: BlockRows) -> Result<(), SinkError> {
        let _ = (first_row, rows);
        Err(format!("{module} comes in {} blocks, which this output does not hold", q.code.name).into())
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
        if self.plan.distill().is_some() {
            return Err(Error::NeedsCalibration { module: "the whole model".into(), solver: "distillation" });
        }
        if !self.plan.rotations().is_empty() {
            return Err(Error::NeedsCalibration { module: "the whole model".into(), solver: "rotations" });
        }
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
                (Action::Blocks { code, solver }, Some(site)) => {
                    let mut step = |share: f64| {
                        progress(&at(None, share));
                        if self.cancel.load(Ordering::Relaxed) { Err(stopped()) } else { Ok(()) }
                    };
                    self.blocks(line, site, (*code, *solver), sink, &mut step)?;
                    None
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
            reports.push(error.map_or_else(|| TensorReport::kept(line), |(scheme, sums)| TensorReport::quantized(line, scheme, sums)));
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
        if solver.needs_hessian() {
            return Err(Error::NeedsCalibration { module: line.name.clone(), solver: solver.name() });
        }
        let solver = solver.solver();
        let job = TensorJob {
            module: &line.name,
            shape: (site.rows, site.cols),
            scheme: scheme.weights,
            scale_dtype,
            importance: None,
            hessian: None,
            table: None,
            engine: self.engine,
        };
        let job = job.with_levels_of(&matrix)?;
        let ready = solver.prepare(job)?;
        let chunks = Chunks::new(site.rows, site.cols);
        let mut sums = ErrorSums::default();
        for rows in chunks.iter() {
            step(rows.start as f64 / site.rows as f64)?;
            let Some((q, part)) = solve_rows(&matrix, &*ready, &job, &chunks, rows.clone())? else {
                return Err(non_finite(&matrix, &line.name)?);
            };
            sums.add(&part);
            sink.matrix_owned(&line.name, rows.start, site.rows, q).map_err(|source| Error::Sink { name: line.name.clone(), source })?;
        }
        matrix.release();
        Ok(sums)
    }

    fn blocks(
        &self,
        line: &Line,
        site: &LinearSite,
        (code, solver): (BlockCode, SolverChoice),
        sink: &mut dyn Sink,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if solver.needs_hessian() {
            return Err(Error::NeedsCalibration { module: line.name.clone(), solver: solver.name() });
        }
        let matrix = matrix(self.source, site)?;
        let shape = (site.rows, site.cols);
        let job = BlockJob { module: &line.name, shape, code, importance: None, hessian: None, engine: self.engine };
        BlockWork::new(&job, solver)?.run(&matrix, sink, false, step)?;
        matrix.release();
        Ok(())
    }

    fn keep(&self, line: &Line, sink: &mut dyn Sink) -> Result<(), Error> {
        let (name, tensor) = kept(self.source, line, self.engine)?;
        sink.tensor(&name, &tensor).map_err(|source| Error::Sink { name, source })
    }
}

/// A tensor as it is kept, with its name: unchanged, FP8 with block scales as BF16.
pub(crate) fn kept(source: &dyn WeightSource, line: &Line, engine: &Engine) -> Result<(String, Tensor), Error> {
    let name = line.linear.as_ref().map_or_else(|| line.name.clone(), |site| format!("{}.weight", site.module));
    let tensor = match &line.linear {
        Some(site) if line.stored == Dtype::F8E4m3 => decoded(&name, &matrix(source, site)?, engine)?,
        _ => source.tensor(&name)?.ok_or_else(|| octet_tensor::Error::Missing { name: name.clone() })?,
    };
    if tensor.dtype().is_float() {
        let flat = Tensor::new(name.as_str(), tensor.dtype(), vec![1, tensor.len()], tensor.bytes().clone())?;
        let count = count_non_finite(&FloatMatrix::dense(flat)?)?;
        if count > 0 {
            return Err(Error::NonFinite { name, count, total: tensor.len() });
        }
    }
    Ok((name, tensor))
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
