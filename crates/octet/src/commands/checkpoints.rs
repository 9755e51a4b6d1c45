//! Several checkpoints of one training run: each quantized as asked and judged against itself, and which quantizes best.

use super::{
    asked::Asked,
    quantize::{Outcome, Session, Walking},
    say_json, verdict,
};
use crate::{Ended, Usage, args::Quantize, resolve, ui};
use anyhow::Result;
use octet_eval::gates::Status;
use octet_flow::{Summary, Variant};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One checkpoint and what became of it.
struct Tried {
    /// Its name on the command line.
    model: String,
    name: String,
    outcome: Outcome,
}

impl Tried {
    /// The perplexity of the quantized model: what a user of it gets.
    fn perplexity(&self) -> f64 {
        let ppl = self.outcome.report.as_ref().and_then(|report| report.measures.ppl);
        ppl.and_then(|ppl| ppl.quant).unwrap_or(f64::INFINITY)
    }

    fn row(&self) -> Value {
        let report = self.outcome.report.as_ref();
        let ppl = report.and_then(|report| report.measures.ppl);
        json!({
            "checkpoint": self.name,
            "status": report.map(|report| report.status),
            "path": self.outcome.path,
            "ppl_original": ppl.map(|ppl| ppl.base),
            "ppl_quantized": ppl.and_then(|ppl| ppl.quant),
            "ppl_ratio": ppl.and_then(|ppl| ppl.ratio),
            "ppl_ratio_ci95": ppl.and_then(|ppl| ppl.ratio_ci95),
            "kl": report.and_then(|report| report.measures.kl).map(|kl| kl.mean),
            "score": report.and_then(|report| report.trinity.as_ref()).map(|trinity| trinity.score),
        })
    }
}

/// Quantizes every checkpoint as asked, judges each against itself, and puts the best in use: of those that were accepted, the
/// one whose quantized model has the lowest perplexity. Where none was, the ladder is walked with the one that came nearest.
pub(super) fn compare(session: &mut Session<'_>, asked: &Asked) -> Result<Ended> {
    let args = session.args;
    let models: Vec<String> = std::iter::once(&args.model).chain(&args.ladder.checkpoint).cloned().collect();
    distinct(&models)?;
    if let Some(out) = args.out.as_ref().filter(|out| !out.exists()) {
        std::fs::create_dir_all(out)?;
    }
    let compared = all(session, asked, &models);
    if let (Some(out), true) = (&args.out, compared.is_err()) {
        // Only an empty folder is removed.
        let _ = std::fs::remove_dir(out);
    }
    let (tried, fallback) = compared?;
    conclude(session, &tried, fallback.as_ref())
}

fn all(session: &mut Session<'_>, asked: &Asked, models: &[String]) -> Result<(Vec<Tried>, Option<Tried>)> {
    let mut tried: Vec<Tried> = vec![];
    for model in models {
        tried.push(one(session, asked, model, false, "all of them are compared as asked")?);
    }
    let nearest = tried.iter().min_by(|a, b| a.perplexity().total_cmp(&b.perplexity()));
    let open = tried.iter().all(|tried| tried.outcome.path.is_none() && tried.outcome.question.is_none());
    let Some(nearest) = nearest.filter(|_| open && !session.args.ladder.no_ladder) else { return Ok((tried, None)) };
    let model = nearest.model.clone();
    ui::note(&format!("no checkpoint was accepted as asked; the ladder goes on with {}, which came nearest", nearest.name));
    let why = format!("all {} were compared as asked, and this one came nearest", models.len());
    let fallback = one(session, asked, &model, true, &why)?;
    Ok((tried, Some(fallback)))
}

/// Quantizes and judges one checkpoint, with the ladder or without.
fn one(session: &mut Session<'_>, asked: &Asked, model: &str, ladder: bool, no_checkpoint: &str) -> Result<Tried> {
    session.take_up(model)?;
    let prepared = session.prepare(asked)?;
    let target = session.target(&asked.label(), true);
    prepared.check_target(&target, session.args.force)?;
    let (mut original, settings) = session.judging(std::slice::from_ref(&prepared))?;
    let walking = Walking { target: &target, several: true, ladder, no_checkpoint };
    let outcome = session.walk(asked, &prepared, walking, (&mut original, &settings))?;
    Ok(Tried { model: model.into(), name: session.name.clone(), outcome })
}

/// Refuses checkpoints whose folders would have the same name.
fn distinct(models: &[String]) -> Result<()> {
    let mut names: Vec<String> = models.iter().map(|model| resolve::short_name(model)).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Usage(format!("two checkpoints are called {}; rename one of them, or give it once", pair[0])).into()),
        None => Ok(()),
    }
}

