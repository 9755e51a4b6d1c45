//! Adapters that PEFT trained, merged as PEFT merges them, and written again.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use octet_formats::{
    Checkpoint, Folder, npy,
    peft::{self, Adapter},
};
use octet_tensor::WeightSource;
use std::path::Path;

/// Products of every merged matrix, in the order of their names, with the vector sin(0), sin(1) …; computed by PEFT 0.21
/// (`merge_and_unload`) and numpy.
#[test]
fn adapters_merge_as_peft_merges_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = root.join("../shared/reference/fixtures");
    for name in ["lora-r8", "dora-r4", "lora-rank-pattern"] {
        let path = shared.join("peft").join(name);
        if !path.exists() {
            println!("skipped: {name} is only in the reference data beside the repository");
            continue;
        }
        let adapter = Adapter::open(&Folder::disk(&path).unwrap()).unwrap();
        let base = Folder::disk(&shared.join("peft-base/llama")).unwrap();
        let checkpoint = Checkpoint::open(&base.adapted(adapter.clone())).unwrap();
        let golden = std::fs::read(root.join(format!("fixtures/peft/{name}.npy"))).unwrap();
        let (_, expected) = npy::read_f32(&golden).unwrap();
        let mut found = vec![];
        for module in adapter.modules.keys() {
            let matrix = checkpoint.matrix(module).unwrap().unwrap();
            let mut values = vec![0.0; matrix.rows() * matrix.cols()];
            matrix.read_rows_f32(0..matrix.rows(), &mut values).unwrap();
            let product = |row: &[f32]| row.iter().enumerate().map(|(i, &w)| f64::from(w) * (i as f64).sin()).sum::<f64>();
            found.extend(values.chunks(matrix.cols()).map(product));
        }
        assert_eq!(found.len(), expected.len());
        let largest = found.iter().zip(&expected).map(|(a, &b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
        let scale = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
        println!("{name}: largest difference {largest:.1e}, largest value {scale:.1e}");
        assert!(largest < 1e-5 * f64::from(scale), "{name}: {largest:e} of {scale:e}");
        assert!(checkpoint.decoded().values().all(|form| form.contains(if name.starts_with("dora") { "DoRA" } else { "LoRA" })));

        let dir = tempfile::tempdir().unwrap();
        peft::write(dir.path(), &adapter, "base").unwrap();
        let again = Adapter::open(&Folder::disk(dir.path()).unwrap()).unwrap();
        assert_eq!(again.modules, adapter.modules, "{name}");
        assert_eq!(again.whole.keys().collect::<Vec<_>>(), adapter.whole.keys().collect::<Vec<_>>());
    }
}
