//! Matrix products on every instruction set against a naive oracle, and against each other.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use octet_kernels::{ActivationFn, Engine, Gated, Isa, MatmulJob, PackedLinear, Source};
use octet_tensor::{Activations, Beside, Dtype, FloatMatrix, Matrix, QMatrix, Tensor};

const TOKENS: [usize; 8] = [0, 1, 2, 5, 8, 9, 31, 49];
const SHAPES: [(usize, usize); 8] = [(1, 1), (16, 8), (17, 40), (33, 130), (48, 256), (5, 300), (70, 129), (41, 416)];

fn multiply(engine: &Engine, x: &[f32], tokens: usize, w: &PackedLinear) -> Vec<f32> {
    let mut out = vec![f32::NAN; tokens * w.rows()];
    engine.matmul(x, tokens, &mut [MatmulJob { weights: w, bias: None, out: &mut out, accumulate: false }]);
    out
}

fn check(q: &QMatrix, scheme_text: &str, x: &[f32], tokens: usize, tolerance: f64) {
    let scheme = scheme(scheme_text);
    let (rows, cols) = (q.rows(), q.cols());
    let expected = oracle(&seen_inputs(x, cols, scheme.activations), &q.dequantize(), rows, cols);
    let mut first: Option<Vec<u32>> = None;
    for engine in engines() {
        let packed = pack(&engine, q, scheme);
        assert_eq!(packed.resident_bytes(), PackedLinear::forecast_bytes(rows, cols, scheme, q.scale_dtype()));
        let what = format!("{scheme_text} {rows}x{cols}, {tokens} tokens, {}", packed.kernel_name());
        let found = multiply(&engine, x, tokens, &packed);
        assert_close(&found, &expected, tolerance, &what);
        if scheme.activations != Activations::Exact {
            let bits: Vec<u32> = found.iter().map(|v| v.to_bits()).collect();
            assert_eq!(*first.get_or_insert(bits.clone()), bits, "{what} differs from scalar");
        }
    }
}

fn suite(schemes: &[&str], tolerance: f64) {
    of_shapes(schemes, &SHAPES, tolerance);
}

fn of_shapes(schemes: &[&str], shapes: &[(usize, usize)], tolerance: f64) {
    let mut numbers = Numbers(1);
    for text in schemes {
        for (i, &(rows, cols)) in shapes.iter().enumerate() {
            let dtype = [Dtype::F16, Dtype::Bf16, Dtype::F32][i % 3];
            let q = quantized(rows, cols, scheme(text), dtype, &mut numbers);
            for tokens in TOKENS {
                let x = numbers.normals(tokens * cols);
                check(&q, text, &x, tokens, tolerance);
            }
        }
    }
}

#[test]
fn eight_bits_with_int8_activations() {
    suite(&["w8a8", "w8a8-asym", "w8a8-g32", "w8a8-g128-asym-ag32", "w8a8-ag64"], 1e-6);
}

#[test]
fn large_inputs_beside_int8_activations() {
    suite(&["w8a8-o1.5", "w4a8-g32-asym-o2", "w6a8-o0.5", "w8a8-o10000"], 1e-6);
}

