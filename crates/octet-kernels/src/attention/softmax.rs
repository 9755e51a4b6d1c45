//! The online softmax of a row: its state, and how a run of scores changes it.

use crate::simd::{
    LANES, Simd,
    math::{exp2_of_negative, tanh},
};
use std::ops::Range;

/// What a row keeps between runs of keys. Scores are in units of ln 2: weights are powers of two.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RowState {
    /// Largest score so far.
    pub(super) largest: f32,
    /// Sum of the weights so far.
    pub(super) sum: f32,
    /// What was weighed before this run is to be multiplied by.
    pub(super) decay: f32,
    /// What this run's sums are to be multiplied by (where weights are integers).
    pub(super) scale: f32,
}

// SAFETY: four floats one after the other: no padding, every bit pattern valid.
unsafe impl bytemuck::Zeroable for RowState {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowState {}

impl RowState {
    pub(super) const EMPTY: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, decay: 0.0, scale: 0.0 };

    /// What turns weights relative to a largest score of `from` into ones relative to `to`.
    #[inline(always)]
    pub(super) fn decay<S: Simd>(s: S, from: f32, to: f32) -> f32 {
        if from == to {
            1.0
        } else if from == f32::NEG_INFINITY {
            0.0
        } else {
            let mut lanes = [0.0; LANES];
            s.store(exp2_of_negative(s, s.splat(from - to)), &mut lanes);
            lanes[0]
        }
    }
}

/// Where the keys that a row sees begin and end within a run.
#[inline(always)]
pub(super) fn seen_in(run: Range<usize>, seen: &Range<usize>) -> Range<usize> {
    let place = |key: usize| key.clamp(run.start, run.end) - run.start;
    place(seen.start)..place(seen.end)
}

/// The largest lane.
#[inline(always)]
fn largest_lane<S: Simd>(s: S, v: S::F) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    let eight: [f32; 8] = std::array::from_fn(|i| larger(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| larger(eight[i], eight[i + 4]));
    larger(larger(four[0], four[1]), larger(four[2], four[3]))
}

/// Turns a row's scores into weights, those of keys not in `seen` into zeros, and brings the row's state up to date. With a
/// soft cap scores are natural and become units of ln 2 here.
///
/// Where there are scales of the values weights are multiplied by them, and the largest of the products and their sum are
/// what is returned.
#[inline(always)]
pub(super) fn soften<S: Simd>(
    s: S,
    scores: &mut [[f32; LANES]],
    state: &mut RowState,
    seen: Range<usize>,
    soft_cap: Option<f32>,
    scales: Option<&[[f32; LANES]]>,
) -> [f32; 2] {
    if let Some(cap) = soft_cap {
        let (by, inverse) = (s.splat(cap * std::f32::consts::LOG2_E), s.splat(1.0 / cap));
        for block in scores.iter_mut() {
            s.store(s.mul(by, tanh(s, s.mul(s.load(block), inverse))), block);
        }
    }
    let flat = scores.as_flattened_mut();
    flat[..seen.start].fill(f32::NEG_INFINITY);
    flat[seen.end..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(f32::NEG_INFINITY);
    for block in scores.iter() {
        largest = s.max(s.load(block), largest);
    }
    let (old, new) = (state.largest, largest_lane(s, largest));
    let new = if new > old { new } else { old };
    // Nothing seen yet: any finite number keeps infinity minus infinity out.
    let shift = s.splat(if new == f32::NEG_INFINITY { 0.0 } else { new });
    let (mut sum, mut most, mut all) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
    for (i, block) in scores.iter_mut().enumerate() {
        let mut weight = exp2_of_negative(s, s.sub(s.load(block), shift));
        sum = s.add(sum, weight);
        if let Some(scales) = scales {
            weight = s.mul(weight, s.load(&scales[i]));
            most = s.max(weight, most);
            all = s.add(all, weight);
        }
        s.store(weight, block);
    }
    let flat = scores.as_flattened_mut();
    flat[..seen.start].fill(0.0);
    flat[seen.end..].fill(0.0);
    state.largest = new;
    state.decay = RowState::decay(s, old, new);
    state.sum = state.sum * state.decay + s.sum(sum);
    if scales.is_some() { [largest_lane(s, most), s.sum(all)] } else { [0.0; 2] }
}
