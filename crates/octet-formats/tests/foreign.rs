//! Checkpoints as other tools lay them out: every width decodes to the letter, and files that lie are refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_formats::{Checkpoint, Folder};
use octet_tensor::{Bytes, Matrix, WeightSource};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A tensor to be stored: name, element type, shape and bytes.
type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

fn folder(config: &Value, tensors: &[Stored]) -> Folder {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string().into_bytes();
    let file = [(header.len() as u64).to_le_bytes().as_slice(), &header, &data].concat();
    let config = Bytes::new(config.to_string().into_bytes());
    Folder::memory("x", vec![("config.json".into(), config), ("model.safetensors".into(), Bytes::new(file))])
}

/// Appends `value` of `bits` bits at bit `at` of a stream.
fn put(stream: &mut [u8], at: usize, bits: usize, value: u32) {
    (0..bits).for_each(|b| stream[(at + b) / 8] |= ((value >> b & 1) as u8) << ((at + b) % 8));
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
}

/// Numbers that look random: value i of stream s, below `n`.
fn number(stream: u32, i: usize, n: u32) -> u32 {
    (i as u32).wrapping_mul(2_654_435_761).wrapping_add(stream.wrapping_mul(40_503)).rotate_left(13) % n
}

/// A matrix `[rows, cols]` in groups of `size` as GPTQ stores it, and what it stands for.
fn gptq(bits: usize, version: u32, symmetric: bool, ordered: bool) -> (Folder, Vec<f32>) {
    let (rows, cols, size) = (32, 96, 32);
    let groups = cols / size;
    let code = |row: usize, col: usize| number(1, row * cols + col, 1 << bits);
    let zero = |row: usize, group: usize| if symmetric { 1 << (bits - 1) } else { number(2, row * groups + group, 1 << bits) };
    let group_of = |col: usize| if ordered { col % groups } else { col / size };
    let scales: Vec<f32> = (0..groups * rows).map(|i| (1 + number(3, i, 64)) as f32 / 1024.0).collect();
    let (mut codes, mut zeros) = (vec![0u8; cols * bits / 8 * rows], vec![0u8; groups * rows * bits / 8]);
    for row in 0..rows {
        // Column `row` of words is a stream along the inputs.
        let mut stream = vec![0u8; cols * bits / 8];
        (0..cols).for_each(|col| put(&mut stream, col * bits, bits, code(row, col)));
        stream.chunks(4).enumerate().for_each(|(w, word)| codes[(w * rows + row) * 4..][..4].copy_from_slice(word));
        for group in 0..groups {
            let stored = zero(row, group).wrapping_sub(u32::from(version == 1)) & ((1 << bits) - 1);
            put(&mut zeros[group * rows * bits / 8..], row * bits, bits, stored);
        }
    }
    let order: Vec<u8> = (0..cols).flat_map(|col| (group_of(col) as i32).to_le_bytes()).collect();
    let value = |row: usize, col: usize| {
        let group = group_of(col);
        scales[group * rows + row] * (code(row, col) as f32 - zero(row, group) as f32)
    };
    let expected = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(row, col)| value(row, col)).collect();
    let format = if version == 1 { "gptq" } else { "gptq_v2" };
    let config = json!({"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "checkpoint_format": format}});
    let tensors = [
        ("m.qweight".into(), "I32", vec![cols * bits / 32, rows], codes),
        ("m.qzeros".into(), "I32", vec![groups, rows * bits / 32], zeros),
        ("m.scales".into(), "F16", vec![groups, rows], halves(&scales)),
        ("m.g_idx".into(), "I32", vec![cols], order),
    ];
    (folder(&config, &tensors), expected)
}

fn read(folder: &Folder) -> (Vec<f32>, bool) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let matrix = checkpoint.matrix("m").unwrap().unwrap();
    let mut out = vec![0.0; matrix.rows() * matrix.cols()];
    // In pieces that begin anywhere.
    for (start, end) in [(0, 5), (5, 16), (16, matrix.rows())] {
        matrix.read_rows_f32(start..end, &mut out[start * matrix.cols()..end * matrix.cols()]).unwrap();
    }
    (out, matches!(matrix, Matrix::Quant(_)))
}

