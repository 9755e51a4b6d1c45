//! Codes that other tools chose for the same matrices after the same calibration windows, held against octet's.
// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::{ArchSpec, InputKind, InputSite, LinearSite};
use octet_quant::{
    ActOrder, Gptq, Hessian, HessianOptions, InputObserver, InputStatistics, RowsMut, Samples, Solver, TensorJob, Want, watch,
};
use octet_tensor::{Dtype, Matrix, QMatrix, Scheme, WeightSource};
use octet_testkit::{fixtures, shared};
use std::{num::NonZeroUsize, path::Path};

/// Tokens of a window.
const LENGTH: usize = 512;

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(&Folder::disk(path).unwrap()).unwrap()
}

fn weights(source: &dyn WeightSource, site: &LinearSite) -> Vec<f32> {
    let matrix = source.matrix(&site.module).unwrap().unwrap();
    let mut out = vec![0.0; site.rows * site.cols];
    matrix.read_rows_f32(0..site.rows, &mut out).unwrap();
    out
}

/// tr((W − Q)·H·(W − Q)ᵀ) / tr(W·H·Wᵀ): the squared error of the outputs on the windows.
fn loss(seen: &InputStatistics, cols: usize, w: &[f32], q: &[f32]) -> f64 {
    let second = &seen.moments.as_ref().unwrap().second;
    let at = |r: usize, c: usize| f64::from(second.at(r.max(c), r.min(c)));
    let matrix: Vec<f64> = (0..cols * cols).map(|i| at(i / cols, i % cols)).collect();
    let energy = |row: &[f64]| -> f64 {
        row.iter().zip(matrix.chunks(cols)).map(|(a, h)| a * h.iter().zip(row).map(|(h, b)| h * b).sum::<f64>()).sum()
    };
    let wide = |row: &[f32]| row.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let off = |(w, q): (&[f32], &[f32])| w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect::<Vec<f64>>();
    let error: f64 = w.chunks(cols).zip(q.chunks(cols)).map(|rows| energy(&off(rows))).sum();
    error / w.chunks(cols).map(|row| energy(&wide(row))).sum::<f64>()
}

/// What GPTQ makes of `w`.
fn ours(engine: &Engine, site: &LinearSite, scheme: Scheme, seen: &InputStatistics, w: &[f32]) -> Vec<f32> {
    let moments = seen.moments.as_ref().unwrap();
    let hessian =
        Hessian::new(engine, "q, k and v", moments, HessianOptions { damping: 0.01, act_order: ActOrder::Static, eights: false }).unwrap();
    let (shape, scale_dtype) = ((site.rows, site.cols), Dtype::Bf16);
    let job = TensorJob {
        module: &site.module,
        shape,
        scheme: scheme.weights,
        scale_dtype,
        importance: None,
        hessian: Some(&hessian),
        table: None,
        engine,
    };
    let groups = site.rows * scheme.weights.groups(site.cols);
    let (mut codes, mut scales, mut zeros) = (vec![0; w.len()], vec![0.0; groups], vec![]);
    let rows = RowsMut { codes: &mut codes, scales: &mut scales, zeros: &mut zeros };
    Gptq::USUAL.prepare(job).unwrap().solve(w, rows);
    QMatrix::new(site.rows, site.cols, scheme.weights, codes, scales, scale_dtype, zeros).unwrap().dequantize()
}

#[test]
fn gptq_leaves_less_error_than_that_of_other_tools() {
    let Some(shared) = shared() else { return };
    let pocket = open(&shared.join("reference/models/pocket"));
    let mut spec = ArchSpec::from_config(pocket.config()).unwrap();
    spec.settle(&pocket).unwrap();
    let engine = Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap();
    let ids: Vec<u32> = std::fs::read(fixtures().join("peers/windows.bin"))
        .unwrap()
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&b| u32::from(u16::from_le_bytes(b)))
        .collect();
    let samples = Samples::draw(&ids, ids.len() / LENGTH, LENGTH, 0);
    let input = InputSite { layer: Some(0), kind: InputKind::Attention };
    let mut observer = InputObserver::new(&engine, [(input, Want::Hessian)].into());
    watch(&engine, &spec, &pocket, &samples, &mut observer).unwrap();
    let seen = &observer.finish()[&input];
    let sites: Vec<LinearSite> = spec.linear_sites().into_iter().filter(|site| site.input == input).collect();
    assert_eq!(sites.len(), 3);
    let mut tools = 0;
    for entry in std::fs::read_dir(fixtures().join("peers")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let theirs = open(&entry);
        tools += 1;
        for site in &sites {
            let Some(Matrix::Quant(stored)) = theirs.matrix(&site.module).unwrap() else { panic!("{entry:?} {}", site.module) };
            let w = weights(&pocket, site);
            let (a, b) = (ours(&engine, site, stored.scheme(), seen, &w), weights(&theirs, site));
            let (a, b) = (loss(seen, site.cols, &w, &a), loss(seen, site.cols, &w, &b));
            assert!(a < b && b < 4.0 * a, "{} of {}: {a:.3e}, theirs {b:.3e}", site.module, entry.display());
        }
    }
    assert!(tools > 0);
}
