//! The built-in model and sabotaged copies of it, judged for real: every gate must fire on the model that is broken for it
//! and must not on the one that is merely quantized.
#![allow(clippy::unwrap_used, reason = "tests")]

use octet_eval::{
    Measures, Windows,
    degeneration::TextFigures,
    gates::{self, Gate, Outcome, Status, Thresholds},
    health::{self, HealthOptions, HealthRun},
    integrity,
    looks::Look,
    report::TextInfo,
    score,
    size::QuantizedMatrices,
    speed::{self, SpeedOptions},
    text::{ReadOptions, Text},
};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::{Engine, Isa};
use octet_model::ArchSpec;
use octet_runtime::{GenerateOptions, OpenOptions, SamplerConfig, TextModel, generate, generate_batch};
use octet_tensor::{Dtype, FloatMatrix, Matrix, QMatrix, Result, Scheme, StoredQuant, Tensor, WeightSource};
use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

/// Where a checkpoint is changed before the model is made of it.
type Matrices = dyn Fn(&str, Matrix) -> Option<Matrix> + Send + Sync;
type Tensors = dyn Fn(&str, Tensor) -> Option<Tensor> + Send + Sync;

struct Changed {
    inner: Checkpoint,
    matrices: Box<Matrices>,
    tensors: Box<Tensors>,
    /// Which stored layer stands for each layer of the model.
    layers: usize,
}

impl Changed {
    fn stored(&self, name: &str) -> String {
        let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else { return name.into() };
        format!("model.layers.{}.{rest}", layer.parse::<usize>().unwrap() % self.layers)
    }
}

impl WeightSource for Changed {
    fn matrix(&self, module: &str) -> Result<Option<Matrix>> {
        Ok(self.inner.matrix(&self.stored(module))?.map(|m| (self.matrices)(module, m.clone()).unwrap_or(m)))
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.inner.tensor(&self.stored(name))?.map(|t| (self.tensors)(name, t.clone()).unwrap_or(t)))
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }
}

fn folder() -> Folder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    Folder::disk(&path).unwrap()
}

fn engine() -> Engine {
    Engine::new(Isa::best(), NonZeroUsize::new(2).unwrap()).unwrap()
}

/// pocket with changed matrices and tensors, and `repeats` times its layers.
fn changed(matrices: Box<Matrices>, tensors: Box<Tensors>, repeats: usize) -> TextModel {
    let inner = Checkpoint::open(&folder()).unwrap();
    let mut config = inner.config().clone();
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    config["num_hidden_layers"] = (layers * repeats).into();
    config.as_object_mut().unwrap().remove("layer_types");
    let source = Changed { inner, matrices, tensors, layers };
    let spec = ArchSpec::from_config(&config).unwrap();
    TextModel::assemble(&folder(), &config, &engine(), spec, &source, OpenOptions::default(), &mut |_, _| {}).unwrap()
}

fn with_matrices(f: impl Fn(&str, Matrix) -> Option<Matrix> + Send + Sync + 'static) -> TextModel {
    changed(Box::new(f), Box::new(|_, _| None), 1)
}

/// pocket whose logits are `factor` times as large: the final norm's weight is scaled.
fn sharpened(factor: f32) -> TextModel {
    let scale = move |name: &str, tensor: Tensor| {
        let values: Vec<f32> = tensor.to_f32().unwrap().iter().map(|v| v * factor).collect();
        (name == "model.norm.weight").then(|| Tensor::from_f32(name, tensor.shape().to_vec(), &values).unwrap())
    };
    changed(Box::new(|_, _| None), Box::new(scale), 1)
}

fn floats(matrix: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows_f32(0..matrix.rows(), &mut values).unwrap();
    values
}

