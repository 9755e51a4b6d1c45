//! RMSNorm and LayerNorm.

use crate::{
    Engine,
    counters::Kernel,
    simd::{LANES, Op, Simd},
};

impl Engine {
    /// RMSNorm (Zhang and Sennrich, arXiv 1910.07467) of every row of `x` `[rows, width]`: out = x / √(mean x² + eps) · weight.
    ///
    /// # Panics
    /// If `x` and `out` are not as long as each other, or no multiple of `weight`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.norm(x, Norm { weight, bias: None, eps, centred: false }, false, out);
    }

    /// LayerNorm (Ba et al., arXiv 1607.06450) of every row of `x` `[rows, width]`:
    /// out = (x − mean) / √(variance + eps) · weight + bias, with the variance of the row itself.
    ///
    /// # Panics
    /// As [`Engine::rms_norm`].
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        self.norm(x, Norm { weight, bias, eps, centred: true }, false, out);
    }

    /// acc = acc + norm(x), row by row.
    ///
    /// # Panics
    /// As [`Engine::rms_norm`], for `x` and `acc`.
    pub fn add_norm(&self, x: &[f32], norm: Norm<'_>, acc: &mut [f32]) {
        self.norm(x, norm, true, acc);
    }

    pub(crate) fn norm(&self, x: &[f32], norm: Norm<'_>, accumulate: bool, out: &mut [f32]) {
        let width = norm.weight.len();
        assert_eq!(x.len(), out.len(), "a norm's output is as long as its input");
        assert!(width > 0 && x.len().is_multiple_of(width), "{} elements are no rows of {width}", x.len());
        norm.check();
        self.count(Kernel::Norm);
        self.each_rows(out, width, 2, &|first, out| {
            let x = &x[first * width..first * width + out.len()];
            self.vectorize(NormRows { x, norm, out, accumulate });
        });
    }
}

/// An RMSNorm or a LayerNorm.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// What the normed values are multiplied by; its length is the length of what is normed together.
    pub weight: &'a [f32],
    /// What is then added.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance (the mean square, for an RMSNorm).
    pub eps: f32,
    /// Whether the mean is taken off first: a LayerNorm.
    pub centred: bool,
}

impl Norm<'_> {
    pub(crate) fn check(&self) {
        let width = self.weight.len();
        assert!(self.bias.is_none_or(|b| b.len() == width), "the bias has {width} elements");
    }
}

/// Norms of some rows.
pub(crate) struct NormRows<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) norm: Norm<'a>,
    pub(crate) out: &'a mut [f32],
    /// Whether they are added to `out` instead of replacing it.
    pub(crate) accumulate: bool,
}

impl Op for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Norm { weight, bias, .. } = self.norm;
        let width = weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (mean, scale) = moments(s, x, &self.norm);
            let (means, scales) = (s.splat(mean), s.splat(scale));
            let (whole, rest) = x.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for (i, (x, out)) in whole.iter().zip(out).enumerate() {
                let y = scaled(s, s.load(x), (means, scales), &self.norm, i * LANES);
                s.store(if self.accumulate { s.add(s.load(out), y) } else { y }, out);
            }
            for (i, (&v, out)) in rest.iter().zip(out_rest).enumerate() {
                let at = whole.len() * LANES + i;
                let y = (v - mean) * scale * weight[at] + bias.map_or(0.0, |bias| bias[at]);
                *out = if self.accumulate { *out + y } else { y };
            }
        }
    }
}

/// A norm of one run in place.
#[inline(always)]
pub(crate) fn norm_in_place<S: Simd>(s: S, x: &mut [f32], norm: &Norm<'_>) {
    let (mean, scale) = moments(s, x, norm);
    let (means, scales) = (s.splat(mean), s.splat(scale));
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let count = whole.len() * LANES;
    for (i, x) in whole.iter_mut().enumerate() {
        s.store(scaled(s, s.load(x), (means, scales), norm, i * LANES), x);
    }
    for (i, v) in rest.iter_mut().enumerate() {
        *v = (*v - mean) * scale * norm.weight[count + i] + norm.bias.map_or(0.0, |bias| bias[count + i]);
    }
}

/// What is taken from every value, and what it is then multiplied by.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32], norm: &Norm<'_>) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = if norm.centred { sum(s, x, 0.0, false) / width } else { 0.0 };
    (mean, 1.0 / (sum(s, x, mean, true) / width + norm.eps).sqrt())
}

#[inline(always)]
fn scaled<S: Simd>(s: S, x: S::F, (means, scales): (S::F, S::F), norm: &Norm<'_>, at: usize) -> S::F {
    let weight = load(s, &norm.weight[at..at + LANES]);
    let bias = norm.bias.map_or(s.splat(0.0), |bias| load(s, &bias[at..at + LANES]));
    s.fma(s.mul(s.sub(x, means), scales), weight, bias)
}

#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
    from.as_chunks::<LANES>().0.first().map_or(s.splat(0.0), |chunk| s.load(chunk))
}

/// Σ (x − mean), or Σ (x − mean)².
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], mean: f32, squares: bool) -> f32 {
    let mut acc = s.splat(0.0);
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        let d = s.sub(s.load(x), s.splat(mean));
        acc = if squares { s.fma(d, d, acc) } else { s.add(acc, d) };
    }
    let tail: f32 = rest.iter().map(|v| if squares { (v - mean) * (v - mean) } else { v - mean }).sum();
    s.sum(acc) + tail
}
