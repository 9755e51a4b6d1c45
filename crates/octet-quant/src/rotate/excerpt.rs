//! What learning looks at: some rows or columns of the matrices that take part in a rotation.

use super::{
    learn::{Excerpt, Grid, Piece},
    so8::EIGHT,
    spot::Member,
};
use crate::{Action, Error, InputStatistics, Line, SampleRows, rows};
use octet_model::LinearSite;
use octet_tensor::WeightSource;
use std::sync::Arc;

/// Rows (or columns, where outputs are turned) of a matrix that learning looks at.
const EXCERPT: usize = 256;

/// Weights that share a scale in learning at the most: a row with one scale only would make every turn cost a row.
const MOST_RUN: usize = 128;

/// Adds where the blocks of a spot meet a matrix.
pub(super) fn meet(
    source: &dyn WeightSource,
    line: &Line,
    member: &Member,
    seen: Option<(&InputStatistics, &SampleRows)>,
    pieces: &mut [Vec<Piece>],
) -> Result<(), Error> {
    let Action::Quantize { scheme, .. } = line.action else { return Ok(()) };
    let LinearSite { rows, cols, .. } = *member.site();
    let matrix = rows::matrix(source, member.site())?;
    let mut weights = vec![0.0; rows * cols];
    matrix.read_rows(0..rows, &mut weights)?;
    let squares = seen.map_or_else(|| vec![1.0; cols], |(seen, _)| seen.importance());
    let energy: f64 = weights.chunks_exact(cols).flat_map(|row| row.iter().zip(&squares)).map(|(w, h)| f64::from(w * w * h)).sum();
    let run = scheme.weights.group_size(cols).min(MOST_RUN);
    let grid = if scheme.weights.is_table() { Grid::Table } else { Grid::Even(f32::from(1u16 << (scheme.weights.bits.get() - 1))) };
    match member {
        Member::Reads { blocks, .. } => {
            let step = rows.div_ceil(EXCERPT).max(1);
            let some: Vec<f32> = weights.chunks_exact(cols).step_by(step).flatten().copied().collect();
            let share = (rows * cols) as f64 / some.len().max(1) as f64 / energy.max(f64::MIN_POSITIVE);
            let moments = moments(&squares, seen);
            let excerpt = Arc::new(Excerpt { weights: some, cols, run, grid, share, squares, moments });
            for (at, &block) in blocks.iter().enumerate() {
                pieces[block].push(Piece::Inputs(Arc::clone(&excerpt), at));
            }
        }
        Member::Writes { first, .. } => {
            // Whole runs of inputs, evenly spread.
            let step = cols.div_ceil(run).div_ceil(EXCERPT.div_ceil(run)).max(1);
            let some = |row: &[f32]| row.chunks(run).step_by(step).flatten().copied().collect::<Vec<f32>>();
            let (squares, own) = (some(&squares), &weights[first * cols..(first + EIGHT * pieces.len()) * cols]);
            let weights: Vec<f32> = own.chunks_exact(cols).flat_map(some).collect();
            let share = cols as f64 / squares.len().max(1) as f64 / energy.max(f64::MIN_POSITIVE);
            let excerpt = Arc::new(Excerpt { weights, cols: squares.len(), run, grid, share, squares, moments: vec![] });
            for (block, pieces) in pieces.iter_mut().enumerate() {
                pieces.push(Piece::Outputs(Arc::clone(&excerpt), EIGHT * block));
            }
        }
    }
    Ok(())
}

/// Second moments of inputs by eights in the unit of `squares`; of a table that is looked up those of inputs that have nothing to
/// do with each other.
fn moments(squares: &[f32], seen: Option<(&InputStatistics, &SampleRows)>) -> Vec<[[f64; EIGHT]; EIGHT]> {
    let mut all = vec![[[0.0; EIGHT]; EIGHT]; squares.len() / EIGHT];
    let mut add = |x: &[f64], weight: f64| {
        for (moments, x) in all.iter_mut().zip(x.as_chunks::<EIGHT>().0) {
            for (row, a) in moments.iter_mut().zip(x) {
                row.iter_mut().zip(x).for_each(|(sum, b)| *sum += weight * a * b);
            }
        }
    };
    let Some((seen, sample)) = seen else {
        for one in 0..EIGHT {
            let x: Vec<f64> = (0..squares.len()).map(|at| if at % EIGHT == one { f64::from(squares[at]).sqrt() } else { 0.0 }).collect();
            add(&x, 1.0);
        }
        return all;
    };
    let mean = seen.mean_square.iter().map(|&v| f64::from(v)).sum::<f64>() / seen.mean_square.len().max(1) as f64;
    let weight = 1.0 / (sample.len().max(1) as f64 * mean.max(f64::MIN_POSITIVE));
    for row in sample.values.chunks_exact(sample.cols()) {
        add(&row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), weight);
    }
    all
}
