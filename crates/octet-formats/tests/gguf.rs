//! Blocks of every GGUF type against what the gguf package decodes, and files that lie.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_formats::{
    Checkpoint, Folder,
    gguf::{Binding, BlockType, Change, File, Meta, NewTensor, Writer, encode, parse_header},
};
use octet_tensor::{BlockCode, BlockRows, Bytes, LEVELS, Levels, Matrix, RunOffsets, RunScales, WeightSource};
use proptest::prelude::*;
use std::path::Path;

fn blocks() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/blocks.gguf")).unwrap()
}

fn checkpoint(file: &File, change: Change) -> octet_formats::Result<Checkpoint> {
    let names: Vec<String> = file.tensors().map(|(name, ..)| name.to_string()).collect();
    let bind = |tensor: String| Binding { name: format!("{tensor}.weight"), tensor, change, part: None };
    let config = ("config.json".to_string(), Bytes::new(b"{}".to_vec()));
    Checkpoint::open(&Folder::gguf("blocks", vec![config], file, &names.into_iter().map(bind).collect::<Vec<_>>())?)
}

fn values(checkpoint: &Checkpoint, module: &str) -> (Vec<f32>, bool) {
    let matrix = checkpoint.matrix(module).unwrap().unwrap();
    let mut out = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows_f32(0..matrix.rows(), &mut out).unwrap();
    (out, matches!(matrix, Matrix::Quant(_)))
}

#[test]
fn every_type_decodes_as_the_gguf_package_does() {
    let checkpoint = checkpoint(&File::from_bytes("blocks.gguf", Bytes::new(blocks())).unwrap(), Change::None).unwrap();
    let integer = ["Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"];
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"] {
        let (found, is_codes) = values(&checkpoint, name);
        let expected = values(&checkpoint, &format!("{name}.f32")).0;
        let worst = found.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        let largest = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
        assert!(worst <= 1e-6 * largest && largest > 0.0, "{name}: {worst:e} of {largest:e}");
        assert_eq!(is_codes, integer.contains(&name), "{name}");
        assert_eq!(checkpoint.decoded().contains_key(name), !is_codes, "{name}");
    }
}