#[test]
fn gptq_of_every_width_version_and_order() {
    for bits in [2, 3, 4, 5, 6, 7, 8] {
        for (version, symmetric, ordered) in [(1, true, false), (1, false, false), (2, false, false), (2, true, true), (1, false, true)] {
            let (folder, expected) = gptq(bits, version, symmetric, ordered);
            let (found, is_codes) = read(&folder);
            assert_eq!(found, expected, "{bits} bits, version {version}, symmetric {symmetric}, ordered {ordered}");
            assert_eq!(is_codes, !ordered);
            assert_eq!(Checkpoint::open(&folder).unwrap().decoded().contains_key("m"), ordered);
        }
    }
}

#[test]
fn zero_points_that_contradict_the_config_are_refused() {
    let (folder, _) = gptq(4, 2, false, false);
    let config = json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true}});
    let files = vec![
        ("config.json".into(), Bytes::new(config.to_string().into_bytes())),
        ("model.safetensors".into(), folder.read("model.safetensors").unwrap().unwrap()),
    ];
    let checkpoint = Checkpoint::open(&Folder::memory("x", files)).unwrap();
    let error = checkpoint.matrix("m").unwrap().unwrap().read_rows_f32(0..32, &mut vec![0.0; 32 * 96]).unwrap_err().to_string();
    assert!(error.contains("m.qzeros") && error.contains("sym"), "{error}");
}

/// A matrix as MLX stores it, and what it stands for.
fn mlx(bits: usize, size: usize) -> (Folder, Vec<f32>) {
    let (rows, cols) = (17, 2 * size.max(32));
    let code = |i: usize| number(5, i, 1 << bits);
    let mut codes = vec![0u8; rows * cols * bits / 8];
    (0..rows * cols).for_each(|i| put(&mut codes, i * bits, bits, code(i)));
    let groups = cols / size;
    let of = |stream: u32| (0..rows * groups).map(|i| (number(stream, i, 200) as f32 - 90.0) / 512.0).collect::<Vec<f32>>();
    let (scales, biases) = (of(6), of(7));
    let expected = (0..rows * cols).map(|i| scales[i / size] * code(i) as f32 + biases[i / size]).collect();
    let config = json!({"quantization": {"bits": 4, "group_size": 64, "m": {"bits": bits, "group_size": size}}});
    let tensors = [
        ("m.weight".into(), "U32", vec![rows, cols * bits / 32], codes),
        ("m.scales".into(), "F16", vec![rows, groups], halves(&scales)),
        ("m.biases".into(), "F16", vec![rows, groups], halves(&biases)),
    ];
    (folder(&config, &tensors), expected)
}

#[test]
fn mlx_of_every_width_and_group() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for size in [32, 64, 128] {
            let (folder, expected) = mlx(bits, size);
            assert_eq!(read(&folder), (expected, false), "{bits} bits, groups of {size}");
        }
    }
}

#[test]
fn activation_order_of_compressed_tensors_is_decoded() {
    let (rows, cols) = (16, 64);
    let mut codes = vec![0u8; rows * cols / 2];
    (0..rows * cols).for_each(|i| put(&mut codes, i * 4, 4, number(8, i, 16)));
    let scales: Vec<f32> = (0..rows * 2).map(|i| (1 + i) as f32 / 64.0).collect();
    let order: Vec<u8> = (0..cols).flat_map(|col| ((col % 2) as i32).to_le_bytes()).collect();
    let group = json!({"targets": ["Linear"], "format": "pack-quantized", "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32, "actorder": "group"}});
    let config = json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}, "ignore": []}});
    let shape = [rows as i64, cols as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
    let tensors = [
        ("m.weight_packed".into(), "I32", vec![rows, cols / 8], codes),
        ("m.weight_scale".into(), "F16", vec![rows, 2], halves(&scales)),
        ("m.weight_shape".into(), "I64", vec![2], shape),
        ("m.weight_g_idx".into(), "I32", vec![cols], order),
    ];
    let value = |i: usize| scales[i / cols * 2 + i % 2] * (number(8, i, 16) as f32 - 8.0);
    assert_eq!(read(&folder(&config, &tensors)), ((0..rows * cols).map(value).collect(), false));
}

