//! Texts to calibrate and to judge on: files, or the built-in ones.

use crate::{args::JudgeArgs, builtin, ui};
use anyhow::{Result, bail};
use octet_eval::text::{ReadOptions, Text};
use octet_flow::TextSource;
use octet_runtime::{ChatTemplate, Tokenizer};
use std::path::PathBuf;

/// Token ids with the names of the texts they came from.
pub(super) struct Tokens {
    pub(super) names: Vec<String>,
    /// The files, or the built-in text.
    pub(super) sources: Vec<TextSource>,
    pub(super) ids: Vec<u32>,
}

/// Which built-in text stands in where no file is given.
#[derive(Clone, Copy)]
pub(super) enum BuiltIn {
    Calibration,
    Evaluation,
}

/// Refuses numbers that judge nothing.
pub(super) fn check(judge: &JudgeArgs) -> Result<()> {
    if judge.eval_tokens < 2 {
        bail!("--eval-tokens {} judges nothing; give some thousands, or leave it out", judge.eval_tokens);
    }
    if let Some(context) = judge.context.filter(|&context| context < 2) {
        bail!("--context {context} leaves no token to predict; give 2 or more, or leave it out");
    }
    for (flag, value) in [("--max-ppl-increase", judge.max_ppl_increase), ("--min-speedup", judge.min_speedup)] {
        if value.is_nan() {
            bail!("{flag} {value} is no threshold; give a number");
        }
    }
    Ok(())
}

/// Says on stderr that windows will be shorter than asked, where the model was made for less.
pub(super) fn note_context(judge: &JudgeArgs, context: usize) {
    if let Some(asked) = judge.context.filter(|&asked| asked > context) {
        ui::note(&format!("note: --context {asked} is longer than the {context} tokens the model was made for; windows have {context}"));
    }
}

/// Text that was given, and how its JSONL lines are read.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) files: &'a [PathBuf],
    /// The field of a line that holds the text.
    pub(super) field: Option<&'a str>,
    /// Renders lines of messages.
    pub(super) chat: Option<&'a ChatTemplate>,
}

/// Reads the files given (or the built-in text) as at most `most` tokens, at least `needed`.
pub(super) fn tokens(
    Given { files, field, chat }: Given<'_>,
    built_in: BuiltIn,
    tokenizer: &Tokenizer,
    vocab: usize,
    needed: usize,
    most: usize,
) -> Result<Tokens> {
    let options = ReadOptions { vocab: Some(vocab), field: field.filter(|_| !files.is_empty()), chat };
    let (texts, sources) = if files.is_empty() {
        let (name, text) = match built_in {
            BuiltIn::Calibration => ("built-in calibration text", builtin::CALIBRATION),
            BuiltIn::Evaluation => ("built-in evaluation text", builtin::EVALUATION),
        };
        (vec![Text::parse(name.into(), text.into(), true, options)?], vec![TextSource::built_in(name, text)])
    } else {
        let texts = files.iter().map(|path| Text::open(path, options)).collect::<octet_eval::Result<Vec<_>>>()?;
        (texts, files.iter().map(|path| TextSource::file(path)).collect::<octet_flow::Result<Vec<_>>>()?)
    };
    let mut all = Tokens { names: vec![], sources, ids: vec![] };
    for text in &texts {
        // Each file must hold something; together they must hold enough.
        let floor = if texts.len() == 1 { needed } else { 1 };
        all.ids.extend(text.tokens(tokenizer, vocab, floor)?);
        all.names.push(text.name.clone());
    }
    if all.ids.len() < needed {
        return Err(octet_eval::Error::TooShort { name: all.names.join(", "), tokens: all.ids.len(), needed }.into());
    }
    all.ids.truncate(most);
    Ok(all)
}
