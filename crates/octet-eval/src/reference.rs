//! What the original makes of a text, kept small enough to be stored: any number of variants are then held against it
//! without running it again.
//!
//! Of every predicted token the reference keeps the negative log-likelihood, the [`TOP`] likeliest tokens with their
//! log-probabilities, the probability of all others together, and [`SAMPLED`] of those others drawn by their probability.
//! By the chain rule the divergence of two distributions is that of the coarse ones (the top tokens and one bucket for the
//! rest), which is exact here, plus the rest's probability times the divergence within the rest, which the sample estimates
//! without bias. Both parts are never negative. So the coarse part alone is a lower bound (data-processing inequality,
//! Cover and Thomas 2006, 2.8), the rest's share of the error is at most its probability times the error of a mean of
//! [`SAMPLED`] terms, and over a text the errors average out. Log-probabilities are kept in steps of 2⁻¹¹, which adds about
//! 1e-8 nats: a model against itself shows that much.

use crate::{
    Error, Progress, Result, Windows,
    score::{Comparison, Runner, TokenFigures, chunks, per_row, rows_at_once, tick},
};
use octet_kernels::Engine;
use octet_model::{ForwardError, Model};
use octet_runtime::Rng;

/// Likeliest tokens kept with their log-probabilities.
pub const TOP: usize = 32;

/// Tokens drawn from all others.
pub const SAMPLED: usize = 16;

const KEPT: usize = TOP + SAMPLED;

/// Steps of a nat in which log-probabilities are kept; 16 bits reach down to −32 nats.
const STEPS: f64 = 2048.0;

/// Least probability of all tokens outside the top that is told from rounding.
const FLOOR: f64 = 1e-9;

/// The original's predictions on the windows of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    windows: Windows,
    vocab: usize,
    tokens: Vec<Token>,
}

/// One predicted token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    /// Negative log-likelihood of the token that follows, in nats.
    nll: f64,
    /// Probability of all tokens outside the top.
    rest: f32,
    /// The top tokens, likeliest first, then the drawn ones.
    ids: [u32; KEPT],
    /// Their negative log-probabilities in steps of 1 / [`STEPS`] nats.
    codes: [u16; KEPT],
}

impl Default for Token {
    fn default() -> Self {
        Self { nll: 0.0, rest: 0.0, ids: [0; KEPT], codes: [0; KEPT] }
    }
}

impl Reference {
    /// Runs `model` over all windows.
    ///
    /// # Errors
    /// If the model fails, gives numbers that are not finite, or `progress` breaks off.
    pub fn of(model: &Model, windows: &Windows, progress: Progress<'_>) -> Result<Self> {
        let mut tokens: Vec<Token> = Vec::with_capacity(windows.tokens());
        for (i, window) in windows.windows.iter().enumerate() {
            let mut runner = Runner::new(model);
            for (inputs, targets) in chunks(window, rows_at_once(model, 1)) {
                runner.forward(inputs)?;
                let before = tokens.len() as u64;
                let kept = |row: usize| Token::of(model.engine(), runner.row(row), targets[row], before + row as u64);
                tokens.extend(per_row(model.engine(), targets.len(), kept));
            }
            tick(progress, i + 1, windows.windows.len())?;
        }
        if let Some(broken) = tokens.iter().position(|token| !token.nll.is_finite()) {
            return Err(Error::BrokenOriginal { token: broken });
        }
        Ok(Self { windows: windows.clone(), vocab: model.spec().vocab_size(), tokens })
    }

    /// The windows it was made of.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The first `count` windows of it: a quicker, coarser look at a variant.
    pub fn first(&self, count: usize) -> Self {
        let windows = self.windows.first(count);
        let tokens = self.tokens[..windows.tokens()].to_vec();
        Self { windows, tokens, vocab: self.vocab }
    }

