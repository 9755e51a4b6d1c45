//! The texts of a verdict, cut into windows, with what the original makes of them: run once, stored where asked, and held
//! against any number of variants.

use crate::{
    Progress, Reference, Result, Windows,
    gates::{Gate, Thresholds},
    looks::{self, Look},
    score::Comparison,
    stats::{GOOD_BLOCKS, LEAST_BLOCKS},
    store::{Key, Store},
    windows::usual_context,
};
use octet_model::Model;
use octet_runtime::TextModel;
use std::ops::ControlFlow;

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

    /// Predicted tokens in all, long windows included.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(|(_, windows)| windows).chain(&self.long).map(Windows::tokens).sum()
    }

    /// Predicted tokens of each window of a first look, long windows included: of all windows where there is but one look, and
    /// where `all` are asked for.
    pub fn lengths(&self, limits: &Thresholds, all: bool) -> Vec<usize> {
        let all = all || !self.has_two_looks(limits);
        let looked = |windows: &Windows| if all { windows.clone() } else { windows.every_second(true) };
        let windows = self.texts.iter().map(|(_, windows)| looked(windows)).chain(self.long.clone());
        windows.flat_map(|windows| windows.windows).map(|window| window.len() - 1).collect()
    }

    /// Whether half of the windows may decide: they hold [`GOOD_BLOCKS`] blocks, and of every text that is judged by itself the
    /// [`LEAST_BLOCKS`] that an interval needs.
    fn has_two_looks(&self, limits: &Thresholds) -> bool {
        let halves: Vec<(usize, usize)> =
            self.texts.iter().map(|(_, windows)| (windows.every_second(true).blocks(), windows.blocks())).collect();
        let enough = halves.iter().map(|(half, _)| half).sum::<usize>() >= GOOD_BLOCKS;
        limits.early_stop && enough && halves.iter().all(|&(half, all)| half >= LEAST_BLOCKS || all < LEAST_BLOCKS)
    }
}

/// Tokens of a long window: what the model allows, so that all long windows together take no more than a quarter as long as the
/// others (half as long as a first look at them); `None` where that is hardly longer than `usual`.
fn long_context(tokens: usize, limit: usize, usual: usize) -> Option<usize> {
    let length = LONG_CONTEXT.min(limit).min(tokens / (4 * LONG_WINDOWS));
    (2 * length >= 3 * usual).then_some(length)
}

/// What the original makes of the texts of a verdict, as far as it was asked for.
#[derive(Clone, Debug)]
pub struct Evaluation {
    windows: EvaluationWindows,
    /// Of every second window of each text, and of the others; of all of them where there is one look.
    looks: [Option<Vec<Reference>>; 2],
    /// Of the long windows.
    long: Option<Reference>,
    /// Whether all of it was stored, so that the original was not run.
    pub stored: bool,
}

/// Both models of a judgement, and where what the original makes of texts is stored under what it depends on.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The original.
    pub original: &'a Model,
    /// The variant.
    pub variant: &'a Model,
    /// The store, and the identity of the original's logits: its weights, how it is run.
    pub stored: Option<(&'a Store, &'a Key)>,
}

/// Which model is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The original.
    Original,
    /// The variant.
    Variant,
}

/// Told which model is at work and how many windows of how many it has done; may break off.
pub type SideProgress<'a> = &'a mut dyn FnMut(Side, usize, usize) -> ControlFlow<()>;

/// A text with what a comparison found on the windows of it that were run.
#[derive(Clone, Debug)]
pub struct TextCompared {
    /// What it is called.
    pub name: String,
    /// The windows.
    pub windows: Windows,
    /// What was found.
    pub comparison: Comparison,
}

/// How a variant compares on the texts of a verdict.
#[derive(Clone, Debug)]
pub struct Compared {
    /// On each text.
    pub texts: Vec<TextCompared>,
    /// On the long windows.
    pub long: Option<(Windows, Comparison)>,
    /// How much of the texts that is.
    pub look: Look,
}

impl Compared {
    /// The comparison on all texts together (without the long windows, which are made of the same text).
    pub fn pooled(&self) -> Comparison {
        let mut all = Comparison::default();
        self.texts.iter().for_each(|text| all.extend(&text.comparison));
        all
    }

    fn is_broken(&self) -> bool {
        self.texts.iter().any(|text| text.comparison.non_finite > 0)
    }
}

impl Evaluation {
    /// Nothing yet; the original is run when a variant is judged.
    pub fn new(windows: EvaluationWindows) -> Self {
        Self { windows, looks: [None, None], long: None, stored: true }
    }