/// Products with some columns as floats are those of the codes without them and of the floats.
#[test]
fn columns_beside_the_codes() {
    let (rows, cols) = (37, 160);
    let mut numbers = Numbers(9);
    for (text, tolerance) in [("w8a8-c2", 1e-6), ("w4a8-g32-asym-c1", 1e-6), ("w8a16-g32", 2e-6)] {
        let scheme = scheme(text);
        let q = quantized(rows, cols, scheme, Dtype::F32, &mut numbers);
        let columns = [3u32, 90, 159];
        let q = q.with_beside(Beside::new(columns.into(), numbers.normals(rows * columns.len()))).unwrap();
        for tokens in [1, 3, 19] {
            let mut x = numbers.normals(tokens * cols);
            x.iter_mut().skip(90).step_by(cols).for_each(|v| *v *= 100.0);
            let inside: Vec<f32> =
                x.iter().enumerate().map(|(i, &v)| if columns.contains(&((i % cols) as u32)) { 0.0 } else { v }).collect();
            let mut seen = seen_inputs(&inside, cols, scheme.activations);
            for (i, seen) in seen.iter_mut().enumerate().filter(|(i, _)| columns.contains(&((i % cols) as u32))) {
                *seen = f64::from(x[i]);
            }
            let expected = oracle(&seen, &q.dequantize(), rows, cols);
            for engine in engines() {
                let packed = pack(&engine, &q, scheme);
                for (found, (value, size)) in multiply(&engine, &x, tokens, &packed).iter().zip(&expected) {
                    assert!((f64::from(*found) - value).abs() <= tolerance * size, "{text} {tokens}: {found} {value}");
                }
                let mut row = vec![0.0; cols];
                packed.read_row(5, &mut row);
                assert_eq!(row, q.dequantize()[5 * cols..6 * cols]);
            }
        }
    }
}

#[test]
fn inputs_set_aside_reach_gates_too() {
    let (rows, cols, tokens) = (40, 96, 5);
    let (mut numbers, scheme) = (Numbers(3), scheme("w8a8-o1"));
    let [gate, up] = [0; 2].map(|_| quantized(rows, cols, scheme, Dtype::F32, &mut numbers));
    let x = numbers.normals(tokens * cols);
    for engine in engines() {
        let [gate, up] = [&gate, &up].map(|q| pack(&engine, q, scheme));
        let mut expected = multiply(&engine, &x, tokens, &gate);
        engine.gate(ActivationFn::Silu, &mut expected, &multiply(&engine, &x, tokens, &up));
        let mut out = vec![f32::NAN; tokens * rows];
        let job = Gated { function: ActivationFn::Silu, gate: (&gate, None), up: (&up, None), out: &mut out };
        engine.gated(Source::rows(&x), tokens, job);
        assert_eq!(out, expected);
        let calls = engine.kernel_calls();
        assert!(calls.iter().any(|(name, calls)| name.starts_with("float-outliers") && *calls == 4), "{calls:?}");
    }
}

#[test]
fn four_bits_with_int8_activations() {
    suite(
        &["w4a8", "w4a8-pc", "w4a8-g32-asym", "w4a8-g128-sym-ag32", "w4a8-g32-ag128", "w4a8-g256-asym-ag128", "w4la8", "w4la8-g32-ag64"],
        1e-6,
    );
}

#[test]
fn whole_scales() {
    suite(&["w4ta8-g16-s8", "w4a8-g32-s8", "w4a8-g16-asym-s8-ag32", "w8a8-g64-s8", "w5a8-g32-s8-o2"], 1e-6);
    suite(&["w4ta16-g16-s8", "w4a16-g16-s8", "w4ta16-g32-s8", "w3a16-g32-asym-s8"], 2e-6);
}

#[test]
fn points_of_a_lattice() {
    let shapes = [(1, 8), (17, 40), (33, 136), (48, 256), (5, 296), (41, 416)];
    for (schemes, tolerance) in
        [(["w4ea8", "w4ea8-pc", "w4ea8-g32-ag64", "w4ea8-g16-s8"], 1e-6), (["w4ea16-g32", "w4ea16", "w4ea16-pc", "w4ea16-g64-s8"], 2e-6)]
    {
        of_shapes(&schemes, &shapes, tolerance);
    }
}

#[test]
fn other_widths_with_int8_activations() {
    suite(&["w2a8", "w3a8-g32-asym", "w5a8-g64-asym", "w6a8", "w7a8-pc", "w5a8-ag32", "w6a8-g128-ag64", "w3a8-pc-asym"], 1e-6);
}

#[test]
fn float_activations() {
    suite(&["w8a16", "w4ta16-g32", "w4ta16", "w4la16-g32", "w4la16-pc", "w8a16-g32-asym", "w4a16", "w4a16-g32-asym", "w4a16-pc"], 2e-6);
}

