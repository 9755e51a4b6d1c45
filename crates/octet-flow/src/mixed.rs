//! Mixed precision: every fused group of linears, the embedding and the head get the width that pays.
//!
//! [`MixedJob::sensitivities`] measures what each scheme costs each group (once; kept on disk), [`MixedJob::within`] allocates
//! under a budget, [`MixedJob::best`] measures a few allocations within a budget whole, one scheme for everything among them, and
//! [`MixedJob::smallest`] searches for the smallest budget whose written model passes the quality gate.
//! The search judges quality alone; whoever calls it gives the last word to [`crate::judge`], on the same written files.

mod cache;
mod check;
mod search;

pub use check::{MixedBest, MixedCandidate};
pub use search::{MixedEvent, MixedFound, MixedTry};

use crate::{Calibration, Error, JudgeSettings, Prepared, Result, artefact};
use cache::Kept;
use octet_eval::store::{Key, Store};
use octet_kernels::Engine;
use octet_quant::{Effort, FusedGroup, Line, Menu, Sensitivities, SensitivityRun, Site, allocate, least_bytes};
use octet_tensor::Scheme;
use std::{collections::BTreeMap, sync::atomic::AtomicBool};

/// What was decided and why, beside the report in the folder.
pub const FILE: &str = "mixed_precision.json";

/// By what factor a solver that uses the Hessian lowers the loss of rounding to nearest, until it was measured.
const USUAL_GAIN: f64 = 0.5;

/// Multiply-adds that the candidates of a search may take together, and how many there are at most.
const SEARCH: f64 = 2.5e14;
const TRIES: usize = 5;

/// Bytes kept free in a folder of limited size for report, receipt and what was decided: some, and some for each tensor.
const REPORT_BYTES: u64 = 24 << 10;
const TENSOR_BYTES: u64 = 600;

/// A prepared model whose recipe has a mixed step, and what to measure it with.
pub struct MixedJob<'a> {
    /// The model, with a recipe that has a mixed step.
    pub prepared: &'a Prepared,
    /// The text that losses are measured on and solvers calibrated with.
    pub calibration: &'a Calibration,
    /// Threads and kernels.
    pub engine: &'a Engine,
    /// Set it to stop.
    pub cancel: &'a AtomicBool,
    /// Where measurements are kept; `None` keeps none.
    pub store: Option<&'a Store>,
    /// How much may be spent on measuring losses.
    pub effort: Effort,
}

/// How large the result may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits a weight of all weight matrices together, embedding and head, scales and zero points included.
    BitsPerWeight(f64),
    /// Bytes of the whole folder, its report included.
    FolderBytes(u64),
}

/// What a search will take.
#[derive(Clone, Copy, Debug)]
pub struct SearchForecast {
    /// Seconds of measuring losses; `None` where they are known from an earlier run.
    pub measuring: Option<f64>,
    /// Whether that is done in some blocks only, the others following from those.
    pub some_blocks: bool,
    /// Candidates at the most, once one has passed.
    pub tries: usize,
    /// Seconds of quantizing and judging one.
    pub each: f64,
    /// Most bytes that quantizing holds at once.
    pub peak_bytes: u64,
}

/// An allocation under a budget.
pub struct Allocated {
    /// The model with the recipe that the allocation amounts to.
    pub prepared: Prepared,
    /// The scheme of each group (`None`: it stays as it is), in the model's order.
    pub choices: Vec<(FusedGroup, Option<Scheme>)>,
    /// The KL divergence that the losses of the groups add up to, in nats a token.
    pub loss: f64,
    /// Bits a weight of all weight matrices.
    pub bits_per_weight: f64,
    /// Bytes of all weight matrices.
    pub bytes: u64,
}

/// By what factor the solver lowers the loss of each group (by name) compared to rounding to nearest, where that was measured.
pub type Gains = BTreeMap<String, f64>;

