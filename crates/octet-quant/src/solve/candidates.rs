//! Which scales and zero points are worth trying, as factors of a group's range.

use super::rounding::Rounding;
use octet_kernels::{CANDIDATES, Candidate, Candidates, CodeMoments};
use octet_tensor::{Alphabet, WeightScheme};

/// A scale and zero point; the scale is exactly what the storage type holds, in the group's normalised units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) scale: f32,
    pub(super) zero: f32,
}

impl Choice {
    /// A scale that its storage type cannot hold (zero or infinite) stands for "all codes zero".
    pub(super) fn is_void(&self) -> bool {
        self.scale == 0.0 || !self.scale.is_finite()
    }

    /// The choice as kernels want it.
    pub(super) fn candidate(&self, grid: &Grid) -> Candidate {
        if self.is_void() {
            return Candidate::default();
        }
        let (low, high) = (grid.low - self.zero, grid.high - self.zero);
        Candidate { inverse: 1.0 / self.scale, scale: self.scale, low, high, alphabet: grid.alphabet }
    }
}

/// Sixteen choices side by side (plain arrays, so that making them is vector work too).
#[derive(Clone, Copy, Debug)]
pub(super) struct Choices {
    scale: V,
    zero: V,
}

type V = [f32; CANDIDATES];

impl Choices {
    /// Scales with one zero point.
    pub(super) fn with_zero(scale: V, zero: f32) -> Self {
        Self { scale, zero: [zero; CANDIDATES] }
    }

    /// Choice `j`.
    pub(super) fn at(&self, j: usize) -> Choice {
        Choice { scale: self.scale[j], zero: self.zero[j] }
    }

    /// All of them as kernels want them.
    pub(super) fn candidates(&self, grid: &Grid) -> Candidates {
        let mut all = Candidates { alphabet: grid.alphabet, ..Candidates::default() };
        for j in 0..CANDIDATES {
            let scale = self.scale[j];
            let inverse = 1.0 / scale;
            let void = scale == 0.0 || inverse == 0.0;
            all.scale[j] = if void { 0.0 } else { scale };
            all.inverse[j] = if void { 0.0 } else { inverse };
            // A void choice has codes of zero, whatever its zero point.
            all.low[j] = if void { 0.0 } else { grid.low - self.zero[j] };
            all.high[j] = if void { 0.0 } else { grid.high - self.zero[j] };
        }
        all
    }
}

/// The grid of a scheme, made once a tensor.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Sixteen at a time: how much of the range the codes span (1: all of it; less: the ends are clipped). Negative for
    /// the symmetric choices whose extreme weight takes the end with the extra code.
    spans: Vec<V>,
    /// Asymmetric: offsets of the zero point from where the range asks for it.
    offsets: Vec<V>,
    asymmetric: bool,
    alphabet: Alphabet,
    /// Steps of a code from zero to the farther end.
    steps: f32,
    low: f32,
    high: f32,
}

/// Smallest share of the range worth trying, by width (index: bits). Gaussian rows of 4,096 weights, whose optimum
/// clips the most, are the yardstick; searching further than that over-fits single groups.
pub(super) const SMALLEST_SPAN: [f32; 9] = [0.0, 0.0, 0.40, 0.50, 0.58, 0.66, 0.74, 0.80, 0.85];

impl Grid {
    /// A grid of at least `count` choices, rounded up to a multiple of sixteen.
    pub(super) fn new(scheme: WeightScheme, alphabet: Alphabet, count: usize) -> Self {
        let ends = alphabet.table().map_or(scheme.range(), |table| (table.levels()[0].into(), table.levels()[15].into()));
        let (low, high) = (ends.0 as f32, ends.1 as f32);
        let steps = -scheme.bits.min_code() as f32;
        let smallest = SMALLEST_SPAN[scheme.bits.get() as usize];
        let count = count.max(1).next_multiple_of(CANDIDATES);
        let asymmetric = scheme.is_asymmetric();
        let shapes = if asymmetric { asymmetric_shapes(count, smallest, high - low) } else { symmetric_shapes(count, smallest, -low) };
        let blocks = shapes.as_chunks::<CANDIDATES>().0;
        let (spans, offsets) = blocks.iter().map(|block| (block.map(|shape| shape.0), block.map(|shape| shape.1))).unzip();
        Self { spans, offsets, asymmetric, alphabet, steps, low, high }
    }

