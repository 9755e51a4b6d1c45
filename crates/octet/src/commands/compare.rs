//! `octet compare`: two models on the same prompts.

use super::{
    compare_show, say_json,
    text::{self, BuiltIn, Given},
};
use crate::{
    Ended,
    args::{Compare, Global},
    interrupt, machine, resolve,
    ui::{self, Progress},
};
use anyhow::{Context, Result, bail};
use octet_eval::outputs;
use octet_runtime::{GenerateOptions, Message, OpenOptions, SamplerConfig, TextModel};
use std::ops::ControlFlow;

/// Tokens of a prompt taken from a built-in text, and prompts taken from each.
const PROMPT_TOKENS: usize = 16;
const PER_TEXT: usize = 2;

/// Runs the command.
pub(crate) fn compare(args: &Compare, global: &Global) -> Result<Ended> {
    if args.max_tokens == 0 {
        bail!("-n 0 generates nothing; give 1 or more, or leave it out");
    }
    if let Some(path) = args.html.as_ref().filter(|path| path.exists() && !args.force) {
        bail!("{} exists; give another name, or --force to replace it", path.display());
    }
    let engine = machine::engine(global.threads)?;
    let open = |name: &str| -> Result<TextModel> { Ok(TextModel::open(&resolve::resolve(name)?, &engine, OpenOptions::default())?) };
    let (base, quant) = (open(&args.base)?, open(&args.quant)?);
    let prompts = prompts(args, &base)?;
    let sampler = if args.temperature > 0.0 { SamplerConfig::sampled(args.temperature, args.seed) } else { SamplerConfig::greedy() };
    let options = GenerateOptions { max_tokens: args.max_tokens, sampler, ..GenerateOptions::default() };
    let mut progress = Progress::new();
    let mut step = |done: usize, total: usize| {
        progress.update("comparing", done as u64, total as u64, "both models write");
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let compared = outputs::compare(&base, &quant, &prompts, &options, &mut step);
    progress.finish();
    if interrupt::asked() {
        return Ok(Ended::Interrupted);
    }
    let compared = compared?;
    if let Some(path) = &args.html {
        let page = compare_show::page(&args.base, &args.quant, &compared);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        ui::note(&format!("wrote {}", ui::path(path)));
    }
    if global.json {
        say_json(&serde_json::json!({ "base": args.base, "quant": args.quant, "prompts": compared }))?;
    } else {
        ui::say(&compare_show::text(&compared));
    }
    Ok(Ended::Done)
}

/// Token ids of the prompts: those given, those of a file, or beginnings of built-in documents.
fn prompts(args: &Compare, model: &TextModel) -> Result<Vec<Vec<u32>>> {
    let given = match &args.file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the prompts {}", path.display()))?;
            let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(Into::into).collect();
            if lines.is_empty() {
                bail!("{} holds no prompt; write one on each line", path.display());
            }
            lines
        }
        None => args.prompts.clone(),
    };
    if given.is_empty() {
        let none = Given { files: &[], field: None, chat: None };
        let texts = text::texts(none, BuiltIn::Evaluation, &model.tokenizer, model.vocab(), 1, usize::MAX)?.texts;
        let starts = texts.iter().flat_map(|text| {
            let step = text.ids.len() / PER_TEXT;
            (0..PER_TEXT).map(move |i| &text.ids[i * step..(i * step + PROMPT_TOKENS).min(text.ids.len())])
        });
        let bos = model.tokenizer.leading_bos();
        return Ok(starts.map(|ids| bos.into_iter().chain(ids.iter().copied()).collect()).collect());
    }
    let encode = |prompt: &String| -> Result<Vec<u32>> {
        match model.chat.as_ref().filter(|_| !args.raw) {
            // The template writes special tokens itself.
            Some(chat) => {
                let message = Message { role: "user".into(), content: prompt.clone() };
                Ok(model.tokenizer.encode(&chat.render(&[message], true)?, false)?)
            }
            None => Ok(model.tokenizer.encode(prompt, true)?),
        }
    };
    given.iter().map(encode).collect()
}
