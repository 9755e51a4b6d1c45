//! Quantized matrices written and read back: codes, scales, zero points and schemes must survive exactly.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::{
    Checkpoint, Folder, compressed_tensors as ct,
    safetensors::{TensorSpec, Writer},
};
use octet_tensor::{Activations, Alphabet, Beside, Dtype, Matrix, QMatrix, RowFactor, Scheme, Symmetry, Table, WeightSource};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// A matrix of pseudo-random codes, scales and zero points.
fn random(rows: usize, cols: usize, scheme: Scheme, dtype: Dtype, seed: u64) -> QMatrix {
    let weights = scheme.weights;
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as i32
    };
    let width = 1 << weights.bits.get();
    let mut code = move || (next().rem_euclid(width) + weights.bits.min_code()) as i8;
    let alphabet = match weights.symmetry {
        Symmetry::Learnt => Alphabet::Table(Table::new(std::array::from_fn(|i| (15 * i as i32 - 120 + i32::from(code())) as i8)).unwrap()),
        _ => weights.alphabet(),
    };
    let mut codes: Vec<i8> = (0..rows * cols).map(|_| code()).collect();
    alphabet.read(&mut codes);
    let groups = rows * weights.groups(cols);
    let row = weights.groups(cols).max(1);
    let mut scales: Vec<f32> = (0..groups).map(|_| dtype.round((f32::from(code()) + 0.3) / 77.0)).collect();
    if weights.has_whole_scales() {
        for (i, scales) in scales.chunks_mut(row).enumerate() {
            let factor = RowFactor::reaching(0.37 * (1 + i % 7) as f32, dtype);
            scales.iter_mut().for_each(|scale| *scale = factor.round(*scale));
        }
    }
    let zeros = if weights.is_asymmetric() { (0..groups).map(|_| code()).collect() } else { vec![] };
    QMatrix::spelt(alphabet, (rows, cols), weights, codes, scales, dtype, zeros).unwrap()
}

fn rows_of(q: &QMatrix, scheme: Scheme, rows: std::ops::Range<usize>) -> QMatrix {
    octet_tensor::QuantRows::read_rows(&(q.clone(), scheme), rows).unwrap()
}

/// Writes modules in chunks of `chunk` rows, last chunk first.
fn write(dir: &Path, modules: &[(&str, QMatrix, Scheme)], plain: &[TensorSpec], chunk: usize, config: Value) {
    fs::write(dir.join("config.json"), json!({ "quantization_config": config }).to_string()).unwrap();
    let mut specs = plain.to_vec();
    for (module, q, scheme) in modules {
        specs.extend(ct::tensor_specs(module, q.rows(), q.cols(), *scheme, q.scale_dtype()));
        specs.extend(q.order().map(|_| ct::order_spec(module, q.cols())));
    }
    let mut writer = Writer::create(dir, specs, 500, &BTreeMap::new()).unwrap();
    for spec in plain {
        writer.write(&spec.name, 0, &vec![0; spec.bytes().unwrap() as usize]).unwrap();
    }
    for (module, q, scheme) in modules {
        let starts: Vec<usize> = (0..q.rows()).step_by(chunk).collect();
        for &start in starts.iter().rev() {
            let part = rows_of(q, *scheme, start..q.rows().min(start + chunk));
            for piece in ct::encode_rows(module, &part, start, q.rows(), *scheme).unwrap() {
                writer.write(&piece.tensor, piece.offset, &piece.bytes).unwrap();
            }
        }
    }
    writer.finish().unwrap();
}

fn open(dir: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(&Folder::disk(dir).unwrap()).map_err(|e| e.to_string())
}

fn stored(checkpoint: &Checkpoint, module: &str) -> octet_tensor::StoredQuant {
    match checkpoint.matrix(module).unwrap() {
        Some(Matrix::Quant(stored)) => stored,
        other => panic!("{module} is {other:?}"),
    }
}

