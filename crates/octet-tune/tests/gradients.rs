//! Gradients of whole models held to finite differences and to what PyTorch computes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::ArchSpec;
use octet_tensor::WeightSource;
use octet_testkit::{MemorySource, Random, TINY_GEMMA3, TINY_GPT2, TINY_LLAMA, TINY_QWEN3, TINY_QWEN3_MOE, fixtures, relative_error};
use octet_tune::{Batch, Gradients, Keep, Lesson, Network, ParamKind, Trainer, Values};
use proptest::prelude::*;
use std::num::NonZeroUsize;

fn engine(threads: usize) -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap()
}

fn spec(config: &str) -> ArchSpec {
    ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap()
}

fn random(spec: &ArchSpec, seed: u64) -> MemorySource {
    let matrices = spec.linear_sites().into_iter().map(|site| {
        let shape = if site.transposed { vec![site.cols, site.rows] } else { vec![site.rows, site.cols] };
        (format!("{}.weight", site.module), shape)
    });
    MemorySource::random(matrices.chain(spec.other_tensors()), seed)
}

/// A batch and what it teaches, drawn by a seed.
fn lesson(vocab: usize, seed: u64, lengths: &[usize]) -> (Batch, Vec<u32>) {
    let mut random = Random::new(seed);
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|&length| (0..length).map(|_| random.below(vocab) as u32).collect()).collect();
    let batch = Batch::new(sequences.iter().map(Vec::as_slice));
    let next = (0..batch.rows()).map(|_| random.below(vocab) as u32).collect();
    (batch, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// The gradient of every parameter, along a random direction.
    #[test]
    fn directions_have_the_slope_of_their_differences(seed in 0u64..1000, which in 0usize..4, teach in any::<bool>(), turn in any::<bool>()) {
        let spec = spec([TINY_LLAMA, TINY_QWEN3, TINY_GEMMA3, TINY_GPT2][which]);
        let inside = |site: &octet_model::LinearSite| site.layer.is_some() && site.cols.is_multiple_of(8);
        let all = spec.linear_sites().into_iter().filter(|site| turn && inside(site)).map(|site| site.module).collect();
        let spec = spec.with_turned_inputs(all);
        let (engine, network) = (engine(2), Network::new(&spec).unwrap());
        let values = network.values(&random(&spec, seed)).unwrap();
        let teacher = network.values(&random(&spec, seed + 1)).unwrap();
        let (batch, next) = lesson(spec.vocab_size(), seed, &[13, 1, 6]);
        let mut trainer = Trainer::new(&engine, &network);
        let hidden = trainer.hidden(&teacher, &batch);
        let lesson = if teach { Lesson::Teacher { values: &teacher, hidden: &hidden } } else { Lesson::Tokens { next: &next } };
        let mut gradients = Gradients::new(&network, |_| true);
        let loss = trainer.learn(&values, &batch, lesson, Keep::All, &mut gradients);
        prop_assert!((loss - trainer.loss(&values, &batch, lesson)).abs() < 1e-6);
        let mut random = Random::new(seed + 2);
        for (number, parameter) in network.parameters().iter().enumerate() {
            let direction: Vec<f32> = values[number].iter().map(|_| random.uniform()).collect();
            let gradient = gradients.get(number).unwrap();
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let mut moved = |by: f32| {
                let mut values = values.clone();
                values[number].iter_mut().zip(&direction).for_each(|(value, d)| *value += by * d);
                trainer.loss(&values, &batch, lesson)
            };
            let step = 1e-3 / (1.0 + (direction.len() as f32).sqrt() / 30.0);
            let mut difference = |step: f32| (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            // Of two steps, so that what is left of the curvature's own slope goes (Richardson).
            let found = (4.0 * difference(0.5 * step) - difference(step)) / 3.0;
            prop_assert!((found - slope).abs() < 0.02 * length + 2e-4, "{}: {slope} for {found}, of {length}", parameter.name);
        }
    }
}

#[test]
fn running_blocks_again_and_threads_change_no_bit() {
    for config in [TINY_QWEN3, TINY_GEMMA3] {
        let spec = spec(config);
        let network = Network::new(&spec).unwrap();
        let values = network.values(&random(&spec, 5)).unwrap();
        let (batch, next) = lesson(spec.vocab_size(), 6, &[20, 9]);
        let run = |threads, keep| {
            let engine = engine(threads);
            let mut gradients = Gradients::new(&network, |_| true);
            let lesson = Lesson::Tokens { next: &next };
            let loss = Trainer::new(&engine, &network).learn(&values, &batch, lesson, keep, &mut gradients);
            let all: Vec<f32> = (0..values.len()).flat_map(|number| gradients.get(number).unwrap().to_vec()).collect();
            (loss, all)
        };
        let expected = run(1, Keep::All);
        assert!(run(3, Keep::Blocks) == expected && run(2, Keep::All) == expected);
    }
}

#[test]
fn a_mixture_of_experts_is_refused() {
    let error = Network::new(&spec(TINY_QWEN3_MOE)).err().unwrap().to_string();
    assert!(error.contains("mixture of experts of block 0"), "{error}");
}

/// Matrices of a teacher are nine tenths of the student's (`scripts/fixtures/make_gradients.py`).
fn nine_tenths(network: &Network, values: &Values) -> Values {
    let matrix = |number: usize| network.parameters()[number].shape[0] > 1;
    let scaled = |(number, values): (usize, &Vec<f32>)| values.iter().map(|v| if matrix(number) { 0.9 * v } else { *v }).collect();
    values.iter().enumerate().map(scaled).collect()
}

#[test]
fn every_gradient_is_pytorchs() {
    let folder = fixtures().join("gradients");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let golden = entry.unwrap().path();
        let name = golden.file_name().unwrap().to_string_lossy().into_owned();
        let model = fixtures().join("arch").join(&name);
        let (checkpoint, golden) =
            (Checkpoint::open(&Folder::disk(&model).unwrap()).unwrap(), Checkpoint::open(&Folder::disk(&golden).unwrap()).unwrap());
        let mut spec = ArchSpec::from_config(checkpoint.config()).unwrap();
        spec.settle(&checkpoint).unwrap();
        let network = Network::new(&spec).unwrap();
        let values = network.values(&checkpoint).unwrap();
        let (shape, ids) = octet_testkit::npy_i64(&model.join("input_ids.npy"));
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let batch = Batch::new(ids.chunks(shape[1]));
        // The next token, of the last one the first.
        let next: Vec<u32> = ids.chunks(shape[1]).flat_map(|row| row.iter().skip(1).chain(&row[..1]).copied()).collect();
        let (engine, teacher) = (engine(2), nine_tenths(&network, &values));
        let mut trainer = Trainer::new(&engine, &network);
        let hidden = trainer.hidden(&teacher, &batch);
        for (what, lesson) in [("ce", Lesson::Tokens { next: &next }), ("kl", Lesson::Teacher { values: &teacher, hidden: &hidden })] {
            let mut gradients = Gradients::new(&network, |_| true);
            let loss = trainer.learn(&values, &batch, lesson, Keep::All, &mut gradients);
            let expected = golden.tensor(&format!("{what}.loss")).unwrap().unwrap().to_f32().unwrap()[0];
            assert!((loss as f32 - expected).abs() < 2e-5 * expected.max(1.0), "{name} {what}: loss {loss} for {expected}");
            for (number, parameter) in network.parameters().iter().enumerate() {
                let stored = match &parameter.kind {
                    ParamKind::Matrix(_) => format!("{what}.{}.weight", parameter.name),
                    ParamKind::Small { .. } => format!("{what}.{}", parameter.name),
                };
                let tensor = golden.tensor(&stored).unwrap().unwrap_or_else(|| panic!("{name} lacks {stored}"));
                let mut expected = tensor.to_f32().unwrap();
                let transposed = matches!(&parameter.kind, ParamKind::Matrix(site) if site.transposed);
                if transposed {
                    let [rows, cols] = parameter.shape;
                    expected = (0..rows * cols).map(|at| expected[at % cols * rows + at / cols]).collect();
                }
                let error = relative_error(gradients.get(number).unwrap(), &expected);
                assert!(error < 2e-4, "{name} {stored}: {error}");
            }
        }
        seen += 1;
    }
    assert!(seen >= 5, "{seen} goldens");
}
