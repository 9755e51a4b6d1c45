//! Measures what calibrated solvers spend their time in, against this machine's f32 limit taken in the same process:
//! `cargo bench -p octet-kernels --bench calibration`.
//!
//! Arguments: an instruction set, a number of threads, and a part of the names of what to measure.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::Numbers;
use octet_kernels::{Candidate, Engine, Factor, Gram, Isa, Rounding, RowGrids, RowPanels, SymmetricMatrix, limits};
use std::{hint::black_box, num::NonZeroUsize, sync::Mutex, time::Instant};

/// The shortest of some runs: a shared machine only ever makes one longer.
fn shortest(times: usize, mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..times {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn report(what: &str, flops: f64, seconds: f64, roof: f64) {
    let rate = flops / seconds / 1e9;
    println!("{what:<44} {:9.2} ms  {rate:7.1} GFLOP/s  {:5.1} % of the f32 limit", seconds * 1e3, rate / roof * 100.0);
}

fn moments(engine: &Engine, roof: f64, cols: usize) -> SymmetricMatrix {
    let tokens = 2048;
    let x = Numbers(1).normals(tokens * cols);
    let mut gram = Gram::new(cols);
    gram.add(engine, &x);
    let seconds = shortest(5, || gram.add(engine, &x));
    report(&format!("gram     {tokens} tokens of {cols}"), (tokens * cols * (cols + 1)) as f64, seconds, roof);
    gram.finish(engine).second
}

fn factor(engine: &Engine, roof: f64, matrix: &SymmetricMatrix) -> Factor {
    let size = matrix.size();
    let order: Vec<u32> = (0..size as u32).rev().collect();
    let mut factor = None;
    let seconds = shortest(3, || factor = Factor::new(engine, matrix, &order, 0.01));
    report(&format!("cholesky {size}"), (size as f64).powi(3) / 3.0, seconds, roof);
    factor.unwrap()
}

/// Rows a task holds.
const ROWS: usize = 96;

fn rounding(engine: &Engine, roof: f64, matrix: &SymmetricMatrix, factor: &Factor) {
    let (rows, cols) = (768, matrix.size());
    let weights = RowPanels::from_rows(&Numbers(3).normals(ROWS * cols), cols, None);
    let mut grid = RowGrids::VOID;
    (0..16).for_each(|lane| {
        grid.set(lane, Candidate { inverse: 2.5, scale: 0.4, low: -8.0, high: 7.0, alphabet: octet_tensor::Alphabet::Even }, 0)
    });
    let groups = cols.div_ceil(128);
    let grids = vec![grid; weights.runs() * groups];
    let group_of: Vec<u32> = (0..cols as u32).map(|c| c / 128).collect();
    let work: Vec<_> =
        (0..rows / ROWS).map(|_| Mutex::new((RowPanels::zeros(ROWS, cols), vec![[0i8; 16]; weights.runs() * cols]))).collect();
    let all = |pass: &(dyn Fn(&mut Rounding<'_>) + Sync)| {
        engine.run(work.len(), &|i| {
            let mut work = work[i].lock().unwrap();
            let (errors, codes) = &mut *work;
            pass(&mut Rounding {
                weights: &weights,
                errors,
                codes,
                grids: &grids,
                group_of: &group_of,
                alphabet: octet_tensor::Alphabet::Even,
            });
        });
    };
    let square = (rows * cols * cols) as f64;
    let seconds = shortest(3, || {
        all(&|rounding| {
            black_box(engine.round_rows(factor, rounding, true));
        });
    });
    report(&format!("feedback {rows}x{cols}"), square, seconds, roof);
    let seconds = shortest(3, || {
        all(&|rounding| {
            black_box(engine.descend_rows(matrix, 0.01, rounding));
        });
    });
    report(&format!("descent  {rows}x{cols}"), 2.0 * square, seconds, roof);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let isa: Isa = args.first().map_or(Isa::best(), |a| a.parse().unwrap());
    let threads = args.get(1).map_or(2, |a| a.parse().unwrap());
    let engine = Engine::new(isa, NonZeroUsize::new(threads).unwrap()).unwrap();
    let only = |size: usize| args.get(2).is_none_or(|part| *part == size.to_string());
    let roof = limits::f32_gflop_s(&engine);
    println!("{isa}, {threads} threads: f32 {roof:.0} GFLOP/s");
    for size in [1024, 2048, 3072].into_iter().filter(|&size| only(size)) {
        let matrix = moments(&engine, roof, size);
        let factor = factor(&engine, roof, &matrix);
        rounding(&engine, roof, &matrix, &factor);
    }
    println!("again: f32 {:.0} GFLOP/s", limits::f32_gflop_s(&engine));
}