#[test]
fn other_widths_with_float_activations() {
    suite(&["w6a16-g64", "w3a16-asym", "w5a16-g32-asym", "w2a16", "w5a16", "w7a16"], 2e-6);
}

/// Groups that are no multiple of anything, as foreign files may have them.
#[test]
fn odd_groups() {
    use octet_tensor::{Bits, Granularity, Scheme, Symmetry, WeightScheme};
    use std::num::NonZeroUsize;
    let mut numbers = Numbers(2);
    for (bits, group, act) in
        [(4, 20, None), (8, 6, None), (4, 12, Some(18)), (8, 40, Some(10)), (4, 1, None), (5, 20, None), (6, 40, Some(12)), (3, 6, None)]
    {
        let granularity = Granularity::Group(NonZeroUsize::new(group).unwrap());
        let weights = WeightScheme::floats(Bits::new(bits).unwrap(), Symmetry::Asymmetric, granularity);
        let activations = act.map_or(Activations::Int8PerToken, |n| Activations::Int8PerGroup(NonZeroUsize::new(n).unwrap()));
        for activations in [activations, Activations::Exact] {
            let scheme = Scheme { weights, activations };
            let q = quantized(19, 77, scheme, Dtype::F32, &mut numbers);
            for tokens in [1, 13] {
                let x = numbers.normals(tokens * 77);
                let expected = oracle(&seen_inputs(&x, 77, activations), &q.dequantize(), 19, 77);
                for engine in engines() {
                    let found = multiply(&engine, &x, tokens, &pack(&engine, &q, scheme));
                    assert_close(&found, &expected, 2e-6, &format!("w{bits} g{group} {activations:?} {}", engine.isa()));
                }
            }
        }
    }
}

/// The largest products there are: codes, zero points and activations at the ends of their ranges.
#[test]
fn extremes_do_not_saturate() {
    for text in [
        "w8a8",
        "w8a8-asym",
        "w4a8-pc",
        "w4a8-g128-asym",
        "w7a8-pc-asym",
        "w8a8-g32-asym-ag32",
        "w5a8-pc",
        "w6a8-pc-asym",
        "w5a8-g128-asym",
        "w6a8-g32-ag32",
        "w3a8-pc",
        "w2a8-asym",
        "w4ta8-pc",
        "w4ta8-g128",
    ] {
        let scheme = scheme(text);
        let (low, high) = scheme.weights.range();
        let (low, high) = (low as i8, high as i8);
        let (rows, cols) = (16, 4096);
        for (code, zero) in [(low, high), (high, low), (low, low), (high, high), (high, 0), (low, 0)] {
            let groups = rows * scheme.weights.groups(cols);
            let zeros = if scheme.weights.is_asymmetric() { vec![zero; groups] } else { vec![] };
            let q = QMatrix::new(rows, cols, scheme.weights, vec![code; rows * cols], vec![0.5; groups], Dtype::F16, zeros).unwrap();
            for sign in [1.0, -1.0] {
                for tokens in [1, 12] {
                    check(&q, text, &vec![sign; tokens * cols], tokens, 1e-6);
                }
            }
        }
    }
}

/// Rows longer than what 32 bits hold the sum of.
#[test]
fn very_long_rows_do_not_overflow() {
    let scheme = scheme("w8a8-asym");
    let cols = 150_000;
    let q = QMatrix::new(1, cols, scheme.weights, vec![127; cols], vec![1.0], Dtype::F32, vec![-128]).unwrap();
    check(&q, "w8a8-asym", &vec![-1.0; cols], 1, 1e-6);
}

