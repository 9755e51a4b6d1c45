//! `report.html`: the verdict as one self-contained page, readable without scripts, in light and dark, on a phone, on paper.
//!
//! Verdict first, then gates with their intervals, then plots, texts, and how to do it again. What was not measured is left out.

mod chart;
mod plots;
mod summary;
mod words;

pub use plots::VariantPoint;
pub use summary::summary_page;

use crate::{
    Report,
    gates::{Gate, Outcome, Status},
    report::RungReport,
    trinity::Trinity,
};
use serde_json::Value;
use std::fmt::Write;
use words::{bytes, change, escape, figure, quoted};

/// The file the page is written to.
pub const PAGE_FILE: &str = "report.html";

const STYLE: &str = include_str!("style.css");

/// What a page shows beside the report itself.
#[derive(Clone, Debug, Default)]
pub struct Page<'a> {
    /// Name of the original.
    pub model: &'a str,
    /// Other variants of the same original.
    pub variants: &'a [VariantPoint],
    /// Texts of both models where the report holds none.
    pub samples: &'a [PageSample],
    /// The folder, as one would type it.
    pub folder: &'a str,
}

/// The same prompt continued by both models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSample {
    /// The prompt.
    pub prompt: String,
    /// What the original writes.
    pub base: String,
    /// What the variant writes.
    pub quant: String,
}

/// The page of `report`.
pub fn page(report: &Report, page: &Page<'_>) -> String {
    let mut out = head(&format!("{} as {}: {}", page.model, report.scheme, word(report.status).0));
    verdict(&mut out, report, page.model);
    gates(&mut out, report);
    if let Some(trinity) = &report.trinity {
        score(&mut out, trinity, report);
    }
    if report.ladder.len() > 1 {
        ladder(&mut out, &report.ladder);
    }
    figures(&mut out, report, page.variants);
    samples(&mut out, report, page.samples);
    again(&mut out, report, page);
    out.push_str("</main></body></html>\n");
    out
}

/// The beginning of a page.
fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/>\
         <title>{}</title><style>{STYLE}</style></head><body><main>\n",
        escape(title)
    )
}

fn word(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Accepted => ("ACCEPTED", "good"),
        Status::FellBack => ("FELL BACK", "good"),
        Status::Refused => ("REFUSED", "bad"),
        Status::Undecided => ("UNDECIDED", "warn"),
    }
}

fn verdict(out: &mut String, report: &Report, model: &str) {
    let (word, class) = word(report.status);
    let _ = writeln!(
        out,
        "<header><span class=\"badge {class}\">{word}</span><h1>{} as {}</h1><p>{}</p>",
        escape(model),
        escape(&report.scheme),
        escape(&reason(report))
    );
    let m = &report.measures;
    let mut tiles = vec![];
    if let Some(ratio) = m.ppl.and_then(|ppl| ppl.ratio) {
        let interval = m.ppl.and_then(|ppl| ppl.ratio_ci95).map_or(String::new(), |[a, b]| format!("{} to {}", change(a), change(b)));
        tiles.push((change(ratio), format!("perplexity {interval}")));
    }
    if let Some(size) = m.size {
        let factor = if size.ratio > 1.0 { format!("{:.2}× larger", size.ratio) } else { format!("{:.2}× smaller", 1.0 / size.ratio) };
        tiles.push((factor, format!("{} instead of {}", bytes(size.folder_bytes), bytes(size.base_bytes))));
    }
    if let Some(decode) = m.speed.as_ref().and_then(|speed| speed.decode.ratio) {
        tiles.push((format!("{:.2}× as fast", decode.estimate), "decoding, against 16 bits".into()));
    }
    if let Some(trinity) = &report.trinity {
        let risk = report.risk.as_ref().map_or(String::new(), |risk| format!(", risk {:.1}", risk.score));
        tiles.push((format!("{:.1}", trinity.score), format!("Trinity Score of 100{risk}")));
    }
    out.push_str("<div class=\"tiles\">");
    for (value, what) in tiles {
        let _ = write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&together(&value)), escape(&together(&what)));
    }
    out.push_str("</div></header>\n");
}

