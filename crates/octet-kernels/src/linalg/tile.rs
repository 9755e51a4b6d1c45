//! Register tiles of products: sixteen rows are lanes, the other side is broadcast.

use super::{EDGE, LANES, Line};
use crate::simd::{Simd, unroll};
use std::ops::Range;

/// acc\[r\]\[t\] = Σᵢ lanes\[r\]\[i\] · x\[i\]\[H·T + t\], i ascending.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(crate) fn tile<S: Simd, const R: usize, const T: usize, const H: usize>(s: S, lanes: [&[Line]; R], x: &[Line]) -> [[S::F; T]; R] {
    let lanes = lanes.map(|lines| &lines[..x.len()]);
    let mut acc = [[s.splat(0.0); T]; R];
    for i in 0..x.len() {
        let mut w = [s.splat(0.0); R];
        unroll!(r < R, { w[r] = s.load(&lanes[r][i].0) });
        unroll!(t < T, {
            let x = s.splat(x[i].0[H * T + t]);
            unroll!(r < R, { acc[r][t] = s.fma(w[r], x, acc[r][t]) });
        });
    }
    acc
}

/// acc\[r\]\[t\] = Σ lanes\[r\]\[q\] · block(q, column + t) over rows q of a block, q ascending.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(crate) fn tile_down<S: Simd, const R: usize, const T: usize>(
    s: S,
    acc: &mut [[S::F; T]; R],
    lanes: [&[Line]; R],
    block: &[Line],
    column: usize,
    rows: Range<usize>,
) {
    let lanes = lanes.map(|lines| &lines[..EDGE]);
    for first in (rows.start / LANES * LANES..rows.end).step_by(LANES) {
        let Some(columns) = block[first / LANES * EDGE + column..].first_chunk::<T>() else { return };
        for q in first.max(rows.start)..(first + LANES).min(rows.end) {
            let mut w = [s.splat(0.0); R];
            unroll!(r < R, { w[r] = s.load(&lanes[r][q].0) });
            unroll!(t < T, {
                let x = s.splat(columns[t].0[q % LANES]);
                unroll!(r < R, { acc[r][t] = s.fma(w[r], x, acc[r][t]) });
            });
        }
    }
}