fn conclude(session: &Session<'_>, tried: &[Tried], fallback: Option<&Tried>) -> Result<Ended> {
    let accepted = tried.iter().chain(fallback).filter(|tried| tried.outcome.path.is_some());
    let best = accepted.min_by(|a, b| a.perplexity().total_cmp(&b.perplexity()));
    let variants = tried.iter().chain(fallback).filter_map(|tried| {
        let report = tried.outcome.report.as_ref()?;
        let variant = Variant::of(report, tried.outcome.path.as_deref());
        Some(Variant { scheme: format!("{} of {}", variant.scheme, tried.name), ..variant })
    });
    let newest = tried.first().map_or("", |tried| tried.name.as_str());
    let summary = Summary::beside(&session.target("x", true), newest, variants.collect())?;
    if let Some(best) = best {
        session.put_in_use(&best.outcome, true)?;
    }
    if session.global.json {
        let reports: Vec<_> = tried.iter().chain(fallback).filter_map(|tried| tried.outcome.report.as_ref()).collect();
        let paths: Vec<_> = tried.iter().chain(fallback).map(|tried| tried.outcome.path.as_ref()).collect();
        let questions: Vec<_> = tried.iter().chain(fallback).map(|tried| tried.outcome.question.as_ref()).collect();
        let rows: Vec<Value> = tried.iter().chain(fallback).map(Tried::row).collect();
        say_json(&json!({
            "model": newest, "checkpoints": rows, "best": best.map(|best| &best.name),
            "reports": reports, "paths": paths, "questions": questions, "summary": summary,
        }))?;
    } else {
        ui::say(&table(tried, fallback));
        ui::say(&format!("  {}", verdict::wrap_at(&answer(tried, best), 2)));
        if let Some(best) = best {
            ui::say(&verdict::next_steps(&best.model, best.outcome.path.as_deref(), best.outcome.sample.as_ref()));
        }
    }
    Ok(if best.is_some() { Ended::Done } else { Ended::Refused })
}

/// Every checkpoint with its figures.
fn table(tried: &[Tried], fallback: Option<&Tried>) -> String {
    let row = |tried: &Tried| {
        let report = tried.outcome.report.as_ref();
        let ppl = report.and_then(|report| report.measures.ppl);
        let number = |value: Option<f64>, places: usize| value.map_or("-".to_string(), |value| format!("{value:.places$}"));
        let verdict = match report.map(|report| report.status) {
            Some(_) if tried.outcome.question.is_some() => "asks",
            Some(Status::Accepted | Status::FellBack) => "accepted",
            Some(Status::Refused) => "refused",
            Some(Status::Undecided) => "undecided",
            None => "-",
        };
        vec![
            tried.name.clone(),
            report.map_or(String::new(), |report| report.scheme.clone()),
            verdict.into(),
            number(ppl.map(|ppl| ppl.base), 3),
            number(ppl.and_then(|ppl| ppl.quant), 3),
            ppl.and_then(|ppl| ppl.ratio).map_or("-".into(), |ratio| format!("{:+.2}%", 100.0 * (ratio - 1.0))),
            number(report.and_then(|report| report.measures.kl).map(|kl| kl.mean), 4),
            number(report.and_then(|report| report.trinity.as_ref()).map(|trinity| trinity.score), 1),
        ]
    };
    let rows: Vec<Vec<String>> = tried.iter().chain(fallback).map(row).collect();
    format!("\n{}\n", ui::table(&["checkpoint", "scheme", "verdict", "original", "quantized", "change", "KL", "score"], &rows))
}

/// Which one quantizes best, in a sentence.
fn answer(tried: &[Tried], best: Option<&Tried>) -> String {
    let Some(newest) = tried.first() else { return String::new() };
    let Some(best) = best else { return "No checkpoint was accepted; the originals stay as they are.".into() };
    let figure = format!("perplexity {:.3} quantized", best.perplexity());
    if best.name == newest.name {
        return format!("{}, the newest, quantizes best: {figure}.", best.name);
    }
    let newest = match newest.outcome.path {
        Some(_) => format!("{:.3} of {}, the newest", newest.perplexity(), newest.name),
        None => format!("{}, the newest, was not accepted", newest.name),
    };
    format!("Another checkpoint quantizes better: {}, {figure}; {newest}.", best.name)
}

/// The command as if the checkpoints had been named by flag: of several, the last is quantized first, and the last that is no
/// checkpoint is the folder to write.
pub(super) fn named(args: &Quantize) -> Quantize {
    let mut args = args.clone();
    if args.more.is_empty() {
        return args;
    }
    let first = args.out.iter().map(|out| out.display().to_string());
    let mut all: Vec<String> = std::iter::once(args.model.clone()).chain(first).chain(args.more.drain(..)).collect();
    let is_model =
        |name: &String| Path::new(name).join("config.json").exists() || !Path::new(name).exists() && name == crate::builtin::NAME;
    args.out = all.pop_if(|last| !is_model(last)).map(PathBuf::from);
    args.model = all.pop().unwrap_or_default();
    all.reverse();
    args.ladder.checkpoint.extend(all);
    args
}
