//! From a checkpoint in memory through recipe and plan to what a sink is handed.
// Helpers of tests are tests too.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use octet_kernels::{Engine, Isa};
use octet_model::{InputKind, InputSite, LinearSite, Role};
use octet_quant::{Error, Flags, Inventory, Plan, Progress, Recipe, Run, Sink, SinkError, SolveRates, SolverChoice, TensorReport};
use octet_tensor::{Bytes, Dtype, FloatMatrix, Matrix, QMatrix, Result as TensorResult, Tensor, WeightSource};
use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Default)]
struct Memory {
    tensors: BTreeMap<String, Tensor>,
    fp8: BTreeMap<String, [usize; 2]>,
}

impl Memory {
    fn add(&mut self, name: &str, shape: &[usize], values: impl Fn(usize) -> f32) {
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|i| half::bf16::from_f32(values(i)).to_le_bytes()).collect();
        let tensor = Tensor::new(name, Dtype::Bf16, shape.to_vec(), Bytes::new(bytes)).unwrap();
        self.tensors.insert(name.into(), tensor);
    }
}

impl WeightSource for Memory {
    fn matrix(&self, module: &str) -> TensorResult<Option<Matrix>> {
        let Some(weight) = self.tensors.get(&format!("{module}.weight")) else { return Ok(None) };
        if let Some(block) = self.fp8.get(module) {
            let scale = self.tensors[&format!("{module}.weight_scale_inv")].clone();
            return Ok(Some(Matrix::Float(FloatMatrix::fp8_block(weight.clone(), scale, *block)?)));
        }
        Ok(Some(Matrix::Float(FloatMatrix::dense(weight.clone())?)))
    }