/// A small sound checkpoint of every format: config and tensors.
fn seeds() -> Vec<(Value, Vec<Stored>)> {
    let one = |name: &str, dtype, shape: &[usize], size: usize| -> Stored {
        (name.into(), dtype, shape.to_vec(), vec![0x11; shape.iter().product::<usize>() * size])
    };
    let state = br#"{"quant_type":"nf4","blocksize":64,"dtype":"float32","shape":[32,64],"nested_blocksize":256,"nested_offset":0.1}"#;
    let group = |format: &str, weights: Value| {
        let group = json!({"targets": ["Linear"], "format": format, "weights": weights});
        json!({"quantization_config": {"quant_method": "compressed-tensors", "format": format, "config_groups": {"g": group}}})
    };
    let fp4 = json!({"num_bits": 4, "type": "float", "symmetric": true, "strategy": "group", "group_size": 32});
    vec![
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false}}),
            vec![
                one("m.qweight", "I32", &[8, 32], 4),
                one("m.qzeros", "I32", &[2, 4], 4),
                one("m.scales", "F16", &[2, 32], 2),
                ("m.g_idx".into(), "I32", vec![64], (0..64i32).flat_map(|i| (i / 32).to_le_bytes()).collect()),
            ],
        ),
        (
            json!({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}),
            vec![one("m.qweight", "I32", &[64, 4], 4), one("m.qzeros", "I32", &[2, 4], 4), one("m.scales", "F16", &[2, 32], 2)],
        ),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}),
            vec![
                one("m.weight", "I8", &[32, 64], 1),
                one("m.SCB", "F32", &[32], 4),
                one("n.weight", "U8", &[1024, 1], 1),
                one("n.weight.absmax", "U8", &[32], 1),
                one("n.weight.quant_map", "F32", &[16], 4),
                one("n.weight.nested_absmax", "F32", &[1], 4),
                one("n.weight.nested_quant_map", "F32", &[256], 4),
                ("n.weight.quant_state.bitsandbytes__nf4".into(), "U8", vec![state.len()], state.to_vec()),
            ],
        ),
        (
            json!({"quantization": {"bits": 4, "group_size": 32}}),
            vec![one("m.weight", "U32", &[32, 8], 4), one("m.scales", "F16", &[32, 2], 2), one("m.biases", "F16", &[32, 2], 2)],
        ),
        (
            json!({"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}}),
            vec![
                one("m._weight_qdata", "I8", &[32, 64], 1),
                one("m._weight_scale", "F32", &[32, 2], 4),
                ("m._weight_zero_point".into(), "I8", vec![32, 2], vec![0; 64]),
            ],
        ),
        (
            group("mxfp4-pack-quantized", fp4.clone()),
            vec![one("m.weight_packed", "U8", &[32, 32], 1), one("m.weight_scale", "U8", &[32, 2], 1)],
        ),
        (
            group("nvfp4-pack-quantized", fp4),
            vec![
                one("m.weight_packed", "U8", &[32, 32], 1),
                one("m.weight_scale", "F8_E4M3", &[32, 4], 1),
                one("m.weight_global_scale", "F32", &[1], 4),
            ],
        ),
    ]
}

/// Opens a folder and reads what it has; sentences are as good as numbers.
fn exercise(folder: &Folder) -> Result<usize, String> {
    let checkpoint = Checkpoint::open(folder).map_err(|e| e.to_string())?;
    let mut read = 0;
    for module in ["m", "n"] {
        let Some(matrix) = checkpoint.matrix(module).map_err(|e| e.to_string())? else { continue };
        let mut out = vec![0.0; matrix.rows().min(64) * matrix.cols().min(1 << 20)];
        if matrix.cols() <= 1 << 20 {
            matrix.read_rows_f32(0..matrix.rows().min(64), &mut out).map_err(|e| e.to_string())?;
        }
        read += 1;
    }
    Ok(read)
}

#[test]
fn every_seed_is_sound() {
    for (config, tensors) in seeds() {
        assert!(exercise(&folder(&config, &tensors)).unwrap() > 0, "{config}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_checkpoint_that_lies_never_panics(seed in 0usize..7, which in 0usize..8, what in 0u8..6, amount in 0usize..70, byte in any::<u8>()) {
        let (mut config, mut tensors) = seeds().swap_remove(seed);
        let at = which % tensors.len();
        match what {
            0 => drop(tensors.remove(at)),
            1 => tensors[at].1 = ["I8", "U8", "I32", "F32", "F16", "F8_E4M3"][amount % 6],
            2 => {
                let axis = amount % tensors[at].2.len();
                tensors[at].2[axis] = [0, 1, 3, 1 << 20, usize::MAX / 2][amount % 5];
            }
            3 => {
                let len = tensors[at].3.len();
                tensors[at].3[amount % len] = byte;
            }
            4 => tensors[at].2.push(amount % 3),
            _ => {
                let text = config.to_string().replace(["32", "4", "64"][amount % 3], &byte.to_string());
                config = serde_json::from_str(&text).unwrap_or(config);
            }
        }
        let _ = exercise(&folder(&config, &tensors));
    }
}
