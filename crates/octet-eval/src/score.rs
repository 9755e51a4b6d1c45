//! Models run over windows: likelihoods of one, or of two side by side with the divergence between them.
//!
//! Logits of a few tokens at a time exist, never those of a window.

use crate::{Error, Progress, Result, Windows, paired::PairedWindow};
use octet_kernels::Engine;
use octet_model::{ForwardError, Logits, Model, Sequence, Step};
use octet_tensor::kl_divergence_from;
use std::sync::{Mutex, PoisonError};

/// Bytes of logits that may exist at once (both models together).
pub const LOGITS_BYTES: usize = 64 << 20;

/// Most tokens of one forward call, so that a tiny vocabulary does not make huge activations.
const MOST_ROWS: usize = 512;

/// Tenths of a window for which divergence is kept apart: some bad models only break late.
pub const TENTHS: usize = 10;

/// Likelihood of one window under one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowScore {
    /// Predicted tokens.
    pub tokens: usize,
    /// Bytes of text they stand for.
    pub bytes: usize,
    /// Negative log-likelihood in nats, summed; not finite where the model's output was not.
    pub nll: f64,
}

/// What two models make of the same windows.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Likelihoods of both on each block of text: a window of [`BLOCK`] tokens or more is two blocks, its halves.
    pub windows: Vec<PairedWindow>,
    /// KL(original ‖ quantized) in nats of every predicted token; infinite where a logit was not finite.
    pub kl: Vec<f32>,
    /// Predicted tokens on which both put the same token first.
    pub same_top: usize,
    /// Tokens at which a logit of the quantized model was not finite.
    pub non_finite: usize,
    /// The same cut along the context: for each window and tenth of it, what its tokens sum up to.
    pub tenths: Vec<[Stretch; TENTHS]>,
    /// The window begun last: its first block, how many it has, and its tokens.
    pub current: (usize, usize, usize),
}

/// Tokens from which a window is two blocks. What quantizing changes at one token says little about tokens far from it, so that
/// halves of a window are as independent as windows that follow each other in a text; docs/judging.md has the coverage.
pub const BLOCK: usize = 128;

/// Blocks of a window of so many predicted tokens.
pub(crate) fn blocks_of(tokens: usize) -> usize {
    if tokens < BLOCK { 1 } else { 2 }
}

/// Sums over the tokens of a stretch of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stretch {
    /// Predicted tokens.
    pub tokens: usize,
    /// Σ KL in nats.
    pub kl: f64,
    /// Σ (NLL of the quantized model − NLL of the original) in nats.
    pub delta: f64,
}

impl Comparison {
    /// Predicted tokens in all.
    pub fn tokens(&self) -> usize {
        self.kl.len()
    }
}

/// Runs `model` over all windows.
///
/// # Errors
/// If the model fails or `progress` breaks off.
pub fn score(model: &Model, windows: &Windows, progress: Progress<'_>) -> Result<Vec<WindowScore>> {
    let mut scores = vec![];
    for (i, (window, &bytes)) in windows.windows.iter().zip(&windows.bytes).enumerate() {
        let mut runner = Runner::new(model);
        let mut nll = 0.0;
        for (inputs, targets) in chunks(window, rows_at_once(model, 1)) {
            runner.forward(inputs)?;
            nll += runner.nll(targets).iter().sum::<f64>();
        }
        scores.push(WindowScore { tokens: window.len() - 1, bytes, nll });
        tick(progress, i + 1, windows.windows.len())?;
    }
    Ok(scores)
}