/// The text with figures and their units on one line.
fn together(text: &str) -> String {
    text.replace(" %", "\u{a0}%").replace(" MB", "\u{a0}MB").replace(" kB", "\u{a0}kB").replace(" GB", "\u{a0}GB")
}

/// The verdict in a sentence.
fn reason(report: &Report) -> String {
    let names = |outcome: Outcome| -> Vec<&str> {
        report.gates.iter().filter(|gate| gate.blocking && gate.outcome == outcome).map(|gate| gate.name.as_str()).collect()
    };
    match report.status {
        Status::Accepted => "Every gate was measured on the written files, and passed.".into(),
        Status::FellBack => "What was asked for was refused; this variant passed every gate in its place.".into(),
        Status::Refused => format!("Refused by {}.", names(Outcome::Failed).join(", ")),
        Status::Undecided => format!("Not decided: {}.", names(Outcome::Undecided).join(", ")),
    }
}

fn gates(out: &mut String, report: &Report) {
    out.push_str("<section><h2>Gates</h2><table class=\"stack\"><thead><tr><th>gate</th><th>outcome</th><th>measured</th><th>95 % interval</th><th>limit</th><th>remarks</th></tr></thead><tbody>\n");
    for gate in &report.gates {
        let (word, class) = match (gate.outcome, gate.blocking) {
            (Outcome::Passed, _) => ("passed", "good"),
            (Outcome::Failed, true) => ("FAILED", "bad"),
            (Outcome::Failed, false) => ("beyond its guide", "warn"),
            (Outcome::Undecided, _) => ("undecided", "warn"),
            (Outcome::NotApplicable, _) => ("not applicable", "soft"),
        };
        let shown = |value: Option<f64>| value.map_or(String::new(), |value| gate_figure(gate, value));
        let interval = gate.ci95.map_or(String::new(), |[a, b]| format!("{} to {}", gate_figure(gate, a), gate_figure(gate, b)));
        let _ = writeln!(
            out,
            "<tr><td data-label=\"gate\"><b>{}</b></td><td data-label=\"outcome\" class=\"{class}\">{word}</td><td class=\"n\" data-label=\"measured\">{}</td>\
             <td class=\"n\" data-label=\"95 % interval\">{}{}</td><td class=\"n\" data-label=\"limit\">{}</td><td class=\"note\">{}</td></tr>",
            escape(&gate.name),
            escape(&shown(gate.value)),
            escape(&interval),
            whisker(gate),
            escape(&shown(gate.threshold)),
            escape(&gate.note)
        );
    }
    out.push_str("</tbody></table>");
    if let Some(text) = &report.measures.text {
        let early = report.measures.looked.filter(|looked| looked.tokens < looked.of);
        let early = early.map_or(String::new(), |looked| format!(" They decided; the other half of {} tokens was not run.", looked.of));
        let _ = write!(
            out,
            "<p class=\"soft\">Judged on {} tokens of {}, in {} windows of {}.{early}</p>",
            text.tokens,
            escape(&text.name),
            text.windows,
            text.context
        );
    }
    cost(out, report);
    out.push_str("</section>\n");
}

