//! Norms, rotations and element-wise operations on every instruction set against naive f64.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{ActivationFn, Isa};

fn close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let expected: Vec<(f64, f64)> = expected.iter().map(|&v| (v, v.abs().max(0.05))).collect();
    assert_close(found, &expected, tolerance, what);
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn norms() {
    let mut numbers = Numbers(1);
    for (rows, width) in [(0, 5), (1, 1), (3, 7), (2, 16), (5, 100), (40, 1024)] {
        let x = numbers.normals(rows * width);
        let (weight, bias) = (numbers.normals(width), numbers.normals(width));
        let (w, b, x64) = (wide(&weight), wide(&bias), wide(&x));
        let mut rms = Vec::new();
        let mut layer = Vec::new();
        for x in x64.chunks_exact(width) {
            let n = width as f64;
            let (mean, squares) = (x.iter().sum::<f64>() / n, x.iter().map(|v| v * v).sum::<f64>() / n);
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            rms.extend(x.iter().zip(&w).map(|(v, w)| v / (squares + 1e-5).sqrt() * w));
            layer.extend(x.iter().zip(&w).zip(&b).map(|((v, w), b)| (v - mean) / (variance + 1e-5).sqrt() * w + b));
        }
        for engine in engines() {
            let mut out = vec![f32::NAN; x.len()];
            engine.rms_norm(&x, &weight, 1e-5, &mut out);
            close(&out, &rms, 2e-5, &format!("rms {rows}x{width} {}", engine.isa()));
            engine.layer_norm(&x, &weight, Some(&bias), 1e-5, &mut out);
            close(&out, &layer, 4e-5, &format!("layer {rows}x{width} {}", engine.isa()));
            let without: Vec<f64> = layer.iter().enumerate().map(|(i, v)| v - b[i % width]).collect();
            engine.layer_norm(&x, &weight, None, 1e-5, &mut out);
            close(&out, &without, 4e-5, "no bias");
        }
    }
}

#[test]
fn a_norm_of_nan_is_nan_in_its_row_only() {
    for engine in engines() {
        let mut x = vec![1.0; 60];
        x[25] = f32::NAN;
        let mut out = vec![0.0; 60];
        engine.rms_norm(&x, &[1.0; 20], 1e-6, &mut out);
        assert!(out[20..40].iter().all(|v| v.is_nan()) && out[..20].iter().chain(&out[40..]).all(|v| v.is_finite()));
    }
}

