//! The original of a verdict: opened once, run once over the texts, held against any number of variants.

use crate::{Error, JudgeSettings, Result, digest};
use octet_eval::{
    Evaluation, EvaluationWindows, SixteenBit,
    cost::{Pace, Trial, Turn},
    health::{self, HealthOptions, HealthRun},
    memory::available_memory,
    speed::{CacheCheck, SpeedOptions},
    store::Key,
};
use octet_formats::{Checkpoint, Folder};
use octet_kernels::Engine;
use octet_model::ArchSpec;
use octet_runtime::{OpenOptions, TextModel};
use octet_tensor::Dtype;

/// The original, opened once for any number of variants.
pub struct Original {
    pub(crate) folder: Folder,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) text: TextModel,
    /// The original in 16 bits, where it is stored in more; the baseline of speed.
    pub(crate) sixteen: Option<TextModel>,
    /// Weights in all.
    pub(crate) parameters: u64,
    pub(crate) prompts: Vec<Vec<u32>>,
    /// What its logits and texts depend on, once that was asked for.
    pub(crate) identity: Option<Key>,
    pub(crate) evaluation: Evaluation,
    /// Where its weights are read from, once that was measured.
    pub(crate) cache: Option<CacheCheck>,
    pub(crate) health: Option<HealthRun>,
    /// Which questions it answers rightly.
    pub(crate) answers: Option<Vec<bool>>,
    pace: Option<Pace>,
    turn: Option<Turn>,
}

impl Original {
    /// Opens the original and cuts the evaluation text.
    ///
    /// # Errors
    /// If the model cannot be opened or the text is too short for a window.
    pub fn open(folder: &Folder, engine: &Engine, settings: &JudgeSettings) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let parameters = parameters(&checkpoint);
        let decoded = checkpoint.entries().iter().any(|e| e.dtype == Dtype::F8E4m3);
        let wide = checkpoint.entries().iter().any(|e| matches!(e.dtype, Dtype::F32 | Dtype::F64) && e.shape.len() == 2);
        // FP8 runs as a decoded F32 copy, wider floats are compared in 16 bits: both are held beside the mapped file.
        check_memory(
            folder.name(),
            if decoded {
                4 * parameters
            } else if wide {
                2 * parameters
            } else {
                0
            },
        )?;
        let text = TextModel::open(folder, engine, OpenOptions::default())?;
        let sixteen = if wide {
            let spec = ArchSpec::from_config(checkpoint.config())?;
            let source = SixteenBit::new(&checkpoint);
            Some(TextModel::assemble(folder, checkpoint.config(), engine, spec, &source, OpenOptions::default(), &mut |_, _| {})?)
        } else {
            None
        };
        let windows = EvaluationWindows::of(&text, &settings.texts, settings.context)?;
        let prompts = health::prompts(&settings.ids(), text.tokenizer.leading_bos(), &health_options(settings));
        Ok(Self {
            folder: folder.clone(),
            checkpoint,
            text,
            sixteen,
            parameters,
            prompts,
            identity: None,
            evaluation: Evaluation::new(windows),
            cache: None,
            health: None,
            answers: None,
            pace: None,
            turn: None,
        })
    }

    /// What stored results of the original depend on; `None` where nothing is stored.
    pub(crate) fn identity(&mut self, settings: &JudgeSettings) -> Result<Option<Key>> {
        // Digests are of the base's files: with an adapter nothing is stored.
        if settings.store.is_some() && self.identity.is_none() && self.folder.adapter().is_none() {
            let engine = self.text.model.engine();
            let key = Key::new("original")
                .with("weights", digest::of_weights(&self.folder, &self.checkpoint, engine)?)
                .with("companions", digest::of_companions(&self.folder)?)
                .with("instruction set", engine.isa())
                .with("activations and cache", format!("{:?}", OpenOptions::default()));
            self.identity = Some(key);
        }
        Ok(self.identity.clone())
    }

    /// Its weights in all.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// The opened original.
    pub fn text_model(&self) -> &TextModel {
        &self.text
    }

    pub(crate) fn baseline(&self) -> &TextModel {
        self.sixteen.as_ref().unwrap_or(&self.text)
    }

    /// Its pace in windows and texts, timed once.
    pub(crate) fn pace(&mut self, trial: Trial<'_>) -> Result<Pace> {
        let pace = self.pace.map_or_else(|| Pace::of(&self.text.model, trial), Ok)?;
        Ok(*self.pace.insert(pace))
    }

    /// How long its turns in the measurement of speed take, timed once.
    pub(crate) fn turn(&mut self, ids: &[u32], options: &SpeedOptions) -> Result<Turn> {
        let turn = self.turn.map_or_else(|| Turn::of(&self.baseline().model, ids, options), Ok)?;
        Ok(*self.turn.insert(turn))
    }

    /// The checkpoint's config and tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// Weights of the float tensors; FP8 block scales are no weights.
fn parameters(checkpoint: &Checkpoint) -> u64 {
    let weights = checkpoint.entries().iter().filter(|e| e.dtype.is_float() && !e.name.ends_with("_scale_inv"));
    weights.map(|e| e.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
}

pub(crate) fn health_options(settings: &JudgeSettings) -> HealthOptions {
    HealthOptions { seed: settings.seed, prompts: settings.health_prompts, ..HealthOptions::default() }
}

/// Refuses to load what needs `needed` bytes of memory beside mapped files where that much is not to be had.
pub(crate) fn check_memory(what: &str, needed: u64) -> Result<()> {
    match available_memory() {
        Some(available) if available < needed => {
            let [needed, available] = [needed, available].map(|bytes| bytes / 1_000_000);
            Err(Error::NoMemory { what: what.into(), needed, available })
        }
        _ => Ok(()),
    }
}
