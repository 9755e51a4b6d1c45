//! The smallest allocation whose written model passes the quality gate.

use super::{Allocated, Budget, Gains, MixedCandidate, MixedJob};
use crate::{Calibration, Error, JudgeSettings, Original, Result, Staged, judge_quality};
use octet_eval::{gates::Gate, store::Key};
use octet_quant::{Event, Sensitivities, TensorReport};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// So many times the usual number of models are written and judged at the most where none passes.
const PATIENCE: f64 = 1.6;

/// A budget between one that failed and one that passed is not looked for where they are this close.
const CLOSE: f64 = 0.01;

/// The first try aims at this share of what the gate allows, later ones, whose scale is measured, at more.
const FIRST_AIM: f64 = 0.7;
const LATER_AIM: f64 = 0.95;

/// One budget that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixedTry {
    /// Bits a weight of all weight matrices.
    pub bits_per_weight: f64,
    /// Bytes of all weight matrices.
    pub bytes: u64,
    /// The KL divergence that the measured losses add up to, in nats.
    pub predicted_kl: f64,
    /// The KL divergence of the written model, in nats.
    pub kl: f64,
    /// Its perplexity over that of the original.
    pub ppl_ratio: f64,
    /// Upper end of the 95 % interval of that ratio, on the text on which it is highest.
    pub ppl_ratio_high: f64,
    /// Whether the quality gate let it pass.
    pub passed: bool,
    /// What the solver made of each group's loss.
    pub gains: Gains,
}

/// What the search found.
pub struct MixedFound {
    /// The allocation, its recipe and plan.
    pub allocated: Allocated,
    /// The written model: judge it, then commit or discard it.
    pub staged: Staged,
    /// Every budget that was tried, in order.
    pub tries: Vec<MixedTry>,
    /// What was measured before.
    pub sensitivities: Sensitivities,
    /// Whether that was known from an earlier run.
    pub cached: bool,
}