fn every_scheme() -> Vec<Scheme> {
    let mut all = vec![];
    for bits in 2..=8 {
        for granularity in ["pc", "g32", "g64", "g128", "g256"] {
            for symmetry in ["sym", "asym"] {
                for (acts, tail) in [("16", ""), ("8", ""), ("8", "-ag32"), ("8", "-ag128")] {
                    all.push(format!("w{bits}a{acts}-{granularity}-{symmetry}{tail}").parse().unwrap());
                }
            }
        }
    }
    let octets = [
        "w4ta16-g32",
        "w4ta8-pc",
        "w4ta8-g64-ag32",
        "w4la16-g32",
        "w4la8-pc",
        "w4la16-g16-s8",
        "w4ta16-g16-s8",
        "w4a16-g32-s8",
        "w3a8-g64-asym-s8",
        "w8a8-g32-s8",
    ];
    all.extend(octets.map(|text| text.parse::<Scheme>().unwrap()));
    all
}

/// Points of a lattice are of eight inputs, which no ragged row has.
#[test]
fn points_of_a_lattice_survive() {
    for text in ["w4ea16-g32", "w4ea8-pc", "w4ea16-g64-s8"] {
        let (dir, scheme) = (tempfile::tempdir().unwrap(), text.parse::<Scheme>().unwrap());
        let q = random(37, 72, scheme, Dtype::Bf16, 5);
        write(dir.path(), &[("m.0.a", q.clone(), scheme)], &[], 32, ct::quantization_config(&[("m.0.a".into(), scheme)], &[]));
        let back = stored(&open(dir.path()).unwrap(), "m.0.a");
        assert_eq!((back.scheme(), back.read_rows(0..37).unwrap()), (scheme, q), "{scheme}");
    }
}

#[test]
fn every_scheme_survives_with_its_activation_mode() {
    for scheme in every_scheme() {
        let dir = tempfile::tempdir().unwrap();
        let q = random(37, 70, scheme, Dtype::Bf16, 5);
        let module = "model.layers.0.mlp.up_proj";
        let config = ct::quantization_config(&[(module.into(), scheme)], &["lm_head".into()]);
        write(dir.path(), &[(module, q.clone(), scheme)], &[], 32, config);
        let checkpoint = open(dir.path()).unwrap();
        let back = stored(&checkpoint, module);
        assert_eq!((back.scheme(), back.rows(), back.cols()), (scheme, 37, 70), "{scheme}");
        assert_eq!(back.read_rows(0..37).unwrap(), q, "{scheme}");
        assert_eq!(back.slice_rows(5..36).unwrap().read_rows(1..9).unwrap(), rows_of(&q, scheme, 6..14), "{scheme}");
        let quantization = checkpoint.quantization().unwrap();
        assert_eq!(quantization.modules, BTreeMap::from([(module.to_string(), scheme)]));
        assert_eq!(quantization.main_scheme(), Some(scheme));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..Default::default() })]
    #[test]
    fn ragged_matrices_survive(rows in 1usize..100, cols in 1usize..300, which in 0usize..287, seed: u64, chunk in 1usize..4,
                               dtype in prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])) {
        let scheme = every_scheme()[which];
        let dir = tempfile::tempdir().unwrap();
        let q = random(rows, cols, scheme, dtype, seed);
        write(dir.path(), &[("m.0.a", q.clone(), scheme)], &[], 32 * chunk, ct::quantization_config(&[("m.0.a".into(), scheme)], &[]));
        let checkpoint = open(dir.path()).unwrap();
        let back = stored(&checkpoint, "m.0.a");
        prop_assert_eq!(back.scheme(), scheme);
        prop_assert_eq!(&back.read_rows(0..rows).unwrap(), &q);
        let mid = rows / 2;
        prop_assert_eq!(back.read_rows(mid..rows).unwrap(), rows_of(&q, scheme, mid..rows));
        prop_assert!(back.read_rows(0..rows + 1).is_err());
        let bytes: usize = checkpoint.entries().iter().filter(|e| !e.name.ends_with("shape")).map(|e| e.bytes).sum();
        prop_assert_eq!(back.stored_bytes(), bytes);
    }

    #[test]
    fn configs_never_panic(text in r#"\{("(quant_method|format|config_groups|ignore|targets|weights)":("[a-z:.*-]{0,9}"|null|\[\]|\{\}|[0-9]{1,20}),){0,4}"x":1\}"#) {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = octet_formats::quantization::parse(&json!({ "quantization_config": value }));
        }
    }
}

