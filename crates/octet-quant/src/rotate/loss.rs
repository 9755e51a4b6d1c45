//! What quantizing linears as they are planned does to their outputs.

use crate::{
    Action, Error, InputStatistics, Line, Plan, Rtn, SampleRows, Samples, TensorJob, Want,
    calibrated::{Hessians, in_place, want},
    chunks::Chunks,
    observe::InputObserver,
    outliers, rows,
    sensitivity::survey,
    transform::{Sampler, distance_from, product},
};
use octet_kernels::Engine;
use octet_model::{ArchSpec, InputSite, LinearSite, Place};
use octet_tensor::{FloatMatrix, Matrix, Tensor, WeightSource};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
};

/// Outputs of sample rows that are compared at once, at the most.
const MOST_OUTPUTS: usize = 16 << 20;

/// What losses are measured with.
pub(super) struct Measure<'a> {
    pub(super) spec: &'a ArchSpec,
    pub(super) plan: &'a Plan,
    pub(super) samples: &'a Samples,
    pub(super) engine: &'a Engine,
    pub(super) cancel: &'a AtomicBool,
}

/// What flowed into the linears of a place.
pub(super) type Seen<'a> = (&'a BTreeMap<InputSite, InputStatistics>, &'a BTreeMap<InputSite, SampleRows>);

