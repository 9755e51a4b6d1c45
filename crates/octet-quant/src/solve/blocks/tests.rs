#![allow(clippy::print_stdout, reason = "tests")]

use super::*;
use octet_kernels::{Engine, Isa};
use std::num::NonZeroUsize;

/// Numbers that look like weights.
pub(super) fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| 0.04 * (0..6).map(|_| uniform() - 0.5).sum::<f32>()).collect()
}

pub(super) fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap()
}

fn solve(name: &str, weights: &[f32], cols: usize, importance: Option<&[f32]>) -> (BlockRows, ErrorSums) {
    let engine = engine();
    let code = BlockCode::named(name).unwrap();
    let job = BlockJob { module: "m", shape: (weights.len() / cols, cols), code, importance, hessian: None, engine: &engine };
    BlockSearch::new(&job).unwrap().solve(weights).unwrap()
}

#[test]
fn every_type_leaves_the_error_its_bits_allow() {
    // Measured on these weights: decibels of signal over error.
    let least = [
        ("Q4_0", 20.4),
        ("Q4_1", 21.1),
        ("Q5_0", 26.6),
        ("Q5_1", 27.3),
        ("Q8_0", 44.0),
        ("Q2_K", 10.2),
        ("Q3_K", 15.0),
        ("Q4_K", 20.8),
        ("Q5_K", 27.0),
        ("Q6_K", 33.0),
        ("IQ4_NL", 21.0),
        ("IQ4_XS", 20.8),
    ];
    let weights = weights(16 * 512, 3);
    let power: f64 = weights.iter().map(|&w| f64::from(w * w)).sum();
    for (name, least) in least {
        let (rows, sums) = solve(name, &weights, 512, None);
        let left: f64 = weights.iter().zip(rows.dequantize()).map(|(a, b)| f64::from((a - b) * (a - b))).sum();
        assert!((left - sums.error).abs() <= 1e-3 * left, "{name}: {left:e} or {:e}", sums.error);
        let decibels = 10.0 * (power / left).log10();
        assert!(decibels >= least, "{name}: {decibels:.2} dB, at least {least}");
        assert!(rows.d.iter().chain(&rows.m).all(|&v| octet_tensor::Dtype::F16.round(v) == v), "{name}");
    }
}

#[test]
fn importance_is_heeded() {
    let weights = weights(4 * 256, 5);
    let importance: Vec<f32> = (0..256).map(|i| if i % 4 == 0 { 3.7 } else { 0.1 }).collect();
    for code in BlockCode::ALL.iter().filter(|code| code.name != "Q8_0") {
        let (plain, heeded) = (solve(code.name, &weights, 256, None).0, solve(code.name, &weights, 256, Some(&importance)));
        let loss = |rows: &BlockRows| -> f64 {
            let found = rows.dequantize();
            weights.iter().zip(found).enumerate().map(|(i, (a, b))| f64::from(importance[i % 256] * (a - b) * (a - b))).sum()
        };
        assert!(loss(&heeded.0) < loss(&plain), "{}: {:e} against {:e}", code.name, loss(&heeded.0), loss(&plain));
    }
}

#[test]
fn zeros_constants_and_extremes_are_kept() {
    for code in &BlockCode::ALL {
        let (rows, sums) = solve(code.name, &[0.0; 256], 256, None);
        assert!(rows.dequantize().iter().all(|&v| v == 0.0) && sums.error == 0.0, "{}", code.name);
        for value in [0.5f32, -0.5, 1e-2, 6e4] {
            let (rows, _) = solve(code.name, &[value; 256], 256, None);
            let worst = rows.dequantize().iter().fold(0f32, |most, v| most.max((v - value).abs()));
            assert!(worst <= 0.02 * value.abs(), "{} of {value}: {worst}", code.name);
        }
    }
}

#[test]
fn feedback_lowers_the_error_of_the_outputs_and_says_by_how_much() {
    let engine = engine();
    let (rows, cols) = (20, 512);
    // Neighbouring inputs go together, some are large.
    let mut x = weights(cols * 1200, 11);
    for token in x.chunks_mut(cols) {
        for i in 1..cols {
            token[i] = (0.85 * token[i - 1] + 0.5 * token[i]) * if i % 31 == 0 { 2.0 } else { 1.0 };
        }
    }
    let mut gram = octet_kernels::Gram::new(cols);
    gram.add(&engine, &x);
    let moments = gram.finish(&engine);
    let hessian = Hessian::new(&engine, "x", &moments, crate::HessianOptions::default()).unwrap();
    let weights = weights(rows * cols, 12);
    let loss = |found: &[f32]| -> f64 {
        let errors: Vec<f64> = weights.iter().zip(found).map(|(a, b)| f64::from(a - b)).collect();
        let row = |e: &[f64]| -> f64 {
            (0..cols).map(|i| e[i] * (0..cols).map(|j| f64::from(hessian.matrix().at(i, j)) * e[j]).sum::<f64>()).sum()
        };
        errors.chunks(cols).map(row).sum()
    };
    for name in ["Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"] {
        let code = BlockCode::named(name).unwrap();
        let job = BlockJob { module: "m", shape: (rows, cols), code, importance: None, hessian: Some(&hessian), engine: &engine };
        let searched = BlockSearch::new(&BlockJob { importance: Some(hessian.importance()), ..job }).unwrap().solve(&weights).unwrap().0;
        let solve = |rounds| BlockGptq::new(&job, rounds).unwrap().unwrap().solve(&weights).unwrap();
        let ((fed, _), (refined, sums)) = (solve(0), solve(3));
        let [plain, fed, refined] = [&searched, &fed, &refined].map(|rows| loss(&rows.dequantize()));
        println!("{name:<7} searched {plain:.3e}, fed back {:.3}, refined {:.3}", fed / plain, refined / plain);
        assert!(fed < 0.8 * plain && refined < 0.97 * fed, "{name}: {plain:e}, {fed:e}, {refined:e}");
        assert!((sums.weighted_error - refined).abs() <= 0.02 * refined, "{name}: says {:e}, is {refined:e}", sums.weighted_error);
        assert!((sums.nearest_error - plain).abs() <= 0.02 * plain, "{name}: says {:e}, is {plain:e}", sums.nearest_error);
    }
}
