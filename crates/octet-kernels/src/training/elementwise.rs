//! Gradients of activation functions, gates and soft caps.

use super::{map, map_two};
use crate::{
    ActivationFn, Engine,
    parallel::Shared,
    simd::{
        LANES, Op, Simd,
        math::{erf, exp, sigmoid, tanh},
    },
};

/// Elements of a task.
const GRAIN: usize = 4096;

impl Engine {
    /// The gradients of y = f(gate) · up, given those of y, `dy`, which becomes the gate's; `up` becomes its own.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate_gradient(&self, f: ActivationFn, gate: &[f32], dy: &mut [f32], up: &mut [f32]) {
        assert!(gate.len() == dy.len() && gate.len() == up.len(), "gate, up and their product are of one length");
        let (dy, up) = (Shared::new(dy), Shared::new(up));
        self.run(gate.len().div_ceil(GRAIN), &|task| {
            let range = task * GRAIN..gate.len().min((task + 1) * GRAIN);
            // SAFETY: every task has elements of its own.
            let (dy, up) = unsafe { (dy.part(range.clone()), up.part(range.clone())) };
            self.vectorize(Gates { f, gate: &gate[range], dy, up });
        });
    }

    /// dy = dy · f′(x).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn activation_gradient(&self, f: ActivationFn, x: &[f32], dy: &mut [f32]) {
        assert_eq!(x.len(), dy.len(), "as many gradients as elements");
        self.each_rows(dy, 1, 8, &|first, dy| {
            let x = &x[first..first + dy.len()];
            self.vectorize(Slopes { f, x, dy });
        });
    }

    /// dy = dy · (1 − (y / cap)²), the gradient of [`Engine::soft_cap`] by its result y.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn soft_cap_gradient(&self, y: &[f32], cap: f32, dy: &mut [f32]) {
        assert_eq!(y.len(), dy.len(), "as many gradients as elements");
        self.each_rows(dy, 1, 4, &|first, dy| {
            self.vectorize(Caps { y: &y[first..first + dy.len()], dy, inverse: 1.0 / cap });
        });
    }

    /// x = x · factor.
    pub fn scale(&self, x: &mut [f32], factor: f32) {
        self.each_rows(x, 1, 1, &|_, x| self.vectorize(Scale { x, factor }));
    }

    /// out\[j\] = out\[j\] + Σ over the rows of `x` of their element j, row after row.
    ///
    /// # Panics
    /// If `x` are no whole rows.
    pub fn sum_rows(&self, x: &[f32], out: &mut [f32]) {
        assert!(!out.is_empty() && x.len().is_multiple_of(out.len()), "{} elements are no rows of {}", x.len(), out.len());
        self.vectorize(SumRows { x, out });
    }
}

struct Gates<'a> {
    f: ActivationFn,
    gate: &'a [f32],
    dy: &'a mut [f32],
    up: &'a mut [f32],
}

impl Op for Gates<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let f = self.f;
        for at in (0..self.gate.len()).step_by(LANES) {
            let end = self.gate.len().min(at + LANES);
            let lanes = |from: &[f32]| super::padded(&from[at..end], 0.0);
            let (gate, dy, up) = (s.load(&lanes(self.gate)), s.load(&lanes(self.dy)), s.load(&lanes(self.up)));
            let (value, slope) = value_and_slope(s, f, gate);
            let mut out = [0.0; LANES];
            s.store(s.mul(dy, value), &mut out);
            self.up[at..end].copy_from_slice(&out[..end - at]);
            s.store(s.mul(s.mul(dy, up), slope), &mut out);
            self.dy[at..end].copy_from_slice(&out[..end - at]);
        }
    }
}

struct Slopes<'a> {
    f: ActivationFn,
    x: &'a [f32],
    dy: &'a mut [f32],
}

impl Op for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.x.len()).step_by(LANES) {
            let end = self.x.len().min(at + LANES);
            let slope = value_and_slope(s, self.f, s.load(&super::padded(&self.x[at..end], 0.0))).1;
            let mut lanes = super::padded(&self.dy[at..end], 0.0);
            s.store(s.mul(s.load(&lanes), slope), &mut lanes);
            self.dy[at..end].copy_from_slice(&lanes[..end - at]);
        }
    }
}

struct Caps<'a> {
    y: &'a [f32],
    dy: &'a mut [f32],
    inverse: f32,
}

impl Op for Caps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (one, inverse) = (s.splat(1.0), s.splat(self.inverse));
        map_two(s, self.dy, self.y, |dy, y| {
            let t = s.mul(y, inverse);
            s.mul(dy, s.sub(one, s.mul(t, t)))
        });
    }
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Op for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        map(s, self.x, 0.0, |x| s.mul(x, s.splat(self.factor)));
    }
}

struct SumRows<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Op for SumRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact(self.out.len()) {
            map_two(s, self.out, row, |sum, x| s.add(sum, x));
        }
    }
}

/// f(x) and f′(x).
#[inline(always)]
fn value_and_slope<S: Simd>(s: S, f: ActivationFn, x: S::F) -> (S::F, S::F) {
    let (zero, one, half) = (s.splat(0.0), s.splat(1.0), s.splat(0.5));
    match f {
        ActivationFn::Silu => {
            let sigma = sigmoid(s, x);
            let value = s.mul(x, sigma);
            (value, s.fma(value, s.sub(one, sigma), sigma))
        }
        ActivationFn::GeluTanh => {
            let (c, a) = (s.splat(0.797_884_6), s.splat(0.044_715));
            let square = s.mul(x, x);
            let t = tanh(s, s.mul(c, s.fma(a, s.mul(square, x), x)));
            let inner = s.mul(c, s.fma(s.mul(s.splat(3.0), a), square, one));
            let outer = s.mul(half, s.add(one, t));
            (s.mul(x, outer), s.fma(s.mul(s.mul(half, x), s.sub(one, s.mul(t, t))), inner, outer))
        }
        ActivationFn::Gelu => {
            let outer = s.fma(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half);
            let density = s.mul(s.splat(0.398_942_3), exp(s, s.mul(s.splat(-0.5), s.mul(x, x))));
            (s.mul(x, outer), s.fma(x, density, outer))
        }
        // The zero first: a NaN is the second operand's and stays.
        ActivationFn::Relu => (s.max(zero, x), s.select_less(zero, x, one, zero)),
        ActivationFn::Relu2 => {
            let positive = s.max(zero, x);
            (s.mul(positive, positive), s.add(positive, positive))
        }
    }
}
