//! A receipt finds a change anywhere: any bit of any file that belongs to it, at offsets that nobody chose.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_flow::{
    Prepared, QuantizeSettings, ReceiptFacts,
    receipt::{self, RECEIPT_FILE, Receipt},
};
use octet_formats::Folder;
use octet_kernels::{Engine, Isa};
use octet_quant::{Flags, Recipe, SolverChoice};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
}

/// The built-in model in 8 bits, with its receipt, below `dir`.
fn written(dir: &Path, engine: &Engine) -> PathBuf {
    let original = Folder::disk(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")).unwrap();
    let prepared = Prepared::new(&original, |spec| {
        let (scheme, solver) = ("w8a16".parse().unwrap(), SolverChoice::Rtn { candidates: None });
        let flags = Flags { scheme, embedding: None, head: None, portable: false, solver, transform: None };
        Ok(QuantizeSettings { recipe: Recipe::from_flags(&flags, spec.head().tied)?, label: "w8a16".into(), strict: false, seed: 0 })
    });
    let prepared = prepared.unwrap();
    let staged = prepared.write(&dir.join("out"), false, true, engine, &AtomicBool::new(false), &mut |_, _, _, _| {}).unwrap();
    let facts = ReceiptFacts { command: &["octet".to_string()], calibration: None, evaluation: &[], key: None };
    staged.add_receipt(&prepared, facts, engine).unwrap();
    staged.commit().unwrap()
}

/// What checking the folder finds wrong with `name`, if anything.
fn found(folder: &Path, name: &str, engine: &Engine) -> bool {
    match Receipt::read(&folder.join(RECEIPT_FILE)) {
        Err(_) => name == RECEIPT_FILE,
        Ok(receipt) => {
            let findings = receipt::verify(&receipt, folder, None, None, engine).unwrap().findings;
            findings.iter().any(|finding| finding.file == name)
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let folder = written(dir.path(), &engine);
    let names: Vec<String> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name == "model.safetensors") && names.iter().any(|name| name == RECEIPT_FILE), "{names:?}");
    assert!(names.iter().all(|name| !found(&folder, name, &engine)), "nothing is wrong yet");
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    // A file by its place in the list, an offset by its share of the file, so that a run covers files of any length.
    let anywhere = (0..names.len(), 0.0..1.0f64, 0u8..8);
    let outcome = runner.run(&anywhere, |(which, share, bit)| {
        let path = folder.join(&names[which]);
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let at = (share * file.metadata().unwrap().len() as f64) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
        let seen = found(&folder, &names[which], &engine);
        file.write_all_at(&byte, at).unwrap();
        prop_assert!(seen, "bit {bit} of byte {at} of {}", names[which]);
        Ok(())
    });
    outcome.unwrap();
    assert!(names.iter().all(|name| !found(&folder, name, &engine)), "all is as it was");
}

#[test]
fn lengths_names_and_absence_are_found() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let folder = written(dir.path(), &engine);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let whole = fs::read(folder.join(name)).unwrap();
        for other in [&whole[..whole.len() - 1], &[&whole[..], b"\n"].concat()] {
            fs::write(folder.join(name), other).unwrap();
            assert!(found(&folder, name, &engine), "{name} of {} bytes", other.len());
        }
        fs::remove_file(folder.join(name)).unwrap();
        assert!(found(&folder, name, &engine), "{name} is missing");
        fs::write(folder.join(name), &whole).unwrap();
    }
    fs::write(folder.join("added.bin"), b"x").unwrap();
    assert!(found(&folder, "added.bin", &engine));
}
