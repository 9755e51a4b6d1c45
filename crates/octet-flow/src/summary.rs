//! Several variants of one model, compared: `quantization_summary.json`.

use crate::Result;
use octet_eval::{
    Report,
    gates::Status,
    html::VariantPoint,
    trinity::{Inputs, Trinity},
};
use octet_tensor::{Activations, Scheme};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The variants of one model, in the order they were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of octet.
    pub octet_version: String,
    /// The original.
    pub model: String,
    /// Every variant.
    pub variants: Vec<Variant>,
    /// The original in 16 bits and all variants, best score first; only what was accepted has a rank.
    #[serde(default)]
    pub ranking: Vec<Ranked>,
}

/// One line of the ranking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its place, from 1; `None` for what was not accepted, and for the original.
    pub rank: Option<usize>,
    /// Its scheme, or `original`.
    pub name: String,
    /// What kind of variant it is: `baseline 16-bit`, `INT8 weight-only`, `INT8 dynamic` and so on.
    pub kind: String,
    /// Megabytes of weights in memory.
    pub memory_mb: Option<f64>,
    /// Milliseconds a token takes to decode.
    pub inference_ms: Option<f64>,
    /// The Trinity Score.
    pub trinity_score: Option<f64>,
}

/// The figures of one variant that rank it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its scheme.
    pub scheme: String,
    /// The verdict.
    pub status: Status,
    /// Its folder; a refused variant has none.
    pub path: Option<String>,
    /// Perplexity over that of the original.
    pub ppl_ratio: Option<f64>,
    /// Its 95 % interval.
    pub ppl_ratio_ci95: Option<[f64; 2]>,
    /// Mean KL(original ‖ quantized) in nats.
    pub kl: Option<f64>,
    /// Share of tokens on which both agree about the likeliest next one.
    pub top1: Option<f64>,
    /// Megabytes of the folder.
    pub size_mb: Option<f64>,
    /// Size over that of the original in 16 bits.
    pub size_ratio: Option<f64>,
    /// Decoded tokens a second.
    pub decode_tok_s: Option<f64>,
    /// Decode speed over that of the original in 16 bits.
    pub decode_speedup: Option<f64>,
    /// Prefill speed over that of the original in 16 bits.
    pub prefill_speedup: Option<f64>,
    /// Megabytes of weights in memory.
    #[serde(default)]
    pub memory_mb: Option<f64>,
    /// Milliseconds a token takes to decode.
    #[serde(default)]
    pub inference_ms: Option<f64>,
    /// The Trinity Score.
    #[serde(default)]
    pub trinity_score: Option<f64>,
    /// The original beside it: megabytes in 16 bits, milliseconds a token, score.
    #[serde(default)]
    pub baseline: Option<Ranked>,
}

impl Variant {
    /// The figures of a report.
    pub fn of(report: &Report, path: Option<&Path>) -> Self {
        let m = &report.measures;
        Self {
            scheme: report.scheme.clone(),
            status: report.status,
            path: path.map(|p| p.display().to_string()),
            ppl_ratio: m.ppl.as_ref().and_then(|p| p.ratio),
            ppl_ratio_ci95: m.ppl.as_ref().and_then(|p| p.ratio_ci95),
            kl: m.kl.as_ref().map(|kl| kl.mean),
            top1: m.top1,
            size_mb: m.size.as_ref().map(|s| s.folder_bytes as f64 / 1e6),
            size_ratio: m.size.as_ref().map(|s| s.ratio),
            decode_tok_s: m.speed.as_ref().map(|s| s.decode.quant_tok_s),
            decode_speedup: m.speed.as_ref().and_then(|s| s.decode.ratio).map(|r| r.estimate),
            prefill_speedup: m.speed.as_ref().and_then(|s| s.prefill.ratio).map(|r| r.estimate),
            memory_mb: m.memory.and_then(|memory| memory.quant_weights).map(|bytes| bytes as f64 / 1e6),
            inference_ms: m.speed.as_ref().map(|s| 1e3 / s.decode.quant_tok_s),
            trinity_score: report.trinity.as_ref().map(|trinity| trinity.score),
            baseline: Some(Ranked {
                rank: None,
                name: "original".into(),
                kind: "baseline 16-bit".into(),
                memory_mb: m.size.map(|size| size.base_bytes as f64 / 1e6),
                inference_ms: m.speed.as_ref().map(|s| 1e3 / s.decode.base_tok_s),
                trinity_score: report.trinity.as_ref().map(|_| Trinity::of(&Inputs::of_original(report)).score),
            }),
        }
    }

    fn is_accepted(&self) -> bool {
        matches!(self.status, Status::Accepted | Status::FellBack) && self.path.is_some()
    }

    /// Its line of the ranking, without its place.
    fn line(&self) -> Ranked {
        let (memory_mb, inference_ms, trinity_score) = (self.memory_mb, self.inference_ms, self.trinity_score);
        Ranked { rank: None, name: self.scheme.clone(), kind: kind(&self.scheme), memory_mb, inference_ms, trinity_score }
    }
}

