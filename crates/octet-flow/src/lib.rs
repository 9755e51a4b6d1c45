//! The quantize job: plan, stage, write, re-open, judge, commit or refuse.
//!
//! What lives here: [`Prepared`] (a checkpoint and the plan for it), [`Prepared::write`] and
//! [`Prepared::write_calibrated`] (the staged artefact; the latter resumable), [`judge`] (the
//! verdict on two opened models), [`receipt`] (what was done, provable and repeatable), [`MixedJob`] (mixed precision: losses
//! measured, allocated, the smallest that passes searched), [`machine`] (the run as states, the ladder, the
//! log of decisions), [`Summary`] and [`variants`] (several variants compared, and which is in use), [`tools`] (the same for agents).
//! What does not: any algorithm of quantization or of statistics; those are asked of octet-quant and octet-eval.
#![forbid(unsafe_code)]

mod artefact;
mod calibrate;
mod claims;
pub mod digest;
mod distill;
mod error;
pub mod export;
mod journal;
mod judge;
pub mod machine;
mod mixed;
mod original;
mod own_text;
mod prepack;
mod prepare;
pub mod receipt;
mod spill;
mod summary;
pub mod tools;
pub mod variants;
mod write;

pub use calibrate::Calibration;
pub use claims::Claims;
pub use distill::STAGE as DISTILLATION;
pub use error::{Error, Result};
pub use judge::{FORECAST, JudgeSettings, Judged, Origin, judge, judge_folder, judge_quality};
pub use mixed::FILE as MIXED_FILE;
pub use mixed::{Allocated, Budget, Gains, MixedBest, MixedCandidate, MixedEvent, MixedFound, MixedJob, MixedTry, SearchForecast};
pub use original::Original;
pub use own_text::STAGE as OWN_TEXT;
pub use prepare::{Prepared, QuantizeSettings};
pub use receipt::{Receipt, ReceiptFacts, TextSource};
pub use summary::{Ranked, Summary, Variant};
pub use write::Staged;

/// Told where a long step stands: its name, how much is done out of how much, and a detail worth showing.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64, &str);
