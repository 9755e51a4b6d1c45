//! Solvers: weights + statistics + scheme → codes, scales and zero points, with the error they leave.

mod blocks;
mod candidates;
mod gptq;
mod levels;
mod quick;
mod rounding;
mod rtn;
mod whole;

pub use blocks::BlockJob;
pub(crate) use blocks::{BlockGptq, BlockSearch};
pub use gptq::{ActOrder, Gptq, Hessian, HessianOptions};
pub use rtn::Rtn;

use crate::{Error, ErrorSums};
use octet_kernels::Engine;
use octet_tensor::{Alphabet, Dtype, Granularity, RowFactor, Table, WeightScheme};
use rounding::Stored;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a solver is told about a tensor before it sees any of its rows.
#[derive(Clone, Copy)]
pub struct TensorJob<'a> {
    /// The tensor's module path, for errors.
    pub module: &'a str,
    /// Outputs and inputs of the whole tensor.
    pub shape: (usize, usize),
    /// The representation asked for.
    pub scheme: WeightScheme,
    /// The type that scales, or the factors of whole ones, will be stored in: a solver only uses scales that are held exactly.
    pub scale_dtype: Dtype,
    /// Importance of each input, mean 1 (mean square of what flows in), or `None` without calibration.
    pub importance: Option<&'a [f32]>,
    /// Second moments of the input, for solvers that need more than its importance.
    pub hessian: Option<&'a Hessian>,
    /// The tensor's own levels, where its scheme has some and they were learnt.
    pub table: Option<Table>,
    /// Kernels to solve with.
    pub engine: &'a Engine,
}

impl TensorJob<'_> {
    /// Inputs that share a scale.
    pub fn group_size(&self) -> usize {
        match self.scheme.granularity {
            Granularity::PerChannel => self.shape.1.max(1),
            Granularity::Group(size) => size.get(),
        }
    }

    /// What the scales of a row can be, given those it has.
    fn stored(&self, scales: &[f32]) -> Stored {
        match self.scheme.has_whole_scales() {
            true => Stored::Whole(RowFactor::of(scales, self.scale_dtype).unwrap_or(RowFactor::ZERO)),
            false => Stored::Float(self.scale_dtype),
        }
    }

    /// What codes are.
    pub fn alphabet(&self) -> Alphabet {
        self.table.map_or_else(|| self.scheme.alphabet(), Alphabet::Table)
    }
}

/// Where the result for a run of rows goes; every slice covers exactly these rows.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// Codes `[rows, cols]`.
    pub codes: &'a mut [i8],
    /// Scales `[rows, groups]`.
    pub scales: &'a mut [f32],
    /// Zero points `[rows, groups]`; empty for a symmetric scheme.
    pub zeros: &'a mut [i8],
}

impl<'a> RowsMut<'a> {
    /// Cuts it into runs of at most `rows` rows of `cols` codes and `groups` scales.
    pub fn split(self, rows: usize, cols: usize, groups: usize) -> impl Iterator<Item = RowsMut<'a>> {
        let mut zeros = self.zeros;
        let parts = self.codes.chunks_mut((rows * cols).max(1)).zip(self.scales.chunks_mut((rows * groups).max(1)));
        parts.map(move |(codes, scales)| {
            let take = scales.len().min(zeros.len());
            let (mine, rest) = std::mem::take(&mut zeros).split_at_mut(take);
            zeros = rest;
            RowsMut { codes, scales, zeros: mine }
        })
    }
}

/// A panic while holding the lock is raised again by the engine; the data behind it is then never looked at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A quantization algorithm.
pub trait Solver: Sync {
    /// Does the work that all rows of a tensor share (for round-to-nearest next to none; a Hessian's factorisation for
    /// others) and gives what solves rows.
    ///
    /// # Errors
    /// If the statistics make no sense for the tensor.
    fn prepare<'a>(&'a self, job: TensorJob<'a>) -> Result<Box<dyn RowSolver + 'a>, Error>;
}

/// A solver made ready for one tensor; rows are independent and may be solved in any order on any thread.
pub trait RowSolver: Sync {
    /// Quantizes finite `weights` `[rows, cols]` into `out` and says what error that leaves.
    fn solve(&self, weights: &[f32], out: RowsMut<'_>) -> ErrorSums;

    /// What a report should say about this tensor, such as damping that had to be raised.
    fn remark(&self) -> Option<String> {
        None
    }
}
