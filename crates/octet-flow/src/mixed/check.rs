//! The best of a few allocations within a budget, each measured whole.
//!
//! Losses of single groups add up to that of all of them only where they are small. So the allocation of the least sum is held
//! against others: one scheme for everything, sums of losses as the solver left them, sums that spare single groups, sums of what
//! groups lose where all others are quantized as in the best so far. Each is quantized with some of the calibration windows and its
//! divergence measured on those held out; the one of least divergence is taken.

use super::{Allocated, Budget, Gains, MixedEvent, MixedJob, Sizes, cache::Kept, search};
use crate::{
    Calibration, Error, Prepared, QuantizeSettings, Result, Staged,
    judge::{interrupted, stage},
};
use octet_eval::{Quality, Reference, Windows, store::Key};
use octet_formats::{Checkpoint, Folder};
use octet_quant::{Effort, Samples, Sensitivities, SensitivityRun, Site};
use octet_runtime::{OpenOptions, TextModel};
use octet_tensor::Scheme;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One of so many calibration windows is held out.
const ONE_OF: usize = 4;

/// Multiply-adds that the candidates may take together, and how many there are at the least. Counted, not timed, so that every
/// machine comes to the same files.
const WORK: f64 = 1e14;
const FEWEST: usize = 2;

/// How candidates come to be, the first ones first.
const IDEAS: [Idea; 7] = [Idea::Sum, Idea::OneScheme, Idea::Solved(1.0), Idea::Solved(1.5), Idea::Around, Idea::Around, Idea::Table];

/// How an allocation within a budget comes to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Idea {
    /// The least sum of losses, with what the solver usually gains.
    Sum,
    /// One scheme for every group: that whose losses add up to the least.
    OneScheme,
    /// This scheme for every group.
    Scheme(Scheme),
    /// The least sum of losses to this power, with what the solver gained in the candidates so far.
    Solved(f64),
    /// The least sum of losses measured anew around the best candidate so far.
    Around,
    /// The best candidate so far with its table solved that is embedding and head at once, instead of rounded.
    Table,
}

/// An allocation that was measured whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixedCandidate {
    /// How it came to be, in words.
    pub what: String,
    /// Bits a weight of all weight matrices.
    pub bits_per_weight: f64,
    /// Bytes of all weight matrices.
    pub bytes: u64,
    /// The KL divergence that the measured losses add up to, in nats.
    pub predicted_kl: f64,
    /// The KL divergence of the quantized model on the windows held out, in nats.
    pub kl: f64,
    /// What the solver made of each group's loss.
    pub gains: Gains,
}

/// The best allocation found within a budget.
pub struct MixedBest {
    /// The allocation, its recipe and plan.
    pub allocated: Allocated,
    /// Every candidate that was measured, in order.
    pub candidates: Vec<MixedCandidate>,
    /// Which of them it is.
    pub chosen: usize,
    /// Tokens that were held out to measure them on.
    pub held_out: usize,
}

/// What candidates are made with and measured on.
struct Trial<'a> {
    /// The windows that are not held out.
    calibration: Calibration,
    held_out: Samples,
    /// What the original makes of those held out, once that is needed.
    reference: Option<Reference>,
    /// Where candidates are written: beside the target, and never given that name.
    place: &'a Path,
}

