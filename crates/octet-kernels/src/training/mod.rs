//! What training needs beside the forward pass: products of any two matrices, and the gradients of norms, gates,
//! attention and the divergence of logits.
//!
//! Everything is f32. A sum's order depends on shapes alone, so any number of threads gives the same bits; vector
//! instruction sets agree with each other, scalar code within the tolerance of floating point.

mod attention;
mod elementwise;
mod norm;
mod product;
mod softmax;

pub use attention::{AttentionGradient, AttentionShape};
pub use norm::NormGradient;
pub use product::MatrixView;
pub use softmax::Likeness;

pub(crate) use product::Panels;

use crate::simd::{LANES, Simd};

/// x = f(x), sixteen at a time; what fills up the last vector is `pad`.
#[inline(always)]
fn map<S: Simd>(s: S, x: &mut [f32], pad: f32, mut f: impl FnMut(S::F) -> S::F) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        s.store(f(s.load(x)), x);
    }
    if !rest.is_empty() {
        let mut last = padded(rest, pad);
        s.store(f(s.load(&last)), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// x = f(x, y), sixteen at a time; what fills up the last vectors is zero.
#[inline(always)]
fn map_two<S: Simd>(s: S, x: &mut [f32], y: &[f32], mut f: impl FnMut(S::F, S::F) -> S::F) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (others, other) = y.as_chunks::<LANES>();
    for (x, y) in whole.iter_mut().zip(others) {
        s.store(f(s.load(x), s.load(y)), x);
    }
    if !rest.is_empty() {
        let mut last = padded(rest, 0.0);
        s.store(f(s.load(&last), s.load(&padded(other, 0.0))), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Σ f(x, y), sixteen at a time; what fills up the last vectors is zero.
#[inline(always)]
fn sum_two<S: Simd>(s: S, x: &[f32], y: &[f32], mut f: impl FnMut(S::F, S::F) -> S::F) -> f32 {
    let ((whole, rest), (others, other)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut acc = s.splat(0.0);
    for (x, y) in whole.iter().zip(others) {
        acc = s.add(acc, f(s.load(x), s.load(y)));
    }
    if !rest.is_empty() {
        acc = s.add(acc, f(s.load(&padded(rest, 0.0)), s.load(&padded(other, 0.0))));
    }
    s.sum(acc)
}

#[inline(always)]
fn padded(values: &[f32], pad: f32) -> [f32; LANES] {
    let mut all = [pad; LANES];
    all[..values.len()].copy_from_slice(values);
    all
}

/// The largest of `x`; NaN where one is.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut acc = s.splat(f32::NEG_INFINITY);
    for x in whole {
        // The second operand decides where one is NaN.
        acc = s.max(acc, s.load(x));
    }
    let mut all = [0.0; LANES];
    s.store(acc, &mut all);
    all.iter().chain(rest).copied().fold(f32::NEG_INFINITY, |a, b| if a >= b || a.is_nan() { a } else { b })
}

/// x = exp(x − shift); their sum.
#[inline(always)]
fn exponentials<S: Simd>(s: S, x: &mut [f32], shift: f32) -> f32 {
    let (shift, mut acc) = (s.splat(shift), s.splat(0.0));
    // In loops, not in a closure: one of this size stays a function, which is not compiled for the instruction set.
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        let e = crate::simd::math::exp(s, s.sub(s.load(x), shift));
        acc = s.add(acc, e);
        s.store(e, x);
    }
    if !rest.is_empty() {
        let mut last = padded(rest, f32::NEG_INFINITY);
        let e = crate::simd::math::exp(s, s.sub(s.load(&last), shift));
        acc = s.add(acc, e);
        s.store(e, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
    s.sum(acc)
}
