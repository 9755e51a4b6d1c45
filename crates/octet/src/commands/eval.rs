//! `octet eval`: perplexity of one model, or of a pair with divergence and the paired ratio.

use super::{
    say_json,
    text::{self, BuiltIn},
};
use crate::{
    Ended,
    args::{Eval, Global, Kv},
    budget, interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::Result;
use octet_eval::{
    EvaluationWindows, Measures, Windows,
    evaluation::{Compared, TextCompared},
    gates::Thresholds,
    looks::Look,
    report::{TextInfo, kernels_since},
    score, verdict_of_texts,
    windows::DEFAULT_CONTEXT,
};
use octet_runtime::{MemoryNeeds, OpenOptions, TextModel};
use std::ops::ControlFlow;

/// Fewest tokens worth a figure.
const LEAST_TOKENS: usize = 1024;

/// Runs the command.
pub(crate) fn eval(args: &Eval, global: &Global) -> Result<Ended> {
    text::check(&args.judge)?;
    let engine = machine::engine(global.threads)?;
    check_budget(args, engine.threads())?;
    let open = |name: &str, kv: Kv| -> Result<TextModel> {
        Ok(TextModel::open(&resolve::resolve(name)?, &engine, OpenOptions { kv: kv.into(), ..OpenOptions::default() })?)
    };
    let model = open(&args.model, args.cache.kv)?;
    let base = args.base.as_deref().map(|base| open(base, args.base_kv.unwrap_or(args.cache.kv))).transpose()?;
    let reader = base.as_ref().unwrap_or(&model);
    let judge = &args.judge;
    let texts = text::texts(
        text::Given { files: &judge.eval_text, field: judge.text_field.as_deref(), chat: None },
        BuiltIn::Evaluation,
        &reader.tokenizer,
        reader.vocab(),
        LEAST_TOKENS,
        judge.eval_tokens,
    )?;
    text::note_context(judge, reader.context());
    let windows = EvaluationWindows::of(reader, &texts.texts, judge.context)?.texts;
    let mut progress = Progress::new();
    let mut step = |done: usize, total: usize| {
        progress.update("perplexity", done as u64, total as u64, "windows");
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let measures = match &base {
        None => alone(&model, windows, judge.seed, &mut step),
        Some(base) => pair(base, &model, windows, judge.seed, &mut step),
    };
    progress.finish();
    if interrupt::asked() {
        return Ok(Ended::Interrupted);
    }
    let measures = Measures { kernels: kernels_since(model.model.engine(), &[]), ..measures? };
    if global.json {
        let kv = octet_kernels::KvDtype::from(args.cache.kv).name();
        say_json(&serde_json::json!({ "model": args.model, "base": args.base, "kv": kv, "measures": measures }))?;
    } else {
        show(&args.model, args.base.as_deref(), &measures);
    }
    Ok(Ended::Done)
}

/// The figures of one model on all texts.
fn alone(model: &TextModel, windows: Vec<(String, Windows)>, seed: u64, step: octet_eval::Progress<'_>) -> octet_eval::Result<Measures> {
    let infos: Vec<TextInfo> = windows.iter().map(|(name, windows)| TextInfo::of(name.clone(), windows)).collect();
    let Some(info) = TextInfo::together(&infos) else { return Ok(Measures::default()) };
    let mut scores = vec![];
    for (_, windows) in windows {
        let before = scores.len();
        scores.extend(score::score(&model.model, &windows, &mut |done, _| step(before + done, info.windows))?);
    }
    Ok(Measures::of_one(info, &scores, seed))
}

/// The figures of a pair on all texts together and each by itself.
fn pair(
    base: &TextModel,
    model: &TextModel,
    windows: Vec<(String, Windows)>,
    seed: u64,
    step: octet_eval::Progress<'_>,
) -> octet_eval::Result<Measures> {
    let total: usize = windows.iter().map(|(_, windows)| windows.windows.len()).sum();
    let (mut texts, mut before) = (vec![], 0);
    for (name, windows) in windows {
        let comparison = score::compare(&base.model, &model.model, &windows, &mut |done, _| step(before + done, total))?;
        before += windows.windows.len();
        texts.push(TextCompared { name, windows, comparison });
    }
    Ok(verdict_of_texts(&Compared { texts, long: None, look: Look::Only }, &Thresholds::default(), seed).0)
}

/// Refuses models that do not fit into the memory budget together, at the window length they are scored with.
fn check_budget(args: &Eval, threads: usize) -> Result<()> {
    if args.memory.memory_budget.is_none() {
        return Ok(());
    }
    let kv = args.cache.kv.into();
    let base_kv = args.base_kv.map_or(kv, Into::into);
    let needs = |name: &str| -> Result<MemoryNeeds> { Ok(MemoryNeeds::of(&resolve::resolve(name)?, None, threads)?) };
    let (needs, base) = (needs(&args.model)?, args.base.as_deref().map(needs).transpose()?);
    let context = args.judge.context.unwrap_or(DEFAULT_CONTEXT).min(needs.longest());
    let beside = score::LOGITS_BYTES as u64 + base.map_or(0, |base| base.at(context, base_kv).total());
    budget::Asked { model: &args.model, needs: &needs, context: Some(context), kv, beside }.within(args.memory.memory_budget, false)?;
    Ok(())
}

fn show(model: &str, base: Option<&str>, m: &Measures) {
    if let Some(t) = &m.text {
        ui::say(&format!(
            "{} tokens of {}, {} windows of {} tokens{}",
            t.tokens,
            t.name,
            t.windows,
            t.context,
            if t.bos { ", BOS in front of each" } else { "" }
        ));
    }
    let interval = |ci: Option<[f64; 2]>, places: usize| {
        ci.map_or(String::new(), |[low, high]| format!("  95 % interval {low:.places$} to {high:.places$}"))
    };
    if let Some(ppl) = &m.ppl {
        ui::say(&format!("perplexity        {:.4}{}  ({})", ppl.base, interval(ppl.base_ci95, 3), base.unwrap_or(model)));
        if let Some(quant) = ppl.quant {
            ui::say(&format!("                  {quant:.4}{}  ({model})", interval(ppl.quant_ci95, 3)));
        }
        if let Some(ratio) = ppl.ratio {
            ui::say(&format!("paired ratio      {ratio:.5}{}", interval(ppl.ratio_ci95, 5)));
        }
    }
    if let Some(bits) = &m.bits_per_byte {
        let delta = bits.delta.map_or(String::new(), |d| format!("  ({d:+.5})"));
        ui::say(&format!("bits per byte     {:.4}{delta}", bits.quant.unwrap_or(bits.base)));
    }
    if let (Some(kl), Some(top1)) = (&m.kl, m.top1) {
        ui::say(&format!("KL divergence     mean {:.6}  median {:.6}  99 % {:.5}  max {:.4} nats", kl.mean, kl.median, kl.p99, kl.max));
        ui::say(&format!("same top token    {:.3} %", 100.0 * top1));
    }
}