/// What a search says on its way.
pub enum MixedEvent<'a> {
    /// Losses are measured: the share that is done and the group at work.
    Measuring(f64, &'a str),
    /// Losses are known; whether from an earlier run.
    Measured(&'a Sensitivities, bool),
    /// A budget was chosen: bits a weight, counted from 1.
    Trying(usize, f64),
    /// It is being quantized.
    Quantizing(&'a Event<'a>),
    /// It is being judged: done, of how many, and what.
    Judging(u64, u64, &'a str),
    /// It was judged.
    Tried(&'a MixedTry),
    /// An allocation within a budget was measured whole.
    Candidate(&'a MixedCandidate),
}

/// Where a search stands.
#[derive(Default)]
struct Standing {
    /// Bytes of the largest that failed.
    failed: u64,
    /// The smallest that passed.
    passed: Option<Allocated>,
    /// The one that came nearest to passing, with the upper end of its ratio's interval.
    nearest: Option<(f64, Allocated)>,
    gains: Gains,
    tries: Vec<MixedTry>,
}

impl MixedJob<'_> {
    /// Searches for the smallest allocation that passes the quality gate of `settings` against `original`, writing each one it
    /// tries to the staging folder beside `target`; the one that is found is left there. Where none passes, the best that was
    /// tried is left there, to be refused by [`crate::judge`]. What was tried before, on the same texts, is not tried again, so
    /// that a run that was killed goes on where it was.
    ///
    /// # Errors
    /// As [`MixedJob::sensitivities`], [`crate::Prepared::write_calibrated`] and [`crate::judge`].
    pub fn smallest(
        &self,
        target: &Path,
        force: bool,
        original: &mut Original,
        settings: &JudgeSettings,
        event: &mut dyn FnMut(MixedEvent<'_>),
    ) -> Result<MixedFound> {
        let (sensitivities, cached) = self.sensitivities(&mut |share, group| event(MixedEvent::Measuring(share, group)))?;
        event(MixedEvent::Measured(&sensitivities, cached));
        let mut standing = Standing::default();
        let mut written: Option<(u64, Staged)> = None;
        let tries = self.tries(settings);
        let most = (PATIENCE * tries as f64).ceil() as usize;
        while standing.tries.len() < if standing.passed.is_some() { tries } else { most } {
            let Some(allocated) = self.next(&sensitivities, &standing, settings)? else { break };
            event(MixedEvent::Trying(standing.tries.len() + 1, allocated.bits_per_weight));
            let key = self.try_key(&allocated, settings)?;
            let tried = match self.cached::<MixedTry>(&key) {
                Some(known) => known,
                None => {
                    drop(written.take());
                    let staged = self.write(&allocated, self.calibration, target, force, event)?;
                    let tried = self.judge(&allocated, &staged, original, settings, event)?;
                    self.keep(&key, &tried);
                    written = Some((allocated.bytes, staged));
                    tried
                }
            };
            event(MixedEvent::Tried(&tried));
            standing.take(allocated, tried);
        }
        let found = standing.passed.or_else(|| standing.nearest.map(|(_, nearest)| nearest));
        let allocated = found.ok_or_else(|| Error::Internal("no allocation was tried".into()))?;
        let staged = match written {
            Some((bytes, staged)) if bytes == allocated.bytes => staged,
            other => {
                drop(other);
                self.write(&allocated, self.calibration, target, force, event)?
            }
        };
        Ok(MixedFound { allocated, staged, tries: standing.tries, sensitivities, cached })
    }

    /// The next budget to try, `None` where nothing is left to be learnt.
    fn next(&self, sensitivities: &Sensitivities, standing: &Standing, settings: &JudgeSettings) -> Result<Option<Allocated>> {
        let limit = settings.thresholds.ppl_ratio.ln().max(1e-6);
        let aim = match standing.tries.last() {
            None => FIRST_AIM * limit,
            // The upper end of the ratio's interval is about proportional to the divergence.
            Some(last) => LATER_AIM * limit * last.predicted_kl / last.ppl_ratio_high.ln().max(0.02 * limit),
        };
        let (low, high) = (standing.failed, standing.passed.as_ref().map(|passed| passed.bytes));
        if high.is_some_and(|high| high as f64 - low as f64 <= CLOSE * high as f64) {
            return Ok(None);
        }
        let mut next = self.of_loss(sensitivities, &standing.gains, aim)?;
        let known = |bytes: u64| standing.tries.iter().any(|tried| tried.bytes == bytes);
        let outside = next.bytes <= low || high.is_some_and(|high| next.bytes >= high);
        if outside || known(next.bytes) {
            let largest = self.within(sensitivities, &standing.gains, Budget::BitsPerWeight(LARGEST))?.bytes;
            let middle = (low.max(least(sensitivities)) + high.unwrap_or(largest)) / 2;
            next = self.within_bytes(sensitivities, standing, middle)?;
        }
        let new = next.bytes > low && high.is_none_or(|high| next.bytes < high) && !known(next.bytes);
        Ok(new.then_some(next))
    }

    /// The smallest allocation whose losses add up to `loss` at most, or the largest there is.
    fn of_loss(&self, sensitivities: &Sensitivities, gains: &Gains, loss: f64) -> Result<Allocated> {
        const STEPS: usize = 24;
        let alternatives = sensitivities.alternatives(|group| self.gain(gains, group));
        let loss_of = |bytes: u64| -> f64 {
            let chosen = octet_quant::allocate(&alternatives, bytes).unwrap_or_default();
            alternatives.iter().zip(&chosen).map(|(group, &at)| group[at].loss).sum()
        };
        let mut low = octet_quant::least_bytes(&alternatives);
        let mut high = alternatives.iter().filter_map(|group| group.iter().map(|a| a.bytes).max()).sum::<u64>();
        if loss_of(low) <= loss {
            high = low;
        }
        for _ in 0..STEPS {
            if high - low <= 1 {
                break;
            }
            let middle = low + (high - low) / 2;
            if loss_of(middle) <= loss { high = middle } else { low = middle }
        }
        let sizes = self.sizes(sensitivities)?;
        let chosen = octet_quant::allocate(&alternatives, high).unwrap_or_default();
        self.settle(sensitivities, &chosen, &sizes, &alternatives)
    }

    fn within_bytes(&self, sensitivities: &Sensitivities, standing: &Standing, bytes: u64) -> Result<Allocated> {
        let weights = self.sizes(sensitivities)?.weights.max(1);
        // Half a byte more, so that the division cannot take one away.
        self.within(sensitivities, &standing.gains, Budget::BitsPerWeight(8.0 * (bytes as f64 + 0.5) / weights as f64))
    }

    pub(super) fn write(
        &self,
        allocated: &Allocated,
        calibration: &Calibration,
        target: &Path,
        force: bool,
        event: &mut dyn FnMut(MixedEvent<'_>),
    ) -> Result<Staged> {
        let mut progress = |at: &Event<'_>| event(MixedEvent::Quantizing(at));
        let write = |calibration: &Calibration, progress: &mut dyn FnMut(&Event<'_>)| {
            allocated.prepared.write_calibrated(target, force, calibration, self.engine, self.cancel, progress)
        };
        match write(calibration, &mut progress) {
            // What is there is another try of this search.
            Err(Error::OtherWork { differs, .. }) if differs.starts_with("recipe (") && !differs.contains("), ") => {
                write(&Calibration { restart: true, ..calibration.clone() }, &mut progress)
            }
            other => other,
        }
    }

    fn judge(
        &self,
        allocated: &Allocated,
        staged: &Staged,
        original: &mut Original,
        settings: &JudgeSettings,
        event: &mut dyn FnMut(MixedEvent<'_>),
    ) -> Result<MixedTry> {
        let mut progress = |_: &str, done: u64, total: u64, detail: &str| event(MixedEvent::Judging(done, total, detail));
        let (measures, gates) = judge_quality(original, &staged.path(), settings, self.engine, self.cancel, &mut progress)?;
        let ppl = measures.ppl.as_ref();
        let ratio = ppl.and_then(|ppl| ppl.ratio).unwrap_or(f64::MAX);
        Ok(MixedTry {
            bits_per_weight: allocated.bits_per_weight,
            bytes: allocated.bytes,
            predicted_kl: allocated.loss,
            kl: measures.kl.map_or(f64::MAX, |kl| kl.mean.min(f64::MAX)),
            ppl_ratio: ratio.min(f64::MAX),
            ppl_ratio_high: highest(&gates, settings).unwrap_or(ratio).min(f64::MAX),
            passed: gates.iter().all(|gate| !gate.blocking || gate.pass != Some(false)),
            gains: gains(allocated, &staged.reports),
        })
    }

    /// Everything that a try's figures depend on.
    fn try_key(&self, allocated: &Allocated, settings: &JudgeSettings) -> Result<Key> {
        let texts = settings.texts.iter().map(|text| &text.ids[..]);
        let key = self.key("mixed try")?.with("plan", allocated.prepared.plan.digest()).with_ids("texts", texts);
        let key = key.with("context", format!("{:?}", settings.context)).with("thresholds", format!("{:?}", settings.thresholds));
        let key = key.with("seed", settings.seed).with("sequential", self.calibration.sequential);
        let learns = allocated.prepared.plan.distill().is_some();
        Ok(if learns { key.with_ids("learnt from", std::iter::once(self.calibration.text.tokens())) } else { key })
    }
}

/// Bits a weight that every allocation fits into.
const LARGEST: f64 = 80.0;

fn least(sensitivities: &Sensitivities) -> u64 {
    octet_quant::least_bytes(&sensitivities.alternatives(|_| 1.0))
}

impl Standing {
    fn take(&mut self, allocated: Allocated, tried: MixedTry) {
        self.gains.extend(tried.gains.clone());
        if !tried.passed {
            self.failed = self.failed.max(allocated.bytes);
            if self.nearest.as_ref().is_none_or(|(high, _)| tried.ppl_ratio_high < *high) {
                self.nearest = Some((tried.ppl_ratio_high, allocated));
            }
        } else if self.passed.as_ref().is_none_or(|passed| allocated.bytes < passed.bytes) {
            self.passed = Some(allocated);
        }
        self.tries.push(tried);
    }
}

/// The upper end of the ratio's interval that comes nearest to the gate's limit, of all texts.
fn highest(gates: &[Gate], settings: &JudgeSettings) -> Option<f64> {
    let ratio = |gate: &&Gate| gate.name == "quality" || gate.name.starts_with("quality.") && gate.name != "quality.position";
    let ratios = gates.iter().filter(ratio).filter(|gate| gate.threshold == Some(settings.thresholds.ppl_ratio));
    ratios.filter_map(|gate| gate.ci95.map(|[_, high]| high).or(gate.value)).max_by(f64::total_cmp)
}

/// By what factor the solver lowered the error of each group that it solved.
pub(super) fn gains(allocated: &Allocated, reports: &[TensorReport]) -> Gains {
    let mut gains = Gains::new();
    for (group, _) in &allocated.choices {
        let own = || reports.iter().filter(|report| group.modules.contains(&report.name));
        if own().any(|report| report.solver.as_deref().is_some_and(|solver| solver.starts_with("gptq"))) {
            let (left, nearest) =
                own().fold((0.0, 0.0), |(a, b), report| (a + report.error.weighted_error, b + report.error.nearest_error));
            if nearest > 0.0 && left.is_finite() {
                gains.insert(group.name.clone(), (left / nearest).clamp(0.05, 1.0));
            }
        }
    }
    gains
}