/// Told what flowed into these linears.
pub(super) type See<'a> = &'a mut dyn FnMut(&[&Line], Seen<'_>) -> Result<(), Error>;

impl Measure<'_> {
    /// Runs the samples through `source` and shows what flows into the quantized ones of `modules`, place by place.
    pub(super) fn look(&self, source: &dyn WeightSource, modules: &BTreeSet<&str>, hessians: bool, see: See<'_>) -> Result<(), Error> {
        let graph = self.spec.graph();
        let mut of: BTreeMap<Option<usize>, Vec<&Line>> = BTreeMap::new();
        for (line, site) in self.lines(modules) {
            if flows(site) {
                of.entry(site.input.layer).or_default().push(line);
            }
        }
        let key = |place| match place {
            Place::Layer(layer) => Some(layer),
            _ => None,
        };
        let begin = |place: Place| {
            let lines = of.get(&key(place))?;
            let mut wanted: BTreeMap<InputSite, Want> = BTreeMap::new();
            for line in lines {
                let Some(site) = &line.linear else { continue };
                let hessian = hessians && line.action.solver().is_some_and(|solver| solver.needs_hessian()) && want(line).is_some();
                let this = if hessian { Want::Hessian } else { Want::Magnitudes };
                let known = wanted.entry(site.input).or_insert(this);
                *known = this.max(*known);
            }
            let sites = wanted.keys().copied().collect();
            Some(Sampler::new(InputObserver::new(self.engine, wanted), sites))
        };
        let mut end = |place: Place, sampler: Option<Sampler<'_>>| {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { done: 0, total: graph.blocks.len() });
            }
            let Some(sampler) = sampler else { return Ok(()) };
            let (statistics, rows) = sampler.finish();
            statistics.iter().try_for_each(|(site, seen)| seen.check(*site))?;
            see(of.get(&key(place)).map_or(&[], Vec::as_slice), (&statistics, &rows))
        };
        survey(self.engine, self.spec, source, self.samples, &begin, &mut end)
    }

    /// The quantized ones of `modules`.
    pub(super) fn lines<'p>(&'p self, modules: &BTreeSet<&str>) -> impl Iterator<Item = (&'p Line, &'p LinearSite)> {
        let lines = self.plan.lines().iter().filter(|line| matches!(line.action, Action::Quantize { .. }));
        lines.filter(|line| modules.contains(line.name.as_str())).filter_map(|line| Some((line, line.linear.as_ref()?)))
    }

    /// Mean relative squared error of the outputs of each of `modules`, solved as the plan says and run as they will be; of a
    /// table that is only looked up, of its weights. What the plan keeps has none.
    pub(super) fn losses(&self, source: &dyn WeightSource, modules: &BTreeSet<&str>) -> Result<BTreeMap<String, f64>, Error> {
        let mut losses = BTreeMap::new();
        for (line, site) in self.lines(modules).filter(|(_, site)| !flows(site)) {
            losses.insert(line.name.clone(), self.solved(line, &rows::matrix(source, site)?, None, &Hessians::default())?.1);
        }
        self.look(source, modules, true, &mut |lines, (statistics, rows)| {
            let hessians = Hessians::new(self.engine, lines, statistics)?;
            for line in lines {
                let Some(site) = &line.linear else { continue };
                let (Some(seen), Some(sample)) = (statistics.get(&site.input), rows.get(&site.input)) else { continue };
                let matrix = rows::matrix(source, site)?;
                let (found, _) = self.solved(line, &matrix, Some(seen), &hessians)?;
                losses.insert(line.name.clone(), self.outputs(site, matrix, &found, sample)?);
            }
            Ok(())
        })?;
        Ok(losses)
    }

    /// A matrix as it will run, and the relative squared error of its weights.
    fn solved(
        &self,
        line: &Line,
        matrix: &FloatMatrix,
        seen: Option<&InputStatistics>,
        hessians: &Hessians<'_>,
    ) -> Result<(Matrix, f64), Error> {
        let (Action::Quantize { scheme, scale_dtype, solver: choice }, Some(site)) = (&line.action, &line.linear) else {
            return Ok((Matrix::Float(matrix.clone()), 0.0));
        };
        let hessian = line.action.hessian().and_then(|options| hessians.hessian(site.input, options));
        let importance = seen.filter(|_| scheme.weights.bits.get() < 8).map(InputStatistics::importance);
        let job = TensorJob {
            module: &line.name,
            shape: (site.rows, site.cols),
            scheme: scheme.weights,
            scale_dtype: *scale_dtype,
            importance: importance.as_deref(),
            hessian,
            table: None,
            engine: self.engine,
        };
        let job = job.with_levels_of(matrix)?;
        let (solver, rounding) = (choice.solver(), Rtn::with(choice.candidates()));
        let ready =
            if choice.needs_hessian() && hessian.is_none() { crate::Solver::prepare(&rounding, job)? } else { solver.prepare(job)? };
        let chunks = Chunks::new(site.rows, site.cols);
        let Some((q, sums)) = rows::solve_rows(matrix, &*ready, &job, &chunks, 0..site.rows)? else {
            return Err(rows::non_finite(matrix, &line.name)?);
        };
        let q = match outliers::columns(*scheme, site.cols, seen) {
            Some(columns) => outliers::attach(q, matrix, 0, &columns)?,
            None => q,
        };
        let q = match hessian.and_then(|hessian| hessian.g_idx(job.group_size())) {
            Some(order) if choice.orders_groups() => q.with_order(order.into())?,
            _ => q,
        };
        Ok((in_place(&line.name, q, *scheme), sums.relative()))
    }

    fn outputs(&self, site: &LinearSite, matrix: FloatMatrix, found: &Matrix, sample: &SampleRows) -> Result<f64, Error> {
        // Decoded once, because kernels read dense floats as they lie.
        let mut values = vec![0.0; site.rows * site.cols];
        matrix.read_rows(0..site.rows, &mut values)?;
        let float = FloatMatrix::dense(Tensor::from_f32(site.module.as_str(), vec![site.rows, site.cols], &values)?)?;
        let step = (sample.len() * site.rows).div_ceil(MOST_OUTPUTS).max(1);
        let x: Vec<f32> = sample.values.chunks_exact(sample.cols()).step_by(step).flatten().copied().collect();
        let tokens = x.len() / sample.cols();
        let expected = product(self.engine, &Matrix::Float(float), &x, tokens)?;
        Ok(distance_from(self.engine, &expected, &product(self.engine, found, &x, tokens)?, site.rows))
    }
}

/// Whether floats flow into it, and not token ids.
pub(super) fn flows(site: &LinearSite) -> bool {
    site.input.kind != octet_model::InputKind::Tokens
}