#[test]
fn paired_rows_are_laid_out_in_halves() {
    let config = |change| checkpoint(&File::from_bytes("x.gguf", Bytes::new(small(&[("t", &[32, 8], 8, 0)], &[7; 272]))).unwrap(), change);
    assert!(config(Change::PairedRows(3)).is_err());
    let rows = |change| {
        let mut data = vec![0u8; 272];
        // Row r has the codes r under the scale 1.
        data.chunks_mut(34).enumerate().for_each(|(r, block)| {
            block[1] = 0x3c;
            block[2..].fill(r as u8);
        });
        let file = File::from_bytes("x.gguf", Bytes::new(small(&[("t", &[32, 8], 8, 0)], &data))).unwrap();
        values(&checkpoint(&file, change).unwrap(), "t").0.chunks(32).map(|row| row[0]).collect::<Vec<f32>>()
    };
    assert_eq!(rows(Change::None), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(rows(Change::PairedRows(2)), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(rows(Change::PairedRows(1)), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
}

/// A tensor: name, dimensions (fastest first), type and offset.
type Tensor<'a> = (&'a str, &'a [u64], u32, u64);

/// A file of tensors.
fn small(tensors: &[Tensor<'_>], data: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    for (name, dims, kind, offset) in tensors {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

#[test]
fn files_that_lie_are_refused_in_words() {
    let refusal = |tensors: &[Tensor<'_>]| parse_header(&small(tensors, &[0; 272])).unwrap_err().to_string();
    let cases: [(&[Tensor<'_>], &str); 9] = [
        (&[("t", &[32, u64::MAX / 2], 8, 0)], "too large"),
        (&[("t", &[1 << 40, 1 << 40, 1 << 40], 0, 0)], "too large"),
        (&[("t", &[0, 4], 0, 0)], "empty"),
        (&[("t", &[33, 1], 8, 0)], "whole blocks"),
        (&[("t", &[32, 9], 8, 0)], "reaches past"),
        (&[("t", &[32], 8, u64::MAX - 31)], "reaches past"),
        (&[("t", &[32], 8, 8)], "alignment"),
        (&[("a", &[32, 2], 8, 0), ("b", &[32], 8, 32)], "overlaps a"),
        (&[("a", &[32], 8, 0), ("a", &[32], 8, 64)], "twice"),
    ];
    for (tensors, expected) in cases {
        assert!(refusal(tensors).contains(expected), "{expected}: {}", refusal(tensors));
    }
    assert!(refusal(&[("t", &[32], 16, 0)]).contains("IQ2_XXS"));
    assert!(refusal(&[("t", &[32, 1, 1, 1, 1], 0, 0)]).contains("dimensions"));
}

#[test]
fn numbers_of_things_are_held_against_the_files_size() {
    let refusal = |bytes: &[u8]| parse_header(bytes).unwrap_err().to_string();
    let header = |tensors: u64, keys: u64| [b"GGUF\x03\0\0\0".as_slice(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    assert!(refusal(&header(u64::MAX, 0)).contains("tensors"));
    assert!(refusal(&header(0, 1 << 40)).contains("keys"));
    // A list of a billion numbers, and one of a billion texts.
    for kind in [4u32, 8] {
        let mut bytes = header(0, 1);
        bytes.extend(
            [1u64.to_le_bytes().as_slice(), b"k", &9u32.to_le_bytes(), &kind.to_le_bytes(), &1_000_000_000u64.to_le_bytes()].concat(),
        );
        bytes.extend([0; 64]);
        assert!(refusal(&bytes).contains("claims 1000000000 values"), "{}", refusal(&bytes));
    }
    // Lists in lists.
    let mut bytes = header(0, 1);
    bytes.extend([1u64.to_le_bytes().as_slice(), b"k", &9u32.to_le_bytes(), &9u32.to_le_bytes(), &2u64.to_le_bytes()].concat());
    bytes.extend([0; 64]);
    assert!(refusal(&bytes).contains("list of lists"));
    assert!(refusal(b"GGML").contains("GGUF") && refusal(b"GGUF\x01\0\0\0").contains("version 1") && refusal(b"").contains("GGUF"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_a_file_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_header(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        let _ = parse_header(&bytes);
    }

    #[test]
    fn what_is_changed_in_a_file_never_panics(at in 0usize..1400, with in any::<u8>(), cut in 0usize..3000, change in 0usize..4) {
        let mut bytes = blocks();
        bytes[at] = with;
        bytes.truncate(bytes.len() - if cut < 2000 { 0 } else { cut });
        let Ok(file) = File::from_bytes("x.gguf", Bytes::new(bytes)) else { return Ok(()) };
        let change = [Change::None, Change::PlusOne, Change::Transposed, Change::PairedRows(1)][change];
        let Ok(opened) = checkpoint(&file, change) else { return Ok(()) };
        for name in opened.names() {
            if let Ok(Some(matrix)) = opened.matrix(name.strip_suffix(".weight").unwrap()) {
                let mut out = vec![0.0; matrix.rows() * matrix.cols()];
                let _ = matrix.read_rows_f32(0..matrix.rows(), &mut out);
            }
        }
    }
}

/// Numbers without a pattern.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    }
}

/// Rows of any codes, scales and offsets that a type can hold.
fn any_rows(code: BlockCode, rows: usize, cols: usize, seed: u64) -> BlockRows {
    let (mut next, mut out) = (noise(seed), BlockRows::zeros(code, rows, cols).unwrap());
    let mut half = || f32::from((next() % 2000) as u16) / 1024.0 - 1.0;
    out.d.iter_mut().for_each(|d| *d = half());
    let negative = code.offsets == RunOffsets::Float;
    out.m.iter_mut().for_each(|m| *m = if negative { half() } else { half().abs() });
    let (low, high) = code.range();
    let mut next = noise(seed + 1);
    let mut between = |low: i32, high: i32| low + (next() % (high - low + 1) as u64) as i32;
    for value in &mut out.codes {
        *value = match code.levels {
            Levels::Table => LEVELS[between(0, 15) as usize],
            Levels::Uniform { .. } => between(low.into(), high.into()) as i8,
        };
    }
    if let RunScales::Multiples { low, high } = code.scales {
        out.scales.iter_mut().for_each(|scale| *scale = between(low.into(), high.into()) as i8);
    }
    if let RunOffsets::Multiples(most) = code.offsets {
        out.offsets.iter_mut().for_each(|offset| *offset = between(0, most.into()) as u8);
    }
    out
}

#[test]
fn what_is_written_is_read_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let all: Vec<BlockRows> = BlockCode::ALL.iter().enumerate().map(|(i, &code)| any_rows(code, 3, 512, i as u64)).collect();
    let new = |rows: &BlockRows| NewTensor {
        name: rows.code.name.into(),
        kind: BlockType::named(rows.code.name).unwrap(),
        shape: vec![rows.rows, rows.cols],
    };
    let metadata = [
        ("a.number".to_string(), Meta::U32(7)),
        ("a.float".to_string(), Meta::F32(0.5)),
        ("a.flag".to_string(), Meta::Bool(true)),
        ("a.text".to_string(), Meta::Text("ä".into())),
        ("a.texts".to_string(), Meta::Texts(vec!["x".into(), String::new()])),
        ("a.list".to_string(), Meta::I32s(vec![-1, 2])),
        ("a.floats".to_string(), Meta::F32s(vec![1.5])),
        ("a.flags".to_string(), Meta::Bools(vec![true, false])),
    ];
    let mut writer = Writer::create(&path, &metadata, &all.iter().map(new).collect::<Vec<_>>()).unwrap();
    // In any order, a piece at a time.
    for rows in all.iter().rev() {
        let bytes = encode(rows);
        let (first, rest) = bytes.split_at(bytes.len() / 3);
        writer.write(rows.code.name, first.len() as u64, rest).unwrap();
        writer.write(rows.code.name, 0, first).unwrap();
    }
    writer.finish().unwrap();
    let file = File::open(&path).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found["a.number"].as_u64(), found["a.float"].as_f64(), found["a.flag"].as_bool()), (Some(7), Some(0.5), Some(true)));
    assert_eq!(found["a.text"].as_str(), Some("ä"));
    let lists = ["a.texts", "a.list", "a.floats", "a.flags"].map(|key| found[key].to_json(9).to_string());
    assert_eq!(lists, ["[\"x\",\"\"]", "[-1,2]", "[1.5]", "[true,false]"]);
    let opened = checkpoint(&file, Change::None).unwrap();
    for rows in &all {
        assert_eq!(values(&opened, rows.code.name).0, rows.dequantize(), "{}", rows.code.name);
    }
}

#[test]
fn a_writer_takes_what_was_announced_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |name: &str, cols| NewTensor { name: name.into(), kind: BlockType::Q8_0, shape: vec![2, cols] };
    let path = |name: &str| dir.path().join(name);
    let refusal = |tensors: &[NewTensor], name| Writer::create(&path(name), &[], tensors).unwrap_err().to_string();
    assert!(refusal(&[tensor("t", 33)], "a").contains("whole blocks"));
    assert!(refusal(&[tensor("t", 32), tensor("t", 64)], "b").contains("taken"));
    let mut writer = Writer::create(&path("c"), &[], &[tensor("t", 32)]).unwrap();
    assert!(writer.write("u", 0, &[0]).unwrap_err().to_string().contains("announced"));
    assert!(writer.write("t", 60, &[0; 9]).unwrap_err().to_string().contains("68 bytes"));
    writer.write("t", 0, &[0; 34]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("34 of its 68"));
    assert!(Writer::create(&path("c"), &[], &[]).is_err());
}

/// The phi3 fixture as llama.cpp's `llama-gguf-split --split-max-tensors 8` cut it.
fn split() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/split")
}

#[test]
fn a_model_in_parts_is_the_model() {
    let whole = File::open(&split().join("../arch-phi3-longrope-F32.gguf")).unwrap();
    let parts: Vec<_> = std::fs::read_dir(split()).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(parts.len() > 2);
    for path in &parts {
        let cut = File::open(path).unwrap();
        assert_eq!(cut.tensors().collect::<Vec<_>>(), whole.tensors().collect::<Vec<_>>(), "{}", path.display());
        for (name, ..) in whole.tensors() {
            assert!(whole.floats(name).is_some_and(|values| cut.floats(name).as_ref() == Some(&values)), "{name}");
        }
    }
    let mut metadata =
        File::open(&parts[0]).unwrap().metadata().map(|all| all.into_keys().map(str::to_string).collect::<Vec<_>>()).unwrap();
    metadata.retain(|key| !key.starts_with("split."));
    assert_eq!(metadata, whole.metadata().unwrap().into_keys().collect::<Vec<_>>());
}

#[test]
fn parts_that_are_missing_or_renamed_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let name = |part: usize| format!("phi3-{part:05}-of-00003.gguf");
    for part in [1, 2] {
        std::fs::copy(split().join(name(part)), dir.path().join(name(part))).unwrap();
    }
    let refusal = |file: &str| File::open(&dir.path().join(file)).err().unwrap().to_string();
    assert!(refusal(&name(1)).contains(&name(3)), "{}", refusal(&name(1)));
    std::fs::copy(split().join(name(1)), dir.path().join("model.gguf")).unwrap();
    assert!(refusal("model.gguf").contains("one of 3 parts"), "{}", refusal("model.gguf"));
    // Twice the same part.
    std::fs::copy(split().join(name(2)), dir.path().join(name(3))).unwrap();
    assert!(refusal(&name(1)).contains(&name(3)), "{}", refusal(&name(1)));
}
