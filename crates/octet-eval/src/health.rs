//! Text health: long generations of the quantized model against the original's own, on the same prompts and seeds.

use crate::{
    Error, Progress, Result,
    degeneration::{FIGURES, TextFigures},
    permutation::sign_flip_p,
    store::{Key, Store},
};
use octet_runtime::{Event, FinishReason, GenerateOptions, SamplerConfig, TextModel, generate_several};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// How texts are generated for the health check.
#[derive(Clone, Copy, Debug)]
pub struct HealthOptions {
    /// Prompts taken from the evaluation text.
    pub prompts: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens generated from each.
    pub tokens: usize,
    /// Temperature of the sampled half.
    pub temperature: f32,
    /// Seed of the sampled half and of the test.
    pub seed: u64,
    /// Probability with which a model exactly as healthy as the original may be called worse in any figure.
    pub family_error: f64,
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self { prompts: 32, prompt_tokens: 24, tokens: 256, temperature: 0.8, seed: 0, family_error: 0.001 }
    }
}

impl HealthOptions {
    /// What an original's texts depend on beside the model and the prompts.
    pub fn key(&self) -> String {
        format!("{} tokens, temperature {}, seed {}", self.tokens, self.temperature, self.seed)
    }
}

/// The two ways texts are generated.
pub const MODES: [&str; 2] = ["greedy", "sampled"];

/// What one model generates: for each mode, the figures of every prompt's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthRun {
    /// Figures, by mode and prompt.
    pub figures: [Vec<TextFigures>; 2],
    /// Texts, by mode and prompt.
    pub texts: [Vec<String>; 2],
    /// Whether a number that is not finite ended the run.
    pub non_finite: bool,
}

/// One figure of both models and the test between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthFigure {
    /// `greedy` or `sampled`.
    pub mode: String,
    /// Name of the figure; more is worse.
    pub name: String,
    /// Mean over the original's texts.
    pub base: f64,
    /// Mean over the quantized model's texts.
    pub quant: f64,
    /// One-sided p-value of the paired sign-flip test.
    pub p: f64,
}

/// Text health of a quantized model relative to its original.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Prompts.
    pub prompts: usize,
    /// Most tokens generated from each.
    pub tokens: usize,
    /// Every figure in both modes.
    pub figures: Vec<HealthFigure>,
    /// p-value below which a single figure counts as worse: the family error over the number of figures (Bonferroni).
    pub alpha: f64,
    /// Whether the quantized model gave numbers that are not finite.
    pub non_finite: bool,
}

impl Health {
    /// The figures that are worse than the original's by more than chance.
    pub fn worse(&self) -> Vec<&HealthFigure> {
        self.figures.iter().filter(|f| f.p < self.alpha).collect()
    }
}

/// The first tokens of windows spread evenly over an evaluation text, `bos` in front where the tokenizer adds it.
pub fn prompts(ids: &[u32], bos: Option<u32>, options: &HealthOptions) -> Vec<Vec<u32>> {
    let length = options.prompt_tokens.max(1);
    let count = options.prompts.min(ids.len() / length);
    let start = |i: usize| i * (ids.len() / count.max(1));
    (0..count).map(|i| bos.into_iter().chain(ids[start(i)..start(i) + length].iter().copied()).collect()).collect()
}

/// As [`run`] for the original: what is stored under `key` where there is such, else generated and stored.
///
/// # Errors
/// As [`run`]; that something cannot be stored is no error.
pub fn run_stored(
    model: &TextModel,
    prompts: &[Vec<u32>],
    options: &HealthOptions,
    stored: Option<(&Store, &Key)>,
    progress: Progress<'_>,
) -> Result<HealthRun> {
    let stored = stored.map(|(store, identity)| {
        (store, identity.clone().with("options", options.key()).with_ids("prompts", prompts.iter().map(Vec::as_slice)))
    });
    let known = stored.as_ref().and_then(|(store, key)| serde_json::from_slice(&store.load(key)?).ok());
    if let Some(known) = known {
        return Ok(known);
    }
    let made = run(model, prompts, options, progress)?;
    if let (Some((store, key)), Ok(bytes)) = (&stored, serde_json::to_vec(&made)) {
        // Who cannot store runs the original again next time.
        let _ = store.save(key, &bytes);
    }
    Ok(made)
}

