//! Levels that a tensor has for itself: Lloyd's algorithm, in turn with the search for scales.

use super::{RowSolver, RowsMut, Rtn, Solver, TensorJob, lock};
use crate::{Error, ErrorSums, chunks::Chunks, rows::all_finite};
use octet_tensor::{FloatMatrix, Symmetry, Table};
use std::sync::Mutex;

/// How often scales are searched anew for levels that were learnt.
const ROUNDS: usize = 6;

/// Passes over the weights between two searches.
const PASSES: usize = 8;

/// Weights that are looked at, about: rows evenly spread. More would move no level by a whole number.
const MOST: usize = 1 << 19;

/// Weights in units of their scale are counted in bins of this share of a level's unit, up to so many units from zero.
const BINS_A_UNIT: f32 = 16.0;
const REACH: f32 = 160.0;
const BINS: usize = 2 * (REACH * BINS_A_UNIT) as usize;

/// The magnitude of the level farthest from zero.
const FARTHEST: f64 = 127.0;

impl TensorJob<'_> {
    /// The job with the levels that leave `matrix` the least error, where its scheme has levels of its own: those of the usual table
    /// unless others leave less, every input's error weighted by what is known of it.
    ///
    /// # Errors
    /// If rows cannot be read.
    pub fn with_levels_of(self, matrix: &FloatMatrix) -> Result<Self, Error> {
        if self.scheme.symmetry != Symmetry::Learnt || self.table.is_some() {
            return Ok(self);
        }
        let (job, rows) = self.sample(matrix)?;
        let weights = &rows[..];
        if weights.is_empty() || !all_finite(weights) {
            return Ok(self);
        }
        let tried = |table: Table| -> Result<(f64, Counts), Error> {
            let job = TensorJob { table: Some(table), ..job };
            let ready = Rtn::USUAL.prepare(job)?;
            Ok(count(&job, &*ready, weights))
        };
        let mut best = (Table::USUAL, tried(Table::USUAL)?);
        for _ in 0..ROUNDS {
            let Some(table) = best.1.1.levels(&best.0).filter(|table| *table != best.0) else { break };
            let found = tried(table)?;
            if found.0 >= best.1.0 {
                break;
            }
            best = (table, found);
        }
        Ok(Self { table: Some(best.0), ..self })
    }
}

impl<'a> TensorJob<'a> {
    /// Some rows, as a tensor of their own whose inputs are in the order of the Hessian where there is one.
    fn sample(self, matrix: &FloatMatrix) -> Result<(Self, Vec<f32>), Error> {
        let (rows, cols) = self.shape;
        let step = (rows * cols).div_ceil(MOST).max(1);
        let mut weights = vec![0.0; rows.div_ceil(step) * cols];
        for (row, out) in (0..rows).step_by(step).zip(weights.chunks_exact_mut(cols.max(1))) {
            matrix.read_rows(row..row + 1, out)?;
        }
        if let Some(columns) = self.hessian.and_then(|hessian| hessian.columns()) {
            weights = weights.chunks_exact(cols).flat_map(|row| columns.iter().map(|&column| row[column as usize])).collect();
        }
        let importance = self.hessian.map_or(self.importance, |hessian| Some(hessian.importance()));
        Ok((Self { shape: (rows.div_ceil(step), cols), importance, hessian: None, ..self }, weights))
    }
}

/// How much weights count that are so many units of their scale: Σ of scale² · importance, and of that times the units.
struct Counts(Vec<[f64; 2]>);

/// The weighted error of rows under the best scales, and how their weights are spread.
fn count(job: &TensorJob<'_>, ready: &dyn RowSolver, weights: &[f32]) -> (f64, Counts) {
    let (cols, groups) = (job.shape.1, job.scheme.groups(job.shape.1));
    let rows = Chunks::new(job.shape.0, cols).task_rows;
    let tasks: Vec<_> = weights.chunks(rows * cols).map(|weights| Mutex::new((weights, ErrorSums::default(), Counts::none()))).collect();
    job.engine.run(tasks.len(), &|task| {
        let mut task = lock(&tasks[task]);
        let (weights, sums, counts) = &mut *task;
        let (mut codes, mut scales) = (vec![0; weights.len()], vec![0.0; weights.len() / cols * groups]);
        *sums = ready.solve(weights, RowsMut { codes: &mut codes, scales: &mut scales, zeros: &mut [] });
        counts.add_rows(job, weights, &scales);
    });
    let (mut error, mut all) = (0.0, Counts::none());
    for task in tasks {
        let (_, sums, counts) = &*lock(&task);
        error += sums.weighted_error;
        all.add(counts);
    }
    (error, all)
}

impl Counts {
    fn none() -> Self {
        Self(vec![[0.0; 2]; BINS])
    }

    fn add(&mut self, other: &Self) {
        for (all, more) in self.0.iter_mut().zip(&other.0) {
            *all = [all[0] + more[0], all[1] + more[1]];
        }
    }

