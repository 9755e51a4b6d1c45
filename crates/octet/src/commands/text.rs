//! Texts to calibrate and to judge on: files, or the built-in ones.

use crate::{args::JudgeArgs, builtin, ui};
use anyhow::{Result, bail};
use octet_eval::{
    EvalText,
    text::{ReadOptions, Text},
};
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

/// Token ids of each text, with where they came from.
pub(super) struct Texts {
    pub(super) texts: Vec<EvalText>,
    pub(super) sources: Vec<TextSource>,
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
    if judge.health_prompts == 0 {
        bail!("--health-prompts 0 looks at no text; give 16 or more, or leave it out");
    }
    for (flag, value) in
        [("--max-ppl-increase", judge.max_ppl_increase), ("--min-speedup", judge.min_speedup), ("--max-task-drop", judge.max_task_drop)]
    {
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

/// Reads the files given (or the built-in text) as at most `most` tokens, at least `needed`, all in one.
pub(super) fn tokens(
    given: Given<'_>,
    built_in: BuiltIn,
    tokenizer: &Tokenizer,
    vocab: usize,
    needed: usize,
    most: usize,
) -> Result<Tokens> {
    let Texts { texts, sources } = texts(given, built_in, tokenizer, vocab, needed, most)?;
    let names = texts.iter().map(|text| text.name.clone()).collect();
    Ok(Tokens { names, sources, ids: texts.into_iter().flat_map(|text| text.ids).collect() })
}

/// Reads the files given (or the built-in texts) as at most `most` tokens together, at least `needed`, a list for each.
pub(super) fn texts(
    Given { files, field, chat }: Given<'_>,
    built_in: BuiltIn,
    tokenizer: &Tokenizer,
    vocab: usize,
    needed: usize,
    most: usize,
) -> Result<Texts> {
    let options = ReadOptions { vocab: Some(vocab), field: field.filter(|_| !files.is_empty()), chat };
    let (texts, sources) = if files.is_empty() {
        built_in_texts(built_in, options)?
    } else {
        let texts = files.iter().map(|path| Text::open(path, options)).collect::<octet_eval::Result<Vec<_>>>()?;
        (texts, files.iter().map(|path| TextSource::file(path)).collect::<octet_flow::Result<Vec<_>>>()?)
    };
    let mut all = vec![];
    for text in &texts {
        // Each file must hold something; together they must hold enough.
        let floor = if texts.len() == 1 { needed } else { 1 };
        all.push(EvalText { name: text.name.clone(), ids: text.tokens(tokenizer, vocab, floor)? });
    }
    let total = all.iter().map(|text| text.ids.len()).sum();
    if total < needed {
        let names: Vec<String> = all.into_iter().map(|text| text.name).collect();
        return Err(octet_eval::Error::TooShort { name: names.join(", "), tokens: total, needed }.into());
    }
    share(&mut all, most);
    Ok(Texts { texts: all, sources })
}

/// The built-in text; evaluation is by its three kinds, so that a model must be good at each.
fn built_in_texts(built_in: BuiltIn, options: ReadOptions<'_>) -> Result<(Vec<Text>, Vec<TextSource>)> {
    let parse = |name: &str, lines: &str| Ok(Text::parse(name.into(), lines.into(), true, options)?);
    let (name, text) = match built_in {
        BuiltIn::Calibration => builtin::calibration(),
        BuiltIn::Evaluation => builtin::evaluation(),
    };
    let of_kind = |kind: &&str| {
        let mark = format!("\"kind\": \"{kind}\"");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(&mark)).collect();
        parse(&format!("built-in {kind}"), &lines.join("\n"))
    };
    let texts = match built_in {
        BuiltIn::Calibration => vec![parse(name, text)?],
        BuiltIn::Evaluation => builtin::EVALUATION_KINDS.iter().map(of_kind).collect::<Result<_>>()?,
    };
    Ok((texts, vec![TextSource::built_in(name, text)]))
}

/// Cuts texts so that together they have at most `most` tokens: short ones stay whole, the others share what is left.
fn share(texts: &mut [EvalText], most: usize) {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&i| texts[i].ids.len());
    let mut left = most;
    for (at, &i) in order.iter().enumerate() {
        let part = left / (order.len() - at);
        texts[i].ids.truncate(part);
        left -= texts[i].ids.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_stay_whole_and_long_ones_share() {
        let text = |n: usize| EvalText { name: n.to_string(), ids: vec![1; n] };
        let mut texts = [text(50), text(10), text(1000)];
        share(&mut texts, 100);
        assert_eq!(texts.iter().map(|t| t.ids.len()).collect::<Vec<_>>(), [45, 10, 45]);
        share(&mut texts, 1000);
        assert_eq!(texts.iter().map(|t| t.ids.len()).sum::<usize>(), 100);
    }

    #[test]
    fn every_built_in_document_has_a_kind() {
        let texts = built_in_texts(BuiltIn::Evaluation, ReadOptions::default()).unwrap().0;
        let whole = Text::parse("all".into(), builtin::EVALUATION.into(), true, ReadOptions::default()).unwrap();
        let length = |text: &Text| match &text.source {
            octet_eval::text::Source::Text(text) => text.len(),
            octet_eval::text::Source::Ids(_) => 0,
        };
        // A blank line stands between two documents: two of them fewer in three texts.
        assert_eq!(texts.iter().map(length).sum::<usize>() + 2 * (texts.len() - 1), length(&whole));
    }
}
