//! Distillation of tiny models: it pays, it is deterministic, and it goes on where it was put down.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use octet_kernels::{Engine, Isa};
use octet_model::ArchSpec;
use octet_tensor::{Alphabet, Dtype, Matrix, QMatrix, RowFactor, Scheme, StoredQuant, Symmetry, Table, WeightSource};
use octet_testkit::{MemorySource, Random, TINY_GEMMA3, TINY_QWEN3};
use octet_tune::{Distiller, Keep, Learning, Network, Progress, QuantParam, Rule, Settings, Text, TuneError, Watch, needs};
use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const SETTINGS: Settings = Settings {
    block_steps: 0,
    steps: 60,
    batch_tokens: 128,
    learning: Learning { scales: 1e-2, codes: 2e-2, zeros: 0.0, near: 0.5, settle: 0.004 },
    norms: 2e-3,
    seed: 1,
    keep: Keep::All,
    lessons: true,
};

fn engine(threads: usize) -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// A model and the same with its matrices rounded to nearest.
fn models(config: &str, scheme: &str) -> (ArchSpec, MemorySource, MemorySource) {
    let spec = ArchSpec::from_config(&serde_json::from_str(config).unwrap()).unwrap();
    let shapes = spec.linear_sites().into_iter().map(|site| (format!("{}.weight", site.module), vec![site.rows, site.cols]));
    let original = MemorySource::random(shapes.chain(spec.other_tensors()), 3);
    let (scheme, mut quantized) = (scheme.parse::<Scheme>().unwrap(), original.clone());
    for site in spec.linear_sites() {
        let mut values = vec![0.0; site.rows * site.cols];
        original.matrix(&site.module).unwrap().unwrap().read_rows_f32(0..site.rows, &mut values).unwrap();
        let size = scheme.weights.group_size(site.cols);
        let (low, high) = scheme.weights.range();
        let alphabet = match scheme.weights.symmetry {
            Symmetry::Learnt => {
                Alphabet::Table(Table::new(std::array::from_fn(|i| (16 * i as i32 - 128 + (i * i % 15) as i32) as i8)).unwrap())
            }
            _ => scheme.weights.alphabet(),
        };
        let nearest = |exact: f32| match alphabet {
            Alphabet::Table(table) => {
                let distance = |level: &i8| (f32::from(*level) - exact).abs();
                *table.levels().iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
            }
            Alphabet::Even | Alphabet::Lattice => exact.round().clamp(low as f32, high as f32) as i8,
        };
        let (mut codes, mut scales) = (vec![], vec![]);
        for group in values.chunks(site.cols).flat_map(|row| row.chunks(size)) {
            let largest = group.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let scale = Dtype::F16.round(largest / high as f32);
            scales.push(scale);
            codes.extend(group.iter().map(|v| nearest(v / scale)));
        }
        if scheme.weights.has_whole_scales() {
            for row in scales.chunks_mut(scheme.weights.groups(site.cols)) {
                let factor = RowFactor::reaching(row.iter().fold(0.0, |most, &scale| f32::max(most, scale)), Dtype::F16);
                row.iter_mut().for_each(|scale| *scale = factor.round(*scale));
            }
        }
        let q = QMatrix::spelt(alphabet, (site.rows, site.cols), scheme.weights, codes, scales, Dtype::F16, vec![]).unwrap();
        quantized.insert_matrix(&site.module, Matrix::Quant(StoredQuant::new(&*site.module, Arc::new((q, scheme)))));
    }
    (spec, original, quantized)
}

fn windows(vocab: usize, count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (0..32).map(|_| random.below(vocab) as u32).collect()).collect()
}

/// Stops after some steps and keeps the state; counts steps.
#[derive(Default)]
struct Stop<'a> {
    after: usize,
    cancel: Option<&'a AtomicBool>,
    state: Vec<u8>,
    steps: usize,
}

