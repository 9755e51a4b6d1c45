//! The staged artefact: written beside its target under a hidden name, renamed only when it is accepted.

use crate::{
    Error, Prepared, Progress, Result,
    artefact::{self, Artefact},
};
use octet_formats::staging::{Staging, available_bytes};
use octet_kernels::Engine;
use octet_quant::{Importance, Run, TensorReport};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Importance of inputs with where it came from.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// What was measured.
    pub importance: Importance,
    /// Names of the texts.
    pub texts: Vec<String>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// SHA-256 of the token ids.
    pub digest: String,
}

/// A complete artefact in its staging folder.
pub struct Staged {
    staging: Staging,
    /// What quantizing cost each tensor.
    pub reports: Vec<TensorReport>,
    /// Bytes that the finished folder was forecast to take before anything was written.
    pub forecast_bytes: u64,
}

impl Calibrated {
    fn describe(&self) -> Value {
        let (dead, inputs) = self.importance.coverage();
        json!({ "texts": self.texts, "tokens": self.tokens, "sha256": self.digest, "dead_inputs": dead, "inputs": inputs })
    }
}

impl Prepared {
    /// Refuses a `target` that [`Prepared::write`] could not write, before any long work begins; nothing is left behind.
    ///
    /// # Errors
    /// If the target exists (without `force`), touches the input, is not writable, or another run works on it.
    pub fn check_target(&self, target: &Path, force: bool) -> Result<()> {
        self.stage(target, force).map(drop)
    }

    fn stage(&self, target: &Path, force: bool) -> Result<Staging> {
        let inputs: Vec<&Path> = self.input.path().into_iter().collect();
        Ok(Staging::begin(target, force, &inputs)?)
    }

    /// Quantizes into a staging folder beside `target`.
    ///
    /// # Errors
    /// If the target exists (without `force`) or lies inside the input, the disk is full, weights are not finite, or `cancel`
    /// is set; the staging folder is removed then.
    pub fn write(
        &self,
        target: &Path,
        force: bool,
        calibrated: Option<&Calibrated>,
        engine: &Engine,
        cancel: &AtomicBool,
        progress: Progress<'_>,
    ) -> Result<Staged> {
        let staging = self.stage(target, force)?;
        let dir = staging.path();
        let described = self.describe(calibrated);
        let forecast_bytes = artefact::forecast(&self.input, self.checkpoint.config(), &self.plan, &described)?;
        check_space(staging.target(), forecast_bytes)?;
        tracing::info!(target = %target.display(), bytes = forecast_bytes, "staging");
        let mut sink = Artefact::create(&dir, &self.plan)?;
        let importance = calibrated.map(|c| &c.importance);
        let run = Run { plan: &self.plan, source: &self.checkpoint, importance, engine, cancel };
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
        Ok(Staged { staging, reports, forecast_bytes })
    }

    fn describe(&self, calibrated: Option<&Calibrated>) -> Value {
        let calibration = calibrated.map_or(Value::Null, Calibrated::describe);
        let digest = hex(&Sha256::digest(self.plan.digest().as_bytes()));
        artefact::describe(&self.settings.label, &self.plan, &digest, &calibration, self.settings.seed)
    }
}

impl Staged {
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

    /// Gives the artefact its name.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn commit(self) -> Result<PathBuf> {
        Ok(self.staging.commit()?)
    }
}

fn check_space(target: &Path, bytes: u64) -> Result<()> {
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
