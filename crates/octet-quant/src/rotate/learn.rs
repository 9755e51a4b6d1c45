//! Learning rotations of eight values: greedy turns of pairs, from the identity, each kept only if what rounding leaves falls.

use super::so8::{EIGHT, PAIRS, So8};
use octet_tensor::LEVELS;
use std::{array, f64::consts::PI, sync::Arc};

/// Angles tried for every pair, either way, coarse to fine.
const ANGLES: [f64; 4] = [PI / 4.0, PI / 8.0, PI / 16.0, PI / 32.0];

/// How often all pairs are gone through, at the most.
const SWEEPS: usize = 2;

/// Shares of a run's largest weight that its scale may reach to, from 4 bits down; of more bits the first only.
const REACHES: [f32; 4] = [1.0, 0.92, 0.84, 0.76];

/// Adding this and taking it away rounds a small f32 to a whole number.
const ROUND: f32 = 12_582_912.0;

/// What weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Grid {
    /// Whole numbers from minus this to one below it.
    Even(f32),
    /// The levels of the table.
    Table,
}

impl Grid {
    /// The code farthest from zero.
    fn most(self) -> f32 {
        match self {
            Self::Even(most) => most,
            Self::Table => -f32::from(LEVELS[0]),
        }
    }

    /// Shares of a run's largest weight that its scale may reach to.
    fn reaches(self) -> &'static [f32] {
        if self.most() > 8.0 && self != Self::Table { &REACHES[..1] } else { &REACHES }
    }
}

/// The level nearest to `x`.
#[inline]
fn level(x: f32) -> f32 {
    let mut level = f32::from(LEVELS[0]);
    for pair in LEVELS.windows(2) {
        let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
        level += if x > 0.5 * (low + high) { high - low } else { 0.0 };
    }
    level
}

/// Weights of a matrix that takes part, or some rows (where its inputs are turned) or columns (where its outputs are) of it.
pub(super) struct Excerpt {
    pub(super) weights: Vec<f32>,
    pub(super) cols: usize,
    /// Weights that share a scale.
    pub(super) run: usize,
    /// What they are rounded to.
    pub(super) grid: Grid,
    /// What its error counts.
    pub(super) share: f64,
    /// Mean square of each input.
    pub(super) squares: Vec<f32>,
    /// Second moments of inputs, eight by eight; empty where outputs are turned.
    pub(super) moments: Vec<[[f64; EIGHT]; EIGHT]>,
}

/// Where a block meets a matrix.
#[derive(Clone)]
pub(super) enum Piece {
    /// Eight of its inputs.
    Inputs(Arc<Excerpt>, usize),
    /// Eight of its outputs, from this one on.
    Outputs(Arc<Excerpt>, usize),
}

impl Piece {
    /// What rounding leaves, relative to the whole matrix, when the eight are turned.
    fn loss(&self, r: &So8, errors: &mut Vec<f32>) -> f64 {
        match self {
            Self::Inputs(excerpt, block) => excerpt.inputs(r, *block, errors),
            Self::Outputs(excerpt, first) => excerpt.outputs(r, *first, errors),
        }
    }
}

impl Excerpt {
    fn inputs(&self, r: &So8, block: usize, errors: &mut Vec<f32>) -> f64 {
        let start = EIGHT * block / self.run * self.run;
        let end = self.cols.min(start + self.run);
        let at = EIGHT * block - start;
        let moments = r.conjugate(&self.moments[block]);
        let mut weigh = self.squares[start..end].to_vec();
        let Some(own) = weigh.get_mut(at..at + EIGHT) else { return 0.0 };
        own.iter_mut().enumerate().for_each(|(i, weigh)| *weigh = moments[i][i] as f32);
        let (mut run, mut sum) = (vec![0f32; end - start], 0.0);
        for row in self.weights.chunks_exact(self.cols) {
            run.copy_from_slice(&row[start..end]);
            let turned = r.apply(&array::from_fn(|i| f64::from(run[at + i])));
            run[at..at + EIGHT].iter_mut().zip(turned).for_each(|(w, turned)| *w = turned as f32);
            sum += round(&run, &weigh, self.grid, errors);
            // The errors of the eight meet in the outputs: their whole form instead of its diagonal.
            let e: [f64; EIGHT] = array::from_fn(|i| f64::from(errors[at + i]));
            for (i, row) in moments.iter().enumerate() {
                sum += e[i] * row.iter().zip(&e).enumerate().map(|(j, (h, e))| if i == j { 0.0 } else { h * e }).sum::<f64>();
            }
        }
        self.share * sum
    }

