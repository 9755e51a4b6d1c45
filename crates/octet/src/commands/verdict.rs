//! The last screen: what was decided, with which numbers, and what to do next.

use crate::ui::{self, Tone};
use anyhow::Result;
use octet_eval::{
    Report,
    gates::{Gate, Outcome, Status},
    html::PageSample,
};
use octet_flow::Summary;
use octet_quant::{Action, Forecast, Plan};
use octet_runtime::{GenerateOptions, MemoryForecast, TextModel, generate};
use serde_json::{Value, json};
use std::{ops::ControlFlow, path::Path};

/// Tokens of the prompt and of the continuation shown as a sample.
const SAMPLE_PROMPT: usize = 24;
const SAMPLE_TOKENS: usize = 40;

/// The same prompt continued by the original and by the quantized model.
pub(super) struct Sample {
    prompt: String,
    original: String,
    quantized: String,
}

impl Sample {
    /// The same for the report's page.
    pub(super) fn of_page(&self) -> PageSample {
        PageSample { prompt: self.prompt.clone(), base: self.original.clone(), quant: self.quantized.clone() }
    }
}

/// Lets both models continue the beginning of the evaluation text, greedily.
pub(super) fn sample(original: &TextModel, quantized: &TextModel, ids: &[u32]) -> Result<Sample> {
    let tokenizer = &original.tokenizer;
    let ids = &ids[..ids.len().min(SAMPLE_PROMPT)];
    let prompt: Vec<u32> = tokenizer.leading_bos().into_iter().chain(ids.iter().copied()).collect();
    let options = GenerateOptions { max_tokens: SAMPLE_TOKENS, ..GenerateOptions::default() };
    let write = |model: &TextModel| Ok::<_, anyhow::Error>(generate(model, &prompt, &options, &mut |_| ControlFlow::Continue(()))?.text);
    Ok(Sample { prompt: tokenizer.decode(ids)?, original: write(original)?, quantized: write(quantized)? })
}

/// Where a variant that was judged is now.
pub(super) fn kept(path: Option<&Path>, refusal: &Path) -> String {
    match path {
        Some(path) => format!("  wrote {}", ui::path(path)),
        None => format!("  nothing was kept but the report, {}", ui::path(refusal)),
    }
}

/// What every gate passed and a person did not take.
pub(super) fn declined(model: &str, report: &Report) -> String {
    figures(model, report, &ui::paint("DECLINED", Tone::Bad))
}

/// The verdict on one model: the word, the figures, the gates.
pub(super) fn judged(model: &str, report: &Report) -> String {
    let word = match report.status {
        Status::Accepted => ui::paint("ACCEPTED", Tone::Good),
        Status::FellBack => ui::paint("FELL BACK", Tone::Good),
        Status::Refused => ui::paint("REFUSED", Tone::Bad),
        Status::Undecided => ui::paint("UNDECIDED", Tone::Open),
    };
    figures(model, report, &word)
}

/// What was measured about one model, under the word for what it led to.
pub(super) fn figures(model: &str, report: &Report, word: &str) -> String {
    let m = &report.measures;
    let mut lines = vec![format!("\n{model} as {}: {word}", report.scheme), String::new()];
    if let (Some(ppl), Some(text)) = (&m.ppl, &m.text) {
        let change = ppl.ratio.map_or(String::new(), |r| format!("  ({:+.2} %{})", 100.0 * (r - 1.0), interval_percent(ppl.ratio_ci95)));
        lines.push(format!("  perplexity  {:.3} -> {:.3}{change}", ppl.base, ppl.quant.unwrap_or(f64::NAN)));
        let of = m.looked.filter(|looked| looked.tokens < looked.of).map_or(String::new(), |looked| format!(" of {}", looked.of));
        let judged = format!("{}{of} tokens of {}, {} windows of {}", text.tokens, text.name, text.windows, text.context);
        lines.push(format!("{:FIGURES$}{}", "", wrap_at(&judged, FIGURES)));
    }
    if let (Some(kl), Some(top1)) = (&m.kl, m.top1) {
        lines.push(format!("  divergence  KL {:.5} nats (99 %: {:.4}), same top token {:.2} %", kl.mean, kl.p99, 100.0 * top1));
    }
    if let Some(size) = &m.size {
        let (now, was) = (ui::bytes(size.folder_bytes), ui::bytes(size.base_bytes));
        let (ratio, bits) = (1.0 / size.ratio, size.bits_per_weight);
        let sizes = format!("{now}, {ratio:.2}x smaller than 16-bit ({was}); linears {bits:.2} bits a weight");
        lines.push(format!("  size        {}", wrap_at(&sizes, FIGURES)));
    }
    if let Some(speed) = &m.speed {
        let phase = |p: &octet_eval::speed::PhaseSpeed| {
            format!("{:.0} tok/s{}", p.quant_tok_s, p.ratio.map_or(String::new(), |r| format!(" ({:.2}x 16-bit)", r.estimate)))
        };
        let (decode, prefill) = (phase(&speed.decode), phase(&speed.prefill));
        let speeds = format!("decode {decode}, prefill {prefill}; {} threads, {}", speed.threads, speed.isa);
        lines.push(format!("  speed       {}", wrap_at(&speeds, FIGURES)));
    }
    if let Some(trinity) = &report.trinity {
        lines.push(super::ladder::score(trinity));
    }
    if let Some(risk) = &report.risk {
        lines.push(format!("  risk        {:.1} of 100", risk.score));
    }
    lines.push(String::new());
    lines.extend(report.gates.iter().map(gate_line));
    lines.push(String::new());
    lines.join("\n")
}

