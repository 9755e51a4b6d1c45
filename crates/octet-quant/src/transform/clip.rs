//! AWQ's clipping search (llm-awq's `auto_clip`): weights of a group are cut off where the group's own part of the outputs
//! gains from it.

use super::{Part, Planned};
use crate::{Error, InputStatistics, RowsMut, Rtn, Solver, SolverChoice, TensorJob, chunks::Chunks, rows};
use octet_kernels::Engine;
use octet_model::{LinearSite, Place, Role, graph::Node};
use octet_tensor::{Dtype, QMatrix};
use std::{collections::BTreeSet, sync::Mutex};

/// Shares of a group's largest weight at which it is cut off, beside 1.
const SHARES: [f32; 9] = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55];

/// Clips the chosen linears that are rounded to nearest; of q and k the products with each other matter, not their own
/// outputs, so that they stay as they are.
pub(super) fn apply(part: &mut Part<'_, '_>, modules: &BTreeSet<String>) -> Result<Option<String>, Error> {
    let (mut clipped, mut groups) = (0, 0);
    let lines = part.lines;
    for site in lines.iter().filter_map(|line| line.linear.as_ref()).filter(|site| modules.contains(&site.module)) {
        let rounded = |planned: &Planned| matches!(planned.solver, SolverChoice::Rtn { .. }) && planned.scheme.weights.bits.get() < 8;
        let Some(planned) = part.planned(&site.module).filter(rounded) else { continue };
        let (Some(statistics), Some(rows)) = (part.statistics.get(&site.input), part.rows.get(&site.input)) else { continue };
        let first = first_row(part, site);
        if first == site.rows {
            continue;
        }
        let mut weights = part.weights.weights(site)?;
        if !rows::all_finite(&weights) {
            return Err(rows::non_finite(&rows::matrix(part.weights, site)?, &site.module)?);
        }
        let moments = Moments::new(part.engine, &rows.values, site.cols, planned.scheme.weights.group_size(site.cols));
        let work = Clipping { engine: part.engine, site, planned, statistics, moments: &moments };
        let found = work.run(&mut weights[first * site.cols..], part.tick)?;
        (clipped, groups) = (clipped + found, groups + (site.rows - first) * moments.groups.len());
        if found > 0 {
            part.weights.set_weights(site, Dtype::F32, &weights)?;
        }
    }
    Ok((groups > 0).then(|| format!("{}: {clipped} of {groups} groups clipped", part.place)))
}

