//! `octet run`: text from a model, streamed; a conversation without a prompt.

use crate::{
    Ended,
    args::{Global, Run},
    budget, interrupt, machine, resolve, ui,
};
use anyhow::{Context, Result, bail};
use octet_eval::memory::{ProcessMemory, available_memory};
use octet_formats::Folder;
use octet_kernels::Engine;
use octet_runtime::{FinishReason, GenerateOptions, Generation, MemoryNeeds, Message, OpenOptions, SamplerConfig, TextModel, generate};
use std::{
    io::{IsTerminal, Read},
    ops::ControlFlow,
    time::Instant,
};

/// Runs the command.
pub(crate) fn run(args: &Run, global: &Global) -> Result<Ended> {
    if args.max_tokens == 0 {
        bail!("--max-tokens 0 generates nothing; give 1 or more");
    }
    let prompt = prompt_text(args)?;
    let engine = machine::engine(global.threads)?;
    let folder = resolve::resolve(&args.model)?;
    let started = Instant::now();
    let mut options = OpenOptions { context: args.context, kv: args.cache.kv.into(), ..OpenOptions::default() };
    options.context = context(args, &folder, options, engine.threads())?;
    let model = TextModel::open(&folder, &engine, options)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let session = Session { args, global, model: &model, engine: &engine, load_seconds };
    match prompt {
        Some(text) => session.once(&text),
        None if global.json => bail!("--json needs a prompt; a conversation has no document"),
        None => session.converse(),
    }
}

/// The context to load with: what was asked for where memory holds it, less where that is allowed.
fn context(args: &Run, folder: &Folder, options: OpenOptions, threads: usize) -> Result<Option<usize>> {
    if args.memory.memory_budget.is_none() && args.context.is_none() {
        return Ok(None);
    }
    let needs = MemoryNeeds::of(folder, options.activations, threads)?;
    let asked = budget::Asked { model: &args.model, needs: &needs, context: args.context, kv: options.kv, beside: 0 };
    budget::fits_machine(&asked, available_memory())?;
    asked.within(args.memory.memory_budget, args.shrink_context)
}

/// The prompt given, or what stdin holds for `-` and for a pipe; `None` for a terminal.
fn prompt_text(args: &Run) -> Result<Option<String>> {
    let from_stdin = args.prompt.as_deref() == Some("-") || (args.prompt.is_none() && !std::io::stdin().is_terminal());
    if !from_stdin {
        return Ok(args.prompt.clone());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("the prompt on stdin is not UTF-8 text; convert it first")?;
    if text.trim().is_empty() {
        bail!("there is no prompt on stdin; give one as an argument, for instance `octet run {} \"Hello\"`", args.model);
    }
    Ok(Some(text.trim_end_matches('\n').to_string()))
}

struct Session<'a> {
    args: &'a Run,
    global: &'a Global,
    model: &'a TextModel,
    engine: &'a Engine,
    load_seconds: f64,
}