fn interval_percent(ci: Option<[f64; 2]>) -> String {
    ci.map_or(String::new(), |[low, high]| format!(", 95 % interval {:+.2} to {:+.2}", 100.0 * (low - 1.0), 100.0 * (high - 1.0)))
}

fn gate_line(gate: &Gate) -> String {
    let (word, tone) = match (gate.outcome, gate.blocking) {
        (Outcome::Passed, _) => ("pass", Some(Tone::Good)),
        (Outcome::Failed, true) => ("FAIL", Some(Tone::Bad)),
        (Outcome::Failed, false) => ("over", Some(Tone::Open)),
        (Outcome::Undecided, _) => ("undecided", Some(Tone::Open)),
        (Outcome::NotApplicable, _) => ("n/a", None),
    };
    let blanks = " ".repeat(9usize.saturating_sub(word.len()));
    let word = tone.map_or_else(|| word.to_string(), |tone| ui::paint(word, tone));
    format!("  {word}{blanks} {:<16} {}", gate.name, gate_figures(gate))
}

fn gate_figures(gate: &Gate) -> String {
    if gate.outcome == Outcome::NotApplicable {
        return wrap(&gate.note);
    }
    let (value, limit) = (gate.value.unwrap_or(f64::NAN), gate.threshold.unwrap_or(f64::NAN));
    let high = gate.ci95.map_or(value, |ci| ci[1]);
    let figures = match gate.name.as_str() {
        "quality.position" => {
            let low = gate.ci95.map_or(value, |ci| ci[0]);
            format!("worst tenth at least {:+.2} %, limit {:+.2} %", 100.0 * (low - 1.0), 100.0 * (limit - 1.0))
        }
        name if name == "quality" || name.starts_with("quality.") => {
            format!("at most {:+.2} %, limit {:+.2} %", 100.0 * (high - 1.0), 100.0 * (limit - 1.0))
        }
        "fidelity.kl" => format!("{value:.5} nats, guide {limit}"),
        "fidelity.top1" => format!("{:.2} %, guide {:.0} %", 100.0 * value, 100.0 * limit),
        "speed" => format!("decode {value:.2}x, at best {high:.2}x, limit {limit:.1}x"),
        "size.linears" => format!("{value:.2} bits a weight, limit {limit:.2}"),
        "size.forecast" => format!("{:.2} % off the forecast, limit {:.0} %", 100.0 * value, 100.0 * limit),
        "size.max" => format!("{}, limit {}", ui::bytes(value as u64), ui::bytes(limit as u64)),
        "tasks" => format!("accuracy falls by at most {:+.1} points, limit {:+.1}", 100.0 * high, 100.0 * limit),
        "memory" => format!("weights {value:.2}x those of the original in 16 bits"),
        "health" => format!("smallest p {value:.1e}, limit {limit:.1e}"),
        "integrity" => "files re-opened and equal".into(),
        _ => format!("{value}, limit {limit}"),
    };
    // A note says why; where all is well the figures suffice.
    let explain = gate.outcome != Outcome::Passed || (gate.name == "speed" && gate.note.contains("from cache"));
    if explain && !gate.note.is_empty() && !gate.note.starts_with("reported") {
        format!("{figures}\n{:28}{}", "", wrap(&gate.note))
    } else {
        figures
    }
}