impl MixedJob<'_> {
    /// The best of a few allocations within `budget`, one scheme for everything among them where one fits, so that what is found
    /// is no worse than that as far as the held-out windows tell. Candidates are written beside `target` and removed again; what
    /// was measured is kept, so that a run that was killed goes on where it was.
    ///
    /// # Errors
    /// If no allocation fits: the smallest possible is stated. As [`crate::Prepared::write_calibrated`], and if the original cannot run.
    pub fn best(
        &self,
        sensitivities: &Sensitivities,
        budget: Budget,
        target: &Path,
        event: &mut dyn FnMut(MixedEvent<'_>),
    ) -> Result<MixedBest> {
        let (others, held_out) = self.calibration.samples.held_out(ONE_OF);
        let calibration = Calibration { samples: others, restart: false, ..self.calibration.clone() };
        let place = beside(target);
        let mut trial = Trial { calibration, held_out, reference: None, place: &place };
        let (mut best, mut plans, mut gains): (Option<(usize, Allocated)>, Vec<String>, Gains) = Default::default();
        let mut candidates: Vec<MixedCandidate> = vec![];
        let ideas = self.ideas()?;
        let most = self.most(&trial).max(if self.step()?.whole { ideas.len() } else { FEWEST });
        for idea in ideas {
            if candidates.len() == most {
                break;
            }
            let allocated = match (idea, &best) {
                (Idea::Around, Some((_, best))) => {
                    let anew = self.around(best, &mut trial, event)?;
                    Some(self.within(&anew, &gains, budget)?)
                }
                (Idea::Table, Some((_, best))) => self.solving_table(best)?,
                _ => self.of_idea(idea, sensitivities, &gains, budget)?,
            };
            let Some(allocated) = allocated else { continue };
            let plan = allocated.prepared.plan.digest();
            if plans.contains(&plan) {
                continue;
            }
            plans.push(plan);
            event(MixedEvent::Trying(candidates.len() + 1, allocated.bits_per_weight));
            let candidate = self.candidate(idea, &allocated, &mut trial, event)?;
            event(MixedEvent::Candidate(&candidate));
            gains.extend(candidate.gains.clone());
            if best.as_ref().is_none_or(|(at, _)| candidate.kl < candidates[*at].kl) {
                best = Some((candidates.len(), allocated));
            }
            candidates.push(candidate);
        }
        let none = || -> Error {
            octet_quant::Error::Recipe("none of the schemes of its mixed step fits all targets and the budget; name others".into()).into()
        };
        let (chosen, allocated) = best.ok_or_else(none)?;
        Ok(MixedBest { allocated, candidates, chosen, held_out: trial.held_out.tokens().len() })
    }

    /// How many candidates are measured at the most.
    fn most(&self, trial: &Trial<'_>) -> usize {
        let cost = self.prepared.forecast_calibration(&trial.calibration).cost;
        let run = trial.held_out.tokens().len() as f64 * octet_quant::products_a_token(&self.prepared.spec);
        ((WORK / (cost.forward + cost.moments + cost.solving + run).max(1.0)) as usize).max(FEWEST)
    }

    /// What is tried, in order.
    fn ideas(&self) -> Result<Vec<Idea>> {
        let step = self.step()?;
        Ok(if step.whole { step.schemes.iter().map(|&scheme| Idea::Scheme(scheme)).collect() } else { IDEAS.into() })
    }

    /// What groups lose where all others are as in `best`.
    fn around(&self, best: &Allocated, trial: &mut Trial<'_>, event: &mut dyn FnMut(MixedEvent<'_>)) -> Result<Sensitivities> {
        let (menu, modules) = (self.step()?.menu(self.prepared.settings.recipe.portable), self.modules()?);
        let key = self.sensitivity_key(&menu, &modules)?.with("around", best.prepared.plan.digest());
        let key = key.with("used", trial.calibration.digest());
        if let Some(known) = self.cached::<Sensitivities>(&key) {
            return Ok(known);
        }
        let staged = self.attempt(best, trial, event)?;
        let quantized = Checkpoint::open(&Folder::disk(&staged.path())?)?;
        let wanted = |site: &Site| modules.contains(&site.linear.module);
        let (ledger, samples) = (Kept { job: self, key: &key }, &trial.calibration.samples);
        let run =
            SensitivityRun { ledger: Some(&ledger), around: Some(&quantized), samples, effort: Effort::Brief, ..self.run(&menu, &wanted) };
        let measured = self.measure(&run, &key, &mut |share, group| event(MixedEvent::Measuring(share, group)));
        drop(quantized);
        staged.discard();
        measured
    }

    /// The allocation of an idea that needs no other candidate; `None` where there is none.
    fn of_idea(&self, idea: Idea, sensitivities: &Sensitivities, gains: &Gains, budget: Budget) -> Result<Option<Allocated>> {
        match idea {
            Idea::Sum => self.within(sensitivities, &Gains::new(), budget).map(Some),
            Idea::OneScheme => self.one_scheme(sensitivities, budget),
            Idea::Scheme(scheme) => {
                let sizes = self.sizes(sensitivities)?;
                let of = self.of_scheme(sensitivities, scheme, &sizes)?;
                Ok(of.filter(|allocated| self.over(allocated, budget).is_ok_and(|over| over == 0)))
            }
            Idea::Solved(power) => self.weighed(sensitivities, gains, power, budget).map(Some),
            Idea::Around | Idea::Table => Ok(None),
        }
    }

    /// One scheme for every group that can take any: the one within `budget` whose losses add up to the least.
    fn one_scheme(&self, sensitivities: &Sensitivities, budget: Budget) -> Result<Option<Allocated>> {
        let sizes = self.sizes(sensitivities)?;
        let mut best: Option<Allocated> = None;
        for scheme in self.step()?.menu(self.prepared.settings.recipe.portable).schemes {
            let Some(allocated) = self.of_scheme(sensitivities, scheme, &sizes)? else { continue };
            if self.over(&allocated, budget)? == 0 && best.as_ref().is_none_or(|best| allocated.loss < best.loss) {
                best = Some(allocated);
            }
        }
        Ok(best)
    }

    /// The allocation that gives every group `scheme`; `None` where some group takes others only.
    fn of_scheme(&self, sensitivities: &Sensitivities, scheme: Scheme, sizes: &Sizes) -> Result<Option<Allocated>> {
        let alternatives = sensitivities.alternatives(|group| self.gain(&Gains::new(), group));
        let chosen = of_scheme(sensitivities, scheme);
        chosen.map(|chosen| self.settle(sensitivities, &chosen, sizes, &alternatives)).transpose()
    }

    /// `best` with its table solved; `None` where it has none, or is solved already.
    fn solving_table(&self, best: &Allocated) -> Result<Option<Allocated>> {
        let recipe = best.prepared.settings.recipe.solving_table(&best.prepared.inventory, self.step()?.solver);
        let Some(recipe) = recipe else { return Ok(None) };
        let settings = QuantizeSettings { recipe, ..best.prepared.settings.clone() };
        let prepared = Prepared::new(&self.prepared.input, |_| Ok(settings))?;
        let Allocated { loss, bits_per_weight, bytes, .. } = *best;
        Ok(Some(Allocated { prepared, choices: best.choices.clone(), loss, bits_per_weight, bytes }))
    }

    fn candidate(
        &self,
        idea: Idea,
        allocated: &Allocated,
        trial: &mut Trial<'_>,
        event: &mut dyn FnMut(MixedEvent<'_>),
    ) -> Result<MixedCandidate> {
        let key = self.candidate_key(allocated, trial)?;
        if let Some(known) = self.cached::<MixedCandidate>(&key) {
            // The same model may have been another idea then.
            return Ok(MixedCandidate { what: idea.words(allocated), ..known });
        }
        let staged = self.attempt(allocated, trial, event)?;
        let quality = self.measured(&staged.path(), trial, event);
        let gains = search::gains(allocated, &staged.reports);
        staged.discard();
        let candidate = MixedCandidate {
            what: idea.words(allocated),
            bits_per_weight: allocated.bits_per_weight,
            bytes: allocated.bytes,
            predicted_kl: allocated.loss,
            // A number that is not finite cannot be kept.
            kl: quality?.kl.mean.min(f64::MAX),
            gains,
        };
        self.keep(&key, &candidate);
        Ok(candidate)
    }

    /// Writes a candidate. What a run that was killed left there is gone on with where it is this one, and nobody's otherwise.
    fn attempt(&self, allocated: &Allocated, trial: &Trial<'_>, event: &mut dyn FnMut(MixedEvent<'_>)) -> Result<Staged> {
        match self.write(allocated, &trial.calibration, trial.place, true, event) {
            Err(Error::OtherWork { .. }) => {
                let anew = Calibration { restart: true, ..trial.calibration.clone() };
                self.write(allocated, &anew, trial.place, true, event)
            }
            other => other,
        }
    }

    /// Runs a written candidate, and before the first one the original, over the windows held out.
    fn measured(&self, dir: &Path, trial: &mut Trial<'_>, event: &mut dyn FnMut(MixedEvent<'_>)) -> Result<Quality> {
        let mut told = |_: &str, done: u64, total: u64, what: &str| event(MixedEvent::Judging(done, total, what));
        let open = |folder: &Folder| TextModel::open(folder, self.engine, OpenOptions::default());
        let reference = match trial.reference.take() {
            Some(known) => known,
            None => {
                let original = open(&self.prepared.input)?;
                let windows = Windows::of_pieces(&original, trial.held_out.windows())?;
                let mut step = stage("reference", "the original", self.cancel, &mut told);
                Reference::of(&original.model, &windows, &mut step).map_err(interrupted)?
            }
        };
        let variant = open(&Folder::disk(dir)?)?;
        let mut step = stage("candidate", "windows held out", self.cancel, &mut told);
        let quality = Quality::measure(&reference, &variant.model, self.prepared.settings.seed, &mut step);
        trial.reference = Some(reference);
        quality.map_err(interrupted)
    }

    /// Everything that a candidate's figures depend on.
    fn candidate_key(&self, allocated: &Allocated, trial: &Trial<'_>) -> Result<Key> {
        let key = self.key("mixed candidate")?.with("plan", allocated.prepared.plan.digest());
        let key = key.with("used", trial.calibration.digest()).with_ids("held out", trial.held_out.windows());
        Ok(key.with("sequential", self.calibration.sequential))
    }
}