    /// Compares the variant with the original on half of each text, and on the other half where that does not decide; `verdict`
    /// gives the gates. The original is run for what is not known of it.
    ///
    /// # Errors
    /// As [`Reference::of`] and [`Reference::compare`]; that something cannot be stored is no error.
    pub fn judge<T>(
        &mut self,
        pair: Pair<'_>,
        limits: &Thresholds,
        verdict: impl Fn(&Compared) -> (T, Vec<Gate>),
        progress: SideProgress<'_>,
    ) -> Result<(T, Vec<Gate>, Compared)> {
        let two = self.windows.has_two_looks(limits);
        let look = if two { Look::First } else { Look::Only };
        let parts: Vec<Windows> =
            self.windows.texts.iter().map(|(_, windows)| if two { windows.every_second(true) } else { windows.clone() }).collect();
        let mut compared = Compared { texts: self.compare(0, parts, pair, progress)?, long: None, look };
        if let (Some(windows), false) = (&self.windows.long, compared.is_broken()) {
            if self.long.is_none() {
                self.long = Some(reference(pair, windows, &mut self.stored, &mut |at, all| progress(Side::Original, at, all))?);
            }
            if let Some(long) = &self.long {
                let found = long.compare(pair.variant, &mut |at, all| progress(Side::Variant, at, all))?;
                compared.long = Some((windows.clone(), found));
            }
        }
        let (made, gates) = verdict(&compared);
        if !two || compared.is_broken() || looks::is_decided(&gates) {
            return Ok((made, gates, compared));
        }
        let parts: Vec<Windows> = self.windows.texts.iter().map(|(_, windows)| windows.every_second(false)).collect();
        let others = self.compare(1, parts, pair, progress)?;
        for ((text, other), (_, windows)) in compared.texts.iter_mut().zip(&others).zip(&self.windows.texts) {
            text.comparison.extend(&other.comparison);
            text.windows = windows.clone();
        }
        compared.look = Look::Last;
        let (made, gates) = verdict(&compared);
        Ok((made, gates, compared))
    }

    /// Runs the variant, and the original where it was not, over windows of each text.
    fn compare(&mut self, look: usize, windows: Vec<Windows>, pair: Pair<'_>, progress: SideProgress<'_>) -> Result<Vec<TextCompared>> {
        let total: usize = windows.iter().map(|windows| windows.windows.len()).sum();
        if self.looks[look].as_ref().is_none_or(|known| known.iter().map(Reference::windows).ne(&windows)) {
            let mut done = 0;
            let mut made = vec![];
            for windows in &windows {
                made.push(reference(pair, windows, &mut self.stored, &mut |at, _| progress(Side::Original, done + at, total))?);
                done += windows.windows.len();
            }
            self.looks[look] = Some(made);
        }
        let (mut all, mut done) = (vec![], 0);
        for ((reference, windows), (name, _)) in self.looks[look].iter().flatten().zip(windows).zip(&self.windows.texts) {
            let comparison = reference.compare(pair.variant, &mut |at, _| progress(Side::Variant, done + at, total))?;
            done += windows.windows.len();
            let broken = comparison.non_finite > 0;
            all.push(TextCompared { name: name.clone(), windows, comparison });
            if broken {
                break;
            }
        }
        Ok(all)
    }

    /// Whether nothing that a first look needs makes it necessary to run the original.
    pub fn is_known(&self, limits: &Thresholds, stored: Option<(&Store, &Key)>) -> bool {
        if self.looks[0].is_some() {
            return true;
        }
        let two = self.windows.has_two_looks(limits);
        let first = self.windows.texts.iter().map(|(_, windows)| if two { windows.every_second(true) } else { windows.clone() });
        let mut all = first.chain(self.windows.long.clone());
        stored.is_some_and(|(store, identity)| all.all(|windows| store.holds(&key(identity, &windows))))
    }

    /// The texts.
    pub fn windows(&self) -> &EvaluationWindows {
        &self.windows
    }
}

/// What the original makes of windows: stored, or made and stored; `all_stored` becomes false where it is made.
fn reference(pair: Pair<'_>, windows: &Windows, all_stored: &mut bool, progress: Progress<'_>) -> Result<Reference> {
    let stored = pair.stored.map(|(store, identity)| (store, key(identity, windows)));
    let vocab = pair.original.spec().vocab_size();
    let known = stored.as_ref().and_then(|(store, key)| Reference::from_bytes(&store.load(key)?, windows, vocab));
    if let Some(known) = known {
        return Ok(known);
    }
    *all_stored = false;
    let made = Reference::of(pair.original, windows, progress)?;
    if let Some((store, key)) = &stored {
        // Who cannot store runs the original again next time.
        let _ = store.save(key, &made.to_bytes());
    }
    Ok(made)
}

/// Raised when the way a row of logits is summed up changes: likelihoods of different ways are not held against each other.
const SUMS: u32 = 2;

/// What the reference of `windows` is stored under.
fn key(identity: &Key, windows: &Windows) -> Key {
    identity.clone().with("sums", SUMS).with("context", windows.context).with_ids("windows", windows.windows.iter().map(Vec::as_slice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_windows_are_long_or_not_there() {
        let cases = [
            (50_195, 2048, 448, Some(1568)),
            (102_400, 40_960, 1024, Some(3200)),
            (20_480, 2048, 256, Some(640)),
            (2_048, 2048, 256, None),
            (102_400, 1024, 1024, None),
            (50_195, 2048, 2048, None),
        ];
        for (tokens, limit, usual, length) in cases {
            assert_eq!(long_context(tokens, limit, usual), length, "{tokens} {limit} {usual}");
        }
    }
}