/// Breaks a note into lines that fit beside the gates' names.
fn wrap(text: &str) -> String {
    wrap_at(text, NOTE)
}

/// Columns in front of the figures of the verdict.
const FIGURES: usize = 14;

/// Columns in front of a gate's figures.
const NOTE: usize = 28;

/// Breaks a text into lines that fit into eighty columns behind `indent` of them.
pub(super) fn wrap_at(text: &str, indent: usize) -> String {
    let (mut lines, mut line) = (vec![], String::new());
    for word in text.split(' ') {
        if line.len() + word.len() + 1 > ui::WIDTH - indent && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(if line.is_empty() { "" } else { " " });
        line.push_str(word);
    }
    lines.push(line);
    lines.join(&format!("\n{:indent$}", ""))
}

/// Several variants side by side.
pub(super) fn comparison(summary: &Summary) -> String {
    let number = |v: Option<f64>, places: usize| v.map_or("-".into(), |v| format!("{v:.places$}"));
    let rows: Vec<Vec<String>> = summary
        .variants
        .iter()
        .map(|v| {
            vec![
                v.scheme.clone(),
                format!("{:?}", v.status).to_lowercase(),
                v.ppl_ratio.map_or("-".into(), |r| format!("{:+.2} %", 100.0 * (r - 1.0))),
                number(v.kl, 5),
                number(v.top1.map(|t| 100.0 * t), 2),
                number(v.size_mb, 2),
                number(v.decode_tok_s, 0),
                number(v.decode_speedup, 2),
                number(v.trinity_score, 1),
            ]
        })
        .collect();
    let header = ["scheme", "verdict", "ppl", "KL", "top-1 %", "MB", "tok/s", "decode x", "score"];
    format!("\n{}", ui::table(&header, &rows))
}

/// What the winner writes, and two commands to paste.
pub(super) fn next_steps(model: &str, path: Option<&Path>, sample: Option<&Sample>) -> String {
    let Some(path) = path else { return String::new() };
    let mut lines = vec![String::new()];
    if let Some(sample) = sample {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.push(format!("  \"{} ...\"", one_line(&sample.prompt)));
        lines.push(format!("    original: {}", one_line(&sample.original)));
        lines.push(format!("    winner:   {}", one_line(&sample.quantized)));
        lines.push(String::new());
    }
    let path = ui::path(path);
    lines.push("  Next:".into());
    lines.push(format!("    octet run {path} \"The \""));
    lines.push(format!("    octet eval {path} --base {model}"));
    lines.join("\n")
}

/// The plan for machines.
pub(super) fn plan_document(label: &str, plan: &Plan, forecast: &Forecast, running: &MemoryForecast) -> Value {
    let lines = plan.lines().iter().map(|line| {
        let (becomes, why) = match &line.action {
            Action::Quantize { scheme, .. } => (scheme.to_string(), None),
            Action::Blocks { code, .. } => (code.name.to_string(), None),
            Action::Keep { dtype, reason } => (dtype.to_string(), Some(reason)),
            Action::Drop { reason } => ("nothing".into(), Some(reason)),
        };
        json!({ "name": line.name, "role": line.role(), "shape": line.shape, "stored": line.stored.name(), "becomes": becomes, "bytes": line.bytes, "why": why })
    });
    json!({
        "scheme": label,
        "tensors": lines.collect::<Vec<_>>(),
        "forecast": {
            "stored_bytes": forecast.stored_bytes,
            "artefact_bytes": forecast.artefact_bytes,
            "linear_bits": forecast.linear_bits,
            "all_bits": forecast.all_bits,
            "buffer_bytes": forecast.buffer_bytes,
            "run_bytes": super::memory_document(running),
            "seconds": forecast.seconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_wrap_at_words() {
        let text = wrap(&"word ".repeat(30));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn gates_say_pass_or_why_not() {
        let good = Gate::new("size.linears", 8.06, 8.75, Outcome::Passed, "note");
        assert_eq!(gate_line(&good), "  pass      size.linears     8.06 bits a weight, limit 8.75");
        let bad = Gate::new("integrity", 1.0, 0.0, Outcome::Failed, "tokenizer.json differs");
        assert!(gate_line(&bad).contains("FAIL") && gate_line(&bad).contains("tokenizer.json differs"));
    }
}
