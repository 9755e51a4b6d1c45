//! One tensor: the solver it was planned for, or rounding to nearest where that one cannot.

use super::{BlockWeights, CalibratedRun, stage::Statistics};
use crate::{
    Action, Error, ErrorSums, Hessian, HessianOptions, Line, RowSolver, Rtn, Sink, Solver, SolverChoice, TensorJob, TensorReport,
    asymmetric::Shift, chunks::Chunks, outliers, rows,
};
use octet_kernels::Engine;
use octet_model::{InputSite, LinearSite};
use octet_tensor::{Beside, FloatMatrix, FloatRows, Matrix, QMatrix, Scheme, StoredQuant};
use std::{ops::Range, sync::Arc};

/// The Hessians of the inputs at hand, each made once for all linears that read the input.
#[derive(Default)]
pub(crate) struct Hessians<'a>(Vec<Prepared<'a>>);

/// What linears that read one input share.
struct Prepared<'a> {
    input: InputSite,
    options: HessianOptions,
    hessian: Hessian,
    /// What moves their targets.
    shift: Option<Shift<'a>>,
}

impl<'a> Hessians<'a> {
    /// Makes what the solvers of `lines` need.
    pub(crate) fn new(engine: &Engine, lines: &[&Line], statistics: &'a Statistics) -> Result<Self, Error> {
        let mut all = Self::default();
        for line in lines {
            let Some(site) = &line.linear else { continue };
            let seen = statistics.get(&site.input);
            let moments = seen.and_then(|seen| seen.moments.as_ref());
            if let (Some(options), Some(moments)) = (line.action.hessian(), moments)
                && all.get(site.input, options).is_none()
            {
                let name = site.input.to_string();
                let hessian = Hessian::new(engine, &name, moments, options)?;
                let beyond = seen.and_then(|seen| seen.beyond.as_ref());
                let shift = beyond.map(|beyond| Shift::new(engine, &name, (moments, beyond), options)).transpose()?.flatten();
                all.0.push(Prepared { input: site.input, options, hessian, shift });
            }
        }
        Ok(all)
    }

    /// The one of an input, where it was made.
    pub(crate) fn hessian(&self, input: InputSite, options: HessianOptions) -> Option<&Hessian> {
        self.get(input, options).map(|known| &known.hessian)
    }

    fn get(&self, input: InputSite, options: HessianOptions) -> Option<&Prepared<'a>> {
        self.0.iter().find(|known| (known.input, known.options) == (input, options))
    }
}

/// A tensor to be solved.
pub(super) struct Solving<'a> {
    pub(super) run: &'a CalibratedRun<'a>,
    pub(super) line: &'a Line,
    pub(super) weights: &'a BlockWeights<'a>,
    pub(super) statistics: &'a Statistics,
    pub(super) hessians: &'a Hessians<'a>,
    /// Whether the result is needed as a whole.
    pub(super) keep: bool,
}

/// What a tensor is solved for.
pub(super) struct Aim<'a> {
    /// The weights: moved, where that makes good what the inputs have lost.
    pub(super) matrix: FloatMatrix,
    /// What is known of the input, where the solver asks for it.
    pub(super) hessian: Option<&'a Hessian>,
    /// How far the weights were moved.
    pub(super) moved: Option<f64>,
}

