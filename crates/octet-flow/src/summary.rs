//! Several variants of one model, compared: `quantization_summary.json`.

use crate::Result;
use octet_eval::{Report, gates::Status};
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
        }
    }
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
        let summary = Self { octet_version: env!("CARGO_PKG_VERSION").into(), model: model.into(), variants: all };
        let value = serde_json::to_value(&summary).map_err(|e| crate::Error::Internal(e.to_string()))?;
        crate::artefact::write_json(&path, &value)?;
        Ok(summary)
    }

    /// The accepted variant with the smallest folder.
    pub fn winner(&self) -> Option<&Variant> {
        let accepted = self.variants.iter().filter(|v| v.status == Status::Accepted && v.path.is_some());
        accepted.min_by(|a, b| a.size_mb.unwrap_or(f64::MAX).total_cmp(&b.size_mb.unwrap_or(f64::MAX)))
    }
}
