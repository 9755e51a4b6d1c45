//! Attention on every instruction set against a naive softmax in f64.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{AttentionJob, Engine, Isa, KvCache, KvDtype};

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
    let sixteen = |v: Vec<f32>| v.into_iter().map(|v| half::f16::from_f32(v).to_f32()).collect();
    Data {
        q: numbers.normals(case.tokens * case.heads * case.dim),
        k: sixteen(numbers.normals(all * width)),
        v: sixteen(numbers.normals(all * width)),
    }
}

fn cache(case: Case, data: &Data, dtype: KvDtype) -> KvCache {
    let width = case.kv_heads * case.dim;
    let mut cache = KvCache::new(case.kv_heads, case.dim, dtype, case.before + case.tokens + 5);
    // Token by token, then the rest; and what was there before a truncation must not matter.
    let split = case.before.min(3) * width;
    cache.append(&data.k[..split], &data.v[..split]);
    cache.append(&vec![f32::NAN; 2 * width], &vec![0.5; 2 * width]);
    cache.truncate(split / width);
    cache.append(&data.k[split..], &data.v[split..]);
    cache
}

fn attend(engine: &Engine, case: Case, data: &Data, cache: &KvCache) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.q.len()];
    engine.attention(&mut [job(case, data, cache, &mut out)]);
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
            for dtype in [KvDtype::F32, KvDtype::F16] {
                let found = attend(&engine, case, &data, &cache(case, &data, dtype));
                assert_close(&found, &expected, 5e-6, &format!("{case:?} {dtype:?} {}", engine.isa()));
            }
        }
    }
}

#[test]
fn one_token_at_a_time_equals_all_at_once() {
    let case = Case { heads: 4, kv_heads: 2, dim: 24, before: 0, tokens: 40, window: Some(19), ..PLAIN };
    let all = data(case, 7);
    for engine in engines() {
        let together = attend(&engine, case, &all, &cache(case, &all, KvDtype::F32));
        let (q, kv) = (4 * 24, 2 * 24);
        let mut cache = KvCache::new(2, 24, KvDtype::F32, 40);
        for token in 0..40 {
            cache.append(&all.k[token * kv..(token + 1) * kv], &all.v[token * kv..(token + 1) * kv]);
            let one = Data { q: all.q[token * q..(token + 1) * q].to_vec(), k: vec![], v: vec![] };
            let found = attend(&engine, case, &one, &cache);
            let expected: Vec<(f64, f64)> = together[token * q..(token + 1) * q].iter().map(|&v| (f64::from(v), 1.0)).collect();
            assert_close(&found, &expected, 1e-5, "token by token");
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
            let caches: Vec<KvCache> = twice.iter().map(|(case, data)| cache(*case, data, KvDtype::F16)).collect();
            let mut outs: Vec<Vec<f32>> = twice.iter().map(|(_, data)| vec![0.0; data.q.len()]).collect();
            let mut jobs: Vec<_> = twice.iter().zip(&caches).zip(&mut outs).map(|(((c, d), cache), out)| job(*c, d, cache, out)).collect();
            engine.attention(&mut jobs);
            assert_eq!(outs[0], outs[all.len()]);
            assert_eq!(first.get_or_insert(outs.clone()), &outs, "{isa} {threads} threads");
        }
    }
}

#[test]
fn what_is_not_finite_is_never_silent() {
    let case = Case { heads: 4, kv_heads: 2, dim: 16, before: 20, tokens: 3, ..PLAIN };
    for engine in engines() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut in_query = data(case, 1);
            in_query.q[16] = bad;
            let out = attend(&engine, case, &in_query, &cache(case, &in_query, KvDtype::F32));
            assert!(out[16..32].iter().all(|v| v.is_nan()) && out[..16].iter().chain(&out[32..]).all(|v| v.is_finite()));
            let mut in_key = data(case, 1);
            in_key.k[5 * 32] = bad;
            let out = attend(&engine, case, &in_key, &cache(case, &in_key, KvDtype::F32));
            // An infinite key whose score is −∞ is rightly never looked at; a NaN concerns every query of its head.
            let head: Vec<f32> = (0..3).flat_map(|t| out[t * 64..t * 64 + 32].to_vec()).collect();
            assert!(if bad.is_nan() { head.iter().all(|v| v.is_nan()) } else { head.iter().any(|v| v.is_nan()) }, "{bad} {}", engine.isa());
        }
    }
}

#[test]
fn no_tokens_is_no_work() {
    let engine = engine(Isa::best(), 2);
    let cache = KvCache::new(1, 16, KvDtype::F16, 4);
    engine.attention(&mut [AttentionJob { q: &[], cache: &cache, heads: 1, scale: 1.0, window: None, soft_cap: None, out: &mut [] }]);
    assert!(engine.kernel_calls().is_empty());
}
