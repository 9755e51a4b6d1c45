//! The model card of an export: what it is made from, how it is represented, what it was judged by.

use super::{Format, Source};
use crate::{Error, Result, digest, receipt::RECEIPT_FILE};
use octet_eval::{
    Report,
    gates::{Gate, Outcome, Status},
    report::REPORT_FILE,
};
use octet_formats::{Checkpoint, Folder};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// The card's file.
const FILE: &str = "README.md";

/// What a card says beside the model itself.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The format.
    pub format: Format,
    /// What is converted and what to know.
    pub notes: &'a [String],
    /// The verdict against the model it was made from.
    pub report: Option<&'a Report>,
}

/// Writes the card into the folder `at`; `written` is what it holds, where octet reads it, and `seal` what names the model.
pub(super) fn write(source: &Source, facts: Facts<'_>, bytes: u64, (written, seal): (Option<&Checkpoint>, &str), at: &Path) -> Result<()> {
    let text = card(source, facts, bytes, (written.unwrap_or(&source.checkpoint), seal))?;
    std::fs::create_dir_all(at).map_err(Error::write(at))?;
    std::fs::write(at.join(FILE), text).map_err(Error::write(at.join(FILE)))
}

fn card(source: &Source, facts: Facts<'_>, bytes: u64, (written, seal): (&Checkpoint, &str)) -> Result<String> {
    let (input, format) = (&source.input, facts.format.to_string());
    let receipt = document(input, RECEIPT_FILE)?;
    let original = receipt.as_ref().and_then(|receipt| receipt["model"]["name"].as_str()).unwrap_or(input.name());
    let schemes = schemes(written);
    let relation = if schemes.is_empty() { "finetune" } else { "quantized" };
    let quote = Value::from(original);
    let mut text = format!("---\nbase_model: {quote}\nbase_model_relation: {relation}\ntags:\n- octet\n- {format}\n---\n\n");
    let _ = writeln!(text, "# {} as {format}\n\nMade from `{original}` by octet {}.\n", input.name(), env!("CARGO_PKG_VERSION"));
    text.push_str("| | |\n|---|---|\n");
    schemes.iter().for_each(|(scheme, count)| text.push_str(&format!("| {count} matrices | {scheme} |\n")));
    let _ = writeln!(text, "| weights and tokenizer | {:.1} MB |", bytes as f64 / 1e6);
    let _ = writeln!(text, "| executed by | {} |", facts.format.executed_by().unwrap_or("nobody yet: unverified"));
    facts.notes.iter().for_each(|note| text.push_str(&format!("| note | {note} |\n")));
    if let Some(report) = facts.report {
        let title = format!("Verdict against {}: {}", input.name(), status(report.status));
        text.push_str(&verdict(&title, &report.gates));
    }
    // What the model itself was judged by, where it is a folder of octet's.
    let earlier = input.read(REPORT_FILE)?.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok());
    if let Some(report) = earlier {
        text.push_str(&verdict(&format!("Verdict on {} against {original}: {}", input.name(), status(report.status)), &report.gates));
    }
    let _ = writeln!(text, "\nReceipt: {seal}");
    Ok(text)
}

fn document(folder: &Folder, name: &str) -> Result<Option<Value>> {
    Ok(folder.read(name)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn status(status: Status) -> String {
    serde_json::to_value(status).ok().and_then(|value| Some(value.as_str()?.replace('_', " "))).unwrap_or_default()
}

/// How many matrices are in which scheme.
fn schemes(checkpoint: &Checkpoint) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::<String, usize>::new();
    let stored = checkpoint.quantization().into_iter().flat_map(|q| q.modules.values().map(ToString::to_string));
    stored.chain(checkpoint.decoded().into_values()).for_each(|scheme| *counts.entry(scheme).or_default() += 1);
    counts
}

/// Gates as a table.
fn verdict(title: &str, gates: &[Gate]) -> String {
    let mut text = format!("\n## {title}\n\n| gate | measured | 95 % interval | limit | passed |\n|---|---|---|---|---|\n");
    let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.5}"));
    for gate in gates {
        let interval = gate.ci95.map_or(String::new(), |[low, high]| format!("{low:.5} to {high:.5}"));
        let passed = match gate.outcome {
            Outcome::Passed => "yes",
            Outcome::Failed => "no",
            Outcome::Undecided => "undecided",
            Outcome::NotApplicable => "not applicable",
        };
        let _ = writeln!(text, "| {} | {} | {interval} | {} | {passed} |", gate.name, number(gate.value), number(gate.threshold));
    }
    text
}

/// What names the model exactly, in words: its receipt's digest, or that of its files, which are read for it.
pub(super) fn seal(folder: &Folder) -> Result<String> {
    match document(folder, RECEIPT_FILE)?.as_ref().and_then(|receipt| receipt["sha256"].as_str()) {
        Some(sha) => Ok(format!("that of {} is sealed by SHA-256 `{sha}`.", folder.name())),
        None => Ok(format!("{} has none; its files have the SHA-256 `{}`.", folder.name(), digest::folder(folder)?)),
    }
}
