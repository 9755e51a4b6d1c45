//! The staged artefact: written beside its target under a hidden name, renamed only when it is accepted.

use crate::{
    Calibration, Error, Prepared, Progress, Result,
    artefact::{self, Artefact},
    digest, journal,
};
use octet_eval::report::TensorFigures;
use octet_formats::staging::{Staging, available_bytes};
use octet_kernels::Engine;
use octet_quant::{Run, TensorReport};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// A complete artefact in its staging folder.
pub struct Staged {
    pub(crate) staging: Staging,
    /// What quantizing cost each tensor.
    pub reports: Vec<TensorReport>,
    /// Bytes that the finished folder was forecast to take before anything was written.
    pub forecast_bytes: u64,
    /// What calibration did, as `quantization_config.json` says it; null without.
    pub calibration: Value,
}

impl Prepared {
    /// Refuses a `target` that [`Prepared::write`] could not write, before any long work begins; nothing is left behind.
    ///
    /// # Errors
    /// If the target exists (without `force`), touches the input, is not writable, or another run works on it.
    pub fn check_target(&self, target: &Path, force: bool) -> Result<()> {
        self.open_stage(target, force).map(drop)
    }

    pub(crate) fn open_stage(&self, target: &Path, force: bool) -> Result<Staging> {
        let inputs: Vec<&Path> = self.input.path().into_iter().collect();
        Ok(Staging::open(target, force, &inputs)?)
    }

    /// Quantizes into a staging folder beside `target`, without calibration.
    ///
    /// # Errors
    /// If the target exists (without `force`) or lies inside the input, the disk is full, weights are not finite, or `cancel`
    /// is set; the staging folder is removed then. If unfinished work of a calibrated run is there (without `restart`).
    pub fn write(
        &self,
        target: &Path,
        force: bool,
        restart: bool,
        engine: &Engine,
        cancel: &AtomicBool,
        progress: Progress<'_>,
    ) -> Result<Staged> {
        let mut staging = self.open_stage(target, force)?;
        if !restart && journal::exists(staging.work()) {
            return Err(Error::OtherWork { work: staging.work().to_path_buf(), differs: "calibration (some, now none)".into() });
        }
        staging.clear()?;
        let dir = staging.path();
        let described = self.describe(Value::Null);
        let forecast_bytes = artefact::forecast(&self.input, self.checkpoint.config(), &self.plan, &described)?;
        check_space(staging.target(), forecast_bytes)?;
        tracing::info!(target = %target.display(), bytes = forecast_bytes, "staging");
        let mut sink = Artefact::create(&dir, &self.plan, false)?;
        let run = Run { plan: &self.plan, source: &self.checkpoint, engine, cancel };
        let reports = run.quantize(&mut sink, &mut |at| {
            let error = at.error.map_or(String::new(), |e| format!("  error {e:.2e}"));
            progress("quantizing", at.done_bytes, at.total_bytes, &format!("{}{error}", at.tensor));
        });
        let reports = reports.map_err(|error| match error {
            octet_quant::Error::Interrupted { .. } => Error::Interrupted,
            other => other.into(),
        })?;
        sink.finish()?;
        for report in reports.iter().filter(|report| report.scheme.is_some()) {
            let (name, error, largest) = (&report.name, report.error.relative(), report.error.max_error);
            tracing::debug!(
                "{name}: relative squared error {error:.3e}, largest error {largest:.3e}, {:.3} bits a weight",
                report.bits_per_weight
            );
        }
        artefact::write_json(&dir.join("config.json"), &artefact::config(self.checkpoint.config(), &self.plan))?;
        artefact::copy_companions(&dir, &self.input)?;
        artefact::write_json(&dir.join("quantization_config.json"), &described)?;
        Ok(Staged { staging, reports, forecast_bytes, calibration: Value::Null })
    }

    pub(crate) fn describe(&self, calibration: Value) -> Value {
        artefact::describe(&self.settings.label, &self.plan, &self.plan_digest(), &calibration, self.settings.seed)
    }

    /// SHA-256 of the plan's canonical text.
    pub(crate) fn plan_digest(&self) -> String {
        hex(&Sha256::digest(self.plan.digest().as_bytes()))
    }
}

impl Prepared {
    /// The artefact that an earlier, stopped run finished for `target`, if it is still there and holds the files whose digest
    /// is `artefact`; `None` else.
    ///
    /// # Errors
    /// As [`Prepared::write`] for a target that cannot be written.
    pub(crate) fn reopen(&self, target: &Path, calibration: Option<&Calibration>, artefact: &str) -> Result<Option<Staged>> {
        let staging = Staging::open(target, true, &[])?;
        if !staging.path().is_dir() || digest::tree(&staging.path())? != artefact {
            return Ok(None);
        }
        let described = staging.path().join("quantization_config.json");
        let described: Value = std::fs::read(described).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let planned = calibration.map_or(Value::Null, |calibration| self.calibrated(calibration, &[]));
        let forecast_bytes = artefact::forecast(&self.input, self.checkpoint.config(), &self.plan, &self.describe(planned))?;
        Ok(Some(Staged { staging, reports: vec![], forecast_bytes, calibration: described["calibration"].clone() }))
    }
}

impl Staged {
    /// What quantizing cost each tensor, for the report.
    pub fn tensor_figures(&self) -> Vec<TensorFigures> {
        let quantized = self.reports.iter().filter_map(|report| Some((report, report.scheme?)));
        let figures = |(report, scheme): (&TensorReport, octet_tensor::Scheme)| TensorFigures {
            name: report.name.clone(),
            scheme: scheme.short(),
            bits_per_weight: report.bits_per_weight,
            error: report.error.relative(),
            loss: report.error.weighted_relative(),
        };
        quantized.map(figures).collect()
    }

    /// Leaves it where it is when this is dropped, to be gone on with.
    pub fn keep(&mut self) {
        self.staging.retain(true);
    }

    /// Adds a file of text.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path().join(name);
        std::fs::write(&path, text).map_err(Error::write(path))
    }

    /// Where the artefact is now.
    pub fn path(&self) -> PathBuf {
        self.staging.path()
    }

    /// Bytes of all its files.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn bytes(&self) -> Result<u64> {
        artefact::folder_bytes(&self.path())
    }

    /// Adds a JSON document.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&self, name: &str, value: &Value) -> Result<()> {
        artefact::write_json(&self.path().join(name), value)
    }

    /// Removes it: what was refused leaves nothing to resume.
    pub fn discard(mut self) {
        self.staging.retain(false);
    }

    /// Gives the artefact its name.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn commit(self) -> Result<PathBuf> {
        Ok(self.staging.commit()?)
    }
}

pub(crate) fn check_space(target: &Path, bytes: u64) -> Result<()> {
    let megabytes = |b: u64| b as f64 / 1e6;
    match available_bytes(target) {
        Some(free) if free < bytes => {
            Err(Error::NoSpace { path: target.display().to_string(), available: megabytes(free), needed: megabytes(bytes) })
        }
        _ => Ok(()),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