/// Runs both models over all windows, one forward pass each.
///
/// # Errors
/// If the vocabularies differ, a model fails, or `progress` breaks off.
pub fn compare(base: &Model, quant: &Model, windows: &Windows, progress: Progress<'_>) -> Result<Comparison> {
    let vocabularies = (base.spec().vocab_size(), quant.spec().vocab_size());
    if vocabularies.0 != vocabularies.1 {
        return Err(Error::Vocabularies { base: vocabularies.0, quant: vocabularies.1 });
    }
    let mut all = Comparison::default();
    'windows: for (i, (window, &bytes)) in windows.windows.iter().zip(&windows.bytes).enumerate() {
        let (mut original, mut quantized) = (Runner::new(base), Runner::new(quant));
        all.begin(window.len() - 1, bytes);
        let mut position = 0;
        for (inputs, targets) in chunks(window, rows_at_once(base, 2)) {
            original.forward(inputs)?;
            if let Err(error) = quantized.forward(inputs) {
                // Broken numbers are what the verdict is about; more of them would tell nothing new.
                if !matches!(error, Error::Forward(ForwardError::NonFinite { .. })) {
                    return Err(error);
                }
                all.add(TokenFigures::BROKEN, position, windows.context);
                break 'windows;
            }
            let engine = base.engine();
            let rows = per_row(engine, targets.len(), |row| token(engine, original.row(row), quantized.row(row), targets[row]));
            for figures in rows {
                all.add(figures, position, windows.context);
                position += 1;
            }
        }
        tick(progress, i + 1, windows.windows.len())?;
    }
    Ok(all)
}

impl Comparison {
    /// Begins a window of `tokens` predicted tokens that stand for `bytes` bytes.
    pub(crate) fn begin(&mut self, tokens: usize, bytes: usize) {
        let blocks = blocks_of(tokens);
        self.current = (self.windows.len(), blocks, tokens);
        for block in 0..blocks {
            let part = |all: usize| ((block + 1) * all).div_ceil(blocks) - (block * all).div_ceil(blocks);
            self.windows.push(PairedWindow { tokens: part(tokens), bytes: part(bytes), base_nll: 0.0, quant_nll: 0.0 });
        }
        self.tenths.push([Stretch::default(); TENTHS]);
    }

    /// Adds the token at `position` of the window begun last.
    pub(crate) fn add(&mut self, figures: TokenFigures, position: usize, context: usize) {
        self.kl.push(figures.kl as f32);
        self.same_top += usize::from(figures.same_top);
        self.non_finite += usize::from(!figures.quant_nll.is_finite());
        let (first, blocks, tokens) = self.current;
        let block = first + (position * blocks / tokens.max(1)).min(blocks.saturating_sub(1));
        if let (Some(sums), Some(tenths)) = (self.windows.get_mut(block), self.tenths.last_mut()) {
            sums.base_nll += figures.base_nll;
            sums.quant_nll += figures.quant_nll;
            let tenth = &mut tenths[(position * TENTHS / context.max(1)).min(TENTHS - 1)];
            tenth.tokens += 1;
            tenth.kl += figures.kl;
            tenth.delta += figures.quant_nll - figures.base_nll;
        }
    }

    /// Adds what was found on further windows.
    pub fn extend(&mut self, other: &Self) {
        self.windows.extend(&other.windows);
        self.kl.extend(&other.kl);
        self.same_top += other.same_top;
        self.non_finite += other.non_finite;
        self.tenths.extend(&other.tenths);
    }
}

/// What two models make of one token.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenFigures {
    pub(crate) base_nll: f64,
    pub(crate) quant_nll: f64,
    pub(crate) kl: f64,
    pub(crate) same_top: bool,
}

impl TokenFigures {
    /// A token at which the quantized model's numbers are not finite.
    pub(crate) const BROKEN: Self = Self { base_nll: 0.0, quant_nll: f64::INFINITY, kl: f64::INFINITY, same_top: false };
}

fn token(engine: &Engine, p: &[f32], q: &[f32], target: u32) -> TokenFigures {
    let (lp, lq) = (engine.logit_sums(p).log_sum, engine.logit_sums(q).log_sum);
    let divergence = kl_divergence_from(p, lp, q, lq);
    let nll = |logits: &[f32], total: f64| total - f64::from(logits[target as usize]);
    TokenFigures { base_nll: nll(p, lp), quant_nll: nll(q, lq), kl: divergence.kl, same_top: divergence.same_top }
}

/// −ln of the probability that `logits` give to `target`.
pub(crate) fn negative_log_likelihood(engine: &Engine, logits: &[f32], target: u32) -> f64 {
    engine.logit_sums(logits).log_sum - f64::from(logits[target as usize])
}

