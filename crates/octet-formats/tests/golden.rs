//! Checkpoints made by llm-compressor and transformers, decoded by the letter of the format and compared.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::{Checkpoint, Folder, compressed_tensors as ct};
use octet_tensor::{Dtype, Matrix, Tensor, WeightSource, e4m3_to_f32};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The fixture `path` of the repository, or of the reference data beside it (`elsewhere`); says so when there is none.
fn fixture(path: &str, elsewhere: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [root.join("fixtures").join(path), root.join("../shared/reference/fixtures").join(elsewhere)];
    let found = places.into_iter().find(|place| place.join("config.json").exists());
    if found.is_none() {
        println!("skipped: there is no fixture {path}");
    }
    found
}

fn compressed(name: &str) -> Option<PathBuf> {
    let path = format!("compressed-tensors/{name}");
    fixture(&path, &path)
}

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(&Folder::disk(dir).unwrap()).unwrap()
}

fn tensor(checkpoint: &Checkpoint, name: String) -> Tensor {
    checkpoint.tensor(&name).unwrap().unwrap_or_else(|| panic!("{name} is missing"))
}

/// Bit `at` of a stream of little-endian words.
fn bit(bytes: &[u8], at: usize) -> i32 {
    i32::from(bytes[at / 8] >> (at % 8) & 1)
}

/// The weights of a module by the formula W = (q − z) · scale, one bit at a time.
fn by_the_letter(checkpoint: &Checkpoint, module: &str, bits: usize, rows: usize, cols: usize) -> Vec<f32> {
    let scale = tensor(checkpoint, format!("{module}.weight_scale"));
    let (scales, groups) = (scale.to_f32().unwrap(), scale.shape()[1]);
    let size = cols.div_ceil(groups);
    let zeros = checkpoint.tensor(&format!("{module}.weight_zero_point")).unwrap();
    let packed = checkpoint.tensor(&format!("{module}.weight_packed")).unwrap();
    let plain = checkpoint.tensor(&format!("{module}.weight")).unwrap();
    let middle = 1 << (bits - 1);
    let mut out = vec![];
    for row in 0..rows {
        for col in 0..cols {
            let code = match (&packed, &plain) {
                (Some(packed), _) => {
                    let start = row * packed.shape()[1] * 32 + col * bits;
                    (0..bits).map(|b| bit(packed.bytes(), start + b) << b).sum::<i32>() - middle
                }
                (None, Some(plain)) => i32::from(plain.bytes()[row * cols + col] as i8),
                (None, None) => panic!("{module} has no codes"),
            };
            let zero = zeros.as_ref().map_or(0, |zeros| {
                // Packed along the rows: bit b of row r is bit (r · bits + b) mod 32 of word ⌊(r · bits + b) / 32⌋ of the column.
                let at = |b: usize| ((row * bits + b) / 32 * groups + col / size) * 32 + (row * bits + b) % 32;
                (0..bits).map(|b| bit(zeros.bytes(), at(b)) << b).sum::<i32>() - middle
            });
            out.push(scales[row * groups + col / size] * (code - zero) as f32);
        }
    }
    out
}

#[test]
fn checkpoints_of_llm_compressor_decode_to_the_letter_and_encode_to_the_byte() {
    let cases = [
        ("w4a16-gptq-asym", "w4a16-g64-asym", 4),
        ("w4a16-awq-asym", "w4a16-g128-asym", 4),
        ("w4a16-gptq-sym", "w4a16-g128", 4),
        ("w8a16-rtn-channel", "w8a16", 8),
        ("w8a8-rtn", "w8a8", 8),
        ("w8a8-smoothquant", "w8a8", 8),
    ];
    for (name, scheme, bits) in cases {
        let Some(dir) = compressed(name) else { continue };
        let checkpoint = open(&dir);
        let quantization = checkpoint.quantization().unwrap();
        assert_eq!(quantization.main_scheme(), Some(scheme.parse().unwrap()), "{name}");
        assert!(quantization.modules.contains_key("model.layers.0.mlp.down_proj") && !quantization.modules.contains_key("lm_head"));
        for (module, scheme) in &quantization.modules {
            let matrix = checkpoint.matrix(module).unwrap().unwrap();
            let (rows, cols) = (matrix.rows(), matrix.cols());
            let mut out = vec![0.0; rows * cols];
            matrix.read_rows_f32(0..rows, &mut out).unwrap();
            assert_eq!(out, by_the_letter(&checkpoint, module, bits, rows, cols), "{name} {module}");
            assert!(out.iter().any(|&v| v != 0.0));
            let Matrix::Quant(stored) = matrix else { panic!("{module} is not quantized") };
            let q = stored.read_rows(0..rows).unwrap();
            for spec in ct::tensor_specs(module, rows, cols, *scheme, q.scale_dtype()) {
                let stored = tensor(&checkpoint, spec.name);
                assert_eq!((stored.dtype(), stored.shape()), (spec.dtype, &spec.shape[..]), "{}", stored.name());
            }
            for piece in ct::encode_rows(module, &q, 0, rows, *scheme).unwrap() {
                assert_eq!(piece.bytes, **tensor(&checkpoint, piece.tensor.clone()).bytes(), "{name} {}", piece.tensor);
            }
        }
        assert!(matches!(checkpoint.matrix("model.embed_tokens").unwrap(), Some(Matrix::Float(_))));
    }
}

