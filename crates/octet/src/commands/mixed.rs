//! Mixed precision in `octet quantize`: what is said on the way, and where measurements are kept.

use super::{calibration::Reporter, judging};
use crate::{
    args::Quantize,
    interrupt,
    ui::{self, Progress},
};
use anyhow::{Result, bail};
use octet_flow::{
    Budget, Calibration, JudgeSettings, MixedBest, MixedCandidate, MixedEvent, MixedJob, MixedTry, Original, Prepared, SearchForecast,
};
use octet_kernels::Engine;
use octet_quant::{Effort, Plan, Sensitivities};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Seconds from which a search is announced.
const WORTH_SAYING: f64 = 60.0;

/// Bits a weight that everything fits into.
const ANY: f64 = 64.0;

/// A share as whole units of a progress bar.
const UNITS: f64 = 1000.0;

/// A model with a mixed step at work.
pub(super) struct Mixed<'a> {
    pub(super) args: &'a Quantize,
    pub(super) quiet: bool,
    pub(super) engine: &'a Engine,
    pub(super) progress: &'a mut Progress,
}

/// How large the result of a recipe with a mixed step may be, where that was said.
pub(super) fn budget(args: &Quantize, prepared: &Prepared) -> Option<Budget> {
    let step = prepared.settings().recipe.mixed_step();
    let bits = step.and_then(|step| step.bits_per_weight).map(Budget::BitsPerWeight);
    let size = args.judge.max_size.map(|size| Budget::FolderBytes(size.0));
    // What is tried whole is compared by what it loses, and may be as large as it is.
    bits.or(size).or_else(|| step.filter(|step| step.whole).map(|_| Budget::BitsPerWeight(ANY)))
}

impl Mixed<'_> {
    /// Measures and allocates within the budget that was given, or searches for the smallest that passes, which is left
    /// written where the next stage finds it.
    pub(super) fn settle(
        &mut self,
        prepared: &Prepared,
        target: &Path,
        calibration: Option<&Calibration>,
        judging: Option<(&mut Original, &JudgeSettings)>,
    ) -> Result<(Prepared, Value)> {
        let Some(calibration) = calibration else {
            bail!("mixed precision is decided by measuring on calibration text; leave --no-calibration out, or take --preset fast");
        };
        let store = judging::store(&self.args.judge);
        let (engine, cancel) = (self.engine, interrupt::flag());
        let job = MixedJob { prepared, calibration, engine, cancel, store: store.as_ref(), effort: Effort::Usual };
        match (budget(self.args, prepared), judging) {
            (Some(budget), _) => self.within(&job, budget, target),
            (None, Some((original, settings))) => self.smallest(&job, target, original, settings),
            (None, None) => {
                bail!(
                    "the smallest model that passes is searched by judging; leave --no-judge out, or say how large: --bits-per-weight 4.5"
                )
            }
        }
    }

    fn within(&mut self, job: &MixedJob<'_>, budget: Budget, target: &Path) -> Result<(Prepared, Value)> {
        let started = Instant::now();
        let progress = &mut *self.progress;
        let (sensitivities, cached) = job.sensitivities(&mut |share, group| {
            progress.update("measuring", (UNITS * share) as u64, UNITS as u64, group);
        })?;
        self.measured(&sensitivities, cached, started);
        let (mut reporter, mut tried) = (None, 0);
        let best = job.best(&sensitivities, budget, target, &mut |event| self.event(event, &mut reporter, &mut tried, job.prepared))?;
        let what = best.candidates.get(best.chosen).map_or("", |candidate| &candidate.what);
        self.say(&format!(
            "{:.3} bits a weight, embedding and head included: {what} diverges least of {} on {} tokens held out",
            best.allocated.bits_per_weight,
            best.candidates.len(),
            best.held_out
        ));
        let mut document = document(&sensitivities, &best.allocated, &[]);
        document["candidates"] = candidates(&best);
        document["held_out_tokens"] = best.held_out.into();
        Ok((best.allocated.prepared, document))
    }

    /// Shows where a search stands.
    fn event(&mut self, event: MixedEvent<'_>, reporter: &mut Option<Reporter>, tried: &mut usize, prepared: &Prepared) {
        match event {
            MixedEvent::Trying(count, _) => {
                *tried = count;
                *reporter = self.reporter(prepared).ok();
            }
            MixedEvent::Quantizing(event) => {
                if let Some(reporter) = reporter {
                    reporter.event(self.progress, event);
                }
            }
            MixedEvent::Measuring(share, group) => self.progress.update("measuring", (UNITS * share) as u64, UNITS as u64, group),
            MixedEvent::Judging(done, total, detail) => self.progress.update("perplexity", done, total, detail),
            MixedEvent::Tried(result) => self.say(&format!("try {tried}: {}", outcome(result))),
            MixedEvent::Candidate(found) => {
                self.say(&format!("candidate {tried}: {:.3} bits a weight, {}: KL {:.5}", found.bits_per_weight, found.what, found.kl))
            }
            MixedEvent::Measured(..) => {}
        }
    }

    fn smallest(
        &mut self,
        job: &MixedJob<'_>,
        target: &Path,
        original: &mut Original,
        settings: &JudgeSettings,
    ) -> Result<(Prepared, Value)> {
        self.announce(&job.forecast(settings)?);
        let (started, mut reporter, mut tried) = (Instant::now(), None, 0);
        let found = job.smallest(target, self.args.force, original, settings, &mut |event| match event {
            MixedEvent::Measured(sensitivities, cached) => self.measured(sensitivities, cached, started),
            other => self.event(other, &mut reporter, &mut tried, job.prepared),
        })?;
        let document = document(&found.sensitivities, &found.allocated, &found.tries);
        Ok((found.allocated.prepared, document))
    }

    /// Says beforehand what a search that takes minutes will take.
    fn announce(&mut self, forecast: &SearchForecast) {
        let time = |seconds: f64| ui::duration(Duration::from_secs_f64(seconds));
        if forecast.measuring.unwrap_or(0.0) + forecast.tries as f64 * forecast.each < WORTH_SAYING {
            return;
        }
        let some = if forecast.some_blocks { " in some of the blocks" } else { "" };
        let measuring = match forecast.measuring {
            Some(seconds) => format!("measuring sensitivity{some} takes about {}, then at most", time(seconds)),
            None => "at most".into(),
        };
        self.say(&format!(
            "mixed precision: {measuring} {} models are quantized and judged, about {} and {} of memory each; a run that is stopped goes on where it was",
            forecast.tries,
            time(forecast.each),
            ui::bytes(forecast.peak_bytes),
        ));
    }

    fn measured(&mut self, sensitivities: &Sensitivities, cached: bool, started: Instant) {
        if sensitivities.tokens == 0 {
            return;
        }
        let (groups, schemes) = (sensitivities.groups.len(), sensitivities.groups.iter().map(|g| g.options.len()).max().unwrap_or(0));
        let how = if cached { "known from an earlier run".to_string() } else { format!("in {}", ui::duration(started.elapsed())) };
        self.say(&format!(
            "sensitivity of {groups} groups to {schemes} representations on {} tokens {how}: {}",
            sensitivities.tokens, sensitivities.method
        ));
    }

    fn reporter(&self, prepared: &Prepared) -> Result<Reporter> {
        Reporter::new(self.args.log_jsonl.as_deref(), prepared.spec().layers().len())
    }

    fn say(&mut self, line: &str) {
        self.progress.finish();
        if !self.quiet {
            ui::note(line);
        }
    }
}