    /// The choices for a group between `low` and `high`, sixteen at a time.
    pub(super) fn choices(&self, (low, high): (f32, f32), rounding: Rounding) -> impl Iterator<Item = Choices> {
        let extreme = if -low >= high { low } else { high };
        // Where zero points are codes, the range must contain zero.
        let (low, high) = (low.min(0.0), high.max(0.0));
        let (centre, half) = (0.5 * (low + high), 0.5 * (high - low));
        self.spans.iter().zip(&self.offsets).map(move |(spans, offsets)| {
            if !self.asymmetric {
                let unit = extreme / -self.low;
                return Choices { scale: rounding.round(spans.map(|span| unit * span)), zero: [0.0; CANDIDATES] };
            }
            let scale = rounding.round(spans.map(|span| 2.0 * half * span / (self.high - self.low)));
            let zero = std::array::from_fn(|j| self.low - (centre - half * spans[j]) / scale[j]);
            self.with_zeros(scale, zero, *offsets)
        })
    }

    /// The scales with the zero points nearest to `zero`, moved by `offset`, that are codes.
    fn with_zeros(&self, scale: V, zero: V, offset: V) -> Choices {
        // A void scale may come with a zero point of NaN or infinity, which the comparisons turn into a code.
        let zero = std::array::from_fn(|j| {
            let zero = zero[j].round_ties_even() + offset[j];
            let zero = if zero > self.low { zero } else { self.low };
            if zero < self.high { zero } else { self.high }
        });
        Choices { scale, zero }
    }

    /// Choices around the closed-form optimum for the codes of `best`, whose moments these are.
    pub(super) fn around(&self, best: Choice, m: &CodeMoments, rounding: Rounding) -> Choices {
        let fitted = if m.kk > 0.0 { (m.wk / m.kk) as f32 } else { best.scale };
        // About the change that moves the outermost weight by an eighth of a step.
        let step = 1.0 / (8.0 * self.steps);
        if !self.asymmetric {
            let scale = std::array::from_fn(|j| fitted * (1.0 + alternating(j) * step));
            return Choices { scale: rounding.round(scale), zero: [0.0; CANDIDATES] };
        }
        // Least squares for scale and offset together, the offset then rounded to a zero point.
        let det = m.h * m.kk - m.k * m.k;
        let (joint, shift) = if det > 1e-12 * m.h * m.kk {
            let scale = (m.h * m.wk - m.k * m.w) / det;
            (scale as f32, ((m.w - scale * m.k) / m.h / scale) as f32)
        } else {
            (fitted, 0.0)
        };
        // Five scales with the zero point as it is, eleven with the free one or a neighbour of it.
        let around: [(f32, f32, f32); CANDIDATES] = std::array::from_fn(|j| match j {
            0..5 => (fitted * (1.0 + alternating(j) * step), 0.0, 0.0),
            5..10 => (joint * (1.0 + alternating(j - 5) * step), shift, 0.0),
            10..13 => (joint * (1.0 + alternating(j - 10) * step), shift, 1.0),
            _ => (joint * (1.0 + alternating(j - 13) * step), shift, -1.0),
        });
        let scale = rounding.round(around.map(|(scale, ..)| scale));
        self.with_zeros(scale, around.map(|(_, shift, _)| best.zero - shift), around.map(|(.., offset)| offset))
    }
}

/// 0, 1, −1, 2, −2, …
fn alternating(j: usize) -> f32 {
    let size = j.div_ceil(2) as f32;
    if j % 2 == 1 { size } else { -size }
}

/// Both signs of the scale; the plain choices come first (extreme at the longer end, at the shorter end, and both
/// signs of the conventional absmax / (2^(b−1) − ½)), then evenly spaced shrunken ones.
fn symmetric_shapes(count: usize, smallest: f32, half: f32) -> Vec<(f32, f32)> {
    let (short, plain) = (half / (half - 1.0), half / (half - 0.5));
    let mut shapes = vec![(-1.0, 0.0), (short, 0.0), (-plain, 0.0), (plain, 0.0)];
    let each = (count - shapes.len()) / 2;
    for i in 1..=each {
        let span = 1.0 + (smallest - 1.0) * i as f32 / each as f32;
        shapes.extend([(-span, 0.0), (span, 0.0)]);
    }
    shapes
}

/// The whole range, a little more (what was quantized before may have left outermost codes unused), and shrunken
/// spans; each with the zero point where the range asks for it, the wider ones also with it one step to either side.
fn asymmetric_shapes(count: usize, smallest: f32, steps: f32) -> Vec<(f32, f32)> {
    const WIDE: usize = 3;
    let spans = (count - WIDE).div_ceil(2);
    let span = |i: usize| 1.0 + (smallest - 1.0) * i as f32 / spans as f32;
    // Two-bit codes have three steps, of which at least one is used.
    let wide = (1..=WIDE).map(|i| (steps / (steps - i as f32).max(1.0), 0.0));
    let centred = (0..spans).map(|i| (span(i), 0.0));
    let moved = (0..count - spans - WIDE).map(|i| (span(1 + i / 2), if i % 2 == 0 { 1.0 } else { -1.0 }));
    centred.chain(wide).chain(moved).collect()
}
