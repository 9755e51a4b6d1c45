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

/// One value a candidate. Arithmetic is spelled out array by array: the compiler then keeps whole vectors.
type V = [f32; LANES];

#[inline(always)]
fn map(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|j| f(a[j], b[j]))
}

#[inline(always)]
fn squared_residual(w: f32, lanes: &Lanes) -> V {
    let k = map([w; LANES], lanes.inverse, |w, inverse| w * inverse);
    let k = map(k, lanes.low, |k, low| if k > low { k } else { low });
    let k = map(k, lanes.high, |k, high| if k < high { k } else { high });
    let k = map(k, [ROUND; LANES], |k, round| (k + round) - round);
    let q = map(k, lanes.scale, |k, scale| k * scale);
    let e = map([w; LANES], q, |w, q| w - q);
    map(e, e, |a, b| a * b)
}

// Kept apart from the sums in f64, which would otherwise talk the compiler into vectors of two.
#[inline(never)]
fn plain(weights: &[f32], lanes: &Lanes) -> V {
    let lanes = *lanes;
    weights.iter().fold([0f32; LANES], |sums, &w| map(sums, squared_residual(w, &lanes), |sum, e| sum + e))
}

#[inline(never)]
fn weighted(weights: &[f32], importance: &[f32], lanes: &Lanes) -> V {
    let lanes = *lanes;
    weights.iter().zip(importance).fold([0f32; LANES], |sums, (&w, &h)| {
        let e = map(squared_residual(w, &lanes), [h; LANES], |e, h| h * e);
        map(sums, e, |sum, e| sum + e)
    })
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

/// The moments of a group under a choice (`inverse`, `low`, `high` as in [`Lanes`]); `h`, `k` and `w` only where `joint`.
pub(super) fn moments(weights: &[f32], importance: &[f32], choice: [f32; 3], joint: bool) -> Moments {
    let mut total = Moments::default();
    for (block, weights) in weights.chunks(BLOCK).enumerate() {
        let importance = if importance.is_empty() { &ONES[..weights.len()] } else { &importance[block * BLOCK..][..weights.len()] };
        let [kk, wk] = second_moments(weights, importance, choice).map(total_of);
        total.kk += kk;
        total.wk += wk;
        if joint {
            let [h, k, w] = first_moments(weights, importance, choice).map(total_of);
            total = Moments { h: total.h + h, k: total.k + k, w: total.w + w, ..total };
        }
    }
    total
}

static ONES: [f32; BLOCK] = [1.0; BLOCK];

/// Sixteen partial sums: the compiler may use vectors of any width without reordering anything.
type Sums = [f32; 16];

fn total_of(sums: Sums) -> f64 {
    sums.iter().map(|&v| f64::from(v)).sum()
}

#[inline(never)]
fn second_moments(weights: &[f32], importance: &[f32], [inverse, low, high]: [f32; 3]) -> [Sums; 2] {
    let (mut kk, mut wk) = ([0f32; 16], [0f32; 16]);
    each_16(weights, importance, |w, h| {
        for j in 0..16 {
            let k = round_clamped(w[j] * inverse, low, high);
            let hk = h[j] * k;
            kk[j] += hk * k;
            wk[j] += hk * w[j];
        }
    });
    [kk, wk]
}

#[inline(never)]
fn first_moments(weights: &[f32], importance: &[f32], [inverse, low, high]: [f32; 3]) -> [Sums; 3] {
    let (mut sum_h, mut sum_k, mut sum_w) = ([0f32; 16], [0f32; 16], [0f32; 16]);
    each_16(weights, importance, |w, h| {
        for j in 0..16 {
            sum_h[j] += h[j];
            sum_k[j] += h[j] * round_clamped(w[j] * inverse, low, high);
            sum_w[j] += h[j] * w[j];
        }
    });
    [sum_h, sum_k, sum_w]
}

/// Sixteen weights and importances at a time, the last ones padded with weights and importances of zero.
#[inline(always)]
fn each_16(weights: &[f32], importance: &[f32], mut f: impl FnMut(&[f32; 16], &[f32; 16])) {
    let (w, w_tail) = weights.as_chunks::<16>();
    let (h, h_tail) = importance.as_chunks::<16>();
    for (w, h) in w.iter().zip(h) {
        f(w, h);
    }
    if !w_tail.is_empty() {
        let (mut w, mut h) = ([0.0; 16], [0.0; 16]);
        w[..w_tail.len()].copy_from_slice(w_tail);
        h[..h_tail.len()].copy_from_slice(h_tail);
        f(&w, &h);
    }
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

/// Σ (w − q)², Σ w² and the largest |w − q| of one group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupError {
    pub(super) error: f64,
    pub(super) weight: f64,
    pub(super) max: f32,
}

/// Writes the codes of a group (`lane`: scale, inverse, low, high) and returns its plain error.
pub(super) fn encode(weights: &[f32], lane: [f32; 4], zero: i8, codes: &mut [i8]) -> GroupError {
    let mut total = GroupError::default();
    for (weights, codes) in weights.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let [error, weight, max] = encode_block(weights, lane, zero, codes);
        total.error += total_of(error);
        total.weight += total_of(weight);
        total.max = max.into_iter().fold(total.max, f32::max);
    }
    total
}

#[inline(never)]
fn encode_block(weights: &[f32], [scale, inverse, low, high]: [f32; 4], zero: i8, codes: &mut [i8]) -> [Sums; 3] {
    let (mut error, mut weight, mut max) = ([0f32; 16], [0f32; 16], [0f32; 16]);
    let mut sixteen = |w: &[f32; 16]| {
        let mut codes = [0i8; 16];
        for j in 0..16 {
            let k = round_clamped(w[j] * inverse, low, high);
            // The low mantissa bits of k + ROUND are k itself (two's complement): cheaper than a checked conversion.
            codes[j] = ((k + ROUND).to_bits() as i8).wrapping_add(zero);
            let e = w[j] - scale * k;
            error[j] += e * e;
            weight[j] += w[j] * w[j];
            max[j] = if e.abs() > max[j] { e.abs() } else { max[j] };
        }
        codes
    };
    let (chunks, tail) = weights.as_chunks::<16>();
    let (code_chunks, code_tail) = codes.as_chunks_mut::<16>();
    for (w, codes) in chunks.iter().zip(code_chunks) {
        *codes = sixteen(w);
    }
    if !tail.is_empty() {
        // Weights of zero add nothing to any sum.
        let mut padded = [0.0; 16];
        padded[..tail.len()].copy_from_slice(tail);
        code_tail.copy_from_slice(&sixteen(&padded)[..tail.len()]);
    }
    [error, weight, max]
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