    fn outputs(&self, r: &So8, first: usize, errors: &mut Vec<f32>) -> f64 {
        let cols = self.cols;
        let rows = &self.weights[first * cols..(first + EIGHT) * cols];
        let mut turned = vec![0f32; rows.len()];
        for col in 0..cols {
            let values = r.apply(&array::from_fn(|row| f64::from(rows[row * cols + col])));
            values.iter().enumerate().for_each(|(row, value)| turned[row * cols + col] = *value as f32);
        }
        let of_row = |row: &[f32]| -> f64 {
            row.chunks(self.run).zip(self.squares.chunks(self.run)).map(|(run, weigh)| round(run, weigh, self.grid, errors)).sum()
        };
        self.share * turned.chunks_exact(cols).map(of_row).sum::<f64>()
    }
}

/// Rounds a run with the scale that leaves the least weighed error; `errors` are then those of its weights.
fn round(run: &[f32], weigh: &[f32], grid: Grid, errors: &mut Vec<f32>) -> f64 {
    let peak = run.iter().fold(0f32, |peak, &w| if w.abs() > peak.abs() { w } else { peak });
    errors.clear();
    errors.resize(run.len(), 0.0);
    if peak == 0.0 {
        return 0.0;
    }
    let (most, reaches) = (grid.most(), grid.reaches());
    let error = |reach: f32, errors: &mut [f32]| -> f64 {
        let scale = -peak * reach / most;
        let inverse = scale.recip();
        let mut sum = 0f32;
        for ((e, &w), &h) in errors.iter_mut().zip(run).zip(weigh) {
            let code = match grid {
                Grid::Even(_) => ((w * inverse).clamp(-most, most - 1.0) + ROUND) - ROUND,
                Grid::Table => level(w * inverse),
            };
            *e = w - code * scale;
            sum += h * *e * *e;
        }
        f64::from(sum)
    };
    let mut best = (f64::INFINITY, 1.0);
    for &reach in reaches {
        let found = error(reach, errors);
        if found < best.0 {
            best = (found, reach);
        }
    }
    if reaches.len() > 1 { error(best.1, errors) } else { best.0 }
}