/// The first row that is clipped: behind queries and keys.
fn first_row(part: &Part<'_, '_>, site: &LinearSite) -> usize {
    match site.role {
        Role::Q | Role::K => site.rows,
        Role::Qkv => {
            let Place::Layer(layer) = part.place else { return 0 };
            let linears = part.graph.blocks[layer].iter().flat_map(Node::linears);
            let parts = linears.filter(|linear| linear.site.module == site.module).flat_map(|linear| linear.parts.last());
            parts.map(|(_, rows)| rows.start).next().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Second moments of the inputs of each group.
struct Moments {
    size: usize,
    /// `[inputs, inputs]` each.
    groups: Vec<Vec<f32>>,
}

impl Moments {
    fn new(engine: &Engine, x: &[f32], cols: usize, size: usize) -> Self {
        let groups: Vec<Mutex<Vec<f32>>> = (0..cols.div_ceil(size)).map(|_| Mutex::default()).collect();
        engine.run(groups.len(), &|group| {
            let at = group * size..cols.min((group + 1) * size);
            let width = at.len();
            let mut sums = vec![0f32; width * width];
            for row in x.chunks_exact(cols.max(1)) {
                let row = &row[at.clone()];
                for (sums, a) in sums.chunks_exact_mut(width).zip(row) {
                    sums.iter_mut().zip(row).for_each(|(sum, b)| *sum += a * b);
                }
            }
            *rows::lock(&groups[group]) = sums;
        });
        Self { size, groups: groups.into_iter().map(|group| std::mem::take(&mut *rows::lock(&group))).collect() }
    }

    /// eᵀ H e of one group's error.
    fn error(&self, group: usize, e: &[f32]) -> f64 {
        self.groups[group]
            .chunks_exact(e.len())
            .zip(e)
            .map(|(row, a)| f64::from(a * row.iter().zip(e).map(|(h, b)| h * b).sum::<f32>()))
            .sum()
    }
}

/// Rounds rows to nearest and gives what they become.
type Round<'a> = dyn Fn(&[f32]) -> Result<Vec<f32>, Error> + 'a;

struct Clipping<'a> {
    engine: &'a Engine,
    site: &'a LinearSite,
    planned: Planned,
    statistics: &'a InputStatistics,
    moments: &'a Moments,
}

impl Clipping<'_> {
    /// Clips `weights` (rows of the site) in place and gives the number of groups that were.
    fn run(&self, weights: &mut [f32], tick: &mut dyn FnMut() -> Result<(), Error>) -> Result<usize, Error> {
        let (cols, scheme) = (self.site.cols, self.planned.scheme.weights);
        let importance = self.statistics.importance();
        let job = TensorJob {
            module: &self.site.module,
            shape: (self.site.rows, cols),
            scheme,
            scale_dtype: self.planned.scale_dtype,
            importance: Some(&importance),
            hessian: None,
            table: None,
            engine: self.engine,
        };
        let rtn = Rtn::with(self.planned.solver.candidates());
        let ready = rtn.prepare(job)?;
        let chunks = Chunks::new(weights.len() / cols, cols);
        let groups = scheme.groups(cols);
        let tasks: Vec<_> = weights.chunks_mut(chunks.task_rows * cols).map(|rows| Mutex::new((rows, Ok(0)))).collect();
        tick()?;
        self.engine.run(tasks.len(), &|task| {
            let mut task = rows::lock(&tasks[task]);
            let (weights, result) = &mut *task;
            let rows = weights.len() / cols;
            let round = |weights: &[f32]| -> Result<Vec<f32>, Error> {
                let (mut codes, mut scales) = (vec![0; weights.len()], vec![0.0; rows * groups]);
                let mut zeros = vec![0; if scheme.is_asymmetric() { scales.len() } else { 0 }];
                ready.solve(weights, RowsMut { codes: &mut codes, scales: &mut scales, zeros: &mut zeros });
                Ok(QMatrix::spelt(job.alphabet(), (rows, cols), scheme, codes, scales, self.planned.scale_dtype, zeros)?.dequantize())
            };
            *result = self.rows(weights, &round);
        });
        tasks.into_iter().map(|task| std::mem::replace(&mut rows::lock(&task).1, Ok(0))).sum()
    }

    fn rows(&self, weights: &mut [f32], round: &Round<'_>) -> Result<usize, Error> {
        let (cols, size) = (self.site.cols, self.moments.size);
        let errors = |rounded: &[f32]| -> Vec<f64> {
            let of_row = |(w, q): (&[f32], &[f32])| {
                let e: Vec<f32> = w.iter().zip(q).map(|(w, q)| w - q).collect();
                e.chunks(size).enumerate().map(|(group, e)| self.moments.error(group, e)).collect::<Vec<_>>()
            };
            weights.chunks_exact(cols).zip(rounded.chunks_exact(cols)).flat_map(of_row).collect()
        };
        let mut best: Vec<(f64, f32)> = errors(&round(weights)?).into_iter().map(|error| (error, 1.0)).collect();
        for share in SHARES {
            let cut: Vec<f32> = weights.chunks_exact(cols).flat_map(|row| row.chunks(size).flat_map(|w| clipped(w, share))).collect();
            for (best, error) in best.iter_mut().zip(errors(&round(&cut)?)) {
                if error < best.0 {
                    *best = (error, share);
                }
            }
        }
        let mut choices = best.iter();
        for row in weights.chunks_exact_mut(cols) {
            for (w, (_, share)) in row.chunks_mut(size).zip(&mut choices) {
                if *share < 1.0 {
                    let cut: Vec<f32> = clipped(w, *share).collect();
                    w.copy_from_slice(&cut);
                }
            }
        }
        Ok(best.iter().filter(|(_, share)| *share < 1.0).count())
    }
}

/// A group's weights, none beyond `share` of the largest.
fn clipped(weights: &[f32], share: f32) -> impl Iterator<Item = f32> {
    let most = share * weights.iter().fold(0f32, |most, w| most.max(w.abs()));
    weights.iter().map(move |w| w.clamp(-most, most))
}
