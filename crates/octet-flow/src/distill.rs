//! The last step of a calibrated run, where the plan has one: what was written learns from the original's logits.

use crate::{Calibration, Error, Prepared, QuantizeSettings, Result, digest, journal::DiskJournal, own_text};
use octet_formats::Checkpoint;
use octet_kernels::Engine;
use octet_model::{ArchSpec, Place};
use octet_quant::{DistillStep, Event, Journal, Sink, StageRecord, Step, Turned, Turns};
use octet_tensor::WeightSource;
use octet_tune::{Distilled, Distiller, Keep, Learning, Needs, Network, Progress, Settings, Text, Watch, needs};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

/// What the stage is called in the journal and in events, whose `tensor` is then what there is to say.
pub const STAGE: &str = "distillation";

/// State of unfinished learning, in the work folder.
const STATE: &str = "distill.state";

/// How often it is saved.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// One window in this many is held out, as long as they are not more than [`MOST_HELD`].
const HELD: usize = 8;

/// Where the unrounded codes begin, between the middle of their code and the original weight.
const NEAR: f32 = 0.0;

/// Windows held out at the most.
const MOST_HELD: usize = 16;

/// Windows to learn from and to check on.
fn split<'a>(calibration: &'a Calibration) -> (Vec<&'a [u32]>, Vec<&'a [u32]>) {
    let mut rest = calibration.text.tokens();
    let windows: Vec<&[u32]> = calibration
        .text
        .lengths()
        .map(|length| {
            let (window, after) = rest.split_at(length);
            rest = after;
            window
        })
        .collect();
    let step = windows.len().div_ceil(MOST_HELD).max(HELD);
    let (held, learnt): (Vec<_>, Vec<_>) = windows.into_iter().enumerate().partition(|(at, _)| at % step == step / 2);
    let plain = |windows: Vec<(usize, &'a [u32])>| windows.into_iter().map(|(_, window)| window).collect();
    (plain(learnt), plain(held))
}

fn settings(step: DistillStep, seed: u64) -> Settings {
    let learning = Learning { scales: step.scales as f32, codes: step.codes as f32, zeros: 0.0, near: NEAR, settle: step.settle as f32 };
    let DistillStep { block_steps, steps, batch_tokens, .. } = step;
    let norms = step.norms as f32;
    Settings { block_steps, steps, batch_tokens, learning, norms, seed, keep: Keep::All, lessons: true }
}

/// What distilling will take within so much memory.
pub(crate) fn forecast(spec: &ArchSpec, step: DistillStep, calibration: &Calibration, memory_budget: u64) -> Needs {
    let held = split(calibration).1.len();
    let windows = calibration.text.len() + step.own_text.div_ceil(calibration.length.max(1));
    let needs = needs(spec, &settings(step, 0), (windows, calibration.length, held), memory_budget);
    // What the original writes goes through it once, a token of many sequences at a time.
    Needs { work: needs.work + step.own_text as f64 * octet_quant::products_a_token(spec), ..needs }
}

/// Refuses what cannot be distilled, before any long work begins.
///
/// # Errors
/// If a node of the model has no gradient, or memory would not do.
pub(crate) fn check(spec: &ArchSpec, step: DistillStep, calibration: &Calibration) -> Result<()> {
    Network::new(spec)?;
    let needed = forecast(spec, step, calibration, calibration.memory_budget).bytes;
    if needed > calibration.memory_budget {
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        return Err(Error::TooLargeToDistill { needed: mb(needed), budget: mb(calibration.memory_budget) });
    }
    Ok(())
}

/// Saves states now and then and passes progress on.
struct Saver<'a> {
    path: PathBuf,
    saved: Instant,
    progress: &'a mut dyn FnMut(&Event<'_>),
}

impl Watch for Saver<'_> {
    fn progress(&mut self, at: Progress) {
        let text = match at.block {
            Some(block) => format!("block {}, error {:.5}, held out {:.5}", block + 1, at.loss, at.held),
            None => format!("divergence {:.5}, held out {:.5}", at.loss, at.held),
        };
        let (done, total) = (at.done as u64, at.total as u64);
        (self.progress)(&Event { place: Place::Head, what: STAGE, tensor: Some(&text), report: None, done, total });
    }

    fn save(&mut self, last: bool, state: &mut dyn FnMut() -> Vec<u8>) {
        if !last && self.saved.elapsed() < SAVE_EVERY {
            return;
        }
        // A name of its own until it is whole.
        let half = self.path.with_extension("new");
        let written = fs::write(&half, state()).and_then(|()| fs::rename(&half, &self.path));
        if let Err(error) = written {
            // Learning goes on without.
            tracing::warn!("the state of the distillation cannot be saved ({error}); a run that is stopped begins it again");
        }
        self.saved = Instant::now();
    }
}

impl Prepared {
    /// Why this model cannot learn from its original, if it cannot.
    pub fn cannot_learn(&self) -> Option<String> {
        Network::new(&self.spec).err().map(|error| error.to_string())
    }