/// Sixteen ascending levels or a sentence.
#[test]
fn levels_of_a_matrix_are_checked_when_it_is_opened() {
    let (dir, scheme) = (tempfile::tempdir().unwrap(), "w4la16-g32".parse::<Scheme>().unwrap());
    let config = ct::quantization_config(&[("m.0.a".into(), scheme)], &[]);
    write(dir.path(), &[("m.0.a", random(32, 64, scheme, Dtype::F16, 3), scheme)], &[], 32, config);
    let head = |whole: &[u8]| -> (usize, Value) {
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        (header, serde_json::from_slice(&whole[8..header]).unwrap())
    };
    let shards =
        fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "safetensors");
    let of_levels = |path: &std::path::PathBuf| head(&fs::read(path).unwrap()).1.get("m.0.a.weight_levels").is_some();
    let file = shards.into_iter().find(of_levels).unwrap();
    let whole = fs::read(&file).unwrap();
    let (header, entries) = head(&whole);
    let first = header + entries["m.0.a.weight_levels"]["data_offsets"][0].as_u64().unwrap() as usize;
    for (at, level) in [(3, whole[first + 4]), (15, 128)] {
        let mut broken = whole.clone();
        broken[first + at] = level;
        fs::write(&file, broken).unwrap();
        let error = open(dir.path()).unwrap().matrix("m.0.a").unwrap_err().to_string();
        assert!(error.contains("m.0.a.weight_levels") && error.contains("sixteen ascending levels"), "{error}");
    }
}

#[test]
fn outlier_columns_survive_beside_the_codes() {
    let (rows, cols) = (70, 120);
    for (text, dtype) in [("w8a8-c1.5", Dtype::Bf16), ("w4a8-g32-asym-c2", Dtype::F16)] {
        let (dir, scheme) = (tempfile::tempdir().unwrap(), text.parse::<Scheme>().unwrap());
        let Activations::Int8Beside(share) = scheme.activations else { panic!("{scheme}") };
        let columns: Vec<u32> = (0..share.columns(cols) as u32).map(|i| 7 + 40 * i).collect();
        let values = (0..rows * columns.len()).map(|i| dtype.round(0.37 * i as f32 - 9.0)).collect();
        let q = random(rows, cols, scheme, dtype, 3).with_beside(Beside::new(columns.into(), values)).unwrap();
        write(dir.path(), &[("m.0.a", q.clone(), scheme)], &[], 32, ct::quantization_config(&[("m.0.a".into(), scheme)], &[]));
        let checkpoint = open(dir.path()).unwrap();
        let back = stored(&checkpoint, "m.0.a");
        assert_eq!((back.scheme(), back.read_rows(0..rows).unwrap()), (scheme, q.clone()));
        let beside = back.slice_rows(33..69).unwrap().beside().unwrap().unwrap();
        assert_eq!(beside, q.beside().unwrap().slice_rows(33..69));
        let plain = random(rows, cols, scheme, dtype, 3);
        let error = ct::encode_rows("m.0.a", &plain, 0, rows, scheme).unwrap_err().to_string();
        assert!(error.contains("outlier columns"), "{error}");
    }
}

#[test]
fn factors_of_whole_scales_are_checked() {
    let scheme = "w4ta16-g16-s8".parse::<Scheme>().unwrap();
    let q = random(40, 64, scheme, Dtype::F16, 4);
    let config = ct::quantization_config(&[("m.0.a".into(), scheme)], &[]);
    assert_eq!(config["format"], "octet-scales");
    let read = |change: &dyn Fn(&mut Vec<octet_formats::write::Piece>)| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), json!({ "quantization_config": config }).to_string()).unwrap();
        let mut writer = Writer::create(dir.path(), ct::tensor_specs("m.0.a", 40, 64, scheme, Dtype::F16), 500, &BTreeMap::new()).unwrap();
        let mut pieces = ct::encode_rows("m.0.a", &q, 0, 40, scheme).unwrap();
        change(&mut pieces);
        pieces.iter().for_each(|piece| writer.write(&piece.tensor, piece.offset, &piece.bytes).unwrap());
        writer.finish().unwrap();
        stored(&open(dir.path()).unwrap(), "m.0.a").read_rows(0..40).map_err(|e| e.to_string())
    };
    fn bytes<'a>(pieces: &'a mut [octet_formats::write::Piece], end: &str) -> &'a mut Vec<u8> {
        &mut pieces.iter_mut().find(|piece| piece.tensor.ends_with(end)).unwrap().bytes
    }
    assert_eq!(read(&|_| {}).unwrap(), q);
    let infinite = read(&|pieces| bytes(pieces, "_factor")[..2].copy_from_slice(&[0, 0x7c])).unwrap_err();
    assert!(infinite.contains("m.0.a.weight_scale_factor: has a factor that is not finite"), "{infinite}");
    let beyond = read(&|pieces| bytes(pieces, "weight_scale")[..2].copy_from_slice(&[0x80, 0x7f])).unwrap_err();
    assert!(beyond.contains("no whole multiples"), "{beyond}");
}

