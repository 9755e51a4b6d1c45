//! Calibrated quantization: block by block, every finished block durable, resumed after a kill.

use crate::{
    Error, Prepared, Result, Staged,
    artefact::{self, Artefact},
    digest, distill,
    journal::{self, DiskJournal, Identity},
    receipt::{CalibrationRecord, TextSource},
    spill::OnDisk,
    write::{check_space, hex},
};
use octet_formats::{Checkpoint, staging::Staging};
use octet_kernels::Engine;
use octet_model::{ForwardError, Place};
use octet_quant::{
    CalibratedOptions, CalibratedRun, CalibrationForecast, Event, HiddenStates, InMemory, Plan, RotationRecord, RotationRun, Samples,
    SinkError, StageRecord, Transform, Turned, Turns,
};
use octet_tensor::WeightSource;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// Hidden states while they are on disk, in the work folder.
const SPILL: &str = "hidden.f32";

/// So many times the usual number of windows are drawn at the most so that experts are reached.
const MOST_TOPPING_UP: usize = 8;

/// What a calibration runs on, and how.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Names of the texts.
    pub texts: Vec<String>,
    /// The files (or built-in texts) they are.
    pub sources: Vec<TextSource>,
    /// The field of JSON lines that was read, where one was named.
    pub field: Option<String>,
    /// Tokens of a window.
    pub length: usize,
    /// What was drawn from them.
    pub samples: Samples,
    /// All windows of them: what a model learns from that learns.
    pub text: Samples,
    /// Whether linears see what already quantized linears of the same block leave.
    pub sequential: bool,
    /// Memory that may be taken, in bytes; hidden states go to disk where they would not fit.
    pub memory_budget: u64,
    /// Whether unfinished work is thrown away instead of resumed.
    pub restart: bool,
}

impl Calibration {
    /// All tokens that have a say in the result of a plan.
    pub fn seen(&self, plan: &Plan) -> &[u32] {
        if plan.distill().is_some() { self.text.tokens() } else { self.samples.tokens() }
    }

    /// What the receipt says of it.
    pub(crate) fn record(&self) -> CalibrationRecord {
        let mut rest = self.samples.tokens();
        let mut window = |length| {
            let (window, after) = rest.split_at(length);
            rest = after;
            digest::of_window(window)[..16].to_string()
        };
        CalibrationRecord {
            texts: self.sources.clone(),
            field: self.field.clone(),
            length: self.length,
            tokens: self.samples.tokens().len(),
            sha256: self.digest(),
            windows: self.samples.lengths().map(&mut window).collect(),
            true_sequential: self.sequential,
        }
    }

    /// SHA-256 over lengths and tokens of all windows.
    pub(crate) fn digest(&self) -> String {
        let mut sha = Sha256::new();
        for length in self.samples.lengths() {
            sha.update((length as u64).to_le_bytes());
        }
        for token in self.samples.tokens() {
            sha.update(token.to_le_bytes());
        }
        hex(&sha.finalize())
    }
}

impl Prepared {
    /// Windows by `draw` (told how many times the usual number), as many as it takes to reach every expert, within reason.
    ///
    /// # Errors
    /// If weights cannot be read or the numbers of the original are not finite.
    pub fn reach_experts(&self, engine: &Engine, draw: &dyn Fn(usize) -> Samples) -> Result<Samples> {
        Ok(octet_quant::topped_up(engine, &self.spec, &self.checkpoint, MOST_TOPPING_UP, draw)?)
    }

    /// What calibration will take.
    pub fn forecast_calibration(&self, calibration: &Calibration) -> CalibrationForecast {
        CalibrationForecast::new(&self.plan, &self.spec, &calibration.samples, calibration.sequential, calibration.memory_budget)
    }