impl Session<'_> {
    fn once(&self, prompt: &str) -> Result<Ended> {
        let ids = match (&self.model.chat, self.args.raw) {
            (Some(_), false) => self.chat_ids(&self.opening(prompt))?,
            _ => self.model.tokenizer.encode(prompt, true)?,
        };
        let echo = if self.model.chat.is_none() { prompt } else { "" };
        let generation = self.generate(&ids, echo)?;
        if self.global.json {
            super::say_json(&self.document(prompt, &generation))?;
        } else {
            ui::say("");
        }
        self.stats(&generation);
        Ok(if interrupt::asked() { Ended::Interrupted } else { Ended::Done })
    }

    /// A conversation (with a chat template) or one continuation after another (without).
    fn converse(&self) -> Result<Ended> {
        let what = if self.model.chat.is_some() { "chat" } else { "this model has no chat template: it continues your text" };
        ui::note(&format!("{what}; /bye ends, an empty line is ignored"));
        let mut messages: Vec<Message> = self.system();
        loop {
            ui::stream(">>> ")?;
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line)? == 0 || line.trim() == "/bye" || interrupt::asked() {
                ui::say("");
                return Ok(Ended::Done);
            }
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let ids = if self.model.chat.is_some() && !self.args.raw {
                messages.push(Message::new("user", line));
                self.chat_ids(&messages)?
            } else {
                self.model.tokenizer.encode(line, true)?
            };
            let generation = self.generate(&ids, "")?;
            ui::say("");
            self.stats(&generation);
            messages.push(Message::new("assistant", generation.text.trim()));
        }
    }

    fn system(&self) -> Vec<Message> {
        self.args.system.iter().map(|text| Message::new("system", text.as_str())).collect()
    }

    fn opening(&self, prompt: &str) -> Vec<Message> {
        let mut messages = self.system();
        messages.push(Message::new("user", prompt));
        messages
    }

    fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(chat) = &self.model.chat else { bail!("{} has no chat template", self.args.model) };
        // The template writes its own special tokens.
        Ok(self.model.tokenizer.encode(&chat.render(messages, true)?, false)?)
    }

    /// Generates and streams the text, with `echo` in front once it is known that the prompt can be continued.
    fn generate(&self, ids: &[u32], echo: &str) -> Result<Generation> {
        let options = GenerateOptions {
            max_tokens: self.args.max_tokens,
            stop: self.args.stop.clone(),
            sampler: self.sampler(),
            ..GenerateOptions::default()
        };
        let (quiet, mut echo) = (self.global.json, Some(echo));
        let generation = generate(self.model, ids, &options, &mut |text| {
            let shown = quiet || (ui::stream(echo.take().unwrap_or_default()).is_ok() && ui::stream(text).is_ok());
            if shown && !interrupt::asked() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if let (Some(echo), false) = (echo, quiet) {
            ui::stream(echo)?;
        }
        if generation.finish == FinishReason::ContextFull {
            let context = self.model.context();
            let longer = if self.args.context.is_some() { "give a longer --context, or a shorter prompt" } else { "give a shorter prompt" };
            ui::note(&format!("\nnote: the text ends here because the context of {context} tokens is full; {longer}"));
        }
        Ok(generation)
    }

    /// The model's own sampler, with whatever the flags say instead.
    fn sampler(&self) -> SamplerConfig {
        let (args, own) = (self.args, self.model.generation.sampler(self.args.seed));
        SamplerConfig {
            temperature: args.temperature.unwrap_or(own.temperature),
            top_k: args.top_k.unwrap_or(own.top_k),
            top_p: args.top_p.unwrap_or(own.top_p),
            min_p: args.min_p.unwrap_or(own.min_p),
            repetition_penalty: args.repetition_penalty.unwrap_or(own.repetition_penalty),
            seed: args.seed,
        }
    }

    fn stats(&self, generation: &Generation) {
        if !self.args.stats {
            return;
        }
        let t = &generation.timings;
        ui::note(&format!(
            "loaded in {:.0} ms; prompt {} tokens, {:.1} tok/s; generated {} tokens, {:.1} tok/s; {}{} threads, {}",
            self.load_seconds * 1e3,
            t.prefill_tokens,
            t.prefill_rate(),
            generation.ids.len(),
            t.decode_rate(),
            ProcessMemory::now().peak_rss.map_or_else(String::new, |peak| format!("at most {} of memory; ", ui::bytes(peak))),
            self.engine.threads(),
            self.engine.isa()
        ));
    }

    fn document(&self, prompt: &str, generation: &Generation) -> serde_json::Value {
        let t = &generation.timings;
        let finish = match generation.finish {
            FinishReason::EndOfText => "end_of_text",
            FinishReason::StopString => "stop_string",
            FinishReason::MaxTokens => "max_tokens",
            FinishReason::ContextFull => "context_full",
            FinishReason::Cancelled => "interrupted",
        };
        serde_json::json!({
            "model": self.args.model,
            "prompt": prompt,
            "text": generation.text,
            "ids": generation.ids,
            "finish": finish,
            "load_ms": self.load_seconds * 1e3,
            "prefill": { "tokens": t.prefill_tokens, "tok_s": t.prefill_rate() },
            "decode": { "tokens": t.decode_tokens, "tok_s": t.decode_rate() },
            "peak_rss_bytes": ProcessMemory::now().peak_rss,
        })
    }
}