    /// Runs `model` over the same windows and compares it with the original.
    ///
    /// A model that gives numbers that are not finite is no error: the comparison ends there and says so.
    ///
    /// # Errors
    /// If the vocabularies differ, the model fails, or `progress` breaks off.
    pub fn compare(&self, model: &Model, progress: Progress<'_>) -> Result<Comparison> {
        let quant = model.spec().vocab_size();
        if quant != self.vocab {
            return Err(Error::Vocabularies { base: self.vocab, quant });
        }
        let windows = &self.windows;
        let (mut all, mut first) = (Comparison::default(), 0);
        'windows: for (i, (window, &bytes)) in windows.windows.iter().zip(&windows.bytes).enumerate() {
            let mut runner = Runner::new(model);
            all.begin(window.len() - 1, bytes);
            let mut position = 0;
            for (inputs, targets) in chunks(window, rows_at_once(model, 1)) {
                if let Err(error) = runner.forward(inputs) {
                    // Broken numbers are what the verdict is about; more of them would tell nothing new.
                    if !matches!(error, Error::Forward(ForwardError::NonFinite { .. })) {
                        return Err(error);
                    }
                    all.add(TokenFigures::BROKEN, position, windows.context);
                    break 'windows;
                }
                let kept = &self.tokens[first + position..];
                let engine = model.engine();
                let rows = per_row(engine, targets.len(), |row| kept[row].against(engine, runner.row(row), targets[row], self.vocab));
                for figures in rows {
                    all.add(figures, position, windows.context);
                    position += 1;
                }
            }
            first += position;
            tick(progress, i + 1, windows.windows.len())?;
        }
        Ok(all)
    }

    /// The bytes to store; [`Reference::from_bytes`] makes the same reference of them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kept, wide) = (self.kept(), self.id_bytes());
        let mut bytes = Vec::with_capacity(self.tokens.len() * (12 + kept * (2 + wide)));
        for token in &self.tokens {
            bytes.extend(token.nll.to_le_bytes());
            bytes.extend(token.rest.to_le_bytes());
            token.ids[..kept].iter().for_each(|id| bytes.extend(&id.to_le_bytes()[..wide]));
            token.codes[..kept].iter().for_each(|code| bytes.extend(code.to_le_bytes()));
        }
        bytes
    }

    /// What [`Reference::to_bytes`] stored for these windows of a model with `vocab` tokens; `None` if the bytes cannot
    /// be that.
    pub fn from_bytes(bytes: &[u8], windows: &Windows, vocab: usize) -> Option<Self> {
        let mut reference = Self { windows: windows.clone(), vocab, tokens: vec![] };
        let (kept, wide) = (reference.kept(), reference.id_bytes());
        let each = 12 + kept * (2 + wide);
        if bytes.len() != each * windows.tokens() {
            return None;
        }
        for record in bytes.chunks_exact(each) {
            let (nll, rest) = record.split_first_chunk::<8>()?;
            let (mass, rest) = rest.split_first_chunk::<4>()?;
            let mut token = Token { nll: f64::from_le_bytes(*nll), rest: f32::from_le_bytes(*mass), ..Token::default() };
            let (ids, codes) = rest.split_at(kept * wide);
            for (id, stored) in token.ids.iter_mut().zip(ids.chunks_exact(wide)) {
                *id = stored.iter().rev().fold(0, |id, &byte| id << 8 | u32::from(byte));
            }
            for (code, stored) in token.codes.iter_mut().zip(codes.as_chunks::<2>().0) {
                *code = u16::from_le_bytes(*stored);
            }
            if token.ids.iter().any(|&id| id as usize >= vocab) || !token.nll.is_finite() {
                return None;
            }
            reference.tokens.push(token);
        }
        Some(reference)
    }

    /// Entries a token; a small vocabulary is kept whole.
    fn kept(&self) -> usize {
        if self.vocab <= TOP { self.vocab } else { KEPT }
    }

    fn id_bytes(&self) -> usize {
        if self.vocab <= 1 << 16 { 2 } else { 4 }
    }
}

/// Does for a row of logits what making a reference does, to time it.
pub(crate) fn rehearse(engine: &Engine, logits: &[f32]) {
    std::hint::black_box(Token::of(engine, logits, 0, 0));
}