#[test]
fn what_is_not_finite_is_never_silent() {
    let mut numbers = Numbers(3);
    let (rows, cols, tokens) = (20, 100, 14);
    for text in ["w8a8", "w4a8-g32-asym", "w4a8-ag32", "w8a16", "w4a16"] {
        let q = quantized(rows, cols, scheme(text), Dtype::F16, &mut numbers);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for count in [1, tokens] {
                let mut x = numbers.normals(count * cols);
                let victim = count / 2;
                x[victim * cols + 57] = bad;
                for engine in engines() {
                    let out = multiply(&engine, &x, count, &pack(&engine, &q, scheme(text)));
                    for (token, out) in out.chunks(rows).enumerate() {
                        // With a weight of exactly zero an infinite input gives NaN, with another infinity: never a number.
                        assert!(
                            out.iter().all(|v| v.is_finite() == (token != victim)),
                            "{text} {} {bad} token {token}: {out:?}",
                            engine.isa()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn float_weights_at_any_alignment() {
    let mut numbers = Numbers(4);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (i, (rows, cols)) in SHAPES.into_iter().enumerate() {
            let values: Vec<f32> = numbers.normals(rows * cols).into_iter().map(|v| dtype.round(v)).collect();
            let matrix = float(rows, cols, dtype, &values, i);
            for tokens in TOKENS {
                let x = numbers.normals(tokens * cols);
                let expected = oracle(&seen_inputs(&x, cols, Activations::Exact), &values, rows, cols);
                for engine in engines() {
                    let packed = PackedLinear::pack(&engine, &matrix, Some(Activations::Int8PerToken)).unwrap();
                    assert_eq!(packed.activations(), Activations::Exact);
                    let found = multiply(&engine, &x, tokens, &packed);
                    assert_close(&found, &expected, 1e-6, &format!("{dtype} {rows}x{cols}, {tokens} tokens, {}", engine.isa()));
                }
            }
        }
    }
}

#[test]
fn transposed_weights_are_copied_and_keep_their_type() {
    let values: Vec<f32> = (0..24 * 10).map(|v| (v % 64) as f32).collect();
    for dtype in [Dtype::F16, Dtype::F32] {
        let Matrix::Float(dense) = float(10, 24, dtype, &values, 1) else { unreachable!() };
        let stored = Tensor::new("t", dtype, vec![10, 24], dense.dense_bytes().unwrap().1).unwrap();
        let matrix = Matrix::Float(FloatMatrix::transposed(stored).unwrap());
        let engine = engine(Isa::best(), 2);
        let packed = PackedLinear::pack(&engine, &matrix, None).unwrap();
        assert_eq!((packed.rows(), packed.cols(), packed.resident_bytes()), (24, 10, 240 * dtype.size()));
        let mut row = [0.0; 10];
        packed.read_row(7, &mut row);
        let expected: Vec<f32> = (0..10).map(|k| values[k * 24 + 7]).collect();
        assert_eq!(row[..], expected[..]);
    }
}

#[test]
fn bias_accumulation_and_several_matrices_at_once() {
    let mut numbers = Numbers(5);
    let cols = 72;
    let texts = ["w8a8", "w4a8-g32", "w4a16", "w8a16", "w8a8", "w4a8-ag32", "w8a8-asym", "w4a16-g64", "w3a8", "w8a8"];
    for tokens in [1, 10] {
        let x = numbers.normals(tokens * cols);
        for engine in engines() {
            let qs: Vec<QMatrix> =
                texts.iter().enumerate().map(|(i, t)| quantized(5 + 9 * i, cols, scheme(t), Dtype::F16, &mut numbers)).collect();
            let packed: Vec<PackedLinear> = qs.iter().zip(texts).map(|(q, t)| pack(&engine, q, scheme(t))).collect();
            let biases: Vec<Vec<f32>> = packed.iter().map(|p| numbers.normals(p.rows())).collect();
            let mut outs: Vec<Vec<f32>> = packed.iter().map(|p| vec![10.0; tokens * p.rows()]).collect();
            let mut jobs: Vec<MatmulJob<'_>> = packed
                .iter()
                .zip(&mut outs)
                .zip(&biases)
                .enumerate()
                .map(|(i, ((weights, out), bias))| MatmulJob { weights, bias: (i % 3 != 0).then_some(bias), out, accumulate: i % 2 == 0 })
                .collect();
            engine.matmul(&x, tokens, &mut jobs);
            for (i, (p, out)) in packed.iter().zip(&outs).enumerate() {
                let mut alone = multiply(&engine, &x, tokens, p);
                for (j, v) in alone.iter_mut().enumerate() {
                    if i % 3 != 0 {
                        *v += biases[i][j % p.rows()];
                    }
                    if i % 2 == 0 {
                        *v += 10.0;
                    }
                }
                assert_eq!(&alone, out, "job {i} on {}", engine.isa());
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut numbers = Numbers(6);
    let (rows, cols) = (150, 200);
    let dense = float(rows, cols, Dtype::Bf16, &numbers.normals(rows * cols), 0);
    let quants: Vec<_> = ["w8a8", "w4a8-g32", "w4a16", "w8a16"]
        .map(|t| stored(&quantized(rows, cols, scheme(t), Dtype::F16, &mut numbers), scheme(t)))
        .into();
    for matrix in quants.iter().chain([&dense]) {
        for tokens in [1, 3, 40] {
            let x = numbers.normals(tokens * cols);
            for isa in Isa::available() {
                let results = [1, 2, 8].map(|threads| {
                    let engine = engine(isa, threads);
                    multiply(&engine, &x, tokens, &PackedLinear::pack(&engine, matrix, None).unwrap())
                });
                assert_eq!(results[0], results[1]);
                assert_eq!(results[0], results[2]);
            }
        }
    }
}

#[test]
fn rows_read_back_exactly() {
    let mut numbers = Numbers(7);
    for text in
        ["w8a8", "w4a16-g32-asym", "w4a8-pc", "w5a8-g64-asym", "w2a16-asym", "w6a8", "w3a16", "w7a8", "w5a8-g32-ag128", "w6a16-g64-asym"]
    {
        let q = quantized(35, 91, scheme(text), Dtype::Bf16, &mut numbers);
        for engine in engines() {
            let packed = pack(&engine, &q, scheme(text));
            for row in 0..35 {
                let (mut found, mut expected) = (vec![0.0; 91], vec![0.0; 91]);
                packed.read_row(row, &mut found);
                q.dequantize_row(row, &mut expected);
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn an_override_of_the_activations_counts() {
    let engine = engine(Isa::best(), 1);
    let q = quantized(16, 64, scheme("w4a8"), Dtype::F16, &mut Numbers(8));
    let packed = PackedLinear::pack(&engine, &stored(&q, scheme("w4a8")), Some(Activations::Exact)).unwrap();
    assert_eq!(packed.activations(), Activations::Exact);
    let x = Numbers(9).normals(64);
    let out = multiply(&engine, &x, 1, &packed);
    assert_close(&out, &oracle(&seen_inputs(&x, 64, Activations::Exact), &q.dequantize(), 16, 64), 1e-6, "override");
    assert!(engine.kernel_calls().iter().any(|(name, calls)| name.starts_with("w4a16") && *calls == 1), "{:?}", engine.kernel_calls());
}

#[test]
fn tiles_run_prompts_and_are_named() {
    if !Isa::available().contains(&Isa::Amx) {
        return println!("skipped: no AMX here");
    }
    let engine = engine(Isa::Amx, 1);
    let (cols, mut numbers) = (96, Numbers(10));
    for (text, cols) in [("w8a8", cols), ("w4a8", cols), ("w8a16", cols), ("w8a8", 40)] {
        let packed = pack(&engine, &quantized(16, cols, scheme(text), Dtype::F16, &mut numbers), scheme(text));
        for tokens in [1, 8, 9, 33] {
            multiply(&engine, &numbers.normals(tokens * cols), tokens, &packed);
        }
    }
    let calls = [("w8a8 amx", 2), ("w8a8 avx512-vnni", 6), ("w4a8 amx", 2), ("w4a8 avx512-vnni", 2), ("w8a16 avx512-vnni", 4)];
    assert_eq!(engine.kernel_calls(), calls);
}
