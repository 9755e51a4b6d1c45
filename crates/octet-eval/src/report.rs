//! The report of a verdict: `validation_report.json`.

use crate::{
    along::Along,
    fidelity::{KlFigures, Tenth, by_position, same_top_share},
    gates::{Gate, Status},
    health::Health,
    histogram::{Bin, kl_histogram},
    integrity::Check,
    looks::{Look, Looked},
    machine::Machine,
    memory::ProcessMemory,
    paired::{delta_bits_per_byte, ln_perplexity_ratio},
    risk::Risk,
    samples::Sample,
    score::{Comparison, WindowScore},
    size::Size,
    speed::Speed,
    stats::{Interval, bootstrap_ratio},
    tasks::TaskFigures,
    trinity::Trinity,
    windows::Windows,
};
use octet_kernels::Engine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the report's fields; a field that changes its meaning raises it.
pub const SCHEMA_VERSION: u32 = 1;

/// The file the report is written to.
pub const REPORT_FILE: &str = "validation_report.json";

/// A verdict with everything it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The verdict.
    pub status: Status,
    /// The scheme that was judged.
    pub scheme: String,
    /// Every gate.
    pub gates: Vec<Gate>,
    /// Every measurement.
    pub measures: Measures,
    /// The Trinity Score, where it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trinity: Option<Trinity>,
    /// What speaks for looking before it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<Risk>,
    /// Every rung that was tried or passed over to get here, the last one this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ladder: Vec<RungReport>,
    /// What quantizing cost each tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorFigures>,
    /// Where it was measured.
    pub machine: Machine,
    /// The command line.
    pub command: Vec<String>,
}

impl Report {
    /// A report of these gates; the status follows from them.
    pub fn new(scheme: String, gates: Vec<Gate>, fell_back: bool, measures: Measures, machine: Machine, command: Vec<String>) -> Self {
        let status = Status::of(&gates, fell_back);
        Self {
            schema_version: SCHEMA_VERSION,
            status,
            scheme,
            gates,
            measures,
            trinity: None,
            risk: None,
            ladder: vec![],
            tensors: vec![],
            machine,
            command,
        }
    }

    /// The JSON document, indented, with a line break at its end.
    ///
    /// # Errors
    /// Never for reports made by this crate; the type of the error is that of the serializer.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// What quantizing cost one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFigures {
    /// Its module.
    pub name: String,
    /// What it was quantized to.
    pub scheme: String,
    /// Bits a weight, scales and zero points included.
    pub bits_per_weight: f64,
    /// ‖W − Q‖² / ‖W‖².
    pub error: f64,
    /// The same of its outputs, as far as statistics tell.
    pub loss: f64,
}

/// One rung of the ladder and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RungReport {
    /// What it is.
    pub rung: String,
    /// What was quantized to.
    pub scheme: String,
    /// `accepted`, `refused`, `undecided`, `declined`, `short` (of the target score), `passed over` or `kept`.
    pub outcome: String,
    /// Why.
    pub note: String,
    /// Perplexity over that of the original.
    pub ratio: Option<f64>,
    /// Its 95 % interval.
    pub ratio_ci95: Option<[f64; 2]>,
    /// Mean KL divergence in nats.
    pub kl: Option<f64>,
    /// Size over that of the original in 16 bits.
    pub size_ratio: Option<f64>,
    /// Decoding speed over that of the original in 16 bits.
    pub decode_speedup: Option<f64>,
    /// The Trinity Score.
    pub score: Option<f64>,
}

impl RungReport {
    /// What `report` says about a rung.
    pub fn of(rung: &str, scheme: &str, outcome: &str, note: &str, report: &Report) -> Self {
        let m = &report.measures;
        Self {
            rung: rung.into(),
            scheme: scheme.into(),
            outcome: outcome.into(),
            note: note.into(),
            ratio: m.ppl.and_then(|ppl| ppl.ratio),
            ratio_ci95: m.ppl.and_then(|ppl| ppl.ratio_ci95),
            kl: m.kl.map(|kl| kl.mean),
            size_ratio: m.size.map(|size| size.ratio),
            decode_speedup: m.speed.as_ref().and_then(|speed| speed.decode.ratio).map(|ratio| ratio.estimate),
            score: report.trinity.as_ref().map(|trinity| trinity.score),
        }
    }
}

