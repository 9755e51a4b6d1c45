//! Rounding eight columns at once to points of the lattice.

use super::{EDGE, Line, Pass};
use crate::{
    lattice::{EIGHT, MIDDLE, number, other_side, select_odd},
    simd::{LANES, Simd},
};

/// Of each row of a run: what eight columns of it are rounded to.
#[derive(Clone, Copy)]
struct Point<S: Simd> {
    codes: [S::F; EIGHT],
    errors: [S::F; EIGHT],
    /// What decides between points, and the loss.
    distance: S::F,
    loss: S::F,
}

/// Eight columns of sixteen rows, and what was there before.
struct Columns<'a, S: Simd> {
    weights: [S::F; EIGHT],
    /// What the columns rounded before call for.
    wanted: [S::F; EIGHT],
    inverse: S::F,
    scale: S::F,
    /// The factor's diagonal: its inverse and its square.
    diagonal: [(f32, f32); EIGHT],
    /// The factor's element of row `from` and column `to`.
    element: &'a [[f32; EIGHT]; EIGHT],
    feedback: bool,
}

impl<S: Simd> Columns<'_, S> {
    /// The point of even (`parity` 0) or odd codes that rounding one column after the other leads to, column `turned` going the other way.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn point(&self, s: S, parity: f32, turned: usize) -> Point<S> {
        let shift = s.splat(MIDDLE - parity);
        let zero = s.splat(0.0);
        let mut found = Point { codes: [zero; EIGHT], errors: [zero; EIGHT], distance: zero, loss: zero };
        let (mut wanted, mut numbers) = (self.wanted, zero);
        for t in (0..EIGHT).rev() {
            let (inverse, square) = self.diagonal[t];
            let w = self.weights[t];
            let aim = s.add(w, s.mul(wanted[t], s.splat(inverse)));
            let value = if self.feedback { aim } else { w };
            let (mut n, beyond) = number(s, s.mul(s.add(s.mul(value, self.inverse), shift), s.splat(0.5)));
            if t == turned {
                n = s.add(n, other_side(s, n, beyond));
            }
            numbers = s.add(numbers, n);
            let code = s.sub(s.mul(s.splat(2.0), n), shift);
            let rounded = s.mul(self.scale, code);
            let (error, missed) = (s.sub(w, rounded), s.sub(aim, rounded));
            let loss = s.mul(s.splat(square), s.mul(missed, missed));
            found.loss = s.add(found.loss, loss);
            found.distance = s.add(found.distance, if self.feedback { loss } else { s.mul(error, error) });
            (found.codes[t], found.errors[t]) = (code, error);
            for to in 0..t {
                wanted[to] = s.fma(error, s.splat(self.element[t][to]), wanted[to]);
            }
        }
        found.distance = select_odd(s, numbers, s.splat(f32::INFINITY), found.distance);
        found
    }

    /// The best of the points that rounding in turn leads to, with even and odd codes and with no or one column turned (Babai's nearest
    /// plane, of two cosets and nine neighbours).
    #[inline(always)]
    fn best(&self, s: S) -> Point<S> {
        let mut best = self.point(s, 0.0, EIGHT);
        for which in 1..2 * (EIGHT + 1) {
            let (parity, turned) = (which / (EIGHT + 1), EIGHT - which % (EIGHT + 1));
            let found = self.point(s, parity as f32, turned);
            let (new, old) = (found.distance, best.distance);
            for t in 0..EIGHT {
                best.codes[t] = s.select_less(new, old, found.codes[t], best.codes[t]);
                best.errors[t] = s.select_less(new, old, found.errors[t], best.errors[t]);
            }
            best.loss = s.select_less(new, old, found.loss, best.loss);
            best.distance = s.min(new, old);
        }
        best
    }
}

impl<const DESCENT: bool> Pass<'_, DESCENT> {
    /// Rounds eight columns to points, given what all columns outside of them call for.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    pub(super) fn eights<S: Simd, const R: usize, const T: usize>(
        &mut self,
        s: S,
        (j, column, first): (usize, usize, usize),
        lines: &[Line],
        acc: &[[S::F; T]; R],
        loss: &mut [S::F; R],
    ) {
        let (padded, cols) = (self.rows.errors.padded(), self.rows.errors.cols());
        let groups = self.rows.grids.len() / self.rows.weights.runs().max(1);
        let start = j * EDGE + column;
        let Some(&group) = self.rows.group_of.get(start) else { return };
        let of = |r: usize, c: usize| lines[(column + r) / LANES * EDGE + column + c].0[(column + r) % LANES];
        let mut element = [[0.0; EIGHT]; EIGHT];
        let mut diagonal = [(1.0, 1.0); EIGHT];
        for t in 0..EIGHT {
            diagonal[t] = (1.0 / self.diagonal[start + t], self.diagonal[start + t] * self.diagonal[start + t]);
            for to in 0..t {
                element[t][to] = of(t, to);
            }
        }
        for r in 0..R {
            let at = (first + r) * padded + start;
            let grid = &self.rows.grids[(first + r) * groups + group as usize];
            let (mut weights, mut wanted) = ([s.splat(0.0); EIGHT], [s.splat(0.0); EIGHT]);
            for t in 0..EIGHT {
                (weights[t], wanted[t]) = (s.load(&self.rows.weights.lines[at + t].0), acc[r][t]);
            }
            let (inverse, scale) = (s.load(&grid.inverse.0), s.load(&grid.scale.0));
            let best = Columns { weights, wanted, inverse, scale, diagonal, element: &element, feedback: self.feedback }.best(s);
            for t in 0..EIGHT {
                s.round_codes(best.codes[t], &mut self.rows.codes[(first + r) * cols + start + t]);
                s.store(best.errors[t], &mut self.rows.errors.lines[at + t].0);
            }
            loss[r] = s.add(loss[r], best.loss);
        }
    }
}