/// Where an interval lies: a bar for it, a stroke for the limit, a dot for what would be no difference at all.
fn whisker(gate: &Gate) -> String {
    let (Some([low, high]), Some(limit)) = (gate.ci95, gate.threshold) else { return String::new() };
    let neutral = if gate.name == "tasks" { 0.0 } else { 1.0 };
    let ends = [low, high, limit, neutral];
    let (from, to) = (ends.iter().copied().fold(f64::INFINITY, f64::min), ends.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    if !(to - from).is_finite() || to <= from {
        return String::new();
    }
    let place = |value: f64| 4.0 + 92.0 * (value - from) / (to - from);
    let class = if gate.outcome == Outcome::Passed { "good" } else { "bad" };
    format!(
        "<span class=\"iv\" aria-hidden=\"true\"><i class=\"{class}\" style=\"left:{:.1}%;width:{:.1}%\"></i><b style=\"left:{:.1}%\"></b><s style=\"left:{:.1}%\"></s></span>",
        place(low),
        (place(high) - place(low)).max(1.5),
        place(limit),
        place(neutral)
    )
}

/// What judging took, part by part, beside its forecast.
fn cost(out: &mut String, report: &Report) {
    let Some(cost) = &report.measures.cost else { return };
    let seconds = |value: f64| format!("{value:.1} s");
    let forecast = match (cost.forecast_seconds, cost.forecast_most_seconds) {
        (Some(least), Some(most)) => format!(", forecast were {} to {}", seconds(least), seconds(most)),
        (Some(least), None) => format!(", forecast were {}", seconds(least)),
        _ => String::new(),
    };
    let parts: Vec<String> =
        cost.parts.iter().filter(|(_, took)| *took >= 0.05).map(|(name, took)| format!("{name} {}", seconds(*took))).collect();
    let known = if cost.reference_cached { "; what the original makes of the texts was known" } else { "" };
    let _ = write!(out, "<p class=\"soft\">Judging took {}{forecast} ({}{known}).</p>", seconds(cost.seconds), escape(&parts.join(", ")));
}

/// A figure of a gate in the gate's own unit.
fn gate_figure(gate: &Gate, value: f64) -> String {
    match gate.name.as_str() {
        name if name.starts_with("quality") => change(value),
        "speed" => format!("{value:.2}×"),
        "fidelity.top1" => format!("{:.2} %", 100.0 * value),
        "size.forecast" => format!("{:.2} %", 100.0 * value),
        "size.linears" => format!("{value:.2} bits"),
        "size.max" => bytes(value.max(0.0) as u64),
        "memory" => format!("{value:.2}×"),
        "health" => format!("p = {}", figure(value)),
        "integrity" => format!("{value:.0} failed"),
        _ => figure(value),
    }
}

fn score(out: &mut String, trinity: &Trinity, report: &Report) {
    let partial = if trinity.partial { format!(" Partial: not measured were {}.", trinity.not_measured.join(", ")) } else { String::new() };
    let _ = write!(
        out,
        "<section><h2>Trinity Score</h2><p>{:.1} of 100 by version {} of the formulas.{}</p><table class=\"stack\"><thead><tr><th>input</th><th>measured</th><th>worth</th><th>points</th></tr></thead><tbody>",
        trinity.score,
        trinity.version,
        escape(&partial)
    );
    for pillar in &trinity.pillars {
        let share = 100.0 * pillar.points / pillar.most.max(1e-9);
        let _ = writeln!(
            out,
            "<tr class=\"pillar\"><td colspan=\"3\"><b>{} <span lang=\"ja\">{}</span></b><span class=\"bar\"><span style=\"width:{share:.0}%\"></span></span></td>\
             <td class=\"n\"><b>{:.1} of {:.0}</b></td></tr>",
            escape(&pillar.name),
            escape(&pillar.sign),
            pillar.points,
            pillar.most
        );
        for input in &pillar.inputs {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td class=\"n\" data-label=\"measured\">{}</td><td class=\"note\" data-label=\"worth\">{}</td><td class=\"n\" data-label=\"points\">{:.1} of {:.0}</td></tr>",
                escape(&input.name),
                input.value.map_or_else(|| "not measured".into(), |value| escape(&figure(value))),
                escape(&input.formula),
                input.points,
                input.most
            );
        }
    }
    out.push_str("</tbody></table>");
    if let Some(risk) = &report.risk {
        let _ = write!(out, "<p>Risk {:.1} of 100", risk.score);
        let reasons: Vec<String> = risk.reasons.iter().map(|r| format!("{} ({:+.1})", r.what, r.points)).collect();
        let _ = write!(out, "{}.</p>", if reasons.is_empty() { String::new() } else { format!(": {}", escape(&reasons.join("; "))) });
    }
    out.push_str("</section>\n");
}

