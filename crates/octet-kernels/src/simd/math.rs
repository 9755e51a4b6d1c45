//! exp, tanh, erf and what is made of them, over lanes.

use super::Simd;

/// e^x to about one unit in the last place; 0 below −87.3, at most e^88 above; NaN where x is NaN.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2 (ln 2 in two parts, after Cody and Waite), e^r by its Taylor polynomial.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const TAYLOR: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let low = s.splat(-87.3);
    let clamped = s.max(low, s.min(s.splat(88.0), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in TAYLOR {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, r, s.splat(1.0));
    s.select_less(x, low, s.splat(0.0), s.scale2(p, n))
}

/// 2^x to about one unit in the last place for x ≤ 0; 2^−100 below −100, far from where arithmetic gets slow; NaN where x is NaN.
///
/// x = n + r with |r| ≤ 1/2, 2^r by the Taylor polynomial of e^(r ln 2).
#[inline(always)]
pub(crate) fn exp2_of_negative<S: Simd>(s: S, x: S::F) -> S::F {
    const TAYLOR: [f32; 6] = [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0];
    let clamped = s.max(s.splat(-100.0), x);
    let n = s.round(clamped);
    let r = s.sub(clamped, n);
    let mut p = s.splat(1.540_353e-4);
    for c in TAYLOR {
        p = s.fma(p, r, s.splat(c));
    }
    s.scale2(p, n)
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// tanh x; near zero the odd polynomial of Cephes' `tanhf`, which keeps the relative error small there too.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const ODD: [f32; 4] = [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];
    let square = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for c in ODD {
        p = s.fma(p, square, s.splat(c));
    }
    let near = s.fma(s.mul(p, square), x, x);
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(one, exp(s, s.add(x, x)))));
    s.select_less(square, s.splat(0.625 * 0.625), near, far)
}

/// erf x with an absolute error of a few 10⁻⁷: Abramowitz and Stegun's 7.1.26, near zero their series 7.1.5.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    const A: [f32; 4] = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    const SERIES: [f32; 5] = [1.0 / 216.0, -1.0 / 42.0, 0.1, -1.0 / 3.0, 1.0];
    let zero = s.splat(0.0);
    let abs = s.select_less(x, zero, s.sub(zero, x), x);
    let one = s.splat(1.0);
    let t = s.div(one, s.fma(abs, s.splat(0.327_591_1), one));
    let mut p = s.splat(1.061_405_4);
    for c in A {
        p = s.fma(p, t, s.splat(c));
    }
    let positive = s.sub(one, s.mul(s.mul(p, t), exp(s, s.sub(zero, s.mul(x, x)))));
    let far = s.select_less(x, zero, s.sub(zero, positive), positive);
    let square = s.mul(x, x);
    let mut p = s.splat(-1.0 / 1320.0);
    for c in SERIES {
        p = s.fma(p, square, s.splat(c));
    }
    let near = s.mul(s.mul(x, s.splat(std::f32::consts::FRAC_2_SQRT_PI)), p);
    s.select_less(abs, s.splat(0.5), near, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Isa,
        simd::{Level, Op},
    };

    struct Apply(fn(f64) -> f64, u8, f32, f32, f64);

    impl Op for Apply {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Self(exact, which, low, high, tolerance) = self;
            let steps = 160_000;
            for i in 0..steps / 16 {
                let x: [f32; 16] = std::array::from_fn(|j| low + (high - low) * (i * 16 + j) as f32 / steps as f32);
                let lanes = s.load(&x);
                let y = match which {
                    0 => exp(s, lanes),
                    1 => tanh(s, lanes),
                    2 => erf(s, lanes),
                    4 => exp2_of_negative(s, lanes),
                    _ => sigmoid(s, lanes),
                };
                let mut out = [0.0; 16];
                s.store(y, &mut out);
                for (x, y) in x.iter().zip(out) {
                    let e = exact(f64::from(*x));
                    let scale = if which == 2 { 1.0 } else { e.abs() };
                    assert!((f64::from(y) - e).abs() <= tolerance * scale, "function {which} at {x}: {y} for {e}");
                }
            }
        }
    }

    #[test]
    fn errors_stay_small() {
        let levels: Vec<Level> = Isa::available().into_iter().filter_map(Level::detect).collect();
        let erf64 = |x: f64| {
            let n = 100;
            let h = x / f64::from(n);
            let f = |t: f64| (-t * t).exp();
            let inner: f64 = (1..n).map(|i| f(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
            (f(0.0) + inner + f(x)) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
        };
        for level in levels {
            level.run(Apply(f64::exp, 0, -87.0, 88.0, 2.5e-7));
            level.run(Apply(f64::exp2, 4, -100.0, 0.0, 2.5e-7));
            level.run(Apply(f64::tanh, 1, -20.0, 20.0, 3e-7));
            level.run(Apply(|x| 1.0 / (1.0 + (-x).exp()), 3, -80.0, 80.0, 4e-7));
            level.run(Apply(erf64, 2, -4.0, 4.0, 6e-7));
        }
    }

    struct Specials;

    impl Op for Specials {
        type Output = [[f32; 16]; 3];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut x = [0.0; 16];
            x[..5].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -1000.0, 1000.0]);
            let mut out = [[0.0; 16]; 3];
            s.store(exp(s, s.load(&x)), &mut out[0]);
            s.store(tanh(s, s.load(&x)), &mut out[1]);
            s.store(exp2_of_negative(s, s.load(&x)), &mut out[2]);
            out
        }
    }

    #[test]
    fn nan_stays_and_infinities_end() {
        for level in Isa::available().into_iter().filter_map(Level::detect) {
            let [e, t, p] = level.run(Specials);
            assert!(e[0].is_nan() && t[0].is_nan() && p[0].is_nan());
            assert!(p[1] < 1e-30 && p[3] < 1e-30 && p[5] == 1.0);
            assert_eq!((e[1], e[3], e[5]), (0.0, 0.0, 1.0));
            assert!(e[2] > 1e38 && e[4] > 1e38);
            assert_eq!(t[1..5], [-1.0, 1.0, -1.0, 1.0]);
        }
    }
}
