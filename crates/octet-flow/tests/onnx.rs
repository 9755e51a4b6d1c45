//! Models exported to ONNX: graphs in which every value is made before it is read, and weights that lie where the graph says.
//!
//! What onnxruntime computes from them is held against octet by `scripts/interop/check_exports.py`.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_flow::export::{ExportRun, Exported, Format, Place, Source};
use octet_formats::{Folder, onnx};
use octet_kernels::{Engine, Isa};
use octet_testkit::{arch_fixtures, fixtures};
use std::{collections::BTreeSet, num::NonZeroUsize, path::Path, sync::atomic::AtomicBool};

fn export(from: &Path, to: &Path) -> Result<(), String> {
    let words = |e: octet_flow::Error| e.to_string();
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
    let source = Source::open(&Folder::disk(from).unwrap()).map_err(words)?;
    let export = "onnx".parse::<Format>()?.prepare(&source, false).map_err(words)?;
    let run = ExportRun { calibration: None, engine: &engine, cancel: &AtomicBool::new(false) };
    let place = Place { target: to, force: false, deploy: false };
    Exported::write(&source, &*export, place, &run, &mut |_, _, _, _| ()).and_then(Exported::commit).map_err(words).map(drop)
}

/// Fields of a message of protocol buffers: number, whole number (of field types 0 and 5), bytes (of type 2).
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => found.push((key >> 3, varint(&mut bytes), &[][..])),
            5 => {
                found.push((key >> 3, 0, &bytes[..4]));
                bytes = &bytes[4..];
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                found.push((key >> 3, 0, &bytes[..length]));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

fn texts(message: &[u8], field: u64) -> Vec<String> {
    fields(message).into_iter().filter(|f| f.0 == field).map(|f| String::from_utf8(f.2.to_vec()).unwrap()).collect()
}

fn parts(message: &[u8], field: u64) -> Vec<&[u8]> {
    fields(message).into_iter().filter(|f| f.0 == field).map(|f| f.2).collect()
}

/// Checks a graph and gives the operators it uses.
fn check(dir: &Path) -> BTreeSet<String> {
    let (model, data) = (std::fs::read(dir.join(onnx::FILE)).unwrap(), std::fs::metadata(dir.join(onnx::DATA)).unwrap().len());
    let graph = parts(&model, 7)[0];
    let mut known = BTreeSet::new();
    for initializer in parts(graph, 5) {
        assert!(known.insert(texts(initializer, 8)[0].clone()));
        let elements: u64 = fields(initializer).iter().filter(|f| f.0 == 1).map(|f| f.1).product();
        let external: Vec<[String; 2]> =
            parts(initializer, 13).into_iter().map(|p| [1, 2].map(|field| texts(p, field)[0].clone())).collect();
        let Some([_, [_, offset], [_, length]]) = external.as_array() else { continue };
        let (offset, length): (u64, u64) = (offset.parse().unwrap(), length.parse().unwrap());
        assert!(offset.is_multiple_of(64) && offset + length <= data && length.is_multiple_of(elements.max(1)));
    }
    known.extend(parts(graph, 11).into_iter().map(|input| texts(input, 1)[0].clone()));
    let mut operators = BTreeSet::new();
    for node in parts(graph, 1) {
        for input in texts(node, 1) {
            assert!(known.contains(&input), "{input} is read before it is made");
        }
        for output in texts(node, 2) {
            assert!(known.insert(output.clone()), "{output} is made twice");
        }
        operators.extend(texts(node, 4));
    }
    for output in parts(graph, 12) {
        assert!(known.contains(&texts(output, 1)[0]));
    }
    operators
}

#[test]
fn every_family_has_a_graph() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for (name, path) in arch_fixtures() {
        let to = dir.path().join(&name);
        export(&path, &to).unwrap_or_else(|why| panic!("{name}: {why}"));
        let operators = check(&to);
        assert!(["Gemm", "Softmax", "Gather"].iter().all(|op| operators.contains(*op)), "{name}: {operators:?}");
        assert_eq!(operators.contains("TopK"), name.contains("moe"), "{name}");
        written += 1;
    }
    assert!(written >= 20, "{written}");
}

#[test]
fn codes_go_into_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("w4a16-gptq-sym", "MatMulNBits"),
        ("w4a16-gptq-asym", "MatMulNBits"),
        ("w8a16-rtn-channel", "MatMulNBits"),
        ("w8a8-rtn", "MatMulInteger"),
    ];
    for (name, operator) in cases {
        let from = fixtures().join("compressed-tensors").join(name);
        let to = dir.path().join(name);
        export(&from, &to).unwrap();
        assert!(check(&to).contains(operator), "{name}");
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(to.join("config.json")).unwrap()).unwrap();
        assert!(config.get("quantization_config").is_none());
    }
}
