//! Which scales and zero points are worth trying, as factors of a group's range.

use octet_kernels::{CANDIDATES, Candidate, Candidates, CodeMoments};
use octet_tensor::{Dtype, WeightScheme};

/// A scale and zero point; the scale is exactly what the storage type holds, in the group's normalised units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) scale: f32,
    pub(super) zero: i32,
}

impl Choice {
    /// A scale that its storage type cannot hold (zero or infinite) stands for "all codes zero".
    pub(super) fn is_void(&self) -> bool {
        self.scale == 0.0 || !self.scale.is_finite()
    }

    /// The choice as kernels want it, with codes in `range`.
    pub(super) fn candidate(&self, range: (i32, i32)) -> Candidate {
        if self.is_void() {
            return Candidate::default();
        }
        let (low, high) = ((range.0 - self.zero) as f32, (range.1 - self.zero) as f32);
        Candidate { inverse: 1.0 / self.scale, scale: self.scale, low, high }
    }
}

/// Sixteen choices side by side.
pub(super) fn side_by_side(choices: &[Choice; CANDIDATES], range: (i32, i32)) -> Candidates {
    let mut all = Candidates::default();
    for (j, choice) in choices.iter().enumerate() {
        let one = choice.candidate(range);
        (all.inverse[j], all.scale[j], all.low[j], all.high[j]) = (one.inverse, one.scale, one.low, one.high);
    }
    all
}

/// One way to turn a group's range into a scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    /// How much of the range the codes span (1: all of it; less: the ends are clipped).
    span: f32,
    /// Symmetric: whether the extreme weight takes the end with the extra code. Asymmetric: offset of the zero point.
    side: i32,
}

/// The grid of a scheme, made once a tensor.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    shapes: Vec<Shape>,
    asymmetric: bool,
    half: f32,
    range: (i32, i32),
}

/// Smallest share of the range worth trying, by width (index: bits). Gaussian rows of 4,096 weights, whose optimum
/// clips the most, are the yardstick; searching further than that over-fits single groups.
const SMALLEST_SPAN: [f32; 9] = [0.0, 0.0, 0.40, 0.50, 0.58, 0.66, 0.74, 0.80, 0.85];

impl Grid {
    /// A grid of at least `count` candidates, rounded up to a multiple of sixteen.
    pub(super) fn new(scheme: WeightScheme, count: usize) -> Self {
        let (low, high) = (scheme.bits.min_code(), scheme.bits.max_code());
        let half = -low as f32;
        let smallest = SMALLEST_SPAN[scheme.bits.get() as usize];
        let count = count.max(1).next_multiple_of(CANDIDATES);
        let asymmetric = scheme.is_asymmetric();
        let shapes = if asymmetric { asymmetric_shapes(count, smallest, 2.0 * half) } else { symmetric_shapes(count, smallest, half) };
        Self { shapes, asymmetric, half, range: (low, high) }
    }

    /// Number of candidates.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Choice `index` for a group between `low` and `high`, its scale rounded by `round`.
    pub(super) fn choice(&self, index: usize, (low, high): (f32, f32), rounding: Rounding) -> Choice {
        let Shape { span, side } = self.shapes[index];
        if !self.asymmetric {
            let extreme = if -low >= high { low } else { high };
            let sign = if side == 0 { -1.0 } else { 1.0 };
            return Choice { scale: rounding.round(sign * extreme * span / self.half), zero: 0 };
        }
        // The range always contains zero, so that the zero point is a code.
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = rounding.round((high - low) * span / (self.range.1 - self.range.0) as f32);
        let (centre, width) = (0.5 * (low + high), 0.5 * (high - low) * span);
        self.with_zero(scale, self.range.0 as f32 - (centre - width) / scale, side)
    }

    /// The scale with the zero point nearest to `zero`, moved by `offset`, that is a code.
    fn with_zero(&self, scale: f32, zero: f32, offset: i32) -> Choice {
        if scale == 0.0 || !zero.is_finite() {
            return Choice::default();
        }
        let zero = (zero.round_ties_even() as i32).saturating_add(offset).clamp(self.range.0, self.range.1);
        Choice { scale, zero }
    }