/// What was measured; absent where it was not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measures {
    /// The text and how it was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextInfo>,
    /// How much of the text was enough, where less than all of it might have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked: Option<Looked>,
    /// Perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppl: Option<Perplexity>,
    /// KL(original ‖ quantized) in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlFigures>,
    /// Share of tokens on which both models agree about the likeliest next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Bits a byte of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<BitsPerByte>,
    /// Divergence along the context.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_position: Vec<Tenth>,
    /// Divergence along long windows, where the text allows some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_context: Option<Along>,
    /// How many tokens diverge how far.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kl_histogram: Vec<Bin>,
    /// Each evaluation text by itself, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<TextMeasures>,
    /// Size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What it asks of the machine and of whoever makes it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ease: Option<Ease>,
    /// Text health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Accuracy on questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskFigures>,
    /// Some of the texts that both models wrote for the health check.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Checks of the written files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub integrity: Vec<Check>,
    /// Kernels that ran while texts were scored, with the calls of each (of both models where they ran together).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, u64>,
    /// What judging cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Calls of each kernel of `engine` since it had made the calls `before`.
pub fn kernels_since(engine: &Engine, before: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    let earlier = |name| before.iter().find(|(known, _)| *known == name).map_or(0, |(_, calls)| *calls);
    let since = engine.kernel_calls().into_iter().map(|(name, calls)| (name.to_string(), calls - earlier(name)));
    since.filter(|(_, calls)| *calls > 0).collect()
}

/// One of several evaluation texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextMeasures {
    /// The text and how it was cut.
    pub text: TextInfo,
    /// Perplexities and their paired ratio.
    pub ppl: Perplexity,
    /// KL(original ‖ quantized) in nats.
    pub kl: Option<KlFigures>,
    /// Share of tokens on which both models agree about the likeliest next one.
    pub top1: Option<f64>,
    /// Bits a byte of text.
    pub bits_per_byte: BitsPerByte,
}

/// What judging cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds it was forecast to take, from a short trial, if a first look decides.
    pub forecast_seconds: Option<f64>,
    /// Seconds it was forecast to take at most: if all of the text must be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast_most_seconds: Option<f64>,
    /// Seconds it took.
    pub seconds: f64,
    /// Whether what the original makes of the texts was taken from the reference cache.
    pub reference_cached: bool,
    /// Seconds of each part, in the order they ran.
    pub parts: Vec<(String, f64)>,
}

/// The evaluation text and how it was cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextInfo {
    /// Where it came from.
    pub name: String,
    /// Predicted tokens.
    pub tokens: usize,
    /// Bytes they stand for.
    pub bytes: usize,
    /// Windows.
    pub windows: usize,
    /// Blocks that intervals rest on: halves of windows of 128 tokens and more, shorter windows whole.
    #[serde(default)]
    pub blocks: usize,
    /// Tokens of a full window.
    pub context: usize,
    /// Whether every window begins with a beginning-of-sequence token.
    pub bos: bool,
}

impl TextInfo {
    /// The text `name` cut into `windows`.
    pub fn of(name: impl Into<String>, windows: &Windows) -> Self {
        Self {
            name: name.into(),
            tokens: windows.tokens(),
            bytes: windows.bytes.iter().sum(),
            windows: windows.windows.len(),
            blocks: windows.blocks(),
            context: windows.context,
            bos: windows.bos.is_some(),
        }
    }

    /// Several texts, cut into windows of one length, as one; `None` of none.
    pub fn together(all: &[Self]) -> Option<Self> {
        let names: Vec<&str> = all.iter().map(|text| text.name.as_str()).collect();
        let sum = |f: fn(&Self) -> usize| all.iter().map(f).sum();
        let (tokens, bytes, windows, blocks) = (sum(|t| t.tokens), sum(|t| t.bytes), sum(|t| t.windows), sum(|t| t.blocks));
        all.first().map(|first| Self { name: names.join(", "), tokens, bytes, windows, blocks, ..first.clone() })
    }
}

/// Perplexity of one or both models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Of the original (or of the only model).
    #[serde(with = "crate::number")]
    pub base: f64,
    /// 95 % interval of `base`.
    pub base_ci95: Option<[f64; 2]>,
    /// Of the quantized model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<f64>,
    /// 95 % interval of `quant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant_ci95: Option<[f64; 2]>,
    /// `quant` over `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Paired 95 % interval of `ratio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_ci95: Option<[f64; 2]>,
}

/// Bits a byte of text of one or both models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BitsPerByte {
    /// Of the original (or of the only model).
    #[serde(with = "crate::number")]
    pub base: f64,
    /// Of the quantized model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<f64>,
    /// `quant` − `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
    /// Paired 95 % interval of `delta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_ci95: Option<[f64; 2]>,
}