impl Solving<'_> {
    /// The weights of `site` as `choice` is to solve them.
    pub(super) fn aim(&self, choice: SolverChoice, site: &LinearSite) -> Result<Aim<'_>, Error> {
        let matrix = rows::matrix(self.weights, site)?;
        let prepared = self.line.action.hessian().and_then(|options| self.hessians.get(site.input, options));
        let hessian = prepared.map(|prepared| &prepared.hessian);
        if let (Some(Prepared { hessian: known, shift: Some(shift), .. }), true) = (prepared, choice.is_asymmetric())
            && let Some((matrix, alpha)) = shift.target(self.run.engine, &matrix, known)?
        {
            return Ok(Aim { matrix, hessian, moved: Some(alpha) });
        }
        Ok(Aim { matrix, hessian, moved: None })
    }

    /// Solves the tensor into `sink`.
    pub(super) fn solve(
        &self,
        sink: &mut dyn Sink,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<(TensorReport, Option<Matrix>), Error> {
        if let Action::Blocks { code, solver } = &self.line.action {
            return self.blocks(*code, *solver, sink, step);
        }
        let (Action::Quantize { scheme, scale_dtype, solver: choice }, Some(site)) = (&self.line.action, &self.line.linear) else {
            return Ok((TensorReport::kept(self.line), None));
        };
        let Aim { matrix, hessian, moved } = self.aim(*choice, site)?;
        let seen = self.statistics.get(&site.input);
        // 8 bits gain nothing from the importance of inputs.
        let importance = seen.filter(|_| scheme.weights.bits.get() < 8).map(|seen| seen.importance());
        let job = TensorJob {
            module: &self.line.name,
            shape: (site.rows, site.cols),
            scheme: scheme.weights,
            scale_dtype: *scale_dtype,
            importance: importance.as_deref(),
            hessian,
            table: None,
            engine: self.run.engine,
        };
        let job = job.with_levels_of(&matrix)?;
        let solver = choice.solver();
        let rounding = Rtn::with(choice.candidates());
        let remark;
        let ready = match (choice.needs_hessian() && job.hessian.is_none(), self.run.options.strict) {
            (true, true) => return Err(Error::Unreached { module: self.line.name.clone() }),
            (true, false) => {
                remark = Some("no calibration token reached it: rounded to nearest".to_string());
                rounding.prepare(job)?
            }
            (false, strict) => {
                remark = damped(hessian, &self.line.name, strict)?;
                solver.prepare(job)?
            }
        };
        let extras = Extras {
            columns: outliers::columns(*scheme, site.cols, seen),
            order: choice.orders_groups().then(|| order(hessian, job.group_size(), site.cols)),
        };
        let (sums, q) = self.rows(&matrix, &*ready, (&job, &extras), sink, step)?;
        let remark = remark.or_else(|| ready.remark());
        let report =
            TensorReport { solver: Some(choice.to_string()), remark, shift: moved, ..TensorReport::quantized(self.line, *scheme, sums) };
        Ok((report, q.map(|q| in_place(&self.line.name, q, *scheme))))
    }

    fn rows(
        &self,
        matrix: &FloatMatrix,
        ready: &dyn RowSolver,
        (job, extras): (&TensorJob<'_>, &Extras),
        sink: &mut dyn Sink,
        step: &mut dyn FnMut(f64) -> Result<(), Error>,
    ) -> Result<(ErrorSums, Option<QMatrix>), Error> {
        let chunks = Chunks::new(job.shape.0, job.shape.1);
        let mut sums = ErrorSums::default();
        let mut whole = Whole::default();
        for range in chunks.iter() {
            step(range.start as f64 / job.shape.0 as f64)?;
            let Some((q, part)) = rows::solve_rows(matrix, ready, job, &chunks, range.clone())? else {
                return Err(rows::non_finite(matrix, job.module)?);
            };
            sums.add(&part);
            let q = extras.add(q, matrix, range.start)?;
            sink.matrix(job.module, range.start, job.shape.0, &q).map_err(|source| Error::Sink { name: job.module.into(), source })?;
            if self.keep {
                whole.add(&q);
            }
        }
        let whole = self.keep.then(|| whole.finish(job, extras)).transpose()?;
        Ok((sums, whole))
    }
}

/// What is to be said of the damping of `module`'s Hessian: that it was raised, or that it was not enough, so that the tensor is
/// rounded to nearest, which is an error where that is not as asked.
fn damped(hessian: Option<&Hessian>, module: &str, strict: bool) -> Result<Option<String>, Error> {
    let Some(hessian) = hessian else { return Ok(None) };
    if hessian.is_positive_definite() {
        let raised = || format!("damping raised to {} of the mean diagonal, so that its Hessian is positive definite", hessian.damping());
        return Ok(hessian.is_damping_raised().then(raised));
    }
    let error = Error::NotPositiveDefinite { module: module.into(), damping: hessian.damping() };
    if strict { Err(error) } else { Ok(Some(format!("rounded to nearest: {error}"))) }
}

/// What a matrix has beside codes, scales and zero points.
struct Extras {
    /// Outlier columns.
    columns: Option<Arc<[u32]>>,
    /// The group of each input.
    order: Option<Arc<[u32]>>,
}

impl Extras {
    fn add(&self, q: QMatrix, matrix: &FloatMatrix, first: usize) -> Result<QMatrix, Error> {
        let q = match &self.columns {
            Some(columns) => outliers::attach(q, matrix, first, columns)?,
            None => q,
        };
        self.ordered(q)
    }

    fn ordered(&self, q: QMatrix) -> Result<QMatrix, Error> {
        Ok(match &self.order {
            Some(order) => q.with_order(order.clone())?,
            None => q,
        })
    }
}

/// The group of each input; runs of inputs where there is no Hessian to order them by.
fn order(hessian: Option<&Hessian>, size: usize, cols: usize) -> Arc<[u32]> {
    let ordered = hessian.and_then(|hessian| hessian.g_idx(size));
    ordered.unwrap_or_else(|| (0..cols).map(|input| (input / size.max(1)) as u32).collect()).into()
}

/// Runs of rows put together again.
#[derive(Default)]
struct Whole {
    codes: Vec<i8>,
    scales: Vec<f32>,
    zeros: Vec<i8>,
    beside: Vec<f32>,
}

impl Whole {
    fn add(&mut self, q: &QMatrix) {
        self.codes.extend_from_slice(q.codes());
        self.scales.extend_from_slice(q.scales());
        self.zeros.extend_from_slice(q.zeros());
        self.beside.extend(q.beside().into_iter().flat_map(Beside::values));
    }

    fn finish(self, job: &TensorJob<'_>, extras: &Extras) -> Result<QMatrix, Error> {
        let (rows, cols) = job.shape;
        let q = QMatrix::spelt(job.alphabet(), (rows, cols), job.scheme, self.codes, self.scales, job.scale_dtype, self.zeros)?;
        let q = match &extras.columns {
            Some(columns) => q.with_beside(Beside::new(columns.clone(), self.beside))?,
            None => q,
        };
        extras.ordered(q)
    }
}

/// What a reader makes of the stored matrix: no kernel runs on groups in an order of their own.
pub(crate) fn in_place(module: &str, q: QMatrix, scheme: Scheme) -> Matrix {
    if q.order().is_some() {
        return Matrix::Float(FloatMatrix::decoded(module, Arc::new(Decoded(q))));
    }
    Matrix::Quant(StoredQuant::new(module, Arc::new((q, scheme))))
}

/// A quantized matrix that is read as floats.
struct Decoded(QMatrix);

impl FloatRows for Decoded {
    fn dims(&self) -> (usize, usize) {
        (self.0.rows(), self.0.cols())
    }

    fn stored_bytes(&self) -> usize {
        self.0.codes().len()
    }

    fn read_rows(&self, range: Range<usize>, out: &mut [f32]) -> octet_tensor::Result<()> {
        range.zip(out.chunks_mut(self.0.cols().max(1))).for_each(|(row, out)| self.0.dequantize_row(row, out));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::{Gram, Isa};
    use std::num::NonZeroUsize;

    #[test]
    fn a_hessian_that_no_damping_mends_is_reported_or_refused_when_strict() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(1).unwrap()).unwrap();
        let mut gram = Gram::new(4);
        gram.add(&engine, &[1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.0, -1.0, 0.5, 0.25, 2.0, 1.0]);
        let mut moments = gram.finish(&engine);
        let mut said = |share: f32, strict: bool| {
            // Two inputs that are more than the same thing: what no data gives, but spoiled sums might.
            let size = moments.second.at(0, 0).max(moments.second.at(2, 2));
            moments.second.set(0, 0, size);
            moments.second.set(2, 2, size);
            moments.second.set(0, 2, size * share);
            let hessian = Hessian::new(&engine, "x", &moments, HessianOptions::default()).unwrap();
            damped(Some(&hessian), "model.layers.0.mlp.up_proj", strict)
        };
        assert_eq!(said(0.1, true).unwrap(), None);
        assert!(said(1.03, true).unwrap().unwrap().contains("damping raised to "));
        let fallback = said(9.0, false).unwrap().unwrap();
        assert!(
            fallback.starts_with("rounded to nearest: ") && fallback.contains("up_proj is not positive definite even with"),
            "{fallback}"
        );
        assert!(matches!(said(9.0, true), Err(Error::NotPositiveDefinite { .. })));
        assert_eq!(damped(None, "x", true).unwrap(), None);
    }
}
