//! The scale, and where the type has one the offset, of one run of weights.

use octet_tensor::{BlockCode, LEVELS, Levels, RunOffsets};

/// Scale and offset as floats: weight = scale · code − offset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fit {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Codes of a type, and how weights are rounded to them.
pub(super) trait Grid: Copy + Sync {
    /// The code nearest to `x`.
    fn nearest(self, x: f32) -> f32;
    /// Smallest and largest code.
    fn ends(self) -> (f32, f32);
}

/// Whole numbers.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    low: f32,
    high: f32,
}

/// The sixteen numbers of a table, and the middles between them.
#[derive(Clone, Copy)]
pub(super) struct Table {
    levels: [f32; 16],
    middles: [f32; 15],
}

impl Whole {
    pub(super) fn new(low: i8, high: i8) -> Self {
        Self { low: low.into(), high: high.into() }
    }
}

impl Table {
    pub(super) fn new() -> Self {
        let levels = LEVELS.map(f32::from);
        Self { levels, middles: std::array::from_fn(|i| (levels[i] + levels[i + 1]) / 2.0) }
    }
}

impl Grid for Whole {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        // Adding and taking off 1.5 · 2^23 rounds to the nearest whole number, ties to even, without a call.
        const MAGIC: f32 = 12_582_912.0;
        let x = if x > self.high { self.high } else { x };
        let x = if x < self.low { self.low } else { x };
        (x + MAGIC) - MAGIC
    }

    fn ends(self) -> (f32, f32) {
        (self.low, self.high)
    }
}

impl Grid for Table {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let mut level = self.levels[0];
        for (i, &middle) in self.middles.iter().enumerate() {
            level = if x > middle { self.levels[i + 1] } else { level };
        }
        level
    }

    fn ends(self) -> (f32, f32) {
        (self.levels[0], self.levels[15])
    }
}

/// Calls `f` with the grid of a type.
macro_rules! with_grid {
    ($code:expr, $grid:ident => $body:expr) => {
        match $code.levels {
            octet_tensor::Levels::Uniform { low, high } => {
                let $grid = $crate::solve::blocks::runs::Whole::new(low, high);
                $body
            }
            octet_tensor::Levels::Table => {
                let $grid = $crate::solve::blocks::runs::Table::new();
                $body
            }
        }
    };
}
pub(super) use with_grid;

/// Sums over a run with some codes q, weighted by importance.
#[derive(Clone, Copy)]
struct Moments {
    h: f32,
    hw: f32,
    hww: f32,
    hq: f32,
    hqw: f32,
    hqq: f32,
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one lane of several vectors")]
fn moments<G: Grid>(grid: G, weights: &[f32], importance: &[f32], inverse: f32, offset: f32) -> Moments {
    let mut sums = [[0f32; WIDE]; 6];
    for (weights, importance) in weights.as_chunks::<WIDE>().0.iter().zip(importance.as_chunks::<WIDE>().0) {
        for lane in 0..WIDE {
            let (w, h) = (weights[lane], importance[lane]);
            let q = grid.nearest((w + offset) * inverse);
            let (hw, hq) = (h * w, h * q);
            sums[0][lane] += h;
            sums[1][lane] += hw;
            sums[2][lane] += hw * w;
            sums[3][lane] += hq;
            sums[4][lane] += hq * w;
            sums[5][lane] += hq * q;
        }
    }
    let [h, hw, hww, hq, hqw, hqq] = sums.map(|lanes| lanes.iter().sum());
    Moments { h, hw, hww, hq, hqw, hqq }
}

/// Sums kept side by side, so that they are vectors: runs are multiples of it.
pub(super) const WIDE: usize = 8;

impl Moments {
    /// The scale that leaves the least error without an offset, and that error.
    fn scale(&self) -> (Fit, f32) {
        let scale = if self.hqq > 0.0 { self.hqw / self.hqq } else { 0.0 };
        (Fit { scale, offset: 0.0 }, self.hww - scale * self.hqw)
    }