/// Generates from every prompt, greedily and sampled, and measures the texts.
///
/// # Errors
/// If generating fails other than by numbers that are not finite, or `progress` breaks off.
pub fn run(model: &TextModel, prompts: &[Vec<u32>], options: &HealthOptions, progress: Progress<'_>) -> Result<HealthRun> {
    let engine = model.model.engine();
    let mut run = HealthRun { figures: [vec![], vec![]], texts: [vec![], vec![]], non_finite: false };
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let max_tokens = options.tokens.min(model.context().saturating_sub(longest));
    let samplers = [SamplerConfig::greedy(), SamplerConfig::sampled(options.temperature, options.seed)];
    let generate = GenerateOptions { max_tokens, ..GenerateOptions::default() };
    let mut entropies = vec![vec![]; MODES.len() * prompts.len()];
    let (mut done, mut stop, total) = (0, false, MODES.len() * max_tokens * prompts.len());
    let mut watch = |event: Event<'_>| {
        if let Event::Logits { sequence, logits } = event {
            entropies[sequence].push(engine.logit_sums(logits).entropy as f32);
            done += 1;
            stop |= progress(done, total).is_break();
        }
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    // Both modes decode together: a step of twice as many sequences costs less than two.
    let texts = match generate_several(model, prompts, &samplers, &generate, &mut watch) {
        Err(error) if error.is_non_finite() => return Ok(HealthRun { non_finite: true, ..run }),
        Err(error) => return Err(error.into()),
        Ok(_) if stop => return Err(Error::Interrupted),
        Ok(texts) => texts,
    };
    for (i, (text, entropies)) in texts.into_iter().zip(&entropies).enumerate() {
        let stopped = text.finish == FinishReason::EndOfText;
        run.figures[i / prompts.len()].push(TextFigures::of(&text.text, &text.ids, entropies, stopped));
        run.texts[i / prompts.len()].push(text.text);
    }
    Ok(run)
}

/// Compares the quantized model's texts with the original's, prompt by prompt.
///
/// Every figure in every mode is one paired sign-flip test; all together are wrong with at most the family error.
pub fn compare(base: &HealthRun, quant: &HealthRun, options: &HealthOptions) -> Health {
    let mut figures = vec![];
    for ((mode, base), quant) in MODES.iter().zip(&base.figures).zip(&quant.figures) {
        let (base_mean, quant_mean) = (TextFigures::mean(base).values(), TextFigures::mean(quant).values());
        for (i, name) in FIGURES.iter().enumerate() {
            let differences: Vec<f64> = base.iter().zip(quant).map(|(b, q)| q.values()[i] - b.values()[i]).collect();
            let p = sign_flip_p(&differences, options.seed);
            figures.push(HealthFigure { mode: (*mode).into(), name: (*name).into(), base: base_mean[i], quant: quant_mean[i], p });
        }
    }
    let alpha = options.family_error / figures.len() as f64;
    Health { prompts: base.figures[0].len(), tokens: options.tokens, figures, alpha, non_finite: quant.non_finite }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_runtime::Rng;

    fn texts(seed: u64, loops: f64) -> HealthRun {
        let mut rng = Rng::new(seed);
        let mut one = || TextFigures {
            repetition: (0.3 + 0.2 * rng.unit() + loops).min(1.0),
            longest_loop: loops * rng.unit(),
            redundancy: 0.5 + 0.1 * rng.unit(),
            entropy_floor: 0.0,
            never_stops: rng.unit().round(),
        };
        let figures = [(0..16).map(|_| one()).collect(), (0..16).map(|_| one()).collect()];
        HealthRun { figures, texts: [vec![], vec![]], non_finite: false }
    }

    #[test]
    fn a_loop_prone_model_is_worse_and_an_equal_one_never_is() {
        let options = HealthOptions::default();
        let bad = compare(&texts(1, 0.0), &texts(2, 0.5), &options);
        let worse: Vec<_> = bad.worse().iter().map(|f| f.name.clone()).collect();
        assert!(worse.contains(&"repetition".to_string()) && worse.contains(&"longest_loop".to_string()), "{worse:?}");
        for seed in 0..200 {
            let equal = compare(&texts(2 * seed, 0.0), &texts(2 * seed + 1, 0.0), &options);
            assert!(equal.worse().is_empty(), "seed {seed}: {:?}", equal.worse());
        }
    }

    #[test]
    fn prompts_are_spread_and_inside() {
        let ids: Vec<u32> = (100..1100).collect();
        let options = HealthOptions { prompts: 4, prompt_tokens: 10, ..Default::default() };
        let all = prompts(&ids, Some(1), &options);
        assert_eq!(all.iter().map(|p| (p[0], p[1], p.len())).collect::<Vec<_>>(), [(1, 100, 11), (1, 350, 11), (1, 600, 11), (1, 850, 11)]);
        assert_eq!(prompts(&ids[..25], None, &options).len(), 2);
        assert!(prompts(&ids[..5], None, &options).is_empty());
    }
}
