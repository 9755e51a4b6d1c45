//! Running a model folder on given token ids, and comparing logits.
#![allow(dead_code, reason = "each test binary uses its own part")]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa, KvDtype};
use octet_model::{ArchSpec, LoadOptions, Logits, Model, Step};
use octet_testkit::{fixtures, npy_i64};
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

/// A checkpoint of the repository, or of the reference data beside it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let beside = fixtures().join("../../shared/reference/fixtures");
    let found = [fixtures(), beside].into_iter().map(|root| root.join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("{name}: skipped, it is only in the reference data beside the repository");
    }
    found
}

/// Logits of every token with keys and values in F32, activations as stored.
pub(crate) fn logits(folder: &Folder, ids: &Path) -> Vec<f32> {
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let spec = ArchSpec::from_config(checkpoint.config()).unwrap();
    let options = LoadOptions { activations: None, kv: KvDtype::F32, context: None };
    let model = Model::load(&engine, spec, &checkpoint, options, &mut |_, _| ()).unwrap();
    let (shape, ids) = npy_i64(ids);
    let mut out = vec![];
    for row in ids.chunks(*shape.last().unwrap()) {
        let tokens: Vec<u32> = row.iter().map(|&id| id as u32).collect();
        let (mut sequence, mut rows) = (model.new_sequence(), vec![]);
        model.forward(&mut [Step { sequence: &mut sequence, tokens: &tokens, logits: Logits::All }], &mut rows, None).unwrap();
        out.extend(rows);
    }
    out
}

/// Largest difference, relative root mean square, and how often the largest logit is the same one.
pub(crate) fn compare(found: &[f32], expected: &[f32], vocab: usize) -> (f32, f32, f32) {
    let pairs = || found.iter().zip(expected);
    let largest = pairs().fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    let squares: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let rms = (squares / expected.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()).sqrt();
    let top = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let same = found.chunks(vocab).zip(expected.chunks(vocab)).filter(|(a, b)| top(a) == top(b)).count();
    (largest, if rms.is_nan() { f32::INFINITY } else { rms as f32 }, same as f32 / (expected.len() / vocab) as f32)
}
