//! Before anything is written: open, check, plan, forecast.

use crate::{Error, Result};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::Engine;
use octet_model::ArchSpec;
use octet_quant::{Forecast, Inventory, Plan, Recipe, SolveRates};

/// What is asked of a quantization.
#[derive(Clone, Debug)]
pub struct QuantizeSettings {
    /// What to do to which tensors.
    pub recipe: Recipe,
    /// The name of the scheme, preset or recipe, for folder names and reports.
    pub label: String,
    /// Whether a tensor that cannot take what is asked is an error.
    pub strict: bool,
    /// Seed of everything drawn at random.
    pub seed: u64,
}

/// An opened checkpoint with the plan for it; nothing was written yet.
pub struct Prepared {
    pub(crate) input: Folder,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) spec: ArchSpec,
    pub(crate) inventory: Inventory,
    /// Of a recipe with a mixed step: with 4 bits in its place.
    pub(crate) plan: Plan,
    pub(crate) settings: QuantizeSettings,
}

impl Prepared {
    /// Opens `input`, checks that it can be quantized and plans what becomes of every tensor.
    ///
    /// # Errors
    /// If the checkpoint is damaged, of an unknown architecture or already quantized, or the recipe does not fit it.
    pub fn new(input: &Folder, settings: impl FnOnce(&ArchSpec) -> Result<QuantizeSettings>) -> Result<Self> {
        if input.adapter().is_some() {
            let what = "a receipt names one folder as the original; merge the adapter first (octet export BASE+ADAPTER --format safetensors) and quantize that";
            return Err(Error::Request(what.into()));
        }
        let checkpoint = Checkpoint::open(input)?;
        if let Some(stored) = checkpoint.quantization() {
            let scheme = stored.main_scheme().map_or_else(|| stored.format.clone(), |scheme| scheme.to_string());
            return Err(Error::AlreadyQuantized { model: input.name().into(), scheme });
        }
        let mut spec = ArchSpec::from_config(checkpoint.config())?;
        spec.settle(&checkpoint)?;
        spec.check(&checkpoint)?;
        let settings = settings(&spec)?;
        let inventory = Inventory::new(&spec.linear_sites(), &checkpoint)?;
        let plan = Plan::new(&settings.recipe.provisional(), &inventory, settings.strict)?;
        plan.check_scalings(&spec.graph())?;
        tracing::info!(family = spec.family(), layers = spec.layers().len(), tensors = plan.lines().len(), "planned {}", settings.label);
        Ok(Self { input: input.clone(), checkpoint, spec, inventory, plan, settings })
    }

    /// The folder that is quantized.
    pub fn input(&self) -> &Folder {
        &self.input
    }

    /// What becomes of every tensor; of a recipe with a mixed step a forecast, with 4 bits in its place (see [`crate::MixedJob`]).
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the recipe, written down and read again, gives the same plan: what a receipt relies on.
    pub fn recipe_reads_back(&self) -> bool {
        let again = || {
            let recipe = Recipe::from_toml(&self.settings.recipe.to_string()).ok()?;
            let inventory = Inventory::new(&self.spec.linear_sites(), &self.checkpoint).ok()?;
            Plan::new(&recipe, &inventory, self.settings.strict).ok()
        };
        again().is_some_and(|plan| plan.digest() == self.plan.digest())
    }

    /// What was asked.
    pub fn settings(&self) -> &QuantizeSettings {
        &self.settings
    }

    /// The architecture.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// The opened original.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Size, memory and time of carrying out the plan on `engine`; the time from a short trial on this machine.
    ///
    /// # Errors
    /// As the solvers of the plan.
    pub fn forecast(&self, engine: &Engine) -> Result<Forecast> {
        let rates = SolveRates::measure(&self.plan, engine)?;
        Ok(self.plan.forecast(engine.threads(), Some(&rates)))
    }
}
