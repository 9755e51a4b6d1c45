//! What two models write after the same prompts, where their texts part, and how far apart they are token by token.

use crate::{
    Error, Progress, Result,
    degeneration::TextFigures,
    samples::parts_at,
    score::{Runner, chunks, per_row, rows_at_once, tick},
};
use octet_runtime::{Event, FinishReason, GenerateOptions, Generation, TextModel, generate_batch};
use octet_tensor::kl_divergence;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// What one model writes after a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Tokens of it.
    pub tokens: usize,
    /// Whether it ended by itself.
    pub ended: bool,
    /// Health figures of the text.
    pub health: TextFigures,
}

/// A token of the original's text and what the quantized model makes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// KL(original ‖ quantized) in nats where it was to be chosen.
    #[serde(with = "crate::number")]
    pub kl: f64,
    /// Whether both models put the same token first there.
    pub same_top: bool,
}

/// Both models after one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outputs {
    /// The prompt, as the models read it.
    pub prompt: String,
    /// What the original writes.
    pub base: Written,
    /// What the quantized model writes; `null` where its numbers are not finite.
    pub quant: Option<Written>,
    /// Bytes that both texts share from their beginning; `null` where they are equal.
    pub parts_at: Option<usize>,
    /// Mean KL divergence in nats along the original's text.
    #[serde(with = "crate::number")]
    pub kl: f64,
    /// The original's text token by token.
    pub tokens: Vec<Token>,
}

/// Lets both models continue every prompt (token ids) and compares them along the original's texts.
///
/// # Errors
/// If the vocabularies differ, a prompt is empty or too long, the original fails, or `progress` breaks off.
pub fn compare(
    base: &TextModel,
    quant: &TextModel,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    progress: Progress<'_>,
) -> Result<Vec<Outputs>> {
    if base.vocab() != quant.vocab() {
        return Err(Error::Vocabularies { base: base.vocab(), quant: quant.vocab() });
    }
    let total = 2 * options.max_tokens + prompts.len();
    let originals = write(base, prompts, options, &mut |done, _| progress(done, total))?;
    let variants = match write(quant, prompts, options, &mut |done, _| progress(options.max_tokens + done, total)) {
        Err(Error::Runtime(error)) if error.is_non_finite() => None,
        other => Some(other?),
    };
    let mut all = vec![];
    for (i, (prompt, (text, written))) in prompts.iter().zip(originals).enumerate() {
        let tokens = along(base, quant, prompt, &text.ids)?;
        let quant = variants.as_ref().and_then(|all| all.get(i)).map(|(_, written)| written.clone());
        let kl = tokens.iter().map(|token| token.kl).sum::<f64>() / tokens.len().max(1) as f64;
        let parts = quant.as_ref().map_or(Some(0), |quant| parts_at(&written.text, &quant.text));
        all.push(Outputs { prompt: base.tokenizer.decode(prompt)?, base: written, quant, parts_at: parts, kl, tokens });
        tick(progress, 2 * options.max_tokens + i + 1, total)?;
    }
    Ok(all)
}

fn write(model: &TextModel, prompts: &[Vec<u32>], options: &GenerateOptions, progress: Progress<'_>) -> Result<Vec<(Generation, Written)>> {
    let mut entropies = vec![vec![]; prompts.len()];
    let (mut longest, mut stop) = (0, false);
    let mut watch = |event: Event<'_>| {
        if let Event::Logits { sequence, logits } = event {
            entropies[sequence].push(model.model.engine().logit_sums(logits).entropy as f32);
            if entropies[sequence].len() > longest {
                longest = entropies[sequence].len();
                stop |= progress(longest, options.max_tokens).is_break();
            }
        }
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let texts = generate_batch(model, prompts, options, &mut watch)?;
    if stop {
        return Err(Error::Interrupted);
    }
    let written = |(text, entropies): (Generation, &Vec<f32>)| {
        let ended = text.finish == FinishReason::EndOfText;
        let health = TextFigures::of(&text.text, &text.ids, entropies, ended);
        let written = Written { text: text.text.clone(), tokens: text.ids.len(), ended, health };
        (text, written)
    };
    Ok(texts.into_iter().zip(&entropies).map(written).collect())
}

/// Both models along one text: what each token's choice looked like.
fn along(base: &TextModel, quant: &TextModel, prompt: &[u32], text: &[u32]) -> Result<Vec<Token>> {
    let whole: Vec<u32> = prompt.iter().chain(text).copied().collect();
    let whole = &whole[..whole.len().min(base.context()).min(quant.context())];
    let (mut original, mut variant) = (Runner::new(&base.model), Runner::new(&quant.model));
    let mut found: Vec<(f64, bool)> = vec![];
    for (inputs, targets) in chunks(whole, rows_at_once(&base.model, 2)) {
        original.forward(inputs)?;
        let broken = match variant.forward(inputs) {
            Err(Error::Forward(octet_model::ForwardError::NonFinite { .. })) => true,
            other => other.map(|()| false)?,
        };
        if broken {
            found.resize(whole.len() - 1, (f64::INFINITY, false));
            break;
        }
        found.extend(per_row(base.model.engine(), targets.len(), |row| {
            let divergence = kl_divergence(original.row(row), variant.row(row));
            (divergence.kl, divergence.same_top)
        }));
    }
    let mut tokens = vec![];
    let mut shown = 0;
    let ids = &whole[prompt.len().min(whole.len())..];
    for (at, &(kl, same_top)) in found.iter().skip(prompt.len() - 1).take(ids.len()).enumerate() {
        // A character may be spread over several tokens: text is what each adds to the whole.
        let decoded = base.tokenizer.decode(&ids[..=at])?;
        let complete = decoded.trim_end_matches('\u{fffd}').len();
        let text = decoded.get(shown..complete).unwrap_or_default().to_string();
        shown = shown.max(complete);
        tokens.push(Token { text, kl, same_top });
    }
    Ok(tokens)
}