/// The rotation of one block that greedy turns find, starting at the identity: never more loss than that has.
pub(super) fn learn(pieces: &[Piece]) -> So8 {
    let mut errors = vec![];
    let mut loss = |r: &So8| pieces.iter().map(|piece| piece.loss(r, &mut errors)).sum::<f64>();
    let (mut best, mut least) = (So8::IDENTITY, loss(&So8::IDENTITY));
    for _ in 0..SWEEPS {
        let before = least;
        for angle in ANGLES {
            for pair in PAIRS {
                for angle in [angle, -angle] {
                    let turned = best.turned(pair, angle);
                    let found = loss(&turned);
                    if found < least {
                        (best, least) = (turned, found);
                        break;
                    }
                }
            }
        }
        if least == before {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_testkit::Random;

    fn excerpt(random: &mut Random, rows: usize, cols: usize, grid: Grid) -> Arc<Excerpt> {
        let weights: Vec<f32> = (0..rows * cols).map(|_| random.normal()).collect();
        // Inputs that go together by eights.
        let moments = (0..cols / EIGHT)
            .map(|_| {
                let x: [[f64; EIGHT]; 12] = array::from_fn(|_| array::from_fn(|_| f64::from(random.normal())));
                array::from_fn(|i| array::from_fn(|j| x.iter().map(|x| x[i] * x[j]).sum::<f64>() / 12.0))
            })
            .collect::<Vec<[[f64; EIGHT]; EIGHT]>>();
        let squares = moments.iter().flat_map(|m| (0..EIGHT).map(|i| m[i][i] as f32)).collect();
        Arc::new(Excerpt { weights, cols, run: 16, grid, share: 1.0, squares, moments })
    }

    #[test]
    fn what_is_learnt_is_a_rotation_that_leaves_less() {
        let mut random = Random::new(3);
        for grid in [Grid::Even(4.0), Grid::Even(8.0), Grid::Even(128.0), Grid::Table] {
            let (reads, writes) = (excerpt(&mut random, 20, 32, grid), excerpt(&mut random, 16, 32, grid));
            let pieces = [Piece::Inputs(reads, 2), Piece::Outputs(writes, 8)];
            let found = learn(&pieces);
            let loss = |r: &So8| pieces.iter().map(|piece| piece.loss(r, &mut vec![])).sum::<f64>();
            assert!(loss(&found) < 0.97 * loss(&So8::IDENTITY), "{grid:?}: {} of {}", loss(&found), loss(&So8::IDENTITY));
            assert!(found.drift() < 1e-13 && (found.determinant() - 1.0).abs() < 1e-13);
            assert_eq!(found, learn(&pieces), "nothing drawn at random");
        }
        assert_eq!(learn(&[]), So8::IDENTITY, "where nothing can be won nothing is turned");
    }

    #[test]
    fn the_loss_of_a_turn_is_that_of_the_outputs() {
        let mut random = Random::new(8);
        let reads = excerpt(&mut random, 3, 16, Grid::Even(8.0));
        let r = So8::hadamard(17).turned((1, 4), 0.3);
        let mut errors = vec![];
        // Row by row: what the errors make of the moments, those of the turned eight as a whole.
        let expected: f64 = reads
            .weights
            .chunks(16)
            .map(|row| {
                let mut row = row.to_vec();
                let turned = r.apply(&array::from_fn(|i| f64::from(row[8 + i])));
                row[8..].iter_mut().zip(turned).for_each(|(w, t)| *w = t as f32);
                let moments = r.conjugate(&reads.moments[1]);
                let mut weigh = reads.squares.clone();
                (0..8).for_each(|i| weigh[8 + i] = moments[i][i] as f32);
                round(&row, &weigh, Grid::Even(8.0), &mut errors);
                let others: f64 = (0..8).map(|i| f64::from(weigh[i] * errors[i] * errors[i])).sum();
                let form: f64 =
                    (0..64).map(|at| moments[at / 8][at % 8] * f64::from(errors[8 + at / 8]) * f64::from(errors[8 + at % 8])).sum();
                others + form
            })
            .sum();
        let found = reads.inputs(&r, 1, &mut errors);
        assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
    }

    #[test]
    fn rounding_uses_the_whole_range_and_the_best_reach() {
        let mut errors = vec![];
        assert_eq!(round(&[0.0; 4], &[1.0; 4], Grid::Even(8.0), &mut errors), 0.0);
        let whole: Vec<f32> = (-8..8).map(|code| code as f32 * 0.5).collect();
        assert_eq!(round(&whole, &[1.0; 16], Grid::Even(8.0), &mut errors), 0.0);
        // A lone large weight that counts for little is better cut off.
        let (run, weigh) = ([8.0, 0.55, 0.55, 0.55], [1e-6, 1.0, 1.0, 1.0]);
        assert!(round(&run, &weigh, Grid::Even(8.0), &mut errors) < 3.0 * 0.45 * 0.45);
        let levels: Vec<f32> = LEVELS.iter().map(|&level| 0.25 * f32::from(level)).collect();
        assert_eq!(round(&levels, &[1.0; 16], Grid::Table, &mut errors), 0.0);
        assert_eq!([-200.0, -22.1, 7.1, 7.0, 200.0].map(level), [-127.0, -22.0, 13.0, 1.0, 113.0]);
    }
}