#[test]
fn groups_in_an_order_survive_as_floats() {
    let (rows, cols, scheme) = (40, 96, "w4a16-g32-asym".parse::<Scheme>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let order: Vec<u32> = (0..cols as u32).map(|i| i * 7 % 96 / 32).collect();
    let q = random(rows, cols, scheme, Dtype::F16, 8).with_order(order.into()).unwrap();
    let ordered = ["m.0.a".to_string()].into();
    let config = ct::quantization_config_with_order(&[("m.0.a".into(), scheme), ("m.0.b".into(), scheme)], &ordered, &[]);
    let groups: Vec<_> = config["config_groups"].as_object().unwrap().values().map(|g| g["weights"]["actorder"].clone()).collect();
    assert_eq!(groups, [json!("group"), Value::Null]);
    let plain = random(8, 32, scheme, Dtype::F16, 9);
    write(dir.path(), &[("m.0.a", q.clone(), scheme), ("m.0.b", plain, scheme)], &[], 32, config);
    let Some(Matrix::Float(back)) = open(dir.path()).unwrap().matrix("m.0.a").unwrap() else { panic!("not decoded") };
    let mut out = vec![0.0; rows * cols];
    back.read_rows(0..rows, &mut out).unwrap();
    assert_eq!(out, q.dequantize());
}

#[test]
fn layouts_are_those_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let schemes: [(&str, &str); 3] = [("m.0.a", "w3a16-g32-asym"), ("m.0.b", "w8a8"), ("m.0.c", "w4a8-g32")];
    let modules: Vec<_> = schemes.map(|(m, s)| (m, random(40, 70, s.parse().unwrap(), Dtype::F16, 1), s.parse().unwrap())).into();
    let named: Vec<(String, Scheme)> = modules.iter().map(|(m, _, s)| (m.to_string(), *s)).collect();
    let config = ct::quantization_config(&named, &[]);
    assert_eq!(config["format"], "mixed-precision");
    assert_eq!(config["config_groups"]["group_1"]["format"], "int-quantized");
    write(dir.path(), &modules, &[], 32, config);
    let checkpoint = open(dir.path()).unwrap();
    let found: Vec<(&str, Dtype, &[usize])> = checkpoint.entries().iter().map(|e| (e.name.as_str(), e.dtype, &e.shape[..])).collect();
    let expected: [(&str, Dtype, &[usize]); 9] = [
        ("m.0.a.weight_packed", Dtype::I32, &[40, 7]),
        ("m.0.a.weight_scale", Dtype::F16, &[40, 3]),
        ("m.0.a.weight_shape", Dtype::I64, &[2]),
        ("m.0.a.weight_zero_point", Dtype::I32, &[4, 3]),
        ("m.0.b.weight", Dtype::I8, &[40, 70]),
        ("m.0.b.weight_scale", Dtype::F16, &[40, 1]),
        ("m.0.c.weight_packed", Dtype::I32, &[40, 9]),
        ("m.0.c.weight_scale", Dtype::F16, &[40, 3]),
        ("m.0.c.weight_shape", Dtype::I64, &[2]),
    ];
    assert_eq!(found, expected);
}

