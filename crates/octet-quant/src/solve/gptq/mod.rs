//! GPTQ: rounding that makes good, input by input, what it does to the output.

mod hessian;
mod refine;
mod rescale;
mod rows;

pub use hessian::{ActOrder, Hessian, HessianOptions};

use super::{RowSolver, RowsMut, Rtn, Solver, TensorJob};
use crate::{Error, ErrorSums};
use octet_tensor::Alphabet;
use rows::Work;
use std::sync::Mutex;

/// Rounding with feedback through the Hessian of the input (Frantar et al., GPTQ; the form without an inverse is that of
/// Chee et al., QuIP, section 3), then refinement of codes and scales against the whole Hessian.
///
/// Scales come from the search of [`Rtn`] on the original weights, weighted by the Hessian's diagonal. A row is never left
/// with more error than rounding to nearest with the same scales leaves, as the damped Hessian counts it.
/// Where the Hessian is not positive definite, or its order tears points of a lattice apart, the result is that search's ([`Hessian::is_positive_definite`] says so).
///
/// Rows are independent and sums have a fixed order: the same weights and Hessian give the same bytes on every
/// instruction set and any number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gptq {
    /// The search for scales.
    pub search: Rtn,
    /// Rounds of refinement: coordinate descent over the codes, then least squares for the scales of a row under the whole
    /// Hessian; each costs seven times what rounding does.
    pub refinements: usize,
}

impl Gptq {
    /// GPTQ and nothing else.
    pub const PLAIN: Self = Self { search: Rtn::USUAL, refinements: 0 };

    /// With refinement.
    pub const USUAL: Self = Self { search: Rtn::USUAL, refinements: 3 };
}

/// Rows a task holds: enough that the factor is read rarely, few enough that they stay in the cache.
const TASK_ROWS: usize = 96;

impl Solver for Gptq {
    fn prepare<'a>(&'a self, job: TensorJob<'a>) -> Result<Box<dyn RowSolver + 'a>, Error> {
        let hessian = job.hessian.ok_or_else(|| Error::NoHessian { module: job.module.into() })?;
        if hessian.size() != job.shape.1 {
            return Err(Error::Importance { module: job.module.into(), expected: job.shape.1, found: hessian.size() });
        }
        let search = self.search.prepare(TensorJob { importance: Some(hessian.importance()), ..job })?;
        let fits = job.alphabet() != Alphabet::Lattice || hessian.keeps_eights();
        Ok(match hessian.factor().filter(|_| fits) {
            Some(factor) => Box::new(GptqRows { work: Work::new(job, hessian, factor, self.refinements), search }),
            None => search,
        })
    }
}

struct GptqRows<'a> {
    work: Work<'a>,
    search: Box<dyn RowSolver + 'a>,
}

impl RowSolver for GptqRows<'_> {
    /// Uses all threads of the engine if it is not called from one of them.
    fn solve(&self, weights: &[f32], out: RowsMut<'_>) -> ErrorSums {
        let (cols, groups) = (self.work.cols(), self.work.groups());
        if cols == 0 {
            return ErrorSums::default();
        }
        let parts = weights.chunks(TASK_ROWS * cols).zip(out.split(TASK_ROWS, cols, groups));
        let tasks: Vec<_> = parts.map(|(weights, out)| Mutex::new((weights, Some(out), ErrorSums::default()))).collect();
        self.work.engine().run(tasks.len(), &|i| {
            let mut task = super::lock(&tasks[i]);
            let (weights, out, sums) = &mut *task;
            if let Some(out) = out.take() {
                *sums = self.work.solve(weights, out, &*self.search);
            }
        });
        let mut sums = ErrorSums::default();
        for task in tasks {
            sums.add(&super::lock(&task).2);
        }
        sums
    }
}
