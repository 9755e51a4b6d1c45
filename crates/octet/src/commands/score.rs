//! `octet score` and `octet report`: what a report says, once more.

use super::{ladder, say_json};
use crate::{
    Ended,
    args::{Global, ReportArgs, Score},
    ui,
};
use anyhow::{Context, Result, bail};
use octet_eval::{
    Report,
    html::{self, Page},
    report::REPORT_FILE,
    trinity::{Inputs, Trinity},
};
use serde_json::json;
use std::path::Path;

/// Reads a report, or the one in a folder.
fn read(path: &Path) -> Result<Report> {
    let file = if path.is_dir() { path.join(REPORT_FILE) } else { path.to_path_buf() };
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read the report {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not a report of octet quantize; give a validation_report.json", file.display()))
}

/// `octet score`.
pub(crate) fn score(args: &Score, global: &Global) -> Result<Ended> {
    let mut scored = vec![];
    for path in &args.reports {
        let report = read(path)?;
        let (trinity, original) = (Trinity::of(&Inputs::of(&report)), Trinity::of(&Inputs::of_original(&report)));
        scored.push((path, report, trinity, original));
    }
    // Best first; what was not accepted has no place.
    let accepted = |report: &Report| matches!(report.status, octet_eval::gates::Status::Accepted | octet_eval::gates::Status::FellBack);
    scored.sort_by(|a, b| accepted(&b.1).cmp(&accepted(&a.1)).then(b.2.score.total_cmp(&a.2.score)));
    if global.json {
        let document = |(path, report, trinity, original): &(&std::path::PathBuf, Report, Trinity, Trinity)| {
            json!({ "report": path, "scheme": report.scheme, "status": report.status, "trinity": trinity, "original": original.score,
                    "recorded": report.trinity.as_ref().map(|t| t.score) })
        };
        say_json(&scored.iter().map(document).collect::<Vec<_>>())?;
        return Ok(Ended::Done);
    }
    if let [(_, report, trinity, original)] = &scored[..] {
        ui::say(&format!("\n{}\n", report.scheme));
        ui::say(&ladder::score(trinity));
        ui::say(&format!("  the original scores {:.1}, without goodness\n", original.score));
        ui::say(&terms(trinity));
        return Ok(Ended::Done);
    }
    let mut place = 0;
    let rows: Vec<Vec<String>> = scored
        .iter()
        .map(|(_, report, trinity, _)| {
            place += usize::from(accepted(report));
            let rank = if accepted(report) { place.to_string() } else { "-".into() };
            let pillars = trinity.pillars.iter().map(|pillar| format!("{:.1}", pillar.points));
            let partial = if trinity.partial { "*" } else { "" };
            let head = [rank, report.scheme.clone(), format!("{:.1}{partial}", trinity.score)];
            head.into_iter().chain(pillars).collect()
        })
        .collect();
    ui::say(&format!("\n{}", ui::table(&["rank", "scheme", "score", "truth", "goodness", "beauty", "serenity", "eternity"], &rows)));
    if scored.iter().any(|(_, _, trinity, _)| trinity.partial) {
        ui::say("\n* partial: something was not measured, and counts nothing");
    }
    Ok(Ended::Done)
}

/// Every input with what it is worth and by which formula.
fn terms(trinity: &Trinity) -> String {
    let inputs = trinity.pillars.iter().flat_map(|pillar| &pillar.inputs);
    let rows: Vec<Vec<String>> = inputs
        .map(|input| {
            let value = input.value.map_or_else(|| "not measured".to_string(), |value| format!("{value:.5}"));
            vec![input.name.clone(), value, format!("{:.2}/{:.0}", input.points, input.most)]
        })
        .collect();
    let formulas = trinity
        .pillars
        .iter()
        .flat_map(|pillar| &pillar.inputs)
        .map(|input| ladder::paragraph(&format!("{}: {}", input.name, input.formula), 2));
    format!("{}\n\n{}", ui::table(&["input", "measured", "points"], &rows), formulas.collect::<Vec<_>>().join("\n"))
}

/// `octet report`.
pub(crate) fn report(args: &ReportArgs, global: &Global) -> Result<Ended> {
    let report = read(&args.report)?;
    if args.out.exists() && !args.force {
        bail!("{} exists already; choose another file or replace it with --force", args.out.display());
    }
    let folder = if args.report.is_dir() { args.report.clone() } else { args.report.parent().unwrap_or(Path::new(".")).to_path_buf() };
    let name = folder.file_name().map_or_else(|| report.scheme.clone(), |name| name.to_string_lossy().into_owned());
    let model = name.strip_suffix(&format!("-{}", report.scheme)).unwrap_or(&name).to_string();
    let page = Page { model: &model, folder: &ui::path(&folder), ..Page::default() };
    std::fs::write(&args.out, html::page(&report, &page)).with_context(|| format!("cannot write {}", args.out.display()))?;
    if global.json {
        say_json(&json!({ "page": args.out }))?;
    } else {
        ui::note(&format!("wrote {}", ui::path(&args.out)));
    }
    Ok(Ended::Done)
}