impl Watch for Stop<'_> {
    fn progress(&mut self, at: Progress) {
        self.steps += 1;
        if let (Some(cancel), true) = (self.cancel, at.done == self.after) {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    fn save(&mut self, last: bool, state: &mut dyn FnMut() -> Vec<u8>) {
        if last {
            self.state = state();
        }
    }
}

type Learnt = (Vec<(String, QMatrix)>, Vec<Vec<u8>>);

fn learnt(distiller: &Distiller<'_>) -> Learnt {
    let matrices = distiller.matrices().unwrap().into_iter().map(|(name, q)| (name.to_string(), q)).collect();
    (matrices, distiller.tensors().unwrap().iter().map(|tensor| tensor.bytes().to_vec()).collect())
}

#[test]
fn text_that_was_not_learnt_from_gains_and_threads_change_nothing() {
    for (config, scheme, gain) in [
        (TINY_QWEN3, "w3a16-g32", 0.75),
        (TINY_GEMMA3, "w4a16-pc", 0.9),
        (TINY_QWEN3, "w4ta16-g32", 0.9),
        (TINY_QWEN3, "w4ta16-g16-s8", 0.9),
        (TINY_GEMMA3, "w4la16-g32", 0.9),
    ] {
        let (spec, original, quantized) = models(config, scheme);
        let network = Network::new(&spec).unwrap();
        let (text, held, test) = (windows(64, 60, 1), windows(64, 8, 2), windows(64, 16, 3));
        let [text, held, test] = [&text, &held, &test].map(|text| text.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let run = |threads, keep, lessons| {
            let engine = engine(threads);
            let settings = Settings { keep, lessons, ..SETTINGS };
            let mut distiller = Distiller::new(&engine, &network, &original, &quantized, settings).unwrap();
            let before = distiller.divergence(&test);
            let outcome = distiller.run(&Text { windows: &text, held: &held }, &AtomicBool::new(false), &mut Stop::default()).unwrap();
            assert!(outcome.after < outcome.before && outcome.best > 0);
            (before, distiller.divergence(&test), learnt(&distiller))
        };
        let (before, after, result) = run(1, Keep::All, true);
        assert!(after < gain * before, "{scheme}: {before} to {after}");
        assert!(run(2, Keep::Blocks, false).2 == result, "{scheme}: other threads, other bits");
    }
}

#[test]
fn what_was_put_down_goes_on_to_the_same_result() {
    let (spec, original, quantized) = models(TINY_QWEN3, "w4a16-g32");
    let (network, engine) = (Network::new(&spec).unwrap(), engine(2));
    let settings = Settings { steps: 12, ..SETTINGS };
    let (text, held) = (windows(64, 9, 4), windows(64, 2, 5));
    let (text, held): (Vec<&[u32]>, Vec<&[u32]>) = (text.iter().map(Vec::as_slice).collect(), held.iter().map(Vec::as_slice).collect());
    let text = Text { windows: &text, held: &held };
    let fresh = || Distiller::new(&engine, &network, &original, &quantized, settings).unwrap();
    let mut whole = fresh();
    let expected = whole.run(&text, &AtomicBool::new(false), &mut Stop::default()).unwrap();
    let cancel = AtomicBool::new(false);
    let mut stop = Stop { after: 7, cancel: Some(&cancel), ..Stop::default() };
    let error = fresh().run(&text, &cancel, &mut stop).unwrap_err();
    assert!(matches!(error, TuneError::Interrupted { done: 7, total: 12 }), "{error}");
    let mut again = fresh();
    again.resume(&stop.state).unwrap();
    let mut watch = Stop::default();
    assert_eq!(again.run(&text, &AtomicBool::new(false), &mut watch).unwrap(), expected);
    assert_eq!(watch.steps, 1 + 12 - 7, "finished steps are not taken again");
    assert!(learnt(&again) == learnt(&whole));
    for broken in [&stop.state[..stop.state.len() - 1], &stop.state[..40], b"octune00", &[stop.state.clone(), vec![0]].concat()] {
        assert!(matches!(fresh().resume(broken), Err(TuneError::State { .. })));
    }
}

#[test]
fn blocks_learn_by_themselves_and_go_on_where_they_were_put_down() {
    let (spec, original, quantized) = models(TINY_QWEN3, "w3a16-g32");
    let network = Network::new(&spec).unwrap();
    let (text, held, test) = (windows(64, 40, 1), windows(64, 8, 2), windows(64, 16, 3));
    let [text, held, test] = [&text, &held, &test].map(|text| text.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let text = Text { windows: &text, held: &held };
    let settings = Settings { block_steps: 30, steps: 0, ..SETTINGS };
    let run = |threads, state: Option<&[u8]>, stop: &mut Stop<'_>| {
        let engine = engine(threads);
        let mut distiller = Distiller::new(&engine, &network, &original, &quantized, settings).unwrap();
        let before = distiller.divergence(&test);
        state.into_iter().for_each(|state| distiller.resume(state).unwrap());
        let never = AtomicBool::new(false);
        let outcome = distiller.run(&text, stop.cancel.unwrap_or(&never), stop)?;
        Ok::<_, TuneError>((outcome, before, distiller.divergence(&test), learnt(&distiller)))
    };
    let (outcome, before, after, result) = run(1, None, &mut Stop::default()).unwrap();
    assert!(outcome.blocks == Some(outcome.after) && outcome.after < outcome.before && outcome.best == 0, "{outcome:?}");
    assert!(after < 0.9 * before, "{before} to {after}");
    let cancel = AtomicBool::new(false);
    let mut stop = Stop { after: 40, cancel: Some(&cancel), ..Stop::default() };
    let error = run(2, None, &mut stop).unwrap_err();
    assert!(matches!(error, TuneError::Interrupted { done: 40, total } if total == 30 * spec.layers().len()), "{error}");
    let mut watch = Stop::default();
    let again = run(2, Some(&stop.state), &mut watch).unwrap();
    assert!(again.0 == outcome && again.3 == result, "other threads and a pause, other bits");
    assert_eq!(watch.steps, 1 + 30 * (spec.layers().len() - 1), "the first block is not begun again");
    let plain = engine(1);
    let mut other = Distiller::new(&plain, &network, &original, &quantized, SETTINGS).unwrap();
    assert!(matches!(other.resume(&stop.state), Err(TuneError::State { .. })), "no block was to learn by itself");
}

#[test]
fn points_of_a_lattice_stay_and_their_scales_learn() {
    let (engine, scheme) = (engine(1), "w4ea16-g32".parse::<Scheme>().unwrap().weights);
    let matrix = QMatrix::new(16, 32, scheme, [2, 0, 0, -2, 1, 1, 1, 1].repeat(64), vec![1.0; 16], Dtype::F32, vec![]);
    assert!(matrix.is_err(), "codes of both parities");
    let matrix = QMatrix::new(16, 32, scheme, [2, 0, 0, -2, 0, 4, 0, 0].repeat(64), vec![1.0; 16], Dtype::F32, vec![]).unwrap();
    let rates = Learning { scales: 0.01, codes: 0.02, zeros: 0.0, near: 0.0, settle: 0.0 };
    let mut param = QuantParam::new(0, &matrix, &[0.3; 512], rates).unwrap();
    assert_eq!(param.learnt(), 16);
    for step in 1..=20 {
        param.learn(&engine, &mut [1.0; 512], rates, Rule::Adam(step));
    }
    let learnt = param.matrix().unwrap();
    assert_eq!(learnt.codes(), matrix.codes());
    assert!(learnt.scales().iter().all(|&scale| scale < 0.9), "{:?}", learnt.scales());
}

#[test]
fn noise_moves_no_code_that_settles_and_gradients_that_agree_do() {
    let (engine, scheme) = (engine(1), "w4a16-g32".parse::<Scheme>().unwrap().weights);
    let matrix = QMatrix::new(16, 32, scheme, vec![0; 512], vec![1.0; 16], Dtype::F32, vec![]).unwrap();
    let moved = |settle, agreed: f32| {
        let rates = Learning { scales: 0.0, codes: 0.02, zeros: 0.0, near: 0.0, settle };
        let mut param = QuantParam::new(0, &matrix, &[0.0; 512], rates).unwrap();
        let mut random = Random::new(7);
        for step in 1..=1000 {
            let mut gradient: Vec<f32> = (0..512).map(|_| agreed + if random.below(2) == 0 { 1.0 } else { -1.0 }).collect();
            param.learn(&engine, &mut gradient, rates, Rule::Adam(step));
        }
        param.matrix().unwrap().codes().iter().filter(|&&code| code != 0).count()
    };
    assert!(moved(0.0, 0.0) > 100, "noise adds up where nothing settles");
    assert_eq!((moved(0.02, 0.0), moved(0.02, 1.0)), (0, 512));
}

#[test]
fn nothing_to_learn_is_said() {
    let (spec, original, quantized) = models(TINY_QWEN3, "w4a16-g32");
    let (network, engine) = (Network::new(&spec).unwrap(), engine(1));
    let error = Distiller::new(&engine, &network, &original, &original, SETTINGS).err().unwrap();
    assert!(matches!(error, TuneError::NothingToLearn));
    let mut distiller = Distiller::new(&engine, &network, &original, &quantized, SETTINGS).unwrap();
    let window: &[u32] = &[1, 2, 3];
    let error = distiller.run(&Text { windows: &[window], held: &[] }, &AtomicBool::new(false), &mut Stop::default()).unwrap_err();
    assert!(error.to_string().contains("at least 2 windows") && error.to_string().contains("has 1"), "{error}");
}

#[test]
fn a_small_budget_runs_blocks_again() {
    let (spec, ..) = models(TINY_QWEN3, "w4a16-g32");
    let rich = needs(&spec, &SETTINGS, (60, 32, 4), u64::MAX);
    let middling = needs(&spec, &SETTINGS, (60, 32, 4), rich.bytes - 1);
    let poor = needs(&spec, &SETTINGS, (60, 32, 4), middling.bytes - 1);
    assert_eq!(
        [rich, middling, poor].map(|needs| (needs.keep, needs.lessons)),
        [(Keep::All, true), (Keep::All, false), (Keep::Blocks, false)]
    );
    assert!(poor.bytes < middling.bytes && middling.bytes < rich.bytes && poor.work > middling.work && middling.work > rich.work);
}