    /// Scale and offset that leave the least error, the offset not negative where `floor` says so.
    fn both(&self, floor: bool) -> (Fit, f32) {
        let determinant = self.h * self.hqq - self.hq * self.hq;
        if determinant <= 1e-12 * self.h * self.hqq {
            return self.scale();
        }
        let scale = (self.h * self.hqw - self.hq * self.hw) / determinant;
        let minimum = (self.hqq * self.hw - self.hq * self.hqw) / determinant;
        if floor && minimum > 0.0 {
            return self.scale();
        }
        (Fit { scale, offset: -minimum }, self.hww - scale * self.hqw - minimum * self.hw)
    }
}

/// Error of a run whose codes are the nearest ones.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one lane of several vectors")]
pub(super) fn error<G: Grid>(grid: G, weights: &[f32], importance: &[f32], fit: Fit) -> f32 {
    let inverse = inverse(fit.scale);
    let mut sums = [0f32; WIDE];
    for (weights, importance) in weights.as_chunks::<WIDE>().0.iter().zip(importance.as_chunks::<WIDE>().0) {
        for lane in 0..WIDE {
            let moved = weights[lane] + fit.offset;
            let left = moved - fit.scale * grid.nearest(moved * inverse);
            sums[lane] += importance[lane] * left * left;
        }
    }
    sums.iter().sum()
}

/// 1 / scale, or 0 where that is no number.
pub(super) fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Candidates on either side of the plain choice.
const AROUND: i32 = 9;

/// The best scale and offset of a run as floats; whole multiples come later.
pub(super) fn fit<G: Grid>(grid: G, code: &BlockCode, weights: &[f32], importance: &[f32]) -> Fit {
    let (least, most) = weights.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &w| (a.min(w), b.max(w)));
    match code.offsets {
        RunOffsets::None => without_offset(grid, code, weights, importance, least, most),
        RunOffsets::Float => with_offset(grid, weights, importance, (least, most), false),
        RunOffsets::Multiples(_) => with_offset(grid, weights, importance, (least.min(0.0), most), true),
    }
}

fn without_offset<G: Grid>(grid: G, code: &BlockCode, weights: &[f32], importance: &[f32], least: f32, most: f32) -> Fit {
    let extreme = if most > -least { most } else { least };
    if extreme == 0.0 {
        return Fit::default();
    }
    let (low, high) = grid.ends();
    // Steps of a tenth of a code, of a table as much for its width.
    let step = if code.levels == Levels::Table { 0.1 * (high - low) / 15.0 } else { 0.1 };
    let mut best = (Fit::default(), f32::INFINITY);
    for end in [low, high] {
        for t in -AROUND..=AROUND {
            let found = moments(grid, weights, importance, (end + step * t as f32) / extreme, 0.0).scale();
            if found.1 < best.1 {
                best = found;
            }
        }
    }
    settle(grid, weights, importance, best, |m| m.scale())
}

fn with_offset<G: Grid>(grid: G, weights: &[f32], importance: &[f32], (least, most): (f32, f32), floor: bool) -> Fit {
    let (_, high) = grid.ends();
    if most <= least {
        // All the same: an offset says it where offsets may be negative.
        return if floor && least > 0.0 { Fit { scale: least / high, offset: 0.0 } } else { Fit { scale: 0.0, offset: -least } };
    }
    let mut best = (Fit::default(), f32::INFINITY);
    // The range shrunk at both ends, and stretched a little.
    for t in -AROUND..=AROUND / 3 {
        let width = (most - least) * (1.0 + 0.025 * t as f32);
        for lean in [-0.5f32, 0.0, 0.5] {
            let low = least + (most - least - width) * (0.5 + lean);
            let offset = if floor { (-low).max(0.0) } else { -low };
            let found = moments(grid, weights, importance, high / width, offset).both(floor);
            if found.1 < best.1 {
                best = found;
            }
        }
    }
    settle(grid, weights, importance, best, |m| m.both(floor))
}

/// Rounds and solves in turn until nothing is gained.
fn settle<G: Grid>(grid: G, weights: &[f32], importance: &[f32], mut best: (Fit, f32), solve: impl Fn(&Moments) -> (Fit, f32)) -> Fit {
    for _ in 0..4 {
        let found = solve(&moments(grid, weights, importance, inverse(best.0.scale), best.0.offset));
        if found.1 >= best.1 || !found.0.scale.is_finite() {
            break;
        }
        best = found;
    }
    best.0
}
