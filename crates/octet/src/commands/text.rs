//! Texts to calibrate and to judge on: files, or the built-in ones.

use crate::builtin;
use anyhow::Result;
use octet_eval::text::{ReadOptions, Text};
use octet_runtime::Tokenizer;
use std::path::PathBuf;

/// Token ids with the names of the texts they came from.
pub(super) struct Tokens {
    pub(super) names: Vec<String>,
    pub(super) ids: Vec<u32>,
}

/// Which built-in text stands in where no file is given.
#[derive(Clone, Copy)]
pub(super) enum BuiltIn {
    Calibration,
    Evaluation,
}

/// Reads `files` (or the built-in text) as at most `most` tokens, at least `needed`.
pub(super) fn tokens(files: &[PathBuf], built_in: BuiltIn, tokenizer: &Tokenizer, vocab: usize, needed: usize, most: usize) -> Result<Tokens> {
    let options = ReadOptions { vocab: Some(vocab), ..ReadOptions::default() };
    let texts = if files.is_empty() {
        let (name, text) = match built_in {
            BuiltIn::Calibration => ("built-in calibration text", builtin::CALIBRATION),
            BuiltIn::Evaluation => ("built-in evaluation text", builtin::EVALUATION),
        };
        vec![Text::parse(name.into(), text.into(), true, options)?]
    } else {
        files.iter().map(|path| Text::open(path, options)).collect::<octet_eval::Result<Vec<_>>>()?
    };
    let mut all = Tokens { names: vec![], ids: vec![] };
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
