//! Gradients of RMSNorm and LayerNorm.

use super::{map_two, sum_two};
use crate::{
    Engine, Norm,
    parallel::Shared,
    simd::{LANES, Op, Simd},
};

/// Rows whose gradients of the weight are summed before those of other rows are added.
const ROWS: usize = 128;

/// Where a norm's gradients go.
pub struct NormGradient<'a> {
    /// Of the inputs, as many as there are.
    pub x: &'a mut [f32],
    /// Whether they are added to what `x` holds.
    pub accumulate: bool,
    /// Of the weight, added to what it holds.
    pub weight: Option<&'a mut [f32]>,
    /// Of the bias, added to what it holds.
    pub bias: Option<&'a mut [f32]>,
}

impl Engine {
    /// The gradients of a norm of the rows `x`, given those of its outputs, `dy`.
    ///
    /// With x̂ = (x − mean) · r and g = weight · dy they are r · (g − mean g − x̂ · mean(g · x̂)), the means of x and g being
    /// zero for an RMSNorm, Σ dy · x̂ and Σ dy.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn norm_gradient(&self, x: &[f32], norm: Norm<'_>, dy: &[f32], to: NormGradient<'_>) {
        let width = norm.weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "{} elements are no rows of {width}", x.len());
        assert!(x.len() == dy.len() && x.len() == to.x.len(), "gradients are as many as inputs");
        norm.check();
        let step = ROWS * width;
        let tasks = x.len().div_ceil(step);
        let mut sums = vec![0.0; tasks * 2 * width];
        let (dx, parts) = (Shared::new(to.x), Shared::new(&mut sums));
        self.run(tasks, &|task| {
            let range = task * step..x.len().min((task + 1) * step);
            // SAFETY: every task has rows and sums of its own.
            let (dx, sums) = unsafe { (dx.part(range.clone()), parts.part(task * 2 * width..(task + 1) * 2 * width)) };
            self.vectorize(Rows { x: &x[range.clone()], norm, dy: &dy[range], dx, accumulate: to.accumulate, sums });
        });
        for (to, offset) in [(to.weight, 0), (to.bias, width)] {
            let Some(to) = to else { continue };
            for part in sums.chunks_exact(2 * width) {
                to.iter_mut().zip(&part[offset..]).for_each(|(to, part)| *to += part);
            }
        }
    }
}

struct Rows<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
    /// Of the weight, then of the bias.
    sums: &'a mut [f32],
}

impl Op for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.norm.weight.len();
        let (weights, biases) = self.sums.split_at_mut(width);
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            let count = width as f32;
            let mean = if self.norm.centred { sum_two(s, x, x, |x, _| x) / count } else { 0.0 };
            let tail = (width.next_multiple_of(LANES) - width) as f32 * mean * mean;
            let squares = sum_two(s, x, x, |x, _| {
                let d = s.sub(x, s.splat(mean));
                s.mul(d, d)
            }) - tail;
            let r = 1.0 / (squares / count + self.norm.eps).sqrt();
            let (means, rs) = (s.splat(mean), s.splat(r));
            let normed = |x: S::F| s.mul(s.sub(x, means), rs);
            // What fills up a vector has gradients of zero.
            map_two_three(s, weights, x, dy, |sum, x, dy| s.fma(normed(x), dy, sum));
            map_two(s, biases, dy, |sum, dy| s.add(sum, dy));
            let (mut along, mut across) = (s.splat(0.0), s.splat(0.0));
            each_three(s, x, dy, self.norm.weight, |x, dy, w| {
                let g = s.mul(dy, w);
                along = s.fma(g, normed(x), along);
                across = s.add(across, g);
            });
            let along = s.splat(s.sum(along) / count);
            let across = s.splat(if self.norm.centred { s.sum(across) / count } else { 0.0 });
            let accumulate = self.accumulate;
            let mut at = 0;
            let weight = self.norm.weight;
            map_two_three(s, dx, x, dy, |old, x, dy| {
                let w = load(s, &weight[at..]);
                at += LANES;
                let inner = s.sub(s.sub(s.mul(dy, w), across), s.mul(normed(x), along));
                let value = s.mul(rs, inner);
                if accumulate { s.add(old, value) } else { value }
            });
        }
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
    match from.first_chunk::<LANES>() {
        Some(chunk) => s.load(chunk),
        None => s.load(&super::padded(from, 0.0)),
    }
}

/// acc = f(acc, x, y), sixteen at a time.
#[inline(always)]
fn map_two_three<S: Simd>(s: S, acc: &mut [f32], x: &[f32], y: &[f32], mut f: impl FnMut(S::F, S::F, S::F) -> S::F) {
    let mut at = 0;
    map_two(s, acc, x, |acc, x| {
        let y = load(s, &y[at..]);
        at += LANES;
        f(acc, x, y)
    });
}

#[inline(always)]
fn each_three<S: Simd>(s: S, x: &[f32], y: &[f32], z: &[f32], mut f: impl FnMut(S::F, S::F, S::F)) {
    for at in (0..x.len()).step_by(LANES) {
        f(load(s, &x[at..]), load(s, &y[at..]), load(s, &z[at..]));
    }
}
