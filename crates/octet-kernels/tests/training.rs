//! Gradients of training held to finite differences, on every instruction set of this machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_kernels::{ActivationFn, AttentionGradient, AttentionShape, Engine, Isa, Likeness, Norm, NormGradient};
use std::num::NonZeroUsize;

fn numbers(count: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn engines() -> Vec<Engine> {
    Isa::available().into_iter().map(|isa| Engine::new(isa, NonZeroUsize::new(2).unwrap()).unwrap()).collect()
}

/// Holds `gradient` to central differences of `loss` at some elements of `x`, all where there are few.
fn hold(what: &str, x: &[f32], gradient: &[f32], loss: &dyn Fn(&[f32]) -> f64) {
    const STEP: f32 = 5e-3;
    let largest = gradient.iter().fold(1e-3f32, |m, g| m.max(g.abs()));
    for at in (0..x.len()).step_by((x.len() / 40).max(1)) {
        let moved = |by: f32| {
            let mut x = x.to_vec();
            x[at] += by;
            loss(&x)
        };
        let slope = ((moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP))) as f32;
        assert!((slope - gradient[at]).abs() < 4e-3 * largest.max(0.5), "{what}, element {at}: {} for {slope}", gradient[at]);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn norms() {
    for engine in engines() {
        for (width, centred) in [(8, false), (24, false), (40, true), (16, true), (11, true)] {
            let rows = 5;
            let (x, dy, weight, bias) = (numbers(rows * width, 1), numbers(rows * width, 2), numbers(width, 3), numbers(width, 4));
            let norm = |weight| Norm { weight, bias: centred.then_some(&bias[..]), eps: 1e-3, centred };
            let run = |x: &[f32], weight: &[f32]| {
                let mut out = vec![0.0; x.len()];
                if centred {
                    engine.layer_norm(x, weight, Some(&bias), 1e-3, &mut out);
                } else {
                    engine.rms_norm(x, weight, 1e-3, &mut out);
                }
                dot(&out, &dy)
            };
            let (mut dx, mut dw, mut db) = (vec![1.0; x.len()], vec![2.0; width], vec![3.0; width]);
            let to = NormGradient { x: &mut dx, accumulate: true, weight: Some(&mut dw), bias: Some(&mut db) };
            engine.norm_gradient(&x, norm(&weight), &dy, to);
            dx.iter_mut().for_each(|v| *v -= 1.0);
            dw.iter_mut().for_each(|v| *v -= 2.0);
            let what = format!("{} norm of {width}, centred {centred}", engine.isa());
            hold(&what, &x, &dx, &|x| run(x, &weight));
            hold(&what, &weight, &dw, &|weight| run(&x, weight));
            for (at, db) in db.iter().enumerate() {
                let sum: f32 = dy.iter().skip(at).step_by(width).sum();
                assert!((db - 3.0 - sum).abs() < 1e-5, "{what}");
            }
        }
    }
}

#[test]
fn activations_gates_and_caps() {
    use ActivationFn::{Gelu, GeluTanh, Relu, Relu2, Silu};
    for engine in engines() {
        let count = 37;
        let (mut x, up, dy) = (numbers(count, 1), numbers(count, 2), numbers(count, 3));
        x.iter_mut().for_each(|v| *v = *v * 3.0 + 0.02 * v.signum());
        for f in [Silu, GeluTanh, Gelu, Relu, Relu2] {
            let what = format!("{} {f:?}", engine.isa());
            let gated = |gate: &[f32], up: &[f32]| {
                let mut out = gate.to_vec();
                engine.gate(f, &mut out, up);
                dot(&out, &dy)
            };
            let (mut dgate, mut dup) = (dy.clone(), up.clone());
            engine.gate_gradient(f, &x, &mut dgate, &mut dup);
            hold(&what, &x, &dgate, &|x| gated(x, &up));
            hold(&what, &up, &dup, &|up| gated(&x, up));
            let mut dx = dy.clone();
            engine.activation_gradient(f, &x, &mut dx);
            hold(&what, &x, &dx, &|x| {
                let mut out = x.to_vec();
                engine.activate(f, &mut out);
                dot(&out, &dy)
            });
        }
        let capped = |x: &[f32]| {
            let mut out = x.to_vec();
            engine.soft_cap(&mut out, 2.0);
            out
        };
        let mut dx = dy.clone();
        engine.soft_cap_gradient(&capped(&x), 2.0, &mut dx);
        hold("soft cap", &x, &dx, &|x| dot(&capped(x), &dy));
    }
}

#[test]
fn attention_of_every_shape() {
    let lengths = [70, 9, 1];
    let tokens: usize = lengths.iter().sum();
    for engine in engines() {
        for (heads, kv_heads, head_dim, window, soft_cap) in
            [(2, 1, 8, None, None), (4, 2, 16, Some(5), None), (3, 3, 12, None, Some(1.5)), (2, 1, 20, Some(66), Some(2.0))]
        {
            let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.4, window, soft_cap };
            let (q, k, v) =
                (numbers(tokens * heads * head_dim, 1), numbers(tokens * kv_heads * head_dim, 2), numbers(tokens * kv_heads * head_dim, 3));
            let dout = numbers(q.len(), 4);
            let run = |q: &[f32], k: &[f32], v: &[f32]| {
                let mut out = vec![0.0; q.len()];
                engine.attend_whole(shape, &lengths, [q, k, v], &mut out);
                dot(&out, &dout)
            };
            let (mut dq, mut dk, mut dv) = (vec![9.0; q.len()], vec![9.0; k.len()], vec![9.0; v.len()]);
            let to = AttentionGradient { q: &mut dq, k: &mut dk, v: &mut dv };
            engine.attend_gradient(shape, &lengths, [&q, &k, &v], &dout, to);
            let what = format!("{} {shape:?}", engine.isa());
            hold(&what, &q, &dq, &|q| run(q, &k, &v));
            hold(&what, &k, &dk, &|k| run(&q, k, &v));
            hold(&what, &v, &dv, &|v| run(&q, &k, v));
        }
    }
}

#[test]
fn divergence_and_entropy() {
    for engine in engines() {
        for width in [16, 37] {
            let rows = 3;
            let (mut logits, other) = (numbers(rows * width, 1), numbers(rows * width, 2));
            logits.iter_mut().for_each(|v| *v = *v * 4.0 - 50.0);
            let tokens = [0, 5, width as u32 - 1];
            for likeness in [Likeness::Logits(&other), Likeness::Tokens(&tokens)] {
                let run = |logits: &[f32]| {
                    let (mut logits, mut losses) = (logits.to_vec(), vec![0.0; rows]);
                    engine.likeness_gradient(&mut logits, likeness, 0.5, &mut losses);
                    (logits, losses)
                };
                let sum = |logits: &[f32]| 0.5 * run(logits).1.iter().map(|&l| f64::from(l)).sum::<f64>();
                hold(&format!("{} {width}", engine.isa()), &logits, &run(&logits).0, &sum);
                assert!(run(&logits).1.iter().all(|&loss| loss > 0.0));
            }
            let mut losses = vec![1.0; rows];
            let mut same = other.clone();
            engine.likeness_gradient(&mut same, Likeness::Logits(&other), 1.0, &mut losses);
            assert!(losses.iter().chain(&same).all(|v| v.abs() < 1e-6), "{losses:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.4, window: None, soft_cap: None };
    let lengths = [90, 33, 7];
    let count: usize = lengths.iter().sum::<usize>() * 32;
    let (q, k, v, dout) = (numbers(2 * count, 1), numbers(count, 2), numbers(count, 3), numbers(2 * count, 4));
    let run = |threads| {
        let engine = Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let to = AttentionGradient { q: &mut dq, k: &mut dk, v: &mut dv };
        engine.attend_gradient(shape, &lengths, [&q, &k, &v], &dout, to);
        let (mut dx, mut dw) = (vec![0.0; q.len()], vec![0.0; 8]);
        let norm = Norm { weight: &k[..8], bias: None, eps: 1e-5, centred: false };
        let to = NormGradient { x: &mut dx, accumulate: false, weight: Some(&mut dw), bias: None };
        engine.norm_gradient(&q, norm, &dout, to);
        [dq, dk, dv, dx, dw]
    };
    let expected = run(1);
    assert!((2..5).all(|threads| run(threads) == expected));
}
