//! Judging models: perplexity, divergence, text health, speed and memory; gates and their report.
//!
//! What lives here: measurements of one model or of a pair ([`score`], [`health`], [`speed`], [`size`]), the statistics
//! that make them comparable ([`paired`], [`stats`], [`looks`]), what is kept of the original ([`mod@reference`], [`evaluation`], [`store`]),
//! pure functions from figures to gates ([`gates`]), and the [`Report`] that holds both. What does not: files of models, quantization, printing.
#![forbid(unsafe_code)]

pub mod along;
pub mod bench;
pub mod cost;
pub mod degeneration;
mod energy;
mod error;
pub mod evaluation;
pub mod fidelity;
pub mod gates;
pub mod health;
pub mod histogram;
pub mod html;
pub mod integrity;
pub mod looks;
pub mod machine;
pub mod memory;
mod number;
pub mod outputs;
pub mod overlap;
pub mod paired;
pub mod permutation;
pub mod quality;
pub mod reference;
pub mod report;
pub mod risk;
pub mod roofline;
pub mod samples;
pub mod score;
mod sixteen_bit;
pub mod size;
pub mod speed;
pub mod stats;
pub mod store;
pub mod tasks;
pub mod text;
mod texts;
mod timing;
pub mod torture;
pub mod trinity;
pub mod windows;
pub mod work;

pub use error::{Error, Progress, Result};
pub use evaluation::{EvalText, Evaluation, EvaluationWindows, Pair, Side};
pub use quality::Quality;
pub use reference::Reference;
pub use report::{Measures, Report};
pub use sixteen_bit::SixteenBit;
pub use texts::verdict_of_texts;
pub use windows::Windows;