/// Plain round-to-nearest: scale = largest magnitude / largest code.
fn rounded(name: &str, matrix: &Matrix, scheme: &str, scale_dtype: Dtype) -> Matrix {
    let scheme: Scheme = scheme.parse().unwrap();
    let (weights, cols) = (scheme.weights, matrix.cols());
    let (mut codes, mut scales) = (vec![], vec![]);
    for row in floats(matrix).chunks(cols) {
        for group in row.chunks(weights.group_size(cols)) {
            let largest = group.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-6);
            let scale = scale_dtype.round(largest / weights.bits.max_code() as f32);
            codes.extend(group.iter().map(|v| octet_tensor::round_code(v / scale, weights.bits.min_code(), weights.bits.max_code()) as i8));
            scales.push(scale);
        }
    }
    let zeros = if weights.is_asymmetric() { vec![0; scales.len()] } else { vec![] };
    let q = QMatrix::new(matrix.rows(), cols, weights, codes, scales, scale_dtype, zeros).unwrap();
    Matrix::Quant(StoredQuant::new(name, Arc::new((q, scheme))))
}

fn is_linear(module: &str) -> bool {
    module.ends_with("_proj")
}

static BASE: LazyLock<TextModel> = LazyLock::new(|| TextModel::open(&folder(), &engine(), OpenOptions::default()).unwrap());
static EIGHT: LazyLock<TextModel> =
    LazyLock::new(|| with_matrices(|name, m| is_linear(name).then(|| rounded(name, &m, "w8a16", Dtype::Bf16))));

fn text_ids() -> Vec<u32> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket/text/evaluation.jsonl");
    let text = Text::open(&path, ReadOptions::default()).unwrap();
    text.tokens(&BASE.tokenizer, BASE.vocab(), 5_000).unwrap()
}

/// Windows from all over the evaluation text.
fn windows(count: usize, context: usize) -> Windows {
    let ids = text_ids();
    let step = ids.len() / count;
    let sample: Vec<u32> = (0..count).flat_map(|i| ids[i * step..i * step + context].to_vec()).collect();
    Windows::of(&BASE, &sample, Some(context)).unwrap()
}

/// Quality and fidelity gates of a model against pocket.
fn judge(quant: &TextModel, strict: bool) -> (Vec<Gate>, Measures) {
    let windows = windows(16, 96);
    let comparison = score::compare(&BASE.model, &quant.model, &windows, &mut |_, _| CONTINUE).unwrap();
    let (measures, paired, point) = Measures::of_pair(TextInfo::of("evaluation", &windows), &comparison, Look::Only, 1);
    let limits = Thresholds { strict, ..Thresholds::default() };
    let mut gates = vec![gates::quality(paired, point, comparison.non_finite, comparison.tokens(), windows.context, &limits)];
    gates.extend(gates::fidelity(&measures.kl.unwrap(), measures.top1.unwrap(), 8.0, &limits));
    (gates, measures)
}

fn outcomes(gates: &[Gate]) -> Vec<Outcome> {
    gates.iter().map(|g| g.outcome).collect()
}

#[test]
fn eight_bits_are_accepted() {
    let (gates, measures) = judge(&EIGHT, true);
    assert_eq!(Status::of(&gates, false), Status::Accepted, "{gates:#?}");
    let ppl = measures.ppl.unwrap();
    assert!(ppl.base > 1.0 && ppl.base < 60.0, "{ppl:?}");
    assert!(measures.kl.unwrap().mean > 0.0 && measures.top1.unwrap() < 1.0 + f64::EPSILON);
    assert!(measures.by_position.len() == 10 && measures.by_position.iter().all(|t| t.kl < 0.02));
}

#[test]
fn the_original_against_itself_shows_no_difference() {
    let (gates, measures) = judge(&BASE, true);
    assert_eq!(Status::of(&gates, false), Status::Accepted);
    assert_eq!((measures.kl.unwrap().max < 1e-6, measures.top1, measures.ppl.unwrap().ratio), (true, Some(1.0), Some(1.0)));
}

