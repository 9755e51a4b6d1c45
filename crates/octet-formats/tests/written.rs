//! What is written for other tools holds the codes, zero points and scales it was given, and is what their own packers write.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::{
    Checkpoint, Folder, npz,
    safetensors::{TensorSpec, Writer},
    write::{Described, Encoder, Format, Given, Piece, quantization_config, tensor_specs},
};
use octet_tensor::{Activations, Dtype, Matrix, QMatrix, Scheme, StoredQuant, WeightSource};
use proptest::prelude::*;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// A matrix of the scheme whose codes, zero points and scales look random.
fn random(rows: usize, cols: usize, scheme: Scheme, scale_dtype: Dtype, seed: u32) -> QMatrix {
    let number = |i: usize, n: u32| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503)).rotate_left(13) % n;
    let weights = scheme.weights;
    let code = |i: usize| (number(i, 1 << weights.bits.get()) as i32 + weights.bits.min_code()) as i8;
    let count = rows * weights.groups(cols);
    let scale = |i: usize| scale_dtype.round((number(i + 7, 2000) as f32 - 1000.5) / 8192.0);
    let zeros = if weights.is_asymmetric() { (0..count).map(|i| code(i + 3)).collect() } else { vec![] };
    QMatrix::new(rows, cols, weights, (0..rows * cols).map(code).collect(), (0..count).map(scale).collect(), scale_dtype, zeros).unwrap()
}

fn rows_of(q: &QMatrix, rows: std::ops::Range<usize>) -> QMatrix {
    let scheme = Scheme { weights: q.scheme(), activations: Activations::Exact };
    StoredQuant::new("m", std::sync::Arc::new((q.clone(), scheme))).read_rows(rows).unwrap()
}

/// Writes the matrix as module `m` of a checkpoint in `dir`, in two runs of rows.
fn write(dir: &Path, format: Format, q: &QMatrix, activations: Activations, order: Option<Vec<u32>>) -> Result<(), String> {
    let scheme = Scheme { weights: q.scheme(), activations };
    let shape = [q.rows(), q.cols()];
    let given = Given { rows: q.rows(), cols: q.cols(), scheme, scale_dtype: q.scale_dtype(), ordered: order.is_some() };
    let fit = format.fit(&given)?;
    let specs: Vec<TensorSpec> = tensor_specs(format, "m", shape, &fit);
    let ordered = order.is_some();
    let mut encoder = Encoder::new(format, "m", shape, fit, order);
    let mut pieces: Vec<Piece> = vec![];
    for part in [0..32, 32..q.rows()] {
        pieces.extend(encoder.rows(&rows_of(q, part)).unwrap());
    }
    if format == Format::Npz {
        let mut writer = npz::Writer::create(&dir.join(npz::FILE), &specs).unwrap();
        pieces.iter().for_each(|piece| writer.append(&piece.tensor, &piece.bytes).unwrap());
        writer.finish().unwrap();
    } else {
        let mut writer = Writer::create(dir, specs, u64::MAX, &BTreeMap::new()).unwrap();
        pieces.iter().for_each(|piece| writer.write(&piece.tensor, piece.offset, &piece.bytes).unwrap());
        writer.finish().unwrap();
    }
    let described = Described { module: "m".into(), fit, activations, ordered };
    let config = quantization_config(format, &[described], &["lm_head".into()]);
    std::fs::write(dir.join("config.json"), Value::Object(config).to_string()).unwrap();
    Ok(())
}

fn read(dir: &Path) -> Matrix {
    Checkpoint::open(&Folder::disk(dir).unwrap()).unwrap().matrix("m").unwrap().unwrap()
}