impl Token {
    fn of(engine: &Engine, logits: &[f32], target: u32, seed: u64) -> Self {
        let total = engine.logit_sums(logits).log_sum;
        let top = top(logits);
        let mut token = Self { nll: total - f64::from(logits[target as usize]), ..Self::default() };
        let probability = |&logit: &f32| (f64::from(logit) - total).exp();
        let code = |logit: f32| ((total - f64::from(logit)) * STEPS).round().clamp(0.0, f64::from(u16::MAX)) as u16;
        for (i, &id) in top.iter().enumerate() {
            (token.ids[i], token.codes[i]) = (id as u32, code(logits[id]));
        }
        if logits.len() <= TOP {
            return token;
        }
        let mut outside: Vec<bool> = vec![true; logits.len()];
        top.iter().for_each(|&id| outside[id] = false);
        let others = || logits.iter().enumerate().filter(|(id, _)| outside[*id]);
        let weights: Vec<f32> = others().map(|(_, logit)| probability(logit) as f32).collect();
        let rest: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        token.rest = rest as f32;
        // Systematic sampling: one random offset, equal steps through the cumulated probability.
        let step = rest / SAMPLED as f64;
        let (mut threshold, mut sum, mut drawn) = (step * Rng::stream(TOP as u64, seed).unit(), 0.0, TOP);
        for ((id, &logit), &weight) in others().zip(&weights) {
            sum += f64::from(weight);
            while drawn < KEPT && sum > threshold {
                (token.ids[drawn], token.codes[drawn]) = (id as u32, code(logit));
                drawn += 1;
                threshold += step;
            }
        }
        // Where rounding (or a rest of zero) leaves some undrawn, the likeliest stands in; it then weighs nothing.
        while drawn < KEPT {
            (token.ids[drawn], token.codes[drawn]) = (token.ids[0], token.codes[0]);
            drawn += 1;
        }
        token
    }

    /// How a variant's `logits` for the same place compare.
    fn against(&self, engine: &Engine, logits: &[f32], target: u32, vocab: usize) -> TokenFigures {
        let sums = engine.logit_sums(logits);
        let total = sums.log_sum;
        if !total.is_finite() {
            return TokenFigures::BROKEN;
        }
        let ln_p = |i: usize| -f64::from(self.codes[i]) / STEPS;
        let ln_q = |i: usize| f64::from(logits[self.ids[i] as usize]) - total;
        let (mut kl, mut q_top) = (0.0, 0.0);
        for i in 0..TOP.min(vocab) {
            let (p, q) = (ln_p(i).exp(), ln_q(i).exp());
            kl += term(p, q, ln_p(i) - ln_q(i));
            q_top += q;
        }
        let p_rest = f64::from(self.rest);
        if p_rest > FLOOR {
            let q_rest = (1.0 - q_top).max(FLOOR);
            let coarse = (p_rest / q_rest).ln();
            kl += term(p_rest, q_rest, coarse);
            // Within the rest: ratios of the two conditional distributions, whose mean deviation from one is zero.
            let within: f64 = (TOP..KEPT).map(|i| ln_p(i) - ln_q(i) - coarse).map(|d| (-d).exp() - 1.0 + d).sum();
            kl += p_rest * within / SAMPLED as f64;
        }
        let quant_nll = total - f64::from(logits[target as usize]);
        let kl = if kl.is_nan() { f64::INFINITY } else { kl };
        TokenFigures { base_nll: self.nll, quant_nll, kl, same_top: sums.top == self.ids[0] as usize }
    }
}

/// A term of the divergence, p·ln(p/q) − p + q with `ln_ratio` = ln(p/q): never negative, and of second order in errors of
/// p and q, while the sum over a distribution is the same.
fn term(p: f64, q: f64, ln_ratio: f64) -> f64 {
    if p > 0.0 { (p * ln_ratio - p + q).max(0.0) } else { q }
}