    /// Quantizes into a staging folder beside `target`, with statistics of what flows through the model on the way. A run
    /// that was killed or interrupted goes on where it was; its bytes are those of an undisturbed run.
    ///
    /// # Errors
    /// As [`Prepared::write`]; if unfinished work of another recipe, model, text or seed is there; if activations are not
    /// finite. What is finished stays, to be resumed, where the cause can go away (a full disk, an interruption).
    pub fn write_calibrated(
        &self,
        target: &Path,
        force: bool,
        calibration: &Calibration,
        engine: &Engine,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Staged> {
        if let Some(step) = self.plan.distill() {
            distill::check(&self.spec, step, calibration)?;
        }
        let mut staging = self.open_stage(target, force)?;
        let (work, out) = (staging.work().to_path_buf(), staging.path());
        let identity = self.identity(calibration, engine)?;
        let found = if calibration.restart { None } else { journal::find(&work, &out, &identity)? };
        let resumed = found.is_some();
        if !resumed {
            staging.clear()?;
        }
        let forecast_bytes =
            artefact::forecast(&self.input, self.checkpoint.config(), &self.plan, &self.describe(self.calibrated(calibration, &[])))?;
        if !resumed {
            check_space(staging.target(), forecast_bytes)?;
        }
        let artefact = |finished: Option<&BTreeSet<String>>| match finished {
            Some(finished) => Artefact::resume(&out, &self.plan, finished),
            None => Artefact::create(&out, &self.plan, true),
        };
        let (turns, rotations) = match self.rotations(calibration, engine, cancel, progress) {
            Ok((turns, records)) => (Arc::new(turns), records),
            Err(error) => return Err(self.stopped(error, staging)),
        };
        let spec = self.spec.with_turned_inputs(turns.inputs().clone());
        if !resumed {
            // Readers of finished blocks need the config.
            let config = artefact::turned(artefact::config(self.checkpoint.config(), &self.plan), turns.inputs());
            artefact::write_json(&out.join("config.json"), &config)?;
        }
        let mut journal = DiskJournal::open(&work, &out, &identity, found, artefact)?;
        staging.retain(true);
        let transforms: Vec<Box<dyn Transform>> =
            self.plan.scalings().map(|scaling| Box::new(scaling.clone()) as Box<dyn Transform>).collect();
        let run = CalibratedRun {
            plan: &self.plan,
            spec: &spec,
            open: &|| -> std::result::Result<Box<dyn WeightSource>, SinkError> {
                let checkpoint: Box<dyn WeightSource> = Box::new(Checkpoint::open(&self.input)?);
                Ok(if turns.is_empty() { checkpoint } else { Box::new(Turned::new(checkpoint, turns.clone())) })
            },
            samples: &calibration.samples,
            transforms: &transforms,
            options: CalibratedOptions { sequential: calibration.sequential, strict: self.settings.strict },
            engine,
            cancel,
        };
        let mut hidden = self.hidden(calibration, &work)?;
        let outcome = run.quantize(&mut journal, &mut *hidden, progress);
        drop(hidden);
        if let Err(error) = outcome {
            return Err(self.stopped(error, staging));
        }
        if let Some(step) = self.plan.distill() {
            let outcome = self.distill(step, calibration, (&mut journal, &work, &turns), engine, cancel, progress);
            if let Err(error) = outcome {
                // What was interrupted, or could not be written, is gone on with.
                staging.retain(error.is_pause() || matches!(error, Error::Quant(octet_quant::Error::Sink { .. })));
                return Err(error);
            }
        }
        let records = journal.finish()?;
        artefact::copy_companions(&out, &self.input)?;
        let mut calibrated = self.calibrated(calibration, &records);
        if !rotations.is_empty() {
            calibrated["rotations"] = json!(rotations);
        }
        artefact::write_json(&out.join("quantization_config.json"), &self.describe(calibrated.clone()))?;
        let reports = records.iter().flat_map(|record| record.tensors.clone()).collect();
        Ok(Staged { staging, reports, forecast_bytes, calibration: calibrated })
    }

    /// What the plan's rotations do to the weights. A run that goes on finds the same ones again.
    fn rotations(
        &self,
        calibration: &Calibration,
        engine: &Engine,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(&Event<'_>),
    ) -> std::result::Result<(Turns, Vec<RotationRecord>), octet_quant::Error> {
        let (plan, spec, source, samples) = (&self.plan, &self.spec, &self.checkpoint, &calibration.samples);
        let run = RotationRun { plan, spec, source, samples, engine, cancel };
        let (turns, records) = run.find(&mut |what| {
            progress(&Event { place: Place::Embedding, what: "rotating", tensor: Some(what), report: None, done: 0, total: 1 });
        })?;
        records.iter().for_each(|record| tracing::info!("{record}"));
        Ok((turns, records))
    }

    fn hidden(&self, calibration: &Calibration, work: &Path) -> Result<Box<dyn HiddenStates>> {
        let forecast = self.forecast_calibration(calibration);
        let (spilled, values) = (forecast.spilled, forecast.hidden_bytes as usize / size_of::<f32>());
        if !spilled {
            return Ok(Box::new(InMemory::new(values)));
        }
        let path = work.join(SPILL);
        check_space(&path, (values * size_of::<f32>()) as u64)?;
        Ok(Box::new(OnDisk::create(&path).map_err(Error::write(&path))?))
    }

    /// The error a caller sees, and whether the work stays to be resumed.
    fn stopped(&self, error: octet_quant::Error, mut staging: Staging) -> Error {
        use octet_quant::Error as Quant;
        let passing = matches!(error, Quant::Interrupted { .. } | Quant::Spill(_) | Quant::Sink { .. });
        staging.retain(passing);
        match error {
            Quant::Interrupted { done, total } => Error::Paused { done, total },
            Quant::Forward(error) => self.culprit(error),
            other => other.into(),
        }
    }

    /// Bytes and seconds (by this machine's measured rates) that distilling will take, where the plan distils.
    ///
    /// # Errors
    /// If the model cannot be distilled.
    pub fn forecast_distillation(&self, calibration: &Calibration, engine: &Engine) -> Result<Option<(u64, f64)>> {
        let Some(step) = self.plan.distill() else { return Ok(None) };
        distill::check(&self.spec, step, calibration)?;
        let needs = distill::forecast(&self.spec, step, calibration, calibration.memory_budget);
        Ok(Some((needs.bytes, needs.seconds(engine, &self.spec))))
    }

    /// Multiply-adds of distilling, where the plan distils and memory is no matter.
    pub(crate) fn distillation_cost(&self, calibration: &Calibration) -> f64 {
        self.plan.distill().map_or(0.0, |step| distill::forecast(&self.spec, step, calibration, u64::MAX).work)
    }

    /// Everything the bytes of the result depend on.
    fn identity(&self, calibration: &Calibration, engine: &Engine) -> Result<Identity> {
        let plan = self.plan_digest();
        let order = if calibration.sequential { "true-sequential" } else { "one pass a block" };
        let learnt = self.plan.distill().map_or_else(|| "nothing".into(), |_| distill::text_digest(calibration));
        let entries = [
            ("text learnt from", learnt),
            ("octet version", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", plan),
            ("model", digest::of_weights(&self.input, &self.checkpoint, engine)?),
            ("calibration text", calibration.digest()),
            ("calibration tokens", calibration.samples.tokens().len().to_string()),
            ("order of inputs", order.to_string()),
            ("seed", self.settings.seed.to_string()),
            ("instruction set", engine.isa().to_string()),
        ];
        Ok(entries.map(|(key, value)| (key.to_string(), value)).into())
    }

    /// What `quantization_config.json` and the report say about the calibration.
    pub(crate) fn calibrated(&self, calibration: &Calibration, records: &[StageRecord]) -> Value {
        let inputs = || records.iter().flat_map(|record| &record.inputs);
        let unreached: Vec<&str> = inputs().filter(|input| input.expert && input.tokens == 0).map(|input| input.input.as_str()).collect();
        let dead: Vec<Value> = inputs()
            .filter(|input| input.dead > 0 && input.tokens > 0)
            .map(|input| json!({ "input": input.input, "dead": input.dead, "of": input.width }))
            .collect();
        let few = inputs().filter(|input| input.expert && (1..octet_quant::EXPERT_TOKENS).contains(&input.tokens)).count();
        let remarks = records.iter().flat_map(|record| &record.tensors).filter_map(|tensor| Some((tensor, tensor.remark.as_ref()?)));
        let remarks: Vec<String> = remarks.map(|(tensor, remark)| format!("{}: {remark}", tensor.name)).collect();
        json!({
            "texts": calibration.texts,
            "samples": calibration.samples.len(),
            "tokens": calibration.samples.tokens().len(),
            "sha256": calibration.digest(),
            "true_sequential": calibration.sequential,
            "coverage": {
                "distinct_tokens": calibration.samples.distinct(),
                "vocabulary": self.spec.vocab_size(),
                "dead_inputs": inputs().map(|input| input.dead).sum::<usize>(),
                "inputs": inputs().map(|input| input.width).sum::<usize>(),
                "dead_by_input": dead,
                "outlier_inputs": inputs().map(|input| input.outliers).sum::<usize>(),
                "experts_never_reached": unreached,
                "experts_hardly_reached": few,
            },
            "transforms": records.iter().flat_map(|record| record.remarks.iter().cloned()).collect::<Vec<_>>(),
            "remarks": remarks,
        })
    }

    /// The damaged tensor that made a forward pass fail, where there is one.
    fn culprit(&self, error: ForwardError) -> Error {
        if !matches!(error, ForwardError::NonFinite { .. }) {
            return error.into();
        }
        let damaged = self.checkpoint.entries().iter().find_map(|entry| {
            let (count, total) = (self.checkpoint.scan_non_finite(&entry.name), entry.shape.iter().product());
            (count > 0).then(|| octet_quant::Error::NonFinite { name: entry.name.clone(), count, total })
        });
        damaged.map_or_else(|| error.into(), Error::from)
    }

    /// Whether statistics can change the plan's result: rounding to 8 bits gains nothing from them.
    pub fn wants_calibration(&self) -> bool {
        let wants = |line: &octet_quant::Line| match line.action {
            octet_quant::Action::Quantize { scheme, solver, .. } => solver.needs_hessian() || scheme.weights.bits.get() < 8,
            _ => false,
        };
        self.needs_calibration() || self.plan.lines().iter().any(wants)
    }

    /// Whether a solver or transform of the plan cannot do without calibration.
    pub fn needs_calibration(&self) -> bool {
        self.turns_or_scales() || self.chooses_outliers() || self.plan.distill().is_some() || self.needs_hessians()
    }

    /// Whether values are turned or scaled before tensors are solved.
    pub fn turns_or_scales(&self) -> bool {
        self.plan.has_scalings() || !self.plan.rotations().is_empty()
    }

    /// Whether outlier columns are chosen by what flows into linears.
    pub fn chooses_outliers(&self) -> bool {
        self.plan.quantized().any(|(_, scheme)| matches!(scheme.activations, octet_tensor::Activations::Int8Beside(_)))
    }

    /// Whether a solver of the plan cannot do without calibration.
    pub fn needs_hessians(&self) -> bool {
        self.plan.lines().iter().any(|line| line.action.solver().is_some_and(|solver| solver.needs_hessian()))
    }

    /// Inputs of the widest linear that statistics are gathered for.
    pub fn widest_input(&self) -> usize {
        let sites = self.plan.quantized().filter_map(|(line, _)| line.linear.as_ref());
        sites.filter(|site| site.layer.is_some()).map(|site| site.cols).max().unwrap_or(0)
    }
}
