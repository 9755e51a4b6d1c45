//! The linears that read one value, and what quantizing them with given factors does to their outputs.

use super::{Part, Planned, factors::multiply_columns};
use crate::{Error, InputStatistics, RowSolver, Rtn, Solver, TensorJob, chunks::Chunks, rows};
use octet_kernels::{Engine, MatmulJob, PackedLinear};
use octet_model::{Fold, LinearSite};
use octet_tensor::{FloatMatrix, Matrix, QMatrix, StoredQuant, Tensor};
use std::sync::{Arc, Mutex};

/// A linear that will be quantized, with rows of its input and the outputs it should have.
pub(super) struct Reader<'a> {
    pub(super) site: &'a LinearSite,
    pub(super) weights: Vec<f32>,
    pub(super) planned: Planned,
    statistics: InputStatistics,
    x: Vec<f32>,
    expected: Vec<f32>,
    /// What each row's squared error counts: the inverse of its output's size.
    importance: Vec<f64>,
}

/// The readers of one value that were chosen, and are quantized.
pub(super) struct Readers<'a> {
    fold: &'a Fold,
    pub(super) all: Vec<Reader<'a>>,
}

impl<'a> Readers<'a> {
    /// Those of `fold` that `chosen` says yes to; readers that no token reached have nothing to say.
    pub(super) fn new(part: &Part<'_, '_>, fold: &'a Fold, chosen: &dyn Fn(&LinearSite, Planned) -> bool) -> Result<Self, Error> {
        let mut all = vec![];
        for site in &fold.readers {
            let planned = part.planned(&site.module).filter(|planned| chosen(site, *planned));
            let (Some(planned), Some(statistics), Some(rows)) = (planned, part.statistics.get(&site.input), part.rows.get(&site.input))
            else {
                continue;
            };
            let weights = part.weights.weights(site)?;
            if !rows::all_finite(&weights) {
                return Err(rows::non_finite(&rows::matrix(part.weights, site)?, &site.module)?);
            }
            let float = Matrix::Float(matrix(site, &weights)?);
            let (x, statistics) = (rows.values.clone(), statistics.clone());
            let expected = product(part.engine, &float, &x, rows.len())?;
            let importance = inverse_sizes(&expected, site.rows);
            all.push(Reader { site, weights, planned, statistics, x, expected, importance });
        }
        Ok(Self { fold, all })
    }

    /// Largest |x| of every channel.
    pub(super) fn largest_inputs(&self) -> Vec<f32> {
        self.channels(0.0, |reader, column| reader.statistics.max_abs[column], |most, value| most.max(value))
    }

    /// Mean |x| of every channel, all readers' tokens and heads alike.
    pub(super) fn mean_inputs(&self) -> Vec<f32> {
        let tokens = |reader: &Reader<'_>| reader.statistics.tokens as f32;
        let sums = self.channels(0.0, |reader, column| reader.statistics.mean_abs[column] * tokens(reader), |sum, value| sum + value);
        let counts = self.channels(0.0, |reader, _| tokens(reader), |sum, value| sum + value);
        sums.iter().zip(counts).map(|(sum, count)| sum / count.max(1.0)).collect()
    }

    /// A number for each channel: those of all columns that read it, put together.
    pub(super) fn channels(&self, start: f32, of: impl Fn(&Reader<'a>, usize) -> f32, fold: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let mut channels = vec![start; self.fold.channels];
        for reader in &self.all {
            for column in 0..reader.site.cols {
                let channel = &mut channels[self.fold.channel(column, reader.site.cols)];
                *channel = fold(*channel, of(reader, column));
            }
        }
        channels
    }

    /// Mean relative squared error of the outputs of all readers, on the sample rows, when their columns are multiplied by
    /// `factors`, rounded to nearest and run as they will be on inputs divided by `factors`. Every row counts alike: the norms
    /// that follow forget how large it was, and a few huge ones must not decide.
    pub(super) fn error(&self, engine: &Engine, factors: Option<&[f32]>) -> Result<f64, Error> {
        let rows: usize = self.all.iter().map(|reader| reader.importance.len()).sum();
        let errors = self.all.iter().map(|reader| reader.error(engine, self.fold, factors));
        Ok(errors.sum::<Result<f64, Error>>()? / rows.max(1) as f64)
    }
}

impl Reader<'_> {
    fn error(&self, engine: &Engine, fold: &Fold, factors: Option<&[f32]>) -> Result<f64, Error> {
        let (mut weights, mut x, mut statistics) = (self.weights.clone(), self.x.clone(), self.statistics.clone());
        if let Some(factors) = factors {
            let inverse: Vec<f32> = factors.iter().map(|factor| factor.recip()).collect();
            multiply_columns(&mut weights, fold, self.site.cols, factors);
            multiply_columns(&mut x, fold, self.site.cols, &inverse);
            divide_statistics(&mut statistics, fold, factors);
        }
        let q = round(engine, self.site, &weights, self.planned, &statistics)?;
        let stored = StoredQuant::new(self.site.module.as_str(), Arc::new((q, self.planned.scheme)));
        let found = product(engine, &Matrix::Quant(stored), &x, x.len() / self.site.cols.max(1))?;
        Ok(weighted_distance(engine, &found, &self.expected, &self.importance))
    }
}