#[test]
fn one_scheme_targets_linear_and_embeddings_have_groups_of_their_own() {
    let scheme = |text: &str| text.parse::<Scheme>().unwrap();
    let block = |i: usize, text: &str| (format!("model.layers.{i}.mlp.up_proj"), scheme(text));
    let ignore = ["lm_head".to_string(), "model.layers.0.mlp.gate".into()];
    let config = ct::quantization_config(&[block(0, "w4a16"), block(1, "w4a16")], &ignore);
    assert_eq!(config["config_groups"].as_object().unwrap().len(), 1);
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["Linear"]));
    assert_eq!((&config["ignore"], &config["format"]), (&json!(ignore), &json!("pack-quantized")));
    let own = [block(0, "w8a8"), ("model.embed_tokens".into(), scheme("w8a16")), ("lm_head".into(), scheme("w8a16"))];
    let config = ct::quantization_config(&own, &ignore);
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["Linear"]));
    assert_eq!(config["config_groups"]["group_1"]["targets"], json!(["re:.*embed_tokens$", "lm_head"]));
    assert_eq!((&config["ignore"], &config["format"]), (&json!(["model.layers.0.mlp.gate"]), &json!("mixed-precision")));
    let mixed = ct::quantization_config(&[block(0, "w4a16"), block(1, "w8a16")], &[]);
    assert_eq!(mixed["config_groups"]["group_1"]["targets"], json!(["model.layers.1.mlp.up_proj"]));
    assert_eq!(mixed["format"], "pack-quantized");
}

#[test]
fn embeddings_head_and_mixed_blocks_resolve_to_their_own_schemes() {
    let dir = tempfile::tempdir().unwrap();
    let named = [("model.layers.0.a", "w4a16-g32"), ("model.layers.1.a", "w8a8"), ("model.embed_tokens", "w8a16"), ("lm_head", "w6a16")];
    let modules: Vec<_> = named.map(|(m, s)| (m, random(64, 32, s.parse().unwrap(), Dtype::Bf16, 3), s.parse().unwrap())).into();
    let schemes: Vec<(String, Scheme)> = modules.iter().map(|(m, _, s)| (m.to_string(), *s)).collect();
    let norm = TensorSpec { name: "model.layers.0.norm.weight".into(), dtype: Dtype::F32, shape: vec![32] };
    write(dir.path(), &modules, &[norm], 64, ct::quantization_config(&schemes, &["lm_head".into()]));
    let checkpoint = open(dir.path()).unwrap();
    for (module, q, scheme) in &modules {
        let back = stored(&checkpoint, module);
        assert_eq!((back.scheme(), back.read_rows(0..64).unwrap()), (*scheme, q.clone()), "{module}");
    }
    assert!(checkpoint.tensor("model.layers.0.norm.weight").unwrap().is_some());
}

#[test]
fn chunks_that_do_not_fit_the_packing_are_refused() {
    let scheme: Scheme = "w3a16-g32-asym".parse().unwrap();
    let q = random(40, 32, scheme, Dtype::F16, 1);
    let message = |first, total| ct::encode_rows("m", &q, first, total, scheme).unwrap_err().to_string();
    assert!(message(8, 48).contains("multiple of 32"));
    assert!(message(0, 64).contains("multiple of 32"));
    assert!(message(0, 39).contains("rows 0..40 of 39"));
    let other = ct::encode_rows("m", &q, 0, 40, "w4a16".parse().unwrap()).unwrap_err().to_string();
    assert!(other.contains("w3-g32-asym, expected w4-g128-sym"), "{other}");
}

/// Opens a small quantized checkpoint whose config was changed by `change`.
fn with_config(scheme: &str, change: impl Fn(&mut Value)) -> Result<Checkpoint, String> {
    let dir = tempfile::tempdir().unwrap();
    let scheme: Scheme = scheme.parse().unwrap();
    let mut config = ct::quantization_config(&[("m.0.a".into(), scheme)], &[]);
    change(&mut config);
    write(dir.path(), &[("m.0.a", random(32, 64, scheme, Dtype::F16, 1), scheme)], &[], 32, config);
    open(dir.path())
}

