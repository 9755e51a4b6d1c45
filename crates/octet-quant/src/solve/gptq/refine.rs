//! Refinement against the whole Hessian: better codes with the scales fixed, better scales with the codes fixed, in turn.

use super::{
    super::RowsMut,
    rescale::RowEquations,
    rows::{LANES, State, Work},
};
use octet_kernels::RowGrids;
use octet_tensor::Alphabet;

/// Passes of coordinate descent between two solutions for the scales.
const DESCENTS: usize = 2;

/// Runs `rounds` rounds and gives by how much the error fell, as the damped Hessian counts it. `out` gets the scales.
pub(super) fn refine(work: &Work<'_>, state: &mut State, grids: &mut [RowGrids], out: &mut RowsMut<'_>, rounds: usize) -> f64 {
    let mut gain = 0.0;
    for _ in 0..rounds {
        gain += descend(work, state, grids, DESCENTS);
        gain += rescale(work, state, grids, out);
    }
    gain + descend(work, state, grids, 1)
}

/// Coordinates of a point of the lattice do not move one by one: such codes stay as they were rounded.
fn descend(work: &Work<'_>, state: &mut State, grids: &[RowGrids], passes: usize) -> f64 {
    if work.job().alphabet() == Alphabet::Lattice {
        return 0.0;
    }
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
        let stored = work.job().stored(scales);
        let Some((better, gained)) = RowEquations::new(&equations, row, groups).better(scales, stored, work.job().scale_dtype) else {
            continue;
        };
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