/// What kind of variant a scheme makes; where it names a checkpoint, that comes after the scheme.
fn kind(scheme: &str) -> String {
    match scheme.split(' ').next().unwrap_or_default().parse::<Scheme>() {
        Ok(scheme) => {
            let how = if scheme.activations == Activations::Exact { "weight-only" } else { "dynamic" };
            format!("INT{} {how}", scheme.weights.bits.get())
        }
        Err(_) => "mixed".into(),
    }
}

/// The original first among equals, then by score; what was accepted gets its place.
fn ranking(variants: &[Variant]) -> Vec<Ranked> {
    let by_score = |a: &Variant, b: &Variant| {
        let score = |v: &Variant| v.trinity_score.unwrap_or(f64::NEG_INFINITY);
        b.is_accepted().cmp(&a.is_accepted()).then(score(b).total_cmp(&score(a)))
    };
    let mut sorted: Vec<&Variant> = variants.iter().collect();
    sorted.sort_by(|a, b| by_score(a, b));
    let baseline = variants.iter().rev().find_map(|variant| variant.baseline.clone());
    let place = |(i, variant): (usize, &&Variant)| Ranked { rank: variant.is_accepted().then_some(i + 1), ..variant.line() };
    baseline.into_iter().chain(sorted.iter().enumerate().map(place)).collect()
}

/// The file the summary is written to, beside the variants.
pub(crate) const SUMMARY_FILE: &str = "quantization_summary.json";

impl Summary {
    /// Adds `variants` of `model` to the summary beside the folder `target` (an earlier variant of the same scheme is
    /// replaced; a summary of another model makes way) and writes it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn beside(target: &Path, model: &str, variants: Vec<Variant>) -> Result<Self> {
        let path = target.with_file_name(SUMMARY_FILE);
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let mut all = known.filter(|summary| summary.model == model).map_or(vec![], |summary| summary.variants);
        all.retain(|old| !variants.iter().any(|new| new.scheme == old.scheme));
        all.extend(variants);
        let ranking = ranking(&all);
        let summary = Self { octet_version: env!("CARGO_PKG_VERSION").into(), model: model.into(), variants: all, ranking };
        let value = serde_json::to_value(&summary).map_err(|e| crate::Error::Internal(e.to_string()))?;
        crate::artefact::write_json(&path, &value)?;
        if summary.variants.len() > 1 {
            let page = path.with_extension("html");
            std::fs::write(&page, summary.page()).map_err(crate::Error::write(&page))?;
        }
        Ok(summary)
    }

    /// The page that shows all variants, beside their own.
    fn page(&self) -> String {
        let header = ["rank", "variant", "kind", "memory, MB", "ms a token", "perplexity", "score"];
        let number = |value: Option<f64>, places: usize| value.map_or_else(String::new, |v| format!("{v:.places$}"));
        let row = |line: &Ranked| {
            let variant = self.variants.iter().find(|variant| variant.scheme == line.name);
            let folder = variant.filter(|v| v.is_accepted()).and_then(|v| v.path.as_deref()).and_then(|path| Path::new(path).file_name());
            let link = folder.map(|name| format!("./{}/{}", name.to_string_lossy(), octet_eval::html::PAGE_FILE));
            let ratio = variant.and_then(|variant| variant.ppl_ratio).map_or_else(String::new, |r| format!("{:+.2} %", 100.0 * (r - 1.0)));
            let rank = line.rank.map_or_else(|| "-".to_string(), |rank| rank.to_string());
            let cells = [
                rank,
                line.name.clone(),
                line.kind.clone(),
                number(line.memory_mb, 1),
                number(line.inference_ms, 3),
                ratio,
                number(line.trinity_score, 1),
            ];
            (cells.into(), link)
        };
        let rows: Vec<(Vec<String>, Option<String>)> = self.ranking.iter().map(row).collect();
        let point = |v: &Variant| {
            let (size_ratio, ppl_ratio) = (v.size_ratio?, v.ppl_ratio?);
            Some(VariantPoint {
                name: v.scheme.clone(),
                accepted: v.is_accepted(),
                size_ratio,
                ppl_ratio,
                decode_speedup: v.decode_speedup,
            })
        };
        let points: Vec<VariantPoint> = self.variants.iter().filter_map(point).collect();
        octet_eval::html::summary_page(&self.model, &header, &rows, &points)
    }

    /// The summary in the folder `dir`.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(SUMMARY_FILE);
        let bytes = std::fs::read(&path).map_err(crate::Error::read(&path))?;
        let wrong = |e: serde_json::Error| crate::Error::Receipt { path: path.clone(), what: format!("is no summary of variants ({e})") };
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    /// The accepted variant with the best score.
    pub fn best(&self) -> Option<&Variant> {
        let name = self.ranking.iter().find(|line| line.rank == Some(1)).map(|line| line.name.as_str())?;
        self.variants.iter().find(|variant| variant.scheme == name)
    }

    /// The accepted variant with the smallest folder.
    pub fn winner(&self) -> Option<&Variant> {
        let accepted = self.variants.iter().filter(|v| v.status == Status::Accepted && v.path.is_some());
        accepted.min_by(|a, b| a.size_mb.unwrap_or(f64::MAX).total_cmp(&b.size_mb.unwrap_or(f64::MAX)))
    }
}
