//! Scales or offsets of a row's runs against the whole Hessian, with its codes as they are.

use super::gptq::{LANES, State};
use crate::Hessian;
use octet_kernels::{Engine, RowPanels, ScaleEquations};
use octet_tensor::{BlockRows, Dtype, RunOffsets, RunScales};

/// What is solved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rescaling {
    /// Scales of the runs.
    Scales,
    /// Offsets of the runs.
    Offsets,
}

/// How much of the diagonal is added, which holds scales to what they were.
const RIDGE: f64 = 1e-3;
/// Rounds in which every run tries its neighbours.
const ROUNDS: usize = 4;

/// Changes scales or offsets of `rows` where that lowers the error, and gives by how much it fell in all.
pub(super) fn rescale(engine: &Engine, hessian: &Hessian, rows: &mut BlockRows, state: &State, what: Rescaling) -> f64 {
    let none = match what {
        Rescaling::Scales => false,
        Rescaling::Offsets => rows.code.offsets == RunOffsets::None,
    };
    if none {
        return 0.0;
    }
    let (cols, runs) = (rows.cols, rows.runs());
    // What a value changes by, for a unit of scale or of offset.
    let mut units = vec![-1.0f32; rows.rows * cols];
    if what == Rescaling::Scales {
        for (row, units) in units.chunks_exact_mut(cols).enumerate() {
            let codes = &state.codes[row / LANES * cols..][..cols];
            units.iter_mut().zip(codes).for_each(|(unit, lanes)| *unit = f32::from(lanes[row % LANES]));
        }
    }
    let units = RowPanels::from_rows(&units, cols, None);
    let equations = engine.scale_equations(hessian.matrix(), hessian.damping() as f32, &state.errors, &units, rows.code.run);
    (0..rows.rows).map(|row| Row { equations: &equations, row, runs }.improve(rows, what)).sum()
}

/// The equations of one row.
struct Row<'a> {
    equations: &'a ScaleEquations,
    row: usize,
    runs: usize,
}

impl Row<'_> {
    fn product(&self, g: usize, h: usize) -> f64 {
        f64::from(self.equations.product(self.row, g.max(h), g.min(h)))
    }

    fn side(&self, g: usize) -> f64 {
        f64::from(self.equations.side(self.row, g))
    }

    /// By how much the error falls if the runs' values change so.
    fn gain(&self, changes: &[f64]) -> f64 {
        let one = |g: usize| {
            let dot: f64 = (0..self.runs).map(|h| self.product(g, h) * changes[h]).sum();
            changes[g] * (2.0 * self.side(g) - dot)
        };
        (0..self.runs).map(one).sum()
    }

    /// The changes that lower the error the most, by Gauss-Seidel.
    #[allow(clippy::needless_range_loop, reason = "one number names a run in several lists")]
    fn wanted(&self) -> Vec<f64> {
        let mut x = vec![0f64; self.runs];
        for _ in 0..20 {
            for g in 0..self.runs {
                let diagonal = self.product(g, g) * (1.0 + RIDGE);
                if diagonal > 0.0 {
                    let others: f64 = (0..self.runs).filter(|&h| h != g).map(|h| self.product(g, h) * x[h]).sum();
                    x[g] = (self.side(g) - others) / diagonal;
                }
            }
        }
        x
    }

    fn improve(&self, rows: &mut BlockRows, what: Rescaling) -> f64 {
        let (scales, code) = (what == Rescaling::Scales, rows.code);
        let range = match (scales, code.scales, code.offsets) {
            (true, RunScales::Multiples { low, high }, _) => Some((i32::from(low), i32::from(high))),
            (false, _, RunOffsets::Multiples(most)) => Some((0, i32::from(most))),
            _ => None,
        };
        match range {
            None => self.floats(rows, scales),
            Some(range) => self.multiples(rows, scales, range),
        }
    }

    /// Runs that are blocks: the floats themselves.
    fn floats(&self, rows: &mut BlockRows, scales: bool) -> f64 {
        let at = self.row * self.runs..(self.row + 1) * self.runs;
        let values = if scales { &mut rows.d[at] } else { &mut rows.m[at] };
        let wanted = self.wanted();
        let new: Vec<f32> = values.iter().zip(&wanted).map(|(&old, change)| Dtype::F16.round((f64::from(old) + change) as f32)).collect();
        let changes: Vec<f64> = new.iter().zip(values.iter()).map(|(&new, &old)| f64::from(new) - f64::from(old)).collect();
        let gain = self.gain(&changes);
        let usable = new.iter().zip(values.iter()).all(|(new, old)| new.is_finite() && (!scales || (1.0 / new).is_finite() || new == old));
        if !(gain > 0.0 && usable) {
            return 0.0;
        }
        values.copy_from_slice(&new);
        gain
    }

    /// Runs with whole multiples of their block's float: rounded, then each tries its neighbours.
    #[allow(clippy::needless_range_loop, reason = "one number names a run in several lists")]
    fn multiples(&self, rows: &mut BlockRows, scales: bool, (low, high): (i32, i32)) -> f64 {
        let per_block = rows.code.runs();
        let first = self.row * self.runs;
        let unit =
            |rows: &BlockRows, g: usize| f64::from(if scales { rows.d[(first + g) / per_block] } else { rows.m[(first + g) / per_block] });
        let old: Vec<i32> =
            (0..self.runs).map(|g| if scales { rows.scales[first + g].into() } else { rows.offsets[first + g].into() }).collect();
        let units: Vec<f64> = (0..self.runs).map(|g| unit(rows, g)).collect();
        let wanted = self.wanted();
        let rounded = |g: usize| {
            let steps = wanted[g] / units[g];
            if steps.is_finite() { (old[g] + steps.round() as i32).clamp(low, high) } else { old[g] }
        };
        let start: Vec<i32> = (0..self.runs).map(rounded).collect();
        let changes = |new: &[i32]| -> Vec<f64> { (0..self.runs).map(|g| units[g] * f64::from(new[g] - old[g])).collect() };
        let mut new = if self.gain(&changes(&start)) > 0.0 { start } else { old.clone() };
        for _ in 0..ROUNDS {
            let mut moved = false;
            let mut at = changes(&new);
            for g in 0..self.runs {
                // Half the slope of the error along this run.
                let slope = self.side(g) - (0..self.runs).map(|h| self.product(g, h) * at[h]).sum::<f64>();
                let curve = self.product(g, g);
                let steps = (slope / (curve * units[g])).round();
                if steps.is_finite() && steps != 0.0 && curve > 0.0 {
                    let next = (new[g] + steps as i32).clamp(low, high);
                    moved |= next != new[g];
                    at[g] += units[g] * f64::from(next - new[g]);
                    new[g] = next;
                }
            }
            if !moved {
                break;
            }
        }
        // A scale of 0 gives nothing to round to.
        if scales {
            new.iter_mut().zip(&old).for_each(|(new, &old)| *new = if *new == 0 { old } else { *new });
        }
        let gain = self.gain(&changes(&new));
        if gain <= 0.0 {
            return 0.0;
        }
        for (g, &new) in new.iter().enumerate() {
            if scales {
                rows.scales[first + g] = new as i8;
            } else {
                rows.offsets[first + g] = new as u8;
            }
        }
        gain
    }
}
