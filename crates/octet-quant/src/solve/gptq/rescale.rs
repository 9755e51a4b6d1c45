//! Better scales of a row for the codes that it has, by the equations of its error.

use super::super::rounding::Stored;
use octet_kernels::ScaleEquations;
use octet_tensor::{Dtype, RowFactor};

/// How much of the diagonal is added when solving for scales, which holds them to what they were.
const RIDGE: f64 = 1e-3;

/// Passes over whole scales, one at a time with the others as they are.
const PASSES: usize = 3;

/// What a change of the scales of one row does to its error.
pub(super) struct RowEquations<'a> {
    equations: &'a ScaleEquations,
    row: usize,
    groups: usize,
}

impl<'a> RowEquations<'a> {
    pub(super) fn new(equations: &'a ScaleEquations, row: usize, groups: usize) -> Self {
        Self { equations, row, groups }
    }

    fn product(&self, g: usize, h: usize) -> f64 {
        f64::from(self.equations.product(self.row, g.max(h), g.min(h)))
    }

    fn side(&self, g: usize) -> f64 {
        f64::from(self.equations.side(self.row, g))
    }

    /// Scales that lower the error and can be stored, and by how much they do.
    pub(super) fn better(&self, scales: &[f32], stored: Stored, dtype: Dtype) -> Option<(Vec<f32>, f64)> {
        let sides: Vec<f64> = (0..self.groups).map(|g| self.side(g)).collect();
        let changes = solve(self.groups, |g, h| self.product(g, h) * if g == h { 1.0 + RIDGE } else { 1.0 }, &sides)?;
        let wanted: Vec<f32> = scales.iter().zip(&changes).map(|(&scale, change)| (f64::from(scale) + change) as f32).collect();
        let (rounded, gain) = match stored {
            Stored::Float(_) => {
                let rounded: Vec<f32> = wanted.iter().map(|&scale| stored.round(scale)).collect();
                if rounded.iter().any(|scale| !(1.0 / scale).is_finite() || !scale.is_finite()) {
                    return None;
                }
                let gain = self.gain(scales, &rounded);
                (rounded, gain)
            }
            Stored::Whole(factor) => {
                let largest = wanted.iter().fold(0.0f32, |most, scale| most.max(scale.abs()));
                let tries = [factor, RowFactor::reaching(largest, dtype)].map(|factor| {
                    let rounded = self.whole(scales, &wanted, factor);
                    let gain = self.gain(scales, &rounded);
                    (rounded, gain)
                });
                let [old, new] = tries;
                if new.1 > old.1 { new } else { old }
            }
        };
        (gain > 0.0).then_some((rounded, gain))
    }

    /// By how much the error falls from scales `from` to scales `to`.
    fn gain(&self, from: &[f32], to: &[f32]) -> f64 {
        let changes: Vec<f64> = to.iter().zip(from).map(|(&new, &old)| f64::from(new) - f64::from(old)).collect();
        let quadratic = |g: usize| changes[g] * (0..self.groups).map(|h| self.product(g, h) * changes[h]).sum::<f64>();
        (0..self.groups).map(|g| 2.0 * changes[g] * self.side(g) - quadratic(g)).sum()
    }

    /// Whole multiples near `wanted`, each then moved to where it serves best beside the others. One whose codes count stays above zero.
    fn whole(&self, scales: &[f32], wanted: &[f32], factor: RowFactor) -> Vec<f32> {
        let unit = f64::from(factor.unit());
        let counts: Vec<bool> = (0..self.groups).map(|g| self.product(g, g) > 0.0).collect();
        let nearest = |g: usize, scale: f64| {
            let whole = factor.whole(scale as f32);
            if whole == 0 && counts[g] { if scale < 0.0 { -1 } else { 1 } } else { whole }
        };
        let mut whole: Vec<i8> = wanted.iter().enumerate().map(|(g, &scale)| nearest(g, f64::from(scale))).collect();
        let changes: Vec<f64> = whole.iter().zip(scales).map(|(&whole, &scale)| f64::from(whole) * unit - f64::from(scale)).collect();
        let mut rest: Vec<f64> =
            (0..self.groups).map(|g| self.side(g) - (0..self.groups).map(|h| self.product(g, h) * changes[h]).sum::<f64>()).collect();
        for _ in 0..PASSES {
            let mut moved = false;
            for g in (0..self.groups).filter(|&g| counts[g]) {
                let here = f64::from(whole[g]) * unit;
                let better = nearest(g, here + rest[g] / self.product(g, g));
                if better != whole[g] {
                    let change = f64::from(better) * unit - here;
                    rest.iter_mut().enumerate().for_each(|(h, rest)| *rest -= self.product(g, h) * change);
                    (whole[g], moved) = (better, true);
                }
            }
            if !moved {
                break;
            }
        }
        whole.into_iter().map(|whole| factor.scale(whole)).collect()
    }
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