fn ladder(out: &mut String, rungs: &[RungReport]) {
    out.push_str("<section><h2>Ladder</h2><table class=\"stack\"><thead><tr><th>rung</th><th>scheme</th><th>outcome</th><th>perplexity</th><th>KL, nats</th><th>size</th><th>decode</th><th>why</th></tr></thead><tbody>\n");
    for rung in rungs {
        let class = match rung.outcome.as_str() {
            "accepted" => "good",
            "refused" | "declined" => "bad",
            "undecided" => "warn",
            _ => "soft",
        };
        let interval = rung.ratio_ci95.map_or(String::new(), |[a, b]| format!(" ({} to {})", change(a), change(b)));
        let _ = writeln!(
            out,
            "<tr><td data-label=\"rung\">{}</td><td data-label=\"scheme\">{}</td><td data-label=\"outcome\" class=\"{class}\">{}</td><td data-label=\"perplexity\">{}</td>\
             <td class=\"n\" data-label=\"KL\">{}</td><td class=\"n\" data-label=\"size\">{}</td><td class=\"n\" data-label=\"decode\">{}</td><td class=\"note\">{}</td></tr>",
            escape(&rung.rung),
            escape(&rung.scheme),
            escape(&rung.outcome),
            rung.ratio.map_or(String::new(), |r| escape(&(change(r) + &interval))),
            rung.kl.map_or(String::new(), figure),
            rung.size_ratio.map_or(String::new(), |r| format!("{:.0} %", 100.0 * r)),
            rung.decode_speedup.map_or(String::new(), |s| format!("{s:.2}×")),
            escape(&rung.note)
        );
    }
    out.push_str("</tbody></table></section>\n");
}

fn figures(out: &mut String, report: &Report, others: &[VariantPoint]) {
    let m = &report.measures;
    let value = serde_json::to_value(m).unwrap_or(Value::Null);
    let mut points: Vec<VariantPoint> = report.ladder.iter().filter_map(VariantPoint::of_rung).collect();
    if points.is_empty() {
        points.extend(VariantPoint::of_rung(&RungReport::of(
            "",
            &report.scheme,
            if report.status == Status::Refused { "refused" } else { "accepted" },
            "",
            report,
        )));
    }
    points.extend(others.iter().filter(|other| points.iter().all(|known| known.name != other.name)).cloned().collect::<Vec<_>>());
    let long = &value["long_context"];
    let tenth = |tenth: &Value| Some((tenth["kl"].as_f64()?, tenth["ppl_ratio"].as_f64()?));
    let (tenths, context) = match long["tenths"].as_array() {
        Some(tenths) => (tenths.iter().filter_map(tenth).collect(), long["context"].as_u64().unwrap_or(0) as usize),
        None => (m.by_position.iter().map(|t| (t.kl, t.ppl_ratio)).collect::<Vec<_>>(), m.text.as_ref().map_or(0, |text| text.context)),
    };
    let drawn = [
        (plots::variants(&points), "Size, quality and speed. The larger a disc, the faster it decodes. Down and to the left is better."),
        (
            plots::along(&tenths, context),
            "KL divergence along the context, in tenths of a window. A model that breaks late rises to the right.",
        ),
        (plots::histogram(&value["kl_histogram"]), "How the divergence is spread over tokens."),
        (
            plots::errors(&report.tensors),
            "Relative squared error of the weights, by layer (across) and kind of tensor. The stronger the colour, the larger.",
        ),
        (plots::bits(&report.tensors), "Bits a weight, scales included, by layer and kind of tensor."),
        (
            plots::roofline(report),
            "What the machine can do (line: reading memory on the left, int8 arithmetic on the right) and what both models make of it.",
        ),
    ];
    let mut section = String::new();
    for (svg, caption) in drawn {
        if let Some(svg) = svg {
            let _ = writeln!(section, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption));
        }
    }
    if !section.is_empty() {
        let _ = writeln!(out, "<section><h2>Plots</h2><div class=\"plots\">{section}</div></section>");
    }
}

