//! Refinement against the whole Hessian: better codes with the scales fixed, better scales with the codes fixed, in turn.

use super::{
    super::RowsMut,
    rows::{LANES, State, Work},
};
use octet_kernels::{RowGrids, ScaleEquations};

/// Passes of coordinate descent between two solutions for the scales.
const DESCENTS: usize = 2;

/// How much of the diagonal is added when solving for scales, which holds them to what they were.
const RIDGE: f64 = 1e-3;

/// Runs `rounds` rounds and gives by how much the error fell, as the damped Hessian counts it. `out` gets the scales.
pub(super) fn refine(work: &Work<'_>, state: &mut State, grids: &mut [RowGrids], out: &mut RowsMut<'_>, rounds: usize) -> f64 {
    let mut gain = 0.0;
    for _ in 0..rounds {
        gain += descend(work, state, grids, DESCENTS);
        gain += rescale(work, state, grids, out);
    }
    gain + descend(work, state, grids, 1)
}

fn descend(work: &Work<'_>, state: &mut State, grids: &[RowGrids], passes: usize) -> f64 {
    let rows = state.weights.rows();
    let damping = work.hessian().damping() as f32;
    let mut rounding = state.rounding(grids, work.matrix_groups());
    (0..passes).map(|_| work.engine().descend_rows(work.hessian().matrix(), damping, &mut rounding)[..rows].iter().sum::<f64>()).sum()
}

/// Solves every row's scales for its codes; a row keeps its old ones if the new ones, rounded to what can be stored, are
/// no better.
fn rescale(work: &Work<'_>, state: &mut State, grids: &mut [RowGrids], out: &mut RowsMut<'_>) -> f64 {
    let (groups, size, rows) = (work.groups(), work.job().group_size(), state.weights.rows());
    if !size.is_multiple_of(LANES) && size < work.cols() {
        return 0.0;
    }
    let steps = state.rounding(grids, work.matrix_groups()).steps();
    let damping = work.hessian().damping() as f32;
    let equations = work.engine().scale_equations(work.hessian().matrix(), damping, &state.errors, &steps, size);
    let mut gain = 0.0;
    for row in 0..rows {
        let scales = &mut out.scales[row * groups..(row + 1) * groups];
        let Some((better, gained)) = better_scales(&equations, row, scales, |scale| work.job().scale_dtype.round(scale)) else { continue };
        gain += gained;
        scales.copy_from_slice(&better);
        for (group, &scale) in better.iter().enumerate() {
            let zero = out.zeros.get(row * groups + group).copied().unwrap_or_default();
            grids[row / LANES * groups + group].set(row % LANES, work.candidate(scale, zero), zero);
        }
    }
    state.rounding(grids, work.matrix_groups()).settle();
    gain
}

/// Scales of a row that lower its error, rounded to what can be stored, and by how much they do.
fn better_scales(equations: &ScaleEquations, row: usize, scales: &[f32], round: impl Fn(f32) -> f32) -> Option<(Vec<f32>, f64)> {
    let groups = scales.len();
    let product = |g: usize, h: usize| f64::from(equations.product(row, g.max(h), g.min(h)));
    let sides: Vec<f64> = (0..groups).map(|g| f64::from(equations.side(row, g))).collect();
    let changes = solve(groups, |g, h| product(g, h) * if g == h { 1.0 + RIDGE } else { 1.0 }, &sides)?;
    let rounded: Vec<f32> = scales.iter().zip(&changes).map(|(&scale, change)| round((f64::from(scale) + change) as f32)).collect();
    if rounded.iter().any(|scale| !(1.0 / scale).is_finite() || !scale.is_finite()) {
        return None;
    }
    let changes: Vec<f64> = rounded.iter().zip(scales).map(|(&new, &old)| f64::from(new) - f64::from(old)).collect();
    let quadratic = |g: usize| changes[g] * (0..groups).map(|h| product(g, h) * changes[h]).sum::<f64>();
    let gain: f64 = (0..groups).map(|g| 2.0 * changes[g] * sides[g] - quadratic(g)).sum();
    (gain > 0.0).then_some((rounded, gain))
}

/// Solves the symmetric system with elements `at(g, h)`, h ≤ g, by Cholesky factorisation; unknowns without an equation
/// (groups whose codes are all zero) are 0. `None` where it is not positive definite.
fn solve(size: usize, at: impl Fn(usize, usize) -> f64, sides: &[f64]) -> Option<Vec<f64>> {
    let mut factor = vec![0f64; size * (size + 1) / 2];
    let row = |g: usize| g * (g + 1) / 2;
    let mut x = vec![0f64; size];
    for g in 0..size {
        let (done, rest) = factor.split_at_mut(row(g));
        for h in 0..g {
            let dot: f64 = rest[..h].iter().zip(&done[row(h)..row(h) + h]).map(|(a, b)| a * b).sum();
            rest[h] = (at(g, h) - dot) / done[row(h) + h];
        }
        let diagonal = at(g, g);
        let pivot = if diagonal == 0.0 { 1.0 } else { diagonal - rest[..g].iter().map(|v| v * v).sum::<f64>() };
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        rest[g] = pivot.sqrt();
        x[g] = (sides[g] - rest[..g].iter().zip(&x).map(|(a, b)| a * b).sum::<f64>()) / rest[g];
    }
    for g in (0..size).rev() {
        x[g] /= factor[row(g) + g];
        for h in 0..g {
            x[h] -= factor[row(g) + h] * x[g];
        }
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_systems_are_solved() {
        let a = [[4.0, 2.0, 0.0, 0.6], [2.0, 5.0, 0.0, -1.0], [0.0; 4], [0.6, -1.0, 0.0, 3.0]];
        let x = solve(4, |g, h| a[g][h], &[1.0, 2.0, 0.0, 3.0]).unwrap();
        for g in [0, 1, 3] {
            let found: f64 = (0..4).map(|h| a[g][h] * x[h]).sum();
            assert!((found - [1.0, 2.0, 0.0, 3.0][g]).abs() < 1e-12);
        }
        assert_eq!(x[2], 0.0);
        assert!(solve(2, |g, h| if g == h { 1.0 } else { 2.0 }, &[1.0, 1.0]).is_none());
    }
}