#[test]
fn rotations() {
    let mut numbers = Numbers(2);
    for (tokens, heads, dim, rot) in [(1, 1, 2, 2), (3, 2, 8, 8), (4, 3, 20, 12), (2, 2, 128, 128), (5, 1, 64, 0), (200, 4, 64, 64)] {
        let x = numbers.normals(tokens * heads * dim);
        let angles = numbers.normals(tokens * rot / 2);
        let mut table = Vec::new();
        for token in 0..tokens {
            let angles = &angles[token * rot / 2..(token + 1) * rot / 2];
            table.extend(angles.iter().map(|a| a.cos()));
            table.extend(angles.iter().map(|a| a.sin()));
        }
        let mut expected = wide(&x);
        for (i, head) in expected.chunks_exact_mut(dim).enumerate() {
            let token = i / heads;
            for j in 0..rot / 2 {
                let (cos, sin) = (f64::from(table[token * rot + j]), f64::from(table[token * rot + rot / 2 + j]));
                let (a, b) = (head[j], head[j + rot / 2]);
                (head[j], head[j + rot / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        for engine in engines() {
            let mut out = x.clone();
            engine.rope(&mut out, heads, dim, &table);
            close(&out, &expected, 1e-5, &format!("rope {tokens} {heads} {dim} {rot} {}", engine.isa()));
        }
    }
}

/// erf by Simpson's rule.
fn erf(x: f64) -> f64 {
    let n = 2000;
    let h = x / f64::from(n);
    let f = |i: i32| (-(f64::from(i) * h).powi(2)).exp();
    let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (f(0) + inner + f(n)) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

fn exact(f: ActivationFn, x: f64) -> f64 {
    match f {
        ActivationFn::Silu => x / (1.0 + (-x).exp()),
        ActivationFn::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        ActivationFn::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        ActivationFn::Relu => x.max(0.0),
        ActivationFn::Relu2 => x.max(0.0).powi(2),
    }
}

const ALL: [ActivationFn; 5] = [ActivationFn::Silu, ActivationFn::GeluTanh, ActivationFn::Gelu, ActivationFn::Relu, ActivationFn::Relu2];

#[test]
fn activations_and_gates() {
    let mut numbers = Numbers(3);
    for n in [0, 1, 16, 33, 5000] {
        let x: Vec<f32> = numbers.normals(n).iter().map(|v| v * 3.0).collect();
        let up = numbers.normals(n);
        for engine in engines() {
            for f in ALL {
                let expected: Vec<f64> = x.iter().map(|&v| exact(f, f64::from(v))).collect();
                let mut out = x.clone();
                engine.activate(f, &mut out);
                close(&out, &expected, 2e-5, &format!("{f:?} {}", engine.isa()));
                let gated: Vec<f64> = expected.iter().zip(&up).map(|(v, &u)| v * f64::from(u)).collect();
                let mut out = x.clone();
                engine.gate(f, &mut out, &up);
                close(&out, &gated, 1e-4, &format!("gate {f:?} {}", engine.isa()));
            }
        }
    }
}

#[test]
fn ends_of_the_range_and_nan() {
    for engine in engines() {
        for f in ALL {
            let mut x = [f32::NAN, -200.0, 200.0, -0.0, f32::MAX.sqrt() / 2.0];
            engine.activate(f, &mut x);
            assert!(x[0].is_nan(), "{f:?} {}", engine.isa());
            assert!(x[1].abs() < 1e-30 && x[3] == 0.0, "{f:?} {x:?}");
            assert!(x[2] == if f == ActivationFn::Relu2 { 40_000.0 } else { 200.0 }, "{f:?} {x:?}");
            assert!(x[4] > 1e18, "{f:?} {x:?}");
        }
        let mut x = [f32::NAN, 1e30, -1e30, f32::INFINITY, 0.25];
        engine.soft_cap(&mut x, 30.0);
        assert!(x[0].is_nan() && x[1] == 30.0 && x[2] == -30.0 && x[3] == 30.0);
        assert!((f64::from(x[4]) - 30.0 * (0.25f64 / 30.0).tanh()).abs() < 1e-7);
    }
}

#[test]
fn sums() {
    let mut numbers = Numbers(4);
    for n in [0, 5, 16, 100_003] {
        let (a, b) = (numbers.normals(n), numbers.normals(n));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        for engine in engines() {
            let mut out = a.clone();
            engine.add(&mut out, &b);
            assert_eq!(out, expected);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut numbers = Numbers(5);
    let x = numbers.normals(300 * 333);
    for isa in Isa::available() {
        let results = [1, 2, 8].map(|threads| {
            let engine = engine(isa, threads);
            let mut out = vec![0.0; x.len()];
            engine.rms_norm(&x, &x[..333], 1e-6, &mut out);
            engine.activate(ActivationFn::GeluTanh, &mut out);
            engine.soft_cap(&mut out, 2.0);
            out
        });
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}

#[test]
fn logits_are_summed_up() {
    let mut numbers = Numbers(9);
    for count in [1, 2, 15, 16, 17, 511, 512, 513, 4096, 50_001] {
        let mut logits: Vec<f32> = numbers.normals(count).iter().map(|v| 4.0 * v).collect();
        if count > 2 {
            // Two equal largest ones, one that weighs nothing, and one that is impossible.
            (logits[1], logits[count - 1]) = (30.0, 30.0);
            logits[count / 2] = -90.0;
        }
        if count > 100 {
            logits[7] = f32::NEG_INFINITY;
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits.iter().map(|&v| (f64::from(v) - f64::from(largest)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let entropy: f64 = weights.iter().map(|w| w / total).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        for engine in engines() {
            let sums = engine.logit_sums(&logits);
            assert_eq!(sums.top, logits.iter().position(|&v| v == largest).unwrap(), "{count} {}", engine.isa());
            assert!((sums.log_sum - f64::from(largest) - total.ln()).abs() < 1e-6, "{count} {}: {sums:?}", engine.isa());
            assert!((sums.entropy - entropy).abs() < 2e-6 * (1.0 + entropy), "{count} {}: {sums:?} {entropy}", engine.isa());
        }
    }
    for engine in engines() {
        for broken in [f32::NAN, f32::INFINITY] {
            for at in [0, 5, 16, 20] {
                let mut logits = numbers.normals(21);
                logits[at] = broken;
                assert!(!engine.logit_sums(&logits).log_sum.is_finite(), "{broken} at {at} {}", engine.isa());
            }
        }
        assert!(!engine.logit_sums(&[]).log_sum.is_finite());
    }
}