fn samples(out: &mut String, report: &Report, given: &[PageSample]) {
    let value = serde_json::to_value(&report.measures).unwrap_or(Value::Null);
    let text = |sample: &Value, key: &str| sample[key].as_str().unwrap_or_default().to_string();
    let own = |sample: &Value| PageSample { prompt: text(sample, "prompt"), base: text(sample, "base"), quant: text(sample, "quant") };
    let held: Vec<PageSample> = value["samples"].as_array().into_iter().flatten().map(own).collect();
    let samples = if held.is_empty() { given } else { &held };
    if samples.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Texts</h2><p class=\"soft\">The same prompt continued by both, texts that part first. Marked is where they do.</p>\n",
    );
    for sample in samples {
        let [base, quant] = parted(&sample.base, &sample.quant);
        let _ = writeln!(
            out,
            "<div class=\"prompt\">{}</div><div class=\"pair\"><div><h3>original</h3>{base}</div><div><h3>{}</h3>{quant}</div></div>",
            escape(sample.prompt.trim()),
            escape(&report.scheme)
        );
    }
    out.push_str("</section>\n");
}

/// Most characters that are marked before and after the place where two texts part.
const MARKED: usize = 12;

/// Both texts with the place where they part marked: the word around it, or a piece of it where it is long.
fn parted(base: &str, quant: &str) -> [String; 2] {
    if base == quant {
        let same = escape(base.trim_end());
        return [same.clone(), same + " <small>(the same)</small>"];
    }
    let shared = base.chars().zip(quant.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    let before = base[..shared].char_indices().rev().take(MARKED).take_while(|(_, c)| !c.is_whitespace()).last();
    let begin = before.map_or(shared, |(at, _)| at);
    [base, quant].map(|text| {
        let after: usize = text[shared..].chars().take(MARKED).take_while(|c| !c.is_whitespace()).map(char::len_utf8).sum();
        // A blank that only one of them has is shown with what follows.
        let end = if after == 0 && begin == shared {
            text[shared..].chars().take(2).map(char::len_utf8).sum::<usize>() + shared
        } else {
            shared + after
        };
        let marked = if text[begin..end].trim().is_empty() { "(ends here)".to_string() } else { escape(&text[begin..end]) };
        format!("{}<mark>{marked}</mark>{}", escape(&text[..begin]), escape(&text[end..]))
    })
}

fn again(out: &mut String, report: &Report, page: &Page<'_>) {
    let mut command: Vec<String> = report.command.iter().map(|argument| quoted(argument)).collect();
    if let Some(program) = command.first_mut() {
        *program = "octet".into();
    }
    let folder = quoted(page.folder);
    let machine = &report.machine;
    let _ = writeln!(
        out,
        "<section><h2>Again</h2><pre>{}\noctet verify --receipt {2}\noctet reproduce {2}</pre>\
         <p class=\"soft\">The first makes and judges it again; the others check that no byte was changed since, and that the same bytes come out.</p>\
         <p class=\"soft\">Measured by octet {1} on {3}, {4} threads, {5}, {6}.</p></section>",
        escape(&command.join(" ")),
        escape(&machine.version),
        escape(&folder),
        escape(&machine.cpu),
        machine.threads,
        escape(&machine.isa),
        escape(&machine.os)
    );
}

#[cfg(test)]
mod tests;