/// A model on its way through one window.
pub(crate) struct Runner<'a> {
    model: &'a Model,
    sequence: Sequence,
    logits: Vec<f32>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        Self { model, sequence: model.new_sequence(), logits: vec![] }
    }

    pub(crate) fn forward(&mut self, tokens: &[u32]) -> Result<()> {
        let step = Step { sequence: &mut self.sequence, tokens, logits: Logits::All };
        Ok(self.model.forward(&mut [step], &mut self.logits, None)?)
    }

    /// The sequence it ran through.
    pub(crate) fn into_sequence(self) -> Sequence {
        self.sequence
    }

    /// −ln of the probability of each of `targets`, the tokens that follow those of the last call.
    fn nll(&self, targets: &[u32]) -> Vec<f64> {
        let engine = self.model.engine();
        per_row(engine, targets.len(), |row| negative_log_likelihood(engine, self.row(row), targets[row]))
    }

    /// Logits after the `row`-th token of the last call.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        let vocab = self.model.spec().vocab_size();
        &self.logits[row * vocab..(row + 1) * vocab]
    }
}

/// Tokens of one forward call when `models` models run side by side.
pub(crate) fn rows_at_once(model: &Model, models: usize) -> usize {
    (LOGITS_BYTES / (4 * models * model.spec().vocab_size().max(1))).clamp(1, MOST_ROWS)
}

/// Inputs and the tokens that follow them, at most `rows` at a time.
pub(crate) fn chunks(window: &[u32], rows: usize) -> impl Iterator<Item = (&[u32], &[u32])> {
    let predicted = window.len().saturating_sub(1);
    window[..predicted].chunks(rows).zip(window[window.len() - predicted..].chunks(rows))
}

/// `f` of every row, computed by all threads of the engine; the order of the results does not depend on them.
pub(crate) fn per_row<T: Copy + Default + Send>(engine: &Engine, rows: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    const BLOCK: usize = 8;
    let mut results = vec![T::default(); rows];
    let slots: Vec<Mutex<&mut [T]>> = results.chunks_mut(BLOCK).map(Mutex::new).collect();
    engine.run(slots.len(), &|task| {
        let mut slot = slots[task].lock().unwrap_or_else(PoisonError::into_inner);
        for (i, result) in slot.iter_mut().enumerate() {
            *result = f(task * BLOCK + i);
        }
    });
    drop(slots);
    results
}

/// Tells how far it is; an error if that breaks off.
pub(crate) fn tick(progress: Progress<'_>, done: usize, all: usize) -> Result<()> {
    if progress(done, all).is_break() { Err(Error::Interrupted) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_targets_are_one_apart() {
        let window = [1, 2, 3, 4, 5, 6];
        let pairs: Vec<_> = chunks(&window, 2).map(|(a, b)| (a.to_vec(), b.to_vec())).collect();
        assert_eq!(pairs, [(vec![1, 2], vec![2, 3]), (vec![3, 4], vec![4, 5]), (vec![5], vec![6])]);
        assert_eq!(chunks(&[1], 2).count(), 0);
    }

    #[test]
    fn a_long_window_is_two_blocks() {
        for tokens in [1, 127, 128, 447, 2047] {
            let mut all = Comparison::default();
            for _ in 0..2 {
                all.begin(tokens, 3 * tokens);
                for position in 0..tokens {
                    all.add(TokenFigures { base_nll: 1.0, quant_nll: 2.0, kl: 0.0, same_top: true }, position, tokens + 1);
                }
            }
            assert_eq!(all.windows.len(), if tokens < BLOCK { 2 } else { 4 });
            for block in &all.windows {
                assert_eq!((block.base_nll, block.quant_nll), (block.tokens as f64, 2.0 * block.tokens as f64), "{tokens}");
            }
            let sums = all.windows.iter().fold((0, 0), |sum, block| (sum.0 + block.tokens, sum.1 + block.bytes));
            assert_eq!(sums, (2 * tokens, 6 * tokens));
        }
    }

    #[test]
    fn a_broken_logit_makes_its_token_infinitely_bad() {
        let engine = Engine::new(octet_kernels::Isa::best(), std::num::NonZeroUsize::MIN).unwrap();
        let figures = token(&engine, &[0.0, 1.0], &[f32::NAN, 1.0], 1);
        assert!(!figures.quant_nll.is_finite() || !figures.kl.is_finite());
        let fine = token(&engine, &[0.0, 1.0], &[0.0, 1.0], 1);
        assert!(fine.kl.abs() < 1e-6 && fine.same_top && (fine.base_nll - fine.quant_nll).abs() < 1e-12);
    }
}