#[test]
fn configs_that_octet_cannot_run_are_refused_by_name() {
    let weights = |key: &'static str, value: Value| move |c: &mut Value| c["config_groups"]["group_0"]["weights"][key] = value.clone();
    let acts =
        |key: &'static str, value: Value| move |c: &mut Value| c["config_groups"]["group_0"]["input_activations"][key] = value.clone();
    let top = |key: &'static str, value: Value| move |c: &mut Value| c[key] = value.clone();
    type Change = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(&str, Change, &str)> = vec![
        ("w4a16", Box::new(weights("num_bits", json!(9))), "9 bits"),
        ("w4a16", Box::new(weights("type", json!("float"))), "\"float\""),
        ("w4a16", Box::new(weights("strategy", json!("block"))), "\"block\""),
        ("w4a16", Box::new(weights("group_size", json!(0))), "group_size Some(0)"),
        ("w4a16", Box::new(weights("num_bits", json!("four"))), "quantization arguments"),
        ("w8a8", Box::new(acts("dynamic", json!(false))), "dynamic: false"),
        ("w8a8", Box::new(acts("symmetric", json!(false))), "symmetric: false"),
        ("w8a8", Box::new(acts("num_bits", json!(4))), "4-bit int"),
        ("w8a8", Box::new(acts("strategy", json!("tensor"))), "\"tensor\""),
        ("w4a16", Box::new(|c| c["config_groups"]["group_0"]["format"] = json!("marlin-24")), "marlin-24"),
        ("w4a16", Box::new(|c| c["config_groups"]["group_0"]["targets"] = json!(["other"])), "no config group targets it"),
        ("w4a16", Box::new(|c| c["config_groups"]["group_0"]["targets"] = json!("Linear")), "expected a list"),
        ("w4a16", Box::new(|c| c["config_groups"]["group_0"]["format"] = json!("int-quantized")), "m.0.a.weight_packed holds I32"),
        ("w4a16", Box::new(top("ignore", json!(["re:.*a$"]))), "no config group targets it"),
        ("w4a16", Box::new(top("config_groups", Value::Null)), "config_groups"),
        ("w4a16", Box::new(top("transform_config", json!({"config_groups": {}}))), "transform_config"),
        ("w4a16", Box::new(top("kv_cache_scheme", json!({"num_bits": 8}))), "kv_cache_scheme"),
        (
            "w4a16",
            Box::new(top("quant_method", json!("gptq"))),
            "quantized with gptq: its checkpoint_format \"pack-quantized\" is the layout of a GPU",
        ),
        ("w4a16", Box::new(top("quant_method", json!("novel"))), "does not know this method"),
        ("w4a16", Box::new(|c| *c = Value::Null), "describes no compressed-tensors"),
    ];
    for (scheme, change, expected) in cases {
        let message = with_config(scheme, change).unwrap_err();
        assert!(message.contains(expected), "{message}\n  lacks {expected}");
    }
}

#[test]
fn spellings_of_other_tools_read_alike() {
    let is = |scheme: &str, change: &dyn Fn(&mut Value)| {
        let found = stored(&with_config(scheme, change).unwrap(), "m.0.a").scheme();
        assert_eq!(found, scheme.parse().unwrap());
    };
    is("w8a8", &|c| c["config_groups"]["group_0"]["format"] = json!("naive-quantized"));
    is("w4a16-g32", &|c| {
        c["config_groups"]["group_0"].as_object_mut().unwrap().remove("format");
    });
    is("w4a16-pc", &|c| {
        c["config_groups"]["group_0"]["weights"] = json!({"num_bits": 4, "group_size": -1});
    });
    is("w4a16-g32", &|c| c["config_groups"]["group_0"]["targets"] = json!(["re:.*\\.a$", "re:.*other"]));
    is("w4a16-g32", &|c| c["config_groups"]["group_0"]["weights"]["strategy"] = Value::Null);
}

#[test]
fn tensors_that_do_not_fit_their_scheme_are_refused_by_name() {
    let refused = |scheme: &str, change: &dyn Fn(&mut Value), expected: &str| {
        let message = with_config(scheme, change).unwrap().matrix("m.0.a").unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\n  lacks {expected}");
    };
    let bits = |n: u32| move |c: &mut Value| c["config_groups"]["group_0"]["weights"]["num_bits"] = json!(n);
    refused("w4a16-g32", &bits(5), "m.0.a.weight_packed has shape [32, 8], expected [32, 10]");
    refused(
        "w4a16-g32",
        &|c| c["config_groups"]["group_0"]["weights"]["group_size"] = json!(16),
        "m.0.a.weight_scale has shape [32, 2], expected [32, 4]",
    );
    refused("w4a16-g32", &|c| c["config_groups"]["group_0"]["weights"]["symmetric"] = json!(false), "m.0.a.weight_zero_point is missing");
    let narrow = with_config("w8a8", bits(4)).unwrap();
    let message = stored(&narrow, "m.0.a").read_rows(0..32).unwrap_err().to_string();
    assert!(message.contains("m.0.a") && message.contains("outside -8..=7"), "{message}");
}
