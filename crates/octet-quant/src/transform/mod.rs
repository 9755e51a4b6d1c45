//! Transforms: float weights rewritten before they are solved, such that the block computes the same and loses less when
//! it is quantized. Where factors may move is read off the block graph ([`octet_model::Fold`]).

mod awq;
mod clip;
mod factors;
mod outliers;
mod readers;
mod sample;
mod scaling;
mod smooth;

pub use factors::move_factors;
pub use outliers::{OUTLIER, plant_outliers};
pub(crate) use readers::{distance_from, product};
pub use sample::SampleRows;
pub(crate) use sample::{SAMPLE_ROWS, Sampler};
pub use scaling::Scaling;

use crate::{Action, BlockWeights, Error, InputStatistics, Line, SolverChoice};
use octet_kernels::Engine;
use octet_model::{BlockGraph, InputSite, LinearSite, Place};
use octet_tensor::{Dtype, Scheme};
use std::collections::{BTreeMap, BTreeSet};

/// Rewrites the float weights of a part of the model before they are solved, such that it computes the same.
pub trait Transform: Sync {
    /// The inputs of `place` whose statistics and rows it wants; none where it has nothing to do there.
    fn wants(&self, graph: &BlockGraph, place: Place) -> BTreeSet<InputSite>;

    /// Rewrites weights of `part` and says what it did, for the report.
    ///
    /// # Errors
    /// If weights cannot be read, the statistics make no sense, or it is told to stop.
    fn apply(&self, part: &mut Part<'_, '_>) -> Result<Vec<String>, Error>;
}

/// A part of the model (a block, or the final norm and head) as transforms see it.
pub struct Part<'a, 'w> {
    /// Which one.
    pub place: Place,
    /// The graph it is part of.
    pub graph: &'a BlockGraph,
    /// What the plan says about its tensors.
    pub lines: &'a [&'a Line],
    /// Magnitudes of the inputs that were wanted, from the float block.
    pub statistics: &'a mut BTreeMap<InputSite, InputStatistics>,
    /// Some rows of each.
    pub rows: &'a mut BTreeMap<InputSite, SampleRows>,
    /// Its weights.
    pub weights: &'a mut BlockWeights<'w>,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Called now and then; an error stops the work.
    pub tick: &'a mut dyn FnMut() -> Result<(), Error>,
}

/// How a linear will be quantized.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) scheme: Scheme,
    pub(crate) scale_dtype: Dtype,
    pub(crate) solver: SolverChoice,
}

impl Part<'_, '_> {
    fn line(&self, module: &str) -> Option<&Line> {
        self.lines.iter().copied().find(|line| line.name == module)
    }

    pub(crate) fn planned(&self, module: &str) -> Option<Planned> {
        match self.line(module)?.action {
            Action::Quantize { scheme, scale_dtype, solver } => Some(Planned { scheme, scale_dtype, solver }),
            _ => None,
        }
    }

    /// The type that changed weights of `site` wait in: what is solved loses nothing, what is kept has its own type at once.
    pub(crate) fn dtype(lines: &[&Line], site: &LinearSite) -> Dtype {
        match lines.iter().find(|line| line.name == site.module).map(|line| &line.action) {
            Some(Action::Keep { dtype, .. }) => *dtype,
            _ => Dtype::F32,
        }
    }
}