impl Idea {
    fn words(self, allocated: &Allocated) -> String {
        match self {
            Self::Sum => "least sum of losses".into(),
            Self::OneScheme => {
                let scheme = allocated.choices.iter().find_map(|(_, scheme)| *scheme);
                scheme.map_or_else(|| "nothing quantized".into(), |scheme| format!("one scheme for all, {}", scheme.short()))
            }
            Self::Scheme(scheme) => format!("{} for all", scheme.short()),
            Self::Solved(1.0) => "least sum of losses as solved".into(),
            Self::Solved(power) => format!("least sum of losses as solved, to the power {power}"),
            Self::Around => "least sum of losses measured around the best so far".into(),
            Self::Table => "the best so far with its table solved".into(),
        }
    }
}

/// The options that give every group `scheme`, groups that can take none left as they are; `None` where some group takes others only.
fn of_scheme(sensitivities: &Sensitivities, scheme: Scheme) -> Option<Vec<usize>> {
    let pick = |group: &octet_quant::GroupLosses| {
        let of = |scheme: Option<Scheme>| group.options.iter().position(|option| option.scheme == scheme);
        of(Some(scheme)).or_else(|| of(None).filter(|_| group.options.len() == 1))
    };
    sensitivities.groups.iter().map(pick).collect()
}

/// Where candidates for `target` are written.
fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}-candidate"))
}
