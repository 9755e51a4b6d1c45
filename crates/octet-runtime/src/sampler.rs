//! From logits to a token: greedy or sampled.

use crate::{Error, Result, Rng};

/// How the next token is drawn. Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 takes the likeliest token (greedy).
    pub temperature: f32,
    /// Only this many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Logits of tokens that already occurred are divided by this (multiplied where negative); 1 for none
    /// (Keskar et al., "CTRL", 2019, section 4.1).
    pub repetition_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl SamplerConfig {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }

    /// Sampling from the whole distribution at `temperature`.
    pub fn sampled(temperature: f32, seed: u64) -> Self {
        Self { temperature, seed, ..Self::greedy() }
    }

    /// Checks every option.
    ///
    /// # Errors
    /// If one has no meaning, naming it.
    pub fn check(&self) -> Result<()> {
        let rules: [(&'static str, f32, bool, &'static str); 4] = [
            ("temperature", self.temperature, self.temperature >= 0.0, "a temperature is 0 (greedy) or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a probability above 0 and up to 1 is needed"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a probability from 0 to 1 is needed"),
            ("repetition penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "it must be above 0; 1 means none"),
        ];
        match rules.into_iter().find(|(_, value, fine, _)| !fine || !value.is_finite()) {
            Some((option, value, _, rule)) => Err(Error::Option { option, value: f64::from(value), rule }),
            None => Ok(()),
        }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self::greedy()
    }
}

/// Draws tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: Rng,
    /// Which tokens occurred, for the repetition penalty; empty where there is none.
    seen: Vec<bool>,
    candidates: Vec<(f32, u32)>,
}

/// Tokens whose probability is below e^−30 of the likeliest are never drawn: together they are rarer than 1e-7 for any
/// vocabulary, and leaving them out spares sorting them.
const NEGLIGIBLE: f32 = 30.0;

impl Sampler {
    /// A sampler; `seen` are the tokens that already count as having occurred (the prompt).
    ///
    /// # Errors
    /// If an option has no meaning.
    pub fn new(config: SamplerConfig, seen: &[u32]) -> Result<Self> {
        config.check()?;
        let mut sampler = Self { config, rng: Rng::new(config.seed), seen: vec![], candidates: vec![] };
        seen.iter().for_each(|&id| sampler.note(id));
        Ok(sampler)
    }

    /// Draws the token that follows `position` tokens; `logits` are overwritten.
    ///
    /// # Errors
    /// If a logit is NaN or infinite: a broken model must not look like a bad one.
    pub fn next(&mut self, logits: &mut [f32], position: usize) -> Result<u32> {
        let broken = logits.iter().filter(|v| !v.is_finite()).count();
        if broken > 0 || logits.is_empty() {
            return Err(Error::NonFinite { count: broken, position });
        }
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            let penalty = self.config.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        let best = argmax(logits);
        let id = if self.config.temperature > 0.0 { self.draw(logits, logits[best]) } else { best as u32 };
        self.note(id);
        Ok(id)
    }

    fn note(&mut self, id: u32) {
        if self.config.repetition_penalty != 1.0 {
            let id = id as usize;
            self.seen.resize(self.seen.len().max(id + 1), false);
            self.seen[id] = true;
        }
    }

    fn draw(&mut self, logits: &[f32], max: f32) -> u32 {
        let SamplerConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        let kept = &mut self.candidates;
        kept.clear();
        let scaled = logits.iter().map(|&v| (v - max) / temperature);
        kept.extend(scaled.enumerate().filter(|(_, v)| *v > -NEGLIGIBLE).map(|(id, v)| (v, id as u32)));
        // Equal logits: the lower id first, so that a result never depends on the sort.
        let likelier = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < kept.len() {
            kept.select_nth_unstable_by(top_k - 1, likelier);
            kept.truncate(top_k);
        }
        if top_k > 0 || top_p < 1.0 {
            kept.sort_unstable_by(likelier);
        }
        kept.iter_mut().for_each(|c| c.0 = c.0.exp());
        if top_p < 1.0 {
            let goal = f64::from(top_p) * kept.iter().map(|c| f64::from(c.0)).sum::<f64>();
            let mut reached = 0.0;
            let enough = kept.iter().position(|c| {
                reached += f64::from(c.0);
                reached >= goal
            });
            kept.truncate(enough.map_or(kept.len(), |i| i + 1));
        }
        // The likeliest has weight e^0 = 1.
        kept.retain(|c| c.0 >= min_p);
        let total: f64 = kept.iter().map(|c| f64::from(c.0)).sum();
        let mut left = self.rng.unit() * total;
        let chosen = kept.iter().find(|c| {
            left -= f64::from(c.0);
            left < 0.0
        });
        chosen.or(kept.last()).map_or(0, |c| c.1)
    }
}