fn floats(matrix: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows_f32(0..matrix.rows(), &mut out).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Whatever a format takes, it gives back: bit for bit as codes where they are read as codes, as the same numbers else.
    #[test]
    fn written_is_read(
        format in prop::sample::select(vec![Format::Gptq, Format::Awq, Format::Mlx, Format::Bitsandbytes, Format::Npz]),
        bits in 2u32..=8, group in prop::sample::select(vec!["pc", "g32", "g64", "g128"]), asym: bool, half: bool, seed: u32,
    ) {
        let bits = match format { Format::Awq => 4, Format::Bitsandbytes => 8, _ => bits };
        let sign = if asym { "asym" } else { "sym" };
        let scheme: Scheme = format!("w{bits}a16-{group}-{sign}").parse().unwrap();
        let q = random(64, 256, scheme, if half { Dtype::F16 } else { Dtype::Bf16 }, seed);
        let dir = tempfile::tempdir().unwrap();
        if write(dir.path(), format, &q, Activations::Exact, None).is_ok() {
            let matrix = read(dir.path());
            prop_assert_eq!(&floats(&matrix), &q.dequantize());
            if let Matrix::Quant(stored) = &matrix {
                let back = stored.read_rows(0..64).unwrap();
                prop_assert_eq!((back.codes(), back.scales()), (q.codes(), q.scales()));
                // What is always stored with zero points has the middle for a symmetric matrix.
                let zeros = if q.zeros().is_empty() { vec![0; back.zeros().len()] } else { q.zeros().to_vec() };
                prop_assert_eq!(back.zeros(), zeros);
            } else {
                prop_assert_eq!(format, Format::Mlx);
            }
        } else {
            prop_assert!(matches!((format, bits), (Format::Gptq, 5..=7) | (Format::Mlx, 7)) || format == Format::Bitsandbytes, "{format:?} {scheme}");
        }
    }
}

#[test]
fn an_order_of_inputs_is_kept() {
    let q = random(64, 256, "w4a16-g64".parse().unwrap(), Dtype::F16, 5);
    let order: Vec<u32> = (0..256u32).map(|i| i % 4).collect();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Format::Gptq, &q, Activations::Exact, Some(order.clone())).unwrap();
    let found = floats(&read(dir.path()));
    for (at, &value) in found.iter().enumerate() {
        let (row, col) = (at / 256, at % 256);
        let (scale, zero) = q.group(row, order[col] as usize);
        assert_eq!(value, scale * (i32::from(q.codes()[at]) - zero) as f32);
    }
}

/// Codes and scales read out of a tool's checkpoint and written again are the tool's own bytes.
fn repacked(place: &str, format: Format, suffixes: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [root.join("fixtures").join(place), root.join("../shared/reference/fixtures").join(place)];
    let Some(dir) = places.iter().find(|place| place.join("config.json").exists()) else {
        println!("skipped: there is no fixture {place}");
        return;
    };
    let checkpoint = Checkpoint::open(&Folder::disk(dir).unwrap()).unwrap();
    let mut seen = 0;
    for (module, scheme) in &checkpoint.quantization().unwrap().modules {
        let Some(Matrix::Quant(matrix)) = checkpoint.matrix(module).unwrap() else { continue };
        let q = matrix.read_rows(0..matrix.rows()).unwrap();
        let given = Given { rows: q.rows(), cols: q.cols(), scheme: *scheme, scale_dtype: q.scale_dtype(), ordered: false };
        let fit = format.fit(&given).unwrap();
        for piece in Encoder::new(format, module, [q.rows(), q.cols()], fit, None).rows(&q).unwrap() {
            let suffix = piece.tensor.rsplit('.').next().unwrap();
            if suffixes.contains(&suffix) {
                let stored = checkpoint.tensor(&piece.tensor).unwrap().unwrap();
                assert!(**stored.bytes() == *piece.bytes, "{} differs", piece.tensor);
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "{place} has nothing to compare");
}

#[test]
fn packers_of_the_tools_write_the_same_bytes() {
    let all = ["qweight", "qzeros", "scales", "g_idx"];
    for place in ["gptq/b3-g128-sym", "gptq/b4-g128-sym", "gptq/b8-g128-sym"] {
        repacked(place, Format::Gptq, &all);
    }
    repacked("awq/b4-g128-gemm", Format::Awq, &all);
}