    fn add_rows(&mut self, job: &TensorJob<'_>, weights: &[f32], scales: &[f32]) {
        let (cols, size) = (job.shape.1, job.group_size());
        let groups = cols.div_ceil(size);
        for (row, scales) in weights.chunks_exact(cols).zip(scales.chunks_exact(groups)) {
            // A scale of nothing says nothing of levels.
            for (group, (weights, &scale)) in row.chunks(size).zip(scales).enumerate().filter(|(_, (_, scale))| **scale != 0.0) {
                let importance = job.importance.map_or(&[][..], |h| &h[group * size..][..weights.len()]);
                for (i, &weight) in weights.iter().enumerate() {
                    let units = (weight / scale).clamp(-REACH, REACH);
                    let bin = ((units + REACH) * BINS_A_UNIT) as usize;
                    let counts = f64::from(scale) * f64::from(scale) * f64::from(importance.get(i).copied().unwrap_or(1.0));
                    let bin = &mut self.0[bin.min(BINS - 1)];
                    *bin = [bin[0] + counts, bin[1] + counts * f64::from(units)];
                }
            }
        }
    }

    /// The levels that Lloyd's algorithm makes of `table`, the farthest at its place; `None` where they are none.
    fn levels(&self, table: &Table) -> Option<Table> {
        let mut levels = table.levels().map(f64::from);
        for _ in 0..PASSES {
            let mut sums = [[0.0; 2]; 16];
            let mut level = 0;
            for (bin, counts) in self.0.iter().enumerate() {
                let middle = (bin as f64 + 0.5) / f64::from(BINS_A_UNIT) - f64::from(REACH);
                while level < 15 && middle > 0.5 * (levels[level] + levels[level + 1]) {
                    level += 1;
                }
                sums[level] = [sums[level][0] + counts[0], sums[level][1] + counts[1]];
            }
            for (level, [count, units]) in levels.iter_mut().zip(sums) {
                *level = if count > 0.0 { units / count } else { *level };
            }
        }
        // The end that is farther from zero is the lower one, as the search for scales has it.
        if levels[15] > -levels[0] {
            levels.reverse();
            levels.iter_mut().for_each(|level| *level = -*level);
        }
        let unit = FARTHEST / -levels[0];
        Table::new(levels.map(|level| (level * unit).round() as i8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::{Engine, Isa};
    use octet_tensor::{Dtype, Scheme, Tensor};
    use std::num::NonZeroUsize;

    fn learnt(weights: &[f32], cols: usize, importance: Option<&[f32]>, engine: &Engine) -> Option<Table> {
        let shape = (weights.len() / cols, cols);
        let matrix = FloatMatrix::dense(Tensor::from_f32("m", vec![shape.0, cols], weights).unwrap()).unwrap();
        let scheme = "w4la16-g32".parse::<Scheme>().unwrap().weights;
        let job = TensorJob { module: "m", shape, scheme, scale_dtype: Dtype::F16, importance, hessian: None, table: None, engine };
        job.with_levels_of(&matrix).unwrap().table
    }

    fn error(weights: &[f32], cols: usize, table: Table, engine: &Engine) -> f64 {
        let scheme = "w4la16-g32".parse::<Scheme>().unwrap().weights;
        let shape = (weights.len() / cols, cols);
        let job =
            TensorJob { module: "m", shape, scheme, scale_dtype: Dtype::F16, importance: None, hessian: None, table: Some(table), engine };
        count(&job, &*Rtn::USUAL.prepare(job).unwrap(), weights).0
    }

    /// Weights that are one of few values and a little more: nothing like the usual levels.
    fn clustered(count: usize) -> Vec<f32> {
        let noise = |i: usize| (i * 2_654_435_761 % 1000) as f32 / 1000.0 - 0.5;
        (0..count).map(|i| [-1.0, -0.25, 0.25, 0.5, 0.9][i * 7 % 11 % 5] + 0.02 * noise(i)).collect()
    }

    #[test]
    fn levels_go_where_weights_are_on_any_number_of_threads() {
        let weights = clustered(64 * 96);
        let engines = [1, 3].map(|threads| Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap());
        let table = learnt(&weights, 96, None, &engines[0]).unwrap();
        assert_eq!(Some(table), learnt(&weights, 96, None, &engines[1]));
        let (own, usual) = (error(&weights, 96, table, &engines[0]), error(&weights, 96, Table::USUAL, &engines[0]));
        assert!(own < 0.7 * usual, "{own} of {usual}");
        assert_eq!(table.levels()[0], -127);
    }

    #[test]
    fn inputs_that_matter_have_the_say() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        let (cols, mut weights) = (64, clustered(64 * 64));
        let mut importance = vec![1e-3; cols];
        for (i, weight) in weights.iter_mut().enumerate().filter(|(i, _)| i % cols < 32) {
            *weight = (i * 37 % 101) as f32 / 50.0 - 1.0;
        }
        importance[32..].fill(1.0);
        assert_ne!(learnt(&weights, cols, Some(&importance), &engine), learnt(&weights, cols, None, &engine));
    }

    #[test]
    fn weights_without_a_spread_keep_the_usual_levels() {
        let engine = Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap();
        assert_eq!(learnt(&[0.0; 128], 64, None, &engine), Some(Table::USUAL));
        assert_eq!(learnt(&[f32::NAN; 128], 64, None, &engine), None);
    }
}