    fn tensor(&self, name: &str) -> TensorResult<Option<Tensor>> {
        Ok(self.tensors.get(name).cloned())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

#[derive(Default, PartialEq, Debug)]
struct Collected {
    matrices: BTreeMap<String, Vec<(usize, QMatrix)>>,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    fail: bool,
}

impl Sink for Collected {
    fn matrix(&mut self, module: &str, first_row: usize, rows: usize, q: &QMatrix) -> Result<(), SinkError> {
        assert!(first_row.is_multiple_of(32) && first_row + q.rows() <= rows);
        if self.fail {
            return Err("no space left".into());
        }
        self.matrices.entry(module.into()).or_default().push((first_row, q.clone()));
        Ok(())
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), SinkError> {
        self.tensors.insert(name.into(), (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec()));
        Ok(())
    }
}

impl Collected {
    fn dequantized(&self, module: &str) -> Vec<f32> {
        self.matrices[module].iter().flat_map(|(_, q)| q.dequantize()).collect()
    }
}

fn linear(module: &str, rows: usize, cols: usize, role: Role, transposed: bool) -> LinearSite {
    let layer = (role != Role::Embedding).then_some(0);
    let kind = if role == Role::Embedding { InputKind::Head } else { InputKind::Mlp };
    LinearSite { module: module.into(), rows, cols, role, layer, input: InputSite { layer, kind }, transposed }
}

fn value(i: usize) -> f32 {
    let x = (i as u32).wrapping_mul(2_654_435_761) >> 8;
    (x % 2001) as f32 / 1000.0 - 1.0
}

/// A tied embedding large enough for several chunks, a Conv1D, an FP8 linear, a norm.
fn checkpoint() -> (Memory, Vec<LinearSite>) {
    let mut memory = Memory::default();
    memory.add("embed.weight", &[70_000, 64], value);
    memory.add("conv.weight", &[48, 72], value);
    memory.add("norm.weight", &[64], value);
    memory.add("lm_head.weight", &[70_000, 64], value);
    memory.add("h.0.attn.bias", &[1, 1, 8, 8], value);
    let codes: Vec<u8> = (0..64 * 64).map(|i| (i * 7 % 0x7f) as u8).collect();
    memory.tensors.insert("fp8.weight".into(), Tensor::new("fp8.weight", Dtype::F8E4m3, vec![64, 64], Bytes::new(codes)).unwrap());
    let scale = Tensor::from_f32("fp8.weight_scale_inv", vec![2, 2], &[0.01, 0.02, 0.03, 0.04]).unwrap();
    memory.tensors.insert("fp8.weight_scale_inv".into(), scale);
    memory.fp8.insert("fp8".into(), [32, 32]);
    let sites = vec![
        linear("embed", 70_000, 64, Role::Embedding, false),
        linear("conv", 72, 48, Role::Up, true),
        linear("fp8", 64, 64, Role::Down, false),
    ];
    (memory, sites)
}

fn engine(threads: usize) -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap()
}

fn recipe(scheme: &str, portable: bool) -> Recipe {
    let flags = Flags {
        scheme: scheme.parse().unwrap(),
        embedding: None,
        head: None,
        portable,
        solver: SolverChoice::Rtn { candidates: Some(8) },
        transform: None,
    };
    Recipe::from_flags(&flags, true).unwrap()
}

fn run(source: &Memory, plan: &Plan, threads: usize, sink: &mut Collected) -> Result<Vec<TensorReport>, Error> {
    let (engine, cancel) = (engine(threads), AtomicBool::new(false));
    Run { plan, source, engine: &engine, cancel: &cancel }.quantize(sink, &mut |_| {})
}

fn original(source: &Memory, site: &LinearSite) -> Vec<f32> {
    let matrix = match source.matrix(&site.module).unwrap().unwrap() {
        Matrix::Float(_) if site.transposed => FloatMatrix::transposed(source.tensors[&format!("{}.weight", site.module)].clone()).unwrap(),
        Matrix::Float(matrix) => matrix,
        Matrix::Quant(_) => unreachable!(),
    };
    let mut out = vec![0.0; site.rows * site.cols];
    matrix.read_rows(0..site.rows, &mut out).unwrap();
    out
}

#[test]
fn everything_arrives_once_and_close_to_the_original() {
    let (source, sites) = checkpoint();
    let plan = Plan::new(&recipe("w4a16-g32", false), &Inventory::new(&sites, &source).unwrap(), true).unwrap();
    let mut sink = Collected::default();
    let reports = run(&source, &plan, 2, &mut sink).unwrap();
    assert!(sink.matrices["embed"].len() > 1, "a large matrix comes in chunks");
    for site in &sites {
        let (w, q) = (original(&source, site), sink.dequantized(&site.module));
        assert_eq!(w.len(), q.len());
        let error: f64 = w.iter().zip(&q).map(|(w, q)| f64::from(w - q).powi(2)).sum();
        let report = reports.iter().find(|r| r.name == site.module).unwrap();
        assert!((report.error.error / error - 1.0).abs() < 1e-4, "{} {}", report.error.error, error);
        assert!(report.error.relative() < 0.02, "{report:?}");
    }
    // The norm is copied; the head that repeats the embedding and the mask are not; block scales are gone.
    assert_eq!(sink.tensors.keys().collect::<Vec<_>>(), ["norm.weight"]);
    assert_eq!(sink.tensors["norm.weight"].2, source.tensors["norm.weight"].bytes().to_vec());
}

#[test]
fn what_is_kept_stays_as_stored_except_fp8() {
    let (source, sites) = checkpoint();
    let recipe = Recipe::from_toml("[[step]]\naction='keep'\ntargets=['linears','embedding']").unwrap();
    let plan = Plan::new(&recipe, &Inventory::new(&sites, &source).unwrap(), false).unwrap();
    let mut sink = Collected::default();
    run(&source, &plan, 2, &mut sink).unwrap();
    assert!(sink.matrices.is_empty());
    assert_eq!(sink.tensors["conv.weight"].1, [48, 72]);
    assert_eq!(sink.tensors["conv.weight"].2, source.tensors["conv.weight"].bytes().to_vec());
    let (dtype, shape, bytes) = &sink.tensors["fp8.weight"];
    assert_eq!((*dtype, &shape[..]), (Dtype::Bf16, &[64, 64][..]));
    let decoded = Tensor::new("t", Dtype::Bf16, shape.clone(), Bytes::new(bytes.clone())).unwrap().to_f32().unwrap();
    for (w, found) in original(&source, &sites[2]).iter().zip(decoded) {
        assert_eq!(half::bf16::from_f32(*w).to_f32(), found);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes_and_reports() {
    let (source, sites) = checkpoint();
    for scheme in ["w4a16-g32-asym", "w8a8"] {
        let plan = Plan::new(&recipe(scheme, false), &Inventory::new(&sites, &source).unwrap(), false).unwrap();
        let (mut one, mut three) = (Collected::default(), Collected::default());
        let reports = run(&source, &plan, 1, &mut one).unwrap();
        assert_eq!(reports, run(&source, &plan, 3, &mut three).unwrap());
        assert_eq!(one, three);
    }
}

#[test]
fn portable_leaves_conv1d_and_embedding_alone() {
    let (source, sites) = checkpoint();
    let inventory = Inventory::new(&sites, &source).unwrap();
    let plan = Plan::new(&recipe("w8a16", true), &inventory, false).unwrap();
    let mut sink = Collected::default();
    run(&source, &plan, 2, &mut sink).unwrap();
    assert_eq!(sink.matrices.keys().collect::<Vec<_>>(), ["fp8"]);
    assert!(Plan::new(&recipe("w8a16", true), &inventory, true).is_err());
}

#[test]
fn values_that_are_not_finite_are_counted_and_named() {
    for (name, scheme_hits) in [("embed.weight", "matrix"), ("norm.weight", "kept tensor")] {
        let (mut source, sites) = checkpoint();
        let shape = source.tensors[name].shape().to_vec();
        source.add(name, &shape, |i| if i % 1000 == 7 { [f32::NAN, f32::INFINITY][i / 1000 % 2] } else { 0.5 });
        let plan = Plan::new(&recipe("w8a16", false), &Inventory::new(&sites, &source).unwrap(), false).unwrap();
        let expected = shape.iter().product::<usize>().div_ceil(1000).max(1);
        match run(&source, &plan, 2, &mut Collected::default()) {
            Err(Error::NonFinite { name: found, count, .. }) => assert_eq!((&found[..], count), (name, expected), "{scheme_hits}"),
            other => panic!("{scheme_hits}: {other:?}"),
        }
    }
}

#[test]
fn a_sink_that_fails_is_named() {
    let (source, sites) = checkpoint();
    let plan = Plan::new(&recipe("w8a16", false), &Inventory::new(&sites, &source).unwrap(), false).unwrap();
    let error = run(&source, &plan, 2, &mut Collected { fail: true, ..Default::default() }).unwrap_err();
    assert_eq!(error.to_string(), "writing embed failed");
}

#[test]
fn cancelling_stops_within_a_tensor_and_progress_only_grows() {
    let (source, sites) = checkpoint();
    let plan = Plan::new(&recipe("w8a16", false), &Inventory::new(&sites, &source).unwrap(), false).unwrap();
    let (engine, cancel) = (engine(2), AtomicBool::new(false));
    let run = Run { plan: &plan, source: &source, engine: &engine, cancel: &cancel };
    let mut seen: Vec<(u64, String)> = Vec::new();
    let mut watch = |p: &Progress<'_>| {
        assert!(p.done_bytes <= p.total_bytes);
        seen.push((p.done_bytes, p.tensor.into()));
    };
    run.quantize(&mut Collected::default(), &mut watch).unwrap();
    assert!(seen.is_sorted_by_key(|(bytes, _)| *bytes));
    assert_eq!(seen.last().unwrap().0, plan.forecast(2, None).stored_bytes);

    let mut sink = Collected::default();
    let error = run.quantize(&mut sink, &mut |p| cancel.store(p.done_bytes > 0, Ordering::Relaxed)).unwrap_err();
    assert!(matches!(error, Error::Interrupted { done: 0, total: 6 }), "{error:?}");
    assert_eq!(sink.matrices["embed"].len(), 1);
}

#[test]
fn the_forecast_counts_bytes_and_measures_time() {
    let (source, sites) = checkpoint();
    let plan = Plan::new(&recipe("w4a16-g32", false), &Inventory::new(&sites, &source).unwrap(), false).unwrap();
    let engine = engine(2);
    let forecast = plan.forecast(2, Some(&SolveRates::measure(&plan, &engine).unwrap()));
    // 4 bits, a 16-bit scale for 32 weights (48 inputs need two), 16 bytes of shape a matrix.
    let linears = |rows: usize, cols: usize| rows * cols / 2 + rows * cols.div_ceil(32) * 2 + 16;
    let bytes = linears(72, 48) + linears(64, 64);
    assert_eq!(forecast.linear_bits, 8.0 * bytes as f64 / (72 * 48 + 64 * 64) as f64);
    assert!(forecast.seconds.unwrap() > 0.0);
    assert!(forecast.artefact_bytes < forecast.stored_bytes / 3);
}

/// `cargo test --release -p octet-quant --test pipeline -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement, not a check"]
fn speed_from_bf16_to_codes() {
    struct Nothing;
    impl Sink for Nothing {
        fn matrix(&mut self, _: &str, _: usize, _: usize, _: &QMatrix) -> Result<(), SinkError> {
            Ok(())
        }
        fn tensor(&mut self, _: &str, _: &Tensor) -> Result<(), SinkError> {
            Ok(())
        }
    }
    // utime and stime in hundredths of a second, so that the figure holds on a busy machine.
    let cpu_seconds = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        stat.split(' ').skip(13).take(2).map(|v| v.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    };
    let mut source = Memory::default();
    source.add("down.weight", &[32_768, 3072], |i| value(i) * value(i / 7));
    let bytes = 2.0 * 32_768.0 * 3072.0;
    let sites = [linear("down", 32_768, 3072, Role::Down, false)];
    let inventory = Inventory::new(&sites, &source).unwrap();
    for (scheme, candidates) in [("w8a16", 8), ("w8a16", 16), ("w4a16-g128", 8), ("w4a16-g128", 16), ("w4a16-g32", 8), ("w4a16-g32", 16)] {
        let text = format!("[[step]]\naction='quantize'\ntargets=['down']\nscheme='{scheme}'\ncandidates={candidates}");
        let plan = Plan::new(&Recipe::from_toml(&text).unwrap(), &inventory, true).unwrap();
        let (engine, cancel) = (engine(2), AtomicBool::new(false));
        let (wall, cpu) = (std::time::Instant::now(), cpu_seconds());
        let run = Run { plan: &plan, source: &source, engine: &engine, cancel: &cancel };
        run.quantize(&mut Nothing, &mut |_| {}).unwrap();
        let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!("{scheme} {candidates}: {:.2} GB/s of BF16 wall, {:.2} GB/s a CPU-second", bytes / wall / 1e9, bytes / cpu / 1e9);
    }
}