#[test]
fn the_config_written_has_the_keys_and_values_of_the_tool() {
    for name in ["w4a16-gptq-asym", "w4a16-gptq-sym", "w8a16-rtn-channel", "w8a8-rtn"] {
        let Some(dir) = compressed(name) else { continue };
        let checkpoint = open(&dir);
        let theirs = &checkpoint.quantization().unwrap().config;
        let modules: Vec<_> = checkpoint.quantization().unwrap().modules.clone().into_iter().collect();
        let ours = ct::quantization_config(&modules, &["lm_head".into()]);
        // What the solver noted about itself, and the version, differ.
        let strip = |config: &serde_json::Value| {
            let mut config = config.clone();
            config.as_object_mut().unwrap().remove("version").unwrap();
            for side in ["weights", "input_activations"] {
                let args = &mut config["config_groups"]["group_0"][side];
                if let Some(args) = args.as_object_mut() {
                    args.insert("observer".into(), serde_json::Value::Null);
                    args.insert("actorder".into(), serde_json::Value::Null);
                }
            }
            config
        };
        assert_eq!(strip(&ours), strip(theirs), "{name}");
    }
}

#[test]
fn fp8_checkpoints_are_float_sources() {
    let cases = [
        (compressed("fp8-block"), "weight_scale", 128),
        (compressed("fp8-dynamic"), "weight_scale", 1),
        (fixture("fp8-block/qwen3-mult128", "fp8-block-transformers/qwen3-mult128"), "weight_scale_inv", 128),
    ];
    for (dir, suffix, block) in cases {
        let Some(dir) = dir else { continue };
        let checkpoint = open(&dir);
        assert!(checkpoint.quantization().is_none());
        let mut count = 0;
        for entry in checkpoint.entries().iter().filter(|entry| entry.dtype == Dtype::F8E4m3) {
            let module = entry.name.strip_suffix(".weight").unwrap();
            let (weight, scale) = (entry.tensor().unwrap(), tensor(&checkpoint, format!("{module}.{suffix}")));
            let (scales, per_row) = (scale.to_f32().unwrap(), scale.shape()[1]);
            let matrix = checkpoint.matrix(module).unwrap().unwrap();
            let (rows, cols) = (matrix.rows(), matrix.cols());
            let mut out = vec![0.0; rows * cols];
            matrix.read_rows_f32(0..rows, &mut out).unwrap();
            for (i, &value) in out.iter().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let group = if per_row == 1 { 0 } else { col / 128 };
                assert_eq!(value, e4m3_to_f32(weight.bytes()[i]) * scales[row / block * per_row + group], "{} {i}", entry.name);
            }
            count += 1;
        }
        assert!(count > 0, "{} has no FP8 weights", dir.display());
    }
}

#[test]
fn other_formats_are_refused_by_name() {
    let cases = [
        (json!({"quant_method": "hqq"}), "HQQ"),
        (json!({"quant_method": "auto-round"}), "AutoRound"),
        (json!({"quant_method": "unheard-of"}), "does not know this method"),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}), "marlin"),
        (json!({"quant_method": "gptq", "bits": 9, "group_size": 128}), "expected 2 to 8"),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "positive"),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}), "gemv"),
        (json!({"quant_method": "awq", "bits": 3, "group_size": 128}), "3 bits"),
    ];
    for (config, expected) in cases {
        let message = octet_formats::quantization::parse(&json!({"quantization_config": config})).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let mlx = octet_formats::quantization::parse(&json!({"quantization": {"bits": 4, "group_size": 16, "mode": "nvfp4"}}));
    assert!(mlx.unwrap_err().to_string().contains("nvfp4"));
}

#[test]
fn token_ids_and_logits_read() {
    let Some(dir) = compressed("w8a8-rtn") else { return };
    let (shape, ids) = octet_formats::npy::read_i64(&std::fs::read(dir.join("input_ids.npy")).unwrap()).unwrap();
    let (out, logits) = octet_formats::npy::read_f32(&std::fs::read(dir.join("logits.npy")).unwrap()).unwrap();
    assert_eq!(out[..2], shape[..]);
    assert_eq!(logits.len(), out.iter().product::<usize>());
    assert!(ids.iter().all(|&id| (0..out[2] as i64).contains(&id)) && logits.iter().all(|v| v.is_finite()));
}
