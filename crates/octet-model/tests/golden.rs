//! Every family against logits and greedy continuations that transformers computed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use octet_model::{ArchSpec, LoadOptions, Logits, Model, Step, families::FAMILIES};
use octet_tensor::Activations;
use octet_testkit::{arch_fixtures, fixtures, npy_f32, npy_i64, relative_error};
use std::{collections::BTreeMap, path::Path};
use support::{EXACT, checkpoint, engines, feed, json, load_on};

/// What f32 arithmetic in another order may differ by, of the largest logit.
const TOLERANCE: f32 = 1e-4;

fn ids(path: &Path) -> Vec<Vec<u32>> {
    let (shape, ids) = npy_i64(path);
    let row = shape.last().copied().unwrap();
    ids.chunks(row).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

fn logits(model: &Model, rows: &[Vec<u32>]) -> Vec<f32> {
    let mut sequences: Vec<_> = rows.iter().map(|_| model.new_sequence()).collect();
    let mut batch: Vec<_> =
        sequences.iter_mut().zip(rows).map(|(sequence, tokens)| Step { sequence, tokens, logits: Logits::All }).collect();
    let mut out = Vec::new();
    model.forward(&mut batch, &mut out, None).unwrap();
    out
}

/// The prompt's continuation, token by token with the cache.
fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut sequence, mut all) = (model.new_sequence(), prompt.to_vec());
    for i in 0..count {
        let tokens = if i == 0 { prompt.to_vec() } else { vec![*all.last().unwrap()] };
        let out = feed(model, &mut sequence, &tokens, Logits::Last).unwrap();
        let best = (0..out.len()).max_by(|&a, &b| out[a].total_cmp(&out[b]).then(b.cmp(&a))).unwrap();
        all.push(best as u32);
    }
    all
}

#[test]
fn every_fixture_agrees_with_transformers() {
    let mut families: BTreeMap<&str, f32> = FAMILIES.iter().map(|f| (f.name, f32::NAN)).collect();
    println!("{:<24}{:<12}{:<14}{:>18}", "fixture", "family", "on", "max |Δ|/max|logit|");
    for (name, path) in arch_fixtures() {
        let spec = ArchSpec::from_config(&json(&path.join("config.json"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        for engine in engines() {
            let (model, family, isa) = (load_on(&engine, spec.clone(), &checkpoint(&path), EXACT), spec.family(), engine.isa());
            let error = relative_error(&logits(&model, &ids(&path.join("input_ids.npy"))), &npy_f32(&path.join("logits.npy")).1);
            println!("{name:<24}{family:<12}{:<14}{error:>18.1e}", isa.to_string());
            assert!(error <= TOLERANCE, "{name} on {isa}: logits are {error:e} off");
            for expected in ids(&path.join("greedy_ids.npy")) {
                assert_eq!(greedy(&model, &expected[..12], expected.len() - 12), expected, "{name} on {isa}: greedy continuation");
            }
            families.entry(family).and_modify(|worst| *worst = worst.max(error));
        }
    }
    println!("\n{:<12}{:>18}", "family", "max |Δ|/max|logit|");
    for (family, error) in families {
        println!("{family:<12}{error:>18.1e}");
        assert!(!error.is_nan(), "family {family} has no fixture");
    }
}

#[test]
fn both_config_styles_mean_the_same() {
    let mut compared = 0;
    for (name, path) in arch_fixtures() {
        let old = path.join("config.v4style.json");
        if old.is_file() {
            let read = |path: &Path| ArchSpec::from_config(&json(path)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(read(&path.join("config.json")), read(&old), "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 9, "only {compared} fixtures have both styles");
}

/// Fixtures whose weights are not plain floats: the folder, its logits, how far they may be.
const STORED: &[(&str, &str, f32)] = &[
    ("fp8-block/qwen3-mult128", "logits.npy", TOLERANCE),
    ("compressed-tensors/w8a16-rtn-channel", "logits.npy", TOLERANCE),
    ("compressed-tensors/w4a16-gptq-sym", "logits.npy", TOLERANCE),
    ("compressed-tensors/w4a16-gptq-asym", "logits.npy", TOLERANCE),
    ("compressed-tensors/w8a8-rtn", "logits_weights_only.npy", TOLERANCE),
];

#[test]
fn stored_quantization_runs_as_its_makers_computed_it() {
    for (name, golden, tolerance) in STORED {
        let path = fixtures().join(name);
        let spec = ArchSpec::from_config(&json(&path.join("config.json"))).unwrap();
        for engine in engines() {
            let options = LoadOptions { activations: Some(Activations::Exact), ..EXACT };
            let model = load_on(&engine, spec.clone(), &checkpoint(&path), options);
            let error = relative_error(&logits(&model, &ids(&path.join("input_ids.npy"))), &npy_f32(&path.join(golden)).1);
            println!("{name:<40}{:<14}{error:>18.1e}", engine.isa().to_string());
            assert!(error <= *tolerance, "{name} on {}: logits are {error:e} off", engine.isa());
        }
    }
}

/// Checkpoints whose activations are rounded at run time: how far logits may be, and farther than what exact ones are.
const ROUNDED: &[(&str, f32, f32)] = &[("w8a8-rtn", 5e-3, 1e-2), ("fp8-dynamic", 1e-5, 4e-2), ("fp8-block", 1e-5, 4e-2)];

/// Activations in eight bits: the makers emulate them in floats, whose other rounding flips a code here and there. Measured
/// as root mean square, so that such a flip does not hide what all other logits say: exact activations are ten times as far.
#[test]
fn eight_bit_activations_stay_near_their_emulation() {
    for (name, allowed, farther) in ROUNDED {
        let path = fixtures().join("compressed-tensors").join(name);
        let spec = ArchSpec::from_config(&json(&path.join("config.json"))).unwrap();
        let (rows, golden) = (ids(&path.join("input_ids.npy")), npy_f32(&path.join("logits.npy")).1);
        for engine in engines() {
            let error = |activations| {
                let options = LoadOptions { activations, ..EXACT };
                relative_rms(&logits(&load_on(&engine, spec.clone(), &checkpoint(&path), options), &rows), &golden)
            };
            let (stored, exact) = (error(None), error(Some(Activations::Exact)));
            println!("{name} on {:<14}{stored:>18.1e} (exact activations {exact:.1e})", engine.isa().to_string());
            assert!(stored <= *allowed && exact > *farther, "{name}: {stored:e} off, {exact:e} with exact activations");
        }
    }
}

/// √(Σ(found − expected)² / Σ expected²).
fn relative_rms(found: &[f32], expected: &[f32]) -> f32 {
    let squares: f32 = expected.iter().map(|v| v * v).sum();
    (found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / squares).sqrt()
}
