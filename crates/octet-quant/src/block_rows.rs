//! Putting the rows of a matrix in blocks, on all threads, a chunk in memory at a time.

use crate::{
    BlockJob, Error, ErrorSums, Sink, SolverChoice,
    chunks::Chunks,
    rows::{all_finite, lock, non_finite},
    solve::{BlockGptq, BlockSearch},
};
use octet_tensor::{BlockRows, FloatMatrix};
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// A tensor about to be put in blocks.
pub(crate) struct BlockWork<'a> {
    job: BlockJob<'a>,
    solver: Solver<'a>,
}

enum Solver<'a> {
    Search(BlockSearch),
    Gptq(Box<BlockGptq<'a>>),
}

impl<'a> BlockWork<'a> {
    pub(crate) fn new(job: &BlockJob<'a>, choice: SolverChoice) -> Result<Self, Error> {
        let gptq = if let SolverChoice::Gptq(settings) = choice { BlockGptq::new(job, settings.refine)? } else { None };
        let solver = match gptq {
            Some(gptq) => Solver::Gptq(Box::new(gptq)),
            None => Solver::Search(BlockSearch::new(job)?),
        };
        Ok(Self { job: *job, solver })
    }

    /// Hands all rows of `matrix` to `sink`; the whole result too, where it is to be kept.
    pub(crate) fn run(
        &self,
        matrix: &FloatMatrix,
        sink: &mut dyn Sink,
        keep: bool,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<(ErrorSums, Option<BlockRows>), Error> {
        let (rows, cols) = self.job.shape;
        let chunks = Chunks::new(rows, cols);
        let mut sums = ErrorSums::default();
        let mut whole = keep.then(|| BlockRows::zeros(self.job.code, 0, cols)).transpose()?;
        for range in chunks.iter() {
            step(range.start as f64 / rows as f64)?;
            let Some((q, part)) = self.rows(matrix, &chunks, range.clone())? else {
                return Err(non_finite(matrix, self.job.module)?);
            };
            sums.add(&part);
            if let Some(whole) = &mut whole {
                whole.append(q.clone())?;
            }
            let failed = |source| Error::Sink { name: self.job.module.into(), source };
            sink.blocks(self.job.module, range.start, rows, q).map_err(failed)?;
        }
        Ok((sums, whole))
    }

    /// Solves some rows; `None` where a weight is not finite.
    fn rows(&self, matrix: &FloatMatrix, chunks: &Chunks, rows: Range<usize>) -> Result<Option<(BlockRows, ErrorSums)>, Error> {
        let cols = self.job.shape.1;
        let tasks: Vec<_> = rows.clone().step_by(chunks.task_rows).map(|_| Mutex::new(Ok(None))).collect();
        let buffers = Mutex::new(Vec::<Vec<f32>>::new());
        self.job.engine.run(tasks.len(), &|i| {
            let first = rows.start + i * chunks.task_rows;
            let range = first..(first + chunks.task_rows).min(rows.end);
            let mut buffer = lock(&buffers).pop().unwrap_or_default();
            buffer.resize(range.len() * cols, 0.0);
            *lock(&tasks[i]) = match matrix.read_rows(range, &mut buffer) {
                Err(error) => Err(error.into()),
                Ok(()) if !all_finite(&buffer) => Ok(None),
                Ok(()) => match &self.solver {
                    Solver::Search(search) => search.solve(&buffer).map(Some),
                    Solver::Gptq(gptq) => gptq.solve(&buffer).map(Some),
                },
            };
            lock(&buffers).push(buffer);
        });
        let mut out = BlockRows::zeros(self.job.code, 0, cols)?;
        let mut sums = ErrorSums::default();
        for task in tasks {
            match task.into_inner().unwrap_or_else(PoisonError::into_inner)? {
                Some((part, errors)) => {
                    out.append(part)?;
                    sums.add(&errors);
                }
                None => return Ok(None),
            }
        }
        Ok(Some((out, sums)))
    }
}