/// Statistics of inputs that were divided by `factors`.
pub(super) fn divide_statistics(statistics: &mut InputStatistics, fold: &Fold, factors: &[f32]) {
    let cols = statistics.max_abs.len();
    for column in 0..cols {
        let factor = factors[fold.channel(column, cols)];
        statistics.max_abs[column] /= factor;
        statistics.mean_abs[column] /= factor;
        statistics.mean_square[column] /= factor * factor;
    }
}

/// Weights rounded to nearest as they will be.
pub(super) fn round(
    engine: &Engine,
    site: &LinearSite,
    weights: &[f32],
    planned: Planned,
    statistics: &InputStatistics,
) -> Result<QMatrix, Error> {
    let importance = (planned.scheme.weights.bits.get() < 8).then(|| statistics.importance());
    let job = TensorJob {
        module: &site.module,
        shape: (site.rows, site.cols),
        scheme: planned.scheme.weights,
        scale_dtype: planned.scale_dtype,
        importance: importance.as_deref(),
        hessian: None,
        table: None,
        engine,
    };
    let rtn = Rtn::with(planned.solver.candidates());
    let ready: Box<dyn RowSolver> = rtn.prepare(job)?;
    let (matrix, chunks) = (matrix(site, weights)?, Chunks::new(site.rows, site.cols));
    match rows::solve_rows(&matrix, &*ready, &job, &chunks, 0..site.rows)? {
        Some((q, _)) => Ok(q),
        None => Err(rows::non_finite(&matrix, &site.module)?),
    }
}

pub(super) fn matrix(site: &LinearSite, weights: &[f32]) -> Result<FloatMatrix, Error> {
    Ok(FloatMatrix::dense(Tensor::from_f32(site.module.as_str(), vec![site.rows, site.cols], weights)?)?)
}

pub(crate) fn product(engine: &Engine, matrix: &Matrix, x: &[f32], tokens: usize) -> Result<Vec<f32>, Error> {
    let weights = PackedLinear::pack(engine, matrix, None)?;
    let mut out = vec![0.0; tokens * matrix.rows()];
    engine.matmul(x, tokens, &mut [MatmulJob { weights: &weights, bias: None, out: &mut out, accumulate: false }]);
    Ok(out)
}

/// Mean relative squared error of rows of `width` outputs, every row counting alike.
pub(crate) fn distance_from(engine: &Engine, expected: &[f32], found: &[f32], width: usize) -> f64 {
    let weights = inverse_sizes(expected, width);
    weighted_distance(engine, found, expected, &weights) / weights.len().max(1) as f64
}

/// 1 / Σ y² of every row, rows that are next to nothing beside the others bounded.
fn inverse_sizes(y: &[f32], width: usize) -> Vec<f64> {
    let sizes: Vec<f64> = y.chunks(width.max(1)).map(|row| row.iter().map(|&y| f64::from(y) * f64::from(y)).sum()).collect();
    let floor = 1e-3 * sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
    sizes.iter().map(|size| size.max(floor).max(f64::MIN_POSITIVE).recip()).collect()
}

/// Σ weight · (a − b)² with a weight for each row, added up row by row in a fixed order.
fn weighted_distance(engine: &Engine, a: &[f32], b: &[f32], weights: &[f64]) -> f64 {
    let width = a.len() / weights.len().max(1);
    let rows: Vec<Mutex<f64>> = weights.iter().map(|_| Mutex::new(0.0)).collect();
    engine.run(rows.len(), &|row| {
        let at = row * width..(row + 1) * width;
        let sum: f64 = a[at.clone()].iter().zip(&b[at]).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum();
        *rows::lock(&rows[row]) = weights[row] * sum;
    });
    rows.iter().map(|row| *rows::lock(row)).sum()
}