/// Memory of both models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes the original's weights keep resident when it runs.
    pub base_weights: Option<u64>,
    /// Bytes the quantized model's weights keep resident when it runs.
    pub quant_weights: Option<u64>,
    /// What this process (which held both) used.
    #[serde(flatten)]
    pub process: ProcessMemory,
}

/// What a model asks of the machine and of whoever makes it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ease {
    /// Milliseconds the quantized model took to open.
    pub load_ms: Option<f64>,
    /// Milliseconds the original took.
    pub base_load_ms: Option<f64>,
    /// Bytes that were free for this process.
    pub free_bytes: Option<u64>,
    /// Share of what is needed to make it again that is known: recipe, original, seed, texts.
    pub provenance: Option<f64>,
    /// GB/s that a streaming read of a buffer as large as the original's weights reaches.
    pub read_gb_s: Option<f64>,
    /// Billions of int8 operations a second that the engine reaches.
    pub int8_gop_s: Option<f64>,
}

impl Measures {
    /// Perplexity and bits per byte of one model.
    pub fn of_one(text: TextInfo, scores: &[WindowScore], seed: u64) -> Self {
        let blocks: Vec<(f64, f64)> = scores.iter().map(|s| (s.nll, s.tokens as f64)).collect();
        let (nll, tokens) = total(&blocks);
        let ppl = Perplexity {
            base: (nll / tokens).exp(),
            base_ci95: interval(&blocks, seed),
            quant: None,
            quant_ci95: None,
            ratio: None,
            ratio_ci95: None,
        };
        let base = bits(nll, scores.iter().map(|s| s.bytes).sum());
        let bits_per_byte = BitsPerByte { base, quant: None, delta: None, delta_ci95: None };
        Self { text: Some(text), ppl: Some(ppl), bits_per_byte: Some(bits_per_byte), ..Self::default() }
    }

    /// Perplexities, divergence and bits per byte of a pair; also gives the interval of ln(perplexity ratio) and the
    /// ratio itself in logarithm, which the quality gate takes. Intervals of differences are those of `look`.
    pub fn of_pair(text: TextInfo, comparison: &Comparison, look: Look, seed: u64) -> (Self, Option<Interval>, f64) {
        let side = |f: fn(&crate::paired::PairedWindow) -> f64| -> Vec<(f64, f64)> {
            comparison.windows.iter().map(|w| (f(w), w.tokens as f64)).collect()
        };
        let (base, quant) = (side(|w| w.base_nll), side(|w| w.quant_nll));
        let ((base_nll, tokens), (quant_nll, _)) = (total(&base), total(&quant));
        let ln_ratio = (quant_nll - base_nll) / tokens;
        let paired = ln_perplexity_ratio(&comparison.windows, seed).map(|i| i.at(look));
        let ppl = Perplexity {
            base: (base_nll / tokens).exp(),
            base_ci95: interval(&base, seed),
            quant: Some((quant_nll / tokens).exp()),
            quant_ci95: interval(&quant, seed),
            ratio: Some(ln_ratio.exp()),
            ratio_ci95: paired.map(|i| i.map(f64::exp).ci95()),
        };
        let bytes = comparison.windows.iter().map(|w| w.bytes).sum();
        let (base_bits, quant_bits) = (bits(base_nll, bytes), bits(quant_nll, bytes));
        let bits_per_byte = BitsPerByte {
            base: base_bits,
            quant: Some(quant_bits),
            delta: Some(quant_bits - base_bits),
            delta_ci95: delta_bits_per_byte(&comparison.windows, seed).map(|i| i.at(look).ci95()),
        };
        let measures = Self {
            text: Some(text),
            ppl: Some(ppl),
            kl: KlFigures::of(comparison),
            top1: same_top_share(comparison),
            bits_per_byte: Some(bits_per_byte),
            by_position: by_position(comparison),
            kl_histogram: kl_histogram(comparison),
            ..Self::default()
        };
        (measures, paired, ln_ratio)
    }
}

fn total(blocks: &[(f64, f64)]) -> (f64, f64) {
    blocks.iter().fold((0.0, 0.0), |sum, block| (sum.0 + block.0, sum.1 + block.1))
}

fn interval(blocks: &[(f64, f64)], seed: u64) -> Option<[f64; 2]> {
    bootstrap_ratio(blocks, seed).map(|i| i.map(f64::exp).ci95())
}

fn bits(nll: f64, bytes: usize) -> f64 {
    nll / std::f64::consts::LN_2 / bytes.max(1) as f64
}