/// Indices of the [`TOP`] largest values, the largest first, equal ones by index.
fn top(logits: &[f32]) -> Vec<usize> {
    let before = |a: usize, b: usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    let mut best: Vec<usize> = Vec::with_capacity(TOP + 1);
    for i in 0..logits.len() {
        let full = best.len() == TOP;
        if full && best.last().is_some_and(|&last| logits[i] <= logits[last]) {
            continue;
        }
        let at = best.partition_point(|&b| before(b, i).is_lt());
        best.insert(at, i);
        best.truncate(TOP);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_kernels::Isa;
    use octet_tensor::kl_divergence;
    use std::{num::NonZeroUsize, sync::LazyLock};

    static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(Isa::best(), NonZeroUsize::MIN).unwrap());

    /// Logits of a vocabulary of `vocab`, spread so that the top holds a part of the probability, and a disturbed copy.
    fn pair(vocab: usize, noise: f64, rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
        let p: Vec<f32> = (0..vocab).map(|_| (6.0 * rng.unit().powi(3) - (1.0 - rng.unit()).ln()) as f32).collect();
        let q = p.iter().map(|&v| v + (noise * (rng.unit() + rng.unit() - 1.0)) as f32).collect();
        (p, q)
    }

    fn estimate(p: &[f32], q: &[f32], seed: u64) -> f64 {
        Token::of(&ENGINE, p, 1, seed).against(&ENGINE, q, 1, p.len()).kl
    }

    #[test]
    fn the_mean_divergence_is_that_of_all_logits() {
        let mut rng = Rng::new(1);
        for (vocab, noise) in [(4096, 0.02), (4096, 0.5), (600, 2.0), (20, 1.0)] {
            let (mut full, mut kept, mut squares, n) = (0.0, 0.0, 0.0, 600);
            for seed in 0..n {
                let (p, q) = pair(vocab, noise, &mut rng);
                let (exact, estimated) = (kl_divergence(&p, &q).kl, estimate(&p, &q, seed));
                full += exact;
                kept += estimated;
                squares += (estimated - exact).powi(2);
            }
            // Within three standard errors, and the rounding of log-probabilities.
            let allowed = 3.0 * squares.sqrt() + 3e-8 * n as f64;
            assert!((kept - full).abs() <= allowed && allowed < 0.05 * full + 1e-4, "{vocab} {noise}: {kept} {full} {allowed}");
        }
    }

    #[test]
    fn a_model_against_itself_shows_rounding_only_and_escaped_mass_shows_whole() {
        let mut rng = Rng::new(2);
        for seed in 0..50 {
            let (p, _) = pair(4096, 0.0, &mut rng);
            let figures = Token::of(&ENGINE, &p, 7, seed).against(&ENGINE, &p, 7, p.len());
            assert!(figures.kl < 3e-8 && figures.same_top && figures.base_nll == figures.quant_nll, "{figures:?}");
            // A variant that is sure of a token outside the top.
            let mut q = p.clone();
            let last = (0..q.len()).min_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
            q[last] = 40.0;
            let (exact, estimated) = (kl_divergence(&p, &q).kl, estimate(&p, &q, seed));
            assert!((estimated / exact - 1.0).abs() < 0.1, "{estimated} {exact}");
        }
        assert!(!estimate(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, 3.0], 0).is_finite());
    }

    #[test]
    fn the_top_is_sorted_and_ties_go_by_index() {
        let mut logits = vec![0.0f32; 100];
        logits[40] = 5.0;
        logits[20] = 6.0;
        let best = top(&logits);
        assert_eq!((best.len(), &best[..4]), (TOP, &[20, 40, 0, 1][..]));
        assert_eq!(top(&[1.0, 3.0, 2.0]), [1, 2, 0]);
    }

    #[test]
    fn stored_bytes_give_the_same_reference_or_none() {
        let mut rng = Rng::new(3);
        for vocab in [20usize, 4096, 70_000] {
            let windows = Windows { windows: vec![vec![1, 2, 3], vec![4, 5]], bytes: vec![2, 1], context: 3, bos: None };
            let tokens: Vec<Token> = (0..3).map(|seed| Token::of(&ENGINE, &pair(vocab, 0.0, &mut rng).0, 1, seed)).collect();
            let reference = Reference { windows: windows.clone(), vocab, tokens };
            let bytes = reference.to_bytes();
            assert_eq!(Reference::from_bytes(&bytes, &windows, vocab).as_ref(), Some(&reference));
            assert_eq!(Reference::from_bytes(&bytes[1..], &windows, vocab), None);
            assert_eq!(reference.first(1).tokens.len(), 2);
            if vocab > TOP {
                assert_eq!(Reference::from_bytes(&bytes, &windows, 30), None);
            }
        }
    }
}
