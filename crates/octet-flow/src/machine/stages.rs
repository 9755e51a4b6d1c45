//! What a run asks of whoever knows texts, files and flags.

use super::{Candidate, Entry, Identity, Question};
use crate::{Calibration, Prepared, Staged};
use octet_eval::Report;
use serde_json::Value;
use std::path::PathBuf;

/// A candidate, planned.
pub struct Planned {
    /// The model and what becomes of its tensors.
    pub prepared: Prepared,
    /// What it is calibrated on, if on anything.
    pub calibration: Option<Calibration>,
    /// Where it will be.
    pub target: PathBuf,
    /// Seconds that writing it takes, where that is forecast: it is not begun where a run's minutes would not do.
    pub seconds: Option<f64>,
}

/// The work of the states.
pub trait Stages {
    /// What can go wrong; errors of this crate are among it.
    type Error: From<crate::Error> + std::fmt::Display;

    /// Whether an error is no failure but a wish to stop.
    fn is_stop(&self, error: &Self::Error) -> bool;

    /// What the decisions of this run depend on beside the candidates: inputs, thresholds, version.
    ///
    /// # Errors
    /// If something cannot be read.
    fn identity(&mut self) -> Result<Identity, Self::Error>;

    /// Measures the original; gives its figures.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn evaluate(&mut self) -> Result<Value, Self::Error>;

    /// Told of a candidate before any work on it begins, unless an earlier run refused it.
    fn begins(&mut self, candidate: &Candidate);

    /// Plans a candidate, without long work.
    ///
    /// # Errors
    /// If it does not fit the model, or something it needs is not there; a rung that cannot be planned is passed over.
    fn plan(&mut self, candidate: &Candidate) -> Result<Planned, Self::Error>;

    /// Writes it.
    ///
    /// # Errors
    /// As [`Prepared::write`] and [`Prepared::write_calibrated`].
    fn quantize(&mut self, planned: &Planned) -> Result<Staged, Self::Error>;

    /// Judges what was written.
    ///
    /// # Errors
    /// As [`crate::judge`].
    fn validate(&mut self, planned: &Planned, staged: &Staged) -> Result<Report, Self::Error>;

    /// Gives it its name, with its report and the transcript.
    ///
    /// # Errors
    /// If it cannot be written or renamed.
    fn commit(&mut self, planned: &Planned, staged: Staged, report: &Report, log: &str) -> Result<PathBuf, Self::Error>;

    /// Asks a person; `None` where there is none.
    fn ask(&mut self, question: &Question, report: &Report) -> Option<bool>;

    /// Told of every decision.
    fn decided(&mut self, entry: &Entry);
}
