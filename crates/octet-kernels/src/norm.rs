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
        self.norm(x, weight, None, eps, false, out);
    }

    /// LayerNorm (Ba et al., arXiv 1607.06450) of every row of `x` `[rows, width]`:
    /// out = (x − mean) / √(variance + eps) · weight + bias, with the variance of the row itself.
    ///
    /// # Panics
    /// As [`Engine::rms_norm`].
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        self.norm(x, weight, bias, eps, true, out);
    }

    fn norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, centred: bool, out: &mut [f32]) {
        let width = weight.len();
        assert_eq!(x.len(), out.len(), "a norm's output is as long as its input");
        assert!(width > 0 && x.len().is_multiple_of(width), "{} elements are no rows of {width}", x.len());
        assert!(bias.is_none_or(|b| b.len() == width), "the bias has {width} elements");
        self.count(Kernel::Norm);
        self.each_rows(out, width, 2, &|first, out| {
            let x = &x[first * width..first * width + out.len()];
            self.vectorize(Norm { x, weight, bias, eps, centred, out });
        });
    }
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
    out: &'a mut [f32],
}

impl Op for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mean = if self.centred { sum(s, x, 0.0, false) / width as f32 } else { 0.0 };
            let scale = 1.0 / (sum(s, x, mean, true) / width as f32 + self.eps).sqrt();
            let (means, scales) = (s.splat(mean), s.splat(scale));
            let (whole, rest) = x.as_chunks::<LANES>();
            for (i, x) in whole.iter().enumerate() {
                let at = i * LANES;
                let weight = load(s, &self.weight[at..at + LANES]);
                let bias = self.bias.map_or(s.splat(0.0), |bias| load(s, &bias[at..at + LANES]));
                let y = s.fma(s.mul(s.sub(s.load(x), means), scales), weight, bias);
                s.store(y, &mut out.as_chunks_mut::<LANES>().0[i]);
            }
            for (i, &v) in rest.iter().enumerate() {
                let at = whole.len() * LANES + i;
                out[at] = (v - mean) * scale * self.weight[at] + self.bias.map_or(0.0, |bias| bias[at]);
            }
        }
    }
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
