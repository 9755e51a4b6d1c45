//! The hot loops: errors of eight candidates at once, and encoding with the winner.
//!
//! Candidates are the SIMD lanes (not weights), so that a group of any length, ragged or not, costs the same and
//! needs no horizontal sums. Sums run in f32 over blocks of [`BLOCK`] weights and in f64 across blocks; their order
//! depends on nothing but the data.

/// Candidates looked at in one pass.
pub(super) const LANES: usize = 8;

/// Weights summed in f32 before the sum moves to f64.
const BLOCK: usize = 128;

/// Adding and subtracting 1.5 · 2^23 rounds an f32 below 2^22 half to even.
const ROUND: f32 = 12_582_912.0;

/// Eight candidates: w ≈ scale · clamp(round(w · inverse), low, high).
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    pub(super) inverse: [f32; LANES],
    pub(super) scale: [f32; LANES],
    pub(super) low: [f32; LANES],
    pub(super) high: [f32; LANES],
}

/// Weighted squared errors of eight candidates on a group; `importance` is empty (all ones) or as long as `weights`.
pub(super) fn candidate_errors(weights: &[f32], importance: &[f32], lanes: &Lanes) -> [f64; LANES] {
    let mut total = [0f64; LANES];
    for (block, weights) in weights.chunks(BLOCK).enumerate() {
        let sums = if importance.is_empty() {
            plain(weights, lanes)
        } else {
            weighted(weights, &importance[block * BLOCK..][..weights.len()], lanes)
        };
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
    total
}

#[inline]
fn plain(weights: &[f32], lanes: &Lanes) -> [f32; LANES] {
    let mut sums = [0f32; LANES];
    for &w in weights {
        for (j, sum) in sums.iter_mut().enumerate() {
            let e = residual(w, lanes, j);
            *sum += e * e;
        }
    }
    sums
}

#[inline]
fn weighted(weights: &[f32], importance: &[f32], lanes: &Lanes) -> [f32; LANES] {
    let mut sums = [0f32; LANES];
    for (&w, &h) in weights.iter().zip(importance) {
        for (j, sum) in sums.iter_mut().enumerate() {
            let e = residual(w, lanes, j);
            *sum += h * (e * e);
        }
    }
    sums
}

#[inline(always)]
fn residual(w: f32, lanes: &Lanes, j: usize) -> f32 {
    w - lanes.scale[j] * round_clamped(w * lanes.inverse[j], lanes.low[j], lanes.high[j])
}

/// Rounds half to even within `low..=high`. Comparisons instead of `f32::max`: their NaN rules would cost extra
/// instructions, and there are no NaNs here.
#[inline(always)]
fn round_clamped(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    (x + ROUND) - ROUND
}

/// Sums over a group with its codes fixed, for the closed-form best scale (k is code − zero point, h importance).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    /// Σ h
    pub(super) h: f64,
    /// Σ h·k
    pub(super) k: f64,
    /// Σ h·k²
    pub(super) kk: f64,
    /// Σ h·w
    pub(super) w: f64,
    /// Σ h·w·k
    pub(super) wk: f64,
}

/// The moments of a group under a choice (`inverse`, `low`, `high` as in [`Lanes`]).
pub(super) fn moments(weights: &[f32], importance: &[f32], inverse: f32, low: f32, high: f32) -> Moments {
    let mut total = Moments::default();
    for (block, weights) in weights.chunks(BLOCK).enumerate() {
        let importance = importance.get(block * BLOCK..).unwrap_or(&[]);
        // Sixteen independent sums a quantity let the compiler use vectors of any width without reordering anything.
        let mut sums = [[0f32; 16]; 5];
        for (at, weights) in weights.chunks(16).enumerate() {
            for (j, &w) in weights.iter().enumerate() {
                let h = if importance.is_empty() { 1.0 } else { importance[at * 16 + j] };
                let k = round_clamped(w * inverse, low, high);
                let (hk, hw) = (h * k, h * w);
                for (sum, value) in sums.iter_mut().zip([h, hk, hk * k, hw, hw * k]) {
                    sum[j] += value;
                }
            }
        }
        let [h, k, kk, w, wk] = sums.map(|lane| lane.iter().map(|&v| f64::from(v)).sum::<f64>());
        total = Moments { h: total.h + h, k: total.k + k, kk: total.kk + kk, w: total.w + w, wk: total.wk + wk };
    }
    total
}

/// Smallest and largest weight of a group.
pub(super) fn range(weights: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; 16], [f32::MIN; 16]);
    let (chunks, tail) = weights.as_chunks::<16>();
    for chunk in chunks {
        for (j, &w) in chunk.iter().enumerate() {
            low[j] = if w < low[j] { w } else { low[j] };
            high[j] = if w > high[j] { w } else { high[j] };
        }
    }
    let fold = |lanes: [f32; 16], pick: fn(f32, f32) -> f32| lanes.iter().chain(tail).copied().fold(lanes[0], pick);
    (fold(low, f32::min), fold(high, f32::max))
}

/// Error sums of one group: squared error, squared weights, both also weighted; largest |error|.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupError {
    pub(super) error: f64,
    pub(super) weight: f64,
    pub(super) max: f32,
}

/// Writes the codes of a group and returns its plain error.
pub(super) fn encode(weights: &[f32], lane: [f32; 4], zero: i8, codes: &mut [i8]) -> GroupError {
    let [scale, inverse, low, high] = lane;
    let mut total = GroupError::default();
    let mut max = [0f32; 16];
    for (weights, codes) in weights.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let (mut error, mut weight) = ([0f32; 16], [0f32; 16]);
        let mut one = |j: usize, w: f32, code: &mut i8| {
            let k = round_clamped(w * inverse, low, high);
            // |k| stays below 512 and k + zero within the code's range, so both casts are exact.
            *code = (k as i32 + i32::from(zero)) as i8;
            let e = w - scale * k;
            error[j] += e * e;
            weight[j] += w * w;
            let magnitude = e.abs();
            max[j] = if magnitude > max[j] { magnitude } else { max[j] };
        };
        let (chunks, tail) = weights.as_chunks::<16>();
        let (code_chunks, code_tail) = codes.as_chunks_mut::<16>();
        for (weights, codes) in chunks.iter().zip(code_chunks) {
            for j in 0..16 {
                one(j, weights[j], &mut codes[j]);
            }
        }
        for (j, (&w, code)) in tail.iter().zip(code_tail).enumerate() {
            one(j, w, code);
        }
        total.error += error.iter().map(|&v| f64::from(v)).sum::<f64>();
        total.weight += weight.iter().map(|&v| f64::from(v)).sum::<f64>();
    }
    total.max = max.into_iter().fold(0.0, f32::max);
    total
}

/// Σ h·w² of a group.
pub(super) fn weighted_power(weights: &[f32], importance: &[f32]) -> f64 {
    let mut total = 0.0;
    for (weights, importance) in weights.chunks(BLOCK).zip(importance.chunks(BLOCK)) {
        let mut sums = [0f32; 16];
        for (weights, importance) in weights.chunks(16).zip(importance.chunks(16)) {
            for (sum, (&w, &h)) in sums.iter_mut().zip(weights.iter().zip(importance)) {
                *sum += h * (w * w);
            }
        }
        total += sums.iter().map(|&v| f64::from(v)).sum::<f64>();
    }
    total
}