    /// The same recipe with learning after it, under another name.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn learning(&self, step: DistillStep, label: String) -> Result<Self> {
        let mut recipe = self.settings.recipe.clone();
        recipe.steps.push(Step::Distill(step));
        Self::new(&self.input, |_| Ok(QuantizeSettings { recipe, label, ..self.settings.clone() }))
    }

    /// Lets the finished model of `journal` learn, and writes what it learnt over it. `turns` is what was turned before it was
    /// quantized: what it learns from is turned alike, so that both are the same computation.
    ///
    /// # Errors
    /// If it is interrupted (its state stays in `work`), or as learning and writing do.
    pub(crate) fn distill(
        &self,
        step: DistillStep,
        calibration: &Calibration,
        (journal, work, turns): (&mut DiskJournal, &Path, &Arc<Turns>),
        engine: &Engine,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Event<'_>),
    ) -> Result<()> {
        if journal.finished().last().is_some_and(|record| record.stage == STAGE) {
            return Ok(());
        }
        let network = Network::new(&self.spec.with_turned_inputs(turns.inputs().clone()))?;
        let Needs { keep, lessons, .. } = forecast(&self.spec, step, calibration, calibration.memory_budget);
        let settings = Settings { keep, lessons, ..settings(step, self.settings.seed) };
        let teacher = Turned::new(Box::new(Checkpoint::open(&self.input)?) as Box<dyn WeightSource>, Arc::clone(turns));
        let student = journal.results().map_err(|source| Error::Internal(source.to_string()))?;
        let mut distiller = Distiller::new(engine, &network, &teacher, &*student, settings)?;
        drop((teacher, student));
        let path = work.join(STATE);
        if let Ok(state) = fs::read(&path)
            && let Err(error) = distiller.resume(&state)
        {
            tracing::warn!("{error}");
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        let (mut windows, held) = split(calibration);
        let own = self.own_text(step, (&windows, calibration.length), engine, cancel, progress)?;
        windows.extend(own.iter().map(Vec::as_slice));
        let mut saver = Saver { path, saved: Instant::now(), progress };
        let outcome = distiller.run(&Text { windows: &windows, held: &held }, cancel, &mut saver)?;
        let remark = remark(&outcome, step, (windows.len(), own.len()), held.len());
        let (matrices, tensors) = (distiller.matrices()?, distiller.tensors()?);
        let names: BTreeSet<String> = matrices
            .iter()
            .map(|(module, _)| (*module).to_string())
            .chain(tensors.iter().map(|tensor| tensor.name().to_string()))
            .collect();
        journal.reopen(&self.plan, &names)?;
        let failed = |name: &str| {
            let name = name.to_string();
            move |source: octet_quant::SinkError| octet_quant::Error::Sink { name, source }
        };
        for (module, q) in &matrices {
            journal.matrix(module, 0, q.rows(), q).map_err(failed(module))?;
        }
        for tensor in &tensors {
            journal.tensor(tensor.name(), tensor).map_err(failed(tensor.name()))?;
        }
        let record = StageRecord { stage: STAGE.into(), tensors: vec![], inputs: vec![], remarks: vec![remark] };
        journal.commit(record).map_err(failed(STAGE))?;
        // What is left of it goes with the work folder; a state without its work only takes space.
        let _ = fs::remove_file(&saver.path);
        Ok(())
    }

    /// What the original writes to be learnt from. A run that goes on writes it again: the same tokens, and nothing to keep.
    fn own_text(
        &self,
        step: DistillStep,
        (windows, length): (&[&[u32]], usize),
        engine: &Engine,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Vec<Vec<u32>>> {
        if step.own_text > 0 && self.input.read("tokenizer.json")?.is_none() {
            tracing::warn!("there is no tokenizer, so the original writes no text of its own to learn from");
            return Ok(vec![]);
        }
        own_text::write(self, (windows, length, step.own_text), engine, cancel, progress)
    }
}

fn remark(outcome: &Distilled, step: DistillStep, (windows, own): (usize, usize), held: usize) -> String {
    let Distilled { before, after, blocks, best } = outcome;
    let written = if own > 0 { format!(", {own} of them written by the original") } else { String::new() };
    let each = match (step.block_steps, blocks) {
        (0, _) => String::new(),
        (steps, Some(after)) => format!("{steps} steps of every block by itself ({after:.5} nats after those) and "),
        (steps, None) => format!("{steps} steps of every block by itself, which was worse and is not kept, and "),
    };
    let from = format!("{each}{} steps on {windows} windows{written}", step.steps);
    if *best == 0 && blocks.is_none() {
        return format!("distillation changed nothing: {from} did not lower the divergence of {before:.5} on {held} held-out windows");
    }
    format!("distilled: {from} took the divergence on {held} held-out windows from {before:.5} to {after:.5} nats a token (step {best})")
}

/// What a receipt says of the text.
pub(crate) fn text_digest(calibration: &Calibration) -> String {
    digest::of_window(calibration.text.tokens())
}