#[test]
fn quality_and_fidelity_refuse_sabotaged_models() {
    let scaled = sharpened(1.6);
    assert_eq!(outcomes(&judge(&scaled, true).0)[..2], [Outcome::Failed, Outcome::Failed]);
    let one_layer = with_matrices(|name, m| {
        let bits = if name.starts_with("model.layers.2.") { "w2a16" } else { "w8a16" };
        is_linear(name).then(|| rounded(name, &m, bits, Dtype::Bf16))
    });
    let (gates, _) = judge(&one_layer, false);
    assert_eq!(outcomes(&gates), [Outcome::Failed; 3], "{gates:#?}");
    assert_eq!(Status::of(&gates, false), Status::Refused);
    assert!(gates[0].ci95.unwrap()[0] > 1.02);
}

#[test]
fn numbers_that_are_not_finite_are_refused_and_not_an_error() {
    let broken = with_matrices(|name, m| {
        (name == "model.layers.1.mlp.down_proj").then(|| {
            let mut values = floats(&m);
            values[7] = f32::NAN;
            let tensor = Tensor::from_f32(name, vec![m.rows(), m.cols()], &values).unwrap();
            Matrix::Float(FloatMatrix::dense(tensor).unwrap())
        })
    });
    let (gates, _) = judge(&broken, false);
    assert_eq!(gates[0].outcome, Outcome::Failed);
    assert!(gates[0].note.contains("not finite"), "{}", gates[0].note);
    let options = HealthOptions { tokens: 4, ..HealthOptions::default() };
    let prompts = health::prompts(&text_ids(), None, &options);
    let run = health::run(&broken, &prompts, &options, &mut |_, _| CONTINUE).unwrap();
    assert!(run.non_finite);
    let fine =
        HealthRun { figures: [vec![TextFigures::default()], vec![TextFigures::default()]], texts: [vec![], vec![]], non_finite: false };
    assert_eq!(gates::health(&health::compare(&fine, &run, &options)).outcome, Outcome::Failed);
}

#[test]
fn health_refuses_a_loop_prone_model_and_accepts_eight_bits() {
    let options = HealthOptions { prompts: 32, tokens: 128, ..HealthOptions::default() };
    let prompts = health::prompts(&text_ids(), BASE.tokenizer.leading_bos(), &options);
    let run = |model: &TextModel| health::run(model, &prompts, &options, &mut |_, _| CONTINUE).unwrap();
    let base = run(&BASE);
    let good = gates::health(&health::compare(&base, &run(&EIGHT), &options));
    assert_eq!(good.outcome, Outcome::Passed, "{}", good.note);
    // Logits eight times as large make sampling at T = 0.8 as good as greedy, which loops.
    let looping = gates::health(&health::compare(&base, &run(&sharpened(8.0)), &options));
    assert_eq!(looping.outcome, Outcome::Failed, "{}", looping.note);
    assert!(looping.note.contains("sampled"), "{}", looping.note);
}

#[test]
fn speed_refuses_a_model_with_eight_times_the_layers() {
    // So many that no disturbance of a busy machine hides it.
    let slow = changed(Box::new(|_, _| None), Box::new(|_, _| None), 8);
    let options =
        SpeedOptions { pairs: 10, prompt_tokens: 8, prefill_tokens: 32, repetition: Duration::from_millis(15), ..SpeedOptions::default() };
    let ids = text_ids();
    let measured =
        speed::measure(&BASE.model, &slow.model, &ids, speed::check_cache(BASE.model.engine(), 0), &options, &mut || CONTINUE).unwrap();
    let gate = gates::speed(&measured, &Thresholds::default());
    assert_eq!(gate.outcome, Outcome::Failed, "{gate:?}");
    // Even where only "not slower" is asked for.
    let cached = speed::Speed { cache: speed::CacheCheck { served_from_cache: true, ..measured.cache.clone() }, ..measured };
    assert_eq!(gates::speed(&cached, &Thresholds::default()).outcome, Outcome::Failed);
}