/// The index of the largest value, the first of equals.
pub(crate) fn argmax(values: &[f32]) -> usize {
    values.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(config: SamplerConfig, logits: &[f32], n: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(config, &[]).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for i in 0..n {
            let mut copy = logits.to_vec();
            counts[sampler.next(&mut copy, i).unwrap() as usize] += 1.0 / n as f64;
        }
        counts
    }

    fn logits(p: &[f32]) -> Vec<f32> {
        p.iter().map(|v| v.ln()).collect()
    }

    #[test]
    fn draws_follow_the_distribution() {
        let seen = frequencies(SamplerConfig::sampled(1.0, 7), &logits(&[0.5, 0.3, 0.2]), 20_000);
        assert!((seen[0] - 0.5).abs() < 0.015 && (seen[2] - 0.2).abs() < 0.015, "{seen:?}");
        let hot = frequencies(SamplerConfig::sampled(0.5, 7), &logits(&[0.5, 0.3, 0.2]), 20_000);
        assert!((hot[0] - 0.25 / 0.38).abs() < 0.015, "{hot:?}");
    }

    #[test]
    fn filters_cut_where_they_should() {
        let p = logits(&[0.15, 0.5, 0.05, 0.3]);
        let top_k = frequencies(SamplerConfig { top_k: 2, ..SamplerConfig::sampled(1.0, 1) }, &p, 2_000);
        assert!(top_k[0] == 0.0 && top_k[2] == 0.0 && top_k[3] > 0.3);
        let top_p = frequencies(SamplerConfig { top_p: 0.75, ..SamplerConfig::sampled(1.0, 1) }, &p, 2_000);
        assert!(top_p[0] == 0.0 && top_p[1] > 0.5 && top_p[3] > 0.3);
        let min_p = frequencies(SamplerConfig { min_p: 0.2, ..SamplerConfig::sampled(1.0, 1) }, &p, 2_000);
        assert!(min_p[2] == 0.0 && min_p[0] > 0.1);
        let tiny = frequencies(SamplerConfig { top_p: 1e-6, ..SamplerConfig::sampled(1.0, 1) }, &p, 50);
        assert_eq!(tiny[1].round(), 1.0);
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_the_penalty_counts() {
        let mut greedy = Sampler::new(SamplerConfig::greedy(), &[]).unwrap();
        assert_eq!(greedy.next(&mut [0.0, 2.0, 2.0], 0).unwrap(), 1);
        assert_eq!(greedy.next(&mut [0.0, 2.0, 2.0], 1).unwrap(), 1);
        let config = SamplerConfig { repetition_penalty: 2.0, ..SamplerConfig::greedy() };
        let mut penal = Sampler::new(config, &[1]).unwrap();
        assert_eq!(penal.next(&mut [0.5, 2.0, 1.5], 0).unwrap(), 2);
        assert_eq!(penal.next(&mut [0.8, 2.0, 1.5], 1).unwrap(), 1);
        assert_eq!(penal.next(&mut [-3.0, -2.0, -1.0], 1).unwrap(), 2);
    }

    #[test]
    fn broken_logits_are_errors() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Sampler::new(SamplerConfig::greedy(), &[]).unwrap().next(&mut [1.0, bad], 5).unwrap_err();
            assert!(matches!(error, Error::NonFinite { count: 1, position: 5 }));
        }
    }

    #[test]
    fn options_without_meaning_are_refused() {
        let base = SamplerConfig::greedy();
        for bad in [
            SamplerConfig { temperature: -1.0, ..base },
            SamplerConfig { top_p: 0.0, ..base },
            SamplerConfig { min_p: 1.5, ..base },
            SamplerConfig { repetition_penalty: 0.0, ..base },
            SamplerConfig { temperature: f32::NAN, ..base },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn same_seed_same_tokens() {
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerConfig::sampled(1.0, seed), &[]).unwrap();
            (0..20).map(|i| sampler.next(&mut [0.1, 0.2, 0.3, 0.0], i).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
