//! Attention on every instruction set against a naive softmax in f64.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{AppendJob, AttentionJob, Engine, Isa, KvCache, KvDtype};

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    before: usize,
    tokens: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

const PLAIN: Case = Case { heads: 2, kv_heads: 2, dim: 16, before: 0, tokens: 1, window: None, soft_cap: None };

fn cases() -> Vec<Case> {
    vec![
        PLAIN,
        Case { tokens: 5, before: 3, ..PLAIN },
        Case { heads: 8, kv_heads: 1, dim: 64, before: 300, tokens: 1, ..PLAIN },
        Case { heads: 14, kv_heads: 2, dim: 64, before: 37, tokens: 20, ..PLAIN },
        Case { heads: 6, kv_heads: 2, dim: 20, before: 127, tokens: 3, ..PLAIN },
        Case { heads: 4, kv_heads: 2, dim: 8, before: 0, tokens: 300, ..PLAIN },
        Case { heads: 4, kv_heads: 4, dim: 80, before: 140, tokens: 7, window: Some(33), ..PLAIN },
        Case { heads: 4, kv_heads: 1, dim: 128, before: 0, tokens: 150, window: Some(1), ..PLAIN },
        Case { heads: 2, kv_heads: 1, dim: 33, before: 10, tokens: 40, window: Some(16), soft_cap: Some(5.0) },
        Case { heads: 4, kv_heads: 2, dim: 32, before: 1300, tokens: 3, ..PLAIN },
        Case { heads: 8, kv_heads: 2, dim: 72, before: 1500, tokens: 1, window: Some(900), soft_cap: Some(20.0) },
        Case { heads: 48, kv_heads: 1, dim: 16, before: 2, tokens: 2, soft_cap: Some(50.0), ..PLAIN },
    ]
}

struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn data(case: Case, seed: u64) -> Data {
    let mut numbers = Numbers(seed);
    let width = case.kv_heads * case.dim;
    let all = case.before + case.tokens;
    // What every type of cache holds exactly or nearly so: codes of 8 bits, the largest among each 64 dimensions.
    let mut coded = |n: usize| -> Vec<f32> {
        let codes = (0..n).map(|i| if (i % case.dim).is_multiple_of(64) { 127 } else { numbers.below(255) as i32 - 127 });
        codes.map(|code| code as f32 / 64.0).collect()
    };
    let (k, v) = (coded(all * width), coded(all * width));
    Data { q: numbers.normals(case.tokens * case.heads * case.dim), k, v }
}

/// How near results must be: integers round queries and weights, 16-bit ones what is cached too.
fn tolerance(dtype: KvDtype) -> f64 {
    match dtype {
        KvDtype::F32 | KvDtype::F16 => 5e-6,
        KvDtype::Int16 | KvDtype::Int8 => 2e-3,
    }
}

fn append(engine: &Engine, cache: &mut KvCache, k: &[f32], v: &[f32]) {
    engine.append([AppendJob { cache, k, v }]);
}

fn cache(engine: &Engine, case: Case, data: &Data, dtype: KvDtype) -> KvCache {
    let width = case.kv_heads * case.dim;
    let mut cache = KvCache::new(case.kv_heads, case.dim, dtype, case.before + case.tokens + 5);
    // Token by token, then the rest; and what was there before a truncation must not matter.
    let split = case.before.min(3) * width;
    append(engine, &mut cache, &data.k[..split], &data.v[..split]);
    append(engine, &mut cache, &vec![f32::NAN; 2 * width], &vec![f32::NAN; 2 * width]);
    cache.truncate(split / width);
    append(engine, &mut cache, &data.k[split..], &data.v[split..]);
    append(engine, &mut cache, &vec![f32::NAN; 4 * width], &vec![f32::NAN; 4 * width]);
    cache.truncate(case.before + case.tokens);
    cache
}

fn attend(engine: &Engine, case: Case, data: &Data, cache: &KvCache) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.q.len()];
    engine.attention([job(case, data, cache, &mut out)]);
    out
}