#[test]
fn size_refuses_wasteful_scales() {
    let modules = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"];
    let sizes = |scheme: &'static str, dtype| {
        let inner = Checkpoint::open(&folder()).unwrap();
        let quantize = move |name: &str, m: Matrix| Some(rounded(name, &m, scheme, dtype));
        let source = Changed { inner, matrices: Box::new(quantize), tensors: Box::new(|_, _| None), layers: 4 };
        QuantizedMatrices::of(&source, modules).unwrap().size(1000, 1000, None)
    };
    let limits = Thresholds::default();
    assert_eq!(gates::size(&sizes("w4a16-g32", Dtype::F16), &limits)[0].outcome, Outcome::Passed);
    let wasteful = &gates::size(&sizes("w4a16-g32-asym", Dtype::F32), &limits)[0];
    assert_eq!(wasteful.outcome, Outcome::Failed, "{wasteful:?}");
}

#[test]
fn integrity_compares_logits_bit_for_bit() {
    let ids = &text_ids()[..24];
    let again = TextModel::open(&folder(), &engine(), OpenOptions::default()).unwrap();
    assert!(integrity::same_logits(&BASE.model, &again.model, ids).unwrap().pass);
    let check = integrity::same_logits(&BASE.model, &EIGHT.model, ids).unwrap();
    assert!(!check.pass && check.note.contains("differ"));
    assert_eq!(gates::integrity(&[check]).outcome, Outcome::Failed);
}

#[test]
fn generation_streams_stops_and_does_not_depend_on_neighbours() {
    let prompt = BASE.tokenizer.encode("PCI device 8086:10d3 is", true).unwrap();
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    let mut streamed = String::new();
    let mut collect = |text: &str| {
        streamed.push_str(text);
        CONTINUE
    };
    let whole = generate(&BASE, &prompt, &options, &mut collect).unwrap();
    assert_eq!(streamed, whole.text);
    assert!(whole.text.starts_with(' ') && whole.text.contains("Intel Corporation"), "{:?}", whole.text);
    // A stop string ends the text in front of it.
    let word = whole.text.split_whitespace().nth(1).unwrap().to_string();
    let stopping = GenerateOptions { stop: vec![word.clone()], ..options.clone() };
    let stopped = generate(&BASE, &prompt, &stopping, &mut |_| CONTINUE).unwrap();
    assert_eq!(stopped.finish, octet_runtime::FinishReason::StopString);
    assert_eq!(stopped.text, whole.text[..whole.text.find(&word).unwrap()]);
    // Breaking off.
    let cancelled = generate(&BASE, &prompt, &options, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(cancelled.finish, octet_runtime::FinishReason::Cancelled);
    // In a batch, every sequence is as if it were alone.
    let other = BASE.tokenizer.encode("# tar\n\n> Archiving utility.", true).unwrap();
    let sampled = GenerateOptions { sampler: SamplerConfig::sampled(0.8, 3), ..options };
    let prompts = [prompt, other];
    let both = generate_batch(&BASE, &prompts, &sampled, &mut |_| CONTINUE).unwrap();
    let first = generate_batch(&BASE, &prompts[..1], &sampled, &mut |_| CONTINUE).unwrap();
    assert_eq!(both[0].ids, first[0].ids);
    assert_ne!(both[0].ids, both[1].ids);
    assert_eq!(both[0].timings.decode_tokens, both[0].ids.len() - 1);
}

#[test]
fn likelihoods_alone_and_in_a_pair_agree() {
    let windows = windows(8, 64);
    let alone = score::score(&BASE.model, &windows, &mut |_, _| CONTINUE).unwrap();
    let pair = score::compare(&BASE.model, &EIGHT.model, &windows, &mut |_, _| CONTINUE).unwrap();
    for (a, b) in alone.iter().zip(&pair.windows) {
        assert_eq!((a.tokens, a.bytes, a.nll), (b.tokens, b.bytes, b.base_nll));
    }
    let ppl = Measures::of_one(TextInfo::of("t", &windows), &alone, 0).ppl.unwrap();
    assert!(ppl.base_ci95.is_some_and(|[low, high]| low < ppl.base && ppl.base < high), "{ppl:?}");
    let interrupted = score::score(&BASE.model, &windows, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(interrupted, Err(octet_eval::Error::Interrupted)));
}