impl MixedJob<'_> {
    /// The losses of all groups the mixed step decides about, and whether they were kept from an earlier measurement of the same
    /// model, text, schemes and effort. Nothing is measured where schemes are tried whole. `progress` gets the share that is done and the group at work.
    ///
    /// # Errors
    /// As [`SensitivityRun::measure`]; if the recipe has no mixed step. A cache that cannot be read or written is no error.
    pub fn sensitivities(&self, progress: &mut dyn FnMut(f64, &str)) -> Result<(Sensitivities, bool)> {
        let modules = self.modules()?;
        let menu = self.step()?.menu(self.prepared.settings.recipe.portable);
        if self.step()?.whole {
            let wanted = |site: &Site| modules.contains(&site.linear.module);
            return Ok((self.run(&menu, &wanted).unmeasured(), false));
        }
        let key = self.sensitivity_key(&menu, &modules)?;
        if let Some(known) = self.cached::<Sensitivities>(&key) {
            return Ok((known, true));
        }
        let ledger = Kept { job: self, key: &key };
        let wanted = |site: &Site| modules.contains(&site.linear.module);
        let run = SensitivityRun { ledger: Some(&ledger), ..self.run(&menu, &wanted) };
        Ok((self.measure(&run, &key, progress)?, false))
    }

    fn measure(&self, run: &SensitivityRun<'_>, key: &Key, progress: &mut dyn FnMut(f64, &str)) -> Result<Sensitivities> {
        let measured = run.measure(progress).map_err(|error| match error {
            octet_quant::Error::Interrupted { .. } => Error::Interrupted,
            other => other.into(),
        })?;
        self.keep(key, &measured);
        Ok(measured)
    }

    fn run<'r>(&'r self, menu: &'r Menu, wanted: &'r dyn Fn(&Site) -> bool) -> SensitivityRun<'r> {
        SensitivityRun {
            spec: &self.prepared.spec,
            inventory: &self.prepared.inventory,
            source: &self.prepared.checkpoint,
            around: None,
            samples: &self.calibration.samples,
            menu,
            wanted,
            effort: self.effort,
            engine: self.engine,
            cancel: self.cancel,
            ledger: None,
        }
    }

    /// What a search with `settings` will take, by this machine's measured rates.
    ///
    /// # Errors
    /// As [`octet_quant::CalibrationForecast::seconds`]; if the recipe has no mixed step.
    pub fn forecast(&self, settings: &JudgeSettings) -> Result<SearchForecast> {
        let modules = self.modules()?;
        let menu = self.step()?.menu(self.prepared.settings.recipe.portable);
        let (measuring, some_blocks) = self.run(&menu, &|site: &Site| modules.contains(&site.linear.module)).forecast();
        let mut forecast = self.prepared.forecast_calibration(self.calibration);
        forecast.cost.forward += self.judging_cost(settings);
        let learning = self.prepared.forecast_distillation(self.calibration, self.engine)?.map_or(0.0, |(_, seconds)| seconds);
        let each = forecast.seconds(self.engine)? + learning;
        forecast.cost = octet_quant::Cost { forward: measuring, ..Default::default() };
        let peak_bytes = forecast.peak_bytes;
        let known = self.cached::<Sensitivities>(&self.sensitivity_key(&menu, &modules)?).is_some();
        let measuring = if known { None } else { Some(forecast.seconds(self.engine)?) };
        Ok(SearchForecast { measuring, some_blocks, tries: self.tries(settings), each, peak_bytes })
    }

    /// Multiply-adds of judging one candidate.
    fn judging_cost(&self, settings: &JudgeSettings) -> f64 {
        let tokens: usize = settings.texts.iter().map(|text| text.ids.len()).sum();
        tokens as f64 * octet_quant::products_a_token(&self.prepared.spec)
    }

    /// How many candidates a search writes and judges at the most, once one has passed: fewer of large models, decided by the
    /// forecast number of multiply-adds, not by a clock, so that every machine comes to the same files.
    fn tries(&self, settings: &JudgeSettings) -> usize {
        let cost = self.prepared.forecast_calibration(self.calibration).cost;
        let learning = self.prepared.distillation_cost(self.calibration);
        let each = cost.forward + cost.moments + cost.solving + self.judging_cost(settings) + learning;
        ((SEARCH / each.max(1.0)) as usize).clamp(2, TRIES)
    }

    /// The allocation of least loss within `budget`.
    ///
    /// # Errors
    /// If no allocation fits: the smallest possible is stated.
    pub fn within(&self, sensitivities: &Sensitivities, gains: &Gains, budget: Budget) -> Result<Allocated> {
        self.weighed(sensitivities, gains, 1.0, budget)
    }

    /// The allocation within `budget` of the least sum of losses to the power `power`: above 1 it spares single groups.
    fn weighed(&self, sensitivities: &Sensitivities, gains: &Gains, power: f64, budget: Budget) -> Result<Allocated> {
        let sizes = self.sizes(sensitivities)?;
        let alternatives = sensitivities.alternatives(|group| self.gain(gains, group));
        let mut weighed = alternatives.clone();
        weighed.iter_mut().flatten().for_each(|alternative| alternative.loss = alternative.loss.powf(power));
        let least = least_bytes(&alternatives);
        let mut bytes = match budget {
            Budget::BitsPerWeight(bits) => ((bits * sizes.weights as f64 / 8.0).max(0.0) as u64).checked_sub(sizes.pinned),
            Budget::FolderBytes(most) => most.checked_sub(sizes.pinned + sizes.beside),
        };
        loop {
            let chosen = bytes.and_then(|bytes| allocate(&weighed, bytes).ok());
            let Some(chosen) = chosen else { return Err(sizes.impossible(budget, least)) };
            let allocated = self.settle(sensitivities, &chosen, &sizes, &alternatives)?;
            // A folder's config grows with the number of schemes.
            let over = self.over(&allocated, budget)?;
            if over == 0 {
                return Ok(allocated);
            }
            bytes = bytes.and_then(|bytes| bytes.checked_sub(over));
        }
    }

    /// Bytes that an allocation takes beyond `budget`.
    fn over(&self, allocated: &Allocated, budget: Budget) -> Result<u64> {
        Ok(match budget {
            Budget::FolderBytes(most) => self.folder_bytes(&allocated.prepared)?.saturating_sub(most),
            Budget::BitsPerWeight(bits) if allocated.bits_per_weight <= bits => 0,
            Budget::BitsPerWeight(bits) => (allocated.bytes as f64 * (1.0 - bits / allocated.bits_per_weight)).ceil() as u64,
        })
    }

    fn gain(&self, gains: &Gains, group: &FusedGroup) -> f64 {
        // What a table that is looked up as well as multiplied loses is not what its Hessian tells.
        if group.layer.is_none() {
            return 1.0;
        }
        let sites: Vec<&Site> = self.prepared.inventory.sites.iter().filter(|site| group.modules.contains(&site.linear.module)).collect();
        let solves = self.prepared.settings.recipe.mixed_step().is_some_and(|step| step.solver_of(&sites).needs_hessian());
        if solves { gains.get(&group.name).copied().unwrap_or_else(|| usual_gain(gains, group)) } else { 1.0 }
    }

    fn settle(
        &self,
        sensitivities: &Sensitivities,
        chosen: &[usize],
        sizes: &Sizes,
        alternatives: &[Vec<octet_quant::Alternative>],
    ) -> Result<Allocated> {
        let picked = || sensitivities.groups.iter().zip(chosen).map(|(group, &at)| (&group.group, group.options[at]));
        let choices: Vec<(&FusedGroup, Option<Scheme>)> = picked().map(|(group, option)| (group, option.scheme)).collect();
        let recipe = self.prepared.settings.recipe.settled(&self.prepared.inventory, &choices)?;
        let settings = crate::QuantizeSettings { recipe, ..self.prepared.settings.clone() };
        let prepared = Prepared::new(&self.prepared.input, |_| Ok(settings))?;
        let bytes = sizes.pinned + picked().map(|(_, option)| option.bytes).sum::<u64>();
        Ok(Allocated {
            prepared,
            choices: choices.into_iter().map(|(group, scheme)| (group.clone(), scheme)).collect(),
            loss: alternatives.iter().zip(chosen).map(|(group, &at)| group[at].loss).sum(),
            bits_per_weight: 8.0 * bytes as f64 / sizes.weights.max(1) as f64,
            bytes,
        })
    }

    fn step(&self) -> Result<&octet_quant::MixedStep> {
        let missing = || Error::Internal("the recipe has no mixed step; add one with action = \"mixed\"".into());
        self.prepared.settings.recipe.mixed_step().ok_or_else(missing)
    }

    /// Module paths of the matrices that the mixed step decides about.
    fn modules(&self) -> Result<Vec<String>> {
        Ok(self.prepared.settings.recipe.mixed_sites(&self.prepared.inventory)?)
    }

    fn sizes(&self, sensitivities: &Sensitivities) -> Result<Sizes> {
        let grouped = |line: &Line| sensitivities.groups.iter().any(|group| group.group.modules.contains(&line.name));
        let matrices = || self.prepared.plan.lines().iter().filter(|line| line.linear.is_some());
        let all: u64 = matrices().map(|line| line.bytes).sum();
        Ok(Sizes {
            weights: matrices().map(Line::elements).sum(),
            pinned: matrices().filter(|line| !grouped(line)).map(|line| line.bytes).sum(),
            beside: self.folder_bytes(self.prepared)?.saturating_sub(all),
        })
    }

    /// Bytes of the finished folder, an upper bound.
    fn folder_bytes(&self, prepared: &Prepared) -> Result<u64> {
        let described = prepared.describe(prepared.calibrated(self.calibration, &[]));
        let written = artefact::forecast(&prepared.input, prepared.checkpoint.config(), &prepared.plan, &described)?;
        Ok(written + REPORT_BYTES + TENSOR_BYTES * prepared.plan.lines().len() as u64)
    }
}

/// The gain of a group that was not measured: that of the others of its kind, or of all, or the usual one.
fn usual_gain(gains: &Gains, group: &FusedGroup) -> f64 {
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let alike = gains.iter().filter(|(name, _)| name.ends_with(&group.kind)).map(|(_, gain)| *gain).collect();
    mean(alike).or_else(|| mean(gains.values().copied().collect())).unwrap_or(USUAL_GAIN)
}

/// What an allocation cannot change.
struct Sizes {
    /// Weights of all matrices.
    weights: u64,
    /// Bytes of the matrices that the mixed step does not decide about.
    pinned: u64,
    /// Bytes of the folder that are no weight matrices.
    beside: u64,
}

impl Sizes {
    fn impossible(&self, budget: Budget, least: u64) -> Error {
        let bytes = least + self.pinned;
        let asked = match budget {
            Budget::BitsPerWeight(bits) => format!("{bits} bits a weight"),
            Budget::FolderBytes(bytes) => format!("{:.3} MB", bytes as f64 / 1e6),
        };
        Error::Impossible { asked, bits: 8.0 * bytes as f64 / self.weights.max(1) as f64, megabytes: (bytes + self.beside) as f64 / 1e6 }
    }
}