fn job<'a>(case: Case, data: &'a Data, cache: &'a KvCache, out: &'a mut [f32]) -> AttentionJob<'a> {
    AttentionJob { q: &data.q, cache, heads: case.heads, scale: 0.3, window: case.window, soft_cap: case.soft_cap, out }
}

fn oracle(case: Case, data: &Data) -> Vec<(f64, f64)> {
    let Case { heads, kv_heads, dim, before, tokens, window, soft_cap } = case;
    let mut out = Vec::new();
    for token in 0..tokens {
        let end = before + token + 1;
        let start = end.saturating_sub(window.unwrap_or(end));
        for head in 0..heads {
            let q = &data.q[(token * heads + head) * dim..][..dim];
            let row = |of: &[f32], key: usize| -> Vec<f64> {
                of[(key * kv_heads + head / (heads / kv_heads)) * dim..][..dim].iter().map(|&v| f64::from(v)).collect()
            };
            let scores: Vec<f64> = (start..end)
                .map(|key| {
                    let score = row(&data.k, key).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum::<f64>() * f64::from(0.3f32);
                    soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut acc = vec![(0.0, 0.0); dim];
            for (key, score) in (start..end).zip(&scores) {
                let weight = (score - max).exp() / sum;
                for (acc, v) in acc.iter_mut().zip(row(&data.v, key)) {
                    *acc = (acc.0 + weight * v, acc.1 + (weight * v).abs());
                }
            }
            out.extend(acc);
        }
    }
    out
}

#[test]
fn equals_a_naive_softmax() {
    for (i, case) in cases().into_iter().enumerate() {
        let data = data(case, i as u64);
        let expected = oracle(case, &data);
        for engine in engines() {
            for dtype in KvDtype::ALL {
                let found = attend(&engine, case, &data, &cache(&engine, case, &data, dtype));
                // A dimension of small values is coded by the scale of its whole vector.
                let least = if matches!(dtype, KvDtype::Int16 | KvDtype::Int8) { 0.05 } else { 0.0 };
                let expected: Vec<(f64, f64)> = expected.iter().map(|&(value, magnitude)| (value, f64::max(magnitude, least))).collect();
                assert_close(&found, &expected, tolerance(dtype), &format!("{case:?} {dtype:?} {}", engine.isa()));
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    // Only exponentials differ between them, and where those move a weight's rounding, its code by one.
    for (i, case) in cases().into_iter().enumerate() {
        let data = data(case, i as u64);
        for dtype in [KvDtype::Int16, KvDtype::Int8] {
            let scalar = attend(&engine(Isa::Scalar, 1), case, &data, &cache(&engine(Isa::Scalar, 1), case, &data, dtype));
            let expected: Vec<(f64, f64)> = scalar.iter().map(|&v| (f64::from(v), 1.0)).collect();
            for engine in engines() {
                let found = attend(&engine, case, &data, &cache(&engine, case, &data, dtype));
                assert_close(&found, &expected, 5e-4, &format!("{case:?} {dtype:?} {}", engine.isa()));
            }
        }
    }
}

#[test]
fn one_token_at_a_time_equals_all_at_once() {
    let case = Case { heads: 4, kv_heads: 2, dim: 24, before: 0, tokens: 40, window: Some(19), ..PLAIN };
    let all = data(case, 7);
    for (engine, dtype) in engines().into_iter().flat_map(|engine| KvDtype::ALL.map(|dtype| (engine.clone(), dtype))) {
        let together = attend(&engine, case, &all, &cache(&engine, case, &all, dtype));
        let (q, kv) = (4 * 24, 2 * 24);
        let mut cache = KvCache::new(2, 24, dtype, 40);
        for token in 0..40 {
            append(&engine, &mut cache, &all.k[token * kv..(token + 1) * kv], &all.v[token * kv..(token + 1) * kv]);
            let one = Data { q: all.q[token * q..(token + 1) * q].to_vec(), k: vec![], v: vec![] };
            let found = attend(&engine, case, &one, &cache);
            let expected: Vec<(f64, f64)> = together[token * q..(token + 1) * q].iter().map(|&v| (f64::from(v), 1.0)).collect();
            assert_close(&found, &expected, 2.0 * tolerance(dtype), "token by token");
        }
    }
}

#[test]
fn several_sequences_and_any_number_of_threads() {
    let all: Vec<(Case, Data)> = cases().into_iter().enumerate().map(|(i, c)| (c, data(c, i as u64))).collect();
    for isa in Isa::available() {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 2, 8] {
            let engine = engine(isa, threads);
            let twice: Vec<&(Case, Data)> = all.iter().chain(&all).collect();
            let dtypes = KvDtype::ALL.into_iter().cycle();
            let caches: Vec<KvCache> = twice.iter().zip(dtypes).map(|((case, data), dtype)| cache(&engine, *case, data, dtype)).collect();
            let mut outs: Vec<Vec<f32>> = twice.iter().map(|(_, data)| vec![0.0; data.q.len()]).collect();
            engine.attention(twice.iter().zip(&caches).zip(&mut outs).map(|(((c, d), cache), out)| job(*c, d, cache, out)));
            // As many cases as make the types come round to the same ones.
            assert_eq!((all.len() % 4, &outs[..all.len()]), (0, &outs[all.len()..]));
            assert_eq!(first.get_or_insert(outs.clone()), &outs, "{isa} {threads} threads");
        }
    }
}

#[test]
fn what_is_not_finite_is_never_silent() {
    let case = Case { heads: 4, kv_heads: 2, dim: 16, before: 20, tokens: 3, ..PLAIN };
    for (engine, dtype) in engines().into_iter().flat_map(|engine| KvDtype::ALL.map(|dtype| (engine.clone(), dtype))) {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut in_query = data(case, 1);
            in_query.q[16] = bad;
            let out = attend(&engine, case, &in_query, &cache(&engine, case, &in_query, dtype));
            assert!(out[16..32].iter().all(|v| v.is_nan()) && out[..16].iter().chain(&out[32..]).all(|v| v.is_finite()));
            // Every query of the head sees them; the other head's outputs stay finite.
            let heads = |out: &[f32], first: usize| -> Vec<f32> { (0..3).flat_map(|t| out[t * 64 + first..][..32].to_vec()).collect() };
            let mut in_key = data(case, 1);
            in_key.k[5 * 32] = bad;
            let out = attend(&engine, case, &in_key, &cache(&engine, case, &in_key, dtype));
            // An infinite key whose score is −∞ is rightly never looked at in floating point; a NaN concerns every query.
            let head = heads(&out, 0);
            let integers = matches!(dtype, KvDtype::Int16 | KvDtype::Int8);
            let all = bad.is_nan() || integers;
            assert!(if all { head.iter().all(|v| v.is_nan()) } else { head.iter().any(|v| v.is_nan()) }, "{bad} {dtype} {}", engine.isa());
            assert!(heads(&out, 32).iter().all(|v| v.is_finite()));
            let mut in_value = data(case, 1);
            in_value.v[5 * 32 + 3] = bad;
            let out = attend(&engine, case, &in_value, &cache(&engine, case, &in_value, dtype));
            let head = heads(&out, 0);
            // In floating point the dimension, with integers the whole vector.
            let hit = head.iter().enumerate().filter(|(i, v)| (integers || i % 16 == 3) && v.is_finite()).count();
            assert!(hit == 0 && heads(&out, 32).iter().all(|v| v.is_finite()), "{bad} {dtype} {}", engine.isa());
        }
    }
}

#[test]
fn no_tokens_is_no_work() {
    let engine = engine(Isa::best(), 2);
    let cache = KvCache::new(1, 16, KvDtype::F16, 4);
    engine.attention([AttentionJob { q: &[], cache: &cache, heads: 1, scale: 1.0, window: None, soft_cap: None, out: &mut [] }]);
    assert!(engine.kernel_calls().is_empty());
}
