//! Every instruction set computes what plain Rust does, to the bit: floats too, since all of them multiply and add in one
//! order and round alike. What a model says so does not depend on the machine it runs on.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{ActivationFn, AppendJob, AttentionJob, Engine, Gated, Heads, Isa, KvCache, KvDtype, MatmulJob, Norm, Source};
use octet_tensor::Dtype;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What `f` gives on plain Rust is what it gives everywhere, with any number of threads.
fn same(what: &str, f: impl Fn(&Engine) -> Vec<f32>) {
    let expected = f(&engine(Isa::Scalar, 1));
    assert!(expected.iter().all(|v| v.is_finite()) && expected.iter().any(|v| *v != 0.0), "{what}: nothing to compare");
    for isa in Isa::available() {
        for threads in [1, 3] {
            let found = f(&engine(isa, threads));
            let differ = bits(&found).iter().zip(bits(&expected)).filter(|(a, b)| **a != *b).count();
            assert_eq!(differ, 0, "{what}: {differ} of {} values differ on {isa}, {threads} threads", found.len());
        }
    }
}

#[test]
fn products() {
    let (rows, cols) = (53, 300);
    for text in ["f32", "bf16", "f16", "w8a8", "w8a8-g64", "w4a8-g32", "w4a8-g128-asym", "w5a8-g64", "w8a16", "w4a16-g32"] {
        for tokens in [1, 3, 31] {
            same(&format!("{text}, {tokens} tokens"), |engine| {
                let mut numbers = Numbers(5);
                let values = numbers.normals(rows * cols);
                let dtype = match text {
                    "f32" => Some(Dtype::F32),
                    "bf16" => Some(Dtype::Bf16),
                    "f16" => Some(Dtype::F16),
                    _ => None,
                };
                let weights = match dtype {
                    Some(dtype) => octet_kernels::PackedLinear::pack(engine, &float(rows, cols, dtype, &values, 8), None).unwrap(),
                    None => pack(engine, &quantized(rows, cols, scheme(text), Dtype::F16, &mut numbers), scheme(text)),
                };
                let (x, bias, mut out) = (numbers.normals(tokens * cols), numbers.normals(rows), numbers.normals(tokens * rows));
                let norm_weight = numbers.normals(cols);
                let norm = Norm { weight: &norm_weight, bias: None, eps: 1e-6, centred: false };
                let job = MatmulJob { weights: &weights, bias: Some(&bias), out: &mut out, accumulate: true };
                engine.products(Source::normed(&x, norm), tokens, &mut [job]);
                let mut gated = vec![0.0; tokens * rows];
                let side = (&weights, Some(&bias[..]));
                engine.gated(Source::rows(&x), tokens, Gated { function: ActivationFn::Silu, gate: side, up: side, out: &mut gated });
                out.extend(gated);
                out
            });
        }
    }
}

#[test]
fn norms_turns_and_gates() {
    let (tokens, heads, dim) = (9, 3, 44);
    let width = heads * dim;
    same("norms, turns and gates", |engine| {
        let mut numbers = Numbers(6);
        let (mut x, weight, bias) = (numbers.normals(tokens * width), numbers.normals(width), numbers.normals(width));
        let mut out = vec![0.0; x.len()];
        let mut all = Vec::new();
        engine.rms_norm(&x, &weight, 1e-6, &mut out);
        all.extend_from_slice(&out);
        engine.layer_norm(&x, &weight, Some(&bias), 1e-5, &mut out);
        all.extend_from_slice(&out);
        let norm = Norm { weight: &weight[..dim], bias: None, eps: 1e-6, centred: false };
        let table = numbers.normals(tokens * dim);
        engine.turn([Some(Heads { x: &mut x, heads, norm: Some(norm) }), None], dim, Some(&table));
        all.extend_from_slice(&x);
        for function in [ActivationFn::Silu, ActivationFn::GeluTanh, ActivationFn::Gelu] {
            let mut gate: Vec<f32> = x.iter().map(|v| 4.0 * v).collect();
            engine.gate(function, &mut gate, &out);
            all.extend_from_slice(&gate);
        }
        all
    });
}

#[test]
fn attention() {
    let (heads, kv_heads, dim) = (6, 2, 36);
    for dtype in KvDtype::ALL {
        for (before, tokens, soft_cap) in [(0, 40, None), (700, 1, None), (130, 5, Some(30.0))] {
            same(&format!("{dtype}, {tokens} tokens after {before}"), |engine| {
                let mut numbers = Numbers(7);
                let width = kv_heads * dim;
                let (k, v) = (numbers.normals((before + tokens) * width), numbers.normals((before + tokens) * width));
                let q = numbers.normals(tokens * heads * dim);
                let mut cache = KvCache::new(kv_heads, dim, dtype, before + tokens);
                engine.append([AppendJob { cache: &mut cache, k: &k, v: &v }]);
                let mut out = vec![0.0; q.len()];
                engine.attention([AttentionJob { q: &q, cache: &cache, heads, scale: 0.2, window: None, soft_cap, out: &mut out }]);
                out
            });
        }
    }
}