fn outcome(tried: &MixedTry) -> String {
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    let verdict = if tried.passed { "passes" } else { "does not pass" };
    format!(
        "{:.3} bits a weight: perplexity {:+.2} % (at most {:+.2} %), KL {:.5}: {verdict}",
        tried.bits_per_weight,
        percent(tried.ppl_ratio),
        percent(tried.ppl_ratio_high),
        tried.kl
    )
}

/// Bits a weight of all weight matrices of a plan.
pub(super) fn bits_per_weight(plan: &Plan) -> f64 {
    let matrices = || plan.lines().iter().filter(|line| line.linear.is_some());
    8.0 * matrices().map(|line| line.bytes).sum::<u64>() as f64 / matrices().map(|line| line.elements()).sum::<u64>().max(1) as f64
}

/// The allocations that were measured whole.
fn candidates(best: &MixedBest) -> Value {
    let one = |(at, found): (usize, &MixedCandidate)| {
        json!({
            "what": found.what, "bits_per_weight": found.bits_per_weight, "predicted_kl": found.predicted_kl, "kl": found.kl,
            "chosen": at == best.chosen,
        })
    };
    best.candidates.iter().enumerate().map(one).collect()
}

/// What was decided and why.
fn document(sensitivities: &Sensitivities, allocated: &octet_flow::Allocated, tries: &[MixedTry]) -> Value {
    let groups: Vec<Value> = allocated
        .choices
        .iter()
        .zip(&sensitivities.groups)
        .map(|((group, scheme), losses)| {
            let loss = losses.options.iter().find(|option| option.scheme == *scheme);
            json!({
                "group": group.name,
                "weights": group.weights,
                "scheme": scheme.map(|scheme| scheme.to_string()),
                "kl_rounded_alone": loss.map(|option| option.loss),
                "measured": loss.map(|option| option.measured),
            })
        })
        .collect();
    json!({
        "bits_per_weight": allocated.bits_per_weight,
        "predicted_kl": allocated.loss,
        "sensitivity": { "method": sensitivities.method, "tokens": sensitivities.tokens, "substitutions": sensitivities.substitutions },
        "groups": groups,
        "tries": tries,
        "recipe": allocated.prepared.settings().recipe.to_string(),
    })
}