    /// Candidates around the closed-form optimum for the codes of `best`, whose moments these are.
    pub(super) fn around(&self, best: Choice, m: &CodeMoments, rounding: Rounding) -> [Choice; CANDIDATES] {
        let fitted = if m.kk > 0.0 { (m.wk / m.kk) as f32 } else { best.scale };
        // About the change that moves the outermost weight by an eighth of a step.
        let step = 1.0 / (8.0 * self.half);
        let moved = |scale: f32, by: f32| rounding.round(scale * (1.0 + by * step));
        if !self.asymmetric {
            return std::array::from_fn(|j| Choice { scale: moved(fitted, alternating(j)), zero: 0 });
        }
        let same = |by: f32, offset: i32| self.with_zero(moved(fitted, by), best.zero as f32, offset);
        // Least squares for scale and offset together, the offset then rounded to a zero point.
        let det = m.h * m.kk - m.k * m.k;
        let (joint, shift) = if det > 1e-12 * m.h * m.kk {
            let scale = (m.h * m.wk - m.k * m.w) / det;
            (scale as f32, ((m.w - scale * m.k) / m.h / scale) as f32)
        } else {
            (fitted, 0.0)
        };
        let free = |by: f32, offset: i32| self.with_zero(moved(joint, by), best.zero as f32 - shift, offset);
        std::array::from_fn(|j| match j {
            0..5 => same(alternating(j), 0),
            5..10 => free(alternating(j - 5), 0),
            10..13 => free(alternating(j - 10), 1),
            _ => free(alternating(j - 13), -1),
        })
    }
}

/// 0, 1, −1, 2, −2, …
fn alternating(j: usize) -> f32 {
    let size = j.div_ceil(2) as f32;
    if j % 2 == 1 { size } else { -size }
}

/// Both signs of the scale; the plain choices come first (extreme at the longer end, at the shorter end, and both
/// signs of the conventional absmax / (2^(b−1) − ½)), then evenly spaced shrunken ones.
fn symmetric_shapes(count: usize, smallest: f32, half: f32) -> Vec<Shape> {
    let (short, plain) = (half / (half - 1.0), half / (half - 0.5));
    let mut shapes =
        vec![Shape { span: 1.0, side: 0 }, Shape { span: short, side: 1 }, Shape { span: plain, side: 0 }, Shape { span: plain, side: 1 }];
    let each = (count - shapes.len()) / 2;
    for i in 1..=each {
        let span = 1.0 + (smallest - 1.0) * i as f32 / each as f32;
        shapes.extend([Shape { span, side: 0 }, Shape { span, side: 1 }]);
    }
    shapes
}

/// The whole range, a little more (what was quantized before may have left outermost codes unused), and shrunken
/// spans; each with the zero point where the range asks for it, the wider ones also with it one step to either side.
fn asymmetric_shapes(count: usize, smallest: f32, codes: f32) -> Vec<Shape> {
    // One step of a wide code is too small to matter beside the gaps of its grid: there the spare codes come first.
    let wides = if codes > 64.0 { 3 } else { 1 };
    let spans = count / 2 - wides;
    let span = |i: usize| 1.0 + (smallest - 1.0) * i as f32 / spans as f32;
    let wide = (1..=wides).map(|i| Shape { span: (codes - 1.0) / (codes - 1.0 - i as f32), side: 0 });
    let centred = (0..spans).map(|i| Shape { span: span(i), side: 0 });
    let moved = (0..count - spans - wides).map(|i| Shape { span: span(1 + i / 2), side: if i % 2 == 0 { 1 } else { -1 } });
    centred.chain(wide).chain(moved).collect()
}

/// How scales become what their storage type holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// The storage type.
    pub(super) dtype: Dtype,
    /// Scales are given in units of 2 to this power.
    pub(super) exponent: i32,
}

impl Rounding {
    /// The nearest scale that can be stored, in the same units.
    #[inline]
    pub(super) fn round(self, scale: f32) -> f32 {
        match (self.dtype, self.exponent) {
            (Dtype::F32, 0) => scale,
            // Half to even on the upper 16 bits; scales in here are finite.
            (Dtype::Bf16, 0) => {
                let bits = scale.to_bits();
                f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
            }
            (dtype, 0) => dtype.round(scale),
            (dtype, exponent) => {
                let unit = 2f64.powi(exponent);
                (f64::from(dtype.round((f64::from(scale) * unit) as f32)) / unit) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_storage_type() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let plain = Rounding { dtype, exponent: 0 };
            let scaled = Rounding { dtype, exponent: -3 };
            for i in 0..10_000u32 {
                let scale = (f32::from_bits(0x3c00_0000 + i * 7919)) * if i % 2 == 0 { 1.0 } else { -1.0 };
                assert_eq!(plain.round(scale), dtype.round(scale));
                assert_eq!(scaled.round(scale) / 8.0, dtype.round(scale / 8.0));
            }
        }
    }
}
