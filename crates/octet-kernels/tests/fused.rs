//! What is computed in one pass equals, bit for bit, what the single operations give one after the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Numbers, engine, float, pack, quantized, scheme};
use octet_kernels::{ActivationFn, Engine, Gated, Heads, Isa, MatmulJob, Norm, PackedLinear, Source};
use octet_tensor::Dtype;

const COLS: usize = 200;

fn engines() -> Vec<Engine> {
    Isa::available().into_iter().flat_map(|isa| [1, 3].map(|threads| engine(isa, threads))).collect()
}

/// Matrices of `rows` rows that read their inputs in every way there is.
fn matrices(engine: &Engine, rows: usize, numbers: &mut Numbers) -> Vec<PackedLinear> {
    let schemes = ["w8a8", "w4a8-g32", "w4a16-g64", "w8a16"].map(scheme);
    let mut all: Vec<_> = schemes.iter().map(|&s| pack(engine, &quantized(rows, COLS, s, Dtype::F16, numbers), s)).collect();
    let values = numbers.normals(rows * COLS);
    all.push(PackedLinear::pack(engine, &float(rows, COLS, Dtype::Bf16, &values, 8), None).unwrap());
    all
}

fn product(engine: &Engine, x: &[f32], tokens: usize, weights: &PackedLinear, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; tokens * weights.rows()];
    engine.matmul(x, tokens, &mut [MatmulJob { weights, bias, out: &mut out, accumulate: false }]);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn products_of_normed_rows() {
    for engine in engines() {
        let mut numbers = Numbers(1);
        let (weight, bias) = (numbers.normals(COLS), numbers.normals(COLS));
        let all = matrices(&engine, 37, &mut numbers);
        for tokens in [1, 5, 29] {
            let x = numbers.normals(tokens * COLS);
            for norm in [
                Norm { weight: &weight, bias: None, eps: 1e-6, centred: false },
                Norm { weight: &weight, bias: Some(&bias), eps: 1e-5, centred: true },
            ] {
                let mut normed = vec![0.0; x.len()];
                match norm.bias {
                    None => engine.rms_norm(&x, norm.weight, norm.eps, &mut normed),
                    bias => engine.layer_norm(&x, norm.weight, bias, norm.eps, &mut normed),
                }
                // Together, so that some read codes and some floats of the same rows.
                let mut outs = vec![vec![1.0; tokens * 37]; all.len()];
                let mut jobs: Vec<_> =
                    all.iter().zip(&mut outs).map(|(weights, out)| MatmulJob { weights, bias: None, out, accumulate: false }).collect();
                engine.products(Source::normed(&x, norm), tokens, &mut jobs);
                for (weights, out) in all.iter().zip(&outs) {
                    let expected = product(&engine, &normed, tokens, weights, None);
                    assert_eq!(bits(out), bits(&expected), "{} of {tokens} tokens", weights.kernel_name());
                }
                let (mut both, mut only) = (normed, x.clone());
                engine.turn_eights(&mut both);
                engine.turn_eights(&mut only);
                for (source, turned) in [(Source::normed(&x, norm).turned(), both), (Source::rows(&x).turned(), only)] {
                    for weights in &all {
                        let mut out = vec![1.0; tokens * 37];
                        let job = MatmulJob { weights, bias: None, out: &mut out, accumulate: false };
                        engine.products(source, tokens, &mut [job]);
                        let expected = product(&engine, &turned, tokens, weights, None);
                        assert_eq!(bits(&out), bits(&expected), "{} of {tokens} turned tokens", weights.kernel_name());
                    }
                }
            }
        }
    }
}

