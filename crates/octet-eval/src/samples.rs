//! Texts of both models side by side, and where they part.

use crate::health::HealthRun;
use serde::{Deserialize, Serialize};

/// The same prompt continued by both models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// `greedy` or `sampled`.
    pub mode: String,
    /// The prompt.
    pub prompt: String,
    /// What the original writes.
    pub base: String,
    /// What the quantized model writes.
    pub quant: String,
    /// Bytes that both texts share from their beginning (whole characters); `null` where they are equal.
    pub parts_at: Option<usize>,
}

impl Sample {
    /// A sample, with the place where the texts part.
    pub fn new(mode: &str, prompt: &str, base: &str, quant: &str) -> Self {
        Self { mode: mode.into(), prompt: prompt.into(), base: base.into(), quant: quant.into(), parts_at: parts_at(base, quant) }
    }
}

/// Bytes that two texts share from their beginning, up to a whole character; `None` of equal ones.
pub fn parts_at(a: &str, b: &str) -> Option<usize> {
    let different = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map(|((at, _), _)| at);
    different.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

/// Samples a report holds of each way to generate.
const GREEDY: usize = 4;
const SAMPLED: usize = 2;

/// A few of the texts that both models wrote for the health check: the first of those that part, then the first of the others.
pub fn of_health(prompts: &[String], base: &HealthRun, quant: &HealthRun) -> Vec<Sample> {
    let mut samples = vec![];
    for (mode, (name, count)) in [("greedy", GREEDY), ("sampled", SAMPLED)].into_iter().enumerate() {
        let texts = prompts.iter().zip(base.texts[mode].iter().zip(&quant.texts[mode]));
        let (parted, same): (Vec<Sample>, Vec<Sample>) =
            texts.map(|(prompt, (base, quant))| Sample::new(name, prompt, base, quant)).partition(|sample| sample.parts_at.is_some());
        samples.extend(parted.into_iter().chain(same).take(count));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_part_at_whole_characters() {
        assert_eq!(parts_at("same", "same"), None);
        assert_eq!(parts_at("größer", "größte"), Some("größ".len()));
        assert_eq!(parts_at("ab", "abc"), Some(2));
        assert_eq!(parts_at("x", "y"), Some(0));
        assert_eq!(parts_at("", ""), None);
    }

    #[test]
    fn what_parts_is_shown_first() {
        let texts = |all: [&str; 6]| all.map(String::from).to_vec();
        let run = |greedy, sampled| HealthRun { figures: [vec![], vec![]], texts: [texts(greedy), texts(sampled)], non_finite: false };
        let base = run(["a"; 6], ["a"; 6]);
        let quant = run(["a", "b", "a", "a", "c", "a"], ["a"; 6]);
        let samples = of_health(&texts(["0", "1", "2", "3", "4", "5"]), &base, &quant);
        let shown: Vec<_> = samples.iter().map(|sample| (&*sample.mode, &*sample.prompt)).collect();
        assert_eq!(shown, [("greedy", "1"), ("greedy", "4"), ("greedy", "0"), ("greedy", "2"), ("sampled", "0"), ("sampled", "1")]);
    }
}
