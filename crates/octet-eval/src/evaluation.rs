//! The texts of a verdict, cut into windows, with what the original makes of them: run once, stored where asked, and held
//! against any number of variants.

use crate::{
    Progress, Reference, Result, Windows,
    score::Comparison,
    store::{Key, Store},
    windows::usual_context,
};
use octet_model::Model;
use octet_runtime::TextModel;

/// Tokens of one evaluation text.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalText {
    /// What it is called in reports.
    pub name: String,
    /// Its token ids.
    pub ids: Vec<u32>,
}

/// Long windows, where a text has them: whether a model holds out to the end of its context.
pub const LONG_WINDOWS: usize = 8;

/// Most tokens of a long window.
const LONG_CONTEXT: usize = 4096;

/// Texts cut into windows of one length, and a few long windows over all of them.
#[derive(Clone, Debug)]
pub struct EvaluationWindows {
    /// Windows of each text.
    pub texts: Vec<(String, Windows)>,
    /// A few windows as long as the model or the text allows; `None` where the usual ones are about as long.
    pub long: Option<Windows>,
}

impl EvaluationWindows {
    /// Cuts the texts into windows of `context` tokens; `None` for what is usual for so much text (see [`usual_context`]).
    ///
    /// # Errors
    /// If ids cannot be decoded (to count bytes).
    pub fn of(model: &TextModel, texts: &[EvalText], context: Option<usize>) -> Result<Self> {
        let all: usize = texts.iter().map(|text| text.ids.len()).sum();
        let usual = context.unwrap_or_else(|| usual_context(all, model.context())).min(model.context());
        let cut = |text: &EvalText| Ok((text.name.clone(), Windows::of(model, &text.ids, Some(usual))?));
        let cut = texts.iter().map(cut).collect::<Result<Vec<_>>>()?;
        let length = long_context(all, model.context(), usual);
        let long = length.map(|length| {
            let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
            let step = ids.len() / LONG_WINDOWS;
            let body = length - usize::from(model.tokenizer.leading_bos().is_some());
            let spread: Vec<u32> = (0..LONG_WINDOWS).flat_map(|i| ids[i * step..i * step + body].iter().copied()).collect();
            Windows::of(model, &spread, Some(length))
        });
        Ok(Self { texts: cut, long: long.transpose()? })
    }

    /// Windows in all.
    pub fn count(&self) -> usize {
        self.all().map(|windows| windows.windows.len()).sum()
    }

    /// Predicted tokens in all, long windows included.
    pub fn tokens(&self) -> usize {
        self.all().map(Windows::tokens).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Windows> {
        self.texts.iter().map(|(_, windows)| windows).chain(&self.long)
    }
}

/// Tokens of a long window: what the model allows, so that all long windows together take no more than half as long as the
/// others; `None` where that is hardly longer than `usual`.
fn long_context(tokens: usize, limit: usize, usual: usize) -> Option<usize> {
    let length = LONG_CONTEXT.min(limit).min(tokens / (2 * LONG_WINDOWS));
    (2 * length >= 3 * usual).then_some(length)
}

/// What the original makes of the texts of a verdict.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Of each text.
    pub texts: Vec<(String, Reference)>,
    /// Of the long windows.
    pub long: Option<Reference>,
    /// Whether all of it was stored, so that the original was not run.
    pub stored: bool,
}

/// How a variant compares on the texts of a verdict.
#[derive(Clone, Debug)]
pub struct Compared {
    /// On each text: its name, its windows, the comparison.
    pub texts: Vec<(String, Windows, Comparison)>,
    /// On the long windows.
    pub long: Option<(Windows, Comparison)>,
}

impl Compared {
    /// The comparison on all texts together (without the long windows, which are made of the same text).
    pub fn pooled(&self) -> Comparison {
        let mut all = Comparison::default();
        self.texts.iter().for_each(|(_, _, comparison)| all.extend(comparison));
        all
    }
}

impl Evaluation {
    /// Takes what is stored, or runs `original` over the windows and stores that. `identity` is what the original's logits
    /// depend on: its weights, how it is run.
    ///
    /// # Errors
    /// If the model fails or `progress` breaks off; that something cannot be stored is no error.
    pub fn of(original: &Model, windows: &EvaluationWindows, stored: Option<(&Store, &Key)>, progress: Progress<'_>) -> Result<Self> {
        let (total, mut done, mut all_stored) = (windows.count(), 0, true);
        let mut one = |windows: &Windows| {
            let stored = stored.map(|(store, identity)| (store, key(identity, windows)));
            let vocab = original.spec().vocab_size();
            let known = stored.as_ref().and_then(|(store, key)| Reference::from_bytes(&store.load(key)?, windows, vocab));
            let reference = match known {
                Some(known) => known,
                None => {
                    all_stored = false;
                    let made = Reference::of(original, windows, &mut |at, _| progress(done + at, total))?;
                    if let Some((store, key)) = &stored {
                        // Who cannot store runs the original again next time.
                        let _ = store.save(key, &made.to_bytes());
                    }
                    made
                }
            };
            done += windows.windows.len();
            Ok::<_, crate::Error>(reference)
        };
        let texts = windows.texts.iter().map(|(name, windows)| Ok((name.clone(), one(windows)?))).collect::<Result<Vec<_>>>()?;
        let long = windows.long.as_ref().map(&mut one).transpose()?;
        Ok(Self { texts, long, stored: all_stored })
    }

    /// Whether the store holds all of it.
    pub fn is_stored(windows: &EvaluationWindows, stored: Option<(&Store, &Key)>) -> bool {
        stored.is_some_and(|(store, identity)| windows.all().all(|windows| store.holds(&key(identity, windows))))
    }

    /// Runs a variant over the same windows.
    ///
    /// # Errors
    /// As [`Reference::compare`].
    pub fn compare(&self, variant: &Model, progress: Progress<'_>) -> Result<Compared> {
        let count = |reference: &Reference| reference.windows().windows.len();
        let total = self.texts.iter().map(|(_, text)| count(text)).chain(self.long.as_ref().map(count)).sum();
        let mut done = 0;
        let mut one = |reference: &Reference| {
            let comparison = reference.compare(variant, &mut |at, _| progress(done + at, total))?;
            done += count(reference);
            Ok::<_, crate::Error>((reference.windows().clone(), comparison))
        };
        let mut texts = vec![];
        for (name, reference) in &self.texts {
            let (windows, comparison) = one(reference)?;
            let broken = comparison.non_finite > 0;
            texts.push((name.clone(), windows, comparison));
            if broken {
                return Ok(Compared { texts, long: None });
            }
        }
        let long = self.long.as_ref().map(one).transpose()?;
        Ok(Compared { texts, long })
    }
}

/// What the reference of `windows` is stored under.
fn key(identity: &Key, windows: &Windows) -> Key {
    identity.clone().with("context", windows.context).with_ids("windows", windows.windows.iter().map(Vec::as_slice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_windows_are_long_or_not_there() {
        let cases = [
            (50_195, 2048, 448, Some(2048)),
            (102_400, 40_960, 1024, Some(4096)),
            (20_480, 2048, 256, Some(1280)),
            (2_048, 2048, 256, None),
            (102_400, 1024, 1024, None),
            (50_195, 2048, 2048, None),
        ];
        for (tokens, limit, usual, length) in cases {
            assert_eq!(long_context(tokens, limit, usual), length, "{tokens} {limit} {usual}");
        }
    }
}