#[test]
fn gated_products() {
    for engine in engines() {
        let mut numbers = Numbers(2);
        for rows in [37, 300] {
            let (gates, ups) = (matrices(&engine, rows, &mut numbers), matrices(&engine, rows, &mut numbers));
            let bias = numbers.normals(rows);
            for tokens in [1, 6, 50] {
                let x = numbers.normals(tokens * COLS);
                // Each with its own kind, and one pair of two kinds.
                let pairs = gates.iter().zip(&ups).chain([(&gates[0], &ups[4]), (&gates[3], &ups[1])]);
                for (i, (gate, up)) in pairs.enumerate() {
                    let biases = [(i % 2 == 0).then_some(&bias[..]), (i % 3 == 0).then_some(&bias[..])];
                    let function = [ActivationFn::Silu, ActivationFn::GeluTanh][i % 2];
                    let mut expected = product(&engine, &x, tokens, gate, biases[0]);
                    engine.gate(function, &mut expected, &product(&engine, &x, tokens, up, biases[1]));
                    let mut out = vec![1.0; tokens * rows];
                    let job = Gated { function, gate: (gate, biases[0]), up: (up, biases[1]), out: &mut out };
                    engine.gated(Source::rows(&x), tokens, job);
                    assert_eq!(bits(&out), bits(&expected), "{} and {}, {tokens} tokens", gate.kernel_name(), up.kernel_name());
                    let mut turned = x.clone();
                    engine.turn_eights(&mut turned);
                    let [mut found, mut expected] = [const { Vec::new() }; 2];
                    for (source, out) in [(Source::rows(&x).turned(), &mut found), (Source::rows(&turned), &mut expected)] {
                        out.resize(tokens * rows, 1.0);
                        engine.gated(source, tokens, Gated { function, gate: (gate, biases[0]), up: (up, biases[1]), out });
                    }
                    assert_eq!(bits(&found), bits(&expected), "{} of {tokens} turned tokens", gate.kernel_name());
                }
            }
        }
    }
}

#[test]
fn heads_normed_and_turned() {
    for engine in engines() {
        let mut numbers = Numbers(3);
        for (dim, rot) in [(20, 12), (64, 64), (32, 0)] {
            let (tokens, heads, kv_heads) = (300, 3, 1);
            let weight = numbers.normals(dim);
            let (q, k) = (numbers.normals(tokens * heads * dim), numbers.normals(tokens * kv_heads * dim));
            let table = numbers.normals(tokens * rot);
            let norm = Norm { weight: &weight, bias: None, eps: 1e-6, centred: false };
            for norm in [None, Some(norm)] {
                let expected = |x: &[f32], heads| {
                    let mut out = x.to_vec();
                    if let Some(norm) = norm {
                        engine.rms_norm(x, norm.weight, norm.eps, &mut out);
                    }
                    engine.rope(&mut out, heads, dim, &table);
                    out
                };
                let (mut turned_q, mut turned_k) = (q.clone(), k.clone());
                let parts = [Some(Heads { x: &mut turned_q, heads, norm }), Some(Heads { x: &mut turned_k, heads: kv_heads, norm: None })];
                engine.turn(parts, dim, Some(&table));
                assert_eq!(bits(&turned_q), bits(&expected(&q, heads)), "{dim} {rot}");
                let mut plain_k = k.clone();
                engine.rope(&mut plain_k, kv_heads, dim, &table);
                assert_eq!(bits(&turned_k), bits(&plain_k), "{dim} {rot}");
            }
        }
    }
}

#[test]
fn a_norm_that_is_added() {
    for engine in engines() {
        let mut numbers = Numbers(4);
        let (x, start, weight) = (numbers.normals(40 * 70), numbers.normals(40 * 70), numbers.normals(70));
        let (mut normed, mut expected, mut found) = (vec![0.0; x.len()], start.clone(), start.clone());
        engine.rms_norm(&x, &weight, 1e-6, &mut normed);
        engine.add(&mut expected, &normed);
        engine.add_norm(&x, Norm { weight: &weight, bias: None, eps: 1e-6, centred: false }, &mut found);
        assert_eq!(bits(&found), bits(&expected));
    }
}
